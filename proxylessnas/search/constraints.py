"""What models cost: milliseconds, multiply-accumulates, parameters; each a sum over blocks.

A budget is a table of costs and a limit. Nothing here knows what the candidates are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import DataError

if TYPE_CHECKING:
    from ..arch.space import SearchSpace
    from ..latency.table import LatencyTable
    from .supernet import SuperNet


@dataclass(frozen=True, eq=False)
class Costs:
    """What each candidate costs.

    Attributes:
        name: "latency", "macs" or "params".
        unit: "ms", "M" (millions).
        table: float64 [blocks, candidates]; 0 for Zero, and where the block has no such candidate.
        fixed: what every model has.
        mask: bool [blocks, candidates].
        exact: whether a model's cost is the sum exactly (latency is measured, and only nearly so).
    """

    name: str
    unit: str
    table: Tensor
    fixed: float
    mask: Tensor
    exact: bool = True

    def of(self, choices: Sequence[int]) -> float:
        """Return the cost of one model."""
        rows = self.table[torch.arange(len(choices)), torch.as_tensor(list(choices), dtype=torch.long)]
        return math.fsum([self.fixed, *rows.tolist()])

    def cheapest(self) -> list[int]:
        """Return the picks of the cheapest model."""
        return self.table.masked_fill(~self.mask, math.inf).argmin(1).tolist()

    def dearest(self) -> list[int]:
        """Return the picks of the dearest model."""
        return self.table.masked_fill(~self.mask, -math.inf).argmax(1).tolist()

    def range(self) -> tuple[float, float]:
        """Return the costs of the cheapest and of the dearest model."""
        return self.of(self.cheapest()), self.of(self.dearest())

    def show(self, value: float) -> str:
        """Return a cost as text."""
        return f"{value:.3g} {self.unit}" if value < 10 else f"{value:.1f} {self.unit}"


@dataclass(frozen=True)
class Constraint:
    """A limit on one kind of cost.

    Attributes:
        costs: what is limited.
        limit: the most a model may cost, in the costs' unit.
    """

    costs: Costs
    limit: float


def latency_costs(table: LatencyTable, space: SearchSpace) -> Costs:
    """Return the latencies of a space's candidates, in ms.

    Raises:
        LatencyKeyError: the table lacks one.
    """
    costs, fixed = table.costs(space)
    return Costs("latency", "ms", costs.double(), float(fixed), torch.tensor(space.mask), exact=False)


def size_costs(supernet: SuperNet) -> dict[str, Costs]:
    """Return multiply-accumulates (at the space's resolution) and parameters, in millions.

    Both are counted on the modules themselves, so that registered operations count too.
    """
    from ..models.profile import profile

    space, mask = supernet.space, torch.tensor(supernet.space.mask)
    macs = torch.zeros(mask.shape, dtype=torch.float64)
    params = torch.zeros(mask.shape, dtype=torch.float64)
    seen: dict[tuple[object, ...], tuple[int, int]] = {}
    for i, (mixed_op, search_block) in enumerate(zip(supernet.mixed_ops, space.search_blocks, strict=True)):
        for k, column in enumerate(space.candidate_ops):
            op = mixed_op.op(k) if mixed_op.allowed[k] else None
            if op is None:
                continue
            key = (
                column,
                search_block.in_channels,
                search_block.out_channels,
                search_block.in_size,
                search_block.stride,
            )
            if key not in seen:
                counted = profile(op, (search_block.in_channels, search_block.in_size, search_block.in_size))
                seen[key] = (counted.macs, counted.params)
            macs[i, k], params[i, k] = (n / 1e6 for n in seen[key])
    # A whole model tells what is left for stem, last layers and classifier.
    path = supernet.path
    try:
        supernet.set_path(supernet.alphas.most_probable())
        child = supernet.child()
        choices = supernet.path
    finally:
        supernet.set_path(path)
    whole = profile(child, (space.in_channels, space.resolution, space.resolution))
    found = {}
    for name, table, total in (("macs", macs, whole.macs), ("params", params, whole.params)):
        bare = Costs(name, "M", table, 0.0, mask)
        found[name] = Costs(name, "M", table, total / 1e6 - bare.of(choices), mask)
    return found


def check_reachable(constraints: Sequence[Constraint]) -> None:
    """Refuse limits outside of what the models of the space cost.

    Raises:
        DataError: no model meets a limit, or every model does; the message says what can be reached.
    """
    for constraint in constraints:
        low, high = constraint.costs.range()
        if not constraint.limit > 0 or not math.isfinite(constraint.limit):
            raise DataError(f"a target must be a number above 0, not {constraint.limit}")
        show, name = constraint.costs.show, constraint.costs.name
        reach = f"they go from {show(low)} to {show(high)}"
        if constraint.limit < low:
            raise DataError(
                f"no model of this space keeps to {name} {show(constraint.limit)}: {reach}; choose a target in "
                "between, or a narrower space"
            )
        if constraint.limit > high:
            raise DataError(
                f"every model of this space keeps to {name} {show(constraint.limit)}: {reach}; choose a target in "
                "between, leave it out, or choose a wider space"
            )
