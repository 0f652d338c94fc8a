"""Convolutions, operations, blocks and the classifier, under the names of the original checkpoints."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..arch.blocks import Block
from ..arch.ops import Registered
from ..arch.ops.spec import RELU6, Op, OpSpec, SESpec
from ..errors import ArchError


class _Conv2d(nn.Conv2d):
    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            fan_out = self.kernel_size[0] * self.kernel_size[1] * self.out_channels / self.groups
            self.weight.data.normal_(0.0, math.sqrt(2.0 / fan_out))
            if self.bias is not None:
                self.bias.data.zero_()


class _BatchNorm2d(nn.BatchNorm2d):
    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            self.weight.data.fill_(1.0)
            self.bias.data.zero_()


class _Linear(nn.Linear):
    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            bound = 1.0 / math.sqrt(self.in_features)
            self.weight.data.uniform_(-bound, bound)
            self.bias.data.zero_()


# The three classes above only replace torch's initialisation, which would draw all numbers twice. What the
# functions below return are torch's own classes: tools that fuse, quantise or count go by the exact type.


def conv2d(
    in_channels: int,
    out_channels: int,
    kernel: int,
    stride: int = 1,
    *,
    dilation: int = 1,
    groups: int = 1,
    bias: bool = False,
    device: Any = None,
) -> nn.Conv2d:
    """Return a convolution with "same" padding for odd kernels, initialised by He's rule.

    Weights are drawn from N(0, 2 / fan_out) with fan_out = k * k * out_channels / groups. The original code
    does not divide by the groups, which gives depthwise filters a far smaller scale; BatchNorm hides it, and
    this is the rule of its CIFAR code.
    """
    padding = kernel // 2 * dilation
    layer: nn.Conv2d = _Conv2d(
        in_channels, out_channels, kernel, stride, padding, dilation, groups, bias=bias, device=device
    )
    layer.__class__ = nn.Conv2d
    return layer


def batch_norm(channels: int, eps: float = 1e-5, momentum: float = 0.1, device: Any = None) -> nn.BatchNorm2d:
    """Return a BatchNorm: scale 1, shift 0, mean 0, variance 1."""
    layer: nn.BatchNorm2d = _BatchNorm2d(channels, eps, momentum, device=device)
    layer.__class__ = nn.BatchNorm2d
    return layer


def folded(conv: nn.Conv2d, bn: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return weight and bias of the convolution that does what ``conv`` does with ``bn`` behind it.

    In double precision, so that whoever rounds them to the model's own dtype rounds once.
    """
    assert bn.running_mean is not None  # it is never without statistics
    assert bn.running_var is not None
    with torch.no_grad():
        scale = torch.rsqrt(bn.running_var.double() + bn.eps)
        scale = scale if bn.weight is None else bn.weight.double() * scale
        shift = 0.0 if conv.bias is None else conv.bias.double()
        bias = (shift - bn.running_mean.double()) * scale + (0.0 if bn.bias is None else bn.bias.double())
        return conv.weight.double() * scale[:, None, None, None], bias


def linear(in_features: int, out_features: int, device: Any = None, dtype: Any = None) -> nn.Linear:
    """Return a linear layer as in the original code: weights U(-1/sqrt(n), 1/sqrt(n)), bias 0."""
    layer: nn.Linear = _Linear(in_features, out_features, device=device, dtype=dtype)
    layer.__class__ = nn.Linear
    return layer


class LinearLayer(nn.Module):
    """The classifier: a linear layer under the name ``linear``."""

    def __init__(self, in_features: int, out_features: int, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.linear = linear(in_features, out_features, device, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, in_features] to [N, out_features]."""
        return self.linear(x)


class ConvLayer(nn.Module):
    """Convolution without bias, BatchNorm and, unless ``act`` is False, an activation: "relu6" or "relu".

    Attributes:
        act: the activation; "" for none.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: int = 1,
        groups: int = 1,
        *,
        act: bool = True,
        activation: str = RELU6,
        eps: float = 1e-3,
        momentum: float = 0.1,
        device: Any = None,
    ) -> None:
        super().__init__()
        self.conv = conv2d(in_channels, out_channels, kernel, stride, groups=groups, device=device)
        self.bn = batch_norm(out_channels, eps, momentum, device)
        self.act = activation if act else ""

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, in, H, W] to [N, out, ceil(H / stride), ceil(W / stride)]."""
        return self.activate(self.bn(self.conv(x)))

    def activate(self, x: Tensor) -> Tensor:
        """Apply its activation, in place."""
        if not self.act:
            return x
        return F.relu6(x, inplace=True) if self.act == RELU6 else F.relu(x, inplace=True)


class SqueezeExcite(nn.Module):
    """Channels weighted by what two 1x1 convolutions make of their means (Hu et al. 2018).

    Through a hard sigmoid, relu6(x + 3) / 6: every runtime has it or its parts, and 8 bits hold it evenly.
    """

    def __init__(self, channels: int, squeezed: int, device: Any = None) -> None:
        super().__init__()
        self.reduce = conv2d(channels, squeezed, 1, bias=True, device=device)
        self.expand = conv2d(squeezed, channels, 1, bias=True, device=device)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, H, W] to the same shape."""
        squeezed = F.relu(self.reduce(x.mean((2, 3), keepdim=True)), inplace=True)
        return x * F.hardsigmoid(self.expand(squeezed))


class OpLayers(nn.Sequential):
    """An operation of the package: its layers one after the other, under the names that it gives them."""

    def __init__(self, op: OpSpec, in_channels: int, out_channels: int, stride: int, **options: Any) -> None:
        super().__init__()
        self.kind = op.kind
        for name in op.optional:
            setattr(self, name, None)
        for spec in op.layers(in_channels, out_channels, stride):
            layer: nn.Module
            if isinstance(spec, SESpec):
                layer = SqueezeExcite(spec.channels, spec.squeezed, options.get("device"))
            else:
                name, ins, outs, kernel, step, groups, act = spec
                layer = ConvLayer(ins, outs, kernel, step, groups, act=act, **options)
                _guard(layer.conv)
            setattr(self, spec.name, layer)


def zero_last_scale(op: nn.Module | None) -> None:
    """Let an operation of the package begin with nothing (Goyal et al. 2017), if its last layer is linear.

    Behind an activation a scale of zero would get no gradient.
    """
    last = op[-1] if isinstance(op, OpLayers) else None
    if isinstance(last, ConvLayer) and not last.act:
        nn.init.zeros_(last.bn.weight)


def make_op(op: Op, in_channels: int, out_channels: int, stride: int, **options: Any) -> nn.Module | None:
    """Return a new module of an operation, safe to train on every processor; None for a skipped block.

    Args:
        op: the operation.
        in_channels: of its block.
        out_channels: of its block.
        stride: of its block.
        **options: activation, eps, momentum and device of :class:`ConvLayer`. A registered operation has its
            own and stays on the default device: it may hold buffers that no checkpoint has.

    Raises:
        ArchError: what the builder of a registered operation returned is no module.
    """
    if isinstance(op, OpSpec):
        return OpLayers(op, in_channels, out_channels, stride, **options)
    if not isinstance(op, Registered):
        return None
    module = op.build(in_channels, out_channels, stride)
    if not isinstance(module, nn.Module):
        raise ArchError(f"operation {op.name!r}: its builder returned no nn.Module")
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            _guard(layer)
    return module


def _guard(conv: nn.Conv2d) -> None:
    few, steps = conv.in_channels < 8, max(conv.stride) > 1
    if steps and few and conv.kernel_size == (1, 1) and conv.padding in ((0, 0), "valid"):
        conv.register_forward_pre_hook(_cut_what_is_not_read)


def _cut_what_is_not_read(conv: nn.Conv2d, inputs: tuple[Tensor, ...]) -> Tensor | None:
    """Cut rows and columns off a strided 1x1 convolution's input that it steps over at the end.

    The output is the same. But where there are such rows and columns, oneDNN (3.12, with torch 2.14) computes
    the input's gradient with 2 to 7 channels in channels_last, by one thread with AVX2, past the end of its
    memory: the process crashes, there or later.
    """
    if not inputs or inputs[0].device.type != "cpu" or not torch.is_grad_enabled():
        return None
    rows, columns = (
        (size - 1) // step * step + 1 for size, step in zip(inputs[0].shape[-2:], conv.stride, strict=True)
    )
    return inputs[0][..., :rows, :columns]


def drop_path(x: Tensor, rate: float) -> Tensor:
    """Zero whole samples of [N, ...] with probability ``rate`` < 1; scale the others by 1 / (1 - rate)."""
    keep = x.new_empty((x.shape[0],) + (1,) * (x.dim() - 1)).bernoulli_(1.0 - rate)
    return x * (keep / (1.0 - rate))


class ResidualBlock(nn.Module):
    """One block of a model: ``op(x)``, or ``x + op(x)`` where it has a shortcut; a Zero block returns ``x``.

    The operation is named ``mobile_inverted_conv`` whatever it is, as in the original checkpoints; a Zero
    block holds nothing. ``options`` are those of :func:`make_op`.
    """

    def __init__(
        self,
        block: Block,
        *,
        drop_path_rate: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__()
        self.mobile_inverted_conv = make_op(
            block.op, block.in_channels, block.out_channels, block.stride, **options
        )
        self.shortcut = block.shortcut
        self.drop_path_rate = drop_path_rate

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, in, H, W] to [N, out, ceil(H / stride), ceil(W / stride)]."""
        op = self.mobile_inverted_conv
        if op is None:
            return x
        y = op(x)
        if not self.shortcut:
            return y
        if self.training and self.drop_path_rate:
            y = drop_path(y, self.drop_path_rate)
        return x + y

    def extra_repr(self) -> str:
        """Show what the children do not."""
        return f"shortcut={self.shortcut}, drop_path_rate={self.drop_path_rate}"
