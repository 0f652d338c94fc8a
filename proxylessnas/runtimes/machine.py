"""What the machine calls itself, and how busy others keep it. Kits have a copy, for Python 3.8."""

from __future__ import annotations

import os
import platform
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

NOISY_SPREAD = 0.05  # interquartile range over median
NOISY_LOAD = 0.16  # processors that others used meanwhile: a sixth of one, however many there are

# The board first, where there is one: an Arm processor's own name says less than "Raspberry Pi 4 Model B".
_BOARD, _CPU = "/sys/firmware/devicetree/base/model", "/proc/cpuinfo"
_STAT = Path("/proc/stat")
#: Below this many ticks (a tick is 10 ms of one processor) the counters are too coarse to tell 8 % from none.
_ENOUGH_TICKS = 50


def processors() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def device_name() -> str:
    """Return the processor's name and how many of its cores this process may use."""
    count = processors()
    return f"{_cpu_name()}, {count} core{'s' if count > 1 else ''}"


def _cpu_name() -> str:
    board = " ".join(_read(_BOARD).strip("\0").split())
    if board:
        return board
    for line in _read(_CPU).splitlines():
        if line.startswith(("model name", "Model", "Hardware")):
            return " ".join(line.split(":", 1)[-1].split()) or platform.machine()
    if sys.platform == "darwin":
        name = _sysctl("machdep.cpu.brand_string")
        if name:
            return name
    return platform.processor() or platform.machine() or "unknown processor"


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _sysctl(name: str) -> str | None:
    import ctypes

    size, text = ctypes.c_size_t(256), ctypes.create_string_buffer(256)
    try:
        failed = ctypes.CDLL(None).sysctlbyname(name.encode(), text, ctypes.byref(size), None, 0)
    except (OSError, AttributeError):
        return None
    return None if failed else text.value.decode("utf-8", "replace")


@dataclass(frozen=True)
class Ticks:
    """CPU time since the system started, summed over all processors, in ticks.

    Attributes:
        total: all time, idle or not.
        busy: what any program used, and what the host of this virtual machine gave to others ("steal").
        own: what this process and its finished children used.
    """

    total: float
    busy: float
    own: float


def read_ticks() -> Ticks | None:
    """Return the counters as they are now; None where the system does not tell (no Linux)."""
    try:
        first = _STAT.read_text(encoding="ascii").split("\n", 1)[0]
        own = sum(os.times()[:4]) * os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError):
        return None
    return _parse(first, own)


def _parse(line: str, own: float) -> Ticks | None:
    """Read the first line of /proc/stat: user nice system idle iowait irq softirq steal guest guest_nice.

    A guest's time is part of ``user`` already. Very old kernels have fewer columns.
    """
    words = line.split()
    if len(words) < 5 or words[0] != "cpu" or not all(word.isdigit() for word in words[1:]):
        return None
    times = [int(word) for word in words[1:9]]
    waiting = sum(times[3:5])
    return Ticks(sum(times), sum(times) - waiting, own)


class OtherLoad:
    """The share of all processors that others use from the moment this is created."""

    def __init__(self) -> None:
        self._start = read_ticks()

    def share(self) -> float | None:
        """Return the share so far, 0 to 1; None if the system does not tell, or too little time went by."""
        now = read_ticks()
        if self._start is None or now is None:
            return None
        return share_between(self._start, now)


def share_between(start: Ticks, end: Ticks) -> float | None:
    """Return others' share of all processors between two moments, 0 to 1; None if they are too close."""
    total = end.total - start.total
    if total < _ENOUGH_TICKS:
        return None
    others = (end.busy - start.busy) - (end.own - start.own)
    return min(1.0, max(0.0, others / total))


def spread(ms: Sequence[float]) -> float:
    """Return the interquartile range of runs as a share of their median; 0 of a single run."""
    low, middle, high = statistics.quantiles(ms, n=4, method="inclusive") if len(ms) > 1 else [ms[0]] * 3
    return (high - low) / middle


def disturbances(ms: Sequence[float], other_load: float | None) -> list[str]:
    """Return reasons to distrust runs, in words; none if they are to be trusted.

    Args:
        ms: duration of each run.
        other_load: share of all processors that others used meanwhile, 0 to 1; None if that is not known.
    """
    found = []
    if spread(ms) > NOISY_SPREAD:
        found.append(f"half of the runs lie {spread(ms):.0%} of the median apart")
    count = os.cpu_count() or 1
    used = (other_load or 0.0) * count
    if used > NOISY_LOAD:
        found.append(f"other programs used {used:.2g} of {count} processors")
    return found
