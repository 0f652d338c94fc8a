"""Which model of a trained supernet is evaluated next: drawn evenly, by evolution, or a probable one."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..arch.space_base import Space
from ..train.sampler import mix64
from .constraints import Constraint, MinDepth
from .derivation import Infeasible, most_probable
from .recipe import SearchRecipe

_TRIES, _ATTEMPTS = 2000, 100
_STEP, _LOWEST = 0.95, 0.5  # of a limit: where the most probable model is looked for, and down to where
_NOISIER, _NOISIEST = 1.2, 1e3  # factor on the noise after each model that was drawn before; in all


@dataclass(frozen=True)
class Evaluated:
    """A model and what it is worth.

    Attributes:
        choices: the model.
        top1: accuracy on held-out images with the supernet's weights, percent.
        costs: one a constraint, in its unit.
        loss: mean cross-entropy on the same images, nats; 0 where it does not count ("random", "evolution").
    """

    choices: tuple[int, ...]
    top1: float
    costs: tuple[float, ...]
    loss: float = 0.0

    def to_list(self) -> list[Any]:
        """Return it as JSON values."""
        return [list(self.choices), self.top1, list(self.costs), *([self.loss] if self.loss else [])]

    @classmethod
    def from_list(cls, saved: Sequence[Any]) -> Evaluated:
        """Undo :meth:`to_list`."""
        choices, top1, costs, *loss = saved
        return cls(tuple(choices), float(top1), tuple(costs), *map(float, loss))


def rank(model: Evaluated) -> tuple[float, float, tuple[float, ...]]:
    """Return what models are sorted by, best first: the lowest loss, the highest accuracy, the lowest cost.

    On a few hundred images many models are right equally often; how sure they are tells them apart, and picks
    fewer by chance. The last digits of a loss depend on how many processes it was summed over.
    """
    loss = round(model.loss, 5) if math.isfinite(model.loss) else math.inf
    return loss, -model.top1, model.costs


def best_of(evaluated: Sequence[Evaluated]) -> Evaluated:
    """Return the best of some evaluated models."""
    return min(evaluated, key=rank)


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
        first: models that come first, whatever the algorithm; evolution goes on from the best quarter of as
            many, and the ``least_share`` does not matter. None are the baselines as they are above.
    """

    def __init__(
        self,
        space: Space,
        constraints: Sequence[Constraint],
        recipe: SearchRecipe,
        first: Sequence[tuple[int, ...]] = (),
    ) -> None:
        self.space, self.constraints, self.recipe, self.first = space, list(constraints), recipe, first
        self.depth = MinDepth.of(space, recipe.min_depth)
        self.least_share = 0.0 if first else recipe.least_share
        evolution = recipe.algorithm == "evolution"
        self.begins = len(first) or (
            recipe.population if evolution else None
        )  # with evolution, after so many
        self.parents = max(2, len(first) // 4 if first else recipe.population // 10)

    def next(self, evaluated: Sequence[Evaluated]) -> tuple[int, ...]:
        """Return a model that was not evaluated yet (or, where nearly all were, perhaps one that was)."""
        known = {e.choices for e in evaluated}
        choices = next((c for c in self.first if c not in known), ())
        if choices:
            return choices
        for attempt in range(_ATTEMPTS):
            rng = random.Random(mix64(self.recipe.seed, len(evaluated), attempt))
            choices = self._draw(evaluated, rng, wild=2 * attempt >= _ATTEMPTS)
            if choices not in known:
                break
        return choices

    def _draw(self, evaluated: Sequence[Evaluated], rng: random.Random, wild: bool) -> tuple[int, ...]:
        """Return a child, or a random model; a ``wild`` child is a mutant of half of the blocks."""
        if self.begins is not None and len(evaluated) >= max(2, self.begins):
            best = sorted(evaluated, key=lambda e: rank(e)[:2])[: self.parents]
            make = self._mutant if len(evaluated) % 2 or wild else self._crossing
            share = max(0.5, self.recipe.mutation) if wild else self.recipe.mutation
            for _ in range(_TRIES):
                choices = make(best, rng, share)
                if self._fits(choices):
                    return choices
        return self._random(rng)

    def _fits(self, choices: Sequence[int]) -> bool:
        return fits(choices, self.constraints, self.least_share, self.depth)

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
        scores, share = noise.masked_fill(~mask, float("-inf")), self.least_share
        return tuple(most_probable(scores, self.constraints, min_utilization=share, depth=self.depth))

    def _mutant(self, best: Sequence[Evaluated], rng: random.Random, share: float) -> tuple[int, ...]:
        fresh, old = self.space.random_choices(rng), rng.choice(best).choices
        return tuple(f if rng.random() < share else o for f, o in zip(fresh, old, strict=True))

    def _crossing(self, best: Sequence[Evaluated], rng: random.Random, _: float) -> tuple[int, ...]:
        a, b = rng.sample(list(best), 2)
        return tuple(rng.choice(pair) for pair in zip(a.choices, b.choices, strict=True))


def probable_models(
    log_probs: Tensor,
    constraints: Sequence[Constraint],
    count: int,
    *,
    seed: int,
    min_utilization: float = 0.0,
    depth: MinDepth | None = None,
) -> list[tuple[int, ...]]:
    """Return different probable models within the constraints, the one of the published rule first.

    Half of them at most are the most probable models at limits of 100, 95, ... % of the first one. The others
    are the most probable ones under log-probabilities with Gumbel noise: draws from the probabilities, as far
    as the constraints allow. The noise grows with each draw that brings nothing new.

    Args:
        log_probs: [blocks, candidates].
        constraints: limits.
        count: of models; where there are fewer, or others are hard to come by, they are fewer.
        seed: of the noise.
        min_utilization: of the first model; see :func:`~.derivation.most_probable`.
        depth: how many blocks a model has to keep.

    Raises:
        Infeasible: no model meets the constraints.
    """
    scores = log_probs.detach().to("cpu", torch.float64)
    first = most_probable(scores, constraints, min_utilization=min_utilization, depth=depth)
    found = {tuple(first): None}  # in order
    share = 1.0
    while constraints and share > _LOWEST and 2 * len(found) < count:
        lower = dataclasses.replace(constraints[0], limit=share * constraints[0].limit)
        with contextlib.suppress(Infeasible):
            found[tuple(most_probable(scores, [lower, *constraints[1:]], depth=depth))] = None
        share *= _STEP
    generator, scale = torch.Generator().manual_seed(mix64(seed, count)), 1.0
    for _ in range(20 * count):
        if len(found) >= count:
            break
        noise = -torch.empty_like(scores).exponential_(generator=generator).log()
        before = len(found)
        found[tuple(most_probable(scores + scale * noise, constraints, depth=depth))] = None
        scale = scale if len(found) > before else min(scale * _NOISIER, _NOISIEST)
    return list(found)[:count]
