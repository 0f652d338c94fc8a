"""Outputs of candidates that nothing is differentiated through, on a CPU for less than a forward pass.

In an arch step all candidates of a block see the same input, and BatchNorm uses the batch's statistics. Those
of a 1x1 convolution ``u = W x`` follow from the mean and the covariance of ``x``: ``mean(u) = W mean(x)`` and
``var(u) = diag(W cov(x) W^T)``. So the widest map of an MBConv need not be looked at to be normalised: scale
and shift go into the convolution, and the covariance of its narrow input serves all candidates.

This is the same function, computed in another order. What is not known to gain by it runs as it is: GPUs,
autocast, other layouts, small maps, and whatever is no plain MBConv.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..layers import ConvLayer, MBConv

_NUMBERS = 2**15  # in the input: below, a candidate takes no longer than the looking at it
_PIXELS = 100  # per channel of the input: below, its covariance costs more than it saves


class Moments:
    """Mean [C] and covariance [C, C] of a map's channels, found when they are first asked for."""

    def __init__(self) -> None:
        self._found: tuple[Tensor, Tensor] | None = None

    def of(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return those of [N, C, H, W]; always the same ``x``."""
        if self._found is None:
            rows = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
            mean = rows.mean(0)
            rows = rows - mean  # as a difference of large numbers the covariance would lose its digits
            self._found = mean, (rows.t() @ rows) / rows.shape[0]
        return self._found


def output(op: nn.Module, x: Tensor, moments: Moments) -> Tensor:
    """Return ``op(x)``; to be called without a graph.

    Args:
        op: a candidate.
        x: the block's input, [N, C, H, W].
        moments: shared by all candidates of the block.
    """
    if type(op) is not MBConv or not _suits(x):
        return op(x)
    expand, project = op.inverted_bottleneck, op.point_linear
    if expand is None or not all(map(_plain, (op, expand, expand.conv, expand.bn, project, project.conv))):
        return op(x)
    if _normalises_by_batch(expand.bn) and x.numel() >= _PIXELS * x.shape[1] ** 2:
        y = _pointwise(x, *_folded(expand, *moments.of(x)))
    else:
        y = expand.bn(_pointwise(x, expand.conv.weight))
    # One name for all: the widest map is not to live through the projection.
    y = F.relu6(y, inplace=True)
    y = op.depth_conv(y)
    y = _pointwise(y, project.conv.weight)
    return project.bn(y)


def _suits(x: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and x.numel() >= _NUMBERS
        and x.is_contiguous(memory_format=torch.channels_last)
        and not torch.is_autocast_enabled("cpu")
    )


def _plain(module: nn.Module) -> bool:
    """Tell whether a module is as ``layers.py`` makes it, and so does nothing else when it is called."""
    return (
        type(module) in (MBConv, ConvLayer, nn.Conv2d, nn.BatchNorm2d)
        and not module._forward_hooks
        and not module._forward_pre_hooks
        and "forward" not in module.__dict__
    )


def _normalises_by_batch(bn: nn.BatchNorm2d) -> bool:
    return bn.training and not bn.track_running_stats and bn.affine


def _folded(layer: ConvLayer, mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Return weight and bias of a convolution that does what a 1x1 layer does up to its ReLU6."""
    weight, bn = layer.conv.weight.flatten(1), layer.bn
    variance = ((weight @ covariance) * weight).sum(1).clamp_min_(0.0)
    scale = bn.weight * (variance + bn.eps).rsqrt()
    return (weight * scale[:, None])[:, :, None, None], bn.bias - scale * (weight @ mean)


def _pointwise(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return a 1x1 convolution of [N, C, H, W] in channels_last.

    For these torch leaves oneDNN aside on one thread with small batches, though it is quicker. Not so for
    dilated ones, and a single pixel is the same however far it is spread.
    """
    dilation = 2 if x.dtype == torch.float32 and torch.backends.mkldnn.is_available() else 1
    return F.conv2d(x, weight, bias, dilation=dilation)
