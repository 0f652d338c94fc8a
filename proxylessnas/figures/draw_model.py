"""Models as figures (SVG or PNG, with matplotlib): block by block, one or several side by side.

A model flows from top to bottom. A block is drawn as what it is, mostly an inverted bottleneck: narrow at its
input and output, wide in between. So a model of large ratios looks wide, and one of many blocks long. By
latency, a block is a bar as wide as the time it takes. The kernel size is a shade that stays apart in grey
print and for every kind of colour vision, and is written into each block too.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..arch.arch import Arch
from ..arch.op_key import CLASSIFIER, FIXED, LAST, STEM, OpKey, arch_keys
from ..errors import DataError
from ..latency.plots import short
from ..utils.plotting import GREY, open_figure, require_matplotlib

if TYPE_CHECKING:
    from ..latency.table import LatencyTable


#: Kernel size -> (fill, colour of the text on it): of one hue each, light to dark.
KERNEL_COLORS = {3: ("#f7c948", "#1b1b1b"), 5: ("#4ba3c7", "#10222b"), 7: ("#0b3c5d", "#fdfdfd")}
_OTHER = ("#d9d9d9", "#1b1b1b")
INK = "#1a1a1a"  # of what is on the page itself; a page with a dark mode turns it light
_COLUMN_IN = 2.5  # width of a model
_BLOCK_IN = 0.27  # height of a block
_GAP = 0.16  # of that height, between two blocks
_SKIPPED = 0.42  # height of a skipped block, as a share of a block's
_HALF = 0.39  # half of a column's width that the widest layer takes
_LEAST = 0.055  # half of the width of the narrowest, by channels
_LEAST_TIME = 0.006  # the same by latency, where nothing is smaller than its line
_LONGEST = 14  # letters of a label
_LABEL = 0.1  # half of the width that a label needs


def model_figure(
    models: Mapping[str, Sequence[Layer]],
    target: str | os.PathLike[str] | io.BytesIO,
    *,
    by: str = "channels",
    notes: Mapping[str, str] | None = None,
) -> None:
    """Draw models side by side, from their inputs at the top to their classifiers.

    Args:
        models: name to layers, of :func:`~proxylessnas.figures.draw_model.layers_of`.
        target: path of the file, ``.svg`` or ``.png``, which is replaced as a whole, or not at all; or a
            buffer for an SVG.
        by: what the width of a layer shows: "channels" (their square root) or "latency" (on one scale for all
            models).
        notes: model to a line below its name, such as its latency.

    Raises:
        DataError: nothing to draw, or a latency is missing.
        MissingExtraError: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    require_matplotlib()
    if not models or not all(models.values()):
        raise DataError("no model to draw")
    if by not in ("channels", "latency"):
        raise DataError(f"by is {by!r}; wanted channels or latency")
    if by == "latency" and any(layer.ms is None for layers in models.values() for layer in layers):
        raise DataError("a figure by latency needs the latency of every layer")
    widest = max(max(_widths(layer, by)) for model in models.values() for layer in model)
    tallest = max(sum(map(_height, layers)) for layers in models.values())
    with open_figure(target, max(3.4, 0.55 + _COLUMN_IN * len(models)), 1.25 + _BLOCK_IN * tallest) as figure:
        axes = figure.add_subplot()
        axes.set(xlim=(-0.28, len(models) - 0.28 + 0.06), ylim=(tallest + 0.4, -2.1))
        axes.set_axis_off()
        for column, (name, layers) in enumerate(models.items()):
            _column(
                axes,
                column + 0.22,
                name,
                layers,
                by,
                widest or 1.0,
                (notes or {}).get(name, ""),
                _decimals(models),
            )
        _legend(axes, models, by)


def _widths(layer: Layer, by: str) -> tuple[float, float, float]:
    """Return what a layer's width shows at its input, its middle and its output."""
    if by == "latency":
        return (layer.ms or 0.0,) * 3
    if layer.kind == CLASSIFIER:  # its number of classes is not to scale
        return (0.0,) * 3
    into, wide, out = map(math.sqrt, layer.channels)
    return into, wide, out


def _height(layer: Layer) -> float:
    return _SKIPPED if layer.kind == SKIPPED else 1.0


def _column(
    axes: Any,
    x: float,
    name: str,
    layers: Sequence[Layer],
    by: str,
    widest: float,
    note: str,
    decimals: str,
) -> None:
    axes.text(
        x,
        -1.35,
        short(name),
        ha="center",
        va="bottom",
        fontsize=11,
        fontweight="bold",
        color=INK,
        parse_math=False,
    )
    axes.text(
        x, -0.75, note or summary(layers), ha="center", va="bottom", fontsize=8, color=GREY, parse_math=False
    )
    y, size = 0.0, None
    for layer in layers:
        if layer.size != size and layer.kind != CLASSIFIER:
            _mark_size(axes, x, y, layer.size)
            size = layer.size
        if layer.kind == SKIPPED:
            _skipped(axes, x, y)
        else:
            _layer(axes, x, y, layer, by, widest, decimals)
        y += _height(layer)


def summary(layers: Sequence[Layer]) -> str:
    """Return how many blocks a model has, and how many are skipped."""
    blocks, skipped = counts(layers)
    return f"{blocks} blocks" + (f", {skipped} skipped" if skipped else "")


def _mark_size(axes: Any, x: float, y: float, size: int) -> None:
    """Draw where the maps get smaller, and how large they are from here on."""
    axes.plot([x - 0.49, x + 0.44], [y, y], color="#b8b8b8", linewidth=0.7, linestyle=(0, (2, 2)), zorder=0)
    axes.text(x - 0.495, y + 0.06, f"{size}", ha="left", va="top", fontsize=7, color=GREY)


def _skipped(axes: Any, x: float, y: float) -> None:
    middle = y + _SKIPPED / 2
    axes.plot([x, x], [y, y + _SKIPPED], color="#8a8a8a", linewidth=1.0, zorder=1)
    axes.plot([x - 0.035, x + 0.035], [middle, middle], color="#8a8a8a", linewidth=1.0, zorder=1)


def _layer(axes: Any, x: float, y: float, layer: Layer, by: str, widest: float, decimals: str) -> None:
    from matplotlib.patches import Polygon

    fill, ink = _OTHER if layer.kind in FIXED else KERNEL_COLORS.get(layer.kernel, _OTHER)
    top, bottom = y + _GAP / 2, y + 1 - _GAP / 2
    least = _LEAST if by == "channels" else _LEAST_TIME
    into, wide, out = (max(least, _HALF * width / widest) for width in _widths(layer, by))
    if by == "channels" and layer.kind == CLASSIFIER:
        into = wide = out = 0.2
    corner = 0.28 * (bottom - top)
    points = [(-into, top), (into, top), (wide, top + corner), (wide, bottom - corner), (out, bottom)]
    points += [(-out, bottom), (-wide, bottom - corner), (-wide, top + corner)]
    axes.add_patch(
        Polygon(
            [(x + dx, py) for dx, py in points],
            closed=True,
            facecolor=fill,
            edgecolor=INK,
            linewidth=1.3 if layer.stride == 2 else 0.5,
        )
    )
    label = layer.label if len(layer.label) <= _LONGEST else layer.label[: _LONGEST - 1] + "…"
    # A label that is wider than its block would be unreadable on two backgrounds.
    inside = wide > _LABEL * (1.3 if len(label) > 7 else 1.0)
    place = {"ha": "center"} if inside else {"ha": "left"}
    axes.text(
        x if inside else x + wide + 0.02, (top + bottom) / 2, label, va="center_baseline", fontsize=7,
        color=ink if inside else INK, parse_math=False, **place,
    )  # fmt: skip
    number = (decimals % layer.ms) if by == "latency" else f"{layer.channels[2]}"
    if by == "latency" or layer.kind != CLASSIFIER:
        away = 3 + (0 if inside else 4 + 4.4 * len(label))
        axes.annotate(
            number,
            (x + wide, bottom),
            (away, 0),
            textcoords="offset points",
            fontsize=6.8,
            color=GREY,
            va="bottom",
        )


def _decimals(models: Mapping[str, Sequence[Layer]]) -> str:
    """Return a format of milliseconds with which the slowest layer has three digits."""
    most = max((layer.ms or 0.0 for model in models.values() for layer in model), default=0.0)
    return f"%.{3 if most < 0.9995 else 2 if most < 9.995 else 1}f ms"


def _legend(axes: Any, models: Mapping[str, Sequence[Layer]], by: str) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    layers = [layer for model in models.values() for layer in model]
    marks: list[Any] = [
        Patch(
            facecolor=KERNEL_COLORS.get(k, _OTHER)[0],
            edgecolor=INK,
            linewidth=0.5,
            label=f"{k}×{k} kernel",
        )
        for k in sorted({layer.kernel for layer in layers if layer.kernel and layer.kind not in FIXED})
    ]
    marks.append(Patch(facecolor="none", edgecolor=INK, linewidth=1.3, label="halves the map"))
    if any(layer.kind == SKIPPED for layer in layers):
        marks.append(Line2D([], [], color="#8a8a8a", marker="_", markersize=5, linewidth=1, label="skipped"))
    shows = ("width: √channels", "channels out") if by == "channels" else ("width: latency", "latency")
    scale = f"{shows[0]}; e: expansion ratio; left: map side, px; right: {shows[1]}"
    legend = axes.legend(
        handles=marks, loc="upper center", bbox_to_anchor=(0.5, 0.0), frameon=False, fontsize=8,
        ncols=min(len(marks), 5 if len(models) > 2 else 2), title_fontsize=8, labelcolor=INK,
        title=scale.replace("; left", ";" + (" " if len(models) > 1 else "\n") + "left"),
    )  # fmt: skip
    legend.get_title().set(color=INK, multialignment="center")


SKIPPED = "skipped"


@dataclass(frozen=True)
class Layer:
    """One layer of a model, drawn as one shape.

    Attributes:
        kind: "stem", that of an operation such as "mbconv", "skipped" (the Zero candidate), "last" or
            "classifier".
        label: what a figure calls it, short.
        kernel: side of the largest kernel, 0 where there is none.
        channels: at the input, at the widest place and at the output.
        size: side of the map at the input, px.
        stride: 1 or 2.
        shortcut: the input is added to the output.
        stage: number of its stage; -1 for what belongs to none.
        ms: latency, or None if it is not known.
    """

    kind: str
    label: str
    kernel: int
    channels: tuple[int, int, int]
    size: int
    stride: int
    shortcut: bool
    stage: int
    ms: float | None = None

    @property
    def out_size(self) -> int:
        """Side of the map at the output, px."""
        return 1 if self.kind == CLASSIFIER else -(-self.size // self.stride)


def layers_of(
    arch: Arch,
    *,
    resolution: int | None = None,
    num_classes: int | None = None,
    times_ms: Mapping[OpKey, float] | None = None,
) -> list[Layer]:
    """Return a model's layers in order.

    Args:
        arch: the model.
        resolution: side of the input, px; None takes the model's own.
        num_classes: outputs; None takes the model's own.
        times_ms: latency of every operation of the model, such as ``table.breakdown`` gives it.

    Raises:
        LatencyError: it is no chain of blocks.
        KeyError: an operation has no latency.
    """
    order = iter(arch_keys(arch, resolution=resolution, num_classes=num_classes))
    found = [_fixed(next(order), times_ms)]
    for block in arch.iter_blocks():
        channels = (block.in_channels, block.mid_channels, block.out_channels)
        if block.kind == "zero":
            ms = None if times_ms is None else 0.0
            found.append(Layer(SKIPPED, SKIPPED, 0, channels, found[-1].out_size, 1, True, block.stage, ms))
            continue
        key = next(order)
        ms = None if times_ms is None else times_ms[key]
        found.append(
            Layer(
                block.kind, block.op.label, block.kernel, channels, key.size, block.stride, block.shortcut,
                block.stage, ms,
            )
        )  # fmt: skip
    return found + [_fixed(key, times_ms) for key in order]


def timed_layers(arch: Arch, table: LatencyTable, predict_missing: bool = False) -> tuple[list[Layer], str]:
    """Return a model's layers with their latencies by a table, and the latency of the whole in words.

    Args:
        arch: the model.
        table: of its operations.
        predict_missing: guess the latency of operations that the table lacks.

    Raises:
        LatencyKeyError: the table lacks an operation.
    """
    if predict_missing:
        from ..latency.predictor import filled

        table, _ = filled(table, arch_keys(arch))
    found = table.explain(arch)
    text = f"{found.total_ms:.3g} ms" if found.total_ms < 100 else f"{found.total_ms:.0f} ms"
    rest = found.total_ms - sum(ms for _, ms, _ in found.parts)
    if abs(rest) >= 0.005 * found.total_ms:
        text += f" ({rest:+.2g} ms for no operation by itself)"
    if found.predicted:
        text += f", {found.predicted} operations guessed"
    return layers_of(arch, times_ms={key: ms for key, ms, _ in found.parts}), text


def counts(layers: Sequence[Layer]) -> tuple[int, int]:
    """Return how many blocks a model has, and how many of its places are skipped."""
    skipped = sum(layer.kind == SKIPPED for layer in layers)
    return sum(layer.kind not in FIXED for layer in layers) - skipped, skipped


def _fixed(key: OpKey, times_ms: Mapping[OpKey, float] | None) -> Layer:
    channels = (key.in_channels, max(key.in_channels, key.out_channels), key.out_channels)
    kernel = {STEM: 3, LAST: 1}.get(key.op, 0)
    label = f"{kernel}×{kernel} conv" if kernel else key.op
    ms = None if times_ms is None else times_ms[key]
    return Layer(key.op, label, kernel, channels, key.size, key.stride, False, -1, ms)
