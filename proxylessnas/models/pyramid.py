"""The CIFAR-10 model: a PyramidNet of tree cells that a :class:`~proxylessnas.arch.tree.TreeArch` describes.

Everything is pre-activation: BatchNorm, ReLU, then the convolution (ProxylessNAS, section 4.1;
PathLevel-EAS). Module and parameter names are those of the original checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from ..arch.blocks import BOTTLENECK, BRANCHES, EDGES_PER_BRANCH
from ..arch.tree import TreeArch
from .base import ImageClassifier, check_in_chans, check_rate
from .layers import batch_norm, conv2d, drop_path


class PreActConv(nn.Module):
    """BatchNorm, optional ReLU, convolution; two groups are shuffled afterwards."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: int = 1,
        groups: int = 1,
        *,
        bn: bool = True,
        act: bool = True,
        device: Any = None,
    ) -> None:
        super().__init__()
        self.bn = batch_norm(in_channels, device=device) if bn else None
        self.conv = conv2d(in_channels, out_channels, kernel, stride, groups=groups, device=device)
        self.act = act
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, in, H, W] to [N, out, H / stride, W / stride]."""
        if self.bn is not None:
            x = self.bn(x)
        if self.act:
            x = F.relu(x)
        x = self.conv(x)
        if self.groups > 1:  # channel shuffle
            n, c, h, w = x.shape
            x = x.view(n, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(n, c, h, w)
        return x


class SeparableEdge(nn.Module):
    """BatchNorm, ReLU, depthwise convolution, 1x1 convolution, at constant width."""

    def __init__(self, width: int, kernel: int, dilation: int, device: Any = None) -> None:
        super().__init__()
        self.bn = batch_norm(width, device=device)
        self.depth_conv = conv2d(width, width, kernel, dilation=dilation, groups=width, device=device)
        self.point_conv = conv2d(width, width, 1, device=device)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, width, H, W] to the same shape."""
        return self.point_conv(self.depth_conv(F.relu(self.bn(x))))


def make_edge(letter: str, width: int, device: Any = None) -> nn.Module:
    """Return the operation of an edge (letters: see :mod:`proxylessnas.arch.tree`)."""
    if letter == "i":
        return nn.Identity()
    if letter == "a":
        return nn.AvgPool2d(3, 1, 1, count_include_pad=False)
    if letter == "m":
        return nn.MaxPool2d(3, 1, 1)
    kernel, dilation = (3, 2) if letter == "d" else (int(letter), 1)
    return SeparableEdge(width, kernel, dilation, device)


class TreeNode(nn.Module):
    """Copies its input to two edges; each output passes a child node, if there is one; adds the two."""

    def __init__(self, letters: str, width: int, device: Any = None) -> None:
        super().__init__()
        self.edges = nn.ModuleList(make_edge(letter, width, device) for letter in letters[:2])
        self.child_nodes = nn.ModuleList(
            TreeNode(letters[i : i + 2], width, device) for i in range(2, len(letters), 2)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, width, H, W] to the same shape."""
        a, b = self.edges[0](x), self.edges[1](x)
        if self.child_nodes:
            a, b = self.child_nodes[0](a), self.child_nodes[1](b)
        return a + b


class RootNode(nn.Module):
    """Splits the channels over the branches; ``sum_b BatchNorm_b(tree_b(x_b)) + x_b``."""

    def __init__(self, word: str, width: int, device: Any = None) -> None:
        super().__init__()
        words = [word[i : i + EDGES_PER_BRANCH] for i in range(0, len(word), EDGES_PER_BRANCH)]
        self.child_nodes = nn.ModuleList(TreeNode(letters, width, device) for letters in words)
        self.branch_bns = nn.ModuleList(batch_norm(width, device=device) for _ in words)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, 2 * width, H, W] to [N, width, H, W]."""
        a, b = x.chunk(BRANCHES, dim=1)
        a = self.branch_bns[0](self.child_nodes[0](a)) + a
        b = self.branch_bns[1](self.child_nodes[1](b)) + b
        return a + b


class TreeCell(nn.Module):
    """A 3x3 convolution in two shuffled groups that doubles the width, then the root node."""

    def __init__(self, word: str, width: int, stride: int, device: Any = None) -> None:
        super().__init__()
        self.edges = nn.ModuleList([PreActConv(width, BRANCHES * width, 3, stride, BRANCHES, device=device)])
        self.child_nodes = nn.ModuleList([RootNode(word, width, device)])

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, width, H, W] to [N, width, H / stride, W / stride]."""
        return self.child_nodes[0](self.edges[0](x))


class ResidualTreeBlock(nn.Module):
    """Bottleneck, tree cell, bottleneck and BatchNorm, added to the shortcut padded with zero channels."""

    def __init__(
        self,
        word: str,
        in_channels: int,
        width: int,
        stride: int,
        drop_path_rate: float = 0.0,
        device: Any = None,
    ) -> None:
        super().__init__()
        self.in_bottle = PreActConv(in_channels, width, 1, act=False, device=device)
        self.out_bottle = PreActConv(width, BOTTLENECK * width, 1, device=device)
        self.cell = TreeCell(word, width, stride, device)
        self.final_bn = batch_norm(BOTTLENECK * width, device=device)
        self.stride = stride
        self.pad = BOTTLENECK * width - in_channels
        self.drop_path_rate = drop_path_rate

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, in, H, W] to [N, 4 * width, H / stride, W / stride]."""
        y = self.final_bn(self.out_bottle(self.cell(self.in_bottle(x))))
        if self.training and self.drop_path_rate:
            y = drop_path(y, self.drop_path_rate)
        if self.stride > 1:
            x = F.avg_pool2d(x, self.stride)
        if self.pad > 0:
            x = F.pad(x, (0, 0, 0, 0, 0, self.pad))
        return x + y


class Transition(nn.Module):
    """Layers in a row, under the original name ``layers``."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layers in order."""
        return self.layers(x)


class Norm(nn.Module):
    """BatchNorm under the name ``bn``, with an optional ReLU."""

    def __init__(self, width: int, act: bool, device: Any = None) -> None:
        super().__init__()
        self.bn = batch_norm(width, device=device)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape."""
        x = self.bn(x)
        return F.relu(x) if self.act else x


class PyramidTreeNet(ImageClassifier):
    """The tree-structured model; arguments as for :class:`~proxylessnas.models.proxylessnas.ProxylessNAS`.

    ``drop_path_rate`` p drops whole cells, block l of L with probability 2 * l * p / (L + 1), mean p; at
    training time the others are rescaled (PathLevel-EAS), so nothing changes at evaluation. The published
    run's rate is not known.
    """

    def __init__(
        self,
        arch: TreeArch,
        *,
        num_classes: int | None = None,
        in_chans: int | None = None,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: Any = None,
    ) -> None:
        super().__init__(arch, arch.final_width, drop_rate)
        check_rate("drop_path_rate", drop_path_rate)
        self.in_chans = check_in_chans(in_chans, arch)
        stem = PreActConv(self.in_chans, arch.start, 3, bn=False, act=False, device=device)
        blocks: list[nn.Module] = [Transition(stem, Norm(arch.start, False, device))]
        width, count = arch.start, len(arch.words)
        reduction = 1
        last = {reduction: (width, "blocks.0")}
        for i, (word, inner) in enumerate(zip(arch.words, arch.cell_widths, strict=True)):
            rate = min(2 * (i + 1) * drop_path_rate / (count + 1), 0.999)
            blocks.append(ResidualTreeBlock(word, width, inner, arch.stride(i), rate, device))
            width = BOTTLENECK * inner
            reduction *= arch.stride(i)
            last[reduction] = (width, f"blocks.{i + 1}")
        blocks.append(Transition(Norm(width, True, device)))
        self.blocks = nn.ModuleList(blocks)
        self._set_head(num_classes, global_pool, device)
        self.feature_info = [{"num_chs": c, "reduction": r, "module": m} for r, (c, m) in last.items()]

    def stem_and_blocks(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield ``(module name, output)`` after the stem and after every block."""
        for i, block in enumerate(self.blocks[:-1]):
            x = block(x)
            yield f"blocks.{i}", x

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last feature map after BatchNorm and ReLU; published: [N, 400, H / 4, W / 4]."""
        for block in self.blocks:
            x = block(x)
        return x
