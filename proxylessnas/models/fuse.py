"""Convolutions with what follows them in one kernel, without a compiler: PyTorch's oneDNN operators.

Inductor turns a frozen model on a CPU into calls of these operators: weights in the order that the kernel
wants them in, the activation and the sum of a shortcut applied while a result is still in a register.
Nothing but a compiler's minute is needed to call them from Python instead. They are not part of PyTorch's
public interface: whoever calls :func:`fuse` measures and compares the result, and does without where it
fails.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from .layers import ConvLayer, OpLayers, ResidualBlock

_AFTER: dict[str, tuple[str, list[float], str]] = {
    "relu6": ("hardtanh", [0.0, 6.0], ""), "relu": ("relu", [], ""), "": ("none", [], "")
}  # fmt: skip


class FusedConv(nn.Module):
    """A :class:`~proxylessnas.models.layers.ConvLayer` whose BatchNorm is folded, as one call.

    Args:
        layer: the layer.
        shape: of its input, [N, C, H, W], which the order of the weights is chosen for. Others work as well.
    """

    def __init__(self, layer: ConvLayer, shape: tuple[int, ...]) -> None:
        super().__init__()
        conv = layer.conv
        self.shape_of_conv = (list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups)
        weight = torch.ops.mkldnn._reorder_convolution_weight(
            conv.weight.detach(), *self.shape_of_conv, list(shape)
        )
        # No buffers: these weights have a layout that only the operators know.
        self.weight, self.bias = weight, None if conv.bias is None else conv.bias.detach()
        self.after = _AFTER[layer.act]

    def forward(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        """Map [N, in, H, W] to [N, out, ceil(H / stride), ceil(W / stride)], with ``added`` added."""
        run: Any = torch.ops.mkldnn._convolution_pointwise
        if added is None:
            return run(x, self.weight, self.bias, *self.shape_of_conv, *self.after)
        return run.binary(x, added, self.weight, self.bias, *self.shape_of_conv, "add", 1.0, None, [], None)


class FusedBlock(nn.Module):
    """A block with a shortcut, which is added by its last convolution."""

    def __init__(self, op: OpLayers) -> None:
        super().__init__()
        self.mobile_inverted_conv = op

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, H, W] to the same shape."""
        *layers, last = self.mobile_inverted_conv
        y = x
        for layer in layers:
            y = layer(y)
        return last(y, x)


def fuse(folded: nn.Module, example: Tensor) -> nn.Module:
    """Return a copy of a model of ours that runs on oneDNN's fused operators.

    Args:
        folded: of :func:`~proxylessnas.models.batchnorm.fold_batchnorm`; on the CPU.
        example: an input, [N, C, H, W], of the dtype of the model.

    Raises:
        RuntimeError, AttributeError: this build of PyTorch cannot do it, or there is nothing to be fused.
    """
    twin = copy.deepcopy(folded)
    shapes = _input_shapes(twin, example)
    count = 0
    for parent in list(twin.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, ConvLayer) and child in shapes:
                setattr(parent, name, FusedConv(child, shapes[child]))
                count += 1
    for parent in list(twin.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, ResidualBlock) and child.shortcut:
                op = child.mobile_inverted_conv
                if not isinstance(op, OpLayers):
                    continue
                last = op[-1]
                if isinstance(last, FusedConv) and last.after is _AFTER[""]:
                    setattr(parent, name, FusedBlock(op))
    if not count:
        raise RuntimeError("it has no convolution that could be fused with what follows")
    return twin


def _input_shapes(model: nn.Module, example: Tensor) -> dict[nn.Module, tuple[int, ...]]:
    """Return the shape of the input of each layer that can be fused."""
    shapes: dict[nn.Module, tuple[int, ...]] = {}

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        shapes[module] = tuple(inputs[0].shape)

    layers = [module for module in model.modules() if isinstance(module, ConvLayer)]
    layers = [layer for layer in layers if isinstance(layer.bn, nn.Identity) and _fits(layer.conv)]
    hooks = [layer.register_forward_pre_hook(note) for layer in layers]
    try:
        model(example)
    finally:
        for hook in hooks:
            hook.remove()
    return shapes


def _fits(conv: nn.Conv2d) -> bool:
    return conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
