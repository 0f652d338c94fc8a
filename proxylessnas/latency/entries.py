"""What a latency table is made of: entries, conditions, a correction, and the breakdown of a model."""

from __future__ import annotations

import dataclasses
import datetime
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..arch.op_key import OpKey
from ..errors import LatencyError, shown
from ..runtimes.settings import Conditions, Settings
from ..utils.checks import is_int, is_number, is_text, show

HOW = ("measured", "fitted", "predicted", "imported")
UNKNOWN = "unknown"
STATISTICS = ("undisturbed", "median", "mean", UNKNOWN)
#: Where two runs order the models hardly alike (Kendall's tau), there is nothing to choose by.
NO_ORDER = 0.4
LEAST_JUDGED = 30  # models that a validation compares at least
LONGEST_MS = 1e9  # eleven days: whatever takes longer is not a latency

_MAX_PROBLEMS = 50


@dataclass(frozen=True)
class Entry:
    """What one operation costs.

    Attributes:
        ms: milliseconds that it adds to the latency of a model, one forward pass of the whole batch.
        p10_ms, p90_ms, std_ms: spread of the single runs, if known.
        runs: timed runs, or models that the figure was taken from; None if unknown.
        how: "measured" (the operation's own time), "fitted" (so that sums are the latencies of whole models),
            "predicted" (by a regression; never measured) or "imported" (measured by another program).
    """

    ms: float
    p10_ms: float | None = None
    p90_ms: float | None = None
    runs: int | None = None
    how: str = "measured"
    std_ms: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values, without what is unknown."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Correction:
    """A line through the predictions: ``scale * prediction + offset_ms``; by default it changes nothing."""

    scale: float = 1.0
    offset_ms: float = 0.0


class ForeignConditions(Conditions):
    """Conditions of a measurement by another program, whose runtime this package may not know.

    Texts are free, ``threads`` and ``batch_size`` are 0 where the source does not tell. Nothing can be
    measured under these conditions here: :attr:`settings` raises LatencyError.
    """

    @property
    def settings(self) -> Settings:
        """There are none: nothing can be measured here as another program did.

        Raises:
            LatencyError: always.
        """
        raise LatencyError(
            f"these latencies were measured by another program ({self.describe()}), which cannot be run here"
        )

    def __post_init__(self) -> None:
        problems = _foreign_problems(dataclasses.asdict(self))
        if problems:
            raise LatencyError("; ".join(problems))

    def describe(self) -> str:
        """Return what is known in one line."""
        known = [f"{self.runtime} on {self.device_name}"]
        known += [f"{self.threads} thread{'s' if self.threads > 1 else ''}"] if self.threads else []
        known += [f"batch {self.batch_size}" if self.batch_size else "batch size unknown"]
        known += [self.dtype] if self.dtype != UNKNOWN else []
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return ", ".join(known) + (f"; {versions}" if versions else "")


def _foreign_problems(data: Mapping[str, Any]) -> list[str]:
    problems = [
        f"{name} is {show(data[name])}; wanted a short text"
        for name in ("runtime", "device", "dtype", "memory_format", "device_name", "allocator", "system")
        if not is_text(data[name], 300)
    ]
    for name, most in (("threads", 1024), ("batch_size", 65_536)):
        if not is_int(data[name], 0, most):
            problems.append(f"{name} is {show(data[name])}; wanted a whole number up to {most}, 0 if unknown")
    return problems


@dataclass(frozen=True)
class Breakdown:
    """Where a predicted latency comes from.

    Attributes:
        total_ms: the prediction; the sum of the parts and the offset.
        parts: (key, ms, how) of each operation in order of execution; skipped blocks cost nothing and are
            left out.
        offset_ms: what belongs to no operation.
        predicted: how many of the parts were never measured but predicted by a regression.
    """

    total_ms: float
    parts: tuple[tuple[OpKey, float, str], ...]
    offset_ms: float
    predicted: int


def raise_problems(problems: list[str], where: str) -> None:
    """Raise one LatencyError with every problem, if there is any."""
    if not problems:
        return
    more = [f"... and {len(problems) - _MAX_PROBLEMS} more"] if len(problems) > _MAX_PROBLEMS else []
    listed = problems[:_MAX_PROBLEMS] + more
    if len(listed) == 1:
        raise LatencyError(f"{where}: {listed[0]}")
    raise LatencyError(f"{where}: {len(problems)} problems\n  " + "\n  ".join(listed))


def is_date(value: object) -> bool:
    """Tell whether a value is an ISO day."""
    if not isinstance(value, str) or not re.fullmatch(r"\d{4}-\d{2}-\d{2}", value):
        return False
    try:
        datetime.date.fromisoformat(value)
    except ValueError:
        return False
    return True


def is_ms(value: object) -> bool:
    """Tell whether a value is a possible latency in milliseconds; 0 is none."""
    return is_number(value, 0, LONGEST_MS) and value != 0


def problems_of(
    entries: Mapping[Any, Any], offset_ms: float, correction: Correction, statistic: str, date: str
) -> list[str]:
    """Return what is impossible about a table's values."""
    problems = [] if entries else ["a table needs at least one entry"]
    for key, entry in entries.items():
        if not isinstance(key, OpKey) or not isinstance(entry, Entry):
            problems.append(f"entries map OpKey to Entry, not {shown(key)} to {shown(entry)}")
        elif not is_ms(entry.ms) or entry.how not in HOW:
            problems.append(f"{key}: {shown(entry.ms)} ms, {shown(entry.how)} is no latency")
    if not is_number(offset_ms, -LONGEST_MS, LONGEST_MS):
        problems.append(f"offset_ms is {shown(offset_ms)}; wanted a number")
    if not is_number(correction.scale, 1e-6, 1e6) or not is_number(
        correction.offset_ms, -LONGEST_MS, LONGEST_MS
    ):
        problems.append(f"correction is {shown(correction)}; wanted a positive scale and a number")
    if statistic not in STATISTICS:
        problems.append(f"statistic is {shown(statistic)}; known are {', '.join(STATISTICS)}")
    if not is_date(date) and date != UNKNOWN:
        problems.append(f"date is {shown(date)}; wanted a day such as 2026-11-21")
    return problems
