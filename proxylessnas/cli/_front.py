"""The front of a search for several targets, as a table and a chart for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ._output import UNITS, table

_WIDTH, _HEIGHT = 56, 10  # of the chart, in characters

Points = Sequence[tuple[float, float]]


def front_text(front: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the models of a front: a table, and accuracy against cost.

    Args:
        front: by folder, what ``result.json`` says of each model.
    """
    from ..search.front import front_rows

    kind = next(iter(next(iter(front.values()))["limits"]))
    rows = front_rows([{**of, "folder": name} for name, of in front.items()], kind)
    unit = UNITS.get(kind, "")
    cells = [["target", "top-1 (%)", "predicted", "measured", "folder"]]
    for row in rows:
        target, predicted = (f"{row[name]:.4g} {unit}" for name in ("target", "predicted"))
        measured = "-" if row["measured_ms"] is None else f"{row['measured_ms']:.4g} ms"
        cells.append([target, f"{row['top1_held_out']:.2f}", predicted, measured, row["folder"]])
    marks = {"o": [(row["predicted"], row["top1_held_out"]) for row in rows]}
    if kind == "latency":
        marks["x"] = [(r["measured_ms"], r["top1_held_out"]) for r in rows if r["measured_ms"] is not None]
    said = "o predicted" + (", x measured" if marks.get("x") else "")
    across = f"{kind} ({unit}): {said}"
    return f"{table(cells, '>>>><')}\n\n{chart(marks, 'top-1 (%)', across)}"


def chart(marks: Mapping[str, Points], up: str, across: str) -> str:
    """Return points as a chart of characters; where several marks meet is a ``*``."""
    points = [point for found in marks.values() for point in found]
    (x0, x1), (y0, y1) = ((min(v), max(v)) for v in zip(*points, strict=True))
    grid = [[" "] * _WIDTH for _ in range(_HEIGHT)]
    for mark, found in marks.items():
        for x, y in found:
            column = round((x - x0) / (x1 - x0 or 1) * (_WIDTH - 1))
            row = round((y1 - y) / (y1 - y0 or 1) * (_HEIGHT - 1))
            grid[row][column] = mark if grid[row][column] in (" ", mark) else "*"
    labels = [f"{y1:.2f}", *[""] * (_HEIGHT - 2), f"{y0:.2f}"]
    lines = [f"{label:>7} |{''.join(line).rstrip()}" for label, line in zip(labels, grid, strict=True)]
    ends = f"{x0:.4g}".ljust(_WIDTH - len(f"{x1:.4g}")) + f"{x1:.4g}"
    return "\n".join([up, *lines, f"{'':7} +{'-' * _WIDTH}", f"{'':9}{ends}", f"{'':9}{across}"])
