"""The highest score within limits, one candidate a block, found exactly (a multiple-choice knapsack).

First a Lagrangian bound: with a price on each kind of cost, every block takes the candidate of the highest
score less its price, and no model within the limits exceeds what that comes to with the price of the
limits. A candidate that brings the bound below the score of a model that is known to fit is in no better
one. In a large problem one price suits nearly every block, and a few candidates of a few blocks are left.

Among them dynamic programming over the blocks decides. The states after a block are the sums (score, one
cost a constraint) that some choice of the blocks so far has. A state is dropped if another one has no lower
score and costs no more by any constraint, if its cheapest completion breaks a constraint, or if no
completion can reach the score of the model that is known to fit. What is left at the end holds an optimum;
nothing is rounded. Only where several limits bind at once over many blocks, and too many states are left,
is it a good model, with a warning of how far it may be off.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import DataError
from .constraints import Constraint, MinDepth

_LOG = logging.getLogger("proxylessnas")
_MOST_STATES, _MANY_STATES, _FEW_STATES, _FEW_BLOCKS = 2_000_000, 10_000, 500, 40
_HALVINGS, _CUTS = 50, 60  # of a price; of a volume that prices are looked for in, for each of them
#: Multiples of the prices at which a model that fits is looked for.
_DEARER = (1.0, 1.001, 1.01, 1.03, 1.1, 1.3, 2.0, 10.0, 1e3)
_INSIDE = 1e-12  # share of a limit that a sum in another order may be off
_ROUNDING = 1e-11  # the same of a score


class Problem:
    """A score for each candidate of each block, and limits on sums of costs.

    Args:
        scores: [blocks, candidates], -inf for candidates that a block does not have.
        constraints: limits.
        slack: share by which the limits are off.
        depth: how many blocks a model has to keep.
    """

    def __init__(
        self, scores: Tensor, constraints: Sequence[Constraint], slack: float, depth: MinDepth | None
    ) -> None:
        self.scores, self.allowed, self.depth = scores, scores > -math.inf, depth
        none = torch.zeros(*scores.shape, 0, dtype=torch.float64)
        self.costs = torch.stack([b.costs.table for b in constraints], -1) if constraints else none
        limits = [b.limit - b.costs.fixed + slack * abs(b.limit) for b in constraints]
        self.limits = torch.tensor(limits, dtype=torch.float64)
        self.tight = self.limits - _INSIDE * self.limits.abs()
        self.rows = torch.arange(len(scores))

    def solve(self) -> list[int] | None:
        """Return the best model within the limits; None if there is none.

        Raises:
            DataError: too many models are left to compare.
        """
        if (self.costs.masked_fill(~self.allowed[..., None], math.inf).amin(1).sum(0) > self.limits).any():
            return None
        prices = self._prices()
        net = self._net(prices)
        top = net.amax(1)
        bound = float(top.sum() + prices @ self.limits)
        known = self._model_that_fits(prices)
        if known is None:
            return _Search(self, prices, -math.inf, None).run()
        hair = _ROUNDING * (float(self.scores[self.allowed].abs().max()) * len(self.scores) + abs(bound))

        def search_above(known: Tensor) -> _Search:
            floor = self._total(known)[0] - hair
            self.allowed &= bound - (top[:, None] - net) >= floor
            return _Search(self, prices, floor, known)

        search = search_above(known)
        if len(self.limits) > 1 and len(search.order) > _FEW_BLOCKS:
            # Prices of several limits suit fewer blocks: a better model leaves fewer of them open.
            better = torch.tensor(search.run(_FEW_STATES) or known.tolist())
            score, cost = self._total(better)
            if score > self._total(known)[0] and (cost <= self.tight).all():
                known, search = better, search_above(better)
        return search.run() or known.tolist()

    def _net(self, prices: Tensor) -> Tensor:
        """Return the scores less their prices, [blocks, candidates]; -inf for what is not allowed."""
        return (self.scores - self.costs @ prices).masked_fill(~self.allowed, -math.inf)

    def _total(self, choices: Tensor) -> tuple[float, Tensor]:
        """Return the score of a model, and its costs."""
        return float(self.scores[self.rows, choices].sum()), self.costs[self.rows, choices].sum(0)

    def _prices(self) -> Tensor:
        """Return prices at which the bound is as low as can be, or nearly."""
        each = torch.tensor([self._price_of(c) for c in range(len(self.limits))], dtype=torch.float64)
        if len(each) <= 1 or not each.any():
            return each
        # Where several limits matter: the ellipsoid method, which halves a volume that holds the best prices.
        n, radius = len(each), torch.where(each > 0, each, each.max())
        centre, shape = radius / 2, torch.diag(n * radius**2)
        best, lowest = each, math.inf
        for _ in range(_CUTS * n):
            below = int(centre.argmin())
            if centre[below] < 0:
                away = -torch.eye(n, dtype=torch.float64)[below]
            else:
                net = self._net(centre)
                value = float(net.amax(1).sum() + centre @ self.limits)
                away = self.limits - self.costs[self.rows, net.argmax(1)].sum(0)
                best, lowest = (centre, value) if value < lowest else (best, lowest)
            size = float(away @ shape @ away)
            if not size > 0:
                break
            step = shape @ away / math.sqrt(size)
            centre = centre - step / (n + 1)
            shape = n * n / (n * n - 1) * (shape - 2 / (n + 1) * torch.outer(step, step))
        return best

    def _price_of(self, c: int) -> float:
        """Return the lowest price at which one kind of cost keeps to its limit, without the others."""

        def kept(price: float) -> bool:
            choices = (self.scores - price * self.costs[..., c]).argmax(1)
            return bool(self.costs[self.rows, choices, c].sum() <= self.limits[c])

        if kept(0.0):
            return 0.0
        low, high = 0.0, 1.0
        while not kept(high) and high < 1e300:
            low, high = high, 4.0 * high
        for _ in range(_HALVINGS):
            middle = 0.5 * (low + high)
            low, high = (low, middle) if kept(middle) else (middle, high)
        return high

    def _model_that_fits(self, prices: Tensor) -> Tensor | None:
        """Return a good model within the limits, by a hair at least; None where none is found."""
        best, best_score = None, -math.inf
        for factor in _DEARER:
            choices = self._deep(self._net(factor * prices))
            if choices is None or (self._total(choices)[1] > self.tight).any():
                continue
            choices = self._filled(choices)
            score = self._total(choices)[0]
            if score > best_score:
                best, best_score = choices, score
        return best

    def _deep(self, net: Tensor) -> Tensor | None:
        """Return the best candidate of each block, with as many kept as must be; None where there are not."""
        choices, depth = net.argmax(1), self.depth
        if depth is None:
            return choices
        kept = net.clone()
        kept[:, depth.zero_column] = -math.inf
        loss, instead = net.amax(1) - kept.amax(1), kept.argmax(1)
        stages = torch.tensor(depth.stages)
        for stage in set(depth.stages):
            own = (stages == stage).nonzero()[:, 0]
            missing = min(depth.blocks, len(own)) - int((choices[own] != depth.zero_column).sum())
            if missing > 0:
                skipped = own[choices[own] == depth.zero_column]
                back = skipped[loss[skipped].argsort(stable=True)[:missing]]
                if len(back) < missing or loss[back].isinf().any():
                    return None
                choices[back] = instead[back]
        return choices

    def _filled(self, choices: Tensor) -> Tensor:
        """Return a model with all candidates exchanged for better ones that still fit, the best first."""
        choices = choices.clone()
        while True:
            gain = self.scores - self.scores[self.rows, choices][:, None]
            spent = self.costs[self.rows, choices]
            fits = (self.costs - spent[:, None] + spent.sum(0) <= self.tight).all(2) & self.allowed
            if self.depth is not None:
                fits[:, self.depth.zero_column] = False
            gain = gain.masked_fill(~fits, 0.0)
            at = int(gain.argmax())
            if gain.flatten()[at] <= 0:
                return choices
            choices[at // gain.shape[1]] = at % gain.shape[1]


class _Search:
    """Dynamic programming over the blocks with what a problem has left.

    Args:
        problem: its ``allowed`` are the candidates that are left.
        prices: of the costs, for bounds.
        floor: score below which no model is looked for.
        known: a model within the limits that is not below it, if there is one.
    """

    def __init__(self, problem: Problem, prices: Tensor, floor: float, known: Tensor | None) -> None:
        self.problem, self.prices, self.floor, self.known = problem, prices, floor, known
        p, open_rows = problem, problem.rows
        self.fixed = p.allowed.long().argmax(1)
        self.base_score, self.base_cost = 0.0, torch.zeros(len(p.limits), dtype=torch.float64)
        if p.depth is None:  # which counts along the blocks of a stage
            alone = p.allowed.sum(1) == 1
            score, cost = p.scores[alone, self.fixed[alone]], p.costs[alone, self.fixed[alone]]
            self.base_score, self.base_cost = float(score.sum()), cost.sum(0)
            dear = p.costs @ prices
            spread = dear.masked_fill(~p.allowed, -math.inf).amax(1) - dear.masked_fill(
                ~p.allowed, math.inf
            ).amin(1)
            open_rows = (~alone).nonzero()[:, 0]
            open_rows = open_rows[spread[open_rows].argsort(descending=True, stable=True)]
        self.order = open_rows
        allowed, costs = p.allowed[open_rows], p.costs[open_rows]
        self.cheapest_left = _after(costs.masked_fill(~allowed[..., None], math.inf).amin(1))
        self.dearest_left = _after(costs.masked_fill(~allowed[..., None], -math.inf).amax(1))
        scores = p.scores[open_rows].masked_fill(~allowed, -math.inf)
        self.best_left = _after(scores.amax(1)[:, None])[:, 0]
        net = (p.scores - p.costs @ prices).masked_fill(~p.allowed, -math.inf)[open_rows]
        self.net_left = _after(net.amax(1)[:, None])[:, 0]
        self.known_left: tuple[Tensor, Tensor] | None = None
        if known is not None and p.depth is None:  # else a completion would have to mind the depths
            at = known[open_rows]
            self.known_left = _after(p.scores[open_rows, at][:, None])[:, 0], _after(p.costs[open_rows, at])

    def run(self, most: int | None = None) -> list[int] | None:
        """Return the best model, or with only so many states after each block a good one; None if none is."""
        p = self.problem
        need = None if p.depth is None else _needed(p.depth)
        score = torch.full((1,), self.base_score, dtype=torch.float64)
        cost = self.base_cost[None]
        kept = torch.zeros(1, dtype=torch.long)  # blocks of the present stage that are not skipped
        back: list[tuple[Tensor, Tensor]] = []
        for place, row in enumerate(self.order.tolist()):
            options = p.allowed[row].nonzero()[:, 0]
            parent = torch.arange(len(score)).repeat_interleave(len(options))
            choice = options.repeat(len(score))
            score = (score[:, None] + p.scores[row, options]).reshape(-1)
            cost = (cost[:, None] + p.costs[row, options]).flatten(0, 1)
            fits = self._may_win(place + 1, score, cost)
            if need is not None and p.depth is not None:
                starts, required = need[row]
                kept = (torch.zeros_like(kept) if starts else kept)[parent] + (choice != p.depth.zero_column)
                fits &= kept >= required
                # More than enough is no better than enough, and once a stage is over nothing depends on it.
                ends = row + 1 == len(p.rows) or need[row + 1][0]
                kept = torch.zeros_like(kept) if ends else kept.clamp_max(p.depth.blocks)
            at = fits.nonzero()[:, 0]
            at = at[_undominated(score[at], cost[at], None if need is None else kept[at])]
            if not len(at):
                return None
            if (
                most is None
                and len(at) > _MANY_STATES
                and len(self.order) > _FEW_BLOCKS
                and len(p.limits) > 1
            ):
                most = _FEW_STATES
                gap = float(self.net_left[0] + self.base_score + (p.limits - self.base_cost) @ self.prices)
                _LOG.warning(
                    "several constraints bind at once over %d blocks: the derived model may have a "
                    "log-probability up to %.2g below the most probable one's", len(p.rows), gap - self.floor
                )  # fmt: skip
            if most is not None and len(at) > most:
                at = at[(score[at] - cost[at] @ self.prices).argsort(descending=True, stable=True)[:most]]
            if len(at) > _MOST_STATES:
                raise DataError(
                    f"the constraints leave over {_MOST_STATES:,} models to compare: drop one of them"
                )
            score, cost, kept = score[at], cost[at], kept if need is None else kept[at]
            back.append((parent[at], choice[at]))
            self._raise_floor(place + 1, score, cost)
        found = self.fixed.tolist()
        for row, choice_there in zip(self.order.tolist(), _traced(back, _first(score, cost)), strict=True):
            found[row] = choice_there
        return found

    def _may_win(self, place: int, score: Tensor, cost: Tensor) -> Tensor:
        """Return which states have a completion within the limits that may reach the floor."""
        p = self.problem
        fits = (cost + self.cheapest_left[place] <= p.limits).all(1)
        if self.floor > -math.inf:
            left = p.limits - cost
            # What is left of the limits with the dearest completion is paid for nothing.
            wasted = (left - self.dearest_left[place]).clamp_min(0.0)
            fits &= score + self.net_left[place] + (left - wasted) @ self.prices >= self.floor
            fits &= score + self.best_left[place] >= self.floor
        return fits

    def _raise_floor(self, place: int, score: Tensor, cost: Tensor) -> None:
        """Complete the states as the known model goes on; the best that fits may be better than it."""
        if self.known_left is None:
            return
        scores, costs = self.known_left
        fits = (cost + costs[place] <= self.problem.tight).all(1)
        if fits.any():
            best = float((score + scores[place])[fits].max())
            self.floor = max(self.floor, best - _ROUNDING * (abs(best) + abs(self.base_score)))


def _first(score: Tensor, cost: Tensor) -> int:
    """Return the place of the best state; of equals the cheapest by the first constraint."""
    order = cost[:, 0].argsort(stable=True) if cost.shape[1] else torch.arange(len(score))
    return int(order[score[order].argsort(descending=True, stable=True)[0]])


def _traced(back: Sequence[tuple[Tensor, Tensor]], at: int) -> list[int]:
    """Return the choices that led to a state, from each block's states' parents and choices."""
    choices = []
    for parent, choice in reversed(back):
        choices.append(int(choice[at]))
        at = int(parent[at])
    return choices[::-1]


def _after(rows: Tensor) -> Tensor:
    """Return, for each block, the sum of the rows of all later ones: [blocks + 1, ...]."""
    tail = rows.flip(0).cumsum(0).flip(0)
    return torch.cat([tail, torch.zeros_like(tail[:1])])


def _needed(depth: MinDepth) -> list[tuple[bool, int]]:
    """Return for each block whether a stage starts there, and how many of its blocks so far must not be Zero.

    The count is that which leaves the stage a chance: what the later blocks of the stage cannot make up for.
    """
    found, stages = [], depth.stages
    for i, stage in enumerate(stages):
        later = stages[i + 1 :].count(stage)
        required = max(0, min(depth.blocks, stages.count(stage)) - later)
        found.append((i == 0 or stages[i - 1] != stage, required))
    return found


def _undominated(score: Tensor, cost: Tensor, depth: Tensor | None) -> Tensor:
    """Return the places of the states that no other one beats in every respect."""
    n = len(score)
    if n <= 1:
        return torch.arange(n)
    keys = cost if depth is None else torch.cat([cost, -depth[:, None].double()], 1)
    # From the most probable down (of equals the cheaper first): what is cheaper than all before stays.
    order = torch.arange(n)
    for k in reversed(range(keys.shape[1])):
        order = order[keys[order, k].argsort(stable=True)]
    order = order[score[order].argsort(descending=True, stable=True)]
    if keys.shape[1] == 1:
        sorted_cost = keys[order, 0]
        lowest = torch.cat([sorted_cost.new_full((1,), math.inf), sorted_cost.cummin(0).values[:-1]])
        return order[sorted_cost < lowest]
    return order[_front(keys[order])]


def _front(keys: Tensor) -> Tensor:
    """Return the rows that no earlier row beats or equals in every column; by blocks, to bound the work."""
    kept = keys[:0]
    places: list[Tensor] = []
    for start in range(0, len(keys), 512):
        block = keys[start : start + 512]
        alive = torch.ones(len(block), dtype=torch.bool)
        for part in kept.split(4096):
            alive &= ~(part[None] <= block[:, None]).all(2).any(1)
        inside = (block[None] <= block[:, None]).all(2).tril(-1)
        alive &= ~(inside & alive[None]).any(1)
        kept = torch.cat([kept, block[alive]])
        places.append(start + alive.nonzero()[:, 0])
    return torch.cat(places)
