"""`proxylessnas export`: what it prints, and how every fault ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cli_tools import Run, runner
from deploy_tools import small

from proxylessnas import save_weights
from proxylessnas.data.named import load_digits
from proxylessnas.deploy.quantization import onnx as onnx_int8
from proxylessnas.deploy.quantization import quantize as choose
from proxylessnas.utils import files as placing


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return runner(capsys, "export")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_weights(small(), tmp_path / "tuned.safetensors")


def test_the_table(run: Run, model: Path, tmp_path: Path) -> None:
    ran = run(model, tmp_path / "net.pt", "--no-measure", "--threads", 1)
    assert ran.code == 0, ran.err
    for text in (
        "net.pt", "TorchScript, 0.1 MB, sha256 ", "tuned, input 3 x 32 x 32, any batch",
        "architecture, preprocessing, 5 class names", "net.pt.json",
        "compared with PyTorch on photos of examples/photos", "same class", "torch ",
    ):  # fmt: skip
        assert text in ran.out, text
    assert [line.split()[:3] for line in ran.out.splitlines() if line.startswith("images")] == [
        ["images", "1", "4"], ["images", "2", "4"], ["images", "7", "14"],
    ]  # fmt: skip
    assert "latency" not in ran.out


def test_json(run: Run, model: Path, tmp_path: Path) -> None:
    ran = run(model, tmp_path / "net.pt", "--no-measure", "--json")
    assert ran.json == json.loads((tmp_path / "net.pt.json").read_text(encoding="utf-8"))
    ran = run(model, tmp_path / "net.pt", "--no-measure", "--json")
    assert ran.code == 1
    assert ran.json["error"]["type"] == "ExportError"
    assert ran.json["error"]["message"].endswith("net.pt: exists already: --force replaces it")
    assert run(model, tmp_path / "net.pt", "--no-measure", "--quiet", "--force").out == ""


def test_latencies_are_measured_by_turns(run: Run, model: Path, tmp_path: Path) -> None:
    ran = run(model, tmp_path / "net.pt", "--threads", 1)
    assert ran.code == 0, ran.err
    assert "latency of a call, 1 thread, batch 1, measured by turns on" in ran.out
    latency = json.loads((tmp_path / "net.pt.json").read_text(encoding="utf-8"))["latency"]
    assert [row["runtime"] for row in latency] == ["torch (eager)", ".pt in torch"]
    assert latency[0]["speedup"] == 1.0
    assert latency[1]["median_ms"] > 0


def test_onnx_with_all_its_options(run: Run, model: Path, repo: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    ran = run(
        model, tmp_path / "net.onnx", "--uint8-input", "--opset", 20, "--batch-size", 2, "--input-size", 48,
        "--images", repo / "examples" / "photos" / "cifar10", "--tolerance", 0.05, "--no-measure",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert "uint8 images [2, 3, H, W], batch 2" in ran.out
    assert f"images of {repo / 'examples' / 'photos' / 'cifar10'}" in ran.out


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return a folder of as many images as INT8 takes at least."""
    from PIL import Image

    (tmp_path / "photos").mkdir()
    for i, pixels in enumerate(load_digits()[0][:8]):
        Image.fromarray(pixels.numpy()).save(tmp_path / "photos" / f"{i}.png")
    return tmp_path / "photos"


def test_int8_that_is_not_faster_is_said_first(
    run: Run, model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is kept, and the exit code 1, unless that is allowed. What was measured is made up here."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    out = tmp_path / "net.onnx"
    words = (
        model,
        out,
        "--int8",
        "--calibrate",
        photos,
        "--min-agreement",
        0.01,
        "--no-measure",
        "--threads",
        1,
    )
    # One scheme is enough here.
    monkeypatch.setattr(onnx_int8, "schemes", lambda isa: ["minmax" if isa == "vnni" else "minmax+7bit"])
    monkeypatch.setattr(choose, "by_turns", lambda programs, x, batch: [1.0, 1.25])
    said = (
        "INT8 is not faster than float32 here: 1.25 ms an image against 1.00 (0.80 times as fast, 1 thread)"
    )
    ran = run(*words, "--target-isa", "vnni")
    assert (ran.code, ran.out.splitlines()[0]) == (1, said)
    assert f"error: {out}: {said}; it is written all the same (--allow-slower accepts that)\n" in ran.err
    assert "exact on vnni only: x86 processors without it cut off sums of" in ran.out
    written = out.read_bytes()
    assert json.loads((tmp_path / "net.onnx.json").read_text(encoding="utf-8"))["int8"]["faster"] is False
    assert (run(*words).code, out.read_bytes()) == (1, written), "it is there already"
    ran = run(*words, "--force", "--allow-slower", "--json")
    assert (ran.code, "error" in ran.err) == (0, False)
    assert (ran.json["int8"]["faster"], ran.json["int8"]["exact_on"]) == (False, ["avx2", "vnni"])
    assert out.read_bytes() != written
    monkeypatch.setattr(choose, "by_turns", lambda programs, x, batch: [1.25, 1.0])
    ran = run(*words, "--force")
    assert (ran.code, "not faster" in ran.out + ran.err) == (0, False)
    assert ran.out.splitlines()[0] == str(out)


def test_an_exported_file_is_no_model(run: Run, model: Path, tmp_path: Path) -> None:
    assert run(model, tmp_path / "net.pt", "--no-measure").code == 0
    ran = run(tmp_path / "net.pt", tmp_path / "again.pt", "--no-measure")
    assert (ran.code, "net.pt: is an exported file already" in ran.err) == (1, True)


def test_what_a_killed_export_left_goes(run: Run, model: Path, tmp_path: Path) -> None:
    """Of a process that is no more, of this machine, for the same file."""
    done = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True
    )
    left, mine, other = (
        tmp_path / f".{name}-{placing._HOST}-{pid}-abc_1.tmp"
        for name, pid in (("net.pt", int(done.stdout)), ("net.pt", os.getpid()), ("a.pt", int(done.stdout)))
    )
    for folder in (left, mine, other):
        folder.mkdir()
        (folder / "draft").write_text("half a file")
    assert run(model, tmp_path / "net.pt", "--no-measure").code == 0
    assert [folder.exists() for folder in (left, mine, other)] == [False, True, True]


def test_random_weights_on_request(run: Run, tmp_path: Path) -> None:
    ran = run(
        "proxyless_w025_r112", tmp_path / "net.safetensors", "--untrained", "--no-measure", "--threads", 1
    )
    assert ran.code == 0, ran.err
    assert "off by" in ran.out


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["{net}", "{out}.h5"], 1, "'.h5' is no known format"),
        (["{net}", "{out}/a/b.pt"], 1, "there is no folder"),
        (["nothing", "{out}.pt"], 1, "nothing"),
        (["{out}.safetensors", "{out}.pt"], 1, "net.safetensors"),
        (["{net}", "{out}.pt", "--opset", "20"], 1, ".pt files have no option --opset\n"),
        (["{net}", "{out}.pt", "--opset", "x"], 2, "--opset"),
        (["{net}", "{out}.pt", "--int8"], 2, "--int8 needs --calibrate DIR"),
        (["{net}", "{out}.pt", "--calibrate", "x"], 2, "--calibrate is for --int8"),
        (["{net}", "{out}.pt", "--target-isa", "avx2"], 2, "--target-isa is for --int8"),
        (["{net}", "{out}.pt", "--allow-slower"], 2, "--allow-slower is for --int8"),
        (["{net}", "{out}.onnx", "--int8", "--calibrate", "x", "--target-isa", "sse2"], 2, "--target-isa"),
        (["{net}", "{out}.pt", "--max-drop", "0.1"], 2, "--max-drop is for --int8"),
        (["{net}", "{out}.pt", "--untrained", "--weights", "x"], 2, "does not go with --weights"),
        (["{net}", "{out}.pt", "--litert-python", "x"], 2, "is for .tflite files"),
        (["{net}", "{out}.pt", "--qat-epochs", "1"], 2, "--qat-epochs is for --int8"),
        (["{net}", "{out}.onnx", "--int8", "--calibrate", "x", "--qat-epochs", "1"], 2, "go together"),
        (["{net}", "{out}.onnx", "--int8", "--calibrate", "x", "--max-drop", "2"], 2, "--max-drop"),
        (["{net}", "{out}.pt", "--images", "{out}"], 1, "no such folder"),
        (["{net}", "{out}.pt", "--batch-size", "2"], 1, ".pt files have no option --batch-size\n"),
        (["{net}", "{out}.pt", "--tolerance", "2"], 2, "--tolerance"),
        (["{net}"], 2, "OUT"),
    ],
)
def test_faults(run: Run, model: Path, tmp_path: Path, words: list[str], code: int, text: str) -> None:
    place: dict[str, Any] = {"net": model, "out": tmp_path / "net"}
    ran = run(*(word.format(**place) for word in words), "--no-measure")
    assert ran.code == code
    assert text in ran.err
    assert ran.err.count("error:") == 1
    assert {p.name for p in tmp_path.iterdir()} == {"tuned.safetensors"}
