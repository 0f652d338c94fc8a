"""The timing loop: a short window of runs of one loaded model."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from .base import Session

#: A window is at least so many runs and so long; many short ones tell more than a few long ones.
MIN_RUNS, MIN_SECONDS, MAX_SECONDS = 4, 0.012, 2.0
_MAX_RUNS = 100  # of an operation that takes microseconds: more tell nothing new


@dataclass(frozen=True)
class Window:
    """Runs of one model, one right after the other.

    Attributes:
        ms: wall time of each run in milliseconds, in order; that of one run before them is left out.
        own_ms: the same without the time that other programs had the processor: the smaller of wall time and
            this process's CPU time. As ``ms`` on several threads, or by a device's own clock.
        process: number of the measuring process.
    """

    ms: tuple[float, ...]
    own_ms: tuple[float, ...]
    process: int = 0


def window(
    session: Session,
    *,
    min_runs: int = MIN_RUNS,
    min_seconds: float = MIN_SECONDS,
    max_seconds: float = MAX_SECONDS,
    one_thread: bool = False,
    clock: Callable[[], float] = time.perf_counter,
    cpu_clock: Callable[[], float] = time.process_time,
) -> Window:
    """Time a few runs of a loaded model, by the device's own clock if it has one.

    One run before them is not counted: it finds the caches full of what ran before.

    Args:
        session: the loaded model.
        min_runs: timed runs, at least.
        min_seconds: time they take together, at least, unless there are 100 of them before.
        max_seconds: no timed run but the first is started later than this.
        one_thread: whether one thread on a CPU does all the work, so that CPU time can be compared.
        clock: wall clock, seconds.
        cpu_clock: CPU time of this process, seconds.
    """
    with _no_collection():
        by_device = session.times_ms(1)
        if by_device is None:
            session.run()
        wall: list[float] = []
        own: list[float] = []
        begin = clock()
        while True:
            if by_device is not None:
                found = session.times_ms(1) or []
                wall += found
                own += found
            else:
                start, cpu_start = clock(), cpu_clock()
                session.run()
                cpu_end, end = cpu_clock(), clock()
                ms = (end - start) * 1e3
                wall.append(ms)
                cpu_ms = (cpu_end - cpu_start) * 1e3
                own.append(min(ms, cpu_ms) if one_thread and cpu_ms > 0 else ms)
            spent = clock() - begin
            enough = spent >= min_seconds or len(wall) >= _MAX_RUNS
            if spent >= max_seconds or (len(wall) >= min_runs and enough):
                return Window(tuple(wall), tuple(own))


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep the garbage collector from running in the middle of a run, which would be counted."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
