"""Figures of latencies (with matplotlib): alone, with accuracy, and predicted against measured."""

from __future__ import annotations

import io
import math
import os
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ..errors import DataError
from ..runtimes.settings import Settings
from ..utils.plotting import BLUE, GREY, GRID, ORANGE, open_figure, require_matplotlib, write_above

_LOG_FROM = 8.0  # ratio of the largest to the smallest latency from which a linear axis would crowd the small
PANELS_UP_TO = 12
_BANDS = (0.10, 0.05)  # relative errors that are shaded, the wider first
_SUMMARY_LENGTH = 84
#: How data sets are spelt.
DATASETS = {"imagenet": "ImageNet", "cifar10": "CIFAR-10"}


class Point(NamedTuple):
    """A model in a chart of accuracy against latency.

    Attributes:
        name: beside its mark.
        ms, low_ms, high_ms: latency, and the ends of the line through it (the 10 % and 90 % quantiles).
        top1: percent; None where it is not known.
        published: ``top1`` is a published figure, not one measured with this package.
        peer: another library's model.
    """

    name: str
    ms: float
    low_ms: float
    high_ms: float
    top1: float | None
    published: bool
    peer: bool


def pareto_front(points: Iterable[Point]) -> list[Point]:
    """Return the models that no other one equals or beats in both latency and accuracy, the fastest first."""
    found: list[Point] = []
    best = -1.0
    for point in sorted(points, key=lambda p: (p.ms, -(p.top1 or 0.0))):
        if point.top1 is not None and point.top1 > best:
            found.append(point)
            best = point.top1
    return found


class Panels(NamedTuple):
    """What a chart of a benchmark shows.

    Attributes:
        points: setting in words ("torch, 1 thread, batch 1") to its models.
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
    """Return what tells settings of one benchmark apart, as in "torch, 2 threads, batch 1, int8"."""
    pool = (
        f", {settings.threads} thread{'s' * (settings.threads > 1)}" if settings.device == "cpu" else ", GPU"
    )
    dtype = "" if settings.dtype == "float32" else f", {settings.dtype}"
    return f"{settings.runtime}{pool}, batch {settings.batch_size}{dtype}"


def accuracy_panels(rows: Iterable[Mapping[str, Any]]) -> Panels:
    """Return the points of a chart of rows as :meth:`~.benchmark.BenchRow.to_dict` gives them.

    Left out are models whose accuracy is not known, or is one on other images than most models'; if it is
    known of none, all of them are points without one.
    """
    rows = list(rows)
    known = Counter(row["top1_dataset"] for row in rows if row["top1"] is not None)
    dataset = known.most_common(1)[0][0] if known else None
    devices = list(dict.fromkeys(row["device_name"] for row in rows))
    found: dict[str, list[Point]] = {}
    left_out: dict[str, str] = {}
    for row in rows:
        if row["top1"] is None and dataset is not None:
            where = " in INT8" if row.get("dtype") == "int8" else ""
            left_out[row["net"]] = f"its accuracy{where} is not known"
            continue
        if row["top1"] is not None and row["top1_dataset"] != dataset:
            own = DATASETS.get(row["top1_dataset"], row["top1_dataset"])
            left_out[row["net"]] = f"its accuracy is on {own}, not on {DATASETS.get(str(dataset), dataset)}"
            continue
        dtype = row.get("dtype") or "float32"
        setting = describe(Settings(row["runtime"], row["device"], row["threads"], row["batch"], dtype))
        setting += f"; {row['device_name']}" if len(devices) > 1 else ""
        name, published = row["net"].removeprefix("torchvision/"), row["top1_status"] == "published"
        ms = row.get("undisturbed_ms") or row["median_ms"]  # earlier versions had medians only
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
        note: small print below, such as the machine and the date; None takes that of the panels.

    Raises:
        DataError: there is nothing to draw, or there are over 12 settings.
        MissingExtraError: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    note = panels.note if note is None else note
    if panels.accuracy:
        accuracy_png(panels.points, path, accuracy=panels.accuracy, note=note)
    else:
        latency_png(panels.points, path, note=note)


class Named(NamedTuple):
    """A model that is pointed out in a chart of predictions; latencies in milliseconds."""

    name: str
    predicted_ms: float
    measured_ms: float


def accuracy_png(
    panels: Mapping[str, Sequence[Point]],
    path: str | os.PathLike[str] | io.BytesIO,
    *,
    accuracy: str = "top-1 (%)",
    note: str = "",
) -> None:
    """Draw accuracy against latency, a panel a setting.

    Round marks are this package's models, square ones other libraries'; hollow marks have a published
    accuracy, filled ones a measured one. The line through a mark goes from the 10 % to the 90 % quantile. The
    steps join the models on the Pareto front: of published and of measured accuracies apart, as those may be
    of other images. Models without a known accuracy are left out.

    Arguments and errors are those of :func:`panels_png`.
    """
    known = {title: [p for p in points if p.top1 is not None] for title, points in panels.items()}
    drawn, down, across = _layout(known, "no model with a known accuracy")
    width, height = (7.6, 4.8) if across == 1 else (5.4, 3.9)
    with open_figure(path, width * across, height * down + 0.7) as figure:
        grid = figure.subplots(down, across, squeeze=False, sharey=True).flatten().tolist()
        _title(grid, drawn)
        for i, (axes, points) in enumerate(zip(grid, drawn.values(), strict=False)):
            _draw_models(axes, points)
            if i % across == 0:
                axes.set_ylabel(accuracy)
        values = [p.top1 for points in drawn.values() for p in points if p.top1 is not None]
        margin = max(0.6, 0.14 * (max(values) - min(values)))  # for names above and below the marks
        grid[0].set_ylim(max(0.0, min(values) - margin), min(100.0, max(values) + margin))
        _explain(figure, [point for points in drawn.values() for point in points], note)
        figure.draw_without_rendering()  # settles where things are, before names are put beside them
        for axes, points in zip(grid, drawn.values(), strict=False):
            named = [(p, y) for p in points if (y := p.top1) is not None]
            lines = [((p.low_ms, y), (p.high_ms, y)) for p, y in named]
            name_points(axes, [(p.ms, y, p.name) for p, y in named], lines)


def latency_png(
    panels: Mapping[str, Sequence[Point]], path: str | os.PathLike[str] | io.BytesIO, *, note: str = ""
) -> None:
    """Draw latencies as bars, a panel a setting: for models of which no accuracy is known.

    The line at the end of a bar goes from the 10 % to the 90 % quantile. Errors as :func:`panels_png`.
    """
    drawn, down, across = _layout(panels, "no model was measured")
    most = max(map(len, drawn.values()))
    with open_figure(path, 6.4 * across, (0.34 * most + 1.2) * down + 0.5) as figure:
        grid = figure.subplots(down, across, squeeze=False).flatten().tolist()
        _title(grid, drawn)
        for axes, points in zip(grid, drawn.values(), strict=False):
            places, high = range(len(points)), max(p.high_ms for p in points)
            axes.barh(places, [p.ms for p in points], height=0.6, color=[_color(p) for p in points])
            for place, p in zip(places, points, strict=True):
                axes.plot([p.low_ms, p.high_ms], [place] * 2, color="#303030", linewidth=1.4)
                axes.annotate(
                    f"{p.ms:.3g}", (p.high_ms, place), (4, 0), textcoords="offset points", va="center",
                    fontsize=8.5, color="#303030",
                )  # fmt: skip
            axes.set_yticks(places, [short(p.name) for p in points], parse_math=False)
            axes.set(xlim=(0, 1.14 * high), ylim=(len(points) - 0.5, -0.5), xlabel="latency of a call (ms)")
            _clean(axes)
            axes.grid(visible=False, axis="y")
        figure.supxlabel(note, fontsize=8, color=GREY, parse_math=False)


def prediction_png(
    pairs: Iterable[tuple[float, float]],
    path: str | os.PathLike[str] | io.BytesIO,
    *,
    title: str = "Latency of whole models",
    summary: str = "",
    named: Sequence[Named] = (),
    side: float = 6.4,
) -> None:
    """Draw predicted against measured latencies, with the diagonal; errors of at most 5 and 10 % are shaded.

    Args:
        pairs: (predicted, measured) milliseconds of models that the table was not made from.
        path: of the PNG or SVG file, or a buffer for an SVG.
        title: above.
        summary: below the title, such as a verdict.
        named: models that are pointed out.
        side: width of the figure, inches.

    Raises:
        DataError: there is nothing to draw, or a value is not a positive number.
        MissingExtraError: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    require_matplotlib()
    dots = [(float(predicted), float(measured)) for predicted, measured in pairs]
    values = [value for pair in [*dots, *(model[1:] for model in named)] for value in pair]
    if not values:
        raise DataError("no model was measured: nothing to draw")
    if not all(math.isfinite(value) and value > 0 for value in values):
        raise DataError("a latency is not a positive number")
    margin = 0.06 * (max(values) - min(values)) or 0.1 * max(values)
    low, high = max(0.0, min(values) - margin), max(values) + margin
    with open_figure(path, side, side + 0.2) as figure:
        axes = figure.add_subplot()
        for share, shade in zip(_BANDS, ("#eef2f6", "#dce5ee"), strict=True):
            # An error is a share of what was measured, as in MAPE.
            below, above = ([end / (1 + sign * share) for end in (low, high)] for sign in (1, -1))
            style = {"color": shade, "linewidth": 0, "label": f"error of at most {100 * share:.0f} %"}
            axes.fill_between([low, high], below, above, **style, zorder=0)
        axes.plot([low, high], [low, high], color=GREY, linewidth=1, zorder=1)
        if dots:
            x, y = zip(*dots, strict=True)
            style = {"s": 30, "color": BLUE, "edgecolor": "white", "linewidth": 0.7, "zorder": 3}
            axes.scatter(x, y, **style, label="random models")
        if named:
            style = {"s": 46, "color": ORANGE, "marker": "D", "zorder": 4, "label": "models by name"}
            axes.scatter([model[1] for model in named], [model[2] for model in named], **style)
        _clean(axes)
        axes.set(xlim=(low, high), ylim=(low, high), xlabel="predicted (ms)", ylabel="measured (ms)")
        axes.set_aspect("equal")
        lines = textwrap.wrap(summary, _SUMMARY_LENGTH)
        axes.set_title(short(title, 56), loc="left", pad=8 + 13 * len(lines), fontsize=12, parse_math=False)
        write_above(axes, "\n".join(lines))
        handles, labels = axes.get_legend_handles_labels()
        axes.legend(handles[::-1], labels[::-1], loc="lower right", frameon=False, fontsize=9)
        figure.draw_without_rendering()
        diagonal = [low + i * (high - low) / 200 for i in range(201)]
        obstacles = [(dot, dot) for dot in [*dots, *zip(diagonal, diagonal, strict=True)]]
        name_points(axes, [(model[1], model[2], model.name) for model in named], obstacles)


# ---- parts


def _layout(
    panels: Mapping[str, Sequence[Point]], nothing: str
) -> tuple[dict[str, Sequence[Point]], int, int]:
    """Return the panels that hold something, and how many go below and beside each other."""
    require_matplotlib()
    drawn = {title: points for title, points in panels.items() if points}
    if not drawn:
        raise DataError(f"{nothing}: nothing to draw")
    if len(drawn) > PANELS_UP_TO:
        raise DataError(f"{len(drawn)} settings, but a chart holds {PANELS_UP_TO} panels at most")
    across = 1 if len(drawn) == 1 else 2 if len(drawn) <= 4 else 3
    return drawn, -(-len(drawn) // across), across


def _title(grid: Sequence[Any], drawn: Iterable[str]) -> None:
    """Write the titles of the panels above their axes, and hide those that are left over."""
    titles = list(drawn)
    for axes, title in zip(grid, titles, strict=False):
        axes.set_title(title, loc="left", fontsize=11)
    for axes in grid[len(titles) :]:
        axes.set_visible(False)


def _draw_models(axes: Any, points: Sequence[Point]) -> None:
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    for published in (False, True):
        front = pareto_front(point for point in points if point.published == published)
        if len(front) > 1:
            axes.plot([p.ms for p in front], [p.top1 for p in front], **_front(published))
    for point in points:
        color = _color(point)
        axes.plot([point.low_ms, point.high_ms], [point.top1] * 2, color=color, linewidth=1.4, alpha=0.6)
        axes.plot([point.ms], [point.top1], **_mark(point))
    low, high = min(p.low_ms for p in points), max(p.high_ms for p in points)
    axes.set_xlabel("latency of a call (ms)")
    if low > 0 and max(p.ms for p in points) / min(p.ms for p in points) >= _LOG_FROM:
        axes.set_xscale("log")
        axes.set_xlim(low / 1.25, high * 1.25)
        axes.set_xlabel("latency of a call (ms, log scale)")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_xlim(0, 1.18 * high)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 5, 10]))
    _clean(axes)


def _clean(axes: Any) -> None:
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _color(point: Point) -> str:
    return ORANGE if point.peer else BLUE


def _front(published: bool) -> dict[str, Any]:
    style = (0, (4, 2)) if published else "-"
    return {"color": GREY, "linewidth": 1.1, "linestyle": style, "drawstyle": "steps-post", "zorder": 1}


def _mark(point: Point) -> dict[str, Any]:
    face = "white" if point.published else _color(point)
    return {
        "marker": "s" if point.peer else "o", "markersize": MARKER_PT - point.peer, "linestyle": "none",
        "markerfacecolor": face, "markeredgecolor": _color(point), "markeredgewidth": 1.8,
    }  # fmt: skip


def _explain(figure: Any, points: Sequence[Point], note: str) -> None:
    """Put a legend of the marks that occur, and the small print, below everything."""
    from matplotlib.lines import Line2D

    kinds = sorted({(point.peer, point.published): point for point in points}.items())
    handles = []
    for (peer, published), point in kinds:
        whose, how = "other libraries" if peer else "this package", "published" if published else "measured"
        handles.append(Line2D([], [], label=f"{whose}, top-1 {how}", **_mark(point)))
    handles.append(
        Line2D([], [], color=_color(points[0]), linewidth=1.4, alpha=0.6, label="10 % to 90 % of the calls")
    )
    for published in sorted({point.published for point in points}):
        label = "Pareto front" + (", published" if published else ", measured") * (
            len({p.published for p in points}) > 1
        )
        handles.append(Line2D([], [], **_front(published), label=label))
    place = {
        "loc": "outside lower center",
        "ncols": 3 if len(handles) > 4 else 2 if len(handles) > 3 else len(handles),
    }
    legend = figure.legend(handles=handles, **place, frameon=False, fontsize=9, title=note or None)
    legend.get_title().set(fontsize=8, color=GREY, parse_math=False)


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
