"""Results as files to look at: confusion matrices and learning curves (PNG, with matplotlib), tables (CSV).

The colours can be told apart with any kind of colour vision (Okabe and Ito 2008), and lines by their style.
Nothing here touches ``pyplot``, so the figures and settings of a notebook stay as they are.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import DataError, missing_extra
from .files import write_atomically
from .text import csv_text

if TYPE_CHECKING:
    from torch import Tensor

    Confusion = Tensor | Sequence[Sequence[int]]

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#6b6b6b"
SHADES = ("#ffffff", "#a9cdea", "#3f8fca", "#08306b")  # of one hue, evenly darker
_ABSENT = GRID = "#e4e4e4"

_NUMBERS_UP_TO = 25  # classes, for which a count fits into each cell
_NAMES_UP_TO = 60  # classes, whose names all fit along an axis
_TICKS = 20  # about so many where not all names fit
_CELLS = 1000  # at most so many along an axis: a pixel is the least that can be seen
_NAME_LENGTH = 24
_MARKERS_UP_TO = 40  # points of a line that are marked one by one
_LOG_FROM = 50.0  # ratio of the largest to the smallest value from which a linear axis would hide most of it


class PngBuffer(io.BytesIO):
    """A buffer that :func:`open_figure` fills with a PNG; any other one gets an SVG."""


class _Panel(NamedTuple):
    """One of the learning curves' panels; its lines are (key of a row, name, colour, style)."""

    title: str
    unit: str
    height_in: float
    lines: tuple[tuple[str, str, str, str], ...]


_LOSS = _Panel(
    "Loss",
    "nats",
    2.7,
    (("train_loss", "training", BLUE, "-"), ("val_loss", "validation", ORANGE, "--")),
)
_ACCURACY = _Panel("Accuracy on the validation images", "top-1 (%)", 2.7, (("val_top1", "", ORANGE, "-"),))
_RATE = _Panel("Learning rate", "per step", 1.4, (("rate", "", GREEN, "-"),))


def require_matplotlib() -> None:
    """Import what draws, so that its absence shows before anything long is computed.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        import matplotlib.backends.backend_agg
        import matplotlib.figure
        import matplotlib.style  # noqa: F401
    except ImportError as e:
        raise missing_extra("matplotlib", "drawing charts", "train") from e


def confusion_csv(confusion: Confusion, names: Sequence[str], path: str | os.PathLike[str]) -> None:
    """Write a confusion matrix as a table: a row a true class, a column a predicted one, counts in between.

    Args:
        confusion: images by [true class, predicted class].
        names: of the classes; they are the first row and the first column.
        path: of the CSV file (UTF-8); it is replaced as a whole, or not at all.

    Raises:
        DataError: the matrix is not square, or there is not one name for each class.
        OSError: the file cannot be written.
    """
    counts = _square(confusion, names)
    rows = [[name, *row] for name, row in zip(names, counts.tolist(), strict=True)]
    text = csv_text(["true \\ predicted", *names], rows)
    write_atomically(Path(path), text.encode("utf-8", "backslashreplace"))


def confusion_png(confusion: Confusion, names: Sequence[str], path: str | os.PathLike[str]) -> None:
    """Draw a confusion matrix.

    A row holds the images of one class. The colour of a cell is its share of the row, so that classes with
    few images show as well as others, on a scale that spreads small shares, the mistakes.
    Counts are written into the cells of up to 25 classes. Classes without images that were never predicted
    are left out; beyond 1000 classes, neighbours share a cell.

    Args:
        confusion: images by [true class, predicted class].
        names: of the classes.
        path: of the PNG file; it is replaced as a whole, or not at all.

    Raises:
        DataError: the matrix is not square, or there is not one name for each class.
        MissingExtraError: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    require_matplotlib()
    counts = _square(confusion, names)
    seen = ((counts.sum(0) + counts.sum(1)) > 0).nonzero().flatten().tolist() or list(range(len(names)))
    counts, n, left_out = counts[seen][:, seen], len(seen), len(names) - len(seen)
    total, right = int(counts.sum()), int(counts.diagonal().sum())
    group = -(-n // _CELLS)
    counts = _grouped(counts, group)
    share = 100 * counts.double() / counts.sum(1, keepdim=True)  # NaN in the rows of absent classes
    with_numbers = n <= _NUMBERS_UP_TO
    side = max(0.52 * n, 3.6) if with_numbers else 10
    with open_figure(path, side + 2.6, side + 1.4, dpi=150 if n <= 500 else 220) as figure:
        axes = figure.add_subplot()
        _draw_shares(figure, axes, share, lines=with_numbers)
        _name_classes(axes, [names[i] for i in seen], seen, group)
        if with_numbers:
            _write_counts(axes, counts, share)
        accuracy = f" ({100 * right / total:.2f} %)" if total else ""
        axes.set_title(f"{right:,} of {total:,} images right{accuracy}", loc="left", pad=19, fontsize=13)
        absent = bool(share.isnan().any())
        notes = ["numbers of images"] * with_numbers + ["grey rows: no images"] * absent
        if left_out:
            notes.append(f"left out: {left_out:,} of {len(names):,} classes, without images or predictions")
        write_above(axes, "; ".join(notes))


def curves_png(rows: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> None:
    """Draw the learning curves of a run: loss, accuracy and learning rate by epoch.

    Args:
        rows: one an epoch, in order, with ``epoch`` (counted from 1) and any of ``train_loss``, ``val_loss``,
            ``val_top1`` (percent) and ``rate``. Values that are missing, None or not finite are left out, and
            so is a panel without any.
        path: of the PNG file; it is replaced as a whole, or not at all.

    Raises:
        DataError: there is nothing to draw.
        MissingExtraError: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    require_matplotlib()
    found = [
        (panel, [finite((row["epoch"], row.get(key)) for row in rows) for key, *_ in panel.lines])
        for panel in (_LOSS, _ACCURACY, _RATE)
    ]
    found = [(panel, points) for panel, points in found if any(points)]
    if not found:
        raise DataError("no epoch with a loss, an accuracy or a learning rate: nothing to draw")
    heights = [panel.height_in for panel, _ in found]
    with open_figure(path, 8, 0.7 + sum(heights)) as figure:
        column = figure.subplots(len(found), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
        for axes, (panel, points) in zip(column, found, strict=True):
            _draw_panel(axes, panel, points)
        column[-1].set_xlabel("epoch")
        figure.align_ylabels()


# ---- parts of a confusion matrix


def _square(confusion: Confusion, names: Sequence[str]) -> Tensor:
    import torch

    counts = torch.as_tensor(confusion).cpu()
    if not names or tuple(counts.shape) != (len(names), len(names)):
        raise DataError(f"a confusion matrix {list(counts.shape)} and {len(names)} names do not fit together")
    return counts


def _grouped(counts: Tensor, group: int) -> Tensor:
    """Return [n, n] counts with ``group`` neighbours each way in one cell."""
    if group == 1:
        return counts
    cells = -(-len(counts) // group)
    padded = counts.new_zeros(cells * group, cells * group)
    padded[: len(counts), : len(counts)] = counts
    return padded.view(cells, group, cells, group).sum((1, 3))


def _draw_shares(figure: Any, axes: Any, share: Tensor, *, lines: bool) -> None:
    """Draw [n, n] shares in percent as colours."""
    from matplotlib.colors import LinearSegmentedColormap, PowerNorm

    colors = LinearSegmentedColormap.from_list("shares", SHADES).with_extremes(bad=_ABSENT)
    # Without lines and numbers the cells are small, and need more colour to be seen.
    norm = PowerNorm(0.5 if lines else 0.33, 0, 100)
    image = axes.imshow(share.numpy(), cmap=colors, norm=norm, interpolation="nearest")
    beside = axes.inset_axes((1.025, 0, 0.035, 1))
    bar = figure.colorbar(image, cax=beside, ticks=[0, 1, 5, 10, 25, 50, 75, 100])
    bar.set_label("share of the true class (%)")
    bar.outline.set_visible(False)
    axes.spines[:].set_color("#b0b0b0")
    if lines:
        end = len(share) - 0.5
        for draw in (axes.hlines, axes.vlines):
            draw([i + 0.5 for i in range(len(share) - 1)], -0.5, end, color="#d8d8d8", linewidth=0.8)
        axes.set(xlim=(-0.5, end), ylim=(end, -0.5))


def _name_classes(axes: Any, names: Sequence[str], numbers: Sequence[int], group: int) -> None:
    """Label both axes: with all names if there is room, else with a few and their numbers."""
    n = len(names)
    step = 1 if n <= _NAMES_UP_TO else _round_step(n / _TICKS)
    shown = range(0, n, step)
    places = [(i + 0.5) / group - 0.5 for i in shown]
    texts = [_short(names[i]) if step == 1 else f"{_short(names[i])}  {numbers[i]}" for i in shown]
    font = {"fontsize": 10 if n <= _NUMBERS_UP_TO else 8}
    axes.set_yticks(places, texts, **font)
    axes.set_xticks(places, texts if step == 1 else [str(numbers[i]) for i in shown], **font)
    if step == 1 and max(map(len, texts)) > 4:
        slanted = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
        for label in axes.get_xticklabels():
            label.set(**slanted if n <= _NUMBERS_UP_TO else {"rotation": 90})
    axes.tick_params(length=0 if step == 1 else 3, color="#b0b0b0")
    cells = [f"{group} neighbours in a cell"] if group > 1 else []
    for set_label, name, notes in (
        (axes.set_xlabel, "predicted class", ["number"] * (step > 1) + cells),
        (axes.set_ylabel, "true class", cells),
    ):
        set_label(f"{name} ({'; '.join(notes)})" if notes else name, labelpad=8)


def _write_counts(axes: Any, counts: Tensor, share: Tensor) -> None:
    longest = len(f"{int(counts.max()):,}")
    size = 10 if longest <= 4 else 8.5 if longest <= 6 else 6.5
    for i, row in enumerate(counts.tolist()):
        for j, count in enumerate(row):
            if count:
                color = "white" if float(share[i, j]) > 30 else "#1a1a1a"
                axes.text(j, i, f"{count:,}", ha="center", va="center_baseline", color=color, fontsize=size)


def _round_step(least: float) -> int:
    """Return the least of 1, 2, 5, 10, 20, 50, ... that is not below ``least``."""
    power = 10 ** max(0, math.floor(math.log10(least)))
    return next(int(f * power) for f in (1, 2, 5, 10) if f * power >= least)


def _short(name: str) -> str:
    """Return a name that fits beside an axis, in one line."""
    name = "".join(c if c.isprintable() else " " for c in name)
    return name if len(name) <= _NAME_LENGTH else name[: _NAME_LENGTH - 1] + "…"


# ---- parts of learning curves


def _draw_panel(axes: Any, panel: _Panel, lines: list[list[tuple[float, float]]]) -> None:
    from matplotlib.ticker import MaxNLocator

    for (_, name, color, style), points in zip(panel.lines, lines, strict=True):
        if points:
            draw_line(axes, points, style, color=color, label=name)
    axes.set_title(panel.title, loc="left", fontsize=11)
    axes.set_ylabel(panel.unit)
    clean_axes(axes)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    values = [value for points in lines for _, value in points]
    if panel is _LOSS:
        legend_above(axes, fontsize=9)
        if log_if_far_apart(axes, values):
            axes.set_ylabel(f"{panel.unit}, log scale")
    elif panel is _ACCURACY:
        epoch, best = max(lines[0], key=lambda point: point[1])
        write_above(axes, f"best: {best:.2f} % in epoch {epoch:g}", right=True)
    else:
        axes.set_ylim(0, 1.1 * max(values) or 1)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")  # no "1e-2" above, where the title is


# ---- parts of every chart


def finite(points: Iterable[tuple[Any, Any]]) -> list[tuple[float, float]]:
    """Return the points that are two finite numbers."""
    return [
        (float(x), float(y))
        for x, y in points
        if all(isinstance(value, (int, float)) and math.isfinite(value) for value in (x, y))
    ]


def clean_axes(axes: Any) -> None:
    """Put a light grid behind what is drawn, and no frame around it."""
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def draw_line(axes: Any, points: Sequence[tuple[float, float]], style: str, **look: Any) -> None:
    """Draw a line through (x, y) points, each of which is marked where they are few."""
    marker = "o" if len(points) <= _MARKERS_UP_TO else ""
    axes.plot(*zip(*points, strict=True), style, marker=marker, markersize=3.5, linewidth=1.6, **look)


def legend_above(axes: Any, fontsize: float) -> None:
    """Write the names of the lines above a panel, at its right end."""
    handles, _ = axes.get_legend_handles_labels()
    axes.legend(
        loc="lower right", bbox_to_anchor=(1.01, 1), borderaxespad=0.1, ncols=len(handles), frameon=False,
        fontsize=fontsize,
    )  # fmt: skip


def log_if_far_apart(axes: Any, values: Sequence[float]) -> bool:
    """Make the upright axis logarithmic if the values are positive and far apart; return whether they are."""
    from matplotlib.ticker import NullFormatter

    if min(values) <= 0 or max(values) / min(values) < _LOG_FROM:
        return False
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")  # the usual one writes mathematics
    axes.yaxis.set_minor_formatter(NullFormatter())
    return True


def write_above(axes: Any, text: str, *, right: bool = False) -> None:
    """Write small grey text above a panel, at its left or right end."""
    place = {"xycoords": "axes fraction", "xytext": (0, 4), "textcoords": "offset points"}
    style = {"ha": "right" if right else "left", "va": "bottom", "fontsize": 9, "color": GREY}
    axes.annotate(text, (float(right), 1), **place, **style)


@contextlib.contextmanager
def plot_style(more: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Draw in the default style, with no text taken for mathematics: a name may hold any character."""
    from matplotlib.style import context

    # A user's own style may be dark, or need LaTeX. Without the salt an SVG's names would be new each time.
    ours = {"svg.hashsalt": "proxylessnas", "text.parse_math": False, **(more or {})}
    with context(["default", ours]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Glyph .* missing from", category=UserWarning)
        yield


@contextlib.contextmanager
def open_figure(
    target: str | os.PathLike[str] | io.BytesIO,
    width: float,
    height: float,
    dpi: int = 150,
    *,
    tight: bool = True,
) -> Iterator[Any]:
    """Give an empty figure and write it afterwards.

    Args:
        target: path of the file, SVG if it ends so, else PNG; it is replaced as a whole, or not at all. Or a
            buffer: a :class:`PngBuffer`, or one for an SVG whose texts are text, as a page wants them.
        width: inches.
        height: inches.
        dpi: of a PNG.
        tight: cut off what is empty, and make room for what is outside (long names).
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if isinstance(target, io.BytesIO):
        svg, style = not isinstance(target, PngBuffer), {"svg.fonttype": "none", "font.family": "DejaVu Sans"}
    else:
        svg, style = Path(target).suffix.lower() == ".svg", {}
    with plot_style(style):
        figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        file = io.BytesIO()
        cut: dict[str, Any] = {"bbox_inches": "tight", "pad_inches": 0.15} if tight else {}
        unsigned: dict[str, Any] = {"Date": None, "Creator": None} if svg else {"Software": None}
        figure.savefig(file, format="svg" if svg else "png", facecolor="white", metadata=unsigned, **cut)
    if isinstance(target, io.BytesIO):
        target.write(file.getbuffer())
    else:
        write_atomically(Path(target), file.getbuffer())
