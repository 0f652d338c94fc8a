"""Ready-made recipes of searches by name: the published ones, number by number, and ours."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ..errors import DataError, shown
from ..train.presets import GROUPS as WEIGHT_GROUPS
from ..train.presets import group_lines, taken_base
from ..train.presets import parse_set as parse_weight_set
from ..train.presets import preset as train_preset
from ..train.recipe import KINDS as WEIGHT_KINDS
from ..train.recipe_rules import CHOICES as WEIGHT_CHOICES
from ..train.recipe_rules import by_name
from ..utils.config import absent, read_toml, split_word, value_of_word
from .recipe import (
    CHOICES,
    KINDS,
    NAMES,
    PLAIN,
    SearchRecipe,
    check,
    unknown,
)

# DOC proxylessnas.search.recipe_toml: """The recipe of a search as a TOML file: flat values, and a table for those of the weights.
#
# base = "small"
# target_ms = 2.5
# epochs = 60
#
# [weights]
# base = "small-images"
# batch_size = 64
# """

# The authors' script (original code, B.7 and B.11), but for `adapt`, with which a target is met. Held out are
# 50,000 of 1,281,167 pictures. Colour jitter is their "normal"; BatchNorm decays too; the rate of the search
# is half of the warm-up's.
_IMAGENET = SearchRecipe().replace(
    weights=train_preset("imagenet-mobile").replace(
        epochs=160, batch_size=256, no_decay="none", dropout=None, learning_rate=0.05,
        jitter_brightness=32 / 255, jitter_contrast=0.0, jitter_saturation=0.5, jitter_hue=0.0,
    ),
    algorithm="gradient", warmup_epochs=40, epochs=120, search_rate=0.025, arch_fraction=50_000 / 1_281_167,
    arch_mode="full_v2", arch_every=5, arch_rate=1e-3, regulariser="mul_log", scale=0.2,
)  # fmt: skip

# The paper's CIFAR-10 settings (B.11): 5,000 pictures held out, 200 epochs, alpha's rate 0.006 (0.01 for
# "reinforce"), weights as the authors' CIFAR code trains them. How the epochs divide into phases is not
# published: here as on ImageNet, where a quarter is warm-up and the rate of the search half of the first.
_CIFAR = SearchRecipe().replace(
    weights=train_preset("cifar10"),
    algorithm="gradient", warmup_epochs=50, epochs=150, search_rate=0.05, arch_fraction=0.1,
    arch_mode="two", arch_every=5, arch_rate=6e-3,
)  # fmt: skip

# Ours, for pictures of 28 to 64 px: fewer epochs than published, hence a faster alpha.
_SMALL = SearchRecipe().replace(
    weights=train_preset("small-images"),
    batch_size=128, learning_rate=0.1, cutout=0,
    algorithm="gradient", warmup_epochs=20, epochs=40, search_rate=0.05,
    arch_fraction=0.2, arch_mode="full_v2", arch_every=3, arch_rate=1e-2, aligned_start=True,
    reinforce_updates=100, reinforce_samples=8,
)  # fmt: skip

# Ours, to see a whole search in minutes on two cores. Small batches at a high rate, as a supernet takes some
# hundred steps until its paths agree with each other; so few arch steps that alpha has to move in leaps.
_TINY = _SMALL.replace(
    batch_size=32, learning_rate=0.2, warmup_epochs=8, epochs=8, search_rate=0.1,
    arch_fraction=0.25, arch_every=2, arch_rate=3e-2, frozen_epochs=0,
    reinforce_updates=20, reinforce_samples=4, reinforce_baseline=0.9,
    evaluations=40, population=16, recalibrate_batches=4,
)  # fmt: skip

PRESETS: dict[str, SearchRecipe] = {
    "imagenet": _IMAGENET,
    "cifar": _CIFAR,
    "small": _SMALL,
    "tiny": _TINY,
}

ABOUT: dict[str, str] = {
    "imagenet": "published: ImageNet, 40 + 120 epochs",
    "cifar": "published: CIFAR-10, 200 epochs (for reinforce set arch_rate=0.01)",
    "small": "ours: pictures of 28 to 64 px, 20 + 40 epochs, on a GPU or a patient CPU",
    "tiny": "ours: 8 + 8 epochs, minutes on two cores",
}


def preset(name: str) -> SearchRecipe:
    """Return a ready-made recipe; case, hyphens and underscores in its name do not matter.

    Raises:
        DataError: there is none of this name; the message names the nearest and lists all.
    """
    return by_name(PRESETS, name, "recipe of a search")


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
    ``"none"``. Arguments and errors are those of :func:`proxylessnas.train.presets.from_toml`.
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
