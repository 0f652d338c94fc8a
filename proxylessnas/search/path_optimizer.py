"""Which weights belong to which path, so that a step touches those of its own path and no others.

The optimiser of a search knows every weight, but in a step its groups list the active ones only. So zeroing,
clipping, exchanging and updating cost what they cost for a plain model, however many candidates there are;
and a candidate that is not on the path gets neither weight decay nor momentum (as published).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..utils.distributed import Processes
    from .supernet import SuperNet


class PathParameters:
    """Chooses the parameters an optimiser sees.

    Args:
        supernet: the model.
        optimizer: over all of its weights.
    """

    def __init__(self, supernet: SuperNet, optimizer: torch.optim.Optimizer) -> None:
        self.supernet, self.optimizer = supernet, optimizer
        self._all = [list(group["params"]) for group in optimizer.param_groups]
        group_of = {id(p): g for g, params in enumerate(self._all) for p in params}
        own: set[int] = set()
        self._of: list[list[list[list[Tensor]]]] = []  # [block][candidate][group] -> parameters
        for mixed_op in supernet.mixed_ops:
            row = []
            for k, allowed in enumerate(mixed_op.allowed):
                op = mixed_op.op(k) if allowed else None
                params = [] if op is None else list(op.parameters())
                own.update(map(id, params))
                row.append(_grouped(params, group_of, len(self._all)))
            self._of.append(row)
        self._shared = [[p for p in params if id(p) not in own] for params in self._all]

    def of_path(self) -> list[list[Tensor]]:
        """Return the parameters of the present path, by group."""
        groups = [list(params) for params in self._shared]
        for row, mixed_op in zip(self._of, self.supernet.mixed_ops, strict=True):
            for group, params in zip(groups, row[mixed_op.active], strict=True):
                group += params
        return groups

    @contextlib.contextmanager
    def selected(self) -> Iterator[list[Tensor]]:
        """Let the optimiser see the present path's parameters only; their gradients are gone afterwards."""
        groups = self.of_path()
        active = [p for params in groups for p in params]
        self._prepare(groups)
        try:
            for group, params in zip(self.optimizer.param_groups, groups, strict=True):
                group["params"] = params
            yield active
        finally:
            for group, params in zip(self.optimizer.param_groups, self._all, strict=True):
                group["params"] = params
            for p in active:
                p.grad = None

    def _prepare(self, groups: Sequence[Sequence[Tensor]]) -> None:
        """Start the momentum of weights that are active for the first time.

        The fused kernel of SGD wants it for all of its parameters or for none. Zero is what it starts from.
        """
        if not isinstance(self.optimizer, torch.optim.SGD):
            return
        state = self.optimizer.state
        for group, params in zip(self.optimizer.param_groups, groups, strict=True):
            if group["momentum"]:
                for p in params:
                    if p not in state:
                        state[p]["momentum_buffer"] = torch.zeros_like(p)

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Compute no gradients for the present path's weights: an arch step would drop them."""
        active = [p for params in self.of_path() for p in params if p.requires_grad]
        try:
            for p in active:
                p.requires_grad_(False)
            yield
        finally:
            for p in active:
                p.requires_grad_(True)


def _grouped(params: Sequence[Tensor], group_of: dict[int, int], groups: int) -> list[list[Tensor]]:
    found: list[list[Tensor]] = [[] for _ in range(groups)]
    for p in params:
        if id(p) in group_of:  # not those that are not trained
            found[group_of[id(p)]].append(p)
    return found


def mean_gradients(parameters: Iterable[Tensor], processes: Processes) -> None:
    """Replace gradients by their mean over all processes, which are all on the same path.

    They travel together, as one message for each type of number.
    """
    if processes.world == 1:
        return
    by_type: dict[torch.dtype, list[Tensor]] = {}
    for p in parameters:
        if p.grad is not None:
            by_type.setdefault(p.grad.dtype, []).append(p.grad)
    for grads in by_type.values():
        flat = torch.cat([g.reshape(-1) for g in grads])
        processes.sum_([flat])
        flat /= processes.world
        for g, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
            g.copy_(part.view(g.shape))
