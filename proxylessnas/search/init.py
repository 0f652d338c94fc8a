"""Where the weights of a supernet start: so that its candidates agree with each other from the first step.

Drawn independently, the candidates of a block map its input to unrelated features, and whatever follows must
learn to read all of them at once: on few images, hundreds of steps pass before the loss of a sampled path
leaves that of guessing. Two changes, both of them ours (the original code draws independently):

* the candidates of a block are cut out of one draw, that of a candidate as large as the largest in every
  respect: its first channels, and the middle of its kernel, whose rim starts smaller. So they begin as nearly
  the same function, and are free to become different ones;
* where a block has a shortcut, the scale of a candidate's last BatchNorm starts at 0 (Goyal et al. 2017), so
  that all of them, and Zero, begin as the identity.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..models.layers import ConvLayer, OpLayers, zero_last_scale

if TYPE_CHECKING:
    from .supernet import SuperNet

_RIM = 0.3  # factor on the weights around the 3x3 in the middle of a larger kernel


def align(supernet: SuperNet, generator: torch.Generator) -> None:
    """Let the candidates of each block begin as nearly the same function.

    Candidates of one kind agree, layer by layer of a name; those without an expansion, squeeze-and-excite and
    registered operations keep what they were created with.

    Args:
        supernet: its weights are overwritten, on the CPU.
        generator: of the draws.
    """
    with torch.no_grad():
        for mixed_op in supernet.mixed_ops:
            ops = [mixed_op.op(k) for k, allowed in enumerate(mixed_op.allowed) if allowed]
            kinds: dict[str, list[OpLayers]] = {}
            for op in ops:
                if isinstance(op, OpLayers) and _expands(op):
                    kinds.setdefault(op.kind, []).append(op)
            for alike in kinds.values():
                _cut_from_one_draw(alike, generator)
                if mixed_op.shortcut:
                    for op in alike:
                        zero_last_scale(op)


def _expands(op: OpLayers) -> bool:
    """Tell whether a map inside an operation is wider than its input."""
    convs = [layer.conv for layer in op if isinstance(layer, ConvLayer)]
    return any(conv.out_channels > convs[0].in_channels for conv in convs[:-1])


def _cut_from_one_draw(ops: list[OpLayers], generator: torch.Generator) -> None:
    by_name: dict[str, list[nn.Conv2d]] = {}
    for op in ops:
        for name, layer in op.named_children():
            if isinstance(layer, ConvLayer):
                by_name.setdefault(name, []).append(layer.conv)
    for convs in by_name.values():
        outs, ins, kernel, _ = map(max, zip(*(conv.weight.shape for conv in convs), strict=True))
        drawn = _he(outs, ins, kernel, 1 if convs[0].groups > 1 else outs, generator)
        rim = torch.full((kernel, kernel), _RIM)
        inner = slice((kernel - min(3, kernel)) // 2, (kernel + min(3, kernel)) // 2)
        rim[inner, inner] = 1.0
        drawn *= rim
        for conv in convs:
            width, depth, size, _ = conv.weight.shape
            at = (kernel - size) // 2
            conv.weight.copy_(drawn[:width, :depth, at : at + size, at : at + size])


def _he(outs: int, ins: int, kernel: int, fan_channels: int, generator: torch.Generator) -> Tensor:
    """Return filters drawn from N(0, 2 / fan_out), as in ``layers.py``."""
    std = math.sqrt(2.0 / (kernel * kernel * fan_channels))
    return torch.randn(outs, ins, kernel, kernel, generator=generator) * std
