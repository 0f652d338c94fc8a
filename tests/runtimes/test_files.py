"""Exported files are measured in the runtimes that read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from deploy_tools import small

from proxylessnas import LatencyError, create_model, deploy
from proxylessnas.latency import bench, measure
from proxylessnas.latency.benchmark import _plan
from proxylessnas.latency.benchmark_models import open_models
from proxylessnas.runtimes.base import ModelSpec
from proxylessnas.runtimes.files import (
    check_runtime,
    file_runtimes,
    input_size_of,
    is_machine_code,
    load_program,
    report_of,
)
from proxylessnas.runtimes.settings import Settings

QUICK = {"min_runs": 3, "min_seconds": 0.0, "max_seconds": 2.0}


@pytest.fixture(scope="module")
def torchscript(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("files") / "net.pt"
    deploy.export(small(), path, threads=1, measure=False)
    return path


def test_who_reads_what(torchscript: Path, tmp_path: Path) -> None:
    assert file_runtimes("net.onnx") == ("onnxruntime", "openvino")
    assert file_runtimes("NET.XML") == ("openvino",)
    assert file_runtimes("net.pte") == ("executorch",)
    assert file_runtimes("net.pt2") == file_runtimes(torchscript) == ("torch",)
    assert file_runtimes("proxyless_cpu") == file_runtimes("net.safetensors") == ()
    torch.save({"weight": torch.zeros(1)}, tmp_path / "weights.pt")
    assert file_runtimes(tmp_path / "weights.pt") == (), "weights, no program"
    assert not is_machine_code(torchscript)
    with pytest.raises(LatencyError, match=r"'openvino' cannot read .*net\.pt: use runtime 'torch'"):
        check_runtime(str(torchscript), "openvino")
    with pytest.raises(LatencyError, match=r"weights\.pt, which is no exported file"):
        check_runtime(str(tmp_path / "weights.pt"), "torch")
    with pytest.raises(LatencyError, match=r"none\.onnx: no such file"):
        check_runtime(str(tmp_path / "none.onnx"), "onnxruntime")


def test_the_report_beside_a_file_tells_its_size(torchscript: Path, tmp_path: Path) -> None:
    assert input_size_of(torchscript) == (3, 32, 32)
    file = tmp_path / "net.onnx"
    for text in ("", "no JSON", "[1]", '{"input_size": [3, 0, 4]}', '{"input_size": [3, 4]}', "[" * 100_000):
        (tmp_path / "net.onnx.json").write_text(text, encoding="utf-8")
        assert input_size_of(file) is None
    assert report_of(tmp_path / "none.onnx") == {}


@pytest.mark.parametrize("content", [b"", b"PK no archive", b"\x00" * 100])
@pytest.mark.parametrize("name", ["net.pt", "net.pt2"])
def test_damaged_programs_are_one_line(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(LatencyError, match=rf"{name}: ") as caught:
        load_program(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_torch_runs_its_files(torchscript: Path, tmp_path: Path) -> None:
    from proxylessnas.runtimes.torch_eager import RUNTIME

    spec = ModelSpec("file", str(torchscript), (3, 32, 32))
    session = RUNTIME.load(spec, Settings(batch_size=2), tmp_path)
    session.run()
    assert session.x.shape == (2, 3, 32, 32)
    with pytest.raises(LatencyError, match="the CPU in float32"):
        RUNTIME.load(spec, Settings(dtype="bfloat16"), tmp_path)
    with pytest.raises(LatencyError, match=r"net\.pt does not take \[1, 4, 32, 32\]"):
        RUNTIME.load(ModelSpec("file", str(torchscript), (4, 32, 32)), Settings(), tmp_path)


def test_measure_takes_files(torchscript: Path) -> None:
    timing = measure(torchscript, **QUICK)  # type: ignore[arg-type]
    assert timing.median_ms > 0
    assert timing.input_size == (3, 32, 32)
    assert timing.conditions.runtime == "torch"
    with pytest.raises(LatencyError, match=r"runtime 'onnxruntime' cannot read .*net\.pt"):
        measure(torchscript, runtime="onnxruntime", **QUICK)  # type: ignore[arg-type]


@pytest.mark.slow
def test_measure_finds_the_runtime_of_a_file(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    for options in ({}, {"uint8_input": True}):
        file = tmp_path / f"net{len(options)}.onnx"
        deploy.export(small(), file, threads=1, measure=False, **options)  # type: ignore[arg-type]
        timing = measure(file, batch_size=2, **QUICK)  # type: ignore[arg-type]
        assert (timing.conditions.runtime, timing.conditions.batch_size) == ("onnxruntime", 2)


def test_a_bench_plans_files_for_the_runtimes_that_read_them(torchscript: Path, tmp_path: Path) -> None:
    (tmp_path / "net.onnx").touch()
    models = open_models(["proxyless_cifar10_demo", tmp_path / "net.onnx", torchscript], tmp_path)[0]

    def planned(*settings: Settings) -> list[tuple[str, int, list[int]]]:
        return [(s.runtime, s.batch_size, chosen) for s, chosen in _plan(settings, models).items()]

    assert planned(Settings("torch"), Settings("torch", batch_size=8)) == [
        ("torch", 1, [0, 2]), ("torch", 8, [0, 2]), ("onnxruntime", 1, [1]), ("onnxruntime", 8, [1]),
    ]  # fmt: skip
    assert planned(Settings("openvino"), Settings("onnxruntime")) == [
        ("openvino", 1, [0, 1]), ("onnxruntime", 1, [0, 1]), ("torch", 1, [2]),
    ]  # fmt: skip


@pytest.mark.slow
def test_a_bench_measures_a_file_in_its_own_runtime(torchscript: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    deploy.export(small(), tmp_path / "net.onnx", threads=1, measure=False)
    result = bench(
        ["proxyless_cifar10_demo", tmp_path / "net.onnx", torchscript], peers=(), rounds=1, seconds=0.01
    )
    assert [(row.model.name, row.timing.conditions.runtime) for row in result.rows] == [
        ("proxyless_cifar10_demo", "torch"), ("net.pt", "torch"), ("net.onnx", "onnxruntime"),
    ]  # fmt: skip
    model = create_model(small().arch)
    assert result.rows[1].model.params == sum(p.numel() for p in model.parameters())


def test_a_file_without_a_report_has_no_size(torchscript: Path, tmp_path: Path) -> None:
    lonely = tmp_path / "lonely.pt"
    lonely.write_bytes(torchscript.read_bytes())
    found = open_models([lonely], tmp_path)[0][0]
    assert (found.params, found.macs, found.spec.input_size) == (0, 0, (3, 224, 224))
    broken: dict[str, Any] = {"input_size": [3, 32, 32], "net": {"arch": "Arch(name=)"}}
    (tmp_path / "lonely.pt.json").write_text(json.dumps(broken), encoding="utf-8")
    found = open_models([lonely], tmp_path, image_size=48)[0][0]
    assert (found.params, found.spec.input_size) == (0, (3, 48, 48))
