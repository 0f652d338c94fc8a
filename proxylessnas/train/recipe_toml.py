"""A recipe as a TOML file: flat ``name = value`` lines, and ``base`` for the preset it starts from.

base = "imagenet-mobile"
epochs = 150
learning_rate = 0.1
"""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Mapping
from typing import Any, TypeVar

from ..errors import DataError, shown
from ..toml_text import absent, read_toml, split_word, toml_value, value_of_word
from .presets import preset
from .recipe import KINDS, Recipe
from .recipe_rules import CHOICES, check_value, unknown

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
