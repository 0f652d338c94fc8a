"""The timing loop under a clock that the tests turn, and the watch over other programs."""

from __future__ import annotations

import gc
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from proxylessnas.latency.machine_load import NOISY_LOAD, OtherLoad, Ticks, _parse, read_ticks, share_between
from proxylessnas.latency.sampling import sample, sample_session, sample_times


class Clock:
    """A clock that moves only when something runs."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.runs = 0

    def __call__(self) -> float:
        return self.now

    def runner(self, seconds: Iterator[float]) -> Callable[[], None]:
        def run() -> None:
            self.now += next(seconds)
            self.runs += 1

        return run


class Load:
    """Others that use a fixed share."""

    def __init__(self, share: float | None = None) -> None:
        self._share = share

    def share(self) -> float | None:
        return self._share


def sampled(seconds: Iterator[float], **limits: float):
    clock = Clock()
    samples = sample(clock.runner(seconds), clock=clock, load=Load, **limits)
    return samples, clock


def test_durations_are_in_milliseconds() -> None:
    samples, _ = sampled(itertools.repeat(0.012))
    assert samples.ms == pytest.approx([12.0] * len(samples.ms))
    assert samples.median_ms == pytest.approx(12.0)


def test_the_warm_up_is_not_counted() -> None:
    """Ten runs get faster and faster; all that are counted are the steady ones."""
    slow = [0.5 * 0.6**i for i in range(10)]
    samples, clock = sampled(itertools.chain(slow, itertools.repeat(0.002)))
    assert samples.stable
    assert samples.warmup_runs > len(slow)
    assert samples.ms == pytest.approx([2.0] * len(samples.ms))
    assert samples.warmup_runs + len(samples.ms) == clock.runs


def test_a_step_down_after_a_while_is_still_warm_up() -> None:
    """The first window is steady in itself; only two that agree end the warm-up."""
    samples, _ = sampled(itertools.chain([0.02] * 3, itertools.repeat(0.004)))
    assert samples.ms == pytest.approx([4.0] * len(samples.ms))


@pytest.mark.parametrize(
    ("run_s", "limits", "runs"),
    [
        (0.001, {"min_runs": 20, "min_seconds": 0.3}, 300),  # quick: the time decides
        (0.1, {"min_runs": 20, "min_seconds": 0.3}, 20),  # slow: the number decides
        (1.0, {"min_runs": 20, "min_seconds": 0.3, "max_seconds": 5.0}, 5),  # very slow: the limit decides
        (50.0, {"min_runs": 20, "min_seconds": 0.3, "max_seconds": 5.0}, 1),
        (0.01, {"min_runs": 5, "min_seconds": 0.0}, 5),
        (0.01, {"min_runs": 5, "min_seconds": 9.0, "max_seconds": 0.0}, 1),
    ],
)
def test_when_it_is_enough(run_s: float, limits: dict[str, float], runs: int) -> None:
    samples, _ = sampled(itertools.repeat(run_s), **limits)
    assert abs(len(samples.ms) - runs) <= 1


def test_a_warm_up_that_never_settles_ends_at_its_limit() -> None:
    samples, clock = sampled((0.01 * 1.1**i for i in itertools.count()), max_seconds=4.0, min_seconds=0.0)
    assert not samples.stable
    assert "the warm-up did not settle" in samples.noise
    warm_up_s = clock.now - 1000.0 - sum(samples.ms) / 1e3
    assert 2.0 <= warm_up_s < 3.0


def test_two_runs_of_something_slow_can_agree_within_the_limit() -> None:
    samples, _ = sampled(itertools.repeat(4.0), max_seconds=20.0, min_runs=3)
    assert (samples.stable, samples.warmup_runs) == (True, 2)


def test_a_very_slow_thing_is_run_twice_at_least_before_it_counts() -> None:
    samples, _ = sampled(itertools.repeat(60.0), max_seconds=20.0)
    assert (samples.warmup_runs, len(samples.ms)) == (2, 1)


def test_others_are_watched_while_it_counts_and_not_before() -> None:
    clock, begun = Clock(), []

    def load() -> Load:
        begun.append(clock.runs)
        return Load(0.5)

    samples = sample(clock.runner(itertools.repeat(0.01)), clock=clock, load=load)
    assert begun == [samples.warmup_runs]
    assert samples.other_load == 0.5
    assert any(reason.startswith("other programs used") for reason in samples.noise)


def test_a_spread_is_noise_and_a_quiet_run_has_none() -> None:
    assert sampled(itertools.repeat(0.01))[0].noise == ()
    noisy, _ = sampled(itertools.chain([0.01] * 10, itertools.cycle([0.01, 0.01, 0.013, 0.013])))
    assert noisy.spread == pytest.approx(0.003 / 0.0115, rel=0.2)
    assert any("apart" in reason for reason in noisy.noise)


@pytest.mark.parametrize("enabled", [True, False])
def test_the_garbage_collector_waits_and_is_left_as_it_was(enabled: bool) -> None:
    seen = set()

    def run() -> None:
        seen.add(gc.isenabled())
        if len(seen) > 1:
            raise ValueError

    was = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        sample(run, min_runs=2, min_seconds=0.0, max_seconds=0.1)
        assert seen == {False}
        assert gc.isenabled() is enabled
        with pytest.raises(ZeroDivisionError):
            sample(lambda: 1 / 0)
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if was else gc.disable)()


class DeviceSession:
    """A session with a clock of its own, which says 7 ms whatever ours says."""

    def __init__(self) -> None:
        self.ran = 0

    def run(self) -> None:
        raise AssertionError("timed by the wrong clock")

    def times_ms(self, runs: int) -> list[float]:
        self.ran += runs
        time.sleep(0.001 * runs)
        return [7.0] * runs

    def close(self) -> None: ...


def test_a_device_with_a_clock_of_its_own_is_timed_by_it() -> None:
    session = DeviceSession()
    samples = sample_session(session, min_runs=10, min_seconds=0.02)
    assert set(samples.ms) == {7.0}
    assert session.ran == len(samples.ms) + samples.warmup_runs + 1


def test_times_of_a_device_are_counted_by_number_and_time() -> None:
    clock = Clock()

    def times_ms(runs: int) -> list[float]:
        clock.now += 0.1 * runs
        return [3.0] * runs

    samples = sample_times(times_ms, clock=clock, load=Load, min_runs=4, min_seconds=1.0)
    assert len(samples.ms) == 10
    assert samples.stable


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
        samples = sample(lambda: sum(range(2000)), min_runs=20, min_seconds=1.0, max_seconds=4.0)
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert samples.other_load is not None
    assert samples.other_load * (os.cpu_count() or 1) > NOISY_LOAD
    assert any(reason.startswith("other programs used") for reason in samples.noise)
