"""The most probable model within the constraints, found exactly, and a plain model out of a supernet.

The most probable candidate of each block (what the original code derives) may well cost too much together.
Here the product of the probabilities is maximised over all models that meet every constraint: a knapsack
problem with one choice a block, solved by dynamic programming over the blocks.

By predicted costs: what a search ends with is measured too, and chosen by ``choose`` in :mod:`.evaluate`.

>>> from proxylessnas.search import DeriveSettings, SuperNet, derive
>>> from proxylessnas.arch.spaces import read_space
>>> arch, model = derive(SuperNet(read_space("tiny")), DeriveSettings(target_macs_m=1.5))
>>> model.num_classes
10
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from ..arch.arch import Arch
from ..errors import DataError
from ..models.batchnorm import recalibrate
from ..models.proxylessnas import ProxylessNAS
from .constraints import Constraint, Costs, MinDepth, check_reachable, latency_costs, size_costs
from .settings import DeriveSettings

if TYPE_CHECKING:
    from ..latency.table import LatencyTable
    from .supernet import SuperNet


_MOST_STATES = 2_000_000
_STRONGEST = 1e6  # multiple of the cost at which probabilities do not matter any more


class Infeasible(DataError):
    """No model meets all constraints."""


def most_probable(
    log_probs: Tensor,
    constraints: Sequence[Constraint],
    *,
    min_utilization: float = 0.0,
    depth: MinDepth | None = None,
) -> list[int]:
    """Return the choices of the most probable model that meets every constraint.

    If it uses less than ``min_utilization`` of the first limit, candidates' scores are raised by a multiple
    of their cost, as small a one as will do. That model keeps to the constraints exactly, while the share is
    met where any model near the limit does; it need not be the most probable of those that meet both. (Upper
    and lower limit together would leave nearly all models to be compared.)

    Args:
        log_probs: [blocks, candidates], -inf for candidates that a block does not have.
        constraints: limits; with none, the most probable candidate of each block wins.
        min_utilization: share of the first limit to use at least, 0 to 1.
        depth: how many blocks a model has to keep.

    Returns:
        One candidate a block. Of equally probable models it is the cheapest by the first constraint.

    Raises:
        Infeasible: no model meets all constraints together.
    """
    scores = log_probs.detach().to("cpu", torch.float64)
    best = _within_limits(scores, constraints, depth)
    if not constraints or not min_utilization:
        return best
    first = constraints[0].costs
    wanted = min_utilization * constraints[0].limit
    if first.of(best) >= wanted:
        return best
    tilt = first.table / constraints[0].limit
    found = _within_limits(scores + _STRONGEST * tilt, constraints, depth)
    if first.of(found) < wanted:
        return found  # nothing within the constraints uses as much
    low, high = 0.0, _STRONGEST
    for _ in range(30):
        middle = high / 4 if low == 0.0 else (low + high) / 2
        choices = _within_limits(scores + middle * tilt, constraints, depth)
        if first.of(choices) >= wanted:
            high, found = middle, choices
        else:
            low = middle
        if high - low < 1e-3 * high:
            break
    return found


def _within_limits(scores: Tensor, constraints: Sequence[Constraint], depth: MinDepth | None) -> list[int]:
    """Return the model of the highest score within the constraints.

    After each block, the states are the sums (score, one cost a constraint) that some choice of the blocks so
    far has. A state is dropped if another one has no lower score and costs no more by any constraint, or if
    the cheapest completion breaks a constraint, or if the best completion stays below a model that is known
    to fit. What is left at the end holds an optimum; nothing is rounded.
    """
    if not constraints and depth is None:
        return scores.argmax(1).tolist()
    # Sums of the same numbers in another order differ in their last digits. So limits get a hair more, and in
    # the rare case that the model found is more expensive than they are, a hair less.
    for slack in (1e-9, -1e-9):
        choices = _Problem(scores, constraints, slack, depth).solve()
        if choices is None:
            break
        if all(b.costs.of(choices) <= b.limit for b in constraints):
            return choices
    raise Infeasible(_why(constraints, depth))


class _Problem:
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
            if len(at) > _MOST_STATES:
                raise DataError(
                    f"the constraints leave over {_MOST_STATES:,} models to compare: drop one of them"
                )
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


def _why(constraints: Sequence[Constraint], depth: MinDepth | None) -> str:
    wanted = [f"{b.costs.name} of at most {b.costs.show(b.limit)}" for b in constraints]
    if depth is not None:
        wanted.append(f"at least {depth.blocks} blocks a stage")
    ranges = [(b.costs, *b.costs.range()) for b in constraints]
    reach = ", ".join(f"{c.name} from {c.show(low)} to {c.show(high)}" for c, low, high in ranges)
    return f"no model of this space meets: {' and '.join(wanted)} (it has {reach})"


def derive(
    supernet: SuperNet,
    settings: DeriveSettings | None = None,
    *,
    table: LatencyTable | str | Path | None = None,
    calibration: Iterable[Tensor] | None = None,
    name: str = "derived",
) -> tuple[Arch, ProxylessNAS]:
    """Return the most probable model of a supernet that meets every target, with the weights it inherits.

    Args:
        supernet: its alphas say what is probable; it stays as it is.
        settings: what the model may cost; None takes the most probable one.
        table: latencies of its space on the target device; needed for ``target_ms``.
        calibration: batches of training inputs [N, C, H, W] to compute the BatchNorm statistics of the model
            anew from, all of them. Without, it keeps the supernet's, which are a mixture over all models, and
            its logits are those of the supernet on this path.
        name: of the model.

    Returns:
        The architecture, and the model: a plain module on the supernet's device that shares no memory with
            it.

    Raises:
        DataError: no model meets the targets, or a target cannot be reached at all; says what can be.
        LatencyError, LatencyKeyError: there is no such table, or it does not cover the space.
    """
    asked = settings or DeriveSettings()
    costs: dict[str, Costs] = size_costs(supernet)
    if asked.target_ms is not None:
        if table is None:
            raise DataError("a target in milliseconds needs a latency table of the device: give one as table")
        costs["latency"] = latency_costs(_loaded(table), supernet.space)
    wanted = {
        "latency": asked.target_ms, "macs": asked.target_macs_m, "params": asked.target_params_m
    }  # fmt: skip
    constraints = [Constraint(costs[kind], limit) for kind, limit in wanted.items() if limit is not None]
    check_reachable(constraints)
    log_probs = supernet.alphas.log_probs().detach()
    depth = MinDepth.of(supernet.space, asked.min_depth)
    choices = most_probable(log_probs, constraints, min_utilization=asked.least_share, depth=depth)
    child = supernet.child(choices, name=name)
    if calibration is not None:
        recalibrate(child, calibration, sys.maxsize)
    return cast(Arch, child.arch), child


def _loaded(table: LatencyTable | str | Path) -> LatencyTable:
    from ..latency.table import LatencyTable

    return table if isinstance(table, LatencyTable) else LatencyTable.load(table)
