"""What the page of a run is made of: its sections, templates for them, charts, and numbers in words."""

from __future__ import annotations

import datetime
import functools
import io
import os
import xml.etree.ElementTree as ET
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .._version import __version__
from ..utils.files import write_atomically
from ..utils.plotting import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    clean_axes,
    draw_line,
    legend_above,
    log_if_far_apart,
    open_figure,
)

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

    from .runs import Target

_TEMPLATES = Path(__file__).with_name("templates")
_SIZE_IN = (5.0, 2.5)
_STYLES = ((BLUE, "-"), (ORANGE, "--"), (GREEN, "-."))
_FONT = 10  # points: legible on a phone

Facts = Sequence[tuple[str, object]]  # names and values; those that are None or "" are not shown


class Table(NamedTuple):
    """A table, the first cell of whose rows names the row; ``numeric`` are its columns of numbers."""

    head: Sequence[object]
    rows: Sequence[Sequence[object]]
    caption: str
    numeric: Sequence[int] = ()


class Figure(NamedTuple):
    """An element ``<svg>``, with what is written above and below it."""

    svg: Markup
    caption: str = ""
    title: str = ""


@dataclass(frozen=True)
class Comparison:
    """A run beside others: a table, a chart, and remarks above and below the chart."""

    title: str
    table: Table | None
    remarks: Sequence[str] = ()
    chart: Figure | None = None
    remarks_below: Sequence[str] = ()
    published: Table | str = ""


@dataclass(frozen=True, kw_only=True)
class RunPage:
    """What the page of a run says, section by section; what is empty is left out.

    Attributes:
        title, about: of the page, and the line below it.
        notes: what is missing.
        cards: the few figures that matter most: (name, value, small print).
        asked: what the run was asked for.
        space: a search's space in words, and its stages.
        found: what came out.
        architecture: of the model, as text.
        precisions: of the model in float32 and INT8, side by side.
        front: of a search for several targets: the model of each, and a chart of them.
        models: its figures, with ``model_text``, or ``no_models``, which says why there are none.
        slider: of a search: see :func:`~.draw_search.slider`.
        charts: the curves, or ``no_charts``, which says why there are none.
        epochs: figures of each epoch.
        latency: predicted and measured, with a chart of the table's predictions.
        comparison: with other runs.
        commands: that do it again, with ``files``, (what it is, text) of each, and what the run ``said``.
        versions: what the run was made with.
    """

    title: str
    about: str
    notes: Sequence[str] = ()
    cards: Sequence[tuple[str, object, object]] = ()
    asked: Facts = ()
    space: tuple[str, Table] | None = None
    found: Facts = ()
    architecture: str = ""
    precisions: Table | None = None
    front: tuple[Table, Figure] | None = None
    models: Sequence[Figure] = ()
    model_text: str = ""
    no_models: str = ""
    slider: Mapping[str, Any] | None = None
    charts: Sequence[Figure] = ()
    no_charts: str = ""
    epochs: Table | None = None
    latency: Facts = ()
    latency_chart: Figure | None = None
    comparison: Comparison | None = None
    commands: str = ""
    files: Sequence[tuple[str, str]] = ()
    said: Sequence[str] = ()
    versions: Facts = ()


def write_page(page: RunPage, path: str | os.PathLike[str]) -> None:
    """Write a page as one HTML file, which appears under its name only when it is complete.

    Raises:
        OSError: it cannot be written.
    """
    template = _environment().get_template("report.html")
    text = template.render(page=page, version=__version__, today=datetime.date.today().isoformat())
    write_atomically(Path(path), text.encode())


@functools.cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) else legible(value),
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    return environment


def legible(value: object) -> str:
    """Return a value as text without characters that HTML and XML forbid, or that turn the text around."""
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in str(value))


def inline(
    file: io.BytesIO,
    title: str,
    description: str,
    *,
    natural: bool = False,
    cursor: tuple[float, float, float, float] | None = None,
) -> Markup:
    """Return a figure that was drawn into a buffer as an element of a page, which gives it its colours.

    Args:
        file: what :func:`~proxylessnas.utils.plotting.open_figure` wrote.
        title: what a screen reader says, and a mouse that rests on it shows.
        description: the same at length.
        natural: never wider than it was drawn (a single model), rather than as wide as its place.
        cursor: left and right end, top and bottom of where a script moves an upright line.
    """
    from markupsafe import Markup

    title, description, text = map(legible, (title, description, file.getvalue().decode()))
    root = ET.fromstring(text)
    box = root.attrib["viewBox"]
    name = f"f{zlib.crc32((title + description + text).encode()):08x}"  # the same page each time
    for element in list(root.iter()):
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = dict(_attribute(key, value, name) for key, value in element.attrib.items())
        element.tail = (element.tail or "").strip()
        # A style would hold for the whole page.
        element[:] = [child for child in element if not child.tag.endswith(("}metadata", "}style"))]
    root.attrib = {
        "class": "figure", "role": "img", "aria-labelledby": f"{name}-t {name}-d", "viewBox": box,
        **({"style": f"max-width:{float(box.split()[2]) * 4 / 3:.0f}px"} if natural else {}),
    }  # fmt: skip
    for tag, words in (("desc", description), ("title", title)):
        element = ET.Element(tag, id=f"{name}-{tag[0]}")
        element.text = words
        root.insert(0, element)
    if cursor is not None:
        left, right, top, bottom = (f"{value:.2f}" for value in cursor)
        root.attrib |= {"data-x0": left, "data-x1": right}
        root.append(ET.Element("line", {"class": "cursor"}, x1=right, x2=right, y1=top, y2=bottom))
    return Markup(ET.tostring(root, encoding="unicode"))


def _attribute(key: str, value: str, prefix: str) -> tuple[str, str]:
    """Return an attribute of an SVG without its name space, and names in it that no other figure has."""
    key = key.rpartition("}")[2]
    if key == "id":
        return key, f"{prefix}-{value}"
    start = "#" if key == "href" else "url(#"
    return key, value.replace(start, f"{start}{prefix}-")


class Line(NamedTuple):
    """Points of a line: (x, y) in order; its name is in the legend if there are several."""

    name: str
    points: Sequence[tuple[float, float]]


def line_chart(
    title: str,
    unit: str,
    lines: Sequence[Line],
    *,
    x_label: str = "weight steps",
    x_range: tuple[float, float] | None = None,
    target: Target | None = None,
    log: bool = False,
    cursor: bool = False,
) -> Markup | None:
    """Return a chart as an element of a page; None where there is nothing to draw.

    Args:
        title: for screen readers.
        unit: of the values.
        lines: at most three.
        x_label: what is across.
        x_range: ends of the axis; None takes those of the points.
        target: drawn as a level line.
        log: use a logarithmic axis where the values are positive and far apart.
        cursor: with an upright line that a script moves from one end of ``x_range`` to the other.
    """
    from matplotlib.ticker import MaxNLocator

    lines = [line for line in lines if line.points]
    if not lines:
        return None
    file = io.BytesIO()
    with open_figure(file, *_SIZE_IN, tight=False) as figure:
        axes = figure.add_subplot()
        for (name, points), (color, style) in zip(lines, _STYLES, strict=False):
            draw_line(axes, points, style, color=color, label=name)
        values = [y for line in lines for _, y in line.points]
        if target is not None:
            axes.axhline(target.limit, color=ORANGE, linewidth=1.5, linestyle=(0, (5, 2)))
            axes.annotate(
                _target(target), (1, target.limit), (-2, 3), xycoords=("axes fraction", "data"),
                textcoords="offset points", ha="right", fontsize=_FONT, color=ORANGE,
            )  # fmt: skip
        if not (log and log_if_far_apart(axes, values)):
            reached = values if target is None else [*values, target.limit]
            room = 0.1 * (max(reached) - min(reached)) or 0.05 * abs(max(reached)) or 1.0
            axes.set_ylim(min(reached) - room, max(reached) + 1.4 * room)
            axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        if x_range is not None and x_range[0] < x_range[1]:
            axes.set_xlim(*x_range)
        whole = all(float(x).is_integer() for line in lines for x, _ in line.points)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=whole, min_n_ticks=1))
        axes.set_xlabel(x_label, fontsize=_FONT)
        axes.set_ylabel(unit, fontsize=_FONT)
        axes.tick_params(labelsize=_FONT, color=GREY)
        clean_axes(axes)
        if len(lines) > 1:
            legend_above(axes, _FONT)
        figure.draw_without_rendering()
        scale = 72 / figure.dpi
        left, right = axes.bbox.x0 * scale, axes.bbox.x1 * scale
        top, bottom = (72 * _SIZE_IN[1] - edge * scale for edge in (axes.bbox.y1, axes.bbox.y0))
    ends = (left, right, top, bottom) if cursor else None
    return inline(file, title, _in_words(title, unit, lines, x_label, target), cursor=ends)


def _target(target: Target) -> str:
    return f"target {amount(target.limit, target.unit)}"


def _in_words(title: str, unit: str, lines: Sequence[Line], x_label: str, target: Target | None) -> str:
    """Return what a chart shows, for those who do not see it."""
    texts = []
    for name, points in lines:
        (x0, first), (x1, last) = points[0], points[-1]
        low, high = min(y for _, y in points), max(y for _, y in points)
        texts.append(
            f"{name + ': ' if name else ''}from {first:.4g} at {x0:g} to {last:.4g} at {x1:g} {x_label}, "
            f"between {low:.4g} and {high:.4g} {unit}"
        )
    return f"{title}. " + "; ".join(texts if target is None else [*texts, _target(target)]) + "."


WORDS = {"latency": "latency", "macs": "multiply-accumulates", "params": "parameters"}
UNITS = {"latency": "ms", "macs": "M", "params": "M"}


def word(kind: str) -> str:
    """Return what a kind of cost is called."""
    return WORDS.get(kind, kind)


def amount(value: object, unit: str = "") -> str:
    """Return a cost to three digits, with its unit."""
    if not isinstance(value, (int, float)):
        return "not known"
    text = f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"
    return f"{text} {unit}".strip()


def percent(value: object) -> str:
    """Return an accuracy in percent."""
    return f"{value:.2f} %" if isinstance(value, (int, float)) else "not known"
