"""Make good in each layer what 8 bits do to it: the weights together, and the mean of each channel.

Rounded weights shift the mean of a layer's output, which nothing behind it takes out again, and depthwise
filters of nine weights shift it most. The shift is measured on the calibration pictures, layer by layer and
with what all layers before have done already, and taken from the bias (Nagel et al. 2019, section 4.2, with
measured means).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...classifier import Classifier
from ...layers import ConvLayer
from ...model import ProxylessNAS
from .compensation import compensated, second_moments
from .schemes import Scheme
from .simulate import observe, rounded_input, simulated, stays_float


@torch.no_grad()
def corrected(
    net: Classifier,
    batches: Sequence[Tensor],
    scheme: Scheme,
) -> Classifier:
    """Return a copy of a net whose weights and biases make good what 8 bits do to it, as the scheme wants.

    A net that is no :class:`ProxylessNAS` comes back as it is.

    Args:
        net: in evaluation mode.
        batches: calibration inputs [N, C, H, W].
        scheme: how the file will be written.
    """
    twin = copy.deepcopy(net)
    if not isinstance(twin, ProxylessNAS):
        return twin
    assert isinstance(net, ProxylessNAS)
    ranges = observe(net, batches, scheme)
    parts = [(net.first_conv, twin.first_conv), *zip(net.blocks, twin.blocks, strict=True)]
    parts.append((net.feature_mix_layer, twin.feature_mix_layer))
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
    """Return what enters a layer of a part of a net, for each batch."""
    found: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda module, args: found.append(args[0]))
    try:
        for x in batches:
            part(x)
    finally:
        handle.remove()
    return found


def _mean_of(part: nn.Module, norm: nn.Module, batches: Sequence[Tensor]) -> Tensor:
    """Return the mean of each channel behind a BatchNorm of a part of a net, over all batches."""
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
