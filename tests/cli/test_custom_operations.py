"""Operations of a module of one's own, from a search to an exported file, with ``--import`` and without."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from cli_tools import Run, runner

from proxylessnas import Arch, ArchError, Stage, WeightsMismatchError, create_model, load_weights, register_op
from proxylessnas.arch import ops as registration
from proxylessnas.arch.spaces import read_space
from proxylessnas.latency.worker import Worker
from proxylessnas.runtimes.base import ModelSpec
from proxylessnas.runtimes.settings import Settings
from proxylessnas.utils.tensor_files import read_metadata

MODULE, TOKEN = "ops_of_one_s_own", "own_plain3"
CODE = f"""
from torch import nn
from proxylessnas import register_op

class Plain(nn.Sequential):
    def __init__(self, inputs, outputs, stride):
        super().__init__(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs))

register_op("{TOKEN}", Plain)
"""
SPACE = f"""
stem = 8
first = 8
last = 16
resolution = 16
candidates = ["{TOKEN}"]
zero = false
stages = [{{ width = 8, stride = 2, blocks = 1 }}]
"""
NOTE = f"# operation {TOKEN}: registered by {MODULE}"
HINT = f"operation '{TOKEN}', registered by module '{MODULE}': add --import {MODULE} (in Python: import"


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this process one that has not imported the module; the next import is the first."""
    monkeypatch.delitem(registration._custom_ops, TOKEN)
    monkeypatch.delitem(registration._modules, TOKEN)
    monkeypatch.delitem(sys.modules, MODULE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a folder with the module, a space, the search in it and an image; it is the working folder."""
    from PIL import Image

    from proxylessnas.cli import main

    folder = tmp_path_factory.mktemp("own")
    (folder / f"{MODULE}.py").write_text(CODE, encoding="utf-8")
    (folder / "mine.toml").write_text(SPACE, encoding="utf-8")
    Image.new("RGB", (16, 16), (9, 99, 9)).save(folder / "p.png")
    words = "search run --space mine.toml --data digits --recipe tiny --epochs 1 --warmup-epochs 1 --limit 8"
    words += f" --set recalibrate_batches=1 --threads 1 --system-malloc --quiet --out run --import {MODULE}"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", list(sys.path))
        assert main(words.split()) == 0
        yield folder
    registration._custom_ops.pop(TOKEN)
    sys.modules.pop(MODULE)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path) -> Run:
    monkeypatch.chdir(folder)
    return runner(capsys)


TRAIN = "--limit 2 --epochs 1 --threads 1 --system-malloc --quiet"
COMMANDS = {
    "info": "info run/child.safetensors",
    "info of an architecture": "info run/arch.txt",
    "predict": "predict run/child.safetensors p.png --top 1",
    "eval": "eval run/child.safetensors digits --limit 10 --workers 1 --quiet",
    "train": f"train run/arch.txt digits --workers 0 --out trained {TRAIN}",
    "finetune": f"finetune run/child.safetensors digits --workers 1 --out tuned {TRAIN}",
    "export": "export run/child.safetensors own.onnx --no-measure --force",
    "export again": "export run/child.safetensors own.safetensors --no-measure --force",
    "plot": "plot run",
    "report": "report run",
    "search show": "search show run",
    "search derive": "search derive run -o derived --threads 1",
    "latency measure": "latency measure run/child.safetensors --seconds 0.01",
    "bench": "bench run/child.safetensors --quiet",
}


@pytest.mark.parametrize("name", COMMANDS)
def test_without_the_module_every_command_names_it(
    name: str, run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget(monkeypatch)
    before = set(folder.rglob("*"))
    done = run(*COMMANDS[name].split())
    assert done.code == 1
    assert HINT in done.err
    assert MODULE not in sys.modules, "what a file names must never be imported"
    assert set(folder.rglob("*")) == before


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ("bench", "latency measure")])
def test_with_the_module_every_command_works(
    name: str, run: Run, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    forget(monkeypatch)
    done = run(*COMMANDS[name].split(), "--import", MODULE)
    assert done.code == 0, done.err
    if name == "finetune":
        assert f"PICTURE --import {MODULE}" in done.err
        assert run("predict", "tuned/model.safetensors", "p.png", "--import", MODULE).code == 0
    if name == "export":
        texts = {
            entry.key: entry.value for entry in pytest.importorskip("onnx").load("own.onnx").metadata_props
        }
        assert texts["arch"].splitlines()[-1] == NOTE


def test_a_module_that_is_not_there_is_wrong_usage(run: Run) -> None:
    done = run("predict", "run/child.safetensors", "p.png", "--import", "no_such_module")
    assert done.code == 2
    assert "--import no_such_module: ModuleNotFoundError" in done.err


def test_files_name_the_module(folder: Path) -> None:
    for file in ("run/arch.txt", "run/space.toml"):
        assert (folder / file).read_text(encoding="utf-8").splitlines()[-1] == NOTE
    assert read_metadata(folder / "run" / "child.safetensors")["arch"].splitlines()[-1] == NOTE


def test_a_measuring_process_imports_the_module(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    spec = ModelSpec("arch", (folder / "run" / "arch.txt").read_text(encoding="utf-8"), (3, 16, 16))
    with Worker(Settings(), imports=[MODULE]) as worker:
        worker.load("own", spec)
    with Worker(Settings()) as worker, pytest.raises(ArchError) as caught:
        worker.load("own", spec)
    assert HINT in str(caught.value)


def test_python_says_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = str(create_model(folder / "run" / "child.safetensors").arch)
    forget(monkeypatch)
    for read in (
        lambda: Arch.parse(text),
        lambda: create_model(folder / "run" / "child.safetensors"),
        lambda: create_model(folder / "run" / "arch.txt"),
    ):
        with pytest.raises(ArchError) as caught:
            read()
        assert HINT in str(caught.value)
    with pytest.raises(ArchError, match=rf"space\.toml: candidates: this space uses operation '{TOKEN}'"):
        read_space(folder / "run" / "space.toml")
    with pytest.raises(ArchError, match=f"unknown operation '{TOKEN}'.*--import MODULE") as caught:
        Arch.parse(text.partition("#")[0])
    assert caught.value.line == 2


@pytest.mark.parametrize(
    "name", ["os; rm -rf /", "a b", "--force", "x" * 201, "my_ops\nerror: forged", "", "../ops"]
)
def test_a_forged_note_is_no_note(name: str) -> None:
    text = f"# operation ghost: registered by {name}"
    assert registration.noted(text) in ({}, {"ghost": "my_ops"})


def test_the_module_is_the_one_that_registers_when_it_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the one of a helper that it calls; of a call outside of any import, the one that holds the call."""
    monkeypatch.syspath_prepend(tmp_path)
    helper = "from proxylessnas import register_op\ndef add(token, build):\n    register_op(token, build)\n"
    (tmp_path / "own_helper.py").write_text(helper, encoding="utf-8")
    (tmp_path / "own_caller.py").write_text("import own_helper\nown_helper.add('own_a', int)\n", "utf-8")
    monkeypatch.setattr(registration, "_custom_ops", {})
    monkeypatch.setattr(registration, "_modules", {})
    register_op("own_here", int)
    assert registration.modules_of(["own_here"]) == {"own_here": __name__}
    import own_caller  # type: ignore[import-not-found]

    own_caller.own_helper.add("own_b", int)
    assert registration.modules_of(["own_a!", "own_b", "k3e3", "-"]) == {
        "own_a": "own_caller",
        "own_b": "own_helper",
    }


def test_a_program_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    main = ModuleType("__main__")
    main.__file__ = "/home/me/search.py"
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setattr(registration, "_custom_ops", {})
    monkeypatch.setattr(registration, "_modules", {})
    exec("register_op('own_in_main', int)", {"__name__": "__main__", "register_op": register_op})
    assert registration.modules_of(["own_in_main"]) == {"own_in_main": "search.py"}
    text = str(Arch("a", 8, 8, 8, (Stage(8, 1, "own_in_main"),)))
    monkeypatch.setattr(registration, "_custom_ops", {})
    with pytest.raises(ArchError, match=r"by the program 'search\.py': move its register_op into a module"):
        Arch.parse(text)


def test_weights_load_into_a_model_without_the_operation(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the architecture needs it: a misfit is said as one."""
    forget(monkeypatch)
    with pytest.raises(WeightsMismatchError, match="do not fit"):
        load_weights(
            create_model(Arch("b", 8, 8, 16, (Stage(8, 2, "k3e3"),))), folder / "run" / "child.safetensors"
        )
