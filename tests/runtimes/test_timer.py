"""The timing loop under clocks that the tests turn, and the watch over other programs."""

from __future__ import annotations

import gc
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from proxylessnas.runtimes.machine import (
    NOISY_LOAD,
    OtherLoad,
    Ticks,
    _parse,
    disturbances,
    read_ticks,
    share_between,
    spread,
)
from proxylessnas.runtimes.settings import Settings, one_thread
from proxylessnas.runtimes.timer import Window, window


class Steps:
    """A session under two clocks that move only when it runs: by (wall, CPU) seconds a run."""

    def __init__(self, seconds: Iterator[float], cpu_share: float = 1.0) -> None:
        self.wall, self.cpu, self.runs = 1000.0, 50.0, 0
        self._seconds, self._cpu_share = seconds, cpu_share

    def run(self) -> None:
        seconds = next(self._seconds)
        self.wall += seconds
        self.cpu += seconds * self._cpu_share
        self.runs += 1

    def times_ms(self, runs: int) -> None:
        return None

    def close(self) -> None: ...


def windowed(steps: Steps, **options: float) -> Window:
    return window(steps, clock=lambda: steps.wall, cpu_clock=lambda: steps.cpu, **options)  # type: ignore[arg-type]


def test_durations_are_in_milliseconds() -> None:
    found = windowed(Steps(itertools.repeat(0.012)))
    assert found.ms == pytest.approx([12.0] * 4)
    assert found.own_ms == found.ms
    assert found.process == 0


def test_the_run_that_finds_cold_caches_is_not_counted() -> None:
    steps = Steps(itertools.chain([0.5], itertools.repeat(0.004)))
    assert windowed(steps).ms == pytest.approx([4.0] * 4)
    assert steps.runs == 5


@pytest.mark.parametrize(
    ("run_s", "limits", "runs"),
    [
        (0.001, {"min_runs": 4, "min_seconds": 0.012}, 12),  # quick: the time decides
        (0.1, {"min_runs": 4, "min_seconds": 0.012}, 4),  # slow: the number decides
        (1.0, {"min_runs": 20, "min_seconds": 0.3, "max_seconds": 5.0}, 5),  # very slow: the limit decides
        (50.0, {"min_runs": 20, "min_seconds": 0.3, "max_seconds": 5.0}, 1),
        (0.01, {"min_runs": 5, "min_seconds": 0.0}, 5),
        (0.01, {"min_runs": 5, "min_seconds": 9.0, "max_seconds": 0.0}, 1),
    ],
)
def test_when_it_is_enough(run_s: float, limits: dict[str, float], runs: int) -> None:
    assert abs(len(windowed(Steps(itertools.repeat(run_s)), **limits).ms) - runs) <= (runs > 5)


# Time that others had the processor


def test_on_one_thread_what_others_took_is_left_out() -> None:
    """A run of 10 ms of which this process worked for 4: another program came between."""
    found = windowed(Steps(itertools.repeat(0.010), cpu_share=0.4), one_thread=True)
    assert found.ms == pytest.approx([10.0] * 4)
    assert found.own_ms == pytest.approx([4.0] * 4)
    crowded = windowed(Steps(itertools.repeat(0.010), cpu_share=0.05), one_thread=True)  # by twenty others
    assert crowded.own_ms == pytest.approx([0.5] * 4)


def test_on_several_threads_cpu_time_is_no_latency() -> None:
    found = windowed(Steps(itertools.repeat(0.010), cpu_share=0.4))
    assert found.own_ms == found.ms


@pytest.mark.parametrize("cpu_share", [0.0, 1.01, 3.0])
def test_own_time_is_never_longer_than_a_run_and_never_nothing(cpu_share: float) -> None:
    """A CPU clock may count other threads of the process, or stand still."""
    found = windowed(Steps(itertools.repeat(0.010), cpu_share), one_thread=True)
    assert found.own_ms == found.ms


def test_only_one_thread_on_a_cpu_is_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    fine = SimpleNamespace(resolution=1e-9)
    monkeypatch.setattr(time, "get_clock_info", lambda name: fine)
    assert one_thread(Settings())
    assert not one_thread(Settings(threads=2))
    assert not one_thread(Settings(device="cuda"))
    fine.resolution = 0.0156  # whole ticks tell nothing of a run
    assert not one_thread(Settings())


def test_by_the_real_clocks_sleeping_is_not_own_time() -> None:
    class Sleepy(Steps):
        def run(self) -> None:
            end = time.process_time() + 0.02
            while time.process_time() < end:
                pass
            time.sleep(0.02)

    found = window(Sleepy(itertools.repeat(0.0)), one_thread=True)  # type: ignore[arg-type]
    assert min(found.ms) >= 20
    assert all(own <= wall - 15 for own, wall in zip(found.own_ms, found.ms, strict=True))
    several = window(Sleepy(itertools.repeat(0.0)))  # type: ignore[arg-type]
    assert several.own_ms == several.ms


@pytest.mark.parametrize("enabled", [True, False])
def test_the_garbage_collector_waits_and_is_left_as_it_was(enabled: bool) -> None:
    seen = set()

    class Watching(Steps):
        def run(self) -> None:
            super().run()
            seen.add(gc.isenabled())

    was = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        windowed(Watching(itertools.repeat(0.01)))
        assert seen == {False}
        assert gc.isenabled() is enabled
        with pytest.raises(StopIteration):
            windowed(Watching(iter([0.1, 0.1])))
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if was else gc.disable)()


class DeviceSession:
    """A session with a clock of its own, which says 7 ms whatever ours says, after a first slow run."""

    def __init__(self) -> None:
        self.now, self.runs = 0.0, 0

    def run(self) -> None:
        raise AssertionError("timed by the wrong clock")

    def times_ms(self, runs: int) -> list[float]:
        self.now += 0.1 * runs
        self.runs += runs
        return [7.0 if self.runs > 1 else 900.0] * runs

    def close(self) -> None: ...


@pytest.mark.parametrize("one", [False, True])
def test_a_device_with_a_clock_of_its_own_is_timed_by_it(one: bool) -> None:
    session = DeviceSession()
    found = window(
        session,
        min_runs=4,
        min_seconds=0.95,
        one_thread=one,
        clock=lambda: session.now,
        cpu_clock=lambda: 0.0,
    )
    assert found.ms == found.own_ms == (7.0,) * 10
    assert session.runs == 11


# What a kit measured


def test_a_spread_is_noise_and_a_quiet_run_has_none() -> None:
    assert disturbances((10.0,) * 30, 0.0) == []
    noisy = (10.0, 10.0, 13.0, 13.0) * 8
    assert spread(noisy) == pytest.approx(3 / 11.5)
    reasons = disturbances(noisy, 0.5)
    assert any("apart" in reason for reason in reasons)
    assert any(reason.startswith("other programs used") for reason in reasons)


# Other programs' load


def test_the_first_line_of_proc_stat_is_read() -> None:
    line = "cpu  100 20 30 1000 50 1 2 7 60 6"
    assert _parse(line, own=11.0) == Ticks(total=1210, busy=160, own=11.0)  # guests are in "user" already
    assert _parse("cpu 100 20 30 1000", own=0.0) == Ticks(1150, 150, 0.0)
    for nonsense in ("", "cpu", "intr 1 2 3 4 5", "cpu a b c d e"):
        assert _parse(nonsense, own=0.0) is None


@pytest.mark.parametrize(
    ("busy", "own", "share"),
    [(100, 100, 0.0), (150, 100, 0.25), (200, 0, 1.0), (90, 100, 0.0), (0, 0, 0.0)],
)
def test_the_share_of_others_is_what_is_busy_without_ourselves(busy: int, own: int, share: float) -> None:
    start = Ticks(total=5000, busy=700, own=50)
    assert share_between(start, Ticks(5200, 700 + busy, 50 + own)) == pytest.approx(share)


def test_moments_too_close_to_tell_apart_give_none() -> None:
    start = Ticks(total=5000, busy=700, own=50)
    assert share_between(start, Ticks(5020, 720, 50)) is None
    assert OtherLoad().share() is None


@pytest.mark.skipif(read_ticks() is None, reason="this system does not tell")
def test_our_own_work_is_not_others_work() -> None:
    """Whatever others do, they cannot have used what this process did."""
    others, wall, own = OtherLoad(), time.perf_counter(), time.process_time()
    while time.process_time() < own + 0.4:
        pass
    share, seconds = others.share(), time.perf_counter() - wall
    assert share is not None
    assert share <= 1 - 0.4 / (seconds * (os.cpu_count() or 1)) + 0.1  # the counters move in steps of 10 ms


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs a second processor")
@pytest.mark.skipif(read_ticks() is None, reason="this system does not tell")
def test_a_busy_loop_on_another_core_raises_the_flag() -> None:
    loops = max(1, round(0.3 * (os.cpu_count() or 1)))
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(loops)]
    try:
        time.sleep(0.2)
        others, end = OtherLoad(), time.perf_counter() + 1.0
        while time.perf_counter() < end:
            pass
        share = others.share()
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert share is not None
    assert share * (os.cpu_count() or 1) > NOISY_LOAD
    assert any(reason.startswith("other programs used") for reason in disturbances((1.0,), share))
