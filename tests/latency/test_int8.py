"""Latencies in INT8: tables, benches beside float32, exported files, kits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cli_tools import runner

from proxylessnas.arch.space import SearchSpace, SpaceStage
from proxylessnas.errors import LatencyError
from proxylessnas.latency import (
    BenchSettings,
    BuildSettings,
    LatencyTable,
    bench,
    build_table,
    validate,
    validate_table,
)
from proxylessnas.latency.kit.kit import write_kit
from proxylessnas.latency.kit.results import kit_table, read_results
from proxylessnas.runtimes.base import ModelSpec

pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

from proxylessnas.runtimes.onnx_graph import whole_model_onnx  # noqa: E402

SPACE = SearchSpace(
    "kit", stem=8, first=8, last=32, stages=(SpaceStage(16, 2, 2), SpaceStage(24, 2, 2)),
    candidates=("k3e2", "k7e6"), resolution=32, num_classes=10,
)  # fmt: skip
ARCH = SPACE.arch([1, 1, 1, 1])
QUICK = BenchSettings(rounds=1, seconds=0.05, dtypes=("float32", "int8"))


def test_a_table_of_int8_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validate, "_LEAST_SECONDS", 2.0)
    monkeypatch.setattr(validate, "_SECONDS_EACH", 0.1)
    settings = BuildSettings(runtime="onnxruntime", dtype="int8", nets=24, validation_nets=6, minutes=0.05)
    table = build_table(SPACE, settings, path=tmp_path / "int8.json")
    assert table.conditions.dtype == "int8"
    assert ", int8;" in table.conditions.describe()
    assert LatencyTable.load(tmp_path / "int8.json").digest == table.digest
    assert table.validation is not None
    assert table.validation["nets"] == 6
    assert table.validation["mape_percent"] < 15  # seconds on a busy machine
    low, high = table.range_ms()
    assert 0 < low < high
    assert validate_table(table, nets=2).measured_with["dtype"] == "int8"  # type: ignore[index]


def test_a_bench_side_by_side() -> None:
    found = bench(
        [ARCH, "proxyless_cifar10_demo"], QUICK.replace(runtimes=("torch", "onnxruntime")), peers=()
    )
    settings = [(row.timing.conditions.runtime, row.timing.conditions.dtype) for row in found.rows]
    one_each = [("torch", "float32"), ("onnxruntime", "float32"), ("onnxruntime", "int8")]
    assert settings == [setting for setting in one_each for _ in range(2)]
    assert found.notes == ("torch is left out in int8: it has none on cpu",)
    assert [row.setting for row in found.rows[3:5]] == [
        "onnxruntime, 1 thread, batch 1", "onnxruntime, 1 thread, batch 1, int8",
    ]  # fmt: skip
    assert [row.to_dict()["top1"] is None for row in found.rows[1::2]] == [False, False, True]
    with pytest.raises(LatencyError, match="nothing could be measured"):
        bench([ARCH], QUICK.replace(runtimes=("torch",), dtype="int8", dtypes=()), peers=())


def test_the_command_prints_both(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    csv = tmp_path / "bench.csv"
    words = "bench proxyless_cifar10_demo --runtime onnxruntime --dtypes float32,int8 --rounds 1"
    done = runner(capsys)(*words.split(), "--seconds", "0.05", "--csv", str(csv), "--quiet")
    assert done.code == 0
    lines = done.out.splitlines()
    place = lines.index("onnxruntime, 1 thread, batch 1: ms")
    assert lines[place + 1].split() == ["model", "float32", "int8", "float32", "/", "int8"]
    assert float(lines[place + 2].split()[-1]) > 0
    assert [line.count("int8") for line in csv.read_text().splitlines()] == [0, 0, 1]


def test_a_file_is_measured_once_as_what_it_is(tmp_path: Path) -> None:
    spec = ModelSpec("arch", str(ARCH), (3, 32, 32))
    for precision in ("float32", "int8"):
        file = tmp_path / f"{precision}.onnx"
        file.write_bytes(whole_model_onnx(spec, 1, precision))
        report = {"precision": precision, "input_size": [3, 32, 32]}
        file.with_name(f"{file.name}.json").write_text(json.dumps(report))
    files = [tmp_path / "float32.onnx", tmp_path / "int8.onnx"]
    found = bench(files, QUICK, peers=())
    assert [row.timing.conditions.dtype for row in found.rows] == ["float32", "int8"]
    found = bench(files, QUICK.replace(dtypes=()), peers=())
    assert {row.timing.conditions.dtype for row in found.rows} == {"float32"}  # as nobody asks for another


def test_a_kit_of_int8_models(tmp_path: Path) -> None:
    with pytest.raises(LatencyError, match="executorch files are of float32, not 'int8'"):
        write_kit(SPACE, tmp_path / "kit", dtype="int8", formats=("executorch",))
    folder = write_kit(SPACE, tmp_path / "kit", nets=16, dtype="int8")
    size = sum(file.stat().st_size for file in folder.rglob("*.onnx"))
    exact = len(whole_model_onnx(ModelSpec("arch", str(ARCH), (3, 32, 32)), 1, "int8"))
    assert size < 40 * exact
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("torch", "proxylessnas", "onnx"):
        (bare / f"{name}.py").write_text("raise ImportError('not on a phone')\n")
    quick = ["--rounds", "1", "--seconds", "0.01", "--runs", "3"]
    subprocess.run(
        [sys.executable, str(folder / "run.py"), *quick],
        env={**os.environ, "PYTHONPATH": str(bare)}, check=True, capture_output=True, cwd=tmp_path,
    )  # fmt: skip
    table = kit_table(read_results(folder))
    assert (table.conditions.runtime, table.conditions.dtype) == ("onnxruntime", "int8")
    assert table.validation is not None
    text = (folder / "results.json").read_text().replace('"dtype": "int8"', '"dtype": "float32"')
    (folder / "results.json").write_text(text)
    with pytest.raises(LatencyError, match='dtype is "float32"; wanted int8, that of the kit'):
        read_results(folder)
