"""The solver of version 0.1: dynamic programming over all blocks, without a Lagrangian bound before it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from proxylessnas.search.constraints import Constraint, MinDepth
from proxylessnas.search.solver import _after, _first, _needed, _traced, _undominated


class PlainProblem:
    """Scores [blocks, candidates], costs [blocks, candidates, constraints], and limits off by a share."""

    def __init__(
        self, scores: Tensor, constraints: Sequence[Constraint], slack: float, depth: MinDepth | None
    ) -> None:
        self.scores, self.allowed, self.depth = scores, scores > -math.inf, depth
        none = torch.zeros(*scores.shape, 0)
        self.costs = torch.stack([b.costs.table for b in constraints], -1) if constraints else none
        limits = [b.limit - b.costs.fixed + slack * abs(b.limit) for b in constraints]
        self.limits = torch.tensor(limits, dtype=torch.float64)
        self.cheapest_left = _after(self.costs.masked_fill(~self.allowed[..., None], math.inf).amin(1))
        self.best_left = _after(scores.amax(1)[:, None])[:, 0]

    def solve(self) -> list[int] | None:
        """Return the best model within the limits; None if there is none."""
        blocks, depth = len(self.scores), self.depth
        need = None if depth is None else _needed(depth)
        score = torch.zeros(1, dtype=torch.float64)
        cost = torch.zeros(1, len(self.limits), dtype=torch.float64)
        kept = torch.zeros(1, dtype=torch.long)  # blocks of the present stage that are not skipped
        back: list[tuple[Tensor, Tensor]] = []
        floor = -math.inf
        for i in range(blocks):
            options = self.allowed[i].nonzero()[:, 0]
            parent = torch.arange(len(score)).repeat_interleave(len(options))
            choice = options.repeat(len(score))
            score = (score[:, None] + self.scores[i, options]).reshape(-1)
            cost = (cost[:, None] + self.costs[i, options]).flatten(0, 1)
            fits = (cost + self.cheapest_left[i + 1] <= self.limits).all(1)
            fits &= score + self.best_left[i + 1] >= floor
            if need is not None and depth is not None:
                starts, required = need[i]
                kept = (torch.zeros_like(kept) if starts else kept)[parent] + (choice != depth.zero_column)
                fits &= kept >= required
                # More than enough is no better than enough, and once a stage is over nothing depends on it.
                ends = i + 1 == blocks or need[i + 1][0]
                kept = torch.zeros_like(kept) if ends else kept.clamp_max(depth.blocks)
            at = fits.nonzero()[:, 0]
            at = at[_undominated(score[at], cost[at], None if need is None else kept[at])]
            if not len(at):
                return None
            score, cost, kept = score[at], cost[at], kept if need is None else kept[at]
            back.append((parent[at], choice[at]))
            floor = max(floor, self._greedy_score(i, score, cost))
        return _traced(back, _first(score, cost))

    def _greedy_score(self, i: int, score: Tensor, cost: Tensor) -> float:
        """Return the score of a model that fits: the best state completed greedily. -inf if unknown."""
        if self.depth is not None:
            return -math.inf  # the completion would have to mind the depths
        at = int(score.argmax())
        total, spent = float(score[at]), cost[at].clone()
        for j in range(i + 1, len(self.scores)):
            fits = (spent + self.costs[j] + self.cheapest_left[j + 1] <= self.limits).all(1)
            options = self.scores[j].masked_fill(~fits, -math.inf)
            k = int(options.argmax())
            if options[k] == -math.inf:
                return -math.inf
            total, spent = total + float(options[k]), spent + self.costs[j, k]
        return total - 1e-9
