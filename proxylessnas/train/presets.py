"""Ready-made recipes by name: the published ones, number by number, and defaults for own pictures."""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Mapping
from typing import Any, TypeVar

from ..data.transforms import IMAGENET_MEAN, IMAGENET_STD
from ..errors import DataError, shown
from ..utils.config import absent, read_toml, split_word, toml_value, value_of_word
from .recipe import KINDS, Recipe
from .recipe_rules import CHOICES, by_name, check_value, unknown

# DOC proxylessnas.train.recipe_toml: """A recipe as a TOML file: flat ``name = value`` lines, and ``base`` for the preset it starts from.
#
# base = "imagenet-mobile"
# epochs = 150
# learning_rate = 0.1
# """

# The authors' script for retraining on ImageNet: SGD with Nesterov momentum 0.9, the rate 0.05 lowered along
# a cosine at every step, decay for everything but BatchNorm (so for the classifier's bias too), colour jitter
# "strong". Its training crop keeps 8 % of a picture or more; validation resizes to 256 and crops 224. Dropout
# is a net's own.
_IMAGENET = Recipe(
    epochs=300, batch_size=256,
    image_size=224, resize=256, mean=IMAGENET_MEAN, std=IMAGENET_STD, interpolation="bilinear",
    crop="resized", crop_scale_min=0.08, flip=True,
    jitter_brightness=0.4, jitter_contrast=0.4, jitter_saturation=0.4, jitter_hue=0.1,
    label_smoothing=0.1,
    optimizer="sgd", learning_rate=0.05, momentum=0.9, weight_decay=4e-5, no_decay="bn",
    schedule="cosine", warmup_epochs=0.0, final_rate=0.0,
)  # fmt: skip

# The authors' CIFAR code: decay for everything, Cutout after normalisation (so that the square has the mean
# colour), their own mean and standard deviation. The published figure was reached with 300 epochs, or with
# 600 and drop path.
_CIFAR10 = Recipe(
    epochs=300, batch_size=64,
    image_size=32, resize=32,
    mean=(125.3 / 255, 123.0 / 255, 113.9 / 255), std=(63.0 / 255, 62.1 / 255, 66.7 / 255),
    crop="padded", crop_padding=4, flip=True, cutout=16,
    label_smoothing=0.0,
    optimizer="sgd", learning_rate=0.1, momentum=0.9, weight_decay=1e-4, no_decay="none",
    schedule="cosine", warmup_epochs=0.0, final_rate=0.0,
)  # fmt: skip

# Ours, for a folder of photos and weights from ImageNet. The new classifier is trained alone for an epoch,
# which keeps its first, random gradients from the body; early blocks, whose filters suit most photos, change
# less than late ones. The average of the weights over about 100 steps steadies what few pictures make jumpy.
_FINETUNE = Recipe(
    epochs=20, batch_size=32,
    crop="resized", crop_scale_min=0.35, flip=True,
    jitter_brightness=0.2, jitter_contrast=0.2, jitter_saturation=0.2,
    label_smoothing=0.1, dropout=0.2,
    optimizer="sgd", learning_rate=0.02, momentum=0.9, weight_decay=4e-5, no_decay="bn+bias",
    schedule="cosine", warmup_epochs=0.5,
    layer_decay=0.9, freeze_epochs=1, ema_decay=0.99,
)  # fmt: skip

# Ours, for a folder of photos and no weights.
_SCRATCH = Recipe(
    epochs=100, batch_size=128,
    crop="resized", crop_scale_min=0.25, flip=True,
    jitter_brightness=0.2, jitter_contrast=0.2, jitter_saturation=0.2,
    label_smoothing=0.1, dropout=0.1,
    optimizer="sgd", learning_rate=0.1, momentum=0.9, weight_decay=4e-5, no_decay="bn+bias",
    schedule="cosine", warmup_epochs=3.0, zero_init_residual=True, ema_decay=0.998,
)  # fmt: skip

# Ours, for pictures of up to about 64 px and no weights: whole pictures, shifted and mirrored, as a random
# crop would enlarge them until nothing is to be seen.
_SMALL = Recipe(
    epochs=100, batch_size=128,
    crop="padded", crop_padding=4, flip=True, cutout=8,
    label_smoothing=0.1,
    optimizer="sgd", learning_rate=0.1, momentum=0.9, weight_decay=2e-4, no_decay="bn+bias",
    schedule="cosine", warmup_epochs=2.0, zero_init_residual=True, ema_decay=0.998,
)  # fmt: skip

# Ours: the weights that come with the package. Made for a CPU and so for few epochs: Muon, small pictures at
# first, and a rate that falls from the start.
_CIFAR10_DEMO = _SMALL.replace(
    epochs=30, batch_size=128, val_fraction=0.02, image_size=32, resize=32, start_size=18, grow_epochs=15,
    optimizer="muon", learning_rate=0.2, weight_decay=4e-4,
    muon_rate=0.03, muon_decay=0.01, schedule="linear", warmup_epochs=1.0, zero_init_residual=False,
    ema_decay=0.998,
)  # fmt: skip

PRESETS: dict[str, Recipe] = {
    "scratch": _SCRATCH,
    "finetune": _FINETUNE,
    "small-images": _SMALL,
    "imagenet-gpu": _IMAGENET.replace(dropout=0.3),
    "imagenet-cpu": _IMAGENET.replace(dropout=0.2),
    "imagenet-mobile": _IMAGENET.replace(dropout=0.1),
    "imagenet-mobile-14": _IMAGENET.replace(dropout=0.3),
    "cifar10": _CIFAR10,
    "cifar10-demo": _CIFAR10_DEMO,
}

ABOUT: dict[str, str] = {
    "scratch": "a net without weights on a folder of photos (the default of `train`)",
    "finetune": "a net with weights on a folder of photos, on a laptop too (the default of `finetune`)",
    "small-images": "a net without weights on pictures of up to about 64 px",
    "imagenet-gpu": "published: proxyless_gpu on ImageNet, 300 epochs",
    "imagenet-cpu": "published: proxyless_cpu on ImageNet, 300 epochs",
    "imagenet-mobile": "published: proxyless_mobile on ImageNet, 300 epochs",
    "imagenet-mobile-14": "published: proxyless_mobile_14 on ImageNet, 300 epochs",
    "cifar10": "published: proxyless_cifar on CIFAR-10, 300 epochs",
    "cifar10-demo": "ours: how the weights of proxyless_cifar10_demo were made",
}


def preset(name: str) -> Recipe:
    """Return a ready-made recipe; case, hyphens and underscores in its name do not matter.

    Raises:
        DataError: there is none of this name; the message names the nearest and lists all.
    """
    return by_name(PRESETS, name, "recipe")


R = TypeVar("R")

#: Names of the values under each title.
GROUPS = {
    "length and batch": "epochs batch_size accumulate seed val_fraction",
    "pictures; sizes in px; a value that is left out is the net's or the data set's own":
        "image_size resize start_size grow_epochs mean std interpolation",
    "augmentation; 0 is off":
        "crop crop_scale_min crop_padding flip "
        "jitter_brightness jitter_contrast jitter_saturation jitter_hue "
        "rand_augment rand_augment_magnitude random_erasing cutout mixup_alpha cutmix_alpha",
    "loss; what is said of a teacher counts where there is one (--teacher)":
        "label_smoothing teacher_share teacher_temperature teacher_mirrored",
    "optimiser":
        "optimizer learning_rate momentum betas muon_rate muon_decay weight_decay no_decay clip_norm",
    "learning rate over time": "schedule warmup_epochs final_rate",
    "parts of the net": "layer_decay head_rate freeze_epochs dropout drop_path zero_init_residual",
    "weights that are kept": "ema_decay recalibrate_batches keep",
    "computation": "amp channels_last compile sync_bn",
}  # fmt: skip


def to_toml(recipe: Recipe) -> str:
    """Return a recipe as TOML text with every value but those that are None."""
    return "\n".join(group_lines(recipe, GROUPS, CHOICES)[1:]) + "\n"


def group_lines(
    recipe: object,
    groups: Mapping[str, str],
    choices: Mapping[str, tuple[str, ...]],
    leave_out: Container[str] = (),
) -> list[str]:
    """Return the lines of values in groups, each with an empty line before its title.

    Args:
        recipe: whose attributes the values are; those that are None have no line.
        groups: names of the values under each title.
        choices: what else a value may be, for a comment.
        leave_out: names without a line.
    """
    lines: list[str] = []
    for title, names in groups.items():
        values = {name: getattr(recipe, name) for name in names.split() if name not in leave_out}
        group = []
        for name, value in values.items():
            if value is not None:
                known = " | ".join(choices.get(name, ()))
                group.append(f"{name} = {toml_value(value)}" + (f"  # {known}" if known else ""))
        if group:
            lines += ["", f"# {title}", *group]
    return lines


def taken_base(
    table: dict[str, Any], preset: Callable[[str], R], start: R, found: list[str], where: str = "base"
) -> R:
    """Take the name of a preset out of a table as its ``base``, and return that preset.

    Args:
        table: as read.
        preset: finds one.
        start: is returned where the table names none, or a wrong one.
        found: gets what is wrong.
        where: the name's place, for the message.
    """
    name = table.pop("base", None)
    try:
        return start if name is None else preset(name)
    except DataError as e:
        found.append(f"{where}: {e}")
        return start


def from_toml(source: str | os.PathLike[str], *, base: Recipe | None = None) -> Recipe:
    """Return the recipe in a TOML file or text.

    The file may name a preset as its ``base``, and may set a value that can be absent (``image_size``, say)
    to ``"none"``.

    Args:
        source: a path, or the text itself. A string of one line that ends in ``.toml`` is a path.
        base: gives the values that the file lacks, unless it names a base of its own; None stands for
            ``Recipe()``.

    Raises:
        DataError: the file cannot be read, is not TOML, or holds a wrong recipe; the message lists every
            problem.
        MissingExtraError: Python is 3.10 and tomli is not installed.
    """
    where, table = read_toml(source, "recipe")
    found: list[str] = []
    start = taken_base(table, preset, Recipe() if base is None else base, found)
    given = {}
    for key, value in table.items():
        if isinstance(value, dict):
            hint = f"write {next(iter(value), 'epochs')} = ... above it, without [{key}]"
            found.append(f"[{key}] is a table, but a recipe has none: {hint}")
        else:
            given[key] = absent(KINDS.get(key, ""), value)
    epochs = given.get("epochs")
    longest = max(start.freeze_epochs, start.warmup_epochs, start.grow_epochs)
    if type(epochs) is int and 1 <= epochs <= longest:
        start = start.with_epochs(epochs)  # as with --epochs; a longer file means what it says
    return Recipe.complete(given, start, found, where)


def parse_set(text: str) -> tuple[str, Any]:
    """Return the name and value in ``name=value``, as a command line has it.

    Strings need no quotes, several numbers are joined by commas, and ``none`` is no value:
    ``optimizer=adamw``, ``mean=0.5,0.5,0.5``, ``image_size=none``.

    Raises:
        DataError: there is no such name, or the value is wrong.
    """
    name, word = split_word(text)
    if not name:
        raise DataError(f"{shown(text)}: write name=value, as in learning_rate=0.05")
    if name not in KINDS:
        raise DataError(f"{text}: {unknown(name, KINDS)}")
    kind = KINDS[name]
    value, problem = check_value(name, kind, value_of_word(word, kind))
    if problem:
        raise DataError(problem)
    return name, value
