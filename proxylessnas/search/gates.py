"""Binary gates: one path is computed, and yet every candidate learns what it would have done.

A block of the over-parameterised net is ``y = sum_k g_k o_k(x)`` with gates ``g`` that are one-hot: 1 for the
sampled candidate, 0 for the others. So ``y`` is the sampled candidate's output, while

    dL/dg_k = <dL/dy, o_k(x)>

is defined for all of them (ProxylessNAS, section 3.2.1, after BinaryConnect). The gate *echoes* the output
of the sampled candidate: weights get ordinary gradients, and only the gate's own gradient needs the others.
It is computed in the backward pass, where ``dL/dy`` is at hand, and nothing of the others is stored.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

#: Computes a candidate's output from the block's input.
Op = Callable[[Tensor], Tensor]


class _Echo(torch.autograd.Function):
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


def echo(
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
    result: Tensor = _Echo.apply(y, gates, x, active, others, stored)
    return result
