"""matplotlib's SVG as part of a page: texts that can be read and found, colours of the page's theme."""

from __future__ import annotations

import html
import io
import re
import zlib
from typing import NamedTuple

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
        file: what :func:`~proxylessnas.charts.open_figure` wrote.
        title: what a screen reader says, and a mouse that rests on it shows.
        description: the same at length.
        natural: never wider than it was drawn (a single net), rather than as wide as its place.
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
