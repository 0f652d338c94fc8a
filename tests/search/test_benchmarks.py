"""The benchmarks of whole searches work, at their smallest, and do nothing twice."""

from __future__ import annotations

import argparse
import csv
import importlib
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from latency_table_tools import SPACE, little

from proxylessnas.arch.spaces import read_space

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
NAMES = (
    "harness", "search_runs", "search_targets", "search_specialised", "search_random", "search_ranking",
    "search_end", "kill_and_resume",
)  # fmt: skip


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    """Return the scripts by name; they import each other as they do when they are run."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield {name: importlib.import_module(name) for name in NAMES}
    for name in NAMES:
        sys.modules.pop(name, None)


def quick(script: ModuleType, folder: Path, *words: str) -> list[dict[str, str]]:
    """Run a script with tables that are there; return the rows that it adds to its file."""
    tables = folder / "tables"
    tables.mkdir(exist_ok=True)
    space = read_space("tiny").replace(resolution=16)
    for seed, runtime in enumerate(("torch", "onnxruntime")):
        little(seed, space).save(tables / f"tiny_{runtime}_cpu_1.json")
    out = folder / "rows.csv"
    out.unlink(missing_ok=True)
    options = ["--quick", "--space", "tiny", "--data", "digits", "--runs", str(folder / "runs")]
    assert script.main([*options, "--tables", str(tables), "--csv", str(out), *words]) == 0
    with out.open(newline="") as file:
        return list(csv.DictReader(file))


def again(script: ModuleType, folder: Path, rows: list[dict[str, str]], *words: str) -> None:
    """Run it again: what is finished is kept."""
    files = {path: path.stat().st_mtime_ns for path in (folder / "runs").rglob("*") if path.is_file()}
    assert quick(script, folder, *words) == rows
    assert {path: path.stat().st_mtime_ns for path in files} == files


def test_targets(scripts: dict[str, ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--places", "0.3"]
    rows = quick(scripts["search_targets"], tmp_path, *words)
    assert [(row["algorithm"], row["place"]) for row in rows] == list(
        itertools.product(("gradient", "reinforce"), ("0.3",))
    )
    for row in rows:
        assert 0.85 * float(row["target_ms"]) <= float(row["predicted_ms"]) <= float(row["target_ms"])
        assert 85 <= float(row["share_percent"]) <= 100
        assert row["measured_ms"] == row["error_percent"] == ""  # the table is not of this machine
        assert row["torch"] == torch.__version__
    assert "within 85 to 100 % of the target: 2 of 2; measured within 5 %: 0" in capsys.readouterr().out
    again(scripts["search_targets"], tmp_path, rows, *words)


def test_specialised(
    scripts: dict[str, ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = quick(scripts["search_specialised"], tmp_path)
    pairs = [(row["searched_for"], row["measured_on"]) for row in rows]
    assert pairs == list(itertools.product(("torch", "onnxruntime"), repeat=2))
    for row in rows:
        if row["searched_for"] == row["measured_on"]:
            assert float(row["predicted_ms"]) <= float(row["target_ms"])
    printed = capsys.readouterr().out
    assert "on onnxruntime" in printed
    assert "for torch" in printed


def test_random(scripts: dict[str, ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = quick(scripts["search_random"], tmp_path)
    assert [row["net"] for row in rows] == ["searched", "random1", "random2"]
    assert len({row["blocks"] for row in rows}) == 3
    ours = float(rows[0]["predicted_ms"])
    assert all(abs(float(row["predicted_ms"]) / ours - 1) <= 0.03 for row in rows)
    printed = capsys.readouterr().out
    assert "random: mean" in printed
    assert "searched - random:" in printed
    again(scripts["search_random"], tmp_path, rows)


def test_random_models_of_one_latency_are_drawn_evenly(scripts: dict[str, ModuleType]) -> None:
    """Asked for as many as there are, it finds every model whose latency is near, and no other."""
    table = little()
    _, fixed = table.costs(SPACE)
    every = [range(len(p.candidate_ops)) for p in SPACE.search_blocks]
    choices = next(p for p in itertools.product(*every) if table.predict(SPACE.arch(p)) > 1.5 * fixed)
    wanted = table.predict(SPACE.arch(choices))
    function_of: Any = scripts["search_random"].function_of
    near = {
        function_of(SPACE.arch(p))
        for p in itertools.product(*every)
        if abs(table.predict(SPACE.arch(p)) / wanted - 1) <= 0.2
    } - {function_of(SPACE.arch(choices))}
    found = scripts["search_random"].alike(SPACE, table, choices, 0.2, len(near), seed=0)
    assert {function_of(arch) for arch in found} == near
    assert len(found) == len(near)


def test_a_file_takes_columns_that_it_had_not(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    args = argparse.Namespace(csv=tmp_path / "rows.csv", no_csv=False)
    for row in ({"net": "a", "median_ms": 1}, {"net": "b", "undisturbed_ms": 2}):
        scripts["harness"].write_rows(args, [row])
    with args.csv.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["net"], r["median_ms"], r["undisturbed_ms"]) for r in rows] == [("a", "1", ""), ("b", "", "2")]
    assert all(r["torch"] == torch.__version__ for r in rows)


def test_what_a_kill_may_change(scripts: dict[str, ModuleType]) -> None:
    script = scripts["kill_and_resume"]
    a = {"loss": 1.0, "seconds": 2.0, "steps": [{"time": 1, "w": torch.zeros(2)}]}
    b = {"loss": 1.0, "seconds": 3.0, "steps": [{"time": 4, "w": torch.zeros(2)}]}
    assert not script.same(a, b)
    assert script.same(script.without_clocks(a), script.without_clocks(b))
    b["steps"][0]["w"] += 1e-30
    assert not script.same(script.without_clocks(a), script.without_clocks(b))
    assert not script.same({"x": torch.zeros(1)}, {"x": torch.zeros(1, dtype=torch.float64)})
    assert not script.same({"x": torch.zeros(1)}, {"x": None})


@pytest.mark.slow
@pytest.mark.parametrize("what", ["gradient-two", "gradient-full_v2", "reinforce"])
def test_killed_searches_give_the_same_bits(
    what: str,
    scripts: dict[str, ModuleType],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["--what", what, "--kills", "2", "--epochs", "4", "--csv", str(tmp_path / "kills.csv")]
    monkeypatch.setattr(sys, "argv", ["kill_and_resume.py", *words])
    assert scripts["kill_and_resume"].main() == 0
    assert "all bitwise equal" in capsys.readouterr().out
    (row,) = csv.DictReader((tmp_path / "kills_search.csv").read_text().splitlines())
    assert (row["search"], row["kills"], row["result"]) == (what, "2", "bitwise equal")


def test_ranking(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    rows = quick(scripts["search_ranking"], tmp_path)
    assert [row["fair_warmup"] for row in rows] == ["False", "True"]
    assert all(-1 <= float(row["tau"]) <= 1 for row in rows)


def test_what_chooses_does_not_look(scripts: dict[str, ModuleType]) -> None:
    """Models that are right by chance gain nothing on other images; one that is better gains what it is."""
    generator = torch.Generator().manual_seed(0)
    looked_at: Any = scripts["search_end"].looked_at
    chance = (torch.rand(40, 400, generator=generator) < 0.5).double()
    found = looked_at(chance, 1 - chance, generator)
    assert abs(found["by_accuracy"] - 100 * (0.5 - float(chance[0].mean()))) < 3
    better = chance.clone()
    better[7] = 1.0
    gains = looked_at(better, 1 - better, generator)
    assert gains == {name: pytest.approx(100 * (1 - float(chance[0].mean())), abs=1) for name in gains}
