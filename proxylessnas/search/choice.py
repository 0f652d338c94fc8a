"""One searched block: several candidates, of which one path is taken at a time."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .gates import echo
from .quick import Moments, output


class Choice(nn.Module):
    """A block that is one of several candidates; what they are does not matter here.

    With ``gates`` unset it runs the candidate ``active`` and nothing else, at the cost of that candidate. In
    an arch step it also gives the gates their gradient.

    Args:
        candidates: one module a column of the space; None is Zero, which leaves out the block (its input is
            its output), and False a column this block does not have.
        shortcut: whether the block's input is added to its candidate's output.

    Attributes:
        active: index of the sampled candidate.
        gates: row of gates [candidates] in an arch step, else None.
        others: candidates that the gates' gradient is wanted for, besides the active one.
        store: compute the others in the forward pass and keep their outputs (the mode "full" of the original
            code: faster where launching work costs more than memory), instead of in the backward pass.
    """

    def __init__(self, candidates: Sequence[nn.Module | bool | None], shortcut: bool) -> None:
        super().__init__()
        self.candidates = nn.ModuleList(
            op if isinstance(op, nn.Module) else nn.Identity() for op in candidates
        )
        # A plain tuple is quicker than a ModuleList, and is looked into for every block in every step.
        self._ops = tuple(op if isinstance(op, nn.Module) else None for op in candidates)
        self.allowed = tuple(op is not False for op in candidates)
        self.shortcut = shortcut
        self.active = next(k for k, ok in enumerate(self.allowed) if ok)
        self.gates: Tensor | None = None
        self.others: tuple[int, ...] = ()
        self.store = False

    def op(self, index: int) -> nn.Module | None:
        """Return a candidate; None for Zero."""
        if not self.allowed[index]:
            raise IndexError(f"this block has no candidate {index}")
        return self._ops[index]

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, H, W] to what the active candidate makes of it."""
        op = self._ops[self.active]
        if self.gates is None:
            if op is None:
                return x
            y = op(x)
            return x + y if self.shortcut else y
        return self._gated(x, op)

    def _gated(self, x: Tensor, op: nn.Module | None) -> Tensor:
        assert self.gates is not None
        moments = Moments()
        wanted = [
            (k, functools.partial(output, o, moments=moments))
            for k in self.others
            if (o := self._ops[k]) is not None
        ]
        y = None if op is None else op(x)
        if self.store:
            with torch.no_grad():
                stored = [(k, o(x)) for k, o in wanted]
            y = echo(x, y, self.gates, self.active, (), stored)
        else:
            y = echo(x, y, self.gates, self.active, wanted)
        return x + y if self.shortcut and op is not None else y
