"""Accuracy against latency, with the Pareto front, from the files that ``bench`` and ``eval`` wrote."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import DataError, LatencyError, shown
from ..latency.plots import DATASETS, accuracy_panels, panels_png
from ..utils.files import decode, read_bytes
from ..utils.text import csv_rows

_EXPECTED = "expected is a table of `proxylessnas bench --csv`, or what its --json prints"


def _flag(text: str) -> bool:
    return {"True": True, "False": False}[text]


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value) or value < 0:
        raise ValueError(text)
    return value


def _perhaps(text: str) -> float | None:
    return _number(text) if text else None


#: Columns of a bench that a chart needs, and how to read them.
_COLUMNS: dict[str, Callable[[str], Any]] = {
    "net": str, "peer": _flag, "runtime": str, "device": str, "threads": int, "batch": int,
    "median_ms": _number, "p10_ms": _number, "p90_ms": _number, "top1": _perhaps, "top1_status": str,
    "top1_dataset": str, "device_name": str, "versions": str, "date": str,
}  # fmt: skip


def read_bench(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Return the rows of a bench's file, ``.csv`` or ``.json``, as :meth:`BenchRow.to_dict` gave them.

    Raises:
        DataError: it cannot be read, or is no such file; the message names the line.
    """
    path = Path(path)
    text = _text(path)
    try:
        rows = json.loads(text)["rows"] if text.lstrip()[:1] == "{" else list(csv_rows(text))
        noise = [str(row.get("noise") or "") for row in rows]
        undisturbed = [str(row.get("undisturbed_ms") or "") for row in rows]  # none in an older file
        rows = [{key: "" if row[key] is None else str(row[key]) for key in _COLUMNS} for row in rows]
    except (ValueError, KeyError, TypeError, AttributeError, csv.Error, RecursionError) as e:
        raise DataError(f"{path}: is no result of a bench ({type(e).__name__}: {e}); {_EXPECTED}") from e
    found = []
    for number, row in enumerate(rows, 1):
        try:
            known = {key: read(row[key]) for key, read in _COLUMNS.items()}
            known["undisturbed_ms"] = _perhaps(undisturbed[number - 1])
            found.append({**known, "noise": noise[number - 1]})
        except (ValueError, KeyError) as e:
            raise DataError(
                f"{path}: row {number} holds a value that makes no sense: {shown(e.args[0])}"
            ) from e
    if not found:
        raise DataError(f"{path}: has no rows; {_EXPECTED}")
    return found


def read_eval(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return what ``proxylessnas eval --json`` printed: ``model``, ``top1`` (percent), ``n`` and ``data``.

    Raises:
        DataError: it cannot be read, or is no such file.
    """
    path = Path(path)
    try:
        found = json.loads(_text(path))
        top1, n = float(found["top1"]), int(found["n"])
        if not 0 <= top1 <= 100 or n < 1:
            raise ValueError(f"top1 {top1:g} of {n} images")
        return {"net": str(found["net"]), "top1": top1, "n": n, "data": str(found["data"])}
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        expected = "expected is what `proxylessnas eval --json` prints"
        raise DataError(f"{path}: is no result of an evaluation ({type(e).__name__}: {e}); {expected}") from e


def pareto_figure(
    benches: Sequence[str | os.PathLike[str]],
    target: str | os.PathLike[str] | io.BytesIO,
    *,
    evals: Sequence[str | os.PathLike[str]] = (),
) -> list[str]:
    """Draw accuracy against latency, a panel a setting, with the models on the Pareto front joined.

    Hollow marks are published accuracies, filled ones measured; see
    :func:`~proxylessnas.latency.plots.accuracy_png`. A model that was evaluated has the accuracy measured
    there, and the small print says on what; published accuracies of others stay, with a front of their own.
    Where no accuracy is known at all, latencies are drawn as bars.
    Returns what is not in the figure, and why, in words.

    Args:
        benches: files of ``proxylessnas bench --csv``, or of its ``--json``.
        target: path of the file, ``.svg`` or ``.png``; or a buffer for an SVG.
        evals: files of ``proxylessnas eval --json``, all on the same images.

    Raises:
        DataError: a file is no such file, or there is nothing to draw.
        MissingExtraError: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    rows = [row for path in benches for row in read_bench(path)]
    measured = {found["net"]: found for found in map(read_eval, evals)}
    sources = {(found["data"], found["n"]) for found in measured.values()}
    if len(sources) > 1:
        listed = "; ".join(f"{n:,} images of {data}" for data, n in sorted(sources))
        raise DataError(f"the evaluations are not of the same images ({listed}): they cannot be compared")
    rows = [{**row, **_measured(row, measured)} for row in rows]
    try:
        panels = accuracy_panels(rows)
    except (LatencyError, ValueError) as e:
        raise DataError(f"the bench has a setting that makes no sense: {e}") from e
    note = panels.note
    noisy, of = panels.noisy
    if noisy:
        note += f"; {noisy} of {of} measurements are uncertain"
    drawn = {point.name for points in panels.points.values() for point in points}
    for data, n in sources if drawn & measured.keys() else ():
        note += f"\nmeasured top-1: on {n:,} images of {data}; published: on the data set's own test images"
    panels_png(panels, target, note=note)
    return [
        *(f"{model} is not drawn: {why}" for model, why in panels.left_out.items()),
        *(
            f"{model} was evaluated, but not in a bench"
            for model in measured.keys() - {r["net"] for r in rows}
        ),
    ]


def _measured(row: Mapping[str, Any], evals: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return what an evaluation changes in a row."""
    found = evals.get(row["net"])
    if found is None:
        return {}
    known = row["top1_dataset"] or next(
        (name for name in DATASETS if name in found["data"].lower()), found["data"]
    )
    return {"top1": found["top1"], "top1_status": "measured", "top1_dataset": known}


def _text(path: Path) -> str:
    try:
        return decode(read_bytes(path), "replace")
    except OSError as e:
        raise DataError(f"{path}: cannot be read ({e.strerror or e})") from e
