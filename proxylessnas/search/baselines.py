"""Judge single nets of a trained supernet: random search, and evolution (the baselines)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..train.sampler import mix64
from .constraints import Budget
from .derivation import within

if TYPE_CHECKING:
    from .supernet import SuperNet

_TRIES = 2000


@dataclass(frozen=True)
class Judged:
    """A net and what it is worth.

    Attributes:
        picks: the net.
        top1: accuracy on held-out pictures with the supernet's weights, percent.
        costs: one a budget, in its unit.
    """

    picks: tuple[int, ...]
    top1: float
    costs: tuple[float, ...]


def random_within(
    supernet: SuperNet, budgets: Sequence[Budget], least_share: float, rng: random.Random, **rules: Any
) -> tuple[int, ...]:
    """Return a net drawn evenly from those that meet the budgets and use at least a share of the first.

    Where such nets are too rare to be met by chance, a random order of preference decides (Gumbel noise as
    log-probabilities), which is no longer quite even.

    Args:
        supernet: gives the space.
        budgets: limits.
        least_share: of the first budget's limit, that a net should use.
        rng: the source of randomness.
        rules: ``stages``, ``zero_column`` and ``least_depth`` of :func:`~.knapsack.most_probable_within`.

    Raises:
        Infeasible: no net meets the budgets.
    """
    space = supernet.space
    for _ in range(_TRIES):
        picks = space.random_picks(rng)
        if fits(picks, budgets, least_share, **rules):
            return tuple(picks)
    generator = torch.Generator().manual_seed(rng.getrandbits(63))
    mask = supernet.alphas.mask
    noise = -torch.empty(mask.shape, dtype=torch.float64).exponential_(generator=generator).log()
    scores = noise.masked_fill(~mask, float("-inf"))
    return tuple(within(scores, budgets, least_share, **rules))


def fits(
    picks: Sequence[int],
    budgets: Sequence[Budget],
    least_share: float,
    *,
    stages: Sequence[int] | None = None,
    zero_column: int | None = None,
    least_depth: int = 0,
) -> bool:
    """Return whether a net meets the budgets, and uses at least a share of the first one."""
    for n, budget in enumerate(budgets):
        cost = budget.costs.of(picks)
        if cost > budget.limit or (n == 0 and cost < least_share * budget.limit):
            return False
    if least_depth and stages is not None and zero_column is not None:
        for stage in set(stages):
            own = [p for p, s in zip(picks, stages, strict=True) if s == stage]
            if sum(p != zero_column for p in own) < min(least_depth, len(own)):
                return False
    return True


class Proposals:
    """Says which net is judged next, from those judged so far; the same history gives the same net.

    * random: every one is drawn evenly from the nets within the budgets.
    * evolution (as in regularised single-path searches): the first ``population`` at random; then in turns a
      mutation (each block with probability ``mutation`` another candidate) of one of the best tenth, and a
      crossover of two of them.

    Args:
        supernet: gives the space.
        budgets: limits.
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
        budgets: Sequence[Budget],
        *,
        algorithm: str,
        seed: int,
        least_share: float = 0.85,
        population: int = 50,
        mutation: float = 0.1,
        rules: dict[str, Any] | None = None,
    ) -> None:
        self.supernet, self.budgets, self.algorithm, self.seed = supernet, list(budgets), algorithm, seed
        self.least_share, self.population, self.mutation = least_share, population, mutation
        self.rules = rules or {}

    def next(self, judged: Sequence[Judged]) -> tuple[int, ...]:
        """Return a net that was not judged yet (or, where nearly all were, perhaps one that was)."""
        known = {j.picks for j in judged}
        picks: tuple[int, ...] = ()
        for attempt in range(100):
            rng = random.Random(mix64(self.seed, len(judged), attempt))
            picks = self._draw(judged, rng)
            if picks not in known:
                break
        return picks

    def _draw(self, judged: Sequence[Judged], rng: random.Random) -> tuple[int, ...]:
        if self.algorithm == "random" or len(judged) < self.population:
            return random_within(self.supernet, self.budgets, self.least_share, rng, **self.rules)
        best = sorted(judged, key=lambda j: -j.top1)[: max(2, self.population // 10)]
        make = self._mutant if len(judged) % 2 else self._crossing
        for _ in range(_TRIES):
            picks = make(best, rng)
            if fits(picks, self.budgets, self.least_share, **self.rules):
                return picks
        return random_within(self.supernet, self.budgets, self.least_share, rng, **self.rules)

    def _mutant(self, best: Sequence[Judged], rng: random.Random) -> tuple[int, ...]:
        fresh = self.supernet.space.random_picks(rng)
        old = rng.choice(best).picks
        return tuple(f if rng.random() < self.mutation else o for f, o in zip(fresh, old, strict=True))

    def _crossing(self, best: Sequence[Judged], rng: random.Random) -> tuple[int, ...]:
        a, b = rng.sample(list(best), 2)
        return tuple(rng.choice(pair) for pair in zip(a.picks, b.picks, strict=True))


def best_of(judged: Sequence[Judged]) -> Judged:
    """Return the most accurate net; of equals the cheapest, then the first."""
    return min(judged, key=lambda j: (-j.top1, j.costs))
