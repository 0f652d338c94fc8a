"""The most probable model within the constraints, found exactly, and a plain model out of a supernet.

The most probable candidate of each block (what the original code derives) may well cost too much together.
Here the product of the probabilities is maximised over all models that meet every budget: a knapsack problem
with one choice a block, solved by dynamic programming over the blocks.

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
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from ..arch.arch import Arch
from ..arch.ops import ZERO
from ..arch.space import SearchSpace
from ..errors import DataError
from ..models.batchnorm import recalibrate
from ..models.proxylessnas import ProxylessNAS
from .constraints import Constraint, Costs, check_reachable, latency_costs, size_costs
from .settings import DeriveSettings

if TYPE_CHECKING:
    from ..latency.table import LatencyTable
    from .supernet import SuperNet


_MOST_STATES = 2_000_000


class Infeasible(DataError):
    """No model meets all budgets."""


def rules_of(space: SearchSpace, least_depth: int) -> dict[str, Any]:
    """Return what :func:`most_probable_within` needs to know of a space to keep its stages deep enough.

    Args:
        space: the models to choose from.
        least_depth: blocks of each stage that may not be skipped at least.
    """
    return {
        "stages": [p.stage for p in space.search_blocks],
        "zero_column": space.candidate_ops.index(ZERO) if ZERO in space.candidate_ops else None,
        "least_depth": least_depth,
    }


def most_probable_within(
    log_probs: Tensor,
    constraints: Sequence[Constraint],
    *,
    stages: Sequence[int] | None = None,
    zero_column: int | None = None,
    least_depth: int = 0,
) -> list[int]:
    """Return the picks of the most probable model that meets every budget.

    After each block, the states are the sums (log-probability, one cost a budget) that some choice of the
    blocks so far has. A state is dropped if another one is no less probable and costs no more in any budget,
    or if the cheapest completion breaks a budget, or if the best completion stays below a model that is known
    to fit. What is left at the end holds an optimum; nothing is rounded.

    Args:
        log_probs: [blocks, candidates], -inf for candidates that a block does not have.
        constraints: limits; with none, the most probable candidate of each block wins.
        stages: stage of each block, for ``least_depth``.
        zero_column: the candidate that skips its block.
        least_depth: blocks of each stage that may not be skipped at least, where it has as many.

    Returns:
        One candidate a block. Of equally probable models it is the cheapest by the first budget.

    Raises:
        Infeasible: no model meets all budgets together.
    """
    scores = log_probs.detach().to("cpu", torch.float64)
    if not constraints and not least_depth:
        return scores.argmax(1).tolist()
    # Sums of the same numbers in another order differ in their last digits. So limits get a hair more, and in
    # the rare case that the model found is dearer than they are, a hair less.
    for slack in (1e-9, -1e-9):
        choices = _solve(scores, constraints, slack, stages, zero_column, least_depth)
        if all(b.costs.of(choices) <= b.limit for b in constraints):
            return choices
    raise Infeasible(_why(constraints, least_depth))


def _solve(
    scores: Tensor,
    constraints: Sequence[Constraint],
    slack: float,
    stages: Sequence[int] | None,
    zero_column: int | None,
    least_depth: int,
) -> list[int]:
    """Do what :func:`most_probable_within` says, with limits that are off by a share."""
    blocks = len(scores)
    costs = (
        torch.stack([b.costs.table for b in constraints], -1)
        if constraints
        else torch.zeros(*scores.shape, 0)
    )
    limits = torch.tensor(
        [b.limit - b.costs.fixed + slack * abs(b.limit) for b in constraints], dtype=torch.float64
    )
    allowed = scores > -math.inf
    spread = costs.masked_fill(~allowed[..., None], math.inf).amin(1)
    cheapest_left = _after(spread)
    best_left = _after(scores.amax(1)[:, None])[:, 0]
    need = _needed(stages, zero_column, least_depth, allowed)
    score = torch.zeros(1, dtype=torch.float64)
    cost, depth = torch.zeros(1, len(constraints), dtype=torch.float64), torch.zeros(1, dtype=torch.long)
    back: list[tuple[Tensor, Tensor]] = []
    floor = -math.inf
    for i in range(blocks):
        options = allowed[i].nonzero()[:, 0]
        n = len(score)
        score = (score[:, None] + scores[i, options]).reshape(-1)
        cost = (cost[:, None] + costs[i, options]).flatten(0, 1)
        parent = torch.arange(n).repeat_interleave(len(options))
        choice = options.repeat(n)
        fits = (cost + cheapest_left[i + 1] <= limits).all(1)
        if need is not None:
            starts, required = need[i]
            depth = (torch.zeros_like(depth) if starts else depth)[parent] + (choice != zero_column)
            fits &= depth >= required
            # More than enough is no better than enough, and once a stage is over nothing depends on it.
            ends = i + 1 == blocks or need[i + 1][0]
            depth = torch.zeros_like(depth) if ends else depth.clamp_max(least_depth)
        else:
            depth = depth[parent]
        fits &= score + best_left[i + 1] >= floor
        kept = fits.nonzero()[:, 0]
        kept = kept[_undominated(score[kept], cost[kept], depth[kept] if need is not None else None)]
        if not len(kept):
            raise Infeasible(_why(constraints, least_depth))
        if len(kept) > _MOST_STATES:
            raise DataError(f"the budgets leave over {_MOST_STATES:,} models to compare: drop one of them")
        score, cost, depth = score[kept], cost[kept], depth[kept]
        back.append((parent[kept], choice[kept]))
        floor = max(floor, _greedy_floor(i, score, cost, scores, costs, limits, cheapest_left, need))
    # Among equals the cheapest: sort by cost first, then (stably) by probability.
    order = torch.arange(len(score))
    if constraints:
        order = order[cost[:, 0].argsort(stable=True)]
    order = order[score[order].argsort(descending=True, stable=True)]
    at, choices = int(order[0]), []
    for parent, choice in reversed(back):
        choices.append(int(choice[at]))
        at = int(parent[at])
    return choices[::-1]


def _after(rows: Tensor) -> Tensor:
    """Return, for each block, the sum of the rows of all later ones: [blocks + 1, ...]."""
    tail = rows.flip(0).cumsum(0).flip(0)
    return torch.cat([tail, torch.zeros_like(tail[:1])])


def _needed(
    stages: Sequence[int] | None, zero: int | None, least: int, allowed: Tensor
) -> list[tuple[bool, int]] | None:
    """Return for each block whether a stage starts there, and how many of its blocks so far must not be Zero.

    The count is that which leaves the stage a chance: what the later blocks of the stage cannot make up for.
    """
    if not least or zero is None or stages is None:
        return None
    found = []
    for i, stage in enumerate(stages):
        later = sum(1 for s in stages[i + 1 :] if s == stage)
        size = sum(1 for s in stages if s == stage)
        found.append((i == 0 or stages[i - 1] != stage, max(0, min(least, size) - later)))
    return found


def _undominated(score: Tensor, cost: Tensor, depth: Tensor | None) -> Tensor:
    """Return the places of the states that no other one beats in every respect."""
    n = len(score)
    if n <= 1:
        return torch.arange(n)
    columns = [cost] if depth is None else [cost, -depth[:, None].double()]
    keys = torch.cat(columns, 1)
    if keys.shape[1] == 0:
        return score.argmax()[None]
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


def _greedy_floor(
    i: int,
    score: Tensor,
    cost: Tensor,
    scores: Tensor,
    costs: Tensor,
    limits: Tensor,
    cheapest_left: Tensor,
    need: object,
) -> float:
    """Return the log-probability of a model that fits: the best state completed greedily. -inf if unknown."""
    if need is not None:
        return -math.inf  # the completion would have to mind the depths
    at = int(score.argmax())
    total, spent = float(score[at]), cost[at].clone()
    for j in range(i + 1, len(scores)):
        fits = (spent + costs[j] + cheapest_left[j + 1] <= limits).all(1)
        options = scores[j].masked_fill(~fits, -math.inf)
        k = int(options.argmax())
        if options[k] == -math.inf:
            return -math.inf
        total, spent = total + float(options[k]), spent + costs[j, k]
    return total - 1e-9


def _why(constraints: Sequence[Constraint], least_depth: int) -> str:
    wanted = [f"{b.costs.name} of at most {b.costs.show(b.limit)}" for b in constraints]
    if least_depth:
        wanted.append(f"at least {least_depth} blocks a stage")
    ranges = ", ".join(
        f"{b.costs.name} from {b.costs.show(b.costs.range()[0])} to {b.costs.show(b.costs.range()[1])}"
        for b in constraints
    )
    return f"no model of this space meets: {' and '.join(wanted)} (it has {ranges})"


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
    choices = within(log_probs, constraints, asked.least_share, **rules_of(supernet.space, asked.min_depth))
    child = supernet.child(choices, name=name)
    if calibration is not None:
        recalibrate(child, calibration, sys.maxsize)
    return cast(Arch, child.arch), child


def _loaded(table: LatencyTable | str | Path) -> LatencyTable:
    from ..latency.table import LatencyTable

    return table if isinstance(table, LatencyTable) else LatencyTable.load(table)


def within(
    log_probs: Tensor, constraints: Sequence[Constraint], least_share: float, **rules: Any
) -> list[int]:
    """Return the most probable model within the budgets that uses at least a share of the first one.

    If the most probable model within the budgets uses less, candidates' scores are raised by a multiple of
    their cost, as small a one as will do. That model keeps to the budgets exactly, while the share is met
    where any model near the limit does; it need not be the most probable of those that meet both. (Upper and
    lower limit together would leave nearly all models to be compared.)

    Args:
        log_probs: [blocks, candidates], -inf for candidates that a block does not have.
        constraints: limits.
        least_share: 0 to 1.
        rules: ``stages``, ``zero_column`` and ``least_depth`` of :func:`~.knapsack.most_probable_within`.

    Raises:
        Infeasible: no model meets the budgets.
    """
    best = most_probable_within(log_probs, constraints, **rules)
    if not constraints:
        return best
    first = constraints[0]
    floor = least_share * first.limit
    if first.costs.of(best) >= floor:
        return best
    tilt = first.costs.table / first.limit
    dearest = _tilted(log_probs, tilt, 1e6, constraints, rules)
    if first.costs.of(dearest) < floor:
        return dearest  # nothing within the budgets uses as much
    low, high, found = 0.0, 1e6, dearest
    for _ in range(30):
        middle = high / 4 if low == 0.0 else (low + high) / 2
        choices = _tilted(log_probs, tilt, middle, constraints, rules)
        if first.costs.of(choices) >= floor:
            high, found = middle, choices
        else:
            low = middle
        if high - low < 1e-3 * high:
            break
    return found


def _tilted(
    log_probs: Tensor, tilt: Tensor, strength: float, constraints: Sequence[Constraint], rules: dict[str, Any]
) -> list[int]:
    return most_probable_within(log_probs.detach().double() + strength * tilt, constraints, **rules)
