"""The recipe of a search: everything that decides what comes out of it, as one small table.

    >>> from proxylessnas.search.recipe import read_search_recipe
    >>> recipe = read_search_recipe("tiny").with_epochs(1, 2).replace(target_ms=1.5, batch_size=32)
    >>> recipe.weights.batch_size, recipe.weights.epochs
    (32, 3)

The space, the pictures and the latency table are no part of it; nor is where and how the search is carried
out (:class:`proxylessnas.train.Settings`). The rules that values keep are in ``recipe_rules.py``, the TOML
form in ``presets.py``, with the ready-made recipes.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, ClassVar

from ..errors import shown
from ..train.recipe import KINDS as WEIGHT_KINDS
from ..train.recipe import Recipe
from ..train.recipe import completed as completed_weights
from ..train.recipe_rules import Range
from ..train.recipe_rules import check as check_plain
from ..utils.config import RecipeBase, Rules, parsed_settings

# DOC proxylessnas.search.recipe_rules: """What the recipe of a search may hold: the type and range of each value, and what fits together."""

#: What a strength of None stands for (original code, B.8 and its script).
PUBLISHED_STRENGTH = {"mul_log": 0.3, "add_linear": 0.1, "none": 0.0}


@dataclass(frozen=True)
class SearchRecipe(RecipeBase):
    """How an architecture is searched. The defaults are the published ones (original code, B.7 to B.11).

    Attributes:
        algorithm: "gradient" (ProxylessNAS, section 3.3.1), "reinforce" (section 3.3.2), "random" (the best
            of some nets drawn evenly) or "evolution", both over a supernet trained on paths drawn evenly.
        weights: how the weights are trained: batches, augmentation, optimiser, precision, seed. Its
            ``learning_rate`` is that of the warm-up. Its ``epochs`` are those of both phases together, and
            follow from them; what weight steps do not know (``recipe_rules.PLAIN``) keeps a fixed value.
        warmup_epochs: passes over the training pictures with weight steps alone, on paths drawn evenly; the
            rate falls along a cosine to 0.
        epochs: passes of the search that follows.
        search_rate: learning rate of the weights at the start of the search; it falls along a cosine to 0.
        arch_fraction: share of each training class that is held out for the architecture.
        arch_mode: which candidates an arch step compares: "two", "full" or "full_v2"; see ``arch_step.py``.
        arch_every: weight steps to an arch step of "gradient".
        arch_batch_size: held-out pictures an arch step, over all processes; None takes the weights' batch
            size. Where fewer are held out, it is all of them.
        arch_rate: Adam's learning rate for alpha (published: ImageNet 1e-3; CIFAR-10 6e-3 for "gradient" and
            1e-2 for "reinforce").
        arch_betas: Adam's betas for alpha.
        aligned_start: let the candidates of a block start as nearly the same function; see ``start.py``. Off
            as published; on few pictures it saves most of the warm-up.
        arch_init: standard deviation of alpha at the start.
        frozen_epochs: epochs at the start of the search without arch steps.
        regulariser: how the expected cost enters the loss of "gradient": "mul_log", "add_linear" or "none";
            see ``objective.py``. Without a target there is nothing to enter.
        strength: of the regulariser; None takes the published one (mul_log 0.3, add_linear 0.1).
        scale: factor of mul_log.
        adapt: let a controller adapt the strength, so that the expected cost arrives at the target; off as
            published, on by default.
        least_share: the derived net uses at least this share of its latency target where one does.
        min_depth: blocks of each stage that may not be skipped at least.
        reinforce_samples: nets drawn for an update of "reinforce".
        reinforce_updates: updates an epoch of "reinforce", spread evenly.
        reinforce_baseline: decay of the moving average that rewards are compared with.
        reinforce_exponent: w of the reward ``accuracy * (target / cost) ** w``.
        evaluations: nets that "random" and "evolution" evaluate.
        population: nets that "evolution" keeps.
        mutation: probability that "evolution" draws a block of a child anew.
        recalibrate_batches: batches from which BatchNorm statistics are computed anew for a net that is
            evaluated or derived, on a copy.
        stuck_epochs: epochs without any movement of alpha after which a search is stopped; 0 never does.
        target_ms: most latency of the derived net, in ms by the table; None for no limit.
        target_macs_m: most multiply-accumulates, in millions; None for no limit.
        target_params_m: most parameters, in millions; None for no limit.

    Raises:
        DataError: a value is of the wrong type or out of range, or values do not fit together; the message
            lists every problem.
    """

    what: ClassVar[str] = "search recipe"
    # What stops a search changes nothing in it; the epochs of the weights follow from the others.
    beside: ClassVar[frozenset[str]] = frozenset({"stuck_epochs", "weights.epochs"})

    algorithm: str = "gradient"
    weights: Recipe = field(default_factory=lambda: Recipe(epochs=160, batch_size=256, no_decay="none"))
    warmup_epochs: int = 40
    epochs: int = 120
    search_rate: float = 0.025
    arch_fraction: float = 0.1
    arch_mode: str = "full_v2"
    arch_every: int = 5
    arch_batch_size: int | None = None
    arch_rate: float = 1e-3
    arch_betas: tuple[float, float] = (0.0, 0.999)
    aligned_start: bool = False
    arch_init: float = 1e-3
    frozen_epochs: int = 1
    regulariser: str = "mul_log"
    strength: float | None = None
    scale: float = 0.2
    adapt: bool = True
    least_share: float = 0.85
    min_depth: int = 0
    reinforce_samples: int = 10
    reinforce_updates: int = 300
    reinforce_baseline: float = 0.99
    reinforce_exponent: float = 0.1
    evaluations: int = 200
    population: int = 50
    mutation: float = 0.1
    recalibrate_batches: int = 20
    stuck_epochs: int = 10
    target_ms: float | None = None
    target_macs_m: float | None = None
    target_params_m: float | None = None

    def __post_init__(self) -> None:
        total = _total({"warmup_epochs": self.warmup_epochs, "epochs": self.epochs})
        if isinstance(self.weights, Recipe) and total > 0 and self.weights.epochs != total:
            object.__setattr__(self, "weights", self.weights.with_epochs(total))
        super().__post_init__()

    @property
    def seed(self) -> int:
        """The seed of everything random: that of the weights."""
        return self.weights.seed

    @property
    def cost_strength(self) -> float:
        """The strength of the regulariser, the published one if none is set."""
        return PUBLISHED_STRENGTH[self.regulariser] if self.strength is None else self.strength

    @property
    def targets(self) -> dict[str, float]:
        """The targets that are set: "latency" in ms, "macs" and "params" in millions."""
        limits = {"latency": self.target_ms, "macs": self.target_macs_m, "params": self.target_params_m}
        return {name: limit for name, limit in limits.items() if limit is not None}

    def with_epochs(self, warmup: int | None, search: int | None) -> SearchRecipe:
        """Return the recipe with other numbers of epochs; None leaves one as it is.

        Epochs without arch steps are at most half of those of the search then, so that any recipe can be
        tried in a single epoch.
        """
        changes: dict[str, Any] = {}
        if warmup is not None:
            changes["warmup_epochs"] = warmup
        if search is not None:
            changes["epochs"] = search
            if isinstance(search, int) and not isinstance(search, bool) and search > 0:
                changes["frozen_epochs"] = min(self.frozen_epochs, search // 2)
        return self.replace(**changes)

    def with_batch_size(self, batch_size: int) -> SearchRecipe:
        """Return the recipe for batches of another size, with the weights' learning rates that suit them.

        See :meth:`proxylessnas.train.Recipe.with_batch_size`.
        """
        weights = self.weights.with_batch_size(batch_size)
        share = weights.learning_rate / self.weights.learning_rate
        return self.replace(weights=weights, search_rate=self.search_rate * share)

    def replace(self, **changes: Any) -> SearchRecipe:
        """Return a recipe with some values changed, those of the weights too: ``replace(batch_size=64)``.

        A name that both have (``epochs``, ``warmup_epochs``, ``recalibrate_batches``) is the search's;
        ``weights`` takes a recipe or a table of values.

        Raises:
            DataError: there is no such value, or the new ones are wrong; the message lists every problem.
        """
        return super().replace(**changes)


# With `from __future__ import annotations` the type of a field is the text of its annotation.
KINDS: dict[str, str] = {f.name: str(f.type) for f in dataclasses.fields(SearchRecipe)}
#: Names of all values, those of the weights after the search's own.
NAMES: tuple[str, ...] = (*KINDS, *(name for name in WEIGHT_KINDS if name not in KINDS))


def completed(given: Mapping[str, Any], base: SearchRecipe) -> tuple[dict[str, Any], list[str]]:
    """Return all values of a recipe, the given ones over those of ``base``, and what is wrong with them."""
    own = {name: value for name, value in given.items() if name in KINDS and name != "weights"}
    outside = {name: v for name, v in given.items() if name not in KINDS and name in WEIGHT_KINDS}
    found = [unknown(name, NAMES) for name in given if name not in KINDS and name not in WEIGHT_KINDS]
    known, wrong = check(KINDS, own)
    values = {name: getattr(base, name) for name in KINDS} | known
    table: Any = given.get("weights", {})
    start = base.weights
    if isinstance(table, Recipe):
        table, start = {}, table
    if not isinstance(table, Mapping):
        return values, [*found, *wrong, f"weights must be a table of values, not {type(table).__name__}"]
    twice = [name for name in outside if name in table]
    found += [f"{name} is set both in weights and outside: leave one out" for name in twice]
    total = _total(values)
    asked = {"epochs": total, **table, **outside} if total else {**table, **outside}
    numbers, problems = completed_weights(asked, plain_weights(start.with_epochs(total) if total else start))
    wrong += [f"weights: {line}" for line in problems]
    if not wrong:
        values["weights"] = Recipe(**numbers)
        wrong = combination_problems(SimpleNamespace(**values))
    return values, found + wrong


def plain_weights(recipe: Recipe) -> Recipe:
    """Return a training recipe without what the weight steps of a search do not know: averages, ..."""
    return recipe.replace(**PLAIN)


def _total(values: Mapping[str, Any]) -> int:
    """Return the epochs of both phases together, or 0 if one is wrong."""
    names = ("warmup_epochs", "epochs")
    known, problems = check(KINDS, {name: values[name] for name in names})
    return 0 if problems else sum(known.values())


def changed(
    recipe: SearchRecipe, settings: Iterable[str] = (), values: Mapping[str, Any] | None = None
) -> SearchRecipe:
    """Return a recipe with changes as a command line has them.

    With another number of epochs, epochs without arch steps that are not set here are shortened as
    :meth:`SearchRecipe.with_epochs` does it. Arguments and errors are those of
    :func:`proxylessnas.train.recipe.changed`.
    """
    from .presets import parse_set

    parsed, found = parsed_settings(settings, parse_set)
    weights = {name.removeprefix("weights."): v for name, v in parsed.items() if name.startswith("weights.")}
    given = {name: v for name, v in parsed.items() if not name.startswith("weights.")}
    given |= values or {}
    epochs = given.get("epochs")
    if type(epochs) is int and epochs > 0:
        given = {"frozen_epochs": min(recipe.frozen_epochs, epochs // 2)} | given
    if weights:
        given["weights"] = {name: value for name, value in weights.items() if name not in given}
    return SearchRecipe.complete(given, recipe, found)


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


SearchRecipe.rules = Rules(functools.partial(check, KINDS), combination_problems, completed)


def read_search_recipe(name_or_path: str | os.PathLike[str]) -> SearchRecipe:
    """Return a preset of searches by its name, or the recipe in a file; see :meth:`SearchRecipe.read`."""
    return SearchRecipe.read(name_or_path)
