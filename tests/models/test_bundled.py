"""Weights that come with the package: no network, no cache, the same checks as for all others."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from packaging_tools import run, run_uninstalled

import proxylessnas
from proxylessnas.errors import WeightsCorruptError, WeightsFetchError, WeightsNotFoundError
from proxylessnas.weights.cache import weights_path
from proxylessnas.weights.record import Weights
from proxylessnas.weights.registry import get_weights

NAME = "proxyless_cifar10_demo"


def trained_model() -> proxylessnas.ProxylessNAS:
    """Return a model whose BatchNorm statistics are as odd as those of a trained one."""
    torch.manual_seed(0)
    model = proxylessnas.proxyless_cifar10_demo()
    for name, value in model.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(1e-5, 3.0)
        elif name.endswith("running_mean"):
            value.normal_()
    model.categories = get_weights("proxyless_cifar").categories
    return model.eval()


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Weights:
    """Return the record of a file of random weights, in half precision as the real one, in a package."""
    monkeypatch.setattr("proxylessnas.weights.cache.ASSETS", tmp_path / "package")
    (tmp_path / "package").mkdir()
    path = tmp_path / "package" / "stand_in.safetensors"
    proxylessnas.save_weights(trained_model().half(), path)
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    record = get_weights(NAME)
    return dataclasses.replace(record, filename=path.name, size=len(data), sha256=digest)


@pytest.fixture
def no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return where a cache would be, if one were made: below a file, where nobody can write."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PROXYLESSNAS_CACHE", str(tmp_path / "file" / "cache"))
    return tmp_path / "file" / "cache"


@pytest.mark.usefixtures("no_cache")
@pytest.mark.parametrize("offline", ["", "1"])
def test_half_precision_becomes_float32_exactly(
    weights: Weights, offline: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without network (the tests have none) and without a cache."""
    monkeypatch.setenv("PROXYLESSNAS_OFFLINE", offline)
    model = proxylessnas.create_model(NAME, weights=weights)
    stored = trained_model().half().state_dict()
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            assert value.dtype == torch.float32, name
            assert torch.equal(value, stored[name].float()), name
    assert model.weights is weights
    assert model.categories == weights.categories
    assert model.preprocessing == weights.preprocessing
    loaded = proxylessnas.create_model(NAME)
    assert proxylessnas.load_weights(loaded, weights).missing == []
    by_path = proxylessnas.create_model(weights_path(weights))
    for other in (loaded, by_path):
        assert all(torch.equal(v, other.state_dict()[k]) for k, v in model.state_dict().items())


@pytest.mark.usefixtures("no_cache")
def test_other_channels_and_classes(weights: Weights) -> None:
    model = proxylessnas.create_model(NAME, weights=weights, in_chans=1, num_classes=3)
    stem = trained_model().half().state_dict()["first_conv.conv.weight"].float()
    assert torch.equal(model.state_dict()["first_conv.conv.weight"], stem.sum(1, keepdim=True))
    assert model(torch.rand(2, 1, 32, 32)).shape == (2, 3)


@pytest.mark.usefixtures("no_cache")
def test_fetch_and_verify_name_the_file_in_the_package(weights: Weights) -> None:
    path = weights_path(weights)
    before = path.stat()
    assert weights.fetch() == weights.verify() == path
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert weights.state_dict()["classifier.linear.weight"].dtype == torch.float32
    assert {p.name for p in path.parent.iterdir()} == {path.name}, "no copy beside it"


def test_a_copy_for_another_folder(weights: Weights, tmp_path: Path) -> None:
    copy = weights.fetch(directory=tmp_path / "to")
    assert copy.parent == tmp_path / "to"
    assert copy.name == f"{NAME}-{str(weights.sha256)[:8]}.safetensors"
    assert weights.verify(copy) == copy
    copy.write_bytes(b"damaged")
    assert weights.verify(weights.fetch(directory=tmp_path / "to")) == copy
    (tmp_path / "file").write_text("")
    with pytest.raises(WeightsFetchError, match="cannot write"):
        weights.fetch(directory=tmp_path / "file")


def test_a_damaged_package_is_said_so_and_left_alone(weights: Weights, tmp_path: Path) -> None:
    path = weights_path(weights)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    uses = [
        weights.fetch,
        weights.verify,
        weights.state_dict,
        lambda: weights.fetch(directory=tmp_path / "to"),
    ]
    for content in (bytes(data), b"", bytes(data[:-1])):
        path.write_bytes(content)
        for use in uses:
            with pytest.raises(WeightsCorruptError, match=r"stand_in.*install that again"):
                use()
        assert path.read_bytes() == content
    path.unlink()
    for use in uses:
        with pytest.raises(
            WeightsNotFoundError, match=r"stand_in.*belongs to the package: install that again"
        ):
            use()
    assert not (tmp_path / "to").exists()


# --- how the model is made ---------------------------------------------------------------------------------


def test_a_wider_model_computes_the_same(repo: Path, tmp_path: Path) -> None:
    model = trained_model()
    proxylessnas.save_weights(model, tmp_path / "net.safetensors")
    wide = tmp_path / "wide.txt"
    script = [sys.executable, repo / "benchmarks" / "widen_net.py", tmp_path / "net.safetensors", wide]
    script += ["--out", tmp_path / "wide.safetensors"]
    wide.write_text(str(model.arch).replace("k3e6", "k3e8"))
    run(script, cwd=tmp_path)
    wider = proxylessnas.create_model(tmp_path / "wide.safetensors").eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(wider(images), model(images), rtol=1e-4, atol=1e-4)
    assert wider.categories == model.categories
    assert str(wider.arch).count("k3e8") == str(model.arch).count("k3e6") > 0
    for other, words in ((str(model.arch).replace("k3e6", "k3e3"), "is narrower"),
                         (str(model.arch).replace("last=640", "last=700"), "only expansion ratios"),
                         (str(model.arch).replace("k3e6 ", "", 1), "other blocks")):  # fmt: skip
        wide.write_text(other)
        done = subprocess.run(script, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert words in done.stderr


@pytest.mark.parametrize(
    ("name", "options", "least"),
    [
        ("plain_teacher.py", "--widths 8 16 --epochs 8 --rate 0.05", 50),
        ("whitened_teacher.py", "--widths 8 16 16 --epochs 5 --batch-size 100 --part 50", 30),
    ],
)
def test_a_model_of_plain_convolutions_is_trained_and_teaches(
    repo: Path, tmp_path: Path, name: str, options: str, least: int
) -> None:
    """The script in small, on digits; a model then learns from the program it writes."""
    from proxylessnas.train import Settings, open_data, read_recipe, train

    words = ["digits", "--test", "digits", *options.split(), "--threads", "1", "--out", str(tmp_path)]
    run([sys.executable, repo / "benchmarks" / name, *words], cwd=tmp_path)
    made = json.loads((tmp_path / "teacher.json").read_text())
    assert made["test_top1"] > least, "much better than a guess"
    assert made["command"].startswith(f"python benchmarks/{name} digits --test digits {options}")
    recipe = read_recipe("small-images").with_epochs(1).with_batch_size(32)
    out = Settings(tmp_path / "run", console=False, device="cpu", workers=0)
    data = open_data("digits", limit=10)
    assert train(NAME, data, recipe, out=out, teacher=tmp_path / "teacher.pt2").finished


# --- how a trained model gets into the package ------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the repository into which the model of a (made-up) run was put."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("shipped")
    copy = Path(shutil.copytree(tree, folder / "proxylessnas-main"))
    finished, test = folder / "run", folder / "test"
    finished.mkdir()
    model = trained_model()
    model.preprocessing = dataclasses.replace(get_weights(NAME).preprocessing, mean=(0.5, 0.25, 0.125))
    proxylessnas.save_weights(model, finished / "model.safetensors")
    (finished / "recipe.toml").write_text("epochs = 2\nseed = 7\n")
    (finished / "epochs.csv").write_text("epoch,step\n1,10\n2,20\n")
    (finished / "result.json").write_text(json.dumps({"finished": True, "seconds": 90.0}))
    (finished / "log.jsonl").write_text('{"time": "2026-01-31T12:00:00+00:00", "event": "done"}\n')
    for name in model.categories:
        (test / name).mkdir(parents=True)
        image = Image.fromarray(torch.randint(0, 256, (32, 32, 3), dtype=torch.uint8).numpy())
        image.save(test / name / "0.png")
    bundle(copy)
    return copy


def bundle(copy: Path, *more: str) -> None:
    finished, test = copy.parent / "run", copy.parent / "test"
    command = [sys.executable, copy / "benchmarks" / "bundle_weights.py", finished, "--test", test, *more]
    command += ["--command", "proxylessnas train x", "--data", "noise"]
    command += ["--data-file", finished / "recipe.toml", "--machine", "a machine", "--commit", "0" * 40]
    run(command, cwd=copy.parent)


def test_the_manifest_says_what_was_measured(shipped: Path, repo: Path) -> None:
    text = (shipped / "weights_manifest.json").read_text(encoding="utf-8")
    entry = json.loads(text)["weights"][NAME]
    file = shipped / "proxylessnas" / "assets" / entry["filename"]
    assert entry["size"] == file.stat().st_size < 2_000_000
    assert entry["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert entry["mean"] == [0.5, 0.25, 0.125]
    assert (entry["params"], entry["macs"]) == (get_weights(NAME).params, get_weights(NAME).macs)
    assert entry["metrics"]["status"] == "measured"
    assert entry["metrics"]["top1"] % 10 == 0, "ten images"
    assert entry["training"] == {
        "command": "proxylessnas train x",
        "recipe": f"benchmarks/training/{NAME}.toml",
        "seed": 7,
        "data": "noise",
        "data_sha256": hashlib.sha256(b"epochs = 2\nseed = 7\n").hexdigest(),
        "log": f"benchmarks/training/{NAME}.csv",
        "date": "2026-01-31",
        "minutes": 1.5,
        "machine": "a machine",
        "versions": entry["training"]["versions"],
        "commit": "0" * 40,
    }
    with (shipped / entry["training"]["log"]).open() as table:
        assert len(list(csv.DictReader(table))) == 2
    # The other entries and the layout of the file stay as they were.
    before = (repo / "weights_manifest.json").read_text(encoding="utf-8").splitlines()
    new = [line for line in text.splitlines() if line not in before]
    assert len(new) <= 25


def test_a_run_that_went_on_keeps_the_record_of_the_one_before(shipped: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(shipped.parent, tmp_path / "twice")) / shipped.name
    (copy.parent / "run" / "epochs.csv").write_text("epoch,step\n1,5\n")
    teacher = {"net": "plain", "command": "make it", "params": 9, "seed": 3, "minutes": 1.5}
    made = copy.parent / "teacher.json"
    made.write_text(json.dumps({**teacher, "test_top1": 93.4567, "epochs": 2}))
    bundle(copy, "--goes-on", "--teacher", str(made))
    once, twice = (
        json.loads((place / "weights_manifest.json").read_text(encoding="utf-8"))["weights"][NAME]["training"]
        for place in (shipped, copy)
    )
    files = {
        key: f"benchmarks/training/{NAME}_stage1.{end}" for key, end in (("recipe", "toml"), ("log", "csv"))
    }
    assert twice == {**once, "teachers": [{**teacher, "top1": 93.46}], "before": {**once, **files}}
    assert (copy / files["log"]).read_bytes() == (shipped / once["log"]).read_bytes()
    assert (copy / twice["log"]).read_text() == "epoch,step\n1,5\n"
    bundle(copy, "--goes-on")
    thrice = json.loads((copy / "weights_manifest.json").read_text())["weights"][NAME]["training"]
    assert thrice["before"]["before"] == twice["before"]
    assert thrice["before"]["log"].endswith("_stage2.csv")
    assert "teachers" not in thrice


USE = """
import json, torch
import proxylessnas
model = proxylessnas.proxyless_cifar10_demo(pretrained=True).eval()
hub = torch.hub.load({repo!r}, "proxyless_cifar10_demo", source="local", pretrained=True)
assert all(torch.equal(v, hub.state_dict()[k]) for k, v in model.state_dict().items())
assert proxylessnas.get_weights("proxyless_cifar10_demo").metrics["status"] == "measured"
found = model.predict({photo!r}, top=10)
print(json.dumps([found[0].name, sum(p.probability for p in found)]))
from proxylessnas.cli import main
for words in (["list"], ["info", "proxyless_cifar10_demo"], ["verify", "proxyless_cifar10_demo"],
              ["fetch", "proxyless_cifar10_demo"]):
    assert main(words) == 0
"""


def test_pretrained_from_a_clone_without_network_cache_or_home(shipped: Path, tmp_path: Path) -> None:
    """An empty cache that cannot be written, and a home likewise."""
    home = tmp_path / "home"
    (home / "cache").mkdir(parents=True)
    photo = shipped / "examples" / "photos" / "cifar10" / "dog.jpg"
    code = f"import os\nos.environ.update(PROXYLESSNAS_CACHE={str(home / 'cache')!r}, HOME={str(home)!r})\n"
    code += USE.format(repo=str(shipped), photo=str(photo))
    (home / "cache").chmod(0o500)
    home.chmod(0o500)
    try:
        done = run_uninstalled(code, cwd=tmp_path, first_on_path=[shipped])
    finally:
        home.chmod(0o700)
        (home / "cache").chmod(0o700)
    first, *lines = done.stdout.splitlines()
    name, total = json.loads(first)
    assert name in get_weights("proxyless_cifar").categories
    assert total == pytest.approx(1, abs=1e-4)
    text = "\n".join(lines)
    assert text.count("in the package") == 2  # list, info
    assert "*: trained and measured by this project" in text
    assert "proxylessnas train x" in text  # info
    assert "sound" in text  # verify
    assert list((home / "cache").iterdir()) == []


def test_wheel_and_sdist_hold_the_file(shipped: Path, tmp_path: Path) -> None:
    import tarfile
    import zipfile

    pytest.importorskip("build")
    run([sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp_path, shipped], cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    (sdist,) = tmp_path.glob("*.tar.gz")
    name = f"proxylessnas/assets/{NAME}.safetensors"
    data = (shipped / name).read_bytes()
    with zipfile.ZipFile(wheel) as file:
        assert file.read(name) == data
        assert "proxylessnas/assets/digits.safetensors" in file.namelist()
    with tarfile.open(sdist) as file:
        (member,) = [m for m in file.getmembers() if m.name.partition("/")[2] == name]
        assert file.extractfile(member).read() == data  # type: ignore[union-attr]


# --- the real one ---------------------------------------------------------------------------------------


@pytest.fixture
def real() -> Weights:
    return get_weights(NAME)


@pytest.mark.usefixtures("no_cache")
def test_the_real_model_is_here_small_and_good(real: Weights) -> None:
    assert os.path.getsize(real.verify()) < 2_000_000
    assert real.metrics["status"] == "measured"
    assert real.training is not None
    model = proxylessnas.create_model(NAME, pretrained=True)
    assert {t.dtype for t in model.state_dict().values()} == {torch.float32, torch.int64}


def test_info_says_how_every_step_of_the_real_model_was_made(
    real: Weights, capsys: pytest.CaptureFixture[str]
) -> None:
    from proxylessnas import cli

    assert cli.main(["info", NAME]) == 0
    said = capsys.readouterr().out
    steps = [real.training]
    while steps[-1] is not None:
        step = steps[-1]
        assert said.count(f"  {step['command']}\n") == 1
        assert step["commit"][:10] in said
        for teacher in step.get("teachers", ()):
            assert said.count(f"  {teacher['command']}\n") == 1
        steps.append(step.get("before"))
    assert len(steps) == 4, "three trainings"


def test_the_real_model_reaches_its_target(real: Weights) -> None:
    """91 % of the CIFAR-10 test images; the figure is measured when a model is put into the package."""
    assert real.metrics["top1"] >= 91


@pytest.mark.slow
def test_the_figures_of_the_real_model_are_measured_again(real: Weights) -> None:
    """With the test images, where somebody has them: CIFAR10_TEST_FOLDER names the folder."""
    folder = os.environ.get("CIFAR10_TEST_FOLDER")
    if not folder:
        pytest.skip("CIFAR10_TEST_FOLDER names no folder of test images")
    from proxylessnas.data.folders import labelled_images
    from proxylessnas.train.evaluate import evaluate

    model = proxylessnas.create_model(NAME, pretrained=True)
    images = labelled_images(folder, 10, names=model.categories)
    assert model.preprocessing is not None
    found = evaluate(model, images.samples, model.preprocessing.build(), batch_size=100)
    assert found.n == 10_000
    assert round(found.top1, 2) == pytest.approx(real.metrics["top1"], abs=0.02)


def photos_right(repo: Path) -> list[bool]:
    model = proxylessnas.proxyless_cifar10_demo(pretrained=True)
    photos = sorted((repo / "examples" / "photos" / "cifar10").glob("*.jpg"))
    return [photo.stem.split("_")[0] == model.predict(photo, top=1)[0].name for photo in photos]


@pytest.mark.usefixtures("no_cache")
def test_the_real_model_names_most_photos(repo: Path) -> None:
    right = photos_right(repo)
    assert sum(right) > len(right) / 2


@pytest.mark.usefixtures("no_cache")
def test_the_real_model_names_all_photos_but_one(repo: Path) -> None:
    right = photos_right(repo)
    assert sum(right) >= len(right) - 1
