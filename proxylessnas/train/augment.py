"""Augmentation: image by image with torchvision's transforms, or a whole batch at once; mixup and cutmix.

The second way exists because at 32 x 32 px the calls cost more than the arithmetic: a batch of 128 takes
2 ms instead of 17. It does crops with padding, mirroring and cutout; anything else goes the first way.
Which way is taken follows from the recipe and the images, never from the machine.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..data.transforms import Preprocessing
from ..errors import needs
from ..utils.devices import sent
from .recipe import Recipe
from .sampler import BATCHES, MIRRORS, MIXING, generator, mix64

if TYPE_CHECKING:
    from collections.abc import Callable


class Geometry:
    """The resize and centre crop of a preprocessing, without its scaling: uint8 in, uint8 out.

    Args:
        preprocessing: says how.
        resize: length of the short side before the crop, px, if not the preprocessing's own.
    """

    def __init__(self, preprocessing: Preprocessing, resize: int | None = None) -> None:
        self.size = preprocessing.input_size
        self.resize = preprocessing.resize if resize is None else resize
        like = Preprocessing(
            self.size,
            self.resize,
            interpolation=preprocessing.interpolation,
            antialias=preprocessing.antialias,
        )
        self._transform = like.build()

    def __call__(self, image: Tensor) -> Tensor:
        """Return [..., 3, size, size] for [..., 3, H, W]."""
        t = self._transform
        image = t._resize(t._without_far_ends(image))
        top, left = (round((side - self.size) / 2) for side in image.shape[-2:])
        return image[..., top : top + self.size, left : left + self.size]


def normalised(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Return uint8 [..., 3, H, W] as float32, scaled to 0..1 and normalised; the memory layout stays.

    The same operations in the same order as in evaluation, so that the same pixels give the same bits.
    """
    mean, std = (
        sent(torch.tensor(v, dtype=torch.float32).view(3, 1, 1), images.device)
        for v in (preprocessing.mean, preprocessing.std)
    )
    return images.float().div_(255).sub_(mean).div_(std)


def shrunk(images: Tensor, side: int) -> Tensor:
    """Return images [B, C, H, W] with the short side ``side`` px, if it is longer now."""
    height, width = images.shape[-2:]
    if min(height, width) <= side:
        return images
    size = [max(side, round(n * side / min(height, width))) for n in (height, width)]
    return torch.nn.functional.interpolate(images, size, mode="bilinear", antialias=True)


class Normalise:
    """:func:`normalised` as a transform that can be pickled."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        self.preprocessing = preprocessing

    def __call__(self, image: Tensor) -> Tensor:
        """Return float32 for uint8 [..., 3, H, W]."""
        return normalised(image, self.preprocessing)


class Cutout:
    """Set a square at a random place to zero, the mean colour (DeVries & Taylor 2017); in place.

    Its centre is uniform over the image, so that at the border less than a full square is lost.
    """

    def __init__(self, side: int) -> None:
        self.side = side

    def __call__(self, image: Tensor) -> Tensor:
        """Return the normalised image [..., H, W] without a square."""
        height, width = image.shape[-2:]
        top = int(torch.randint(height, ())) - self.side // 2
        left = int(torch.randint(width, ())) - self.side // 2
        image[..., max(0, top) : max(0, top + self.side), max(0, left) : max(0, left + self.side)] = 0.0
        return image


def train_transform(
    recipe: Recipe, preprocessing: Preprocessing, *, prepared: bool = False
) -> Callable[[Tensor], Tensor]:
    """Return the augmentation of single images: uint8 [3, H, W] in, float32 [3, S, S] out.

    It draws from torch's global generator, and can be pickled.

    Args:
        recipe: which augmentation.
        preprocessing: size S and normalisation.
        prepared: the images have gone through :func:`preparation` already.

    Raises:
        MissingExtraError: torchvision cannot be imported.
    """
    with needs("torchvision", "augmenting images"):
        from torchvision.transforms import InterpolationMode, v2
    size = preprocessing.input_size
    first = preparation(recipe, preprocessing)
    steps: list[Any] = [first] if first is not None and not prepared else []
    if recipe.crop == "resized":
        how = InterpolationMode(preprocessing.interpolation)
        steps.append(
            v2.RandomResizedCrop(size, (recipe.crop_scale_min, 1.0), interpolation=how, antialias=True)
        )
    elif recipe.crop == "padded":
        steps.append(v2.RandomCrop(size, padding=recipe.crop_padding))
    if recipe.flip:
        steps.append(v2.RandomHorizontalFlip())
    jitter = (
        recipe.jitter_brightness, recipe.jitter_contrast, recipe.jitter_saturation, recipe.jitter_hue,
    )  # fmt: skip
    if any(jitter):
        steps.append(v2.ColorJitter(*jitter))
    if recipe.rand_augment:
        # bilinear: with the default, nearest, turned and sheared images get jagged edges
        how = InterpolationMode.BILINEAR
        steps.append(v2.RandAugment(recipe.rand_augment, recipe.rand_augment_magnitude, interpolation=how))
    steps.append(Normalise(preprocessing))
    if recipe.random_erasing:
        steps.append(v2.RandomErasing(recipe.random_erasing, inplace=True))
    if recipe.cutout:
        steps.append(Cutout(recipe.cutout))
    return v2.Compose(steps)


def preparation(recipe: Recipe, preprocessing: Preprocessing) -> Geometry | None:
    """Return what is done to an image first and always alike, so that it can be done once for a whole run.

    Before a padded crop an image is brought to the size of the model's input, cut to a square; without a crop
    it gets the geometry of the evaluation. A resized crop needs the image as it is.
    """
    if recipe.crop == "resized":
        return None
    return Geometry(preprocessing, preprocessing.input_size if recipe.crop == "padded" else None)


class Draws(NamedTuple):
    """What happens to each of ``n`` images in an epoch."""

    offsets: Tensor  # long [n, 2]: row and column of the crop in the padded image
    flips: Tensor  # bool [n]
    centres: Tensor  # long [n, 2]: row and column of the centre of the cut-out square

    def of(self, indices: Tensor, device: torch.device) -> Draws:
        """Return those of some images, on a device."""
        return Draws(*(sent(t[indices], device) for t in self))


class BatchAugment:
    """Crop with padding, mirror, normalise and cut out squares: a batch of equally large images at once.

    The padding is black, not the mean colour: it is laid around the raw pixels, as the authors' CIFAR-10
    training does.

    Args:
        recipe: of which :meth:`covers` says yes.
        preprocessing: the size of the images and their normalisation.
        device: where it computes.
    """

    def __init__(self, recipe: Recipe, preprocessing: Preprocessing, device: torch.device) -> None:
        self.seed, self.flip, self.cutout = recipe.seed, recipe.flip, recipe.cutout
        self.padding = recipe.crop_padding if recipe.crop == "padded" else 0
        self.preprocessing, self.size = preprocessing, preprocessing.input_size
        self._places = torch.arange(self.size, device=device)

    @staticmethod
    def covers(recipe: Recipe) -> bool:
        """Return whether a recipe's augmentation is of this kind."""
        others = (
            recipe.jitter_brightness, recipe.jitter_contrast, recipe.jitter_saturation, recipe.jitter_hue,
            recipe.rand_augment, recipe.random_erasing,
        )  # fmt: skip
        return recipe.crop in ("padded", "none") and not any(others)

    def draws(self, n: int, epoch: int) -> Draws:
        """Return what happens to ``n`` images in an epoch; drawn on the CPU, so the same for any device."""
        random = generator(self.seed, BATCHES, epoch)
        offsets = torch.randint(0, 2 * self.padding + 1, (n, 2), generator=random)
        # Of two epochs each image is mirrored in one, so that both together show all there is to see; at
        # equal accuracy this saves a good part of the epochs (Jordan 2024, "94 % on CIFAR-10 in 3.29 s").
        pair = generator(self.seed, MIRRORS, epoch // 2)
        flips = (torch.rand(n, generator=pair) < (0.5 if self.flip else 0.0)) ^ (self.flip and epoch % 2 == 1)
        centres = torch.randint(0, self.size, (n, 2), generator=random)
        return Draws(offsets, flips, centres)

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """Return the model's inputs, float [B, 3, S, S] in channels-last layout.

        Args:
            images: uint8 [B, S, S, 3].
            draws: those of these images.
        """
        x = normalised(self._cropped(images, draws).permute(0, 3, 1, 2), self.preprocessing)
        if self.cutout:
            x.masked_fill_(self._squares(draws.centres)[:, None], 0.0)  # zero is the mean colour
        return x

    def _cropped(self, images: Tensor, draws: Draws) -> Tensor:
        if not (self.padding or self.flip):
            return images
        pad, side = self.padding, self.size + 2 * self.padding
        if pad:
            images = torch.nn.functional.pad(images, (0, 0, pad, pad, pad, pad))
        rows = self._places + draws.offsets[:, :1]
        columns = torch.where(draws.flips[:, None], self._places.flip(0), self._places) + draws.offsets[:, 1:]
        starts = torch.arange(len(images), device=images.device)[:, None, None] * side
        places = (starts + rows[:, :, None]) * side + columns[:, None, :]  # of pixels, as one long row
        return images.reshape(-1, 3).index_select(0, places.flatten()).view(-1, self.size, self.size, 3)

    def _squares(self, centres: Tensor) -> Tensor:
        """Return which pixels are cut out, bool [B, S, S]; at the border less than a full square is."""
        first = centres - self.cutout // 2
        inside = (self._places >= first[..., None]) & (self._places < first[..., None] + self.cutout)
        return inside[:, 0, :, None] & inside[:, 1, None, :]


class Mixing:
    """Mixup (Zhang et al. 2018) and cutmix (Yun et al. 2019): each image is mixed with the one before it.

    A batch is in random order already, so its neighbour is a random image. Share, kind and box are the same
    for a whole batch and follow from (seed, epoch, step, rank) alone.
    """

    def __init__(self, recipe: Recipe, num_classes: int, rank: int = 0) -> None:
        self.mixup, self.cutmix = recipe.mixup_alpha, recipe.cutmix_alpha
        self.seed, self.num_classes, self.rank = recipe.seed, num_classes, rank

    def __bool__(self) -> bool:
        """Whether the recipe asks for any."""
        return self.mixup > 0 or self.cutmix > 0

    def __call__(self, inputs: Tensor, targets: Tensor, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        """Mix a batch.

        Args:
            inputs: float [B, 3, S, S]; changed in place.
            targets: long [B].
            epoch: number of the epoch.
            step: number of the step in the epoch.

        Returns:
            The inputs and the targets as shares of the classes, float [B, classes]; each row sums to 1.
        """
        dice = random.Random(mix64(self.seed, MIXING, epoch, step, self.rank))
        cut = self.cutmix > 0 and (not self.mixup > 0 or dice.random() < 0.5)
        alpha = self.cutmix if cut else self.mixup
        share = dice.betavariate(alpha, alpha)  # that each image keeps of itself
        others = torch.cat([inputs[-1:], inputs[:-1]])
        if cut:
            share = _paste(inputs, others, share, dice)
        else:
            inputs.lerp_(others, 1 - share)
        own = torch.nn.functional.one_hot(targets, self.num_classes).to(inputs.dtype)
        return inputs, own.lerp(own.roll(1, 0), 1 - share)


def _paste(inputs: Tensor, others: Tensor, share: float, dice: random.Random) -> float:
    """Paste a box of the other images; return the share of its own pixels that each image keeps."""
    height, width = inputs.shape[-2:]
    half = 0.5 * (1 - share) ** 0.5
    y, x = dice.randrange(height), dice.randrange(width)
    top, bottom = max(0, int(y - half * height)), min(height, int(y + half * height))
    left, right = max(0, int(x - half * width)), min(width, int(x + half * width))
    inputs[..., top:bottom, left:right] = others[..., top:bottom, left:right]
    return 1 - (bottom - top) * (right - left) / (height * width)
