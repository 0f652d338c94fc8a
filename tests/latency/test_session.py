"""Sessions: many models in short interleaved windows, on a simulated machine whose truth is known."""

from __future__ import annotations

import math
import statistics
from pathlib import Path

import pytest
from simulated_machine import Machine, simulated, true_model_ms

from proxylessnas.arch.spaces import read_space
from proxylessnas.errors import LatencyError
from proxylessnas.latency.journal import Journal
from proxylessnas.latency.measurement import Measurement, Timing, quantile, uncertainty
from proxylessnas.latency.random_models import random_models
from proxylessnas.latency.session import REFERENCE, Item, MeasurementSession, conditions_differ
from proxylessnas.latency.validate import model_spec
from proxylessnas.runtimes.base import ModelSpec
from proxylessnas.runtimes.settings import Conditions, Settings
from proxylessnas.runtimes.timer import Window

SPACE = read_space("tiny")
ARCHS = [SPACE.arch(choices) for choices in random_models(SPACE, 20, seed=5)]


def items(count: int = 20, seconds: float = 0.012) -> list[Item]:
    """Return a reference and models, each with windows of so many seconds."""
    archs = {REFERENCE: ARCHS[0], **{f"net {i}": arch for i, arch in enumerate(ARCHS[:count])}}
    return [Item(name, model_spec(arch), Settings(), seconds=seconds) for name, arch in archs.items()]


def windows(*values: float, process: int = 0) -> list[Window]:
    """Return windows of four equal runs each."""
    return [Window((ms,) * 4, (ms,) * 4, process) for ms in values]


# What is made of the windows


def test_undisturbed_is_the_two_percent_quantile_of_all_runs() -> None:
    runs = [float(ms) for ms in range(100, 201)]
    found = Measurement([Window(tuple(ms + 5 for ms in runs[i::4]), tuple(runs[i::4])) for i in range(4)])
    assert found.undisturbed_ms == pytest.approx(102.0)  # of the runs without others' time
    assert found.median_ms == 155.0  # of the runs as they were
    assert quantile([3.0, 1.0], 0.25) == 1.5
    with pytest.raises(ValueError, match="no values"):
        quantile([], 0.5)


def test_uncertainty_is_half_the_difference_of_two_halves() -> None:
    assert Measurement(windows(10, 11, 10, 11)).uncertainty == pytest.approx(1 / 21)
    assert Measurement(windows(10, 10, 11, 11)).uncertainty == pytest.approx(1 / 21)  # it drifted
    assert Measurement(windows(10, 11, 11, 10)).uncertainty == 0
    assert Measurement(windows(10)).uncertainty == math.inf
    pair = [Measurement(windows(10, 10)), Measurement(windows(10, 11))]
    assert uncertainty(pair) == pytest.approx(math.sqrt((1 / 21) ** 2 / 2))
    assert uncertainty([]) == 0


def test_two_runs_are_two_sets_of_processes_or_of_windows() -> None:
    alone = Measurement(windows(10, 12, 10, 12))
    assert alone.two_runs() == (10, 12)  # by every other window
    by_process = Measurement(
        [*windows(10, 99, process=0), *windows(13, 99, process=1), *windows(11, 99, process=2)]
    )
    low, high = by_process.two_runs()  # processes 0 and 2 against 1
    assert low == pytest.approx(10)
    assert high == pytest.approx(13)
    with pytest.raises(ValueError, match="no values"):
        Measurement(windows(10)).two_runs()


def test_a_timing_says_what_it_is_now_and_how_certain() -> None:
    calm = Timing.of(Measurement(windows(*[10.0] * 8)), Conditions(batch_size=4), (3, 8, 8), "2026-11-29")
    assert (calm.undisturbed_ms, calm.median_ms, calm.disturbance, calm.noise) == (10, 10, 1, ())
    assert calm.images_per_second == 400
    assert (calm.runs, calm.noisy) == (32, False)
    busy = Timing.of(
        Measurement(windows(10, 15, 16, 15, 14, 16)), Conditions(), (3, 8, 8), "2026-11-29", ("a doubt",)
    )
    assert busy.disturbance == busy.median_ms / busy.undisturbed_ms > 1.4
    assert busy.noise[0].startswith("uncertain by 20.0%, wanted 1%")
    assert busy.noise[1] == "a doubt"
    (once,) = Timing.of(Measurement(windows(10)), Conditions(), (3, 8, 8), "2026-11-29").noise
    assert "an unknown share (one window only)" in once


# On a machine with a neighbour


def measured(machine: Machine, seed: int) -> MeasurementSession:
    found = MeasurementSession(items(), seed=seed)
    found.run(120, limit=0.002)
    return found


def test_two_sessions_on_a_disturbed_machine_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """A neighbour slows runs 1.2 to 2 times, for seconds at a time: in two thirds of the time, all in all."""
    found = [
        measured(simulated(monkeypatch, disturbed=0.65, placement=0.0, speeds=0.0, seed=seed), seed)
        for seed in (1, 2)
    ]
    names = [f"net {i}" for i in range(20)]
    apart, medians = [], []
    for name, arch in zip(names, ARCHS, strict=True):
        a, b = (session.measured[name] for session in found)
        apart.append(abs(a.undisturbed_ms / b.undisturbed_ms - 1))
        medians.append(abs(a.median_ms / b.median_ms - 1))
        assert a.undisturbed_ms == pytest.approx(true_model_ms(arch), rel=0.01)
    assert max(apart) < 0.01
    assert max(medians) > 0.05
    assert statistics.median(medians) > 2 * max(apart)
    disturbance = [session.measured[REFERENCE].median_ms / session.measured[REFERENCE].undisturbed_ms
                   for session in found]  # fmt: skip
    assert min(disturbance) > 1.1


def test_time_that_other_programs_had_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run is interrupted: there is no undisturbed one by the wall clock."""
    machine = simulated(monkeypatch, stolen=1.0, placement=0.0, speeds=0.0)
    session = measured(machine, 0)
    for i, arch in enumerate(ARCHS):
        found = session.measured[f"net {i}"]
        assert found.undisturbed_ms == pytest.approx(true_model_ms(arch), rel=0.01)
        assert found.median_ms > true_model_ms(arch) + 5


def test_a_quiet_machine_needs_little_time_and_a_disturbed_one_more(monkeypatch: pytest.MonkeyPatch) -> None:
    quiet, busy = (
        measured(simulated(monkeypatch, disturbed=share, placement=0.0, speeds=0.0), 0) for share in (0, 0.9)
    )
    assert 20 < quiet.spent_s < 26  # 10 s in each of two processes: neighbours come and go in seconds
    assert busy.spent_s > 1.5 * quiet.spent_s
    assert quiet.uncertainty() < 0.002
    assert quiet.processes == 2
    assert {w.process for w in quiet.measured["net 0"].windows} == {0, 1}


def test_the_time_given_is_kept_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is certain by then."""
    machine = simulated(monkeypatch, disturbed=0.5)
    session = MeasurementSession(items())
    session.run(30, limit=1e-9)
    assert 26 < session.spent_s < 34
    assert machine.now_s == pytest.approx(session.spent_s)


def test_the_reference_is_measured_between_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = simulated(monkeypatch)
    measured(machine, 0)
    others = {machine.windows[f"net {i}"] for i in range(20)}
    assert len(others) == 1
    assert machine.windows[REFERENCE] == 3 * others.pop()


# Continued


def test_a_session_is_continued_where_it_stopped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing is measured twice, and the time that was spent counts."""
    machine = simulated(monkeypatch, disturbed=0.5)
    told = 0.0
    for stop in (100, 331, 700, 1100):
        machine.stop_after = stop
        with Journal(tmp_path / "t", {}) as journal:
            session = MeasurementSession(items(), journal=journal)
            assert session.spent_s >= told
            with pytest.raises(KeyboardInterrupt):
                session.run(60, limit=1e-9)
        told = session.spent_s
    machine.stop_after = None
    with Journal(tmp_path / "t", {}) as journal:
        session = MeasurementSession(items(), journal=journal)
        before = len(session.measured["net 3"].windows)
        assert before >= 1100 // 23 - 4  # but for the rounds that were cut off
        session.run(60, limit=1e-9)
    assert 55 < session.spent_s < 66
    assert len(session.measured["net 3"].windows) >= machine.windows["net 3"] - 4
    with Journal(tmp_path / "t", {}) as journal:  # all is done
        count = machine.windows.total()
        again = MeasurementSession(items(), journal=journal)
        again.run(60, limit=1e-9)
        assert machine.windows.total() == count
        assert again.measured == session.measured


def test_not_on_another_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine = simulated(monkeypatch)
    machine.stop_after = 50
    with Journal(tmp_path / "t", {}) as journal, pytest.raises(KeyboardInterrupt):
        MeasurementSession(items(), journal=journal).run(60)
    machine.name = "another"
    with (
        Journal(tmp_path / "t", {}) as journal,
        pytest.raises(LatencyError, match=r"other conditions: device_name was simulated, is another\. Go on"),
    ):
        MeasurementSession(items(), journal=journal).run(60)
    here = Conditions(versions={"a": "1"})
    assert conditions_differ(here, Conditions(versions={"a": "2", "b": "1"})) == [
        "a was 1, is 2", "b was None, is 1",
    ]  # fmt: skip


# What does not work, what is large, what is slow


def test_what_fails_is_left_out_or_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = simulated(monkeypatch)
    machine.broken = {"net 3", "net 7"}
    session = MeasurementSession(items(), keep_going=True)
    session.run(60)
    assert session.failed.keys() == machine.broken
    assert str(session.failed["net 3"]) == "net 3 cannot be run"
    assert not machine.windows.keys() & machine.broken
    assert session.uncertainty() < 0.01
    assert session.measured["net 4"].undisturbed_ms > 0
    with pytest.raises(LatencyError, match=r"model [37] cannot be run"):
        MeasurementSession(items()).run(60)


def test_where_everything_fails_it_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = simulated(monkeypatch)
    only = items()[1:]
    machine.broken = {item.name for item in only}
    session = MeasurementSession(only, keep_going=True)
    session.run(1e9)  # else this test does not end
    assert session.failed.keys() == machine.broken
    assert machine.now_s < 10


@pytest.mark.parametrize(("size", "batch", "most"), [(224, 1, 49), (448, 1, 13), (224, 16, 4)])
def test_large_images_are_loaded_in_groups(
    monkeypatch: pytest.MonkeyPatch, size: int, batch: int, most: int
) -> None:
    """Of about 48 inputs of 224 pixels, and the reference with every group."""
    machine = simulated(monkeypatch)
    settings = Settings(batch_size=batch)
    large = [
        Item(item.name if item.name == REFERENCE else f"{item.name} {k}",
             ModelSpec("arch", item.spec.text, (3, size, size)), settings)
        for k in range(3) for item in items(20)[0 if not k else 1 :]
    ]  # fmt: skip
    session = MeasurementSession(large)
    session.run(1.0, processes=1)
    assert machine.most_loaded == most
    assert machine.processes == 1
    assert set(machine.loads.values()) == {1}  # the reference stays
    assert {len(m.windows) for name, m in session.measured.items() if name != REFERENCE} == {4}


def test_where_loading_is_slow_one_process_does_it_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """And has all the time there is."""
    for load_s, processes in ((1.9, 3), (2.1, 1)):
        machine = simulated(monkeypatch, load_s=load_s, disturbed=0.5)
        session = MeasurementSession(items(5, 0.3))
        session.run(90, processes=3, limit=1e-9)
        assert machine.processes == session.processes == processes
        assert 80 < machine.now_s < 100


def test_rounds_go_on_until_it_is_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = simulated(monkeypatch)
    session = MeasurementSession(items(3, 0.3))
    session.run(60, settled=lambda: machine.now_s > 20)
    assert 20 < machine.now_s < 24
    other = MeasurementSession(items(3, 0.3))
    other.run(30, settled=lambda: False)
    assert 30 < other.spent_s < 34
