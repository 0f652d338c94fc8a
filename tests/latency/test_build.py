"""Building tables: on a simulated machine whose true latencies are known, and for real."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from simulated_machine import simulated as simulate
from simulated_machine import true_model_ms

from proxylessnas import Arch, Stage
from proxylessnas.arch.op_key import space_keys
from proxylessnas.arch.space import SearchSpace, SpaceStage
from proxylessnas.arch.spaces import read_space
from proxylessnas.errors import ArchError, LatencyError
from proxylessnas.latency import BuildSettings, LatencyTable, Validation, build_table, doubts, validate_table
from proxylessnas.latency.build import Plan
from proxylessnas.latency.journal import Journal
from proxylessnas.latency.random_models import random_models
from proxylessnas.latency.validate import fitted_on

TESTS = Path(__file__).resolve().parents[1]
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


@pytest.mark.parametrize("parts", [True, False])
def test_a_table_of_a_disturbed_machine_is_to_be_trusted(
    monkeypatch: pytest.MonkeyPatch, parts: bool
) -> None:
    """In two thirds of the time a neighbour slows all runs 1.2 to 2 times."""
    machine = simulate(monkeypatch, parts=parts, disturbed=0.65, stolen=0.1)
    space = read_space("tiny")
    table = build_table(space, BuildSettings(runtime="torch" if parts else "onnxruntime", validation_nets=30))
    assert table.coverage()[2] == ()
    assert {entry.how for entry in table.entries.values()} == {"fitted"}
    assert all(e.p10_ms <= e.p90_ms and e.runs for e in table.entries.values())  # type: ignore[operator]
    assert table.statistic == "undisturbed"
    validation = Validation.from_dict(table.validation or {})
    assert validation.mape_percent < 2
    assert doubts(table) == []
    assert validation.disturbance is not None
    assert validation.disturbance > 1.1
    assert validation.ceiling_tau is not None
    assert validation.ceiling_tau > 0.9
    # Against the truth itself, without the noise of measuring it.
    nets = [space.arch(choices) for choices in random_models(space, 60, seed=99)]
    errors = [table.predict(model) / true_model_ms(model) - 1 for model in nets]
    assert sum(map(abs, errors)) / 60 < 0.02
    assert machine.processes == table.method["processes"] == 4
    assert table.method["minutes"] == pytest.approx(machine.now_s / 60, abs=0.01)


def test_drift_is_taken_out(monkeypatch: pytest.MonkeyPatch) -> None:
    simulate(monkeypatch, drift=1.0, placement=0.0)
    table = build_table("tiny", BuildSettings(validation_nets=0))
    assert table.validation is None
    assert doubts(table)  # unvalidated: a search must refuse it
    assert table.method["fit"]["left_out_rmspe_percent"] < 2.0


def test_two_paces_are_not_mixed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processors of a virtual machine share a core for a while: all is steady, but slower."""
    machine = simulate(monkeypatch, shared=(8, 30), placement=0.0)
    space = read_space("tiny")
    table = build_table(space, BuildSettings(validation_nets=30))
    assert machine.now_s > 40
    nets = [space.arch(choices) for choices in random_models(space, 40, seed=99)]
    assert max(abs(table.predict(model) / true_model_ms(model) - 1) for model in nets) < 0.06
    assert Validation.from_dict(table.validation or {}).mape_percent < 3
    # Whatever it does now is compared with the pace the table is for.
    assert validate_table(table, nets=10).reference_ratio == pytest.approx(1.0, abs=0.03)
    machine.shared = (0, 10**9)
    later = validate_table(table, nets=10)
    assert 1.1 < later.reference_ratio < 1.3  # of which most is what every model takes
    assert "times as long as when the table was made" in later.verdict


def test_operations_that_no_random_model_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a space of few models, some are left for the check, and have an operation to themselves."""
    simulate(monkeypatch, placement=0.0)
    tokens = tuple(f"k{kernel}e{ratio}" for kernel in (3, 5, 7) for ratio in (2, 3, 4))
    few = MINI.replace(stages=(SpaceStage(16, 2, 1),), candidates=tokens, zero=False)
    assert few.count == 9
    assert Plan(few, BuildSettings(validation_nets=2)).extra  # else this test would show nothing
    have, need, missing = build_table(few, BuildSettings(validation_nets=2)).coverage()
    assert (have, missing) == (need, ())
    with pytest.raises(LatencyError, match=r"too few models \(4\)"):
        build_table(few.replace(candidates=tokens[:4]), BuildSettings(validation_nets=2))


def test_blocks_that_lack_a_candidate(monkeypatch: pytest.MonkeyPatch) -> None:
    """An operation without a stride is first in the space, and missing in every other block."""
    simulate(monkeypatch, parts=False)
    space = MINI.replace(candidates=("n4", "k3e2", "u3-5e2", "k5e4"), act="relu")
    table = build_table(space, BuildSettings(runtime="onnxruntime", validation_nets=30))
    assert table.coverage()[2] == ()
    assert Validation.from_dict(table.validation or {}).mape_percent < 2
    costs, fixed = table.costs()
    assert [row[0] > 0 for row in costs.tolist()] == [False, True, False, True]
    choices = (3, 0, 1, 4)
    assert sum(costs[i, k] for i, k in enumerate(choices)) + fixed == pytest.approx(
        table.predict(space.arch(choices))
    )


def test_a_build_that_was_stopped_resumes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Stopped again and again: no round is measured twice, nothing is lost, and it ends in its time."""
    machine = simulate(monkeypatch, disturbed=0.5)
    path = tmp_path / "table.json"
    for stop in (300, 700, 1000, 1200):
        machine.stop_after = stop
        with pytest.raises(KeyboardInterrupt):
            build_table(MINI, BuildSettings(validation_nets=20, minutes=1), path=path)
        assert not path.exists()
        assert Path(f"{path}.part").exists()
    machine.stop_after = None
    kept = [json.loads(line) for line in Path(f"{path}.part").read_bytes().splitlines()]
    rounds = [line["name"] for line in kept if "windows" in line]
    assert len(rounds) == len(set(rounds)) >= 1200 // 80 - 4  # of at most 80 windows, but for those cut off
    table = build_table(MINI, BuildSettings(validation_nets=20, minutes=1), path=path)
    assert [file.name for file in tmp_path.iterdir()] == ["table.json"]
    assert LatencyTable.load(path).digest == table.digest
    assert table.method["rounds"] >= machine.windows["net 3"] - 4
    assert table.method["minutes"] < 1.15


def test_other_options_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine = simulate(monkeypatch)
    path = tmp_path / "table.json"
    machine.stop_after = 200
    with pytest.raises(KeyboardInterrupt):
        build_table(MINI, path=path)
    machine.stop_after = None
    with pytest.raises(
        LatencyError, match=r"table.json.part holds measurements for other options: seed was 0, now 3"
    ):
        build_table(MINI, BuildSettings(seed=3), path=path)
    with pytest.raises(LatencyError, match=r"settings was .*threads"):
        build_table(MINI, BuildSettings(threads=2), path=path)
    with pytest.raises(LatencyError, match="space was"):
        build_table(MINI.replace(resolution=64), path=path)
    machine.name = "another machine"
    with pytest.raises(LatencyError, match="device_name was simulated, is another machine"):
        build_table(MINI, path=path)
    machine.name = "simulated"
    assert build_table(MINI, path=path).coverage()[2] == ()


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


def test_slow_loading_means_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where loading takes as long as compiling does, each model is compiled once."""
    machine = simulate(monkeypatch, parts=False, load_s=10.0)
    table = build_table("tiny", BuildSettings(runtime="executorch", minutes=30, nets=24, validation_nets=30))
    assert table.method["processes"] == 1
    assert set(machine.loads.values()) == {1}
    validation = Validation.from_dict(table.validation or {})
    assert validation.kendall_tau > 0.85
    assert validation.ceiling_tau is not None  # of every other window
    assert doubts(table) == []


def test_operations_of_other_models(monkeypatch: pytest.MonkeyPatch) -> None:
    other = Arch("other", 24, 12, 640, (Stage(20, 2, "k3e3 k5e6"), Stage(44, 2, "k7e6 -")), resolution=224)
    for parts in (True, False):
        simulate(monkeypatch, parts=parts)
        runtime = "torch" if parts else "onnxruntime"
        table = build_table(
            "imagenet", BuildSettings(runtime=runtime, nets=60, validation_nets=0, minutes=0.5), extra=[other]
        )
        assert table.predict(other) == pytest.approx(true_model_ms(other), rel=0.08)


@pytest.mark.parametrize("traits", [{}, {"disturbed": 0.3}, {"drift": 1.0}, {"placement": 0.0}])
def test_the_time_left_is_known_early(monkeypatch: pytest.MonkeyPatch, traits: dict[str, Any]) -> None:
    machine = simulate(monkeypatch, **traits)
    told: list[tuple[float, int]] = []
    build_table(MINI, progress=lambda done, total, _: told.append((machine.now_s, total - done)))
    end_s = machine.now_s
    later = [(end_s - now_s, left_s) for now_s, left_s in told if 0.25 * end_s < now_s < 0.95 * end_s]
    assert len(later) > 1000
    assert all(left_s / 1.5 - 2 < truly_s < 1.5 * left_s + 2 for truly_s, left_s in later)


def test_progress_and_space_without_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    simulate(monkeypatch)
    told: list[tuple[int, int, str]] = []
    build_table(MINI, progress=lambda *step: told.append(step))
    assert told[-1][0] == told[-1][1]
    assert told[-1][2] == "done"
    assert all(0 <= done <= total for done, total, _ in told)
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)
    lonely = MINI.replace(candidates=("k3e2",), zero=False)
    with pytest.raises(LatencyError, match="too few models"):
        build_table(lonely)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nets": 3}, "nets must be a whole number from 24"),
        ({"validation_nets": -1}, "validation_nets must be"),
        ({"validation_nets": 1}, "validation_nets must be 0 or a whole number from 2"),
        ({"minutes": 0}, "minutes must be a number above 0"),
        ({"seed": -1}, "seed must be"),
        ({"threads": 0}, "threads must be"),
        ({"runtime": "tflite"}, 'runtime must be "torch", '),
    ],
)
def test_bad_options_are_one_clear_error(options: dict[str, object], message: str) -> None:
    with pytest.raises(LatencyError, match=message):
        build_table("tiny", BuildSettings(**options))  # type: ignore[arg-type]


def test_unknown_space_is_an_arch_error() -> None:
    with pytest.raises(ArchError):
        build_table("imagnet")


_SCRIPT = """
import sys
sys.path[:0] = {paths!r}
from proxylessnas.latency import BuildSettings, build, build_table, session
from proxylessnas.latency.journal import Journal
from simulated_machine import SteadyWorker
from tests.latency.test_build import MINI
session.Worker = SteadyWorker
build.LEAST_MODELS = 12  # quick is all that counts here
Journal.remove = lambda self: None  # the test counts its lines
if __name__ == "__main__":
    table = build_table(MINI, BuildSettings(minutes=0.1, validation_nets=4), path={path!r})
"""


def _kill_and_resume(tmp_path: Path, kills: int) -> None:
    path = tmp_path / "table.json"
    script = tmp_path / "build.py"
    script.write_text(_SCRIPT.format(paths=[str(TESTS / "tools"), str(TESTS.parent)], path=str(path)))
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
    measured = [name for name in names if " round " in name]
    assert len(measured) == len(set(measured)) >= 8
    table = LatencyTable.load(path)
    assert table.coverage()[0] == table.coverage()[1] == len(space_keys(MINI))
    assert {f"process {i} group 0 round 3" for i in range(2)} <= set(names)
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
    table = build_table(MINI, BuildSettings(validation_nets=0))
    assert validate_table(table, nets=10).mape_percent < 10
    machine.name = "another machine"
    with pytest.raises(LatencyError, match=r"device_name was simulated, is another machine.*--force"):
        validate_table(table, nets=10)
    forced = validate_table(table, nets=10, force=True)
    assert "another machine" in forced.conditions
    with pytest.raises(LatencyError, match="nets must be"):
        validate_table(table, nets=1)


def test_validation_avoids_the_models_of_the_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = simulate(monkeypatch)
    table = build_table(MINI, BuildSettings(validation_nets=0))
    fitted = {" | ".join(stage.ops for stage in MINI.arch(p).stages) for p in fitted_on(table, MINI)}
    assert len(fitted) == table.method["nets"]
    checked = {pair[0] for pair in validate_table(table, nets=10, seed=0).pairs}
    assert len(checked) == 10
    assert not fitted & checked
    assert machine.windows["check 9"] > 0
