"""The probabilities of a search's candidates as a heat map: a row a block, a column a candidate.

Of tree cells a row is a cell, and the candidates of its edges stand side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..arch.space_base import Space
from ..utils.plotting import ORANGE, SHADES


class ProbabilityMap:
    """Fills a pair of axes; what it shows can be changed, which is much quicker than drawing anew.

    Args:
        axes: of matplotlib.
        space: whose blocks and candidates they are.
    """

    def __init__(self, axes: Any, space: Space) -> None:
        from matplotlib.colors import LinearSegmentedColormap

        self._candidates, self._group = len(space.candidate_ops), space.group
        rows, columns = len(space.search_blocks) // space.group, self._candidates * space.group
        colors = LinearSegmentedColormap.from_list("shares", SHADES)
        self._image = axes.imshow([[0.0] * columns] * rows, cmap=colors, vmin=0, vmax=1, aspect="auto")
        if space.group == 1:
            names = ["skip" if c == "-" else c for c in space.candidate_ops]
            axes.set_xticks(range(columns), names, fontsize=8)
            axes.set_yticks(range(rows), block_names(space), fontsize=8)
            axes.set_ylabel("stage.block", fontsize=8)
        else:
            self._name_cells(axes, space, rows)
        axes.tick_params(length=0)
        lines = range(1, columns) if space.group == 1 else range(self._candidates, columns, self._candidates)
        axes.set_xticks([i - 0.5 for i in lines], minor=True)
        axes.set_yticks([i - 0.5 for i in range(1, rows)], minor=True)
        axes.grid(which="minor", color="#e0e0e0", linewidth=0.6)
        axes.tick_params(which="minor", length=0)
        axes.spines[:].set_color("#b0b0b0")
        for i, search_block in enumerate(space.search_blocks):
            row = i // space.group
            for column, name in enumerate(space.candidate_ops):
                if name not in search_block.candidate_ops:
                    axes.plot(column, row, marker="x", color="#c4c4c4", markersize=4)
            if search_block.block == 0 and row:
                axes.axhline(row - 0.5, color="#8a8a8a", linewidth=1.0)
        axes.set_title("probability of each candidate (ring: the most probable)", loc="left", fontsize=9)
        (self._rings,) = axes.plot(
            [],
            [],
            "o",
            markersize=9 if space.group == 1 else 3,
            markerfacecolor="none",
            markeredgecolor=ORANGE,
            mew=1.8 if space.group == 1 else 0.8,
        )

    def show(self, probs: Sequence[Sequence[float]]) -> None:
        """Show probabilities, [positions][candidates]."""
        group = self._group
        rows = [[p for line in probs[i : i + group] for p in line] for i in range(0, len(probs), group)]
        self._image.set_data(rows)
        choices = [max(range(len(line)), key=line.__getitem__) for line in probs]
        columns = [i % group * self._candidates + choice for i, choice in enumerate(choices)]
        self._rings.set_data(columns, [i // group for i in range(len(choices))])

    def _name_cells(self, axes: Any, space: Space, rows: int) -> None:
        """Name edges below and cells beside a map of tree cells, not more than there is room for."""
        edges = [space.label(block).partition(".")[2] for block in space.search_blocks[: space.group]]
        middle = (self._candidates - 1) / 2
        axes.set_xticks([i * self._candidates + middle for i in range(space.group)], edges, fontsize=7)
        every = -(-rows // 18)
        axes.set_yticks(range(0, rows, every), [str(row + 1) for row in range(0, rows, every)], fontsize=8)
        axes.set_ylabel("cell", fontsize=8)
        axes.set_xlabel(f"branch.edge, each with {' '.join(space.candidate_ops)}", fontsize=8)


def map_size_in(space: Space) -> tuple[float, float]:
    """Return width and height that a map can be read at, in inches, without what stands around it."""
    rows, columns = len(space.search_blocks) // space.group, len(space.candidate_ops) * space.group
    return (0.6 if space.group == 1 else 0.11) * columns, (0.25 if space.group == 1 else 0.3) * rows


def block_names(space: Space) -> list[str]:
    """Return names of the positions; see :meth:`~proxylessnas.arch.space_base.Space.label`."""
    return [space.label(block) for block in space.search_blocks]
