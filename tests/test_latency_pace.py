"""The machine's pace: known by a reference net, waited for, and taken out of what was measured."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

import pytest

from proxylessnas.errors import LatencyError
from proxylessnas.latency.agreement import Validation, judge
from proxylessnas.latency.pace import Pace, is_off
from proxylessnas.latency.visits import Visit, at_one_pace, combined


class Machine:
    """A clock, and a reference net that is slow until some time."""

    def __init__(self, slow_until_s: float) -> None:
        self.now, self.slow_until_s = 0.0, slow_until_s

    def read(self) -> float:
        ms = 15.0 if self.now < self.slow_until_s else 10.0
        self.now += ms / 1e3
        return ms

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def pace(self, readings: Iterable[float] = (), **options: float) -> Pace:
        return Pace(list(readings), clock=lambda: self.now, sleep=self.sleep, **options)


def note(calls: list[str]) -> Callable[[], None]:
    return lambda: calls.append("waiting")


def test_it_waits_until_the_usual_pace_is_back() -> None:
    machine, told = Machine(slow_until_s=5), list[str]()
    pace = machine.pace(usual_ms=10.0, patience_s=60)
    assert pace.settled(machine.read, note(told)) == 10.0
    assert 5 <= machine.now < 7
    assert told == ["waiting"]
    assert pace.waited_s == pytest.approx(machine.now)


def test_patience_ends_once_for_all() -> None:
    machine = Machine(slow_until_s=1e9)
    pace = machine.pace(usual_ms=10.0, patience_s=20)
    assert pace.settled(machine.read, note([])) == 15.0
    assert 20 <= machine.now < 23
    assert pace.left_s == 0
    assert pace.settled(machine.read, note([])) == 15.0
    assert machine.now < 23


def test_another_pace_is_a_faster_one_too() -> None:
    assert is_off(10, 15)
    assert is_off(15, 10)
    assert not is_off(10, 10.9)
    assert not is_off(10.9, 10)


def test_it_does_not_wait_while_little_is_known() -> None:
    machine = Machine(slow_until_s=1e9)
    pace = machine.pace([10.0] * 11, patience_s=20)
    assert pace.usual_ms is None
    assert pace.settled(machine.read, note([])) == 15.0
    assert machine.now < 1
    pace.readings.append(15.0)
    assert pace.usual_ms == 10.0


def visit(ms: float, reference_ms: float, *, process: int = 1) -> Visit:
    return Visit(ms, ms, ms, 12, False, (("part", ms / 2),), 0.1, 0.5, process, reference_ms)


def test_visits_at_another_pace_are_noisy_and_scaled() -> None:
    order = random.Random(0)
    slow = [order.random() < 0.3 for _ in range(60)]
    visits = [visit(60.0, 15.0) if bad else visit(40.0, 10.0) for bad in slow]
    found = at_one_pace(visits)
    assert [v.noisy for v in found] == slow
    assert all(v.ms == pytest.approx(40.0) and v.parts[0][1] == pytest.approx(20.0) for v in found)
    # Not all operations change alike, so what was measured at the usual pace is preferred.
    assert combined([39.0, 40.0], [True, False]) == 40.0


def test_a_process_that_is_off_by_chance_is_not_corrected() -> None:
    visits = [visit(40.0, 10.0, process=1)] * 9 + [visit(40.8, 10.2, process=2)] * 8
    assert [v.ms for v in at_one_pace(visits)] == [v.ms for v in visits]


def test_the_pace_of_an_earlier_measurement_counts() -> None:
    found = at_one_pace([visit(60.0, 15.0)] * 5, usual_ms=10.0)
    assert all(v.noisy and v.ms == pytest.approx(40.0) for v in found)


def test_a_verdict_tells_another_pace() -> None:
    pairs = [(f"net {i}", 10.0 + i, 15.0 + 1.5 * i) for i in range(30)]
    found = judge(pairs, pace=1.5)
    assert "1.50 times as long as when the table was made" in found.verdict
    assert "times as long" not in judge(pairs).verdict
    assert Validation.from_dict(found.to_dict()) == found
    older = {name: value for name, value in found.to_dict().items() if name != "pace"}
    assert Validation.from_dict(older).pace == 1.0


@pytest.mark.parametrize("pace", [0, -1, float("inf"), float("nan"), "fast"])
def test_an_impossible_pace_is_refused(pace: object) -> None:
    pairs = [(f"net {i}", 10.0 + i, 10.0 + i) for i in range(30)]
    with pytest.raises(LatencyError, match="validation cannot be read"):
        Validation.from_dict({**judge(pairs).to_dict(), "pace": pace})
