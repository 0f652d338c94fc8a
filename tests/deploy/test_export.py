"""The flow of an export: nothing appears before it is proven, nothing is left behind, faults are one line."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from deploy_tools import COUNTS, PLAIN, small

from proxylessnas import (
    ExportError,
    MissingExtraError,
    ProxylessError,
    UnknownModelError,
    deploy,
    save_weights,
)
from proxylessnas.utils import files as placing

OLD = b"what was there before"


def export(model: Any, path: Path, progress: Any = None, **options: Any) -> Any:
    settings = deploy.ExportSettings(threads=1, measure=False, **options)
    return deploy.export(model, path, settings, progress=progress)


def names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


def test_the_report_says_what_was_done(tmp_path: Path) -> None:
    told: list[str] = []
    report = export(small(), tmp_path / "net.pt", progress=told.append)
    data = (tmp_path / "net.pt").read_bytes()
    assert [(f.name, f.bytes, f.sha256) for f in report.files] == [
        ("net.pt", len(data), hashlib.sha256(data).hexdigest())
    ]
    found = json.loads((tmp_path / "net.pt.json").read_text(encoding="utf-8"))
    assert found == report.to_dict()
    assert found["net"]["arch"].startswith("Arch('plain'")
    assert found["net"]["preprocessing"]["resize"] == 36
    assert found["net"]["named_classes"] == 5
    assert found["input_size"] == [3, 32, 32]
    assert found["latency"] == []
    assert set(found["versions"]) == {"torch"}
    assert found["pictures"] == "photos of examples/photos"
    assert [row["inputs"] for row in found["parity"][:2]] == ["pictures", "random numbers"]
    assert told == [
        "opening the model",
        "writing TorchScript",
        "comparing with the model on photos of examples/photos",
    ]
    assert "net.pt: TorchScript, 0.1 MB, off by" in str(report)


def test_the_model_given_is_left_as_it_is(tmp_path: Path) -> None:
    model = small().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    export(model, tmp_path / "net.pt", input_size=48)
    assert model.training
    assert model.preprocessing is not None
    assert model.preprocessing.input_size == 32
    assert all((model.state_dict()[key] == value).all() for key, value in before.items())


def test_a_file_of_weights_and_an_architecture_without(tmp_path: Path) -> None:
    save_weights(small(), tmp_path / "tuned.safetensors")
    report = export(tmp_path / "tuned.safetensors", tmp_path / "tuned.pt")
    assert report.bundle.name == "tuned"
    (tmp_path / "mine.txt").write_text(str(PLAIN), encoding="utf-8")
    with pytest.raises(ProxylessError, match="no weights are published for the architecture 'plain'"):
        export(tmp_path / "mine.txt", tmp_path / "mine.pt")
    assert export(tmp_path / "mine.txt", tmp_path / "mine.pt", untrained=True).bundle.name == "mine"
    again = export(tmp_path / "mine.txt", tmp_path / "it.pt", weights=tmp_path / "tuned.safetensors")
    assert again.bundle.categories[0] == "kind 0"


def test_random_weights_give_outputs_of_ordinary_size(tmp_path: Path) -> None:
    """Deep models without statistics overflow, and there would be nothing to compare."""
    report = export("proxyless_w025_r112", tmp_path / "net.safetensors", untrained=True)
    assert all(0.01 < row.largest < 100 for row in report.parity)


def test_a_file_that_is_there_is_replaced_only_by_force(tmp_path: Path) -> None:
    (tmp_path / "net.pt").write_bytes(OLD)
    with pytest.raises(ExportError, match=r"net\.pt: exists already: --force \(.*\) replaces it"):
        export(small(), tmp_path / "net.pt")
    assert (tmp_path / "net.pt").read_bytes() == OLD
    export(small(), tmp_path / "net.pt", force=True)
    assert (tmp_path / "net.pt").read_bytes() != OLD
    assert names(tmp_path) == {"net.pt", "net.pt.json"}


def test_a_file_that_fails_the_proof_leaves_the_older_one(tmp_path: Path) -> None:
    (tmp_path / "net.pt").write_bytes(OLD)
    (tmp_path / "net.pt.json").write_bytes(OLD)
    with pytest.raises(ExportError, match="nothing was kept"):
        export(small(COUNTS), tmp_path / "net.pt", force=True)
    assert names(tmp_path) == {"net.pt", "net.pt.json"}
    assert (tmp_path / "net.pt").read_bytes() == (tmp_path / "net.pt.json").read_bytes() == OLD


def test_the_tolerance_is_the_callers(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    with pytest.raises(ExportError, match=r"off by \d.*1e-09 times the largest output"):
        export(small(), tmp_path / "net.onnx", tolerance=1e-9)
    assert names(tmp_path) == set()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"int8": "int4"}, "int8 must be true or false, not 'int4'"),
        ({"int8": True, "calibrate": "photos"}, r"\.pt files are not written in int8; \.onnx, \.pte"),
        ({"calibrate": "photos"}, "`calibrate` is for `int8`"),
        ({"tolerance": 0}, "tolerance must be a number above 0"),
        ({"tolerance": True}, "tolerance must be"),
        ({"min_agreement": 2}, "min_agreement must be a number from 0 to 1"),
        ({"batch_size": 0}, "batch_size must be a whole number"),
        ({"input_size": 0}, "input_size must be a whole number"),
    ],
)
def test_wrong_options(options: dict[str, Any], text: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=text):
        export(small(), tmp_path / "net.pt", **options)
    assert names(tmp_path) == set()


def test_threads_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="threads must be a whole number from 1 to 1024, not 0"):
        deploy.export(small(), tmp_path / "net.pt", deploy.ExportSettings(threads=0))


def test_int8_needs_images(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="`int8` needs `calibrate=DIR`"):
        export(small(), tmp_path / "net.onnx", int8=True)


def test_an_unknown_model(tmp_path: Path) -> None:
    with pytest.raises(UnknownModelError):
        export("proxyless_gppu", tmp_path / "net.pt")


def test_a_runtime_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is found before the model is opened, let alone downloaded."""
    pytest.importorskip("onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'proxylessnas\[onnx\]'"):
        export("no such model", tmp_path / "net.onnx")
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'proxylessnas\[openvino\]'"):
        export("no such model", tmp_path / "net.xml")
    assert names(tmp_path) == set()


# Where it goes


def test_places_where_no_file_can_be(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"there is no folder .*nowhere"):
        export(small(), tmp_path / "nowhere" / "net.pt")
    (tmp_path / "net.pt").mkdir()
    with pytest.raises(ExportError, match=r"net\.pt: is a folder"):
        export(small(), tmp_path / "net.pt", force=True)


def test_a_read_only_folder(tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0o500)
    try:
        if os.access(folder, os.W_OK):
            pytest.skip("this user may write anywhere")
        with pytest.raises(ExportError, match=r"the folder .*locked cannot be written"):
            export(small(), folder / "net.pt")
    finally:
        folder.chmod(0o700)


@pytest.fixture
def _small_files_only() -> Iterator[None]:
    """Let the system refuse to write more than 20 KB to a file, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("_small_files_only")
@pytest.mark.parametrize("suffix", [".onnx", ".pt", ".pt2", ".xml", ".safetensors"])
def test_a_disk_that_fills_up(suffix: str, tmp_path: Path) -> None:
    for library in {".onnx": ("onnx", "onnxruntime"), ".xml": ("onnx", "openvino")}.get(suffix, ()):
        pytest.importorskip(library)
    (tmp_path / f"net{suffix}").write_bytes(OLD)
    with pytest.raises(ExportError) as caught:
        export(small(), tmp_path / f"net{suffix}", force=True)
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == {f"net{suffix}"}
    assert (tmp_path / f"net{suffix}").read_bytes() == OLD


def test_a_disk_that_is_full_already(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=300_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda where: usage)
    with pytest.raises(ExportError, match=r"the disk has 0\.3 MB left; the file needs about 1\.\d MB"):
        export(small(), tmp_path / "net.pt")
    assert names(tmp_path) == set()


INTERRUPTED = """
import sys
sys.path.insert(0, {tests!r})
from deploy_tools import small
from proxylessnas import deploy

def told(what):
    print(what, flush=True)
    if what.startswith({at!r}):
        import time
        time.sleep(60)

settings = deploy.ExportSettings(threads=1, measure=False, force=True)
deploy.export(small(), {path!r}, settings, progress=told)
"""


@pytest.mark.parametrize(
    ("at", "number", "code"), [("writing", signal.SIGINT, -signal.SIGINT), ("comparing", signal.SIGTERM, 143)]
)
def test_signals_leave_nothing(at: str, number: int, code: int, repo: Path, tmp_path: Path) -> None:
    (tmp_path / "net.pt").write_bytes(OLD)
    program = INTERRUPTED.format(tests=str(repo / "tests" / "tools"), at=at, path=str(tmp_path / "net.pt"))
    env = {**os.environ, "PYTHONPATH": f"{repo}{os.pathsep}{os.environ['PYTHONPATH']}"}
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(at):
                break
        assert len(names(tmp_path)) == 2, "the folder to work in is there"
        time.sleep(0.1)
        process.send_signal(number)
        process.communicate(timeout=60)
    assert process.returncode == code
    assert names(tmp_path) == {"net.pt"}
    assert (tmp_path / "net.pt").read_bytes() == OLD


# The last step


def drafts(tmp_path: Path, *files: str) -> tuple[list[Path], Path]:
    (tmp_path / "drafts").mkdir()
    (tmp_path / "place").mkdir()
    made = [tmp_path / "drafts" / file for file in files]
    for file in made:
        file.write_bytes(b"new " + file.name.encode())
    return made, tmp_path / "place"


def test_files_replace_older_ones(tmp_path: Path) -> None:
    made, place = drafts(tmp_path, "net.xml", "net.bin", "net.xml.json")
    for file in made:
        (place / file.name).write_bytes(OLD)
    (place / "other").write_bytes(OLD)
    placing.put_in_place(made, place)
    assert {p.name: p.read_bytes() for p in place.iterdir()} == {
        "net.xml": b"new net.xml", "net.bin": b"new net.bin", "net.xml.json": b"new net.xml.json",
        "other": OLD,
    }  # fmt: skip


@pytest.mark.parametrize("blocked", ["net.xml", "net.bin", "net.xml.json"])
@pytest.mark.parametrize("older", [True, False])
def test_what_cannot_be_moved_changes_nothing(blocked: str, older: bool, tmp_path: Path) -> None:
    made, place = drafts(tmp_path, "net.xml", "net.bin", "net.xml.json")
    for file in made:
        if file.name == blocked:
            (place / file.name).mkdir()
            (place / file.name / "inside").touch()
        elif older:
            (place / file.name).write_bytes(OLD)
    before = names(place)
    try:
        placing.put_in_place(made, place)
    except OSError:
        assert names(place) == before
        assert all(p.read_bytes() == OLD for p in place.iterdir() if p.is_file())
    else:
        assert (place / "net.xml").read_bytes() == b"new net.xml"
