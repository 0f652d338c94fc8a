"""The baselines, random search and evolution: which model of a trained supernet is evaluated next."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..arch.space_base import Space
from ..train.sampler import mix64
from .constraints import Constraint, MinDepth
from .derivation import most_probable
from .recipe import SearchRecipe

_TRIES = 2000


@dataclass(frozen=True)
class Evaluated:
    """A model and what it is worth.

    Attributes:
        choices: the model.
        top1: accuracy on held-out images with the supernet's weights, percent.
        costs: one a constraint, in its unit.
    """

    choices: tuple[int, ...]
    top1: float
    costs: tuple[float, ...]


def best_of(evaluated: Sequence[Evaluated]) -> Evaluated:
    """Return the most accurate model; of equals the cheapest, then the first."""
    return min(evaluated, key=lambda e: (-e.top1, e.costs))


def fits(
    choices: Sequence[int], constraints: Sequence[Constraint], min_utilization: float, depth: MinDepth | None
) -> bool:
    """Return whether a model meets the constraints, and uses at least a share of the first limit."""
    for n, constraint in enumerate(constraints):
        cost = constraint.costs.of(choices)
        if cost > constraint.limit or (n == 0 and cost < min_utilization * constraint.limit):
            return False
    return depth is None or depth.is_kept(choices)


class Sampler:
    """Draws the next model to evaluate, given those evaluated so far; the same history gives the same model.

    * random: every one is drawn evenly from the models within the constraints.
    * evolution (as in regularised single-path searches): the first ``population`` at random; then in turns a
      mutation (each block with probability ``mutation`` another candidate) of one of the best tenth, and a
      crossover of two of them.

    Args:
        space: the models to draw from.
        constraints: limits.
        recipe: algorithm, seed, ``least_share``, ``min_depth``, ``population`` and ``mutation``.
    """

    def __init__(self, space: Space, constraints: Sequence[Constraint], recipe: SearchRecipe) -> None:
        self.space, self.constraints, self.recipe = space, list(constraints), recipe
        self.depth = MinDepth.of(space, recipe.min_depth)

    def next(self, evaluated: Sequence[Evaluated]) -> tuple[int, ...]:
        """Return a model that was not evaluated yet (or, where nearly all were, perhaps one that was)."""
        known = {e.choices for e in evaluated}
        choices: tuple[int, ...] = ()
        for attempt in range(100):
            rng = random.Random(mix64(self.recipe.seed, len(evaluated), attempt))
            choices = self._draw(evaluated, rng)
            if choices not in known:
                break
        return choices

    def _draw(self, evaluated: Sequence[Evaluated], rng: random.Random) -> tuple[int, ...]:
        r = self.recipe
        if r.algorithm == "evolution" and len(evaluated) >= r.population:
            best = sorted(evaluated, key=lambda e: -e.top1)[: max(2, r.population // 10)]
            make = self._mutant if len(evaluated) % 2 else self._crossing
            for _ in range(_TRIES):
                choices = make(best, rng)
                if self._fits(choices):
                    return choices
        return self._random(rng)

    def _fits(self, choices: Sequence[int]) -> bool:
        return fits(choices, self.constraints, self.recipe.least_share, self.depth)

    def _random(self, rng: random.Random) -> tuple[int, ...]:
        """Return a model drawn evenly from those that fit.

        Where they are too rare to be met by chance, a random order of preference decides (Gumbel noise as
        log-probabilities), which is no longer quite even.

        Raises:
            Infeasible: no model meets the constraints.
        """
        for _ in range(_TRIES):
            choices = self.space.random_choices(rng)
            if self._fits(choices):
                return choices
        generator = torch.Generator().manual_seed(rng.getrandbits(63))
        mask = torch.tensor(self.space.mask)
        noise = -torch.empty(mask.shape, dtype=torch.float64).exponential_(generator=generator).log()
        scores, share = noise.masked_fill(~mask, float("-inf")), self.recipe.least_share
        return tuple(most_probable(scores, self.constraints, min_utilization=share, depth=self.depth))

    def _mutant(self, best: Sequence[Evaluated], rng: random.Random) -> tuple[int, ...]:
        fresh, old = self.space.random_choices(rng), rng.choice(best).choices
        share = self.recipe.mutation
        return tuple(f if rng.random() < share else o for f, o in zip(fresh, old, strict=True))

    def _crossing(self, best: Sequence[Evaluated], rng: random.Random) -> tuple[int, ...]:
        a, b = rng.sample(list(best), 2)
        return tuple(rng.choice(pair) for pair in zip(a.choices, b.choices, strict=True))
