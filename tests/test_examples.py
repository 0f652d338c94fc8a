"""Each script of examples/ does what it says, and stays short."""

from __future__ import annotations

import importlib.util
import json
import re
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch
from latency_table_tools import little
from train_tools import noise_folder
from weights_tools import serve_real_weights, stand_in_weights

from proxylessnas.arch.spaces import read_space

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
SCRIPTS = sorted(path.name for path in EXAMPLES.glob("*.py"))
TESTED = [
    "backbone_features.py",
    "classify_photo.py",
    "demo.py",
    "latency_table.py",
    "onnx_model.py",  # with the serve*.py in test_examples_serve.py
    "search_model.py",
    "serve.py",
    "serve_budgets.py",
    "serve_limits.py",
    "serve_uploads.py",
    "transfer_head.py",
]


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{Path(name).stem}", EXAMPLES / name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_script_is_tested_here() -> None:
    assert SCRIPTS == TESTED


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_thin(name: str) -> None:
    assert len((EXAMPLES / name).read_text(encoding="utf-8").splitlines()) <= 80


def test_classify_photo(capsys: pytest.CaptureFixture[str]) -> None:
    stand_in_weights(["proxyless_w025_r112"])
    photos = [str(EXAMPLES / "photos" / name) for name in ("cat.jpg", "coffee.jpg")]
    assert load("classify_photo.py").main([*photos, "--model", "proxyless_w025_r112"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == photos[0]
    assert lines[6] == photos[1]
    assert len(lines) == 12
    assert all("%" in line for i, line in enumerate(lines) if i % 6)


def test_classify_photo_with_the_real_weights(
    shared_data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with serve_real_weights(shared_data / "weights") as url:
        monkeypatch.setenv("PROXYLESSNAS_WEIGHTS_URL", url)
        cat, coffee = (str(EXAMPLES / "photos" / name) for name in ("cat.jpg", "coffee.jpg"))
        assert load("classify_photo.py").main([cat, coffee, "--model", "proxyless_w03_r176"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "cat" in lines[1]
    assert "espresso" in lines[7]


@pytest.mark.parametrize("name", ["proxyless_mobile", "proxyless_w025_r112"])
def test_backbone_features(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert load("backbone_features.py").main(["--model", name, "--size", "64"]) == 0
    lines = capsys.readouterr().out.splitlines()
    strides = [int(line.split()[1]) for line in lines[1:-1]]
    assert strides == sorted(set(strides))
    if name == "proxyless_mobile":
        assert strides == [2, 4, 8, 16, 32]
        assert "[2, 64, 8, 8], [2, 64, 4, 4], [2, 64, 2, 2]" in lines[-1]


def test_transfer_head(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two textures are told apart, even by the embeddings of a random model; the saved model loads again."""
    from PIL import Image

    import proxylessnas

    stand_in_weights(["proxyless_w025_r112"])
    generator = torch.Generator().manual_seed(0)
    for kind, period in (("fine", 4), ("coarse", 32)):
        (tmp_path / "photos" / kind).mkdir(parents=True)
        for i in range(15):
            stripes = (torch.arange(128) // period % 2 * 200).expand(128, 128)
            noisy = (stripes + torch.randint(0, 50, (128, 128), generator=generator)).to(torch.uint8)
            Image.fromarray(noisy.numpy()).save(tmp_path / "photos" / kind / f"{i}.png")
    out = tmp_path / "mine.safetensors"
    arguments = [str(tmp_path / "photos"), "--model", "proxyless_w025_r112", "--out", str(out)]
    assert load("transfer_head.py").main(arguments) == 0
    assert "validation: 6 of 6 right" in capsys.readouterr().out
    again = proxylessnas.create_model(out)
    assert again.categories == ("coarse", "fine")
    found = again.predict(tmp_path / "photos" / "fine" / "0.png", top=1)[0]
    assert found.name == "fine"


def _demo(folder: Path, *options: str) -> None:
    """Run the demo, with nothing but what the repository holds."""
    pytest.importorskip("matplotlib", reason="the demo draws images")
    assert load("demo.py").main(["--out", str(folder), *options]) == 0
    for name in ("confusion.png", "curves.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")


def test_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With few digits, for an epoch: every part works."""
    _demo(tmp_path / "run", "--limit", "10", "--epochs", "1")
    text = capsys.readouterr().out
    assert "in the package" in text
    assert text.count("right ") + text.count("WRONG ") == 6
    assert text.count("right ") >= 4
    assert "learns 10 digits from 100 handwritten ones" in text
    assert "% of 100 other digits right, which it was not trained on" in text


@pytest.mark.slow
def test_the_whole_demo_is_quick_and_learns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = time.monotonic()
    _demo(tmp_path / "run")
    assert time.monotonic() - start < 180
    found = re.search(r"([\d.]+) % of 359 other digits", capsys.readouterr().out)
    assert found is not None
    assert float(found[1]) > 97


def test_photos_have_a_licence_note() -> None:
    note = (EXAMPLES / "photos" / "README.md").read_text(encoding="utf-8")
    photos = sorted((EXAMPLES / "photos").rglob("*.jpg"))
    assert len(photos) == 8
    for photo in photos:
        part = note.split("## ")[photo.parent.name == "cifar10"]
        (line,) = [line for line in part.splitlines() if line.startswith(f"| `{photo.name}` |")]
        assert "CC0" in line or "public domain" in line
        assert photo.stat().st_size < 60_000


def test_latency_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "table.json"
    assert load("latency_table.py").main(["--out", str(table), "--nets", "4", "--minutes", "0.01"]) == 0
    text = capsys.readouterr().out
    assert "28 of 28" in text
    assert table.exists()


def _search(folder: Path, *options: str) -> None:
    assert load("search_model.py").main(["--out", str(folder), *options]) == 0


def test_search_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a table that is there, on own images: a model within the target, that names its classes."""
    import proxylessnas

    noise_folder(tmp_path / "photos", classes=3, a_class=60)
    table = little(space=read_space("tiny").replace(num_classes=3))
    out = tmp_path / "out"
    out.mkdir()
    table.save(out / "table.json")
    _search(out, "--data", str(tmp_path / "photos"), "--epochs", "1")
    printed = capsys.readouterr()
    assert "of its 8,000 models suits 144 images best" in printed.out
    assert "% of 36 images that the search never saw are right" in printed.out
    assert "the latency table is not to be trusted" in printed.err
    assert "not measured: device_name was a test" in printed.err
    result = json.loads((out / "net" / "result.json").read_text())
    middle = sum(table.range_ms()) / 2
    assert 0.85 * middle <= result["predicted_ms"] <= result["limits"]["latency"]
    assert result["limits"]["latency"] == pytest.approx(middle)
    model = proxylessnas.create_model(out / "net" / "child.safetensors")
    assert model.categories == ("class0", "class1", "class2")


def test_search_model_where_latency_cannot_be_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As on a machine that is too busy: it aims at multiply-accumulates then."""
    (tmp_path / "table.json").write_text("{}", encoding="utf-8")
    _search(tmp_path, "--epochs", "1")
    printed = capsys.readouterr()
    assert "So the search has another aim" in printed.out
    assert "suits 1,438 images best" in printed.out
    assert json.loads((tmp_path / "net" / "result.json").read_text())["limits"] == {"macs": 1.7}


@pytest.mark.slow
def test_a_whole_search_is_quick_and_learns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = time.monotonic()
    _search(tmp_path)
    assert time.monotonic() - start < 150
    found = re.search(r"([\d.]+) % of 359 images", capsys.readouterr().out)
    assert found is not None
    assert float(found[1]) > 80
