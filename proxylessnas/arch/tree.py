"""The tree-structured CIFAR-10 architecture as data (ProxylessNAS, section 4.1 and appendix A).

A PyramidNet backbone whose 3x3 convolutions are replaced by tree cells (PathLevel-EAS). A cell has two
branches, a branch is a binary tree of depth 2 with six edges, so a cell is a word of 12 letters, one letter
an edge:

    branch 0: e0 e1 e00 e01 e10 e11   branch 1: e0 e1 e00 e01 e10 e11

with ``t(x) = L0(e0(x)) + L1(e1(x))`` and ``Li(z) = ei0(z) + ei1(z)``. Letters: ``i`` identity; ``3 5 7``
depthwise-separable convolution of that kernel; ``d`` the same with a 3x3 kernel and dilation 2; ``a`` and
``m`` 3x3 average and max pooling.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..errors import ArchError, shown
from .blocks import BOTTLENECK, BRANCHES, MAX_WIDTH, check_cell, check_common, check_int
from .official_tree import tree_to_official
from .text import format_tree


@dataclass(frozen=True)
class TreeArch:
    """A pyramid of residual tree cells.

    Attributes:
        name: free text, by habit the builder's name.
        cells: one word of 12 letters a cell, separated by spaces; stages share them equally.
        start: output channels of the stem.
        alpha: widening: the cell width grows from ``start`` to ``start + alpha`` in equal steps.
        num_stages: every stage after the first halves the resolution.
        num_classes: outputs of the classifier.
        in_channels: input channels.
        resolution: input height and width in pixels.
    """

    name: str
    cells: str = field(metadata={"check_word": check_cell})
    start: int = 16
    alpha: int = 84
    num_stages: int = 3
    num_classes: int = 10
    in_channels: int = 3
    resolution: int = 32

    #: BatchNorm settings of the published model (torch's defaults; its file says nothing else).
    bn_eps = 1e-5
    bn_momentum = 0.1

    def __post_init__(self) -> None:
        check_common(self)
        check_int("resolution", self.resolution, 1, MAX_WIDTH)
        check_int("start", self.start, 2, MAX_WIDTH // 8)
        check_int("alpha", self.alpha, 0, MAX_WIDTH // 8)
        check_int("num_stages", self.num_stages, 1, 8)
        if not isinstance(self.cells, str):
            raise ArchError(f"cells are one string of words, not {shown(self.cells)}")
        object.__setattr__(self, "cells", " ".join(self.cells.split()))
        words = self.words
        if not words or len(words) > 1000 or len(words) % self.num_stages:
            raise ArchError(f"{len(words)} cells cannot be shared equally by {self.num_stages} stages")
        for i, word in enumerate(words):
            check_cell(word, f"cell {i + 1}: ")
        if self.resolution % 2 ** (self.num_stages - 1):
            raise ArchError(f"resolution {self.resolution} cannot be halved {self.num_stages - 1} times")

    @property
    def words(self) -> tuple[str, ...]:
        """The cells' words, in order."""
        return tuple(self.cells.split())

    @property
    def cell_widths(self) -> tuple[int, ...]:
        """Channels inside each cell: linear growth, rounded, then made even (two groups)."""
        count, planes, widths = len(self.words), float(self.start), []
        for _ in range(count):
            planes += self.alpha / count
            width = round(planes)
            widths.append(width - width % BRANCHES)
        return tuple(widths)

    @property
    def final_width(self) -> int:
        """Channels that enter the classifier."""
        return BOTTLENECK * self.cell_widths[-1]

    def stride(self, cell: int) -> int:
        """Return the stride of a cell: 2 for the first one of every stage but the first."""
        per_stage = len(self.words) // self.num_stages
        return 2 if cell and cell % per_stage == 0 else 1

    def __str__(self) -> str:
        """Return the text form, which :meth:`proxylessnas.Arch.parse` reads back exactly."""
        return format_tree(self)

    def to_official(self) -> dict[str, Any]:
        """Return the original code's JSON description (``PyramidTreeNet``) as a dict."""
        return tree_to_official(self)
