"""Counts the parameters and multiply-accumulates of a model, and says what was not counted."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..utils.checks import is_int


@dataclass(frozen=True)
class Profile:
    """Size and work of a model.

    Attributes:
        params: number of parameters (BatchNorm statistics are buffers and do not count).
        macs: multiply-accumulates of convolutions and matrix products for one image.
        uncounted: other operations that ran, with the number of calls: BatchNorm, activations, pooling,
            additions. None of them is in ``macs``; an operation here that does heavy work means ``macs`` is
            too low.
    """

    params: int
    macs: int
    uncounted: dict[str, int]


_FREE = (
    "view reshape detach clone empty t transpose permute split slice alias expand select unsqueeze squeeze "
    "_unsafe_view flatten chunk _to_copy"
).split()


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        from torch.utils.flop_counter import flop_registry

        super().__init__()
        self.registry = flop_registry
        self.macs = 0
        self.uncounted: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func.overloadpacket in self.registry:
            self.macs += self.registry[func.overloadpacket](*args, **kwargs, out_val=out) // 2
        else:
            name = func.overloadpacket.__name__
            if name not in _FREE:
                self.uncounted[name] += 1
        return out


def profile(model: nn.Module, input_size: tuple[int, int, int] | int | None = None) -> Profile:
    """Count parameters and multiply-accumulates without computing anything.

    The model is copied to the meta device in evaluation mode; it is neither run nor changed.

    >>> from proxylessnas import proxyless_cpu
    >>> profile(proxyless_cpu()).macs
    439243864

    Args:
        model: any module.
        input_size: (channels, height, width) of one image; one number means a square image of that size, in
            pixels. None takes the model's own: what its preprocessing or its architecture says; (3, 224, 224)
            for modules that are not of this package.

    Raises:
        ValueError: the size is not positive.
    """
    own: tuple[int, int, int] = getattr(model, "input_size", (3, 224, 224))
    given = own if input_size is None else input_size
    size = (own[0], given, given) if isinstance(given, int) else tuple(given)
    if len(size) != 3 or not all(is_int(n, 1) for n in size):
        raise ValueError(f"input_size must be (channels, height, width), all positive, not {input_size!r}")
    # A memo that already holds every tensor makes deepcopy copy the structure only.
    memo: dict[int, Any] = {}
    for p in model.parameters():
        memo[id(p)] = nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad)
    for b in model.buffers():
        memo[id(b)] = torch.empty_like(b, device="meta")
    twin = copy.deepcopy(model, memo).eval()
    counter = _Counter()
    dtype = next((p.dtype for p in model.parameters()), torch.get_default_dtype())
    with torch.no_grad(), counter:
        twin(torch.empty((1, *size), device="meta", dtype=dtype))
    return Profile(sum(p.numel() for p in model.parameters()), counter.macs, dict(counter.uncounted))
