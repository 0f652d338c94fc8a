"""A net on a page: its figure, by channels and, where a latency table knows it, by latency; and as text."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from ..arch import Arch
from ..errors import LatencyError, LatencyKeyError
from ..tree_arch import TreeArch
from .net_drawing import net_figure, summary
from .net_words import net_text, tree_text
from .page import Raw, code, details, figure, tag
from .shapes import Layer, layers_of, timed_layers
from .svg import inline
from .tree_drawing import tree_figure

if TYPE_CHECKING:
    from ..latency.table import LatencyTable


def net_part(arch: Arch | TreeArch, table: LatencyTable | None, notes: list[str]) -> Raw:
    """Return a net's figures and its text.

    Args:
        arch: the net.
        table: of a device, or None.
        notes: to which is added why there is no figure by latency, if there is none.
    """
    if isinstance(arch, TreeArch):
        file = io.BytesIO()
        tree_figure(arch, file)
        svg = inline(file, f"The cells of {arch.name}", f"{arch.name} has {len(arch.words)} tree cells.")
        caption = "Every tree cell of the net, an operation an edge."
        return Raw(figure(svg.text, caption) + details("The net as text", code(tree_text(arch))))
    try:
        layers = layers_of(arch)
    except LatencyError as e:
        notes.append(f"the net's figure is left out: {e}")
        return Raw("")
    parts = [_figure(arch.name, layers, "channels", "The net, block by block; the width shows the channels.")]
    text = net_text(layers, arch.name)
    if table is not None:
        try:
            timed, total = timed_layers(arch, table)
        except (LatencyKeyError, LatencyError) as e:
            notes.append(f"the figure by latency is left out: {str(e).splitlines()[0]}")
        else:
            said = (
                f"The same net; the width shows what each block costs by the latency table ({total} in all)."
            )
            parts.append(_figure(arch.name, timed, "latency", said))
            text = net_text(timed, arch.name, note=total)
    return Raw(tag("div", *parts, class_="grid nets") + details("The net as text", code(text)))


def _figure(name: str, layers: list[Layer], by: str, caption: str) -> Raw:
    file = io.BytesIO()
    net_figure({name: layers}, file, by=by)
    words = "; ".join(in_words(layer, by) for layer in layers)
    svg = inline(
        file, f"{name} by {by}", f"{name}, {summary(layers)}, from input to output: {words}.", natural=True
    )
    return figure(svg.text, caption)


def in_words(layer: Layer, by: str = "channels") -> str:
    """Return a layer for those who do not see the figure."""
    if layer.kind == "skipped":
        return "skipped"
    time = f", {layer.ms:.3g} ms" if by == "latency" and layer.ms is not None else ""
    halves = ", halves the map" if layer.stride == 2 else ""
    return f"{' '.join(layer.label.split())} to {layer.channels[2]} channels{halves}{time}"
