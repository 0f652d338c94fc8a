"""Small charts of lines for a page: legible on a phone, with a cursor that a script can move."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from ..utils.plotting import BLUE, GREEN, GREY, GRID, ORANGE, open_figure
from .page import inline

_SIZE_IN = (5.0, 2.5)
_COLORS = ((BLUE, "-"), (ORANGE, "--"), (GREEN, "-."))
_MARKERS_UP_TO = 40
_LOG_FROM = 50.0
_FONT = 10


class Line(NamedTuple):
    """Points of a line: (x, y) in order; its name is in the legend if there are several."""

    name: str
    points: Sequence[tuple[float, float]]


class Mark(NamedTuple):
    """A level line: a target, with what is written at it."""

    value: float
    text: str


def finite(points: Sequence[tuple[Any, Any]]) -> list[tuple[float, float]]:
    """Return the points that are two finite numbers."""
    found = []
    for x, y in points:
        if (
            isinstance(x, (int, float))
            and isinstance(y, (int, float))
            and math.isfinite(x)
            and math.isfinite(y)
        ):
            found.append((float(x), float(y)))
    return found


def line_chart(
    title: str,
    unit: str,
    lines: Sequence[Line],
    *,
    x_label: str = "weight steps",
    x_range: tuple[float, float] | None = None,
    marks: Sequence[Mark] = (),
    log: bool = False,
    cursor: bool = False,
) -> str:
    """Return a chart as an element of a page; "" where there is nothing to draw.

    Args:
        title: above it, and for screen readers.
        unit: of the values.
        lines: at most three.
        x_label: what is across.
        x_range: ends of the axis; None takes those of the points.
        marks: level lines.
        log: use a logarithmic axis where the values are positive and far apart.
        cursor: with an upright line, of class "cursor", that a script moves; ``data-x0`` and ``data-x1`` of
            the chart are where the ends of ``x_range`` are.
    """
    from matplotlib.ticker import MaxNLocator

    lines = [line for line in lines if line.points]
    if not lines:
        return ""
    file = io.BytesIO()
    with open_figure(file, *_SIZE_IN, tight=False) as figure:
        axes = figure.add_subplot()
        values = [y for line in lines for _, y in line.points]
        _draw(axes, lines, marks, log=log)
        if x_range is not None and x_range[0] < x_range[1]:
            axes.set_xlim(*x_range)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
        axes.set_xlabel(x_label, fontsize=_FONT)
        axes.set_ylabel(unit, fontsize=_FONT)
        axes.tick_params(labelsize=_FONT, color=GREY)
        axes.grid(color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        figure.draw_without_rendering()
        scale = 72 / figure.dpi
        ends = [axes.transData.transform((x, values[0]))[0] * scale for x in axes.get_xlim()]
        top, bottom = (72 * _SIZE_IN[1] - edge * scale for edge in (axes.bbox.y1, axes.bbox.y0))
    svg = inline(file, title, _in_words(title, unit, lines, x_label, marks))
    if not cursor:
        return svg.text
    line = f'<line class="cursor" x1="{ends[1]:.1f}" x2="{ends[1]:.1f}" y1="{top:.1f}" y2="{bottom:.1f}"/>'
    where = f'<svg data-x0="{ends[0]:.2f}" data-x1="{ends[1]:.2f}" '
    return svg.text.replace("<svg ", where, 1).removesuffix("</svg>") + line + "</svg>"


def _draw(axes: Any, lines: Sequence[Line], marks: Sequence[Mark], *, log: bool) -> None:
    """Draw lines and level lines, with room above for what stands there."""
    from matplotlib.ticker import MaxNLocator

    for (name, points), (color, style) in zip(lines, _COLORS, strict=False):
        marker = "o" if len(points) <= _MARKERS_UP_TO else ""
        x, y = zip(*points, strict=True)
        axes.plot(x, y, style, marker=marker, markersize=3.5, linewidth=1.7, color=color, label=name)
    values = [y for line in lines for _, y in line.points]
    for value, text in marks:
        axes.axhline(value, color=ORANGE, linewidth=1.5, linestyle=(0, (5, 2)))
        axes.annotate(
            text, (1, value), (-2, 3), xycoords=("axes fraction", "data"), textcoords="offset points",
            ha="right", fontsize=_FONT, color=ORANGE,
        )  # fmt: skip
    if log and min(values) > 0 and max(values) / min(values) >= _LOG_FROM:
        axes.set_yscale("log")
    else:
        reached = [*values, *(mark.value for mark in marks)]
        room = 0.1 * (max(reached) - min(reached)) or 0.05 * abs(max(reached)) or 1.0
        axes.set_ylim(min(reached) - room, max(reached) + 1.4 * room)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    if len(lines) > 1:
        place = {"loc": "lower right", "bbox_to_anchor": (1.01, 1), "borderaxespad": 0.1}
        axes.legend(**place, ncols=len(lines), frameon=False, fontsize=_FONT)


def _in_words(title: str, unit: str, lines: Sequence[Line], x_label: str, marks: Sequence[Mark]) -> str:
    """Return what a chart shows, for those who do not see it."""
    texts = []
    for name, points in lines:
        (x0, first), (x1, last) = points[0], points[-1]
        low, high = min(y for _, y in points), max(y for _, y in points)
        texts.append(
            f"{name + ': ' if name else ''}from {first:.4g} at {x0:g} to {last:.4g} at {x1:g} {x_label}, "
            f"between {low:.4g} and {high:.4g} {unit}"
        )
    return f"{title}. " + "; ".join([*texts, *(mark.text for mark in marks)]) + "."
