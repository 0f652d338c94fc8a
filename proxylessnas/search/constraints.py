"""What models cost (milliseconds, multiply-accumulates, parameters), and the limits a derived model keeps to.

A model's cost is a sum over its blocks. Nothing here knows what the candidates are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..arch.ops import ZERO
from ..arch.spaces import as_chain
from ..errors import DataError

if TYPE_CHECKING:
    from ..arch.space_base import Space
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
    """

    name: str
    unit: str
    table: Tensor
    fixed: float
    mask: Tensor

    def of(self, choices: Sequence[int]) -> float:
        """Return the cost of one model."""
        rows = self.table[torch.arange(len(choices)), torch.as_tensor(list(choices), dtype=torch.long)]
        return math.fsum([self.fixed, *rows.tolist()])

    def cheapest(self) -> list[int]:
        """Return the choices of the cheapest model."""
        return self.table.masked_fill(~self.mask, math.inf).argmin(1).tolist()

    def most_expensive(self) -> list[int]:
        """Return the choices of the most expensive model."""
        return self.table.masked_fill(~self.mask, -math.inf).argmax(1).tolist()

    def range(self) -> tuple[float, float]:
        """Return the costs of the cheapest and of the most expensive model."""
        return self.of(self.cheapest()), self.of(self.most_expensive())

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


@dataclass(frozen=True)
class MinDepth:
    """The least number of blocks that a model keeps in each stage (all of them where a stage has fewer).

    Attributes:
        stages: stage of each block.
        zero_column: the candidate that skips its block.
        blocks: how many blocks of a stage may not be skipped.
    """

    stages: tuple[int, ...]
    zero_column: int
    blocks: int

    @classmethod
    def of(cls, space: Space, blocks: int) -> MinDepth | None:
        """Return the rule for the models of a space; None where they keep it anyway."""
        zero = zero_column(space)
        if not blocks or zero is None:
            return None
        return cls(tuple(block.stage for block in space.search_blocks), zero, blocks)

    def is_kept(self, choices: Sequence[int]) -> bool:
        """Return whether a model is deep enough."""
        for stage in set(self.stages):
            own = [choice for choice, s in zip(choices, self.stages, strict=True) if s == stage]
            if sum(choice != self.zero_column for choice in own) < min(self.blocks, len(own)):
                return False
        return True


def zero_column(space: Space) -> int | None:
    """Return the candidate that skips its block; None if the space has none."""
    return space.candidate_ops.index(ZERO) if ZERO in space.candidate_ops else None


def latency_costs(table: LatencyTable, space: Space) -> Costs:
    """Return the latencies of a space's candidates, in ms.

    Raises:
        LatencyKeyError: the table lacks one.
        ArchError: no table holds the candidates of this kind of space.
    """
    costs, fixed = table.costs(as_chain(space))
    return Costs("latency", "ms", costs.double(), float(fixed), torch.tensor(space.mask))


def size_costs(supernet: SuperNet) -> dict[str, Costs]:
    """Return multiply-accumulates (at the space's resolution) and parameters, in millions.

    Both are counted on the modules themselves, so that registered operations count too.
    """
    from ..models.profile import profile

    space, mask = supernet.space, torch.tensor(supernet.space.mask)
    tables = torch.zeros(2, *mask.shape, dtype=torch.float64)
    seen: dict[tuple[object, ...], list[float]] = {}
    for i, (mixed_op, block) in enumerate(zip(supernet.mixed_ops, space.search_blocks, strict=True)):
        for k, name in enumerate(space.candidate_ops):
            op = mixed_op.op(k) if mixed_op.allowed[k] else None
            if op is None:
                continue
            key = (name, block.in_channels, block.out_channels, block.in_size, block.stride)
            if key not in seen:
                counted = profile(op, (block.in_channels, block.in_size, block.in_size))
                seen[key] = [counted.macs / 1e6, counted.params / 1e6]
            tables[:, i, k] = torch.tensor(seen[key], dtype=torch.float64)
    # A whole model tells what is left for stem, last layers and classifier.
    choices = supernet.alphas.most_probable()
    whole = profile(supernet.child(choices), (space.in_channels, space.resolution, space.resolution))
    found = {}
    for name, table, total in zip(("macs", "params"), tables, (whole.macs, whole.params), strict=True):
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
                f"no model of this space keeps to {name} {show(constraint.limit)}: {reach}; choose a target "
                "in between, or a narrower space"
            )
        if constraint.limit > high:
            raise DataError(
                f"every model of this space keeps to {name} {show(constraint.limit)}: {reach}; choose a "
                "target in between, leave it out, or choose a wider space"
            )
