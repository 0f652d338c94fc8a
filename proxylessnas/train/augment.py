"""Augmentation: image by image with torchvision's transforms, or a whole batch at once; mixup and cutmix.

Whole batches exist because at 32 x 32 px the calls cost more than the arithmetic: a batch of 128 takes 2 ms
instead of 17. They can have crops with padding, mirroring and cutout; anything else is done image by image.
Which of both follows from the recipe and the images, never from the machine.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..data.transforms import Geometry, Preprocessing, normalised
from ..errors import needs
from ..utils.devices import sent
from .recipe import Recipe
from .sampler import BATCHES, MIRRORS, MIXING, generator, mix64


def shrunk(images: Tensor, side: int) -> Tensor:
    """Return images [B, C, H, W] with the short side ``side`` px, if it is longer now."""
    height, width = images.shape[-2:]
    if min(height, width) <= side:
        return images
    size = [max(side, round(n * side / min(height, width))) for n in (height, width)]
    return torch.nn.functional.interpolate(images, size, mode="bilinear", antialias=True)


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

    It draws from torch's global generator, and can be pickled. With ``prepared``, the images have gone
    through :func:`preparation` already.

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
    if any(_jitter(recipe)):
        steps.append(v2.ColorJitter(*_jitter(recipe)))
    if recipe.rand_augment:
        # bilinear: with the default, nearest, turned and sheared images get jagged edges
        how = InterpolationMode.BILINEAR
        steps.append(v2.RandAugment(recipe.rand_augment, recipe.rand_augment_magnitude, interpolation=how))
    steps.append(functools.partial(normalised, preprocessing=preprocessing))
    if recipe.random_erasing:
        steps.append(v2.RandomErasing(recipe.random_erasing, inplace=True))
    if recipe.cutout:
        steps.append(Cutout(recipe.cutout))
    return v2.Compose(steps)


def _jitter(recipe: Recipe) -> tuple[float, float, float, float]:
    r = recipe
    return r.jitter_brightness, r.jitter_contrast, r.jitter_saturation, r.jitter_hue


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
    training does. Only for recipes that :meth:`covers` says yes to.
    """

    def __init__(self, recipe: Recipe, preprocessing: Preprocessing, device: torch.device) -> None:
        self.seed, self.flip, self.cutout = recipe.seed, recipe.flip, recipe.cutout
        self.padding = recipe.crop_padding if recipe.crop == "padded" else 0
        self.preprocessing, self.size = preprocessing, preprocessing.input_size
        self._places = torch.arange(self.size, device=device)

    @staticmethod
    def covers(recipe: Recipe) -> bool:
        """Return whether a recipe's augmentation is of this kind."""
        others = (*_jitter(recipe), recipe.rand_augment, recipe.random_erasing)
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
        """Return the inputs, float [B, 3, S, S] in channels-last layout, for uint8 [B, S, S, 3]."""
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
        """Mix a batch: float [B, 3, S, S], which is changed in place, and long [B].

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
