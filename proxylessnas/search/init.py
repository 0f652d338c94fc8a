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

from ..models.layers import MBConv

if TYPE_CHECKING:
    from .mixed_op import MixedOp
    from .supernet import SuperNet

_RIM = 0.3  # factor on the weights around the 3x3 in the middle of a larger kernel


def align(supernet: SuperNet, generator: torch.Generator) -> None:
    """Let the candidates of each block begin as nearly the same function.

    Only MBConv candidates with an expansion take part; others keep what they were created with.

    Args:
        supernet: its weights are overwritten, on the CPU.
        generator: of the draws.
    """
    with torch.no_grad():
        for mixed_op in supernet.mixed_ops:
            ops = _mbconvs(mixed_op)
            if ops:
                _cut_from_one_draw(ops, generator)
            if mixed_op.shortcut:
                for op in ops:
                    nn.init.zeros_(op.point_linear.bn.weight)


def _mbconvs(mixed_op: MixedOp) -> list[MBConv]:
    ops = [mixed_op.op(k) for k, allowed in enumerate(mixed_op.allowed) if allowed]
    return [op for op in ops if isinstance(op, MBConv) and op.inverted_bottleneck is not None]


def _cut_from_one_draw(ops: list[MBConv], generator: torch.Generator) -> None:
    depths = [op.depth_conv.conv.weight for op in ops]
    kernel, middle = max(w.shape[-1] for w in depths), max(w.shape[0] for w in depths)
    first = ops[0]
    assert first.inverted_bottleneck is not None
    ins, outs = first.inverted_bottleneck.conv.weight.shape[1], first.point_linear.conv.weight.shape[0]
    expand = _he(middle, ins, 1, middle, generator)
    depth = _he(middle, 1, kernel, 1, generator)
    point = _he(outs, middle, 1, outs, generator)
    rim = torch.full((kernel, kernel), _RIM)
    inner = slice((kernel - min(3, kernel)) // 2, (kernel + min(3, kernel)) // 2)
    rim[inner, inner] = 1.0
    depth *= rim
    for op in ops:
        assert op.inverted_bottleneck is not None
        width, _, size, _ = op.depth_conv.conv.weight.shape
        at = (kernel - size) // 2
        op.inverted_bottleneck.conv.weight.copy_(expand[:width])
        op.depth_conv.conv.weight.copy_(depth[:width, :, at : at + size, at : at + size])
        op.point_linear.conv.weight.copy_(point[:, :width])


def _he(outs: int, ins: int, kernel: int, fan_channels: int, generator: torch.Generator) -> Tensor:
    """Return filters drawn from N(0, 2 / fan_out), as in ``layers.py``."""
    std = math.sqrt(2.0 / (kernel * kernel * fan_channels))
    return torch.randn(outs, ins, kernel, kernel, generator=generator) * std
