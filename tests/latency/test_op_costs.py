"""What operations cost relative to one of them: on a machine whose latencies are known, and on this one."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from cli_tools import runner
from simulated_machine import maps_mb, simulated, true_ms

from proxylessnas import ArchError, LatencyError
from proxylessnas.arch.op_key import OpKey
from proxylessnas.arch.space import SearchSpace, SpaceStage
from proxylessnas.latency import OpCostSettings, op_costs

STAGES = (SpaceStage(16, 2, 2), SpaceStage(24, 2, 1), SpaceStage(24, 1, 2))
SPACE = SearchSpace("s", 8, 8, 32, STAGES, ("n4", "k3e2", "u3-5e2"), resolution=64)


def alone_ms(key: OpKey) -> float:
    """What the simulated machine takes for an operation alone."""
    return 0.85 * true_ms(key) + 0.03 + 0.05 * maps_mb(key)


@pytest.mark.parametrize("traits", [{}, {"disturbed": 0.7, "stolen": 0.05}], ids=["quiet", "busy"])
def test_the_ratios_are_those_of_the_machine(
    traits: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    simulated(monkeypatch, parts=False, **traits)  # type: ignore[arg-type]
    found = op_costs(SPACE)
    assert found.base == "k3e6"
    assert {shape: [*own] for shape, own in found.stages.items()} == {
        "16 ch, 16 px": ["k3e6", "n4", "k3e2", "u3-5e2"],
        "16 > 24 ch, 16 px /2": ["k3e6", "k3e2", "u3-5e2"],
        "24 ch, 8 px": ["k3e6", "n4", "k3e2", "u3-5e2"],
    }
    for own in found.stages.values():
        for row in own.values():
            wanted = alone_ms(row.key) / alone_ms(own["k3e6"].key)
            assert row.relative == pytest.approx(wanted, rel=0.03)
            assert row.uncertainty < 0.03


def test_another_base(monkeypatch: pytest.MonkeyPatch) -> None:
    simulated(monkeypatch, parts=False)
    found = op_costs(SPACE, OpCostSettings(base="k3e2.0", minutes=0.5))
    assert found.ops == ["k3e2", "n4", "u3-5e2"]
    assert [row.relative for row in found.rows if row.key.op == "k3e2"] == [1.0] * 3
    with pytest.raises(ArchError, match="unknown operation 'x3'"):
        op_costs(SPACE, OpCostSettings(base="x3"))


def test_a_base_that_cannot_stride_is_compared_where_it_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    simulated(monkeypatch, parts=False)
    found = op_costs(SPACE, OpCostSettings(base="n4", minutes=0.5))
    assert [*found.stages] == ["16 ch, 16 px", "24 ch, 8 px"]
    assert all(next(iter(own)) == "n4" and own["n4"].relative == 1.0 for own in found.stages.values())
    with pytest.raises(LatencyError, match="no block of s can be n4"):
        op_costs(
            SPACE.replace(stages=(SpaceStage(24, 2, 1),), candidates=("k3e2",)), OpCostSettings(base="n4")
        )


def test_the_command_writes_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = runner(capsys, "latency", "ops")
    (tmp_path / "s.toml").write_text(SPACE.to_toml(), encoding="utf-8")
    words = ["--space", tmp_path / "s.toml", "--minutes", "0.01", "--image-size", 32]
    ran = run(*words, "-o", tmp_path / "a.csv", "--plot", tmp_path / "a.svg")
    assert ran.code == 0
    lines = ran.out.splitlines()
    assert [line.split()[0] for line in lines[1:5]] == ["k3e6", "n4", "k3e2", "u3-5e2"]
    assert "torch, 1 thread, batch 1, float32" in lines[-1]
    with (tmp_path / "a.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["stage"], row["op"], row["size"]) for row in rows[:2]] == [
        ("1", "k3e6", "8"),
        ("1", "n4", "8"),
    ]
    assert all(float(row["undisturbed_ms"]) > 0 for row in rows)
    assert "<svg" in (tmp_path / "a.svg").read_text(encoding="utf-8")
    found = run(*words, "--json").json
    assert [row["op"] for row in found["operations"]] == [row["op"] for row in rows]
    assert run(*words, "-o", tmp_path / "a.json").code == 2
