"""One searched block: candidate operations behind binary gates, of which one path is computed at a time.

A block of the over-parameterised model is ``y = sum_k g_k o_k(x)`` with gates ``g`` that are one-hot: 1 for
the sampled candidate, 0 for the others. So ``y`` is the sampled candidate's output, while

    dL/dg_k = <dL/dy, o_k(x)>

is defined for all of them (ProxylessNAS, section 3.2.1, after BinaryConnect). The gate *echoes* the output
of the sampled candidate: weights get ordinary gradients, and only the gate's own gradient needs the others.
It is computed in the backward pass, where ``dL/dy`` is at hand, and nothing of the others is stored.

In an arch step all candidates of a block see the same input, and BatchNorm uses the batch's statistics. Those
of a 1x1 convolution ``u = W x`` follow from the mean and the covariance of ``x``: ``mean(u) = W mean(x)`` and
``var(u) = diag(W cov(x) W^T)``. So the wide map behind an operation's first 1x1 convolution need not be
looked at to be normalised: scale and shift go into the convolution, and the covariance of its narrow input
serves all candidates.

This is the same function, computed in another order. What is not known to gain by it runs as it is: GPUs,
autocast, other layouts, small maps, and whatever does not begin with a plain 1x1 convolution.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..models.layers import ConvLayer, OpLayers


class MixedOp(nn.Module):
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
            y = binary_gate(x, y, self.gates, self.active, (), stored)
        else:
            y = binary_gate(x, y, self.gates, self.active, wanted)
        return x + y if self.shortcut and op is not None else y


#: Computes a candidate's output from the block's input.
Op = Callable[[Tensor], Tensor]


class _BinaryGate(torch.autograd.Function):
    """Returns the sampled candidate's output; its backward pass fills in the gates' gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor | None,
        gates: Tensor,
        x: Tensor,
        active: int,
        others: Sequence[tuple[int, Op]],
        stored: Sequence[tuple[int, Tensor]],
    ) -> Tensor:
        ctx.active, ctx.others, ctx.stored_at = active, others, [k for k, _ in stored]
        ctx.zero_active, ctx.choices = y is None, gates.shape[0]
        ctx.autocast = _autocast_now(x.device.type)
        kept = [] if y is None else [y]
        ctx.save_for_backward(*kept, *([x] if others else []), *(o for _, o in stored))
        # Zero: the block's output is its input. A view, as an input may not be returned as it is.
        return x.view_as(x) if y is None else y.view_as(y)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        saved = list(ctx.saved_tensors)
        gates = grad.new_zeros(ctx.choices, dtype=torch.promote_types(grad.dtype, torch.float32))
        if not ctx.zero_active:
            gates[ctx.active] = inner_product(grad, saved.pop(0))
        if ctx.others:
            x = saved.pop(0)
            with torch.no_grad(), ctx.autocast():
                for k, op in ctx.others:
                    gates[k] = inner_product(grad, op(x))
        for k, output in zip(ctx.stored_at, saved, strict=True):
            gates[k] = inner_product(grad, output)
        # With Zero, x itself is the output and gets the gradient; else y does, and x has its own way.
        return None if ctx.zero_active else grad, gates, grad if ctx.zero_active else None, None, None, None


def inner_product(a: Tensor, b: Tensor) -> Tensor:
    """Return the sum of the products of two tensors of one shape, [], in at least 32 bits."""
    if a.element_size() < 4 or b.element_size() < 4:
        a, b = a.float(), b.float()
    if a.stride() != b.stride():
        b = b.contiguous(memory_format=torch.channels_last) if _is_channels_last(a) else b.contiguous()
        a = a if a.stride() == b.stride() else a.contiguous()
    if a.stride() == b.stride() and _is_dense(a):
        flat = (a.numel(),)
        return torch.dot(a.as_strided(flat, (1,)), b.as_strided(flat, (1,)))
    return (a * b).sum()


def _is_channels_last(a: Tensor) -> bool:
    return a.dim() == 4 and a.is_contiguous(memory_format=torch.channels_last)


def _is_dense(a: Tensor) -> bool:
    return a.is_contiguous() or _is_channels_last(a)


def _autocast_now(device_type: str) -> Callable[[], contextlib.AbstractContextManager[Any]]:
    """Return a way into the autocast state of now: backward passes run outside of it."""
    if not (torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)):
        return contextlib.nullcontext
    dtype = torch.get_autocast_dtype(device_type)
    return lambda: torch.autocast(device_type, dtype)


def binary_gate(
    x: Tensor,
    y: Tensor | None,
    gates: Tensor,
    active: int,
    others: Sequence[tuple[int, Op]],
    stored: Sequence[tuple[int, Tensor]] = (),
) -> Tensor:
    """Return the sampled candidate's output, with a gradient for the gates.

    Args:
        x: the block's input, [N, C, H, W].
        y: the sampled candidate's output, [N, C', H', W']; None if it is Zero, whose output is 0 but whose
            block passes ``x`` on: then the return value stands for ``x + 0``, and no shortcut is added to it.
        gates: the block's row of gates, [candidates]; gets ``<dL/dy, o_k(x)>``, 0 for candidates that are
            neither active, nor in ``others`` or ``stored``. (Zero's output is 0, and so is its gradient.)
        active: index of the sampled candidate.
        others: candidates whose outputs are computed in the backward pass, with their indices.
        stored: outputs that were computed already, with their candidates' indices (without a graph).
    """
    result: Tensor = _BinaryGate.apply(y, gates, x, active, others, stored)
    return result


_NUMBERS = 2**15  # in the input: below, a candidate takes no longer than the looking at it
_PIXELS = 100  # per channel of the input: below, its covariance costs more than it saves


class Moments:
    """Mean [C] and covariance [C, C] of a map's channels, found when they are first asked for."""

    def __init__(self) -> None:
        self._found: tuple[Tensor, Tensor] | None = None

    def of(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return those of [N, C, H, W]; always the same ``x``."""
        if self._found is None:
            rows = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
            mean = rows.mean(0)
            rows = rows - mean  # as a difference of large numbers the covariance would lose its digits
            self._found = mean, (rows.t() @ rows) / rows.shape[0]
        return self._found


def output(op: nn.Module, x: Tensor, moments: Moments) -> Tensor:
    """Return ``op(x)``; to be called without a graph.

    Args:
        op: a candidate.
        x: the block's input, [N, C, H, W].
        moments: shared by all candidates of the block.
    """
    if not isinstance(op, OpLayers) or not _suits(x):
        return op(x)
    pointwise = [layer if _is_pointwise(layer) else None for layer in op]
    parts = [part for layer in pointwise if layer for part in (layer, layer.conv, layer.bn)]
    if pointwise[0] is None or not all(map(_plain, (op, *parts))):
        return op(x)
    y = x
    for i, (layer, fast) in enumerate(zip(op, pointwise, strict=True)):
        # One name for all: the widest map is not to live through the projection.
        if fast is None:
            y = layer(y)
            continue
        if i == 0 and _normalises_by_batch(fast.bn) and x.numel() >= _PIXELS * x.shape[1] ** 2:
            y = _pointwise(x, *_folded(fast, *moments.of(x)))
        else:
            y = _pointwise(y, fast.conv.weight)
            y = fast.bn(y)
        y = fast.activate(y)
    return y


def _is_pointwise(layer: nn.Module) -> TypeGuard[ConvLayer]:
    conv = layer.conv if isinstance(layer, ConvLayer) else None
    return conv is not None and conv.kernel_size == conv.stride == (1, 1) and conv.groups == 1


def _suits(x: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and x.numel() >= _NUMBERS
        and x.is_contiguous(memory_format=torch.channels_last)
        and not torch.is_autocast_enabled("cpu")
    )


def _plain(module: nn.Module) -> bool:
    """Tell whether a module is as ``layers.py`` makes it, and so does nothing else when it is called."""
    return (
        type(module) in (OpLayers, ConvLayer, nn.Conv2d, nn.BatchNorm2d)
        and not module._forward_hooks
        and not module._forward_pre_hooks
        and "forward" not in module.__dict__
    )


def _normalises_by_batch(bn: nn.BatchNorm2d) -> bool:
    return bn.training and not bn.track_running_stats and bn.affine


def _folded(layer: ConvLayer, mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Return weight and bias of a convolution that does what a 1x1 layer does up to its activation."""
    weight, bn = layer.conv.weight.flatten(1), layer.bn
    variance = ((weight @ covariance) * weight).sum(1).clamp_min_(0.0)
    scale = bn.weight * (variance + bn.eps).rsqrt()
    return (weight * scale[:, None])[:, :, None, None], bn.bias - scale * (weight @ mean)


def _pointwise(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return a 1x1 convolution of [N, C, H, W] in channels_last.

    For these torch leaves oneDNN aside on one thread with small batches, though it is quicker. Not so for
    dilated ones, and a single pixel is the same however far it is spread.
    """
    dilation = 2 if x.dtype == torch.float32 and torch.backends.mkldnn.is_available() else 1
    return F.conv2d(x, weight, bias, dilation=dilation)
