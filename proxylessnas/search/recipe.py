"""The recipe of a search: everything that decides what comes out of it, as one small table.

    >>> from proxylessnas.search.recipe import read_search_recipe
    >>> recipe = read_search_recipe("tiny").with_epochs(1, 2).replace(target_ms=1.5, batch_size=32)
    >>> recipe.weights.batch_size, recipe.weights.epochs
    (32, 3)

The space, the images and the latency table are no part of it; nor is where and how the search is carried out
(:class:`proxylessnas.train.Settings`). Ready-made recipes are in ``presets.py``. A file is flat values, and a
table for those of the weights:

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
from dataclasses import dataclass
from typing import Any

from ..errors import DataError, shown
from ..train.recipe import Recipe
from ..utils.checks import Range, is_int, is_number
from ..utils.config import Config, option, options
from .presets import PRESETS

#: What a strength of None stands for (original code, B.8 and its script).
PUBLISHED_STRENGTH = {"mul_log": 0.3, "add_linear": 0.1, "none": 0.0}

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
_OTHERWISE_PLAIN = "the weight steps of a search know no such thing"

_LONGEST = 100_000
_COUNT, _SOME, _FEW = Range(0, 1_000_000), Range(1, 1_000_000), Range(2, 1_000_000)
_PART, _BELOW_ONE = Range(0, 1, open_low=True), Range(0, 1, open_high=True)
_RATE, _TARGET = Range(0, 1000, open_low=True), Range(0, 1e9, open_low=True)


@dataclass(frozen=True)
class SearchRecipe(Config):
    """How an architecture is searched. The defaults are the published ones (original code, B.7 to B.11).

    Raises:
        DataError: a value is of the wrong type or out of range, or values do not fit together; the message
            lists every problem.
    """

    what = "search recipe"
    example = "arch_rate=0.01"
    presets = PRESETS
    # What stops a search changes nothing in it, nor does what is done once it is over; the epochs of the
    # weights follow from the others.
    beside = frozenset({"stuck_epochs", "weights.epochs", "final_candidates", "final_evolution"})

    # fmt: off
    algorithm: str = option("gradient", ("gradient", "reinforce", "random", "evolution"), '"gradient" '
        '(ProxylessNAS, section 3.3.1), "reinforce" (section 3.3.2), "random" (the best of some models '
        'drawn evenly) or "evolution", both over a supernet trained on paths drawn evenly',
        group="algorithm")
    weights: Recipe = option(Recipe(epochs=160, batch_size=256, no_decay="none"), None, "how the weights "
        "are trained: batches, augmentation, optimiser, precision, seed. Its learning_rate is that of the "
        "warm-up. Its epochs are those of both phases together, and follow from them; what weight steps do "
        "not know (PLAIN) keeps a fixed value")

    target_ms: float | None = option(None, _TARGET, "most latency of the derived model, in ms by the "
        "table; None for no limit", also="target latency target_latency",
        group="what the model may cost at most: ms by the table, millions of multiply-accumulates and of "
        "parameters")
    target_macs_m: float | None = option(None, _TARGET, "most multiply-accumulates, in millions; None for "
        "no limit", also="target_macs target_flops")
    target_params_m: float | None = option(None, _TARGET, "most parameters, in millions; None for no limit",
        also="target_params")
    front: tuple[float, ...] | None = option(None, _TARGET, "limits of the first target that a model each is "
        "derived for at the end, that target among them, which alone the architecture is learnt for; None "
        "for that one model", also="targets")
    least_share: float = option(0.85, _BELOW_ONE, "the most probable model uses at least this share of its "
        "latency target where one does")
    min_depth: int = option(0, Range(0, 1000), "blocks of each stage that may not be skipped at least",
        also="depth")

    warmup_epochs: int = option(40, Range(0, _LONGEST), "passes over the training images with weight steps "
        "alone, on paths drawn evenly; the rate falls along a cosine to 0", also="warmup",
        group="phases, in epochs")
    fair_warmup: bool = option(False, None, "let the candidates of a block have turns in the warm-up, each "
        "one once a round in a new order, instead of independent draws (published)")
    epochs: int = option(120, Range(1, _LONGEST), "passes of the search that follows", also="n_epochs")
    frozen_epochs: int = option(1, _COUNT, "epochs at the start of the search without arch steps")
    search_rate: float = option(0.025, _RATE, "learning rate of the weights at the start of the search; it "
        "falls along a cosine to 0")

    arch_fraction: float = option(0.1, Range(0, 0.9, open_low=True), "share of each training class that is "
        "held out for the architecture", also="valid_size", group="held-out images, and steps on them")
    arch_batch_size: int | None = option(None, _SOME, "held-out images an arch step, over all processes; "
        "None takes the weights' batch size. Where fewer are held out, it is all of them")
    arch_mode: str = option("full_v2", ("two", "full", "full_v2"), "which candidates an arch step "
        'compares: "two", "full" or "full_v2"; see arch_optimizers.py', also="mode")
    arch_every: int = option(5, _SOME, 'weight steps to an arch step of "gradient"')
    arch_rate: float = option(1e-3, _RATE, "Adam's learning rate for alpha (published: ImageNet 1e-3; "
        'CIFAR-10 6e-3 for "gradient" and 1e-2 for "reinforce")', also="arch_lr alpha_lr")
    arch_betas: tuple[float, float] = option((0.0, 0.999), _BELOW_ONE, "Adam's betas for alpha")
    arch_init: float = option(1e-3, Range(0, 10), "standard deviation of alpha at the start")
    aligned_start: bool = option(False, None, "let the candidates of a block start as nearly the same "
        "function; see init.py. Off as published; on few images it saves most of the warm-up")

    regulariser: str = option("mul_log", ("mul_log", "add_linear", "none"), "how the expected cost enters "
        'the loss of "gradient": "mul_log", "add_linear" or "none"; see objective.py. Without a target '
        "there is nothing to enter", also="reg", group="how the cost enters the loss (gradient)")
    strength: float | None = option(None, Range(0, 1000), "of the regulariser; None takes the published "
        "one (mul_log 0.3, add_linear 0.1)", also="lambda reg_beta")
    scale: float = option(0.2, _RATE, "factor of mul_log", also="reg_alpha")
    adapt: bool = option(True, None, "let a controller adapt the strength, so that the expected cost "
        "arrives at the target; off as published, on by default")

    reinforce_samples: int = option(10, Range(2, 10_000), 'models drawn for an update of "reinforce"',
        group="reinforce")
    reinforce_updates: int = option(300, _SOME, 'updates an epoch of "reinforce", spread evenly')
    reinforce_batch_size: int | None = option(None, _SOME, "held-out images an update, over all processes; "
        "None takes arch_batch_size (published: 1000)")
    reinforce_baseline: float | None = option(None, _BELOW_ONE, "what a reward is compared with: None "
        "takes the mean of the others of its update (leave-one-out), a number a moving average of this decay")
    reinforce_baseline_first: bool = option(False, None, "let the moving average take in an update's rewards "
        "before they are compared with it, as the original code does (with a decay of 0.01)")
    reinforce_reward: str = option("published", ("published", "absolute"), 'what a model earns: "published" '
        'is accuracy * (target / cost) ** w, "absolute" is accuracy - beta * |cost / target - 1|')
    reinforce_exponent: float = option(0.1, Range(0, 100), "w of the published reward")
    reinforce_beta: float = option(0.07, Range(0, 100), "beta of the absolute reward")

    evaluations: int = option(200, _SOME, 'models that "random" and "evolution" evaluate',
        group="random and evolution")
    population: int = option(50, _FEW, 'models that "evolution" keeps')
    mutation: float = option(0.1, _PART, 'probability that "evolution" draws a block of a child anew')

    recalibrate_batches: int = option(20, _COUNT, "batches from which BatchNorm statistics are computed "
        "anew for a model that is evaluated or derived, on a copy", group="evaluation and health")
    final_candidates: int = option(0, Range(0, 10_000), 'probable models within the target that "gradient" '
        'and "reinforce" evaluate at the end, to take the best; 0 takes the most probable one, as published')
    final_evolution: int = option(0, _COUNT, "models that evolution adds to them, from the best of them on")
    stuck_epochs: int = option(10, _COUNT, "epochs without any movement of alpha after which a search is "
        "stopped; 0 never does")
    # fmt: on

    @property
    def learns(self) -> bool:
        """Whether alpha is learnt; else models are only compared."""
        return self.algorithm in ("gradient", "reinforce")

    @property
    def evaluated_models(self) -> int:
        """How many models are evaluated for a target once the supernet is trained."""
        if not self.learns:
            return self.evaluations
        return self.final_candidates and self.final_candidates + self.final_evolution

    @property
    def seed(self) -> int:
        """The seed of everything random: that of the weights."""
        return self.weights.seed

    @property
    def cost_strength(self) -> float:
        """The strength of the regulariser, the published one if none is set."""
        return PUBLISHED_STRENGTH[self.regulariser] if self.strength is None else self.strength

    @property
    def reward_weight(self) -> float:
        """The weight of the cost in the reward of "reinforce"."""
        return self.reinforce_beta if self.reinforce_reward == "absolute" else self.reinforce_exponent

    @property
    def held_out_batch_size(self) -> int:
        """The held-out images of an arch step, over all processes."""
        own = self.reinforce_batch_size if self.algorithm == "reinforce" else None
        return own or self.arch_batch_size or self.weights.batch_size

    @property
    def targets(self) -> dict[str, float]:
        """The targets that are set: "latency" in ms, "macs" and "params" in millions."""
        limits = {"latency": self.target_ms, "macs": self.target_macs_m, "params": self.target_params_m}
        return {name: limit for name, limit in limits.items() if limit is not None}

    def conflicts(self) -> list[str]:
        """Return what does not fit together."""
        found = []
        first = next(iter(self.targets.values()), None)
        if self.front is not None and first not in self.front:
            has = "there is none" if first is None else f"it is {first:g}"
            found.append(f"front must hold the first target, and {has}")
        if self.learns and self.frozen_epochs and self.frozen_epochs >= self.epochs:
            found.append(
                f"frozen_epochs {self.frozen_epochs} must be below epochs, which is {self.epochs}: nothing "
                "would be searched"
            )
        if self.algorithm == "evolution" and self.population > self.evaluations:
            found.append(
                f"population {self.population} must be at most evaluations, which is {self.evaluations}"
            )
        if self.regulariser == "none" and self.strength is not None:
            found.append('strength belongs to a regulariser, which is "none": leave it out')
        for name, plain in PLAIN.items():
            value = getattr(self.weights, name)
            if value != plain:
                why = _WHY_PLAIN.get(name, _OTHERWISE_PLAIN)
                found.append(f"weights.{name} is {value}, but {why}: leave it out")
        return found

    @classmethod
    def nearest(cls, name: str) -> list[str]:
        """Return the options that a name may mean, those that a search can set first."""
        inner = name.lower().replace("-", "_").removeprefix("weights.")
        if inner in options(cls) and inner != name:
            return [inner]
        near = ["learning_rate"] if inner == "warmup_lr" else super().nearest(name)
        return sorted(near, key=cls._is_plain)

    @classmethod
    def unknown(cls, name: object) -> str:
        """Return the problem line for a name that no option has: the nearest ones, or why there is none."""
        near = cls.nearest(str(name))
        if near and cls._is_plain(near[0]):
            why = _WHY_PLAIN.get(near[0].removeprefix("weights."), _OTHERWISE_PLAIN)
            return f"there is no {shown(name)}: {why}"
        return super().unknown(name)

    @classmethod
    def _is_plain(cls, name: str) -> bool:
        """Tell whether a value of the weights is fixed in a search."""
        return name not in options(cls) and name.removeprefix("weights.") in PLAIN

    def implied(self, given: Mapping[str, Any], *, from_file: bool = False) -> dict[str, Any]:
        """Return the epochs without arch steps, at most half of another number of epochs.

        In a file they change only where they must: a longer one means what it says.
        """
        epochs = given.get("epochs")
        if not is_int(epochs, 1, _LONGEST) or (from_file and epochs > self.frozen_epochs):
            return {}
        return {"frozen_epochs": min(self.frozen_epochs, epochs // 2)}

    def with_epochs(self, warmup: int | None, search: int | None) -> SearchRecipe:
        """Return the recipe with other numbers of epochs; None leaves one as it is.

        Epochs without arch steps are at most half of those of the search then, so that any recipe can be
        tried in a single epoch.
        """
        changes = {"warmup_epochs": warmup, "epochs": search}
        return self.changed(values={name: epochs for name, epochs in changes.items() if epochs is not None})

    def with_batch_size(self, batch_size: int) -> SearchRecipe:
        """Return the recipe for batches of another size, with the weights' learning rates that suit them.

        See :meth:`proxylessnas.train.Recipe.with_batch_size`.
        """
        weights = self.weights.with_batch_size(batch_size)
        share = weights.learning_rate / self.weights.learning_rate
        return self.replace(weights=weights, search_rate=self.search_rate * share)

    def _settle(self) -> list[str]:
        total = _total(self.warmup_epochs, self.epochs)
        if isinstance(self.weights, Recipe) and total and self.weights.epochs != total:
            vars(self)["weights"] = self.weights.with_epochs(total)
        return super()._settle()

    @classmethod
    def completed(cls, given: Mapping[str, Any], base: SearchRecipe) -> tuple[SearchRecipe, list[str]]:
        """Return a recipe of the given values over those of ``base``, and what is wrong with it.

        Values of the weights may be given outside their table too: ``replace(batch_size=64)``. A name that
        both have (``epochs``, ``warmup_epochs``, ``recalibrate_batches``) is the search's; ``weights`` takes
        a recipe or a table of values.
        """
        own = {name: v for name, v in given.items() if name in options(cls) or name not in options(Recipe)}
        outside = {name: v for name, v in given.items() if name not in own}
        table: Any = own.pop("weights", {})
        start = base.weights
        if isinstance(table, Recipe):
            table, start = {}, table
        if not isinstance(table, Mapping):
            made, found = super().completed(own, base)
            return made, [*found, f"weights must be a table of values, not {type(table).__name__}"]
        total = _total(own.get("warmup_epochs", base.warmup_epochs), own.get("epochs", base.epochs))
        asked = {"epochs": total or start.epochs, **table, **outside}
        plain = (start.with_epochs(total) if total else start).replace(**PLAIN)
        weights, wrong = Recipe.completed(asked, plain)
        twice = [name for name in outside if name in table]
        made, found = super().completed(own if wrong else own | {"weights": weights}, base)
        found += [f"{name} is set both in weights and outside: leave one out" for name in twice]
        found += [f"weights: {line}" for line in wrong]
        if total and not wrong and weights.epochs != total:
            found.append(
                f"weights.epochs is {weights.epochs}, but the phases of the search have {total} together: "
                "leave it out"
            )
        return made, found

    def to_toml(self) -> str:
        """Return the recipe as TOML, without what is None, or follows from other values."""
        lines = ["", "[weights]", *self.weights.toml_lines(leave_out={*PLAIN, "epochs"}), ""]
        return super().to_toml() + "\n".join(lines)


def several_targets(limits: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a recipe for targets, of which one may be several limits.

    Args:
        limits: ``target_ms`` and so on: a number, several, or None.

    Raises:
        DataError: several are given of another target than the first one, or what is given are no numbers.
    """
    found, front = dict(limits), None
    first = next((name for name, limit in limits.items() if limit is not None), None)
    for name, limit in limits.items():
        if not isinstance(limit, (list, tuple)):
            continue
        if name != first:
            raise DataError(f"`{name}` is several limits, which the first target alone can be, `{first}`")
        if not limit or not all(is_number(one, -1e9, 1e9) for one in limit):  # their range comes later
            raise DataError(f"`{name}` must be a number or several, not {shown(limit)}")
        front = tuple(sorted(set(map(float, limit))))
        # The one in the middle is near to all others. Of two it is the higher: the end can keep to a lower
        # limit, while what is learnt for a low one says little of what more cost would buy.
        found[name] = front[len(front) // 2]
    return {**found, "front": front if front and len(front) > 1 else None}


def _total(warmup: object, search: object) -> int:
    """Return the epochs of both phases together, or 0 if one is wrong."""
    if is_int(warmup, 0, _LONGEST) and is_int(search, 1, _LONGEST):
        return warmup + search
    return 0


def read_search_recipe(name_or_path: str | os.PathLike[str]) -> SearchRecipe:
    """Return a preset of searches by its name, or the recipe in a file; see :meth:`SearchRecipe.read`."""
    return SearchRecipe.read(name_or_path)
