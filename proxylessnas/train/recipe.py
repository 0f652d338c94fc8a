"""A training recipe: everything that decides what comes out of a run, as one small table.

Where and how a run is carried out (device, worker processes, how often it is logged or saved) is not part of
a recipe: it changes nothing in the result, or only its last digits. See :class:`~.settings.Settings`.

    >>> from proxylessnas.train import Recipe
    >>> Recipe(epochs=30, optimizer="adamw", learning_rate=1e-3).replace(mixup_alpha=0.2).mixup_alpha
    0.2

The rules that values keep are in ``recipe_rules.py``, the TOML form and ready-made recipes
in ``presets.py``.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from ..utils.config import RecipeBase, Rules, parsed_settings
from .recipe_rules import check, combination_problems, unknown


@dataclass(frozen=True)
class Recipe(RecipeBase):
    """How a net is trained. Rates are per optimiser step; sizes are in pixels.

    Attributes:
        epochs: passes over the training pictures.
        batch_size: pictures an optimiser step, over all processes and accumulated parts together, so that a
            recipe means the same on any number of processes.
        accumulate: parts a step is computed in, one after the other, to save memory.
        seed: of the split, the initial weights, the order of the pictures and all augmentation.
        val_fraction: share of each class held out where the data has no validation part of its own.
        image_size: side of the net's input, px; None takes the net's own.
        resize: length of the short side before the validation crop, px; None keeps the usual proportion
            (256 / 224; none below 64 px).
        start_size: side of the training pictures in the first epoch, px; they are shrunk on the device. None
            trains at full size throughout.
        grow_epochs: epochs over which the side grows from start_size to the full size (progressive
            resizing, as in EfficientNetV2, section 4.2): small pictures are quick, and do at first.
        mean, std: normalisation per channel on a scale of 0 to 1; None takes the net's weights' own, else
            the data set's, else ImageNet's.
        interpolation: "bilinear" or "bicubic".
        crop: "resized" (RandomResizedCrop), "padded" (shifted by up to ``crop_padding``) or "none".
        crop_scale_min: least share of the picture that a resized crop keeps (its largest is 1).
        crop_padding: px of zeros around the picture before a padded crop.
        flip: mirror half of the pictures.
        jitter_brightness, jitter_contrast, jitter_saturation, jitter_hue: ranges of colour jitter; 0 is off.
        rand_augment: number of RandAugment operations a picture, 0 for none; rand_augment_magnitude, 0-30.
        random_erasing: probability of erasing a random rectangle.
        cutout: side of a square set to the mean colour, px; 0 for none.
        mixup_alpha, cutmix_alpha: of the Beta distributions; 0 is off; with both, each batch takes one.
        label_smoothing: share of the target spread over all classes.
        teacher_share: of a teacher's answers in the loss, the rest is the labels'; counts with a teacher only
            (``train(..., teacher=...)``).
        teacher_temperature: by which the logits of both are divided for that; share and temperature are by
            default those of Tian et al. 2020 for small pictures.
        teacher_mirrored: a teacher answers with the mean of its logits for a picture and its mirror image,
            which is right more often; for pictures that may be mirrored.
        optimizer: "sgd" (with Nesterov momentum), "adamw", or "muon" (SGD, but for the matrices of dense
            convolutions, which it orthogonalises: fewer epochs from scratch; see ``muon.py``).
        learning_rate: at the end of the warm-up, for ``batch_size`` pictures.
        momentum: of SGD and Muon.
        muon_rate, muon_decay: Muon's learning rate and (decoupled) weight decay for matrices; all else has
            ``learning_rate`` and ``weight_decay``.
        betas: of AdamW.
        weight_decay: L2 (SGD) or decoupled (AdamW).
        no_decay: parameters without decay: "none", "bn" (scales and shifts of BatchNorm) or "bn+bias".
        schedule: "cosine", "linear" (both per step, to ``final_rate``) or "constant".
        warmup_epochs: linear rise of the rate from a hundredth, counted in epochs; fractions are fine.
        final_rate: rate at the end, as a share of ``learning_rate``.
        layer_decay: each block's rate is this share of the next one's, counted from the classifier; 1 is off.
        head_rate: factor on the classifier's rate.
        freeze_epochs: train nothing but the classifier for so many epochs at the start.
        clip_norm: greatest norm of all gradients together; 0 is off.
        dropout: before the classifier; None takes the architecture's own.
        drop_path: rate of the last block; grows linearly from 0.
        ema_decay: of the moving average of the weights that is evaluated and kept; 0 is off.
        recalibrate_batches: batches from which BatchNorm statistics are computed anew at the end; 0 is off.
        zero_init_residual: start blocks with a shortcut as identities (their last BatchNorm scale is 0).
        amp: "off", "bf16" or "fp16" (with a gradient scaler).
        channels_last: memory layout; much faster nearly everywhere.
        compile: use ``torch.compile``.
        sync_bn: BatchNorm statistics over all processes instead of each one's own.
        keep: which weights the run ends with: "last" or "best" (by validation accuracy).

    Raises:
        DataError: a value is of the wrong type or out of range, or values do not fit together; the message
            lists every problem.
    """

    epochs: int = 100
    batch_size: int = 128
    accumulate: int = 1
    seed: int = 0
    val_fraction: float = 0.1
    image_size: int | None = None
    resize: int | None = None
    start_size: int | None = None
    grow_epochs: int = 0
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    interpolation: str = "bilinear"
    crop: str = "resized"
    crop_scale_min: float = 0.35
    crop_padding: int = 4
    flip: bool = True
    jitter_brightness: float = 0.0
    jitter_contrast: float = 0.0
    jitter_saturation: float = 0.0
    jitter_hue: float = 0.0
    rand_augment: int = 0
    rand_augment_magnitude: int = 9
    random_erasing: float = 0.0
    cutout: int = 0
    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    label_smoothing: float = 0.1
    teacher_share: float = 0.9
    teacher_temperature: float = 4.0
    teacher_mirrored: bool = False
    optimizer: str = "sgd"
    learning_rate: float = 0.05
    momentum: float = 0.9
    muon_rate: float = 0.03
    muon_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 4e-5
    no_decay: str = "bn+bias"
    schedule: str = "cosine"
    warmup_epochs: float = 0.0
    final_rate: float = 0.0
    layer_decay: float = 1.0
    head_rate: float = 1.0
    freeze_epochs: int = 0
    clip_norm: float = 0.0
    dropout: float | None = None
    drop_path: float = 0.0
    ema_decay: float = 0.0
    recalibrate_batches: int = 0
    zero_init_residual: bool = False
    amp: str = "off"
    channels_last: bool = True
    compile: bool = False
    sync_bn: bool = False
    keep: str = "last"

    def with_epochs(self, epochs: int) -> Recipe:
        """Return the recipe for another number of epochs.

        Where the warm-up or the epochs with a frozen body would not leave at least half of the epochs to the
        rest, they are shortened to that, so that any recipe can be tried in a single epoch. Pictures grow
        over the same share of the epochs as before.
        """
        if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
            return self.replace(epochs=epochs)  # which says what is wrong
        warmup, freeze = min(self.warmup_epochs, epochs / 2), min(self.freeze_epochs, epochs // 2)
        grow = self.grow_epochs * epochs // self.epochs
        start = self.start_size if grow else None
        return self.replace(
            epochs=epochs, warmup_epochs=warmup, freeze_epochs=freeze, grow_epochs=grow, start_size=start
        )

    def side_at(self, epoch: int, full: int) -> int:
        """Return the side of the training pictures in an epoch (from 0), in px; ``full`` is the net's own."""
        if self.start_size is None or epoch >= self.grow_epochs:
            return full
        return self.start_size + (full - self.start_size) * epoch // self.grow_epochs

    def with_batch_size(self, batch_size: int) -> Recipe:
        """Return the recipe for batches of another size, with the learning rate that suits them.

        The rate follows the batch size (its square root for AdamW and for Muon's matrices): the usual rule,
        without which a rate made for large batches wrecks a net in small ones.
        """
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            return self.replace(batch_size=batch_size)  # which says what is wrong
        share = batch_size / self.batch_size
        rate = self.learning_rate * (math.sqrt(share) if self.optimizer == "adamw" else share)
        muon_rate = self.muon_rate * (math.sqrt(share) if self.optimizer == "muon" else 1.0)
        return self.replace(batch_size=batch_size, learning_rate=rate, muon_rate=muon_rate)


# With `from __future__ import annotations` the type of a field is the text of its annotation.
KINDS: dict[str, str] = {field.name: str(field.type) for field in dataclasses.fields(Recipe)}


def completed(given: Mapping[str, Any], base: Recipe) -> tuple[dict[str, Any], list[str]]:
    """Return all values of a recipe, the given ones over those of ``base``, and what is wrong with them."""
    found = [unknown(name, KINDS) for name in given if name not in KINDS]
    known, wrong = check(KINDS, {name: v for name, v in given.items() if name in KINDS})
    values = {name: getattr(base, name) for name in KINDS} | known
    # What does not fit together is only told where each value makes sense alone.
    return values, found + (wrong or combination_problems(SimpleNamespace(**values)))


Recipe.rules = Rules(functools.partial(check, KINDS), combination_problems, completed)


def read_recipe(name_or_path: str | os.PathLike[str]) -> Recipe:
    """Return a preset by its name, or the recipe in a file; see :meth:`Recipe.read`."""
    return Recipe.read(name_or_path)


def changed(recipe: Recipe, settings: Iterable[str] = (), values: Mapping[str, Any] | None = None) -> Recipe:
    """Return a recipe with changes as a command line has them.

    With another number of epochs, a warm-up or frozen epochs that are not set here are shortened as
    :meth:`Recipe.with_epochs` does it.

    Args:
        recipe: what is changed.
        settings: ``name=value`` texts; see :func:`.presets.parse_set`.
        values: values by name, which win.

    Raises:
        DataError: a name or a value is wrong; the message lists every problem.
    """
    from .presets import parse_set

    given, found = parsed_settings(settings, parse_set)
    given |= values or {}
    epochs = given.get("epochs")
    if epochs is not None and not check(KINDS, {"epochs": epochs})[1]:
        recipe = recipe.with_epochs(epochs)
    return Recipe.complete(given, recipe, found)
