"""Judge single models of a trained supernet: random search, and evolution (the baselines)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..train.sampler import mix64
from .constraints import Constraint
from .derivation import within

if TYPE_CHECKING:
    from .supernet import SuperNet

_TRIES = 2000


@dataclass(frozen=True)
class Evaluated:
    """A model and what it is worth.

    Attributes:
        choices: the model.
        top1: accuracy on held-out images with the supernet's weights, percent.
        costs: one a budget, in its unit.
    """

    choices: tuple[int, ...]
    top1: float
    costs: tuple[float, ...]


def random_within(
    supernet: SuperNet,
    constraints: Sequence[Constraint],
    least_share: float,
    rng: random.Random,
    **rules: Any,
) -> tuple[int, ...]:
    """Return a model drawn evenly from those that meet the budgets and use at least a share of the first.

    Where such models are too rare to be met by chance, a random order of preference decides (Gumbel noise as
    log-probabilities), which is no longer quite even.

    Args:
        supernet: gives the space.
        constraints: limits.
        least_share: of the first budget's limit, that a model should use.
        rng: the source of randomness.
        rules: ``stages``, ``zero_column`` and ``least_depth`` of :func:`~.knapsack.most_probable_within`.

    Raises:
        Infeasible: no model meets the budgets.
    """
    space = supernet.space
    for _ in range(_TRIES):
        choices = space.random_choices(rng)
        if fits(choices, constraints, least_share, **rules):
            return tuple(choices)
    generator = torch.Generator().manual_seed(rng.getrandbits(63))
    mask = supernet.alphas.mask
    noise = -torch.empty(mask.shape, dtype=torch.float64).exponential_(generator=generator).log()
    scores = noise.masked_fill(~mask, float("-inf"))
    return tuple(within(scores, constraints, least_share, **rules))


def fits(
    choices: Sequence[int],
    constraints: Sequence[Constraint],
    least_share: float,
    *,
    stages: Sequence[int] | None = None,
    zero_column: int | None = None,
    least_depth: int = 0,
) -> bool:
    """Return whether a model meets the budgets, and uses at least a share of the first one."""
    for n, constraint in enumerate(constraints):
        cost = constraint.costs.of(choices)
        if cost > constraint.limit or (n == 0 and cost < least_share * constraint.limit):
            return False
    if least_depth and stages is not None and zero_column is not None:
        for stage in set(stages):
            own = [p for p, s in zip(choices, stages, strict=True) if s == stage]
            if sum(p != zero_column for p in own) < min(least_depth, len(own)):
                return False
    return True


class Sampler:
    """Says which model is judged next, from those judged so far; the same history gives the same model.

    * random: every one is drawn evenly from the models within the budgets.
    * evolution (as in regularised single-path searches): the first ``population`` at random; then in turns a
      mutation (each block with probability ``mutation`` another candidate) of one of the best tenth, and a
      crossover of two of them.

    Args:
        supernet: gives the space.
        constraints: limits.
        algorithm: "random" or "evolution".
        seed: of all draws.
        least_share: see :func:`random_within`.
        population: see above.
        mutation: see above.
        rules: see :func:`random_within`.
    """

    def __init__(
        self,
        supernet: SuperNet,
        constraints: Sequence[Constraint],
        *,
        algorithm: str,
        seed: int,
        least_share: float = 0.85,
        population: int = 50,
        mutation: float = 0.1,
        rules: dict[str, Any] | None = None,
    ) -> None:
        self.supernet, self.constraints, self.algorithm, self.seed = (
            supernet,
            list(constraints),
            algorithm,
            seed,
        )
        self.least_share, self.population, self.mutation = least_share, population, mutation
        self.rules = rules or {}

    def next(self, evaluated: Sequence[Evaluated]) -> tuple[int, ...]:
        """Return a model that was not judged yet (or, where nearly all were, perhaps one that was)."""
        known = {j.choices for j in evaluated}
        choices: tuple[int, ...] = ()
        for attempt in range(100):
            rng = random.Random(mix64(self.seed, len(evaluated), attempt))
            choices = self._draw(evaluated, rng)
            if choices not in known:
                break
        return choices

    def _draw(self, evaluated: Sequence[Evaluated], rng: random.Random) -> tuple[int, ...]:
        if self.algorithm == "random" or len(evaluated) < self.population:
            return random_within(self.supernet, self.constraints, self.least_share, rng, **self.rules)
        best = sorted(evaluated, key=lambda j: -j.top1)[: max(2, self.population // 10)]
        make = self._mutant if len(evaluated) % 2 else self._crossing
        for _ in range(_TRIES):
            choices = make(best, rng)
            if fits(choices, self.constraints, self.least_share, **self.rules):
                return choices
        return random_within(self.supernet, self.constraints, self.least_share, rng, **self.rules)

    def _mutant(self, best: Sequence[Evaluated], rng: random.Random) -> tuple[int, ...]:
        fresh = self.supernet.space.random_choices(rng)
        old = rng.choice(best).choices
        return tuple(f if rng.random() < self.mutation else o for f, o in zip(fresh, old, strict=True))

    def _crossing(self, best: Sequence[Evaluated], rng: random.Random) -> tuple[int, ...]:
        a, b = rng.sample(list(best), 2)
        return tuple(rng.choice(pair) for pair in zip(a.choices, b.choices, strict=True))


def best_of(evaluated: Sequence[Evaluated]) -> Evaluated:
    """Return the most accurate model; of equals the cheapest, then the first."""
    return min(evaluated, key=lambda j: (-j.top1, j.costs))
