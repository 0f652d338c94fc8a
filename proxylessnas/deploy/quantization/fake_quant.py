"""A model that computes as its 8-bit file will, in torch: for corrections and training before the export.

Weights are rounded by output channel, symmetrically; activations by tensor, unsigned with a zero point: what
ONNX Runtime, OpenVINO and XNNPACK all do, but for the last bit. Rounding a convolution's weights by channel
and folding the BatchNorm behind it into them may change places, as the latter multiplies whole channels: so
the model keeps its BatchNorm, its parameters and their names.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ...models.base import ImageClassifier
from ...models.layers import ConvLayer, OpLayers, ResidualBlock, SqueezeExcite
from ...runtimes.onnx_int8 import STEPS, Ranges, ranges_of, scale_and_zero
from ..formats.split_depthwise import is_wide
from .schemes import Scheme

_INPUT, _POOLED = "input", "pooled"


class _RoundedConv2d(nn.Conv2d):
    weight_steps: int

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(input, rounded_weight(weight, self.weight_steps), bias)


class _RoundedLinear(nn.Linear):
    weight_steps: int

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.linear(input, rounded_weight(self.weight, self.weight_steps), self.bias)


def rounded_weight(weight: Tensor, steps: int = 127) -> Tensor:
    """Round a weight [out, ...], each output channel with a scale of its own; gradients pass.

    Args:
        weight: of a layer.
        steps: of the scale on either side of zero.
    """
    scale = weight.detach().flatten(1).abs().amax(1).clamp(min=1e-12) / steps
    zero = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -steps, steps)


def _rounded(x: Tensor, bounds: tuple[float, float]) -> Tensor:
    scale, zero = scale_and_zero(*bounds)
    return torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, STEPS)


def rounded_input(x: Tensor, ranges: Ranges) -> Tensor:
    """Round what enters the model as the file does; unchanged where it stays in float32."""
    return _rounded(x, ranges[_INPUT]) if _INPUT in ranges else x


def observe(model: ImageClassifier, batches: Iterable[Tensor], scheme: Scheme) -> Ranges:
    """Return the range of every place whose values the file holds in 8 bits.

    Args:
        model: in evaluation mode.
        batches: inputs [N, C, H, W]; gone through twice.
        scheme: its rule, and what stays in float32.
    """
    inputs = list(batches)

    def values() -> Iterator[tuple[str, Tensor]]:
        seen: list[tuple[str, Tensor]] = []
        with _visited(model, lambda place, x: seen.append((place, x)), scheme), torch.inference_mode():
            for x in inputs:
                seen.clear()
                model(x)
                yield from seen

    return ranges_of(values, scheme.rule)


def stays_float(name: str, module: nn.Module, scheme: Scheme) -> bool:
    """Return whether a scheme leaves a module in float32."""
    return in_float_part(name, scheme) or (scheme.float_wide and is_wide(module))


def in_float_part(name: str, scheme: Scheme) -> bool:
    """Return whether the part of the model that a scheme leaves in float32 holds the module of a name."""
    return scheme.float_first and f"{name}.".startswith(("first_conv.", "blocks.0."))


@contextlib.contextmanager
def simulated(model: ImageClassifier, ranges: Ranges, scheme: Scheme) -> Iterator[None]:
    """Let a model round weights and activations while the block runs; gradients pass through the rounding.

    Args:
        model: is as before afterwards.
        ranges: what :func:`observe` found by the same scheme.
        scheme: what stays in float32, and the bits of the weights.
    """
    layers = [
        module
        for name, module in model.named_modules()
        if type(module) in (nn.Conv2d, nn.Linear) and not stays_float(name, module, scheme)
    ]

    def rounded(place: str, x: Tensor) -> Tensor:
        return _rounded(x, ranges[place])

    try:
        for layer in layers:
            layer.weight_steps = scheme.weight_steps(layer)
            layer.__class__ = _RoundedConv2d if isinstance(layer, nn.Conv2d) else _RoundedLinear
        with _visited(model, rounded, scheme):
            yield
    finally:
        for layer in layers:
            layer.__class__ = nn.Conv2d if isinstance(layer, nn.Conv2d) else nn.Linear
            del layer.weight_steps


@contextlib.contextmanager
def _visited(
    model: ImageClassifier, visit: Callable[[str, Tensor], Tensor | None], scheme: Scheme
) -> Iterator[None]:
    """Call ``visit`` with each place and its values while the block runs; what it returns replaces them."""

    def into(place: str) -> Callable[[nn.Module, tuple[Any, ...]], Any]:
        return lambda module, args: visit(place, args[0])

    def out_of(place: str) -> Callable[[nn.Module, Any, Tensor], Any]:
        return lambda module, args, y: visit(place, y)

    handles = [model.classifier.register_forward_pre_hook(into(_POOLED))]
    if not scheme.float_first:
        handles.append(model.register_forward_pre_hook(into(_INPUT)))
    ends = {op[-1] for op in model.modules() if isinstance(op, OpLayers)}
    for name, module in model.named_modules():
        if in_float_part(name, scheme) and module not in ends:  # whose output is read in 8 bits
            continue
        is_sum = isinstance(module, ResidualBlock) and module.shortcut
        if isinstance(module, (ConvLayer, SqueezeExcite)) or (
            is_sum and module.mobile_inverted_conv is not None
        ):
            handles.append(module.register_forward_hook(out_of(name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
