"""The search space of tree cells: what the paper searched for CIFAR-10 (section 4.1 and appendix A).

Each edge of each cell of a :class:`~proxylessnas.arch.tree.TreeArch` is a choice among the same operations:
12 edges a cell, 648 in the published pyramid of 54 cells, and so 7^648 models.

    >>> from proxylessnas.arch.spaces import read_space
    >>> space = read_space("cifar-tree")
    >>> len(space.search_blocks), space.candidate_ops
    (648, ('i', '3', '5', '7', 'd', 'a', 'm'))

This module needs neither torch nor any file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..errors import ArchError
from ..utils.checks import Range
from ..utils.config import Config, option
from .blocks import BOTTLENECK, BRANCHES, EDGE_LETTERS, EDGES_PER_BRANCH, MAX_WIDTH
from .space_base import SearchBlock, Space
from .space_values import SpaceStage
from .tree import TreeArch

#: Edges of a cell in the order of its word.
EDGES = tuple(f"{b}.{edge}" for b in range(BRANCHES) for edge in ("e0", "e1", "e00", "e01", "e10", "e11"))
#: What each letter is.
EDGE_OPS = {
    "i": "identity",
    "3": "depthwise-separable convolution, 3x3",
    "5": "depthwise-separable convolution, 5x5",
    "7": "depthwise-separable convolution, 7x7",
    "d": "depthwise-separable convolution, 3x3 with dilation 2",
    "a": "average pooling, 3x3",
    "m": "max pooling, 3x3",
}
_SIZES = ("start", "alpha", "num_stages", "num_classes", "in_channels", "resolution")


@dataclass(frozen=True)
class TreeSpace(Space, Config):
    """The tree models a search can choose from: pyramids of tree cells whose edges are searched.

    Raises:
        ArchError: something is wrong with it; the message lists every problem.
    """

    kind, group = "tree", len(EDGES)
    what = "search space"
    error = ArchError

    # fmt: off
    name: str = option("cifar-tree", None, "free text", group="a pyramid of tree cells whose edges are "
        "searched")
    cells: int = option(54, Range(1, 1000), "tree cells; stages share them equally")
    start: int = option(16, Range(2, MAX_WIDTH // 8), "output channels of the stem")
    alpha: int = option(84, Range(0, MAX_WIDTH // 8), "widening: cells grow from start to start + alpha "
        "channels")
    num_stages: int = option(3, Range(1, 8), "every stage after the first halves the resolution")
    candidates: str = option(EDGE_LETTERS, None, "letters of the operations that every edge can be: i "
        "identity, 3 5 7 depthwise-separable, d dilated 3x3, a and m average and max pooling")
    resolution: int = option(32, Range(1, MAX_WIDTH), "input height and width, px")
    num_classes: int = option(10, Range(1, 10_000_000), "outputs of the classifier")
    in_channels: int = option(3, Range(1, MAX_WIDTH), "input channels")
    # fmt: on

    #: BatchNorm settings of the published model.
    bn_eps = TreeArch.bn_eps
    bn_momentum = TreeArch.bn_momentum

    def conflicts(self) -> list[str]:
        """Return what does not fit together."""
        unknown = [letter for letter in self.candidates if letter not in EDGE_LETTERS]
        found = [f"candidates: {letter!r} is none of {EDGE_LETTERS}" for letter in unknown]
        if not self.candidates or len(set(self.candidates)) < len(self.candidates):
            found.append("candidates must be letters, each once")
        try:
            self._bare()
        except ArchError as e:
            found.append(str(e))
        return found

    def _of(self, letters: str, name: str = "") -> TreeArch:
        words = [letters[i : i + len(EDGES)] for i in range(0, len(letters), len(EDGES))]
        return TreeArch(name or self.name, " ".join(words), **{size: getattr(self, size) for size in _SIZES})

    def _bare(self) -> TreeArch:
        """Return a model, for what all models have in common."""
        return self._of(EDGE_LETTERS[0] * (self.cells * len(EDGES)))

    @property
    def candidate_ops(self) -> tuple[str, ...]:
        """The letters of the candidates."""
        return tuple(self.candidates)

    @cached_property
    def search_blocks(self) -> tuple[SearchBlock, ...]:
        """The edges of all cells, in the order of their words."""
        bare = self._bare()
        found: list[SearchBlock] = []
        each, size = self.cells // self.num_stages, self.resolution
        columns = tuple(range(len(self.candidates)))
        for cell, width in enumerate(bare.cell_widths):
            size //= bare.stride(cell)
            stage, first = divmod(cell, each)
            for edge in range(len(EDGES)):
                block = first * len(EDGES) + edge
                shape = (len(found), stage, block, width, width, size, 1, False)
                found.append(SearchBlock(*shape, self.candidate_ops, columns))
        return tuple(found)

    @property
    def stages(self) -> tuple[SpaceStage, ...]:  # type: ignore[override]
        """Width of each stage's last cell, stride, and edges."""
        widths = self._bare().cell_widths
        each = self.cells // self.num_stages
        return tuple(
            SpaceStage(BOTTLENECK * widths[(s + 1) * each - 1], 2 if s else 1, each * len(EDGES))
            for s in range(self.num_stages)
        )

    def place(self, search_block: SearchBlock) -> str:
        """Return what messages call an edge."""
        cell, edge = divmod(search_block.index, len(EDGES))
        return f"cell {cell + 1}, branch and edge {EDGES[edge]}"

    def label(self, search_block: SearchBlock) -> str:
        """Return what figures call an edge: "3.0.e01" is cell, branch and edge."""
        cell, edge = divmod(search_block.index, len(EDGES))
        return f"{cell + 1}.{EDGES[edge]}"

    def arch(self, choices: Sequence[int], name: str = "net") -> TreeArch:
        """Return the model with candidate ``choices[i]`` on edge ``i``.

        Raises:
            ArchError: there is a wrong number of choices, or one that is no candidate.
        """
        return self._of("".join(self.tokens(choices)), name)

    def choices(self, arch: Any) -> tuple[int, ...]:
        """Return the candidate on each edge of a model; undoes :meth:`arch`.

        Raises:
            ArchError: the model is not in the space; the message says where it differs.
        """
        if not isinstance(arch, TreeArch):
            raise ArchError(f"a {type(arch).__name__} is not in a space of tree cells")
        if len(arch.words) != self.cells:
            raise self._not_here(arch, f"it has {len(arch.words)} cells, the space {self.cells}")
        for what in _SIZES:
            if getattr(arch, what) != getattr(self, what):
                raise self._not_here(
                    arch, f"{what} is {getattr(arch, what)}, in the space {getattr(self, what)}"
                )
        letters = "".join(arch.words)
        for block, letter in zip(self.search_blocks, letters, strict=True):
            if letter not in self.candidates:
                raise self._not_here(
                    arch, f"{self.place(block)}: {letter!r} is none of {' '.join(self.candidates)}"
                )
        return tuple(map(self.candidates.index, letters))

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {"kind": self.kind, **Config.to_dict(self)}

    def to_toml(self) -> str:
        """Return it as a TOML file."""
        return f'kind = "{self.kind}"\n\n{Config.to_toml(self)}'

    def replace(self, **changes: Any) -> TreeSpace:
        """Return a copy with other values, checked anew."""
        return Config.replace(self, **changes)


assert len(EDGES) == BRANCHES * EDGES_PER_BRANCH
