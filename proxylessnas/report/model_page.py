"""A model on a page and in a terminal: its figures by channels and latency, and as text."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..arch.arch import Arch
from ..arch.op_key import CLASSIFIER
from ..arch.tree import TreeArch
from ..errors import LatencyError, LatencyKeyError, one_line
from ..figures.draw_model import SKIPPED, Layer, counts, layers_of, model_figure, summary, timed_layers
from ..figures.draw_tree import tree_figure
from ..runtimes.files import report_of
from ..utils.checks import is_number
from .page import Figure, Table, inline

if TYPE_CHECKING:
    from ..latency.table import LatencyTable


def model_figures(
    arch: Arch | TreeArch, table: LatencyTable | None, notes: list[str]
) -> tuple[list[Figure], str]:
    """Return a model's figures, by channels and by latency, and its text; none of a model without blocks.

    Args:
        arch: the model.
        table: of a device, or None.
        notes: to which is added why there is no figure by latency, if there is none.
    """
    if isinstance(arch, TreeArch):
        file = io.BytesIO()
        tree_figure(arch, file)
        svg = inline(file, f"The cells of {arch.name}", f"{arch.name} has {len(arch.words)} tree cells.")
        return [Figure(svg, "Every tree cell of the model, an operation an edge.")], tree_text(arch)
    try:
        layers = layers_of(arch)
    except LatencyError as e:
        notes.append(f"the model's figure is left out: {e}")
        return [], ""
    said = "The model, block by block; the width shows the channels."
    figures, text = [_figure(arch.name, layers, "channels", said)], model_text(layers, arch.name)
    if table is not None:
        try:
            layers, total = timed_layers(arch, table)
        except (LatencyKeyError, LatencyError) as e:
            notes.append(f"the figure by latency is left out: {str(e).splitlines()[0]}")
        else:
            said = f"The same model; the width shows each block's cost by the latency table ({total} in all)."
            figures.append(_figure(arch.name, layers, "latency", said))
            text = model_text(layers, arch.name, note=total)
    return figures, text


def _figure(name: str, layers: list[Layer], by: str, caption: str) -> Figure:
    file = io.BytesIO()
    model_figure({name: layers}, file, by=by)
    said = "; ".join(_in_words(layer, by) for layer in layers)
    said = f"{name}, {summary(layers)}, from input to output: {said}."
    return Figure(inline(file, f"{name} by {by}", said, natural=True), caption)


def _in_words(layer: Layer, by: str) -> str:
    """Return a layer for those who do not see the figure."""
    if layer.kind == SKIPPED:
        return SKIPPED
    time = f", {layer.ms:.3g} ms" if by == "latency" and layer.ms is not None else ""
    halves = ", halves the map" if layer.stride == 2 else ""
    return f"{' '.join(layer.label.split())} to {layer.channels[2]} channels{halves}{time}"


_PRECISIONS = (("top-1 (%)", "top1", 1.0), ("ms an image", "ms", 1.0), ("MB", "bytes", 1e-6))


def precisions(folder: Path) -> Table | None:
    """Return float32 and INT8 side by side, of the INT8 files that were exported into a folder; None if none.

    Their reports say how many images evaluated both, and that their latencies were measured by turns.
    """
    rows: list[list[object]] = []
    for path in sorted(folder.glob("*.*.json")):
        known = report_of(path.with_suffix("")).get("int8")
        if isinstance(known, Mapping):
            values = [
                (known.get(f"{name}_{dtype}"), scale)
                for _, name, scale in _PRECISIONS
                for dtype in ("float", "int8")
            ]
            cells = [f"{v * scale:.4g}" if is_number(v, 0, 1e15) else "-" for v, scale in values]
            rows.append([path.stem, *cells, known.get("n", "-")])
    if not rows:
        return None
    head = [f"{what}, {dtype}" for what, _, _ in _PRECISIONS for dtype in ("float32", "INT8")]
    caption = "Both precisions: accuracy on the same images, latency of both files by turns"
    return Table(("file", *head, "images"), rows, caption, range(1, len(head) + 2))


_BAR = 28  # columns of the widest layer
_ACROSS = 6  # cells in a line
_KERNELS = {3: "░", 5: "▒", 7: "▓"}


def model_text(layers: Sequence[Layer], name: str, *, note: str = "", ascii_only: bool = False) -> str:
    """Return a model as text, a line a layer.

    The bar of a layer is as long as the square root of its channels at the widest place, or, where latencies
    are known, as its latency; its shade is the kernel size.

    Args:
        layers: of :func:`~proxylessnas.figures.draw_model.layers_of`.
        name: of the model.
        note: about the whole, such as its latency.
        ascii_only: for terminals that show nothing else.
    """
    timed = all(layer.ms is not None for layer in layers)
    most = max(_length(layer, timed) for layer in layers) or 1.0
    blocks, skipped = counts(layers)
    lines = [f"{one_line(name)}: {blocks} blocks, {skipped} skipped{', ' + note if note else ''}"]
    size = 0
    for layer in layers:
        where = f"{layer.size:>4}" if layer.size != size else "    "
        size = layer.size
        shade = "#" if ascii_only else _KERNELS.get(layer.kernel, "█")
        bar = shade * max(1, round(_BAR * _length(layer, timed) / most)) if layer.kind != SKIPPED else "-"
        label = layer.label.replace("×", "x") if ascii_only else layer.label
        channels = "" if layer.kind == SKIPPED else f"{layer.channels[0]:>5} > {layer.channels[2]}"
        ms = f"{layer.ms:>8.3f} ms" if timed and layer.ms else ""
        step = " /2" if layer.stride == 2 else ""
        lines.append(f"{where}  {label:<12}{channels:<14}{bar:<{_BAR}}{ms}{step}".rstrip())
    shows = "latency" if timed else "root of the widest channels"
    legend = f"left: side of the map, px; then kernel, expansion ratio, channels; bar: {shows}"
    return "\n".join([*lines, "", legend])


def tree_text(arch: TreeArch) -> str:
    """Return a model of tree cells, stage by stage; see :mod:`proxylessnas.arch.tree` for the letters."""
    widths, count = arch.cell_widths, len(arch.words)
    each = count // arch.num_stages
    lines = [f"{one_line(arch.name)}: {count} tree cells in {arch.num_stages} stages"]
    for start in range(0, count, each):
        size = arch.resolution // 2 ** (start // each)
        lines.append(f"{size:>4} px, {widths[start]} to {widths[start + each - 1]} channels")
        words = arch.words[start : start + each]
        lines += ["      " + " ".join(words[i : i + _ACROSS]) for i in range(0, each, _ACROSS)]
    legend = "a word a cell, a letter an edge: i identity; 3 5 7 separable convolution; d the same, dilated;"
    return "\n".join([*lines, "", legend, "a m average and max pooling"])


def _length(layer: Layer, timed: bool) -> float:
    if timed:
        return layer.ms or 0.0
    return 0.0 if layer.kind in (SKIPPED, CLASSIFIER) else math.sqrt(layer.channels[1])
