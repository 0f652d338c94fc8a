"""Post-training quantisation: rounding that compensates, and corrected channels.

To the nearest number, each weight is off by up to half a step, and the layer's output by the sum of all these
errors. Rounded in turn, with what is left of a row moved each time so that its output on the calibration
images changes least (optimal brain quantisation, Frantar et al. 2022; GPTQ's order and Cholesky form), the
errors cancel. Nothing is trained, and no label is looked at.

Rounded weights shift the mean of a layer's output, which nothing behind it takes out again, and depthwise
filters of nine weights shift it most. The shift is measured on the calibration images, layer by layer and
with what all layers before have done already, and taken from the bias (Nagel et al. 2019, section 4.2, with
measured means).

Channels of equal ranges (Nagel et al. 2019, section 4.1) gained nothing beside these two: docs/results.md.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...models.base import ImageClassifier
from ...models.layers import ConvLayer
from ...models.proxylessnas import ProxylessNAS
from .fake_quant import observe, rounded_input, simulated, stays_float
from .schemes import Scheme

_DAMPING = 0.01  # of the mean diagonal: a weight whose input is next to nothing must not run away
_PATCHES = 4096  # input patches an image batch that the second moments are taken from


def second_moments(layer: nn.Conv2d | nn.Linear, inputs: list[Tensor]) -> Tensor:
    """Return the second moments of what a layer's filters see, [groups, n, n] for filters of n weights.

    Args:
        layer: a convolution or linear layer.
        inputs: what enters it, [N, C, H, W] or [N, C].
    """
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    total: Tensor | None = None
    draw = torch.Generator().manual_seed(0)
    for x in inputs:
        seen = _patches(layer, x, groups, draw).double()
        moments = seen @ seen.transpose(1, 2)
        total = moments if total is None else total + moments
    assert total is not None
    return total


def _patches(layer: nn.Conv2d | nn.Linear, x: Tensor, groups: int, draw: torch.Generator) -> Tensor:
    """Return what a layer's filters see, [groups, n, patches]."""
    if not isinstance(layer, nn.Conv2d):
        return x.t()[None]
    if layer.kernel_size == (1, 1):
        columns = x[:, :, :: layer.stride[0], :: layer.stride[1]].flatten(2)
    else:
        assert not isinstance(layer.padding, str)
        columns = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    columns = columns.transpose(0, 1).flatten(1)  # [groups * n, patches]
    if columns.shape[1] > _PATCHES:
        columns = columns[:, torch.randperm(columns.shape[1], generator=draw)[:_PATCHES]]
    return columns.unflatten(0, (groups, -1))


def compensated(weight: Tensor, moments: Tensor, steps: int = 127) -> Tensor:
    """Return a weight on its 8-bit grid, with the least change of the layer's output.

    Args:
        weight: [out, ...], of one scale an output channel.
        moments: [groups, n, n] of :func:`second_moments`.
        steps: of the grid on either side of zero.
    """
    groups, n, _ = moments.shape
    rows = weight.detach().double().reshape(groups, -1, n).clone()
    scale = (rows.abs().amax(2, keepdim=True) / steps).clamp(min=1e-12)
    fixed = rows.abs() >= rows.abs().amax(2, keepdim=True)  # sets the scale: has to keep its place
    diagonal = moments.diagonal(dim1=1, dim2=2)
    damping = _DAMPING * diagonal.mean(1).clamp(min=1e-12)
    damped = moments + torch.diag_embed(damping[:, None].expand(groups, n))
    # Those whose inputs matter most first: the others can still make good for them.
    order = diagonal.argsort(1, descending=True)
    damped = torch.gather(
        torch.gather(damped, 1, order[:, :, None].expand(-1, -1, n)), 2, order[:, None, :].expand(-1, n, -1)
    )
    along = order[:, None, :].expand_as(rows)
    rows, fixed = rows.gather(2, along), fixed.gather(2, along)
    upper = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)
    found = torch.empty_like(rows)
    for i in range(n):
        column = rows[:, :, i]
        rounded = (column / scale[:, :, 0]).round().clamp(-steps, steps) * scale[:, :, 0]
        exact = fixed[:, :, i]
        rounded = torch.where(exact, column.sign() * steps * scale[:, :, 0], rounded)
        found[:, :, i] = rounded
        error = (column - rounded) / upper[:, None, i, i]
        rows[:, :, i:] -= error[:, :, None] * upper[:, None, i, i:]
    back = torch.empty_like(found).scatter_(2, along, found)
    return back.reshape(weight.shape).to(weight.dtype)


@torch.no_grad()
def corrected(model: ImageClassifier, batches: Sequence[Tensor], scheme: Scheme) -> ImageClassifier:
    """Return a copy of a model whose weights and biases make good what 8 bits do to it, as the scheme wants.

    A model that is no :class:`ProxylessNAS` comes back as it is.

    Args:
        model: in evaluation mode.
        batches: calibration inputs [N, C, H, W].
        scheme: how the file will be written.
    """
    twin = copy.deepcopy(model)
    if not isinstance(twin, ProxylessNAS):
        return twin
    assert isinstance(model, ProxylessNAS)
    ranges = observe(model, batches, scheme)
    parts = [(model.first_conv, twin.first_conv), *zip(model.blocks, twin.blocks, strict=True)]
    parts.append((model.feature_mix_layer, twin.feature_mix_layer))
    names = {module: name for name, module in twin.named_modules()}
    exact = list(batches)
    rough = [rounded_input(x, ranges) for x in batches]
    for true, false in parts:
        pairs = [
            (a, b) for a, b in zip(true.modules(), false.modules(), strict=True) if isinstance(a, ConvLayer)
        ]
        for a, b in pairs:
            wanted = _mean_of(true, a.bn, exact)
            assert isinstance(b, ConvLayer)
            if scheme.compensate and not stays_float(f"{names[b]}.conv", b.conv, scheme):
                with simulated(twin, ranges, scheme):
                    entering = _inputs_of(false, b.conv, rough)
                moments = second_moments(b.conv, entering)
                b.conv.weight.copy_(compensated(b.conv.weight, moments, scheme.weight_steps(b.conv)))
            if not scheme.correct:
                continue
            with simulated(twin, ranges, scheme):
                found = _mean_of(false, b.bn, rough)
            b.bn.bias.add_(wanted - found)
        exact = [true(x) for x in exact]
        with simulated(twin, ranges, scheme):
            rough = [false(x) for x in rough]
    return twin


def _inputs_of(part: nn.Module, layer: nn.Module, batches: Sequence[Tensor]) -> list[Tensor]:
    """Return what enters a layer of a part of a model, for each batch."""
    found: list[Tensor] = []
    _watch(part, layer, batches, lambda x, y: found.append(x))
    return found


def _mean_of(part: nn.Module, norm: nn.Module, batches: Sequence[Tensor]) -> Tensor:
    """Return the mean of each channel behind a BatchNorm of a part of a model, over all batches."""
    sums: list[tuple[Tensor, int]] = []
    _watch(part, norm, batches, lambda x, y: sums.append((y.double().sum((0, 2, 3)), y[:, 0].numel())))
    total, count = (sum(column) for column in zip(*sums, strict=True))
    return torch.as_tensor(total / count, dtype=torch.float32)


def _watch(
    part: nn.Module, module: nn.Module, batches: Sequence[Tensor], look: Callable[[Tensor, Tensor], None]
) -> None:
    """Run a part of a model on all batches; ``look`` gets what enters and leaves one of its modules."""
    handle = module.register_forward_hook(lambda _, args, y: look(args[0], y))
    try:
        for x in batches:
            part(x)
    finally:
        handle.remove()
