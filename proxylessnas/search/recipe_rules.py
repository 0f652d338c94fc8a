"""What the recipe of a search may hold: the type and range of each value, and what fits together."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import shown
from ..train.recipe import Recipe
from ..train.recipe_rules import Range
from ..train.recipe_rules import check as check_plain

_COUNT, _SOME = Range(0, 1_000_000), Range(1, 1_000_000)
_SHARE, _BELOW_ONE = Range(0, 1), Range(0, 1, open_high=True)
_RATE, _TARGET = Range(0, 1000, open_low=True), Range(0, 1e9, open_low=True)

RANGES: dict[str, Range] = {
    "warmup_epochs": Range(0, 100_000), "epochs": Range(1, 100_000), "search_rate": _RATE,
    "arch_fraction": Range(0, 0.9, open_low=True), "arch_every": _SOME, "arch_batch_size": _SOME,
    "arch_rate": _RATE, "arch_betas": _BELOW_ONE,
    "arch_init": Range(0, 10), "frozen_epochs": _COUNT, "strength": Range(0, 1000),
    "scale": Range(0, 1000, open_low=True), "least_share": _BELOW_ONE, "min_depth": Range(0, 1000),
    "reinforce_samples": Range(2, 10_000), "reinforce_updates": _SOME, "reinforce_baseline": _BELOW_ONE,
    "reinforce_exponent": Range(0, 100), "evaluations": _SOME, "population": Range(2, 1_000_000),
    "mutation": Range(0, 1, open_low=True), "recalibrate_batches": _COUNT, "stuck_epochs": _COUNT,
    "target_ms": _TARGET, "target_macs_m": _TARGET, "target_params_m": _TARGET,
}  # fmt: skip

CHOICES: dict[str, tuple[str, ...]] = {
    "algorithm": ("gradient", "reinforce", "random", "evolution"),
    "arch_mode": ("two", "full", "full_v2"),
    "regulariser": ("mul_log", "add_linear", "none"),
}

#: What the weight steps of a search do not know among the values of a training recipe, and what each must be.
PLAIN: dict[str, Any] = {
    "val_fraction": 0.1, "schedule": "cosine", "warmup_epochs": 0.0, "final_rate": 0.0, "freeze_epochs": 0,
    "dropout": None, "drop_path": 0.0, "zero_init_residual": False, "ema_decay": 0.0,
    "recalibrate_batches": 0, "keep": "last",
}  # fmt: skip

_WHY_PLAIN = {
    "val_fraction": "arch_fraction is the share that a search holds out",
    "schedule": "both phases of a search follow a cosine to 0",
    "warmup_epochs": "the warm-up of a search is its own warmup_epochs",
    "final_rate": "both phases of a search follow a cosine to 0",
    "recalibrate_batches": "the search has a recalibrate_batches of its own, outside [weights]",
}

# What people call them elsewhere, for the hint at an unknown name.
_ALIASES = {
    "arch_lr": "arch_rate", "alpha_lr": "arch_rate", "lr": "learning_rate", "mode": "arch_mode",
    "target": "target_ms", "latency": "target_ms", "target_latency": "target_ms",
    "target_macs": "target_macs_m",
    "target_params": "target_params_m", "target_flops": "target_macs_m", "n_epochs": "epochs",
    "reg": "regulariser", "lambda": "strength", "reg_beta": "strength", "reg_alpha": "scale",
    "warmup": "warmup_epochs", "warmup_lr": "learning_rate", "valid_size": "arch_fraction",
    "val_fraction": "arch_fraction", "bs": "batch_size", "depth": "min_depth",
}  # fmt: skip


def unknown(name: object, known: Iterable[str]) -> str:
    """Return the problem line for a name that no value has, with the nearest ones."""
    names = list(known)
    key = str(name).lower().replace("-", "_")
    alias = _ALIASES.get(key, "")
    near = [alias] if alias in names else difflib.get_close_matches(key, names, n=2, cutoff=0.6)
    hint = f": did you mean {' or '.join(near)}?" if near else ""
    return f"there is no {shown(name)}{hint}"


def check(kinds: Mapping[str, str], values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return all values in their proper types, and what is wrong with each of them.

    Args:
        kinds: annotation of each value, such as ``"float | None"``.
        values: a whole number also passes for a real one, a list for a tuple.
    """
    plain = {name: value for name, value in values.items() if kinds[name] != "Recipe"}
    checked, found = check_plain(kinds, plain, RANGES, CHOICES)
    for name in values.keys() - plain.keys():
        checked[name] = values[name]
        if not isinstance(values[name], Recipe):
            found.append(f"{name} must be a training recipe, not {shown(values[name])}")
    return checked, found


def combination_problems(recipe: Any) -> list[str]:
    """Return what does not fit together in a recipe whose values are each in order."""
    r, found = recipe, []
    learns = r.algorithm in ("gradient", "reinforce")
    if learns and r.frozen_epochs and r.frozen_epochs >= r.epochs:
        found.append(
            f"frozen_epochs {r.frozen_epochs} must be below epochs, which is {r.epochs}: nothing would be "
            "searched"
        )
    if r.algorithm == "evolution" and r.population > r.evaluations:
        found.append(f"population {r.population} must be at most evaluations, which is {r.evaluations}")
    if r.regulariser == "none" and r.strength is not None:
        found.append('strength belongs to a regulariser, which is "none": leave it out')
    total = r.warmup_epochs + r.epochs
    if r.weights.epochs != total:
        found.append(
            f"weights.epochs is {r.weights.epochs}, but the phases of the search have {total} together: "
            "leave it out"
        )
    for name, plain in PLAIN.items():
        value = getattr(r.weights, name)
        if value != plain:
            why = _WHY_PLAIN.get(name, "the weight steps of a search know no such thing")
            found.append(f"weights.{name} is {value}, but {why}: leave it out")
    return found
