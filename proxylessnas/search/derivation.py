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
from .solver import Problem

if TYPE_CHECKING:
    from ..latency.table import LatencyTable
    from .supernet import SuperNet


_WEAKEST, _STRONGEST = 1e-6, 1e6  # multiples of the cost at which nothing else, or nothing but it matters


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
    low, high = _least_weight(scores, tilt, first, wanted)
    alone = len(constraints) == 1 and depth is None
    if not alone:  # another constraint may make a model cheaper, or more expensive
        low, high = 0.0, max(high, 1.0)
    while first.of(found := _within_limits(scores + high * tilt, constraints, depth)) < wanted:
        if high >= _STRONGEST:
            return best  # nothing within the constraints uses as much
        low, high, alone = high, min(4.0 * high, _STRONGEST), False
    if alone:  # below that weight the constraint does not matter, and the share is not met
        return found
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


def _least_weight(scores: Tensor, tilt: Tensor, costs: Costs, wanted: float) -> tuple[float, float]:
    """Return two neighbouring weights of the cost: with the second, models of any cost use what is wanted."""

    def uses(weight: float) -> bool:
        return costs.of((scores + weight * tilt).argmax(1).tolist()) >= wanted

    low, high = 0.0, _WEAKEST
    while high < _STRONGEST and not uses(high):
        low, high = high, min(4.0 * high, _STRONGEST)
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if uses(middle) else (middle, high)
    return low, high


def _within_limits(scores: Tensor, constraints: Sequence[Constraint], depth: MinDepth | None) -> list[int]:
    """Return the model of the highest score within the constraints."""
    if not constraints and depth is None:
        return scores.argmax(1).tolist()
    # Sums of the same numbers in another order differ in their last digits. So limits get a hair more, and in
    # the rare case that the model found is more expensive than they are, a hair less.
    for slack in (1e-9, -1e-9):
        choices = Problem(scores, constraints, slack, depth).solve()
        if choices is None:
            break
        if all(b.costs.of(choices) <= b.limit for b in constraints):
            return choices
    raise Infeasible(_why(constraints, depth))


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
