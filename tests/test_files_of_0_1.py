"""What version 0.1 wrote is still opened, understood and resumed; fixtures/v0_1/make.py made the files."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from proxylessnas import Arch, create_model
from proxylessnas.arch.spaces import read_space
from proxylessnas.latency import LatencyTable
from proxylessnas.search import read_search_recipe
from proxylessnas.train import read_recipe

FILES = Path(__file__).resolve().parent / "fixtures" / "v0_1"
X = torch.linspace(-1, 1, 3 * 64).reshape(1, 3, 8, 8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(FILES, tmp_path_factory.mktemp("files") / "v0_1"))


def command(*words: object, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "proxylessnas", *map(str, words)],
        cwd=cwd, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("weights", ["mini.safetensors", "mini.pth"])
def test_weights_give_the_logits_they_gave(weights: str, folder: Path) -> None:
    given = {} if weights.endswith(".safetensors") else {"weights": folder / weights}
    model = create_model(folder / ("mini.txt" if given else weights), **given).eval()
    expected = torch.tensor(json.loads((folder / "logits.json").read_text()))
    torch.testing.assert_close(model(X), expected)


def test_architectures_as_text_and_as_the_original_json(folder: Path) -> None:
    arch = Arch.parse((folder / "mini.txt").read_text())
    again = Arch.from_official(json.loads((folder / "mini.json").read_text()))
    assert arch.to_official() == again.to_official()
    assert Arch.parse(str(arch)) == arch


def test_exported_files(folder: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(folder / "mini.onnx", providers=["CPUExecutionProvider"])
    expected = torch.tensor(json.loads((folder / "logits.json").read_text()))
    found = session.run(None, {session.get_inputs()[0].name: X.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-5)
    assert "onnxruntime" in command("latency", "measure", "mini.onnx", "--seconds", "0.1", cwd=folder)


def test_recipes(folder: Path) -> None:
    recipe = read_recipe(folder / "train.toml")
    assert (recipe.epochs, recipe.batch_size, recipe.mixup_alpha) == (7, 128, 0.2)
    search = read_search_recipe(folder / "search.toml")
    assert search.target_macs_m == 0.12
    assert search.weights.batch_size == read_search_recipe("tiny").weights.batch_size


def test_spaces_and_tables(folder: Path) -> None:
    space = read_space(folder / "space.toml")
    table = LatencyTable.load(folder / "table.json")
    assert table.space == space
    assert table.statistic == "undisturbed"
    assert table.predict(space.arch([0] * len(space.search_blocks))) > 0
    assert "8 of 8 operations" in command("latency", "show", "table.json", cwd=folder)


def test_a_finished_training_run(folder: Path) -> None:
    assert create_model(folder / "train-done" / "model.safetensors").categories == tuple("0123456789")
    command("report", "train-done", "-o", "train.html", cwd=folder)
    assert "train-done" in (folder / "train.html").read_text(encoding="utf-8")


def test_a_stopped_training_run_is_resumed(folder: Path) -> None:
    words = "train mini.txt digits --recipe small-images --epochs 3 --limit 20 --save-every 5 --batch-size 32"
    told = command(*words.split(), "--set", "cutout=0", "--out", "train-stopped", cwd=folder)
    assert "continued from step 6" in told
    assert (folder / "train-stopped" / "model.safetensors").exists()


def test_a_finished_search(folder: Path) -> None:
    result = json.loads((folder / "search-done" / "result.json").read_text())
    assert str(create_model(folder / "search-done" / "child.safetensors").arch) == result["arch"]
    told = command("search", "show", "search-done", cwd=folder)
    assert "0.12 M" in told
    command("search", "derive", "search-done", "--target-macs", "0.1", "--out", "derived", cwd=folder)
    command("report", "search-done", "-o", "search.html", cwd=folder)


def test_a_stopped_search_is_resumed(folder: Path) -> None:
    told = command("search", "resume", "search-stopped", cwd=folder)
    assert "continued from step 11" in told
    assert (folder / "search-stopped" / "child.safetensors").exists()
