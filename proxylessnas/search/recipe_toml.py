"""The recipe of a search as a TOML file: flat values, and a table for those of the weights.

base = "small"
target_ms = 2.5
epochs = 60

[weights]
base = "small-images"
batch_size = 64
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ..errors import DataError, shown
from ..toml_text import absent, read_toml, split_word, value_of_word
from ..train.presets import preset as train_preset
from ..train.recipe import KINDS as WEIGHT_KINDS
from ..train.recipe_rules import CHOICES as WEIGHT_CHOICES
from ..train.recipe_toml import GROUPS as WEIGHT_GROUPS
from ..train.recipe_toml import group_lines, taken_base
from ..train.recipe_toml import parse_set as parse_weight_set
from .presets import preset
from .recipe import KINDS, NAMES, SearchRecipe
from .recipe_rules import CHOICES, PLAIN, check, unknown

_GROUPS = {
    "algorithm": "algorithm",
    "what the net may cost at most: ms by the table, millions of multiply-accumulates and of parameters":
        "target_ms target_macs_m target_params_m least_share min_depth",
    "phases, in epochs": "warmup_epochs epochs frozen_epochs search_rate",
    "held-out pictures, and steps on them":
        "arch_fraction arch_batch_size arch_mode arch_every arch_rate arch_betas arch_init aligned_start",
    "how the cost enters the loss (gradient)": "regulariser strength scale adapt",
    "reinforce": "reinforce_samples reinforce_updates reinforce_baseline reinforce_exponent",
    "random and evolution": "evaluations population mutation",
    "evaluation and health": "recalibrate_batches stuck_epochs",
}  # fmt: skip


def to_toml(recipe: SearchRecipe) -> str:
    """Return a recipe as TOML text with every value but those that are None or follow from others."""
    lines = group_lines(recipe, _GROUPS, CHOICES)
    weights = group_lines(recipe.weights, WEIGHT_GROUPS, WEIGHT_CHOICES, leave_out={*PLAIN, "epochs"})
    return "\n".join([*lines[1:], "", "[weights]", *weights]) + "\n"


def from_toml(source: str | os.PathLike[str], *, base: SearchRecipe | None = None) -> SearchRecipe:
    """Return the recipe in a TOML file or text.

    The file may name a preset of searches as its ``base``, and its table ``[weights]`` one of trainings; of
    the latter, what the weight steps of a search do not know is left out. A value that can be absent may be
    ``"none"``. Arguments and errors are those of :func:`proxylessnas.train.recipe_toml.from_toml`.
    """
    where, table = read_toml(source, "search recipe")
    found: list[str] = []
    start = taken_base(table, preset, SearchRecipe() if base is None else base, found)
    given: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping) and key != "weights":
            found.append(f"[{key}] is a table, but a search has only [weights]")
        else:
            given[key] = absent(KINDS.get(key, WEIGHT_KINDS.get(key, "")), value)
    epochs = given.get("epochs")
    if type(epochs) is int and 1 <= epochs <= start.frozen_epochs:  # as with --epochs
        given = {"frozen_epochs": epochs // 2} | given
    weights = given.get("weights")
    if isinstance(weights, Mapping):
        weights = dict(weights)
        start_weights = taken_base(weights, train_preset, start.weights, found, "[weights] base")
        if start_weights is not start.weights:
            start = start.replace(weights=start_weights)
        given["weights"] = {k: absent(WEIGHT_KINDS.get(k, ""), v) for k, v in weights.items()}
    return SearchRecipe.complete(given, start, found, where)


def parse_set(text: str) -> tuple[str, Any]:
    """Return the name and value in ``name=value``, as a command line has it.

    Strings need no quotes, several numbers are joined by commas, and ``none`` is no value. A value of the
    weights needs no prefix, but where both have the name: ``arch_rate=0.01``, ``batch_size=64``,
    ``weights.recalibrate_batches=0``.

    Returns:
        The name, with the prefix ``weights.`` if it was there, and the value.

    Raises:
        DataError: there is no such name, or the value is wrong.
    """
    name, word = split_word(text)
    if not name:
        raise DataError(f"{shown(text)}: write name=value, as in arch_rate=0.01")
    bare = name.removeprefix("weights.")
    if name not in KINDS and bare in WEIGHT_KINDS:
        return name, parse_weight_set(f"{bare}={word}")[1]
    if name not in KINDS or name == "weights":
        raise DataError(f"{text}: {unknown(name, [n for n in NAMES if n != 'weights'])}")
    checked, problems = check({name: KINDS[name]}, {name: value_of_word(word, KINDS[name])})
    if problems:
        raise DataError(problems[0])
    return name, checked[name]
