"""Give the channels of a tensor like ranges, so that one 8-bit scale suits them all.

A tensor has one scale for all its channels; in nets with depthwise convolutions the range of one channel may
be a hundred times that of the next, which is then rounded to two or three steps. Multiplying a channel by a
number and dividing the weights that read it by the same number changes nothing in float32 (data-free
quantisation, Nagel et al. 2019, section 4.1), and the weights have a scale for each output channel anyway.

Behind ReLU6 a channel is only ever made larger, up to the bound: what it cuts off then lies beyond anything
the calibration pictures showed, and an 8-bit scale would cut it off as well.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ...classifier import Classifier
from ...layers import ConvLayer, LinearLayer, MBConv, ResidualBlock
from ...model import ProxylessNAS

_BOUND = 6.0
_HEADROOM = 1.25  # between the largest value that the calibration pictures showed and the bound
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


def equalised(net: Classifier, batches: Iterable[Tensor], strength: float = 1.0) -> Classifier:
    """Return a copy of a net with like ranges of the channels of each tensor.

    On the calibration pictures it computes the same, but for float32's rounding. A net that is no
    :class:`ProxylessNAS` comes back as it is.

    Args:
        net: in evaluation mode.
        batches: calibration inputs [N, C, H, W].
        strength: 1 makes the ranges alike, 0 leaves them; between, the weights that read a channel become
            less unlike each other.
    """
    twin = copy.deepcopy(net)
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


def _links(net: ProxylessNAS) -> Iterator[_Link]:
    """Yield the tensors of a net, front to back."""
    stream = _Link([net.first_conv], watched=[net.first_conv])
    for block in net.blocks:
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
    stream.readers.append(net.feature_mix_layer.conv)
    yield stream
    if net.global_pool in ("avg", "max", "avgmax") and isinstance(net.classifier, LinearLayer):
        yield _Link([net.feature_mix_layer], [net.classifier.linear], [net.feature_mix_layer])


def _peaks(net: Classifier, links: list[_Link], batches: Iterable[Tensor]) -> list[Tensor]:
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
                net(x)
    finally:
        for handle in handles:
            handle.remove()
    return [torch.ones(1) if peak is None else peak.clone() for peak in found]
