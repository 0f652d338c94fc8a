"""No process that is started runs files of the folder it is started in."""

from __future__ import annotations

import argparse
import contextlib
import importlib.machinery
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

import proxylessnas
from proxylessnas import create_model
from proxylessnas.cli._arguments import import_modules
from proxylessnas.deploy.bundle import open_bundle
from proxylessnas.deploy.formats import litert as litert_format
from proxylessnas.deploy.settings import ExportOptions
from proxylessnas.errors import LatencyError, MissingExtraError, ProxylessError
from proxylessnas.latency.kit import runner as kit_runner
from proxylessnas.latency.worker import Worker
from proxylessnas.report.draw_search import write_movie
from proxylessnas.runtimes.settings import Settings
from proxylessnas.train.evaluate import read_batches
from proxylessnas.utils import subprocesses as children
from proxylessnas.utils.subprocesses import COMMAND_LINE, find_program, python_command

TRAP = """
import os, sys
if not sys.modules.get("pytest"):
    open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "RAN"), "a").write(__name__ + "\\n")
    raise SystemExit(3)
"""


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Work in a folder whose modules stand in for any library; at the end none of them may have run."""
    folder = tmp_path / "trap"
    folder.mkdir()
    for name in (*sys.stdlib_module_names, "torch", "numpy", "proxylessnas", "sitecustomize", "onnxruntime"):
        (folder / f"{name}.py").write_text(TRAP)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", ".")])
    monkeypatch.delenv("PYTHONPATH", raising=False)
    yield folder
    assert not (folder / "RAN").exists(), (folder / "RAN").read_text()


def test_the_trap_works(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text(TRAP)
    subprocess.run([sys.executable, "-c", "import json"], cwd=tmp_path, check=False)
    assert (tmp_path / "RAN").read_text() == "json\n"


WHERE = """
import json, os, sys, proxylessnas, mine
print(json.dumps([proxylessnas.__file__, mine.X, sys.argv[1:]]))
"""


@pytest.mark.parametrize("entry", ["", "."])
def test_python_finds_this_package_and_modules_of_the_working_folder(
    trap: Path, monkeypatch: pytest.MonkeyPatch, entry: str
) -> None:
    (trap / "mine.py").write_text("X = 'of the user'")
    monkeypatch.setattr(sys, "path", [entry, *sys.path])
    monkeypatch.setenv("PYTHONSTARTUP", "json.py")
    done = subprocess.run(
        python_command(WHERE, 1, "a b", working_folder=True), capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == f'["{proxylessnas.__file__}", "of the user", ["1", "a b"]]'


@pytest.mark.parametrize("asked", [True, False])
def test_the_working_folder_is_not_searched_unless_asked_for_and_on_the_path(
    trap: Path, monkeypatch: pytest.MonkeyPatch, asked: bool
) -> None:
    (trap / "mine.py").write_text("X = 1")
    monkeypatch.setattr(sys, "path", [*sys.path, *([] if asked else [""])])
    words = python_command(WHERE, working_folder=asked)
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert "No module named 'mine'" in done.stderr


def test_this_package_comes_from_its_place_and_not_from_the_path(
    trap: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As torch.hub has it, which takes its folder off the path again; here another one is on it first."""
    root = Path(proxylessnas.__file__).parent.parent
    monkeypatch.setattr(sys, "path", [str(trap), *(e for e in sys.path if Path(e).resolve() != root)])
    found = children._START.format(user_sites=[], path=sys.path[1:], package=proxylessnas.__file__)
    assert "proxylessnas" not in found.splitlines()[3]
    words = python_command("import proxylessnas.models.layers; print(proxylessnas.models.layers.__file__)")
    words[3] = words[3].replace(repr(str(trap)) + ", ", "")  # else its json.py is what the user chose
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()).parent == root / "proxylessnas" / "models"


def test_the_command_line_as_a_program(trap: Path) -> None:
    words = python_command(COMMAND_LINE, "--version")
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout == f"proxylessnas {proxylessnas.__version__}\n"


def test_the_measuring_process(trap: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    with Worker(Settings()) as worker:
        assert worker.conditions.settings == Settings()
    monkeypatch.setattr(sys, "executable", "")
    with pytest.raises(LatencyError, match="no Python interpreter"):
        Worker(Settings())


def test_the_measuring_process_with_modules_of_the_user(trap: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are found, and stand in for no library; nor do processes run them that are started in it."""
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    for file in trap.glob("*.py"):
        if (
            file.stem not in sys.modules
            and importlib.machinery.PathFinder.find_spec(file.stem, sys.path[1:]) is None
        ):
            file.unlink()  # not of this system, so it is found here if it is anywhere
    inner = "import subprocess, sys\nsubprocess.run([sys.executable, '-m', 'tokenize', '-h'], check=True)\n"
    (trap / "my_ops.py").write_text(inner if sys.version_info >= (3, 11) else "")
    with Worker(Settings(), imports=["my_ops"]) as worker:
        assert worker.conditions.settings == Settings()


def test_import_looks_into_the_working_folder_last(trap: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (trap / "my_other_ops.py").write_text("")
    before = list(sys.path)
    import_modules(argparse.Namespace(imports=["my_other_ops"]))
    assert sys.path == [*before, str(trap)]
    monkeypatch.delitem(sys.modules, "my_other_ops")


def test_workers_that_read_images(trap: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if sys.version_info < (3, 11):
        pytest.skip("Python 3.10 knows no PYTHONSAFEPATH")
    Image.new("RGB", (3, 3)).save(tmp_path / "a.png")
    monkeypatch.setattr(multiprocessing.context._default_context, "_actual_context", None)
    multiprocessing.set_start_method("spawn")
    batches = list(read_batches([(str(tmp_path / "a.png"), 5)], mean_of, 1, 1))
    assert [y.tolist() for _, y, _ in batches if y is not None] == [[5]]
    assert "PYTHONSAFEPATH" not in os.environ


def mean_of(image: Image.Image) -> torch.Tensor:
    return torch.zeros(1)


def test_the_converter_for_litert(trap: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(litert_format.VARIABLE, sys.executable)
    (trap / "litert_torch.py").write_text(TRAP)
    subject = open_bundle(create_model("proxyless_cifar10_demo"))
    with contextlib.suppress(MissingExtraError):  # it has none, as a rule
        litert_format.convert(subject, trap / "a.tflite", ExportOptions(batch_size=1))


def test_the_program_of_a_kit(trap: Path) -> None:
    words = [sys.executable, kit_runner.__file__, "--help"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "--rounds" in done.stdout


@pytest.mark.skipif(os.name != "posix", reason="a script as a program")
def test_programs_of_the_working_folder_are_not_found(trap: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ffmpeg", "python"):
        (trap / name).write_text("#!/bin/sh\ntouch RAN\n")
        (trap / name).chmod(0o755)
    monkeypatch.setenv("PATH", f":.{os.pathsep}")
    assert find_program("ffmpeg") is None
    with pytest.raises(ProxylessError, match="ffmpeg, which is not installed"):
        write_movie(None, "a.mp4")  # type: ignore[arg-type]
    monkeypatch.setenv(litert_format.VARIABLE, "python")
    with pytest.raises(MissingExtraError, match="is no program"):
        litert_format.converter_python()
    monkeypatch.setenv("PATH", f".{os.pathsep}{trap}")  # named in full, it is what the user chose
    assert find_program("ffmpeg") == str(trap / "ffmpeg")
    assert find_program("./ffmpeg") == "./ffmpeg"
