"""The timing loop: warm up until the times are steady, then time single runs."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from typing import Protocol, TypedDict

from .machine_load import OtherLoad
from .runtimes.base import Session
from .timing import Samples

#: Two neighbouring windows of the warm-up agree when their medians differ by less than this share.
STEADY = 0.03
_WINDOW_RUNS = 3
_WINDOW_SECONDS = (0.005, 0.05)  # least and most; between them, a sixth of the time to be timed


class Load(Protocol):
    """What tells the share of the processors that others used since it was created."""

    def share(self) -> float | None:
        """Return it, 0 to 1, or None."""


class Limits(TypedDict):
    """When it is enough; see :func:`sample`."""

    min_runs: int
    min_seconds: float
    max_seconds: float


def sample(
    run: Callable[[], object],
    *,
    clock: Callable[[], float] = time.perf_counter,
    load: Callable[[], Load] = OtherLoad,
    min_runs: int = 20,
    min_seconds: float = 0.3,
    max_seconds: float = 10.0,
    warmup_seconds: float | None = None,
) -> Samples:
    """Time ``run`` again and again by a clock of this process.

    First it runs without being counted, in windows, until two windows in a row have the same median within
    3 %: caches, thread pools, clock frequency and lazily built plans have settled then. After that every run
    is timed, until there are ``min_runs`` of them and ``min_seconds`` are over, or ``max_seconds`` are.

    Args:
        run: does the work, and returns when it is done.
        clock: seconds.
        load: starts watching what others use of the processors.
        min_runs: timed runs.
        min_seconds: time they take together at least.
        max_seconds: no timed run is started later than this; one is always made.
        warmup_seconds: limit of the warm-up; None takes half of ``max_seconds``. Two runs are always made.

    Returns:
        Durations in milliseconds; ``stable`` is False if the warm-up ran into its limit.
    """

    def times_ms(runs: int) -> list[float]:
        times = []
        for _ in range(runs):
            begin = clock()
            run()
            times.append((clock() - begin) * 1e3)
        return times

    return sample_times(
        times_ms,
        clock=clock,
        load=load,
        min_runs=min_runs,
        min_seconds=min_seconds,
        max_seconds=max_seconds,
        warmup_seconds=warmup_seconds,
    )


def sample_session(
    session: Session, *, min_runs: int = 20, min_seconds: float = 0.3, max_seconds: float = 10.0
) -> Samples:
    """Time a loaded net, by the device's own clock if it has one; arguments as for :func:`sample`."""
    limits: Limits = {"min_runs": min_runs, "min_seconds": min_seconds, "max_seconds": max_seconds}
    if session.times_ms(1) is None:
        return sample(session.run, **limits)

    def times_ms(runs: int) -> list[float]:
        times = session.times_ms(runs)
        assert times is not None
        return times

    return sample_times(times_ms, **limits)


def sample_times(
    times_ms: Callable[[int], list[float]],
    *,
    clock: Callable[[], float] = time.perf_counter,
    load: Callable[[], Load] = OtherLoad,
    min_runs: int = 20,
    min_seconds: float = 0.3,
    max_seconds: float = 10.0,
    warmup_seconds: float | None = None,
) -> Samples:
    """Time by a function that times itself: ``times_ms(runs)`` returns so many durations in milliseconds.

    Otherwise as :func:`sample`; ``clock`` only says when it is enough.
    """
    limit = max_seconds / 2 if warmup_seconds is None else warmup_seconds
    collecting = gc.isenabled()
    gc.disable()  # a collection in the middle of a run would be counted as the net's
    try:
        window = min(max(min_seconds / 6, _WINDOW_SECONDS[0]), _WINDOW_SECONDS[1])
        warmup_runs, stable = _warm_up(times_ms, clock, window, limit)
        others = load()
        times: list[float] = []
        begin = clock()
        while True:
            times += times_ms(1)
            spent = clock() - begin
            if spent >= max_seconds or (len(times) >= min_runs and spent >= min_seconds):
                break
        return Samples(tuple(times), warmup_runs, stable, others.share())
    finally:
        if collecting:
            gc.enable()


def _warm_up(
    times_ms: Callable[[int], list[float]], clock: Callable[[], float], window_seconds: float, limit: float
) -> tuple[int, bool]:
    """Run until two windows agree; return the number of runs and whether they did."""
    begin, runs, last = clock(), 0, None
    while True:
        opened, window = clock(), list[float]()
        while True:
            window += times_ms(1)
            runs += 1
            now = clock()
            # Of something slow, one run is a window: two must fit into the limit.
            enough = len(window) >= _WINDOW_RUNS or now - begin > limit / 4
            if (enough and now - opened >= window_seconds) or (runs >= 2 and now - begin >= limit):
                break
        median = statistics.median(window)
        if last is not None and abs(median - last) <= STEADY * min(median, last):
            return runs, True
        if runs >= 2 and now - begin >= limit:
            return runs, False
        last = median
