"""What each candidate operation of a search space costs here, relative to one of them, at its stages' maps.

Each operation is a model of its own, measured in one interleaved session (:mod:`.session`), so that a busy
machine is as busy for all of them. Alone, an operation finds its input in the cache and costs a call: that
says which operation to prefer, not what a model takes; for that there are tables (:func:`.build_table`).
"""

from __future__ import annotations

import datetime
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..arch.op_key import OpKey, candidate_key, key_bytes, key_macs
from ..arch.ops import ZERO, op_name, parse_token
from ..arch.space import SearchBlock, SearchSpace
from ..errors import LatencyError
from ..runtimes.base import ModelSpec
from ..utils.files import write_atomically
from ..utils.plotting import BLUE, GREY, GRID, SHADES, clean_axes, open_figure, require_matplotlib
from ..utils.text import csv_text
from .measurement import Timing
from .plots import describe
from .session import Item, MeasurementSession, Progress
from .settings import OpCostSettings

#: Uncertainty of each latency that is wanted, as a share.
LIMIT = 0.005
_MARKS = "osD^vP"


@dataclass(frozen=True)
class OpCost:
    """An operation at one stage.

    Attributes:
        stage: of the space, from 1.
        key: the operation and its shape.
        timing: of it alone.
        relative: its undisturbed latency over that of the base at this stage.
        uncertainty: of that, as a share.
    """

    stage: int
    key: OpKey
    timing: Timing
    relative: float
    uncertainty: float

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values, a line of a CSV file."""
        t, c, key = self.timing, self.timing.conditions, self.key
        numbers = key_bytes(key, 1)
        return {
            "stage": self.stage,
            "op": key.op,
            "in_channels": key.in_channels,
            "out_channels": key.out_channels,
            "size": key.size,
            "stride": key.stride,
            "act": key.act,
            "relative": round(self.relative, 4),
            "uncertainty": round(self.uncertainty, 5) if math.isfinite(self.uncertainty) else "",
            "undisturbed_ms": round(t.undisturbed_ms, 5),
            "median_ms": round(t.median_ms, 5),
            "runs": t.runs,
            "macs": key_macs(key),
            "params": None if numbers is None else numbers[0],
            "runtime": c.runtime,
            "device": c.device,
            "threads": c.threads,
            "batch": c.batch_size,
            "dtype": c.dtype,
            "device_name": c.device_name,
            "versions": ", ".join(f"{name} {version}" for name, version in c.versions.items()),
            "date": t.date,
        }


@dataclass(frozen=True)
class OpCosts:
    """The result of :func:`op_costs`.

    Attributes:
        base: the operation that costs 1 at each stage.
        rows: stage by stage, in it the base, then the candidates in the order of the space's.
    """

    base: str
    rows: tuple[OpCost, ...]

    @property
    def ops(self) -> list[str]:
        """The operations, in order."""
        return list(dict.fromkeys([self.base, *(row.key.op for row in self.rows)]))

    @property
    def stages(self) -> dict[str, dict[str, OpCost]]:
        """Each stage's shape in words, such as "24 ch, 56 px", to its operations by name."""
        found: dict[str, dict[str, OpCost]] = {}
        for row in self.rows:
            key = row.key
            channels = str(key.in_channels)
            if key.in_channels != key.out_channels:
                channels += f" > {key.out_channels}"
            shape = f"{channels} ch, {key.size} px" + " /2" * (key.stride == 2)
            found.setdefault(shape, {})[key.op] = row
        return found

    @property
    def conditions(self) -> str:
        """What was measured with, in words."""
        found = self.rows[0].timing.conditions
        dtype = ", float32" if found.dtype == "float32" else ""  # others are said already
        return f"{describe(found)}{dtype}; {found.device_name}"

    def write_csv(self, path: str | os.PathLike[str]) -> None:
        """Write a line an operation and stage.

        Raises:
            OSError: the file cannot be written.
        """
        lines = [row.to_dict() for row in self.rows]
        text = csv_text(list(lines[0]), [list(line.values()) for line in lines])
        write_atomically(Path(path), text.encode("utf-8", "backslashreplace"))

    def write_png(self, path: str | os.PathLike[str]) -> None:
        """Draw what each operation costs, a mark a stage: the larger its map, the darker.

        Raises:
            MissingExtraError: matplotlib is not installed.
            OSError: the file cannot be written.
        """
        require_matplotlib()
        stages, ops = self.stages, self.ops
        with open_figure(path, 6.8, 0.36 * len(ops) + 1.5) as figure:
            axes = figure.add_subplot()
            axes.axvline(1.0, color=GREY, linewidth=1.0, zorder=1)
            for y, op in enumerate(ops):
                own = [row.relative for found in stages.values() if (row := found.get(op))]
                axes.plot([min(own), max(own)], [y, y], color=GRID, linewidth=3, zorder=1)
            shades = [SHADES[3], BLUE, SHADES[2], SHADES[1]]
            for i, (shape, found) in enumerate(stages.items()):
                points = [(row.relative, ops.index(op)) for op, row in found.items()]
                shade = shades[min(i * len(shades) // len(stages), len(shades) - 1)]
                x, height = zip(*points, strict=True)
                look = {"color": shade, "edgecolor": SHADES[3], "linewidth": 0.7, "zorder": 3}
                axes.scatter(x, height, s=34, marker=_MARKS[i % len(_MARKS)], label=shape, **look)
            axes.set_yticks(range(len(ops)), ops, parse_math=False)
            axes.set(xlim=(0, None), ylim=(len(ops) - 0.5, -0.5), xlabel=f"latency relative to {self.base}")
            clean_axes(axes)
            axes.set_title("What an operation costs, by the map it works on", loc="left", fontsize=11)
            legend = figure.legend(
                loc="outside lower center", ncols=3, frameon=False, fontsize=9, title=self.conditions
            )
            legend.get_title().set(fontsize=8, color=GREY)


def op_costs(
    space: SearchSpace, settings: OpCostSettings | None = None, *, progress: Progress | None = None
) -> OpCosts:
    """Measure what each candidate of a space costs here, relative to one operation, at each stage's shape.

    A stage's shape is that of its last block, as the others of the stage have it but for the first.

    Args:
        space: the space.
        settings: what is measured with, and how long; None takes the defaults.
        progress: called with (seconds done, seconds in all, what is being done).

    Raises:
        LatencyError: it cannot be measured so.
        ArchError: there is no such base.
        MissingExtraError: the runtime's library is not installed.
    """
    asked = settings or OpCostSettings()
    base = op_name(asked.base)
    keys = [(block.stage + 1, key) for block in _last_blocks(space, base) for key in _keys(block, base)]
    items = [
        Item(f"op {key}", ModelSpec("op", str(key), (key.in_channels, key.size, key.size)), asked.settings)
        for key in dict.fromkeys(key for _, key in keys)
    ]
    session = MeasurementSession(items, imports=asked.imports, seed=asked.seed, progress=progress)
    session.run(60 * asked.minutes, limit=LIMIT)
    date, conditions = datetime.date.today().isoformat(), session.conditions(asked.settings)
    rows: list[OpCost] = []
    first: dict[int, Timing] = {}
    for stage, key in keys:
        size = (key.in_channels, key.size, key.size)
        own = Timing.of(session.measured[f"op {key}"], conditions, size, date)
        one = first.setdefault(stage, own)
        uncertainty = 0.0 if own is one else math.hypot(own.uncertainty, one.uncertainty)
        rows.append(OpCost(stage, key, own, own.undisturbed_ms / one.undisturbed_ms, uncertainty))
    return OpCosts(base, tuple(rows))


def _last_blocks(space: SearchSpace, base: str) -> list[SearchBlock]:
    """Return the last block of each stage that can be the base, of stages of one shape the first."""
    strides = parse_token(base)[0].strides
    last = {block.stage: block for block in space.search_blocks if block.stride in strides}.values()
    if not last:
        raise LatencyError(f"no block of {space.name} can be {base}, to compare with: name another base")
    alike = {(b.in_channels, b.out_channels, b.in_size, b.stride): b for b in reversed([*last])}
    return list(alike.values())[::-1]


def _keys(block: SearchBlock, base: str) -> list[OpKey]:
    """Return the operations that are measured at a block, the base first."""
    ops = [base, *(token for token in block.candidate_ops if token != ZERO)]
    possible = [op for op in ops if block.stride in parse_token(op)[0].strides]
    return [candidate_key(block, op) for op in dict.fromkeys(possible)]
