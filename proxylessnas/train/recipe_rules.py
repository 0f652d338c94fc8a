"""What a recipe may hold: the type and range of each value, and what fits together."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from ..errors import DataError, shown

P = TypeVar("P")


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``; the ends belong to it unless they are open."""

    low: float
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below and math.isfinite(value)

    def __str__(self) -> str:
        low = f"above {self.low:.10g}" if self.open_low else f"at least {self.low:.10g}"
        if self.high == math.inf:
            return low
        if self.open_low or self.open_high:
            return f"{low} and {'below' if self.open_high else 'at most'} {self.high:.10g}"
        return f"from {self.low:.10g} to {self.high:.10g}"


_COUNT, _SHARE, _PROBABILITY = Range(0, 1_000_000), Range(0, 1), Range(0, 1, open_high=True)
_PIXELS = Range(1, 4096)

RANGES: dict[str, Range] = {
    "epochs": Range(1, 1_000_000), "batch_size": Range(1, 1_000_000), "accumulate": Range(1, 1_000_000),
    "seed": Range(0, 2**32 - 1), "val_fraction": Range(0, 0.9),
    "image_size": _PIXELS, "resize": _PIXELS, "start_size": _PIXELS, "grow_epochs": _COUNT,
    "mean": _SHARE, "std": Range(0, 10, open_low=True),
    "crop_scale_min": Range(0, 1, open_low=True), "crop_padding": Range(0, 4096),
    "jitter_brightness": Range(0, 10), "jitter_contrast": Range(0, 10), "jitter_saturation": Range(0, 10),
    "jitter_hue": Range(0, 0.5), "rand_augment": Range(0, 14), "rand_augment_magnitude": Range(0, 30),
    "random_erasing": _SHARE, "cutout": Range(0, 4096),
    "mixup_alpha": Range(0, 100), "cutmix_alpha": Range(0, 100), "label_smoothing": _PROBABILITY,
    "teacher_share": _SHARE, "teacher_temperature": Range(0, 1000, open_low=True),
    "learning_rate": Range(0, 1000, open_low=True), "muon_rate": Range(0, 1000, open_low=True),
    "muon_decay": _SHARE, "momentum": _PROBABILITY, "betas": _PROBABILITY,
    "weight_decay": _SHARE, "warmup_epochs": _COUNT, "final_rate": _SHARE,
    "layer_decay": Range(0, 1, open_low=True), "head_rate": Range(0, 1000, open_low=True),
    "freeze_epochs": _COUNT, "clip_norm": Range(0, 1_000_000), "dropout": _PROBABILITY,
    "drop_path": _PROBABILITY, "ema_decay": _PROBABILITY, "recalibrate_batches": _COUNT,
}  # fmt: skip

CHOICES: dict[str, tuple[str, ...]] = {
    "interpolation": ("bilinear", "bicubic"),
    "crop": ("resized", "padded", "none"),
    "optimizer": ("sgd", "adamw", "muon"),
    "no_decay": ("none", "bn", "bn+bias"),
    "schedule": ("cosine", "linear", "constant"),
    "amp": ("off", "bf16", "fp16"),
    "keep": ("last", "best"),
}

# What people call them elsewhere, for the hint at an unknown name.
_ALIASES = {
    "lr": "learning_rate", "rate": "learning_rate", "wd": "weight_decay", "decay": "weight_decay",
    "bs": "batch_size", "batch": "batch_size", "size": "image_size", "input_size": "image_size",
    "ema": "ema_decay", "mixup": "mixup_alpha", "cutmix": "cutmix_alpha", "warmup": "warmup_epochs",
    "opt": "optimizer", "smoothing": "label_smoothing", "randaugment": "rand_augment", "nesterov": "momentum",
    "scheduler": "schedule", "lr_schedule": "schedule", "min_lr": "final_rate", "fp16": "amp",
    "drop_rate": "dropout", "drop_path_rate": "drop_path", "clip_grad": "clip_norm", "grad_clip": "clip_norm",
    "temperature": "teacher_temperature",
    "hflip": "flip", "reprob": "random_erasing", "layer_lr_decay": "layer_decay", "num_epochs": "epochs",
}  # fmt: skip


def unknown(name: object, known: Iterable[str]) -> str:
    """Return the problem line for a name that no value has, with the nearest ones."""
    key = str(name).lower().replace("-", "_")
    alias = _ALIASES.get(key)
    near = [alias] if alias else difflib.get_close_matches(key, list(known), n=2, cutoff=0.6)
    hint = f": did you mean {' or '.join(near)}?" if near else ""
    return f"there is no {shown(name)}{hint}"


def by_name(presets: Mapping[str, P], name: str, what: str) -> P:
    """Return a preset; case, hyphens and underscores in its name do not matter.

    Raises:
        DataError: there is none of this name; the message names the nearest and lists all.
    """
    names = {_squeezed(known): known for known in presets}
    key = _squeezed(name) if isinstance(name, str) else ""
    if key in names:
        return presets[names[key]]
    near = [names[n] for n in difflib.get_close_matches(key, names, n=2, cutoff=0.6)]
    hint = f": did you mean {' or '.join(near)}?" if near else ""
    raise DataError(
        f"no {what} is called {shown(name)}{hint} (known: {', '.join(presets)}; a file's name ends in .toml)"
    )


def _squeezed(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def check_value(
    name: str,
    kind: str,
    value: object,
    ranges: Mapping[str, Range] = RANGES,
    choices: Mapping[str, tuple[str, ...]] = CHOICES,
) -> tuple[Any, str | None]:
    """Return a value in its proper type, and what is wrong with it or None.

    Args:
        name: of the field.
        kind: its annotation, such as ``"tuple[float, float] | None"``.
        value: a whole number also passes for a real one, a list for a tuple.
        ranges: of numbers, by name.
        choices: of strings, by name.
    """
    kind, optional = kind.removesuffix(" | None"), kind.endswith(" | None")
    if value is None and optional:
        return None, None
    if kind == "bool":
        return value, None if isinstance(value, bool) else f"{name} must be true or false, not {shown(value)}"
    if kind == "str":
        known = choices[name]
        if isinstance(value, str) and value in known:
            return value, None
        listed = ", ".join(f'"{c}"' for c in known[:-1]) + f' or "{known[-1]}"'
        return value, f"{name} must be {listed}, not {shown(value)}"
    if kind.startswith("tuple"):
        count = kind.count(",") + 1
        if isinstance(value, Sequence) and not isinstance(value, (str, bytes)) and len(value) == count:
            numbers = [_number(v, False) for v in value]
            if all(v is not None and v in ranges[name] for v in numbers):
                return tuple(numbers), None
        return value, f"{name} must be {count} numbers, each {ranges[name]}, not {shown(value)}"
    number = _number(value, kind == "int")
    if number is None or number not in ranges[name]:
        what = "a whole number" if kind == "int" else "a number"
        return value, f"{name} must be {what} {ranges[name]}, not {shown(value)}"
    return number, None


def _number(value: object, whole: bool) -> int | float | None:
    """Return a number of the wanted type, or None; true and false are none."""
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        return None
    try:
        return int(value) if whole else float(value)
    except OverflowError:
        return None


def combination_problems(recipe: Any) -> list[str]:
    """Return what does not fit together in a recipe whose values are each in order."""
    r, found = recipe, []
    if r.batch_size % r.accumulate:
        found.append(f"batch_size {r.batch_size} has no {r.accumulate} equal parts (accumulate)")
    if r.warmup_epochs >= r.epochs:
        found.append(f"warmup_epochs {r.warmup_epochs:g} must be below epochs, which is {r.epochs}")
    if r.freeze_epochs >= r.epochs:
        found.append(f"freeze_epochs {r.freeze_epochs} must be below epochs, which is {r.epochs}")
    if r.grow_epochs >= r.epochs:
        found.append(f"grow_epochs {r.grow_epochs} must be below epochs, which is {r.epochs}")
    if (r.start_size is None) != (r.grow_epochs == 0):
        found.append("start_size and grow_epochs go together: name both or neither")
    if r.crop == "padded" and not r.crop_padding:
        found.append('crop "padded" with crop_padding 0 shifts nothing: use crop "none"')
    if r.image_size is not None:
        if r.resize is not None and r.resize < r.image_size:
            found.append(f"resize {r.resize} is below image_size {r.image_size}: no crop that large is in it")
        found += size_problems(r, r.image_size)
    return found


def size_problems(recipe: Any, size: int) -> list[str]:
    """Return what of a recipe's augmentation does not go with pictures of ``size`` px."""
    r, found = recipe, []
    if r.cutout >= size:
        found.append(f"cutout {r.cutout} must be below image_size, which is {size}")
    if r.start_size is not None and r.start_size >= size:
        found.append(f"start_size {r.start_size} must be below image_size, which is {size}")
    if r.crop == "padded" and r.crop_padding >= size:
        found.append(f"crop_padding {r.crop_padding} must be below image_size, which is {size}")
    return found


def check(
    kinds: Mapping[str, str],
    values: Mapping[str, Any],
    ranges: Mapping[str, Range] = RANGES,
    choices: Mapping[str, tuple[str, ...]] = CHOICES,
) -> tuple[dict[str, Any], list[str]]:
    """Return all values in their proper types, and what is wrong with them; see :func:`check_value`."""
    checked, found = {}, []
    for name, value in values.items():
        checked[name], problem = check_value(name, kinds[name], value, ranges, choices)
        if problem:
            found.append(problem)
    return checked, found
