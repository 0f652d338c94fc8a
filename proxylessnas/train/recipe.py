"""A training recipe: everything that decides what comes out of a run, as one small table.

Where and how a run is carried out (device, worker processes, how often it is logged or saved) is not part of
a recipe: it changes nothing in the result, or only its last digits. See :class:`~.settings.Settings`.

    >>> from proxylessnas.train import Recipe
    >>> Recipe(epochs=30, optimizer="adamw", learning_rate=1e-3).replace(mixup_alpha=0.2).mixup_alpha
    0.2

Ready-made recipes are in ``presets.py``. A file is flat ``name = value`` lines, and ``base`` for the preset
that it starts from:

    base = "imagenet-mobile"
    epochs = 150
    learning_rate = 0.1
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..utils.checks import Range, is_int
from ..utils.config import Config, option
from .presets import PRESETS

_SOME, _COUNT, _PIXELS = Range(1, 1_000_000), Range(0, 1_000_000), Range(1, 4096)
_SHARE, _PROBABILITY = Range(0, 1), Range(0, 1, open_high=True)
_RATE, _PART = Range(0, 1000, open_low=True), Range(0, 1, open_low=True)
_JITTER, _BETA = Range(0, 10), Range(0, 100)


@dataclass(frozen=True)
class Recipe(Config):
    """How a model is trained. Rates are per optimiser step; sizes are in pixels.

    Raises:
        DataError: a value is of the wrong type or out of range, or values do not fit together; the message
            lists every problem.
    """

    what = "recipe"
    example = "learning_rate=0.05"
    presets = PRESETS

    # fmt: off
    epochs: int = option(100, _SOME, "passes over the training images", also="num_epochs",
        group="length and batch")
    batch_size: int = option(128, _SOME, "images an optimiser step, over all processes and accumulated "
        "parts together, so that a recipe means the same on any number of processes", also="bs batch")
    accumulate: int = option(1, _SOME, "parts a step is computed in, one after the other, to save memory")
    seed: int = option(0, Range(0, 2**32 - 1), "of the split, the initial weights, the order of the images "
        "and all augmentation")
    val_fraction: float = option(0.1, Range(0, 0.9), "share of each class held out where the data has no "
        "validation part of its own")

    image_size: int | None = option(None, _PIXELS, "side of the model's input, px; None takes the model's "
        "own", also="size input_size",
        group="images; sizes in px; a value that is left out is the model's or the data set's own")
    resize: int | None = option(None, _PIXELS, "length of the short side before the validation crop, px; "
        "None keeps the usual proportion (256 / 224; none below 64 px)")
    start_size: int | None = option(None, _PIXELS, "side of the training images in the first epoch, px; "
        "they are shrunk on the device. None trains at full size throughout")
    grow_epochs: int = option(0, _COUNT, "epochs over which the side grows from start_size to the full "
        "size (progressive resizing, as in EfficientNetV2, section 4.2): small images are quick, and do at "
        "first")
    mean: tuple[float, float, float] | None = option(None, _SHARE, "mean per channel on a scale of 0 to 1, "
        "for normalisation; None takes that of the model's weights, else the data set's, else ImageNet's")
    std: tuple[float, float, float] | None = option(None, Range(0, 10, open_low=True), "standard deviation "
        "per channel, as mean")
    interpolation: str = option("bilinear", ("bilinear", "bicubic"), "of the pixels, when an image is "
        "resized")

    crop: str = option("resized", ("resized", "padded", "none"), '"resized" (RandomResizedCrop), "padded" '
        '(shifted by up to crop_padding) or "none"', group="augmentation; 0 is off")
    crop_scale_min: float = option(0.35, _PART, "least share of the image that a resized crop keeps (its "
        "largest is 1)")
    crop_padding: int = option(4, Range(0, 4096), "px of zeros around the image before a padded crop")
    flip: bool = option(True, None, "mirror half of the images", also="hflip")
    jitter_brightness: float = option(0.0, _JITTER, "range of colour jitter; 0 is off")
    jitter_contrast: float = option(0.0, _JITTER, "as jitter_brightness")
    jitter_saturation: float = option(0.0, _JITTER, "as jitter_brightness")
    jitter_hue: float = option(0.0, Range(0, 0.5), "as jitter_brightness")
    rand_augment: int = option(0, Range(0, 14), "number of RandAugment operations an image, 0 for none",
        also="randaugment")
    rand_augment_magnitude: int = option(9, Range(0, 30), "of these operations")
    random_erasing: float = option(0.0, _SHARE, "probability of erasing a random rectangle", also="reprob")
    cutout: int = option(0, Range(0, 4096), "side of a square set to the mean colour, px; 0 for none")
    mixup_alpha: float = option(0.0, _BETA, "of the Beta distribution; 0 is off", also="mixup")
    cutmix_alpha: float = option(0.0, _BETA, "as mixup_alpha; with both, each batch takes one",
        also="cutmix")

    label_smoothing: float = option(0.1, _PROBABILITY, "share of the target spread over all classes",
        also="smoothing", group="loss; what is said of a teacher counts where there is one (--teacher)")
    teacher_share: float = option(0.9, _SHARE, "share of a teacher's answers in the loss, the rest is the "
        "labels'; counts with a teacher only (train(..., teacher=...))")
    teacher_temperature: float = option(4.0, _RATE, "by which the logits of both are divided for that; "
        "share and temperature are by default those of Tian et al. 2020 for small images",
        also="temperature")
    teacher_mirrored: bool = option(False, None, "a teacher answers with the mean of its logits for an "
        "image and its mirror image, which is right more often; for images that may be mirrored")

    optimizer: str = option("sgd", ("sgd", "adamw", "muon"), '"sgd" (with Nesterov momentum), "adamw", or '
        '"muon" (SGD, but for the matrices of dense convolutions, which it orthogonalises: fewer epochs '
        "from scratch; see optim.py)", also="opt", group="optimiser")
    learning_rate: float = option(0.05, _RATE, "highest one, after the warm-up, for batch_size images",
        also="lr rate")
    momentum: float = option(0.9, _PROBABILITY, "of SGD and Muon", also="nesterov")
    betas: tuple[float, float] = option((0.9, 0.999), _PROBABILITY, "of AdamW")
    muon_rate: float = option(0.03, _RATE, "Muon's learning rate for matrices; all else has learning_rate")
    muon_decay: float = option(0.01, _SHARE, "Muon's (decoupled) weight decay for matrices; all else has "
        "weight_decay")
    weight_decay: float = option(4e-5, _SHARE, "L2 (SGD) or decoupled (AdamW)", also="wd decay")
    no_decay: str = option("bn+bias", ("none", "bn", "bn+bias"), 'parameters without decay: "none", "bn" '
        '(scales and shifts of BatchNorm) or "bn+bias"')
    clip_norm: float = option(0.0, _COUNT, "greatest norm of all gradients together; 0 is off",
        also="clip_grad grad_clip")

    schedule: str = option("cosine", ("cosine", "linear", "constant"), '"cosine", "linear" (both per step, '
        'to final_rate) or "constant"', also="scheduler lr_schedule", group="learning rate over time")
    warmup_epochs: float = option(0.0, _COUNT, "linear rise of the rate from a hundredth, counted in "
        "epochs; fractions are fine", also="warmup")
    final_rate: float = option(0.0, _SHARE, "rate at the end, as a share of learning_rate", also="min_lr")

    layer_decay: float = option(1.0, _PART, "each block's rate is this share of the next one's, counted "
        "from the classifier; 1 is off", also="layer_lr_decay", group="parts of the model")
    head_rate: float = option(1.0, _RATE, "factor on the classifier's rate")
    freeze_epochs: int = option(0, _COUNT, "train nothing but the classifier for so many epochs at the "
        "start")
    dropout: float | None = option(None, _PROBABILITY, "before the classifier; None takes the "
        "architecture's own", also="drop_rate")
    drop_path: float = option(0.0, _PROBABILITY, "rate of the last block; grows linearly from 0",
        also="drop_path_rate")
    zero_init_residual: bool = option(False, None, "start blocks with a shortcut as identities (their last "
        "BatchNorm scale is 0)")

    ema_decay: float = option(0.0, _PROBABILITY, "of the moving average of the weights that is evaluated "
        "and kept; 0 is off", also="ema", group="weights that are kept")
    recalibrate_batches: int = option(0, _COUNT, "batches from which BatchNorm statistics are computed "
        "anew at the end; 0 is off")
    keep: str = option("last", ("last", "best"), 'which weights the run ends with: "last" or "best" (by '
        "validation accuracy)")

    amp: str = option("off", ("off", "bf16", "fp16"), '"off", "bf16" or "fp16" (with a gradient scaler)',
        also="fp16", group="computation")
    channels_last: bool = option(True, None, "memory layout; much faster nearly everywhere")
    compile: bool = option(False, None, "use torch.compile")
    sync_bn: bool = option(False, None, "BatchNorm statistics over all processes instead of each one's own")
    # fmt: on

    def conflicts(self) -> list[str]:
        """Return what does not fit together."""
        found = []
        if self.batch_size % self.accumulate:
            found.append(f"batch_size {self.batch_size} has no {self.accumulate} equal parts (accumulate)")
        for name in ("warmup_epochs", "freeze_epochs", "grow_epochs"):
            part = getattr(self, name)
            if part >= self.epochs:
                found.append(f"{name} {part:.10g} must be below epochs, which is {self.epochs}")
        if (self.start_size is None) != (self.grow_epochs == 0):
            found.append("start_size and grow_epochs go together: name both or neither")
        if self.crop == "padded" and not self.crop_padding:
            found.append('crop "padded" with crop_padding 0 shifts nothing: use crop "none"')
        size = self.image_size
        if size is None:
            return found
        if self.resize is not None and self.resize < size:
            found.append(f"resize {self.resize} is below image_size {size}: no crop that large is in it")
        return found + self.size_problems(size)

    def size_problems(self, size: int) -> list[str]:
        """Return what of the augmentation does not go with images of ``size`` px."""
        sizes = {"cutout": self.cutout, "start_size": self.start_size}
        if self.crop == "padded":
            sizes["crop_padding"] = self.crop_padding
        return [
            f"{name} {px} must be below image_size, which is {size}"
            for name, px in sizes.items()
            if px is not None and px >= size
        ]

    def implied(self, given: Mapping[str, Any], *, from_file: bool = False) -> dict[str, Any]:
        """Return what another number of epochs shortens; see :meth:`with_epochs`.

        In a file it does so only where it must: a longer one means what it says.
        """
        epochs = given.get("epochs")
        longest = max(self.freeze_epochs, self.warmup_epochs, self.grow_epochs)
        if not is_int(epochs, 1, 1_000_000) or (from_file and epochs > longest):
            return {}
        grow = self.grow_epochs * epochs // self.epochs
        return {
            "warmup_epochs": min(self.warmup_epochs, epochs / 2),
            "freeze_epochs": min(self.freeze_epochs, epochs // 2),
            "grow_epochs": grow,
            "start_size": self.start_size if grow else None,
        }

    def with_epochs(self, epochs: int) -> Recipe:
        """Return the recipe for another number of epochs.

        Where the warm-up or the epochs with a frozen body would not leave at least half of the epochs to the
        rest, they are shortened to that, so that any recipe can be tried in a single epoch. Images grow over
        the same share of the epochs as before.
        """
        return self.changed(values={"epochs": epochs})

    def with_batch_size(self, batch_size: int) -> Recipe:
        """Return the recipe for batches of another size, with the learning rate that suits them.

        The rate follows the batch size (its square root for AdamW and for Muon's matrices): the usual rule,
        without which a rate made for large batches wrecks a model in small ones.
        """
        if not is_int(batch_size, 1, 1_000_000):
            return self.replace(batch_size=batch_size)  # which says what is wrong
        share = batch_size / self.batch_size
        rate = self.learning_rate * (math.sqrt(share) if self.optimizer == "adamw" else share)
        muon_rate = self.muon_rate * (math.sqrt(share) if self.optimizer == "muon" else 1.0)
        return self.replace(batch_size=batch_size, learning_rate=rate, muon_rate=muon_rate)

    def side_at(self, epoch: int, full: int) -> int:
        """Return the side of the training images in an epoch (from 0), in px; ``full`` is the model's own."""
        if self.start_size is None or epoch >= self.grow_epochs:
            return full
        return self.start_size + (full - self.start_size) * epoch // self.grow_epochs


def read_recipe(name_or_path: str | os.PathLike[str]) -> Recipe:
    """Return a preset by its name, or the recipe in a file; see :meth:`Recipe.read`."""
    return Recipe.read(name_or_path)
