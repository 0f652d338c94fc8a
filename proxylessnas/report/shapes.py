"""What a figure of a net shows, as data: its layers from the stem to the classifier, with sizes and times."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..arch import Arch, Block
from ..latency.keys import CLASSIFIER, LAST, STEM, OpKey, arch_keys

if TYPE_CHECKING:
    from ..latency.table import LatencyTable

SKIPPED = "skipped"


@dataclass(frozen=True)
class Layer:
    """One layer of a net, drawn as one shape.

    Attributes:
        kind: "stem", "mbconv", "custom", "skipped" (the Zero candidate), "last" or "classifier".
        name: of a registered operation; else "".
        kernel: side of the (depthwise) convolution, 0 where there is none.
        expand: expansion ratio, 0 where there is none.
        channels: at the input, at the widest place and at the output.
        size: side of the map at the input, px.
        stride: 1 or 2.
        shortcut: the input is added to the output.
        stage: number of its stage; -1 for what belongs to none.
        ms: latency, or None if it is not known.
    """

    kind: str
    name: str
    kernel: int
    expand: float
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

    @property
    def label(self) -> str:
        """What a figure calls it, short."""
        if self.kind == "mbconv":
            return f"{self.kernel}×{self.kernel}  e{self.expand:g}"
        fixed = {STEM: "3×3 conv", LAST: "1×1 conv", CLASSIFIER: "classifier", SKIPPED: SKIPPED}
        return fixed.get(self.kind, self.name)


def layers_of(
    arch: Arch,
    *,
    resolution: int | None = None,
    num_classes: int | None = None,
    times_ms: Mapping[OpKey, float] | None = None,
) -> list[Layer]:
    """Return a net's layers in order.

    Args:
        arch: the net.
        resolution: side of the input, px; None takes the net's own.
        num_classes: outputs; None takes the net's own.
        times_ms: latency of every operation of the net, such as ``table.breakdown`` gives it.

    Raises:
        LatencyError: it is no net of MBConv blocks.
        KeyError: an operation has no latency.
    """
    keys = arch_keys(arch, resolution=resolution, num_classes=num_classes)
    blocks: Iterable[Block] = arch.iter_blocks()
    order = iter(keys)
    found = [_fixed(next(order), times_ms)]
    for block in blocks:
        if block.kind == "zero":
            found.append(
                Layer(
                    SKIPPED,
                    "",
                    0,
                    0,
                    (block.in_channels,) * 2 + (block.out_channels,),
                    found[-1].out_size,
                    1,
                    True,
                    block.stage,
                    None if times_ms is None else 0.0,
                )
            )
            continue
        key = next(order)
        wide = block.mid_channels if block.kind == "mbconv" else max(block.in_channels, block.out_channels)
        found.append(
            Layer(
                block.kind,
                block.token.removesuffix("!") if block.kind == "custom" else "",
                block.kernel,
                block.expand,
                (block.in_channels, wide, block.out_channels),
                key.size,
                block.stride,
                block.shortcut,
                block.stage,
                None if times_ms is None else times_ms[key],
            )
        )
    return found + [_fixed(key, times_ms) for key in order]


def timed_layers(arch: Arch, table: LatencyTable, predict_missing: bool = False) -> tuple[list[Layer], str]:
    """Return a net's layers with their latencies by a table, and the latency of the whole in words.

    Args:
        arch: the net.
        table: of its operations.
        predict_missing: guess the latency of operations that the table lacks.

    Raises:
        LatencyKeyError: the table lacks an operation.
    """
    if predict_missing:
        missing = [key for key in dict.fromkeys(arch_keys(arch)) if key not in table.entries]
        if missing:
            from ..latency.predictor import Predictor

            table = table.extended(missing, Predictor.fit(table))
    found = table.explain(arch)
    text = f"{found.total_ms:.3g} ms" if found.total_ms < 100 else f"{found.total_ms:.0f} ms"
    rest = found.total_ms - sum(ms for _, ms, _ in found.parts)
    if abs(rest) >= 0.005 * found.total_ms:
        text += f" ({rest:+.2g} ms for no operation by itself)"
    if found.predicted:
        text += f", {found.predicted} operations guessed"
    return layers_of(arch, times_ms={key: ms for key, ms, _ in found.parts}), text


def counts(layers: Sequence[Layer]) -> tuple[int, int]:
    """Return how many blocks a net has, and how many of its places are skipped."""
    kinds = [layer.kind for layer in layers]
    return kinds.count("mbconv") + kinds.count("custom"), kinds.count(SKIPPED)


def _fixed(key: OpKey, times_ms: Mapping[OpKey, float] | None) -> Layer:
    channels = (key.in_channels, max(key.in_channels, key.out_channels), key.out_channels)
    kernel = {STEM: 3, LAST: 1}.get(key.op, 0)
    ms = None if times_ms is None else times_ms[key]
    return Layer(key.op, "", kernel, 0, channels, key.size, key.stride, False, -1, ms)
