"""Names beside the marks of a chart, where they cover nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

MARKER_PT = 7.5  # a mark's width, points
_NAME_LENGTH = 28
_Line = tuple[tuple[float, float], tuple[float, float]]


def name_points(axes: Any, points: Sequence[tuple[float, float, str]], lines: Sequence[_Line] = ()) -> None:
    """Write names beside marks where they cover no marks, lines or other names, as far as there is room.

    Args:
        axes: drawn already, so that its size is known.
        points: (x, y, name).
        lines: level ones, or dots.
    """
    from matplotlib.transforms import Bbox

    renderer = axes.figure.canvas.get_renderer()
    frame = axes.get_window_extent(renderer)
    scale = axes.figure.dpi / 72
    half = 0.5 * MARKER_PT * scale
    marks = [axes.transData.transform((x, y)) for x, y, _ in points]
    taken = [Bbox.from_extents(x - half, y - half, x + half, y + half) for x, y in marks]
    for ends in lines:
        (x0, y0), (x1, y1) = axes.transData.transform(ends)
        taken.append(Bbox.from_extents(x0 - scale, y0 - scale, x1 + scale, y1 + scale))
    gap = half / scale + 3
    places = [  # of the text, from its mark, in points: (x, y, horizontal, vertical alignment)
        (gap, 0, "left", "center"), (-gap, 0, "right", "center"), (0, gap, "center", "bottom"),
        (0, -gap, "center", "top"), (gap, gap, "left", "bottom"), (gap, -gap, "left", "top"),
        (-gap, gap, "right", "bottom"), (-gap, -gap, "right", "top"), (0, 2.6 * gap, "center", "bottom"),
        (0, -2.6 * gap, "center", "top"),
    ]  # fmt: skip
    for x, y, name in points:
        best: tuple[float, Any, Bbox] | None = None
        for dx, dy, ha, va in places:
            text = axes.annotate(
                short(name), (x, y), (dx, dy), textcoords="offset points", ha=ha, va=va, fontsize=8.5,
                color="#303030", parse_math=False, annotation_clip=False,
            )  # fmt: skip
            # On the lines of the front; an outline would turn the text of an SVG into shapes.
            text.set_bbox({"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 0.5})
            text.set_in_layout(False)
            box = text.get_window_extent(renderer)
            cost = sum(_overlap(box, other) for other in taken) + 4 * (_area(box) - _overlap(box, frame))
            if best is None or cost < best[0] - 1e-6:
                if best is not None:
                    best[1].remove()
                best = (cost, text, box)
            else:
                text.remove()
            if best[0] <= 1e-6:
                break
        if best is not None:
            taken.append(best[2])


def _area(box: Any) -> float:
    return float(box.width * box.height)


def _overlap(a: Any, b: Any) -> float:
    width, height = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
    return float(max(0.0, width) * max(0.0, height))


def short(name: str, longest: int = _NAME_LENGTH) -> str:
    """Return a name of one line that is not too long for a chart."""
    name = "".join(c if c.isprintable() else " " for c in name)
    return name if len(name) <= longest else name[: longest - 1] + "…"
