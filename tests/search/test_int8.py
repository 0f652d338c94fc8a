"""A search with a table of INT8 ends with an INT8 file, evaluated and measured; others are as before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_tools import runner
from latency_table_tools import SPACE
from report_tools import Page
from search_tools import SHORT
from train_tools import noise_folder

from proxylessnas import create_model, report
from proxylessnas.deploy import exporter
from proxylessnas.errors import ExportError
from proxylessnas.latency import Conditions, LatencyTable, space_keys
from proxylessnas.latency.table import Entry
from proxylessnas.runtimes.environment import conditions
from proxylessnas.runtimes.registry import get_runtime
from proxylessnas.runtimes.settings import Settings as RuntimeSettings
from proxylessnas.search import SearchResult, search
from proxylessnas.search import evaluate as winner
from proxylessnas.search.evaluate import Measured
from proxylessnas.search.run import derive
from proxylessnas.train import Settings

pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

HERE = SPACE.replace(stem_stride=1, resolution=8, num_classes=10)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return noise_folder(tmp_path_factory.mktemp("pictures") / "data")


def table_of(made: Conditions) -> LatencyTable:
    return LatencyTable(made, {key: Entry(0.01) for key in space_keys(HERE)}, space=HERE)


def run(data: Path, out: Path, table: LatencyTable) -> SearchResult:
    recipe = SHORT.replace(target_macs_m=None, target_ms=table.range_ms()[1])
    settings = Settings(out, device="cpu", workers=0, console=False)
    return search(HERE, data, recipe, out=settings, table=table, force=True)


def test_the_model_is_exported_evaluated_and_measured(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(winner, "_SECONDS", 3.0)
    monkeypatch.setattr(winner, "_LEAST_SECONDS", 0.2)
    asked = RuntimeSettings("onnxruntime", dtype="int8")
    table, out = table_of(conditions(asked, get_runtime("onnxruntime"))), tmp_path / "run"
    result = run(data, out, table)
    found: Any = result.int8
    assert (result.measured_ms or 0) > 0
    assert found["measured_ms"] > 0
    assert "first" not in found["scheme"]
    assert json.loads((out / "result.json").read_text())["int8"] == found
    # The float32 figure is the search's own: the same images.
    assert found["top1_float32"] == pytest.approx(result.top1)
    written = json.loads((out / f"{found['file']}.json").read_text())
    tried = [scheme["scheme"] for scheme in written["int8"]["tried"]]
    assert tried
    assert not any("float" in scheme for scheme in tried)
    assert written["int8"]["top1_int8"] == found["top1_int8"]
    held_out = len((out / "validation.txt").read_text().splitlines())
    assert (found["images"], written["int8"]["calibrated_on"]) == (held_out, "the calibration images")
    # It is the child: its logits are near those of the file with its weights.
    model, x = create_model(out / "child.safetensors").eval(), torch.randn(4, 3, 8, 8)
    session = ort.InferenceSession(out / found["file"], providers=["CPUExecutionProvider"])
    logits = torch.from_numpy(session.run(None, {"images": x.numpy()})[0])
    assert (logits - model(x)).norm() < 0.3 * model(x).norm()
    # What is told.
    said = f"INT8: {found['file']}, measured {found['measured_ms']:.3f} ms"
    both = f"top-1 {found['top1_float32']:.2f} -> {found['top1_int8']:.2f} % on {held_out}"
    shown = " ".join(runner(capsys, "search")("show", out).out.split())
    assert said in shown
    assert both in shown
    assert runner(capsys, "search")("show", out, "--json").json["result"]["int8"] == found
    pytest.importorskip("matplotlib")
    report.write_report(out, tmp_path / "report.html")
    text = Page(tmp_path / "report.html").text
    assert said in text
    assert "In float32 and INT8" in text
    assert found["file"] in text
    # A finished search keeps it.
    before = (out / found["file"]).stat().st_mtime_ns
    assert run(data, out, table).int8 == found
    assert (out / found["file"]).stat().st_mtime_ns == before
    away = Measured(result.choices, 0.0, None, note="not measured: seen above")
    monkeypatch.setattr(winner, "measure_like", lambda *_: away)
    derived = derive(out, tmp_path / "derived").int8
    assert derived is not None
    assert derived["top1_int8"] == found["top1_int8"]
    assert (tmp_path / "derived" / found["file"]).is_file()


def elsewhere(**changes: Any) -> Conditions:
    known = {"runtime": "onnxruntime", "dtype": "int8", "device_name": "a phone", "versions": {"torch": "9"}}
    return Conditions(**{**known, **changes})


def test_on_another_machine_it_is_not_measured(data: Path, tmp_path: Path) -> None:
    found: Any = run(data, tmp_path / "run", table_of(elsewhere())).int8
    assert found["measured_ms"] is None
    assert "device_name was a phone" in found["measured_note"]
    assert found["top1_int8"] >= 0


def test_an_export_that_fails_loses_nothing(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise ExportError("no room")

    monkeypatch.setattr(exporter, "export", fails)
    result = run(data, tmp_path / "run", table_of(elsewhere()))
    assert result.finished
    assert result.int8 == {"note": "not exported: no room"}
    log = (tmp_path / "run" / "log.jsonl").read_text()
    assert "INT8: not exported: no room" in log
    assert not list((tmp_path / "run").glob("child-int8*"))


def test_other_tables_are_as_before(data: Path, tmp_path: Path) -> None:
    result = run(data, tmp_path / "run", table_of(elsewhere(dtype="float32")))
    assert result.int8 is None
    assert "int8" not in json.loads((tmp_path / "run" / "result.json").read_text())
