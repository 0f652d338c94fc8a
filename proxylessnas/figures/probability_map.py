"""The probabilities of a search's candidates as a heat map: a row a block, a column a candidate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..arch.space import SearchSpace
from ..utils.plotting import ORANGE, SHADES


class ProbabilityMap:
    """Fills a pair of axes; what it shows can be changed, which is much quicker than drawing anew.

    Args:
        axes: of matplotlib.
        space: whose blocks and candidates they are.
    """

    def __init__(self, axes: Any, space: SearchSpace) -> None:
        from matplotlib.colors import LinearSegmentedColormap

        rows, columns = len(space.search_blocks), len(space.candidate_ops)
        colors = LinearSegmentedColormap.from_list("shares", SHADES)
        self._image = axes.imshow([[0.0] * columns] * rows, cmap=colors, vmin=0, vmax=1, aspect="auto")
        axes.set_xticks(range(columns), ["skip" if c == "-" else c for c in space.candidate_ops], fontsize=8)
        axes.set_yticks(range(rows), block_names(space), fontsize=8)
        axes.set_ylabel("stage.block", fontsize=8)
        axes.tick_params(length=0)
        axes.set_xticks([i - 0.5 for i in range(1, columns)], minor=True)
        axes.set_yticks([i - 0.5 for i in range(1, rows)], minor=True)
        axes.grid(which="minor", color="#e0e0e0", linewidth=0.6)
        axes.tick_params(which="minor", length=0)
        axes.spines[:].set_color("#b0b0b0")
        for row, search_block in enumerate(space.search_blocks):
            for column, name in enumerate(space.candidate_ops):
                if name not in search_block.candidate_ops:
                    axes.plot(column, row, marker="x", color="#c4c4c4", markersize=4)
            if search_block.block == 0 and row:
                axes.axhline(row - 0.5, color="#8a8a8a", linewidth=1.0)
        axes.set_title("probability of each candidate (ring: the most probable)", loc="left", fontsize=9)
        (self._rings,) = axes.plot(
            [], [], "o", markersize=9, markerfacecolor="none", markeredgecolor=ORANGE, mew=1.8
        )

    def show(self, probs: Sequence[Sequence[float]]) -> None:
        """Show probabilities, [blocks][candidates]."""
        self._image.set_data(probs)
        choices = [max(range(len(row)), key=row.__getitem__) for row in probs]
        self._rings.set_data(choices, range(len(choices)))


def block_names(space: SearchSpace) -> list[str]:
    """Return names of the blocks, as "2.1": stage and block in it, counted from 1."""
    return [f"{p.stage + 1}.{p.block + 1}" for p in space.search_blocks]
