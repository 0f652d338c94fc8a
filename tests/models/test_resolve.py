"""A model that was made from a published one has a name and a size of its own, wherever it is shown."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_tools import runner

from proxylessnas import Preprocessing, create_model, load_weights, profile, save_weights
from proxylessnas.deploy.bundle import open_bundle as exported
from proxylessnas.errors import UnknownModelError
from proxylessnas.latency.benchmark_models import open_models
from proxylessnas.models.resolve import name_of_file, resolve
from proxylessnas.report.resolve import open_subject as drawn

ZOO = "proxyless_w03_r176"
MACS_64 = 4806272  # of that architecture for ten classes at 64 px


@pytest.fixture
def tuned(tmp_path: Path) -> Path:
    """Return the file that a fine-tuning for images of 64 px leaves in its folder."""
    model = create_model(ZOO, num_classes=10)
    model.preprocessing = Preprocessing(64, 64)
    (tmp_path / "kitchen").mkdir()
    return save_weights(model, tmp_path / "kitchen" / "model.safetensors")


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("runs/kitchen/model.safetensors", "kitchen"),
        ("runs/kitchen/child.safetensors", "kitchen"),
        ("runs/kitchen/arch.txt", "kitchen"),
        ("runs/kitchen/tuned.safetensors", "tuned"),
        ("runs/kitchen/checkpoint.pth", "checkpoint"),
        ("mine.txt", "mine"),
        ("/model.safetensors", "model"),
    ],
)
def test_a_model_is_called_like_its_file_or_run(file: str, name: str) -> None:
    assert name_of_file(file) == name


def test_names(tuned: Path, tmp_path: Path) -> None:
    other = save_weights(create_model(tuned), tmp_path / "spoons.safetensors")
    model = create_model(ZOO, num_classes=10)
    assert model.name == ZOO
    load_weights(model, tuned)
    found = [
        create_model(tuned).name,
        model.name,
        drawn(tuned).name,
        exported(tuned).name,
        exported(model).name,
    ]
    assert set(found) == {"kitchen"}
    assert exported(tuned).metadata()["name"] == "kitchen"
    models, _ = open_models([tuned, other, ZOO], tmp_path)
    assert [each.name for each in models] == ["kitchen", "spoons", ZOO]
    assert [each.top1 for each in models] == [None, None, 57.0], "the zoo's figures are not theirs"


def test_the_command_line_says_the_name(tuned: Path, repo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = runner(capsys)
    photo = next((repo / "examples" / "photos" / "cifar10").glob("*.jpg"))
    assert run("predict", tuned, photo, "--json").json["net"] == "kitchen"
    assert run("predict", ZOO, "--weights", tuned, photo, "--json").json["net"] == "kitchen"
    facts = run("info", tuned, "--json").json
    assert (facts["name"], facts["input_size"], facts["macs"]) == ("kitchen", 64, MACS_64)


def test_sizes(tuned: Path, tmp_path: Path) -> None:
    """What is counted and measured is a call with the images that the model is for."""
    model = create_model(tuned)
    assert model.input_size == (3, 64, 64)
    assert profile(model) == profile(model, 64) == profile(model, (3, 64, 64))
    assert profile(model).macs == MACS_64
    (benched,), _ = open_models([tuned], tmp_path)
    assert (benched.spec.input_size, benched.macs) == ((3, 64, 64), MACS_64)


def test_what_a_caller_names(tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One function tells names, files, architectures and modules apart, and reads nothing unasked."""
    model = create_model(ZOO)
    (tmp_path / "mine.txt").write_text(str(model.arch))
    nowhere = resolve("nowhere/net.pth")
    assert (nowhere.kind, nowhere.path, nowhere.weights) == ("weights file", Path("nowhere/net.pth"), None)
    found = [
        resolve(what) for what in ("Proxyless-W03-R176", tuned, tmp_path / "mine.txt", model.arch, model)
    ]
    assert [each.kind for each in found] == ["zoo", "weights file", "arch file", "arch", "module"]
    assert [each.name for each in found] == [ZOO, "kitchen", "mine", ZOO, ZOO]
    assert [each.given for each in found] == [
        "Proxyless-W03-R176", str(tuned), str(tmp_path / "mine.txt"), None, None,
    ]  # fmt: skip
    assert {each.arch.last for each in found} == {model.arch.last}
    assert found[0].weights is not None
    assert [each.weights for each in found[1:]] == [None] * 4
    assert found[4].module is model
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnknownModelError, match="no file or folder is called so"):
        resolve("kitchn")
    with pytest.raises(UnknownModelError, match="no file is called so"):
        resolve("kitchen")
    with pytest.raises(TypeError, match="must be a module, an architecture, a zoo name or a file, not 3"):
        resolve(3)
