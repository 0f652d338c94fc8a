"""Post-training quantisation: rounding that compensates, corrected channels, equalised ranges.

To the nearest number, each weight is off by up to half a step, and the layer's output by the sum of all these
errors. Rounded in turn, with what is left of a row moved each time so that its output on the calibration
images changes least (optimal brain quantisation, Frantar et al. 2022; GPTQ's order and Cholesky form), the
errors cancel. Nothing is trained, and no label is looked at.

Rounded weights shift the mean of a layer's output, which nothing behind it takes out again, and depthwise
filters of nine weights shift it most. The shift is measured on the calibration images, layer by layer and
with what all layers before have done already, and taken from the bias (Nagel et al. 2019, section 4.2, with
measured means).

A tensor has one scale for all its channels; in models with depthwise convolutions the range of one channel
may be a hundred times that of the next, which is then rounded to two or three steps. Multiplying a channel by
a number and dividing the weights that read it by the same number changes nothing in float32 (data-free
quantisation, Nagel et al. 2019, section 4.1), and the weights have a scale for each output channel anyway.

Behind ReLU6 a channel is only ever made larger, up to the bound: what it cuts off then lies beyond anything
the calibration images showed, and an 8-bit scale would cut it off as well.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...models.base import ImageClassifier
from ...models.layers import ConvLayer, LinearLayer, MBConv, ResidualBlock
from ...models.proxylessnas import ProxylessNAS
from .fake_quant import observe, rounded_input, simulated, stays_float
from .schemes import Scheme

_DAMPING = 0.01  # of the mean diagonal: a weight whose input is next to nothing must not run away
_PATCHES = 4096  # input patches an image batch that the second moments are taken from


def second_snapshots(layer: nn.Conv2d | nn.Linear, inputs: list[Tensor]) -> Tensor:
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
        moments: [groups, n, n] of :func:`second_snapshots`.
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
def corrected(
    model: ImageClassifier,
    batches: Sequence[Tensor],
    scheme: Scheme,
) -> ImageClassifier:
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
                moments = second_snapshots(b.conv, entering)
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
    handle = layer.register_forward_pre_hook(lambda module, args: found.append(args[0]))
    try:
        for x in batches:
            part(x)
    finally:
        handle.remove()
    return found


def _mean_of(part: nn.Module, norm: nn.Module, batches: Sequence[Tensor]) -> Tensor:
    """Return the mean of each channel behind a BatchNorm of a part of a model, over all batches."""
    total: list[Tensor] = []
    count = 0

    def add(module: nn.Module, args: Any, y: Tensor) -> None:
        nonlocal count
        total.append(y.double().sum((0, 2, 3)))
        count += y.numel() // y.shape[1]

    handle = norm.register_forward_hook(add)
    try:
        for x in batches:
            part(x)
    finally:
        handle.remove()
    return (torch.stack(total).sum(0) / count).to(torch.float32)


_BOUND = 6.0
_HEADROOM = 1.25  # between the largest value that the calibration images showed and the bound
_MOST = 64.0  # no channel is scaled further: beyond it there is nothing but noise to be gained


@dataclass
class _Link:
    """A tensor: the layers that write it (more than one where shortcuts add up) and those that read it."""

    writers: list[ConvLayer] = field(default_factory=list)
    readers: list[nn.Conv2d | nn.Linear] = field(default_factory=list)
    watched: list[nn.Module] = field(default_factory=list)  # whose outputs show its range
    fixed: bool = False  # something writes or reads it that cannot be rescaled

    @property
    def free(self) -> bool:
        """Whether all that reads it has a scale for each of its channels anyway."""
        return all(isinstance(reader, nn.Conv2d) and reader.groups > 1 for reader in self.readers)

    @property
    def clipped(self) -> bool:
        return any(writer.act for writer in self.writers)


def equalised(model: ImageClassifier, batches: Iterable[Tensor], strength: float = 1.0) -> ImageClassifier:
    """Return a copy of a model with like ranges of the channels of each tensor.

    On the calibration images it computes the same, but for float32's rounding. A model that is no
    :class:`ProxylessNAS` comes back as it is.

    Args:
        model: in evaluation mode.
        batches: calibration inputs [N, C, H, W].
        strength: 1 makes the ranges alike, 0 leaves them; between, the weights that read a channel become
            less unlike each other.
    """
    twin = copy.deepcopy(model)
    if not isinstance(twin, ProxylessNAS):
        return twin
    links = [link for link in _links(twin) if link.writers and link.readers and not link.fixed]
    peaks = _peaks(twin, links, batches)
    with torch.no_grad():
        for link, peak in zip(links, peaks, strict=True):
            scale = _scales(peak, link.clipped, 1.0 if link.free else strength)
            for writer in link.writers:
                writer.bn.weight.mul_(scale)
                writer.bn.bias.mul_(scale)
            for reader in link.readers:
                _divide_inputs(reader, scale)
    return twin


def _scales(peak: Tensor, clipped: bool, strength: float) -> Tensor:
    """Return the factor of each channel from its largest absolute value."""
    largest = _BOUND / _HEADROOM if clipped else float(peak.max())
    scale = torch.where(peak > 0, largest / peak.clamp(min=1e-12), torch.ones_like(peak))
    scale = scale.clamp(1.0, _MOST).pow(strength)
    # Powers of two: float32 stays exact.
    return torch.exp2(scale.log2().floor()) if not clipped else scale


def _divide_inputs(reader: nn.Conv2d | nn.Linear, scale: Tensor) -> None:
    weight = reader.weight
    if isinstance(reader, nn.Conv2d) and reader.groups > 1:  # depthwise: one input channel an output channel
        weight.div_(scale[:, None, None, None])
    else:
        weight.div_(scale.view(1, -1, *[1] * (weight.ndim - 2)))


def _links(model: ProxylessNAS) -> Iterator[_Link]:
    """Yield the tensors of a model, front to back."""
    stream = _Link([model.first_conv], watched=[model.first_conv])
    for block in model.blocks:
        assert isinstance(block, ResidualBlock)  # ModuleList does not tell
        op = block.mobile_inverted_conv
        if op is None:
            continue
        after = stream if block.shortcut else _Link()
        if isinstance(op, MBConv):
            first = op.inverted_bottleneck
            stream.readers.append((first or op.depth_conv).conv)
            if first is not None:
                yield _Link([first], [op.depth_conv.conv], [first])
            yield _Link([op.depth_conv], [op.point_linear.conv], [op.depth_conv])
            after.writers.append(op.point_linear)
        else:
            stream.fixed = after.fixed = True
        if block.shortcut and stream.clipped:  # the sum of a bounded value and others is not bounded
            stream.fixed = True
        after.watched.append(block)
        if not block.shortcut:
            yield stream
            stream = after
    stream.readers.append(model.feature_mix_layer.conv)
    yield stream
    if model.global_pool in ("avg", "max", "avgmax") and isinstance(model.classifier, LinearLayer):
        yield _Link([model.feature_mix_layer], [model.classifier.linear], [model.feature_mix_layer])


def _peaks(model: ImageClassifier, links: list[_Link], batches: Iterable[Tensor]) -> list[Tensor]:
    """Return the largest absolute value of each channel of each tensor."""
    found: list[Tensor | None] = [None] * len(links)

    def watch(i: int) -> Any:
        def hook(module: nn.Module, args: Any, y: Tensor) -> None:
            peak = y.abs().amax((0, 2, 3))
            before = found[i]
            found[i] = peak if before is None else torch.maximum(before, peak)

        return hook

    handles = [
        module.register_forward_hook(watch(i)) for i, link in enumerate(links) for module in link.watched
    ]
    try:
        with torch.inference_mode():
            for x in batches:
                model(x)
    finally:
        for handle in handles:
            handle.remove()
    return [torch.ones(1) if peak is None else peak.clone() for peak in found]
