"""The tree cells of the CIFAR-10 model as figures: all of them on a sheet, or a few in detail.

The graph of a cell, and where its nodes go, are networkx's (it comes with torch). Each operation is a badge
on its edge: a letter, and a colour and a shape by kind, so that a badge is known without colours as well.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..arch.blocks import BRANCHES, EDGES_PER_BRANCH
from ..arch.tree import TreeArch
from ..errors import DataError
from ..utils.plotting import GREEN, GREY, open_figure, require_matplotlib
from .draw_model import INK

if TYPE_CHECKING:
    import networkx

#: Letter -> (what it is, fill, colour of the letter, marker: round for convolutions, square for pooling).
OPERATIONS = {
    "i": ("identity", "#fdfdfd", "#1b1b1b", "o"),
    "3": ("3×3 separable", "#f7c948", "#1b1b1b", "o"),
    "5": ("5×5 separable", "#4ba3c7", "#10222b", "o"),
    "7": ("7×7 separable", "#0b3c5d", "#fdfdfd", "o"),
    "d": ("3×3 dilated", GREEN, "#111111", "o"),
    "a": ("average pool", "#d9d9d9", "#1b1b1b", "s"),
    "m": ("max pool", "#8f5a2a", "#fdfdfd", "s"),
}
_FEW = 4  # cells that are drawn in detail
_ACROSS = 9  # cells in a row of the sheet, at most
_CELL_IN = (1.28, 1.6)
_DETAIL_IN = (6.2, 4.8)
_TALL = 5.0  # height of a cell's graph; it is 2 wide
_PITCH = (2.5, 6.6)  # of cells on the sheet, in the same unit


def cell_graph(word: str) -> networkx.DiGraph:
    """Return a cell as a graph; a node's ``layer`` is its place from input (0) to output.

    An edge that is an operation has its letter as ``op``. Both branches start at the input, whose channels
    they share, and end in their sum, to which the branch's input is added (``op`` "shortcut").
    """
    import networkx

    graph = networkx.DiGraph()
    graph.add_node("in", layer=0)
    for b in range(BRANCHES):
        letters = word[b * EDGES_PER_BRANCH : (b + 1) * EDGES_PER_BRANCH]
        x, total = f"{b}", f"{b}+"
        graph.add_node(x, layer=1)
        graph.add_edge("in", x, op="")
        for i in range(2):
            child = f"{b}{i}"
            graph.add_node(child, layer=2)
            graph.add_edge(x, child, op=letters[i])
            for j in range(2):
                leaf = f"{child}{j}"
                graph.add_node(leaf, layer=3)
                graph.add_edge(child, leaf, op=letters[2 + 2 * i + j])
                graph.add_edge(leaf, total, op="")
        graph.add_node(total, layer=4)
        graph.add_edge(x, total, op="shortcut")
        graph.add_node("out", layer=5)
        graph.add_edge(total, "out", op="")
    return graph


def tree_figure(
    arch: TreeArch, target: str | os.PathLike[str] | io.BytesIO, *, cells: Sequence[int] | None = None
) -> None:
    """Draw the cells of a model.

    Args:
        arch: the model.
        target: path of the file, ``.svg`` or ``.png``, which is replaced as a whole, or not at all; or a
            buffer for an SVG.
        cells: which, counted from 1; None takes all. Up to four are drawn in detail, more as a sheet, a
            stage after the other.

    Raises:
        DataError: there is no such cell.
        MissingExtraError: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    require_matplotlib()
    count = len(arch.words)
    shown = list(range(1, count + 1)) if cells is None else list(cells)
    bad = [cell for cell in shown if not 1 <= cell <= count]
    if bad or not shown:
        raise DataError(f"{arch.name}: has no cell {bad[0] if bad else 0}; they are 1 to {count}")
    detail = len(shown) <= _FEW
    rows = _rows(shown, count // arch.num_stages, 2 if detail else _ACROSS)
    across, size = max(map(len, rows)), _DETAIL_IN if detail else _CELL_IN
    with open_figure(target, size[0] * across, size[1] * len(rows) + 0.9) as figure:
        # One pair of axes for all cells: with one a cell, a sheet takes ten times as long.
        axes = figure.add_subplot()
        axes.set(xlim=(-1.25, across * _PITCH[0] - 1.25), ylim=(-len(rows) * _PITCH[1] + 1.3, 1.3))
        axes.set_axis_off()
        widths = f"{arch.cell_widths[0]} to {arch.cell_widths[-1]} channels"
        title = f"{arch.name}: {count} tree cells in {arch.num_stages} stages, {widths}"
        axes.set_title(title, loc="left", fontsize=12, fontweight="bold", color=INK)
        pen = _Pen(detail)
        for i, row in enumerate(rows):
            for j, cell in enumerate(row):
                pen.cell(axes, arch, cell, j * _PITCH[0], -i * _PITCH[1])
        pen.finish(axes)
        _legend(axes, {letter for cell in shown for letter in arch.words[cell - 1]}, detail)


def _rows(shown: Sequence[int], per_stage: int, most: int) -> list[list[int]]:
    """Return the cells row by row; on a sheet a stage begins a row."""
    rows: list[list[int]] = []
    stage = None
    for cell in shown:
        here = (cell - 1) // per_stage
        if not rows or len(rows[-1]) == most or (here != stage and most == _ACROSS):
            rows.append([])
        stage = here
        rows[-1].append(cell)
    return rows


def _places(graph: networkx.DiGraph) -> dict[str, tuple[float, float]]:
    """Return where nodes are: levels of networkx's layout, each spread so that parents are above children."""
    import networkx

    levels: dict[int, list[str]] = {}
    for node, layer in sorted(graph.nodes(data="layer")):
        levels.setdefault(layer, []).append(node)
    found = networkx.multipartite_layout(graph, subset_key=levels, align="horizontal")
    places = {}
    for layer, nodes in levels.items():
        spread = 1 - (8 / len(nodes) - 1) / 7
        most = max(abs(float(found[node][0])) for node in nodes) or 1.0
        for node in nodes:
            places[node] = (spread * float(found[node][0]) / most, -_TALL * layer / 5)
    return places


class _Pen:
    """Draws cells; what is many and alike is gathered and drawn at once, which is much quicker."""

    def __init__(self, detail: bool) -> None:
        self.detail = detail
        self._lines: dict[str, list[list[tuple[float, float]]]] = {"edge": [], "shortcut": []}
        self._badges: dict[str, list[tuple[float, float]]] = {}
        self._nodes: list[tuple[float, float]] = []
        self._sums: list[tuple[float, float]] = []

    def cell(self, axes: Any, arch: TreeArch, cell: int, left: float, top: float) -> None:
        """Draw the cell with this number, from 1, around ``left`` and below ``top``."""
        graph = cell_graph(arch.words[cell - 1])
        at = {node: (left + x, top + y) for node, (x, y) in _places(graph).items()}
        for start, end, op in graph.edges(data="op"):
            (x0, y0), (x1, y1) = at[start], at[end]
            self._lines["shortcut" if op == "shortcut" else "edge"].append([(x0, y0), (x1, y1)])
            if op and op != "shortcut":
                # The lowest level, where it is narrow, has no other marks.
                share = 0.55 if len(end) == 2 else 1.0
                self._badges.setdefault(op, []).append((x0 + share * (x1 - x0), y0 + share * (y1 - y0)))
        for node, place in at.items():
            if node[-1] == "+" or node == "out":
                self._sums.append(place)
            elif len(node) < 3:
                self._nodes.append(place)
        stage = (cell - 1) // (len(arch.words) // arch.num_stages)
        about = f"{arch.cell_widths[cell - 1]} ch, {arch.resolution // 2**stage} px"
        about += "; halves the map" if arch.stride(cell - 1) == 2 and self.detail else ""
        size = (12, 9) if self.detail else (8, 6.2)
        up = (0.5, 0.25) if self.detail else (0.78, 0.36)
        axes.text(left - 1.05, top + up[0], f"cell {cell}", fontsize=size[0], color=INK, va="center")
        axes.text(left - 1.05, top + up[1], about, fontsize=size[1], color=GREY, va="center")

    def finish(self, axes: Any) -> None:
        """Draw what was gathered."""
        from matplotlib.collections import LineCollection

        detail = self.detail
        edges, shortcuts = self._lines["edge"], self._lines["shortcut"]
        axes.add_collection(LineCollection(edges, colors=INK, linewidths=1.1 if detail else 0.6, zorder=1))
        axes.add_collection(
            LineCollection(shortcuts, colors=GREY, linewidths=0.8, linestyles=[(0, (3, 2))], zorder=0)
        )

        def dots(places: list[tuple[float, float]], **look: Any) -> None:
            axes.scatter(*zip(*places, strict=True), **look)

        dots(self._nodes, s=22 if detail else 5, color=INK, zorder=3)
        ring = {"facecolor": "#ffffff", "edgecolor": INK, "linewidth": 0.6}
        dots(self._sums, s=190 if detail else 42, zorder=3, **ring)
        dots(self._sums, s=60 if detail else 14, marker="+", color=INK, linewidth=0.8, zorder=4)
        for op, places in self._badges.items():
            name, fill, ink, marker = OPERATIONS[op]
            if not detail:
                dots(places, s=74, marker=marker, facecolor=fill, edgecolor=INK, linewidth=0.5, zorder=5)
            text = {"fontsize": 6.0, "va": "center_baseline"}
            if detail:
                box = {"boxstyle": "round,pad=0.22", "facecolor": fill, "edgecolor": INK, "linewidth": 0.5}
                text = {"fontsize": 7.5, "va": "center", "linespacing": 0.95, "bbox": box}
            for x, y in places:
                words = name.replace(" ", "\n") if detail else op
                axes.text(x, y, words, ha="center", color=ink, zorder=6, **text)


def _legend(axes: Any, letters: set[str], detail: bool) -> None:
    from matplotlib.lines import Line2D

    handles: list[Any] = []
    for letter in (known for known in OPERATIONS if known in letters and not detail):
        name, fill, _, marker = OPERATIONS[letter]
        badge = Line2D([], [], marker=marker, markersize=8, linestyle="none", markerfacecolor=fill)
        badge.set(markeredgecolor=INK, markeredgewidth=0.6, label=f"{letter}: {name}")
        handles.append(badge)
    dashes = (0, (3, 2))
    handles.append(Line2D([], [], color=GREY, linewidth=0.8, linestyle=dashes, label="the branch's input"))
    handles.append(Line2D([], [], color=INK, marker="+", linestyle="none", markersize=6, label="sum"))
    place = {"loc": "upper left", "bbox_to_anchor": (0.0, 0.0), "ncols": 2 if detail else 5}
    axes.legend(handles=handles, **place, frameon=False, fontsize=9, labelcolor=INK)
