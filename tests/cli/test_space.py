"""``proxylessnas space show``: what a space holds, and how far its models reach."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from cli_tools import Run, runner
from latency_table_tools import little
from torch import nn

from proxylessnas import create_model, profile, register_op
from proxylessnas.arch.space import SearchSpace, SpaceStage

register_op("space_show_conv", lambda i, o, stride: nn.Conv2d(i, o, 3, stride, 1))
SPACE = SearchSpace(
    "mine", 8, 8, 32, (SpaceStage(16, 2, 2), SpaceStage(24, 1, 1)), ("n2", "k3e2", "space_show_conv"),
    resolution=32, num_classes=5,
)  # fmt: skip


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return runner(capsys, "space", "show")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(SPACE.to_toml(), encoding="utf-8")
    return path


def test_the_reach_is_that_of_all_its_models(run: Run, file: Path) -> None:
    found = run(file, "--json").json
    every = itertools.product(*(p.columns for p in SPACE.search_blocks))
    sizes = [profile(create_model(SPACE.arch(choices)), 32) for choices in every]
    assert found["models"] == len(sizes) == 2 * 4 * 3
    assert found["macs"] == [min(s.macs for s in sizes), max(s.macs for s in sizes)]
    assert found["params"] == [min(s.params for s in sizes), max(s.params for s in sizes)]
    assert [stage["choices"] for stage in found["stages"]] == [[2, 4], [3]]
    assert [(one["op"], one["blocks"]) for one in found["candidates"]] == [
        ("n2", 2), ("k3e2", 3), ("space_show_conv", 3), ("-", 1)
    ]  # fmt: skip
    assert "ms" not in found


def test_a_table_gives_milliseconds(run: Run, tmp_path: Path) -> None:
    path, table = tmp_path / "little.toml", little()
    assert table.space is not None
    path.write_text(table.space.to_toml(), encoding="utf-8")
    table.save(tmp_path / "table.json")
    found = run(path, "--json", "--table", tmp_path / "table.json").json
    assert found["ms"] == pytest.approx(table.range_ms())
    fixed = table.costs()[1]
    assert sum(stage["ms"][1] for stage in found["stages"]) + fixed == pytest.approx(found["ms"][1])
    ran = run(path, "--table", tmp_path / "table.json")
    assert f"{found['ms'][0]:.2f} to {found['ms'][1]:.2f} ms by" in ran.out
    ran = run("tiny", "--table", tmp_path / "table.json")
    assert ran.code == 1
    assert "the latency table has no entry for" in ran.err


def test_it_is_read_in_a_terminal(run: Run, file: Path) -> None:
    lines = run(file, "--image-size", 64).out.splitlines()
    assert lines[:3] == [
        "mine",
        "  input       3 x 64 x 64 px, 5 classes",
        "  models      24, of 3 searched blocks",
    ]
    assert max(map(len, lines)) <= 110
    rows = [line.split() for line in lines]
    first = next(row for row in rows if row[:1] == ["1"])
    assert first[:10] == ["1", "8", ">", "16", "32", ">", "16", "2", "2", "4"]
    assert ["n2", "1x1", "bottleneck,", "expansion", "2", "2", "of", "3"] in rows
    for name in ("imagenet", "small", "cpu26@1.25"):
        ran = run(name)
        assert ran.code == 0
        assert max(map(len, ran.out.splitlines())) <= 110
    assert "did you mean tiny" in run("tinny").err
