"""The rows of a bench as points of a chart, a panel a setting: accuracy against latency, or latency alone."""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from ..runtimes.settings import Settings

if TYPE_CHECKING:
    from .plots import Point

#: How data sets are spelt.
DATASETS = {"imagenet": "ImageNet", "cifar10": "CIFAR-10"}


class Panels(NamedTuple):
    """What a chart of a bench shows.

    Attributes:
        points: setting in words to its models.
        accuracy: what the accuracy is, with its unit; "" if none is known of any model.
        note: machine, versions and date.
        left_out: model to why it is not among the points.
        noisy: rows that are uncertain, and all rows.
    """

    points: dict[str, list[Point]]
    accuracy: str
    note: str
    left_out: dict[str, str]
    noisy: tuple[int, int]


def describe(settings: Settings) -> str:
    """Return what tells settings of one bench apart, as in "torch, 2 threads, batch 1"."""
    pool = (
        f", {settings.threads} thread{'s' * (settings.threads > 1)}" if settings.device == "cpu" else ", GPU"
    )
    return f"{settings.runtime}{pool}, batch {settings.batch_size}"


def accuracy_panels(rows: Iterable[Mapping[str, Any]]) -> Panels:
    """Return the points of a chart.

    Left out are models whose accuracy is not known, or is one on other images than most models'; if it is
    known of none, all of them are points without one.

    Args:
        rows: as :meth:`~.benchmark.BenchRow.to_dict` gives them.
    """
    from .plots import Point

    rows = list(rows)
    known = Counter(row["top1_dataset"] for row in rows if row["top1"] is not None)
    dataset = known.most_common(1)[0][0] if known else None
    devices = list(dict.fromkeys(row["device_name"] for row in rows))
    found: dict[str, list[Point]] = {}
    left_out: dict[str, str] = {}
    for row in rows:
        if row["top1"] is None and dataset is not None:
            left_out[row["net"]] = "its accuracy is not known"
            continue
        if row["top1"] is not None and row["top1_dataset"] != dataset:
            own = DATASETS.get(row["top1_dataset"], row["top1_dataset"])
            left_out[row["net"]] = f"its accuracy is on {own}, not on {DATASETS.get(str(dataset), dataset)}"
            continue
        setting = describe(Settings(row["runtime"], row["device"], row["threads"], row["batch"]))
        setting += f"; {row['device_name']}" if len(devices) > 1 else ""
        name, published = row["net"].removeprefix("torchvision/"), row["top1_status"] == "published"
        ms = row.get("undisturbed_ms") or row["median_ms"]  # a bench of an earlier version has medians only
        times = ms, min(ms, row["p10_ms"]), max(ms, row["p90_ms"])
        found.setdefault(setting, []).append(Point(name, *times, row["top1"], published, row["peer"]))
    accuracy = "" if dataset is None else f"top-1 on {DATASETS.get(str(dataset), dataset)} (%)"
    versions = dict(pair.rpartition(" ")[::2] for pair in rows[0]["versions"].split(", ")) if rows else {}
    torch = f"torch {versions['torch']}" if "torch" in versions else ""
    dates = sorted({row["date"] for row in rows})
    date = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}" if dates else ""
    note = "; ".join(filter(None, [", ".join(devices), torch, date]))
    noisy = sum(bool(row.get("noise")) for row in rows)
    return Panels(found, accuracy, note, left_out, (noisy, len(rows)))


def panels_png(panels: Panels, path: str | os.PathLike[str] | io.BytesIO, *, note: str | None = None) -> None:
    """Draw accuracy against latency, or bars of latency where no accuracy is known.

    Args:
        panels: of :func:`accuracy_panels`.
        path: of the PNG or SVG file, which is replaced as a whole, or not at all; or a buffer for an SVG.
        note: small print; None takes that of the panels.

    Raises:
        DataError: there is nothing to draw, or there are over 12 settings.
        MissingExtraError: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    from .plots import accuracy_png, latency_png

    note = panels.note if note is None else note
    if panels.accuracy:
        accuracy_png(panels.points, path, accuracy=panels.accuracy, note=note)
    else:
        latency_png(panels.points, path, note=note)
