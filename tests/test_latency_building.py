"""Building tables: on a simulated machine whose true latencies are known, and for real."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from simulated_machine import Machine, true_net_ms

from proxylessnas import Arch, Stage
from proxylessnas.errors import ArchError, LatencyError
from proxylessnas.latency import LatencyTable, Validation, build_table, validate_table, visits
from proxylessnas.latency.journal import Journal
from proxylessnas.latency.keys import space_keys
from proxylessnas.latency.plan import Plan
from proxylessnas.latency.random_nets import random_nets
from proxylessnas.space import SearchSpace, SpaceStage
from proxylessnas.spaces import read_space

TESTS = Path(__file__).resolve().parent
MINI = SearchSpace(
    "mini",
    8,
    8,
    32,
    (SpaceStage(16, 2, 2), SpaceStage(24, 2, 2)),
    ("k3e2", "k5e2", "k3e4"),
    resolution=32,
    num_classes=10,
)


def simulate(monkeypatch: pytest.MonkeyPatch, **traits: object) -> Machine:
    machine = Machine(**traits)  # type: ignore[arg-type]
    monkeypatch.setattr(visits, "Worker", machine.worker)
    monkeypatch.setattr(visits, "time", machine)
    return machine


@pytest.mark.parametrize("parts", [True, False])
def test_predictions_are_close_to_the_truth(monkeypatch: pytest.MonkeyPatch, parts: bool) -> None:
    machine = simulate(monkeypatch, parts=parts, drift=0.05, disturbed=0.1)
    space = read_space("imagenet")
    table = build_table(space, runtime="torch" if parts else "onnxruntime", validation_nets=30)
    assert table.coverage() == (70, 70, ())
    assert {entry.how for entry in table.entries.values()} == {"fitted"}
    assert all(e.p10_ms <= e.ms <= e.p90_ms and e.runs for e in table.entries.values())  # type: ignore[operator]
    validation = Validation.from_dict(table.validation or {})
    assert validation.mape_percent < 4  # the machine got slower in the meantime
    assert validation.kendall_tau > 0.95
    assert table.trust() == []
    # Against the truth itself, without the noise of measuring it: the order counts.
    nets = [space.arch(picks) for picks in random_nets(space, 60, seed=99)]
    errors = [table.predict(net) / true_net_ms(net) for net in nets]
    middle = sorted(errors)[30]
    assert sum(abs(e / middle - 1) for e in errors) / 60 < 0.012
    assert machine.processes == 6  # three to measure, three to check


def test_drift_is_taken_out(monkeypatch: pytest.MonkeyPatch) -> None:
    simulate(monkeypatch, drift=1.0, placement=0.0)
    table = build_table("imagenet", validation_nets=0)
    assert table.validation is None
    assert table.trust()  # unvalidated: a search must refuse it
    assert table.method["fit"]["left_out_rmspe_percent"] < 2.0


@pytest.mark.parametrize("shared", [(0, 60), (50, 110), (170, 210)])
def test_two_paces_are_not_mixed(monkeypatch: pytest.MonkeyPatch, shared: tuple[int, int]) -> None:
    """The processors of a virtual machine share a core for a while: all is steady, but slower."""
    machine = simulate(monkeypatch, shared=shared, placement=0.0)
    space = read_space("imagenet")
    table = build_table(space, validation_nets=30)
    nets = [space.arch(picks) for picks in random_nets(space, 40, seed=99)]
    assert max(abs(table.predict(net) / true_net_ms(net) - 1) for net in nets) < 0.06
    validation = Validation.from_dict(table.validation or {})
    assert validation.mape_percent < 3
    assert validation.pace == pytest.approx(1.0, abs=0.03)
    # Whatever it does now is compared with the pace the table is for.
    machine.shared = (0, 10**9)
    later = validate_table(table, nets=10)
    assert later.noisy_nets == 10
    assert 1.3 < later.pace < 1.7
    assert "times as long as when the table was made" in later.verdict


def test_operations_that_no_random_net_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a space of few nets, some are left for the check, and have an operation to themselves."""
    simulate(monkeypatch, placement=0.0)
    tokens = tuple(f"k{kernel}e{ratio}" for kernel in (3, 5, 7) for ratio in (2, 3, 4))
    few = MINI.replace(stages=(SpaceStage(16, 2, 1),), candidates=tokens, zero=False)
    assert few.count == 9
    assert Plan(few, None, 2, None, 0, ()).extra  # else this test would show nothing
    have, need, missing = build_table(few, validation_nets=2).coverage()
    assert (have, missing) == (need, ())
    with pytest.raises(LatencyError, match=r"too few nets \(4\)"):
        build_table(few.replace(candidates=tokens[:4]), validation_nets=2)


def test_a_steady_machine_gives_the_same_table_from_a_continued_build(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Stopped again and again: nothing is measured twice, nothing is lost."""
    machine = simulate(monkeypatch)
    path = tmp_path / "table.json"
    stops = sorted(random.Random(1).sample(range(1, 110), 10))
    for stop in stops:
        machine.stop_after = stop
        with pytest.raises(KeyboardInterrupt):
            build_table("tiny", path=path, validation_nets=20)
        assert not path.exists()
        assert Path(f"{path}.part").exists()
    machine.stop_after = None
    table = build_table("tiny", path=path, validation_nets=20)
    assert [file.name for file in tmp_path.iterdir()] == ["table.json"]
    assert LatencyTable.load(path).digest == table.digest
    nets, checks = table.method["nets"], 3 * 20
    visits_of = Counter(machine.loads.values())
    assert sum(machine.loads.values()) == machine.loaded <= 1.1 * (nets + checks)
    assert set(visits_of) <= {1, 2, 3, 4}
    # One that was not stopped makes as many visits.
    other = simulate(monkeypatch)
    build_table("tiny", validation_nets=20)
    assert abs(other.loaded - machine.loaded) <= 0.1 * other.loaded


def test_other_options_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine = simulate(monkeypatch)
    path = tmp_path / "table.json"
    machine.stop_after = 5
    with pytest.raises(KeyboardInterrupt):
        build_table(MINI, path=path)
    machine.stop_after = None
    with pytest.raises(
        LatencyError, match=r"table.json.part holds measurements for other options: seed was 0, now 3"
    ):
        build_table(MINI, path=path, seed=3)
    with pytest.raises(LatencyError, match=r"settings was .*threads"):
        build_table(MINI, path=path, threads=2)
    with pytest.raises(LatencyError, match="space was"):
        build_table(MINI.replace(resolution=64), path=path)
    machine.name = "another machine"
    with pytest.raises(LatencyError, match="device_name was simulated, is another machine"):
        build_table(MINI, path=path)
    machine.name = "simulated"
    assert build_table(MINI, path=path).trust() == []


def test_journal_survives_a_cut_line_but_not_damage(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    with Journal(path, {"a": 1}) as journal:
        journal.add("one", {"x": 1})
        journal.add("two", {"x": 2})
    part = tmp_path / "t.json.part"
    whole = part.read_bytes()
    for cut in range(len(whole)):
        part.write_bytes(whole[:cut])
        with Journal(path, {"a": 1}) as journal:
            assert list(journal) == ["one", "two"][: max(0, whole[:cut].count(b"\n") - 1)]
            journal.add("three", {"x": 3})
        with Journal(path, {"a": 1}) as journal:
            assert journal["three"] == {"x": 3}
    part.write_bytes(whole.replace(b'{"name": "one"', b'{"nam'))
    with pytest.raises(LatencyError, match="line 2 is damaged"):
        Journal(path, {"a": 1}).__enter__()
    for foreign in (b"# notes\n", b"notes", b"[]\n", b'{"journal": 2}\n', b"\xff\xfe\n", b'{"journal": 1}\n'):
        part.write_bytes(foreign)
        with pytest.raises(LatencyError, match=r"no journal|damaged"):
            Journal(path, {"a": 1}).__enter__()
        assert part.read_bytes() == foreign  # what is not ours is left alone


def test_journal_belongs_to_one_process(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    with Journal(path, {}), pytest.raises(LatencyError, match="another process is building"):
        Journal(path, {}).__enter__()
    with pytest.raises(LatencyError, match="there is no folder"):
        Journal(tmp_path / "no" / "t.json", {}).__enter__()


def test_slow_loading_means_fewer_nets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where loading takes as long as compiling does, about the time given is used, and at least 24 nets."""
    machine = simulate(monkeypatch, parts=False, load_s=10.0)
    table = build_table("imagenet", runtime="executorch", minutes=30, validation_nets=30)
    assert 24 <= table.method["nets"] < 154
    assert max(machine.loads.values()) <= 2  # the check visits each net once
    assert Validation.from_dict(table.validation or {}).kendall_tau > 0.85
    assert build_table("imagenet", runtime="executorch", minutes=1).method["nets"] == 24


def test_operations_of_other_nets(monkeypatch: pytest.MonkeyPatch) -> None:
    other = Arch("other", 24, 12, 640, (Stage(20, 2, "k3e3 k5e6"), Stage(44, 2, "k7e6 -")), resolution=224)
    for parts in (True, False):
        simulate(monkeypatch, parts=parts)
        table = build_table("imagenet", extra=[other], validation_nets=0)
        assert table.predict(other) == pytest.approx(true_net_ms(other), rel=0.08)


def test_progress_and_space_without_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    simulate(monkeypatch)
    told: list[tuple[int, int, str]] = []
    build_table(MINI, progress=lambda *step: told.append(step))
    assert told[-1][0] == told[-1][1]
    assert told[-1][2] == "done"
    assert all(0 <= done <= total for done, total, _ in told)
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)
    lonely = MINI.replace(candidates=("k3e2",), zero=False)
    with pytest.raises(LatencyError, match="too few nets"):
        build_table(lonely)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nets": 3}, "nets must be a whole number from 24"),
        ({"validation_nets": -1}, "validation_nets must be"),
        ({"validation_nets": 1}, "validation_nets must be 0 or at least 2"),
        ({"minutes": 0}, "minutes must be a positive number"),
        ({"seed": -1}, "seed must be"),
        ({"threads": 0}, "threads must be"),
        ({"runtime": "tflite"}, "known are torch"),
    ],
)
def test_bad_options_are_one_clear_error(options: dict[str, object], message: str) -> None:
    with pytest.raises(LatencyError, match=message):
        build_table("tiny", **options)  # type: ignore[arg-type]


def test_unknown_space_is_an_arch_error() -> None:
    with pytest.raises(ArchError):
        build_table("imagnet")


_SCRIPT = """
import sys
sys.path[:0] = {paths!r}
from proxylessnas.latency import build_table, plan, visits
from proxylessnas.latency.journal import Journal
from simulated_machine import SteadyWorker
from test_latency_building import MINI
visits.Worker = SteadyWorker
visits._MIN_SECONDS, plan.LEAST_NETS = 0.0, 12  # quick is all that counts here
Journal.remove = lambda self: None  # the test counts its lines
if __name__ == "__main__":
    table = build_table(MINI, path={path!r}, minutes=0.1, validation_nets=4)
"""


def _kill_and_resume(tmp_path: Path, kills: int) -> None:
    path = tmp_path / "table.json"
    script = tmp_path / "build.py"
    script.write_text(_SCRIPT.format(paths=[str(TESTS), str(TESTS.parent)], path=str(path)))
    part, rng = Path(f"{path}.part"), random.Random(2)
    command = [sys.executable, str(script)]
    for _ in range(kills):
        before = len(part.read_bytes().splitlines()) if part.exists() else 0
        process = subprocess.Popen(command, stderr=subprocess.PIPE)
        goal = before + rng.randint(1, 3)
        while process.poll() is None and not (part.exists() and len(part.read_bytes().splitlines()) >= goal):
            time.sleep(0.01)
        time.sleep(rng.random() * 0.1)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert not path.exists()
    subprocess.run(command, check=True, timeout=300)
    names = [json.loads(line).get("name", "") for line in part.read_bytes().splitlines()]
    measured = [name for name in names if not name.startswith("process")]
    assert len(measured) == len(set(measured))
    table = LatencyTable.load(path)
    assert table.coverage()[0] == table.coverage()[1] == len(space_keys(MINI))
    assert {f"net {i} first" for i in range(4)} <= set(names)
    assert table.validation is not None
    assert table.validation["nets"] == 4
    low, high = table.range_ms()
    assert 0.05 < low < high < 100


def test_killed_for_real_and_resumed(tmp_path: Path) -> None:
    _kill_and_resume(tmp_path, kills=1)


@pytest.mark.slow
def test_killed_at_ten_random_moments(tmp_path: Path) -> None:
    _kill_and_resume(tmp_path, kills=10)


def test_validation_of_a_table_made_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = simulate(monkeypatch)
    table = build_table(MINI, validation_nets=0)
    assert validate_table(table, nets=10).mape_percent < 10
    machine.name = "another machine"
    with pytest.raises(LatencyError, match=r"device_name was simulated, is another machine.*--force"):
        validate_table(table, nets=10)
    forced = table.validate(nets=10, force=True)
    assert "another machine" in forced.conditions
    with pytest.raises(LatencyError, match="nets must be"):
        validate_table(table, nets=1)


def test_validation_avoids_the_nets_of_the_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = simulate(monkeypatch)
    table = build_table(MINI, validation_nets=0)
    fitted = set(machine.loads)
    machine.loads.clear()
    validate_table(table, nets=10, seed=0)
    assert not fitted & set(machine.loads)
