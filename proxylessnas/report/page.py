"""One HTML file that needs nothing else: its parts, style and script, SVG figures and words for figures."""

from __future__ import annotations

import html
import io
import json
import os
import re
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..utils.files import write_atomically
from ..utils.paths import ASSETS

_DATA = ASSETS
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
_ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E%3Crect width='16' "
    "height='16' rx='3' fill='%230b3c5d'/%3E%3Cpath d='M4 3h8l-2 3h-4zM3 8h10l-2 4H5z' fill='%23f7c948'/%3E"
    "%3C/svg%3E"
)


class Raw(str):
    """Text that is HTML already."""


def text_of(value: object) -> str:
    """Return a value as HTML: escaped, unless it is :class:`Raw`; without characters that HTML forbids."""
    if isinstance(value, Raw):
        return value
    text = "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in str(value))
    return html.escape(text)


def tag(name: str, *content: object, **attributes: object) -> Raw:
    """Return an element; ``class_`` and ``data_x`` become ``class`` and ``data-x``."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{text_of(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Raw(f"<{name}{given}>{''.join(map(text_of, content))}</{name}>")


def table(
    head: Sequence[object], rows: Iterable[Sequence[object]], caption: str, numeric: Sequence[int] = ()
) -> Raw:
    """Return a table that scrolls sideways where it is too wide.

    Args:
        head: names of the columns.
        rows: cells; the first of each names its row.
        caption: what it is, for everybody.
        numeric: columns of numbers.
    """

    def cell(name: str, i: int, value: object, **more: object) -> Raw:
        return tag(name, value, class_="number" if i in numeric else None, **more)

    top = tag("tr", *(cell("th", i, value, scope="col") for i, value in enumerate(head)))
    body = []
    for row in rows:
        first, *others = row
        cells = [
            cell("th", 0, first, scope="row"),
            *(cell("td", i, value) for i, value in enumerate(others, 1)),
        ]
        body.append(tag("tr", *cells))
    whole = tag("table", tag("caption", caption), tag("thead", top), tag("tbody", *body))
    # Whoever has no mouse scrolls with the arrow keys: so it takes the focus, and says what it is.
    return tag("div", whole, class_="scroll", tabindex=0, role="region", aria_label=caption)


def facts(rows: Iterable[tuple[str, object]]) -> Raw:
    """Return names and values; rows whose value is None or empty are left out."""
    pairs = [tag("div", tag("dt", name), tag("dd", value)) for name, value in rows if value not in (None, "")]
    return tag("dl", *pairs, class_="facts")


def cards(rows: Iterable[tuple[str, object, object]]) -> Raw:
    """Return the few figures that matter most: (name, value, small print)."""
    return tag(
        "dl",
        *(
            tag("div", tag("dt", name), tag("dd", tag("strong", value), " ", tag("small", about)))
            for name, value, about in rows
        ),
        class_="cards",
    )


def figure(image: str, caption: object = "", class_: str | None = None) -> Raw:
    """Return a figure, which is an element already, with what is said below it; "" for no figure."""
    if not image:
        return Raw("")
    below = tag("figcaption", caption) if caption else ""
    return tag("figure", Raw(image), below, class_=class_)


def section(title: str, *content: object) -> Raw:
    """Return a section, with an anchor made of its title."""
    anchor = "-".join(title.lower().split())
    return tag("section", tag("h2", title, id=anchor), *content, aria_labelledby=anchor)


def details(summary: str, *content: object) -> Raw:
    """Return a part that is folded at first."""
    return tag("details", tag("summary", summary), *content)


def code(text: str) -> Raw:
    """Return commands or a file, as they are."""
    return tag("pre", tag("code", text), tabindex=0, role="region", aria_label="code")


def notes(texts: Iterable[str]) -> Raw:
    """Return remarks that should not be overlooked; "" for none."""
    found = [tag("li", text) for text in texts]
    return tag("ul", *found, class_="notes") if found else Raw("")


def data(name: str, document: Any) -> Raw:
    """Return JSON for the script; no text in it can end the element."""
    text = json.dumps(document, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Raw(f'<script type="application/json" id="{name}">{text}</script>')


def page(title: str, about: str, *content: object, footer: object = "", script: bool = False) -> str:
    """Return a whole page.

    Args:
        title: of the page.
        about: a line below it.
        content: sections.
        footer: at the end.
        script: whether there is a slider.
    """
    style = (_DATA / "report.css").read_text(encoding="utf-8")
    code_ = (_DATA / "report.js").read_text(encoding="utf-8") if script else ""
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            f"<title>{text_of(title)}</title>",
            f'<link rel="icon" href="{_ICON}">',
            f"<style>\n{style}</style>",
            "</head>",
            "<body>",
            tag("header", tag("h1", title), tag("p", about)),
            tag("main", *content),
            tag("footer", footer),
            f"<script>\n{code_}</script>" if code_ else "",
            "</body>",
            "</html>",
            "",
        ]
    )


def write_page(text: str, path: str | os.PathLike[str]) -> None:
    """Write a page; the file appears under its name only when it is complete.

    Raises:
        OSError: it cannot be written.
    """
    write_atomically(Path(path), text.encode("utf-8", "replace"))


#: Colours of our figures -> the page's variables, which are others in its dark mode. Fills that have texts on
#: them, and those texts, stay as they are.
_THEME = {
    "#000000": "ink", "#1a1a1a": "ink", "#303030": "ink", "#262626": "ink",
    "#6b6b6b": "soft", "#8a8a8a": "soft", "#808080": "soft",
    "#e4e4e4": "line", "#b8b8b8": "line", "#b0b0b0": "line", "#cccccc": "line",
    "#ffffff": "card",
    "#eef2f6": "band", "#dce5ee": "band2",
    "#0072b2": "blue", "#d55e00": "orange", "#009e73": "green",
}  # fmt: skip
_COLOR = re.compile("|".join(_THEME))
_IDS = re.compile(r'\b(id="|href="#|url\(#)')


class Svg(NamedTuple):
    """A figure for a page.

    Attributes:
        text: the element ``<svg>``.
        width: in its own units, which are those of ``viewBox``: points.
        height: likewise.
    """

    text: str
    width: float
    height: float


def inline(file: io.BytesIO, title: str, description: str, *, natural: bool = False) -> Svg:
    """Return a figure that was drawn into a buffer as an element of a page.

    Args:
        file: what :func:`~proxylessnas.utils.plotting.open_figure` wrote.
        title: what a screen reader says, and a mouse that rests on it shows.
        description: the same at length.
        natural: never wider than it was drawn (a single model), rather than as wide as its place.
    """
    text = file.getvalue().decode("utf-8")
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<style[^>]*>.*?</style>", "", text, flags=re.DOTALL)  # it would hold for the whole page
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = _COLOR.sub(lambda match: f"var(--{_THEME[match[0]]})", text)
    text = re.sub(r"font: ([0-9.]+)px [^;\"]*", r"font-size: \1px", text)
    text = re.sub(r"font: (bold|[1-9]00) ([0-9.]+)px [^;\"]*", r"font-weight: \1; font-size: \2px", text)
    text = re.sub(r"(; )?font-family: [^;\"]*", "", text)
    text = re.sub(r' transform="rotate\(-?0 [^)]*\)"', "", text)
    name = f"f{zlib.crc32((title + description + text).encode()):08x}"  # the same page each time
    text = _IDS.sub(rf"\g<1>{name}-", text)
    head = re.match(r'<svg[^>]*viewBox="([^"]+)"[^>]*>', text)
    assert head is not None
    _, _, width, height = map(float, head[1].split())
    style = f' style="max-width:{width * 4 / 3:.0f}px"' if natural else ""
    start = (
        f'<svg class="figure" role="img" aria-labelledby="{name}-t {name}-d" '
        f'viewBox="0 0 {width:g} {height:g}"{style} xmlns:xlink="http://www.w3.org/1999/xlink">'
        f'<title id="{name}-t">{html.escape(title)}</title>'
        f'<desc id="{name}-d">{html.escape(description)}</desc>'
    )
    text = start + text[head.end() :].strip()
    return Svg(re.sub(r">\s+<", "><", text), width, height)


WORDS = {"latency": "latency", "macs": "multiply-accumulates", "params": "parameters"}
UNITS = {"latency": "ms", "macs": "M", "params": "M"}


def amount(value: object, unit: str = "") -> str:
    """Return a cost to three digits, with its unit."""
    if not isinstance(value, (int, float)):
        return "not known"
    text = f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"
    return f"{text} {unit}".strip()


def percent(value: object) -> str:
    """Return an accuracy in percent."""
    return f"{value:.2f} %" if isinstance(value, (int, float)) else "not known"
