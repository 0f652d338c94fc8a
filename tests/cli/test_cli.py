"""The command line: what each command does, prints and exits with, for good input and bad."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_tools import Run, runner
from PIL import Image

from proxylessnas import Arch, create_model, get_weights, list_models, save_weights
from proxylessnas.cli import commands
from proxylessnas.data.categories import categories, unique, wnids
from proxylessnas.data.images import load_image
from proxylessnas.data.transforms import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from proxylessnas.models.base import top_classes

REPO = Path(__file__).resolve().parents[2]
ARCH = """Arch("mine", stem=8, first=8, last=32, resolution=48, stages=(
    Stage(8, 2, "k3e3 -"), Stage(16, 2, "k5e3")))"""
SMALL = Preprocessing(48, 56, (0.4, 0.5, 0.6), (0.5, 0.5, 0.5))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return runner(capsys)


def command(*words: object, **options: Any) -> subprocess.Popen[str]:
    """Start the command in a process of its own."""
    path = os.pathsep.join([str(REPO), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, "-m", "proxylessnas", *map(str, words)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **options.pop("env", {})},
        stdout=options.pop("stdout", subprocess.PIPE),
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        **options,
    )


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a small random model in all forms, images and things that are neither."""
    root = tmp_path_factory.mktemp("files")
    torch.manual_seed(5)
    model = create_model(Arch.parse(ARCH))
    for p in model.parameters():  # spread the answers: a fresh model says nearly the same for everything
        if p.dim() > 1:
            torch.nn.init.normal_(p, std=0.3)
    model.train()
    with torch.no_grad():
        for _ in range(20):
            model(torch.randn(8, 3, 48, 48))
    model.eval()
    (root / "mine.txt").write_text(ARCH)
    (root / "mine.json").write_text(json.dumps(model.arch.to_official()))
    torch.save({"state_dict": model.state_dict()}, root / "mine.pth")
    model.preprocessing = None
    save_weights(model, root / "bare.safetensors")
    model.preprocessing = SMALL
    save_weights(model, root / "mine.safetensors")
    ten = create_model(Arch.parse(ARCH.replace("resolution", "num_classes=10, resolution")))
    ten.preprocessing = SMALL
    save_weights(ten, root / "ten.safetensors")
    broken = {
        key: value * float("nan") if key.startswith("classifier") else value
        for key, value in model.state_dict().items()
    }
    torch.save(broken, root / "nan.pth")
    for i in range(20):
        noise = torch.randint(0, 256, (3 + 2 * i, 3 + i, 3), dtype=torch.uint8)
        Image.fromarray(noise.numpy()).resize((90, 70)).save(root / f"{i}.png")
    (root / "page.jpg").write_text("<!doctype html><html>not found</html>")
    (root / "cut.png").write_bytes((root / "0.png").read_bytes()[:3000])
    (root / "empty.jpg").touch()
    (root / "words.txt").write_text("these are words")
    (root / "cut.pth").write_bytes((root / "mine.pth").read_bytes()[:5000])
    return root


def expected(
    files: Path, preprocessing: Preprocessing, name: str = "0.png", k: int = 5
) -> list[tuple[int, float]]:
    model = create_model(files / "mine.safetensors").eval()
    return top_classes(model, preprocessing.build()(load_image(files / name))[None], k)[0]


def answers(image: dict[str, Any]) -> list[tuple[int, float]]:
    return [(p["index"], pytest.approx(p["probability"], rel=1e-4)) for p in image["predictions"]]


# ---- the command as a whole


def test_every_command_has_help_with_an_example_and_few_options(run: Run) -> None:
    assert list(commands())[:6] == ["list", "info", "fetch", "verify", "predict", "eval"]
    overview = run("--help")
    for name, command in commands().items():
        assert f"    {name} " in overview.out
        shown = run(name, "--help")
        assert shown.code == 0
        assert f"example:\n  $ proxylessnas {name} " in shown.out
        assert shown.out.count("\n  --") < 30
        assert command.about()[0] in overview.out


@pytest.mark.parametrize(
    "words", [(), ("nope",), ("--nope",), ("list", "--nope"), ("predict",), ("predict", "x")]
)
def test_wrong_usage(run: Run, words: tuple[str, ...]) -> None:
    result = run(*words)
    assert result.code == 2
    assert result.out == ""
    assert result.err.startswith("usage:" if not words else "error: ")


def test_version(run: Run) -> None:
    assert run("--version").out.startswith("proxylessnas ")


LIGHT = """
import sys
from proxylessnas.cli import main
code = main(sys.argv[1:])
heavy = {"torch", "torchvision", "PIL", "numpy", "requests", "safetensors"} & set(sys.modules)
sys.exit(f"imported {sorted(heavy)}" if heavy or code else 0)
"""


@pytest.mark.parametrize("words", [("--help",), ("list",), ("info", "proxyless_cpu"), ("verify", "--all")])
def test_what_needs_no_torch_does_not_wait_for_it(words: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIGHT, *words],
        cwd=REPO,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_closed_and_full_outputs() -> None:
    with command("list") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode in (0, 141)
    if os.path.exists("/dev/full"):
        with open("/dev/full", "w") as full:
            process = command("list", stdout=full)
            _, err = process.communicate()
        assert process.returncode == 1
        assert err.count("\n") == 1
        assert err.startswith("error: ")


def test_output_that_is_only_ascii(files: Path) -> None:
    env = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    process = command("predict", files / "mine.safetensors", files / "0.png", env=env)
    out, err = process.communicate()
    assert (process.returncode, err.count("\n")) == (0, 0)
    assert out.count(" %  ") == 5
    assert out.isascii()


@pytest.mark.skipif(os.name != "posix", reason="needs a POSIX shell")
def test_closed_standard_error_does_not_reach_the_json() -> None:
    line = f'"{sys.executable}" -m proxylessnas list nothing_like_it --json 2>&-'
    done = subprocess.run(line, shell=True, capture_output=True, text=True, cwd=REPO, check=False)
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"]["type"] == "UnknownModelError"


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
def test_ctrl_c(files: Path) -> None:
    here, there = os.pipe()  # an image that never ends
    process = command("predict", files / "mine.safetensors", "/dev/stdin", stdin=here)
    os.set_blocking(there, False)
    written = 0
    while written < 1 << 20 and process.poll() is None:
        try:  # more than the pipe holds, so the command is reading
            written += os.write(there, bytes(1 << 16))
        except BlockingIOError:
            time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    os.close(here)
    os.close(there)
    assert process.returncode in (130, -signal.SIGINT)
    assert process.returncode == -signal.SIGINT or err == "error: interrupted\n"


# ---- list, info


def test_list(run: Run) -> None:
    result = run("list")
    assert result.code == 0
    assert max(map(len, result.out.splitlines())) <= 80
    lines = {line.split()[0]: line for line in result.out.splitlines() if line.startswith("proxyless_")}
    assert set(lines) == set(list_models(pretrained=True))
    assert "4.36 M" in lines["proxyless_cpu"]
    assert "439 M" in lines["proxyless_cpu"]
    assert "published" in result.out
    assert [model["name"] for model in run("list", "*Mobile*", "--json").json["nets"]] == [
        "proxyless_mobile",
        "proxyless_mobile_14",
    ]
    missing = run("list", "resnet*")
    assert missing.code == 1
    assert missing.err.startswith("error: no model matches 'resnet*'; there are: ")


@pytest.mark.parametrize("name", list_models(pretrained=True))
def test_info_of_every_model(run: Run, name: str) -> None:
    weights = get_weights(name)
    result = run("info", name.replace("_", "-").upper())
    assert result.code == 0
    for part in (name, f"{weights.params:,}", weights.license, *weights.sources):
        assert part in result.out
    assert ("in the package" if weights.bundled else "not there") in result.out
    facts = run("info", name, "--json").json
    assert facts["params"] == weights.params
    assert Preprocessing.from_dict(facts["preprocessing"]) == weights.preprocessing
    assert weights.bundled or facts["cache"]["state"] == "absent"
    assert facts["bundled"] == weights.bundled
    assert str(Arch.parse(facts["arch"])) == facts["arch"]


@pytest.mark.parametrize("name", ["mine.txt", "mine.json", "mine.safetensors"])
def test_info_of_files(run: Run, files: Path, name: str) -> None:
    facts = run("info", files / name, "--json").json
    assert facts["params"] == sum(p.numel() for p in create_model(Arch.parse(ARCH)).parameters())
    assert facts["input_size"] == (48 if name != "mine.json" else facts["input_size"])
    assert run("info", files / name).code == 0
    if name == "mine.safetensors":
        assert Preprocessing.from_dict(facts["preprocessing"]) == SMALL


def test_info_of_a_huge_architecture_needs_no_memory(run: Run, tmp_path: Path) -> None:
    huge = ARCH.replace('Stage(16, 2, "k5e3")', 'Stage(60000, 2, "k5e3"), Stage(60000, 1, "k3e3 k3e3")')
    (tmp_path / "huge.txt").write_text(huge)
    assert run("info", tmp_path / "huge.txt", "--json").json["params"] > 10**10


# ---- predict


def test_predict_json(run: Run, files: Path) -> None:
    result = run(
        "predict", files / "mine.safetensors", files / "0.png", files / "1.png", "--json", "--top", 3
    )
    assert (result.code, result.err) == (0, "")
    document = result.json
    assert document["failed"] == 0
    assert document["preprocessing"] == SMALL.to_dict()
    assert document["weights"]["published"] is None
    assert len(document["weights"]["sha256"]) == 64
    for i in range(2):
        assert answers(document["images"][i]) == expected(files, SMALL, f"{i}.png", 3)
        assert all(p["wnid"] is None for p in document["images"][i]["predictions"]), (
            "its classes have no names"
        )


def test_predict_text(run: Run, files: Path) -> None:
    result = run("predict", files / "mine.safetensors", files / "0.png", "--top", "2")
    lines = result.out.splitlines()
    assert lines[0] == str(files / "0.png")
    assert len(lines) == 3
    assert lines[1].split(" %")[0].strip() == f"{100 * expected(files, SMALL)[0][1]:.1f}"


def test_more_images_than_a_batch_and_words_behind_options(run: Run, files: Path) -> None:
    names = [files / f"{i}.png" for i in range(20)]
    result = run("predict", files / "mine.safetensors", *names[:12], "--top", 1, "--json", *names[12:])
    assert [image["image"] for image in result.json["images"]] == [str(name) for name in names]
    for i in (0, 11, 15, 16, 19):
        assert answers(result.json["images"][i]) == expected(files, SMALL, f"{i}.png", 1)


def test_one_bad_image_does_not_stop_the_others(run: Run, files: Path) -> None:
    bad = {
        "page.jpg": "is a web page (HTML), not an image",
        "cut.png": "damaged or truncated image",
        "empty.jpg": "the file is empty",
        "words.txt": "is not an image",
        "nowhere.jpg": "no such file",
        "": "is a folder; `proxylessnas eval` takes folders",
    }
    words = [files / "0.png", *(files / name for name in bad), files / "1.png"]
    result = run("predict", files / "mine.safetensors", *words)
    assert result.code == 1
    assert result.out.count(".png\n") == 2
    lines = [line for line in result.err.splitlines() if line.startswith("error: ")]
    assert lines[-1] == "error: 6 of 8 images could not be classified"
    for line, (name, reason) in zip(lines[:-1], bad.items(), strict=True):
        assert line.startswith(f"error: {files / name}")
        assert reason in line
    document = run("predict", files / "mine.safetensors", *words, "--json").json
    assert document["failed"] == 6
    assert ["error" in image for image in document["images"]] == [False] + [True] * 6 + [False]


@pytest.mark.parametrize("mean", [("0.5", "0.5", "0.5"), ("0.5",), ("0.5,0.5,0.5",), ("0.5,", "0.5,", "0.5")])
def test_ways_to_write_the_mean(run: Run, files: Path, mean: tuple[str, ...]) -> None:
    for words in (
        [*mean, "--std", "0.25", files / "0.png"],
        [*mean, "--std=.25,.25,.25", "--", files / "0.png"],
    ):
        document = run("predict", files / "mine.safetensors", "--json", "--mean", *words).json
        changed = dataclasses.replace(SMALL, mean=(0.5,) * 3, std=(0.25,) * 3)
        assert document["preprocessing"] == changed.to_dict()
        assert answers(document["images"][0]) == expected(files, changed)


def test_input_size_takes_the_resize_along(run: Run, files: Path) -> None:
    result = run("predict", files / "mine.safetensors", files / "0.png", "--json", "--input-size", 96)
    assert (result.json["preprocessing"]["input_size"], result.json["preprocessing"]["resize"]) == (96, 112)
    assert "note: --resize 112 is used" in result.err
    result = run(
        "predict", files / "mine.safetensors", files / "0.png", "--json", "--input-size=64", "--resize=64"
    )
    assert answers(result.json["images"][0]) == expected(
        files, dataclasses.replace(SMALL, input_size=64, resize=64)
    )


WRONG_OPTIONS = [
    (["--std", "0"], "--std must be above zero"),
    (["--std", "0.5", "0.5", "-1"], "--std must be above zero"),
    (["--std", "nan"], "--std must be three finite numbers"),
    (["--mean", "inf"], "--mean must be three finite numbers"),
    (["--mean", "0.5", "0.5"], "--mean takes three numbers, or one for all three channels, not 2"),
    (["--mean=0.5,a,0.5"], "--mean takes numbers, not '0.5,a,0.5'"),
    (["--mean", "photo.jpg"], "--mean takes numbers, not 'photo.jpg'"),
    (["--input-size", "0"], "--input-size must be a whole number from 1 to 4096, not 0"),
    (["--input-size", "-7"], "--input-size must be"),
    (["--input-size", "1.5"], "invalid int value"),
    (["--input-size", "99999"], "from 1 to 4096"),
    (["--input-size", "64", "--resize", "63"], "--input-size 64 is larger than --resize 63"),
    (["--resize", "47"], "--input-size 48 is larger than --resize 47"),
    (["--top", "0"], "--top: wanted a whole number from 1"),
    (["--device", "toaster"], "no such device"),
    (["--nope"], "unrecognised arguments: --nope"),
]


@pytest.mark.parametrize(
    ("words", "message"), WRONG_OPTIONS, ids=[" ".join(words) for words, _ in WRONG_OPTIONS]
)
def test_wrong_options(run: Run, files: Path, words: list[str], message: str) -> None:
    result = run("predict", files / "mine.safetensors", files / "0.png", *words)
    assert (result.code, result.out) == (2, "")
    assert result.err.splitlines()[-2].startswith("error: ")
    assert message in result.err


def test_where_the_preprocessing_comes_from(run: Run, files: Path) -> None:
    """A file's own, else that of the named model, else the usual one with a note."""
    photo, assumed = files / "0.png", Preprocessing(48, 55, IMAGENET_MEAN, IMAGENET_STD)
    cases = [
        ([files / "mine.safetensors", photo], SMALL, ""),
        ([files / "mine.txt", photo, "--weights", files / "mine.safetensors"], SMALL, ""),
        (
            ["proxyless-cpu", photo, "--arch", files / "mine.txt", "--weights", files / "mine.safetensors"],
            SMALL,
            "",
        ),
        (
            ["proxyless-w025-r112", photo, "--arch", files / "mine.txt", "--weights", files / "mine.pth"],
            get_weights("proxyless_w025_r112").preprocessing,
            f"note: {files / 'mine.pth'} is not a published file: the preprocessing of "
            "proxyless_w025_r112 is used",
        ),
        (
            [files / "bare.safetensors", photo],
            assumed,
            f"note: the model's preprocessing is not known; .*: {assumed}",
        ),
        (
            [files / "mine.txt", photo, "--weights", files / "mine.pth"],
            assumed,
            "note: the model's preprocessing is",
        ),
        (
            [files / "mine.json", photo, "--weights", files / "mine.pth"],
            None,
            "note: the model's preprocessing is",
        ),
    ]
    for words, preprocessing, said in cases:
        result = run("predict", *words, "--json")
        assert result.code == 0, result.err
        found = Preprocessing.from_dict(result.json["preprocessing"])
        assert preprocessing is None or found == preprocessing
        assert answers(result.json["images"][0]) == expected(files, found)
        first = result.err.splitlines()[0] if "preprocessing" in result.err else ""
        assert (said == "") == (first == "")
        assert first.startswith(said.partition(".*")[0])
        assert first.endswith(said.partition(".*")[2])


def test_classes_without_names(run: Run, files: Path) -> None:
    result = run("predict", files / "ten.safetensors", files / "0.png")
    assert result.code == 0
    assert "  class " in result.out
    assert result.err == ""


BAD_MODELS = [
    (["proxyless_cup"], 1, "did you mean proxyless_cpu"),
    (["nowhere.safetensors"], 1, "nowhere.safetensors: no such file"),
    (["{files}"], 1, "is a folder, not a file"),
    (["{files}/mine.txt"], 2, "mine.txt is an architecture without weights: give --weights FILE"),
    (["{files}/mine.pth"], 1, "no architecture; name one: NAME_OR_ARCH --weights FILE"),
    (["{files}/words.txt", "--weights", "{files}/mine.pth"], 1, "words.txt: line 1, column 1"),
    (["proxyless_cpu", "--weights", "{files}/mine.pth"], 1, "mine.pth do not fit proxyless_cpu"),
    (["proxyless_cpu", "--weights", "{files}/cut.pth"], 1, "cut.pth"),
    (["proxyless_cpu", "--weights", "{files}/page.jpg"], 1, "page.jpg"),
    (["proxyless_cpu", "--weights", "{files}/empty.jpg"], 1, "empty.jpg"),
    (["proxyless_cpu", "--weights", "nowhere.pth"], 1, "nowhere.pth: no such file"),
    (["proxyless_cpu", "--arch", "nowhere.txt"], 1, "nowhere.txt: no such file"),
    (["{files}/mine.txt", "--weights", "{files}/nan.pth"], 1, "nan.pth: the model's output is not finite"),
    (["{files}/mine.safetensors", "--device", "cuda:77"], 1, "--device cuda:77: not usable here"),
    (["{files}/mine.safetensors", "--device", "meta"], 1, "--device meta: nothing can be computed there"),
]


@pytest.mark.parametrize(
    ("words", "code", "message"), BAD_MODELS, ids=[" ".join(words) for words, _, _ in BAD_MODELS]
)
def test_bad_models(run: Run, files: Path, tmp_path: Path, words: list[str], code: int, message: str) -> None:
    words = [word.replace("{files}", str(files)) for word in words]
    photos = tmp_path / wnids()[0]
    photos.mkdir()
    shutil.copy(files / "0.png", photos)
    for command, data in (("predict", files / "0.png"), ("eval", tmp_path)):
        result = run(command, words[0], data, *words[1:])
        assert (result.code, result.out) == (code, "")
        errors = [line for line in result.err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1
        assert message in errors[0]
        if code == 1:
            document = run(command, words[0], data, *words[1:], "--json").json
            assert message in document["error"]["message"]


def test_offline(run: Run, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROXYLESSNAS_OFFLINE", "1")
    for words in (("predict", "proxyless_cpu", files / "0.png"), ("fetch", "proxyless_cpu")):
        result = run(*words)
        assert result.code == 1
        assert get_weights("proxyless_cpu").sources[0] in result.err
        ways = result.err.index("--weights FILE"), result.err.index("proxyless_cifar10_demo")
        assert max(ways) < result.err.index("https://"), "first what needs no other machine"


def test_missing_libraries(run: Run, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for library, line in (
        ("PIL.Image", "pip install --force-reinstall pillow"),
        ("safetensors.torch", "install safetensors"),
    ):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, library, None)
            if library == "PIL.Image":
                import PIL

                patch.delattr(PIL, "Image", raising=False)
            result = run("predict", files / "mine.safetensors", files / "0.png")
        assert result.code == 1
        assert line in result.err.splitlines()[-1]


def test_names_cannot_steer_the_terminal(run: Run, files: Path, tmp_path: Path) -> None:
    odd = tmp_path / "a\x1b[31m\tb.png"
    try:
        shutil.copy(files / "0.png", odd)
    except OSError:
        pytest.skip("no such file names here")
    result = run("predict", files / "mine.safetensors", odd, f"{odd}.missing")
    assert "\x1b" not in result.out + result.err
    assert "a\\x1b[31m\\tb.png" in result.out


# ---- eval


@pytest.fixture(scope="module")
def classified(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return class folders by wnid in which the small model is right for 15 of 20 images."""
    root = tmp_path_factory.mktemp("photos")
    for i in range(20):
        best = [index for index, _ in expected(files, SMALL, f"{i}.png", 1000)]
        label = best[0] if i < 15 else best[3] if i < 18 else best[-1]
        (root / wnids()[label]).mkdir(exist_ok=True)
        shutil.copy(files / f"{i}.png", root / wnids()[label])
    return root


@pytest.mark.parametrize("workers", [0, 2])
def test_eval(run: Run, files: Path, classified: Path, workers: int) -> None:
    words = ("eval", files / "mine.safetensors", classified, "--batch-size", 6, "--workers", workers)
    result = run(*words, "--json")
    assert (result.code, result.err) == (0, "")
    d = result.json
    assert (d["n"], d["top1"], d["top5"], d["top1_correct"], d["top5_correct"]) == (20, 75.0, 90.0, 15, 18)
    assert d["labels_from"] == "wnid"
    assert d["images_per_second"] > 0
    assert len(d["weights"]["sha256"]) == 64
    assert d["preprocessing"] == SMALL.to_dict()
    shown = run(*words).out
    assert "top-1      75.00 %  (15 of 20)" in shown
    assert f"ece        {d['ece']:.2f} %  (calibration" in shown
    assert f"loss       {d['loss']:.4f}  (cross" in shown
    assert str(SMALL) in shown


def test_eval_by_class(run: Run, files: Path, classified: Path, tmp_path: Path) -> None:
    """All of it from the same matrix: the JSON, the table on the screen and the file."""
    words = ("eval", files / "mine.safetensors", classified)
    d = run(*words, "--json", "--confusion", tmp_path / "c.csv").json
    labels = unique(categories(), wnids())
    by_class: dict[str, list[str]] = {}
    for i in range(20):
        folder = next(classified.glob(f"*/{i}.png")).parent.name
        best = expected(files, SMALL, f"{i}.png", 1)[0][0]
        by_class.setdefault(labels[wnids().index(folder)], []).append(labels[best])
    assert d["confusion"] == {name: dict(Counter(taken)) for name, taken in by_class.items()}
    assert len(d["per_class"]) == d["classes"] == len(by_class)
    for c in d["per_class"]:
        taken = by_class[c["name"]]
        assert (c["n"], c["correct"]) == (len(taken), taken.count(c["name"]))
        assert labels[c["index"]] == c["name"]
        assert c["top1"] == pytest.approx(100 * c["correct"] / c["n"], abs=1e-4)
        wrong = Counter(name for name in taken if name != c["name"])
        if wrong:
            assert c["taken_for"]["n"] == max(wrong.values()) == wrong[c["taken_for"]["name"]]
        else:
            assert c["taken_for"] is None
    with open(tmp_path / "c.csv", encoding="utf-8", newline="") as file:
        head, *rows = csv.reader(file)
    assert tuple(head[1:]) == tuple(row[0] for row in rows) == labels
    found = {
        row[0]: {name: int(n) for name, n in zip(labels, row[1:], strict=True) if int(n)} for row in rows
    }
    assert {name: row for name, row in found.items() if row} == d["confusion"]

    shown = run(*words, "--per-class").out
    lines = shown[shown.index("\nclass ") :].splitlines()[2:]
    assert len(lines) == len(by_class)
    shares = [float(re.search(r"([\d.]+) %", line)[1]) for line in lines]  # type: ignore[index]
    assert shares == sorted(shares)
    assert shares[0] < 100
    assert lines[-1].endswith("100.00 %  -")
    assert "per_class" not in run(*words).out


def test_eval_draws_the_confusion(run: Run, files: Path, classified: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    result = run("eval", files / "mine.safetensors", classified, "--confusion", tmp_path / "c.PNG")
    assert (result.code, result.err) == (0, "")
    with Image.open(tmp_path / "c.PNG") as image:
        assert min(image.size) > 500
    assert list(tmp_path.iterdir()) == [tmp_path / "c.PNG"]


@pytest.mark.parametrize(
    ("file", "code", "message"),
    [
        ("c.txt", 2, "--confusion writes a .csv or .png file, not "),
        ("nowhere/c.csv", 1, "there is no folder"),
        ("folder.csv", 1, "is a folder"),
    ],
)
def test_eval_checks_where_it_will_write(
    run: Run, classified: Path, tmp_path: Path, file: str, code: int, message: str
) -> None:
    (tmp_path / "folder.csv").mkdir()
    result = run("eval", "proxyless_cpu", classified, "--confusion", tmp_path / file)
    assert (result.code, result.out) == (code, "")
    assert message in result.err  # not that these weights cannot be had


def test_eval_without_matplotlib(
    run: Run, files: Path, classified: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = run("eval", "proxyless_cpu", classified, "--confusion", tmp_path / "c.png")
    assert (result.code, result.out) == (1, "")
    assert "pip install 'proxylessnas[train]'" in result.err
    words = ("eval", files / "mine.safetensors", classified, "--confusion", tmp_path / "c.csv")
    assert run(*words).code == 0


@pytest.mark.skipif(os.name != "posix", reason="needs a limit on the size of files")
def test_eval_on_a_full_disk_still_says_what_it_found(files: Path, classified: Path, tmp_path: Path) -> None:
    words = ["eval", files / "mine.safetensors", classified, "--json", "--confusion", tmp_path / "c.csv"]
    line = " ".join(shlex.quote(str(word)) for word in [sys.executable, "-m", "proxylessnas", *words])
    limited = f"trap '' XFSZ; ulimit -f 100; {line}"  # blocks of 1 KiB (or of 512 bytes); the table has 2 MB
    done = subprocess.run(["bash", "-c", limited], cwd=REPO, capture_output=True, text=True, check=False)
    assert (done.returncode, json.loads(done.stdout)["n"]) == (1, 20), done.stderr
    assert done.stderr == f"error: {tmp_path / 'c.csv'}: cannot be written (File too large)\n"
    assert list(tmp_path.iterdir()) == []


def test_eval_of_a_data_set_by_name(run: Run, files: Path, tmp_path: Path) -> None:
    """The classes are matched by name, in whatever order the model has them."""
    result = run("eval", files / "ten.safetensors", "digits", "--json")
    assert result.code == 0, result.err
    plain = result.json
    assert 170 < plain["n"] < 190
    assert (plain["labels_from"], plain["classes"]) == ("data set", 10)
    assert "held out" in result.err
    assert "note: the model's classes have no names" in result.err

    model = create_model(files / "ten.safetensors")
    with torch.no_grad():
        for value in (model.classifier.linear.weight, model.classifier.linear.bias):
            value.copy_(value.flip(0))
    model.preprocessing, model.categories = SMALL, tuple("9876543210")
    save_weights(model, tmp_path / "backwards.safetensors")
    again = run("eval", tmp_path / "backwards.safetensors", "Digits", "--json")
    assert again.json["confusion"] == plain["confusion"]
    assert again.json["loss"] == pytest.approx(plain["loss"], rel=1e-5)
    assert "no names" not in again.err
    limited = run("eval", tmp_path / "backwards.safetensors", "digits", "--json", "--limit", 50).json
    assert limited["n"] == 50

    refused = run("eval", files / "mine.safetensors", "digits")
    assert refused.code == 1
    model.categories = tuple("abcdefghij")
    save_weights(model, tmp_path / "letters.safetensors")
    refused = run("eval", tmp_path / "letters.safetensors", "digits")
    assert (
        "its classes are not those of the model, whose 10 classes (a, b, c, ...) have no 0, 1" in refused.err
    )
    assert run("eval", files / "ten.safetensors", "digits", "--labels", "number").code == 2


def test_a_folder_wins_over_a_data_set(
    run: Run, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "digits" / "3").mkdir(parents=True)
    shutil.copy(files / "0.png", tmp_path / "digits" / "3")
    monkeypatch.chdir(tmp_path)
    d = run("eval", files / "ten.safetensors", "digits", "--json").json
    assert (d["n"], d["labels_from"]) == (1, "number")


def test_data_sets_are_not_fetched_offline(
    run: Run, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROXYLESSNAS_OFFLINE", "1")
    result = run("eval", files / "ten.safetensors", f"cifar10:{tmp_path}")
    assert result.code == 1
    assert "cifar10 is not in" in result.err


def test_classes_without_names_are_called_like_their_folders(run: Run, files: Path, tmp_path: Path) -> None:
    for name in "abcdefghij":
        (tmp_path / f"{name}x").mkdir()
        shutil.copy(files / "0.png", tmp_path / f"{name}x")
    d = run("eval", files / "ten.safetensors", tmp_path, "--json").json
    assert [c["name"] for c in d["per_class"]] == [f"{name}x" for name in "abcdefghij"]


def test_eval_of_a_part(run: Run, files: Path, classified: Path) -> None:
    document = run("eval", files / "mine.safetensors", classified, "--json", "--limit", 5).json
    assert document["n"] == 5


def test_eval_with_unreadable_images(run: Run, files: Path, classified: Path, tmp_path: Path) -> None:
    root = tmp_path / "photos"
    shutil.copytree(classified, root)
    folder = next(root.iterdir())
    shutil.copy(files / "page.jpg", folder)
    shutil.copy(files / "cut.png", folder)
    result = run("eval", files / "mine.safetensors", root, "--json")
    assert result.code == 1
    assert (result.json["n"], result.json["top1_correct"], len(result.json["unreadable"])) == (20, 15, 2)
    assert f"error: {folder / 'cut.png'}: damaged" in result.err
    assert result.err.splitlines()[-1] == "error: 2 of 22 images could not be read"


def test_eval_by_number_and_position(run: Run, files: Path, tmp_path: Path) -> None:
    for kind, names in (("number", ["2", "10"]), ("position", [f"{c}x" for c in "abcdefghij"])):
        for name in names:
            (tmp_path / kind / name).mkdir(parents=True)
            shutil.copy(files / "0.png", tmp_path / kind / name)
    result = run("eval", files / "ten.safetensors", tmp_path / "number", "--json")
    assert result.code == 1
    assert "class numbers, 0 to 9; too large: 10" in result.err
    result = run("eval", files / "ten.safetensors", tmp_path / "position", "--json")
    assert (result.code, result.json["top1_correct"], result.json["labels_from"]) == (0, 1, "position")
    assert result.err.startswith("note: the names of the 10 folders")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["nowhere"], 1, "nowhere: no such folder; data sets known by name are cifar10, "),
        (["{files}/0.png"], 1, "is a file; a folder of images is expected"),
        (["{empty}"], 1, "the folder is empty"),
        (["{files}"], 1, "each file name must hold a wnid"),
        (["{photos}", "--limit", "0"], 2, "--limit: wanted a whole number from 1"),
        (["{photos}", "--batch-size", "-1"], 2, "--batch-size: wanted a whole number from 1"),
        (["{photos}", "--workers", "-1"], 2, "--workers: wanted a whole number from 0 to 256"),
    ],
)
def test_bad_data(
    run: Run, files: Path, classified: Path, tmp_path: Path, words: list[str], code: int, message: str
) -> None:
    places = {"{files}": files, "{photos}": classified, "{empty}": tmp_path}
    for place, path in places.items():
        words = [word.replace(place, str(path)) for word in words]
    result = run("eval", files / "mine.safetensors", *words)
    assert (result.code, result.out) == (code, "")
    assert message in result.err


# ---- fetch, verify


def test_fetch_and_verify_usage(run: Run) -> None:
    for command in ("fetch", "verify"):
        assert run(command).code == run(command, "--all", "proxyless_cpu").code == 2
        assert "did you mean" in run(command, "proxyless_cup").err
    everything = run("verify", "--all", "--json")
    assert everything.code == 0
    states = {entry["net"]: entry["state"] for entry in everything.json["weights"]}
    assert states.pop("proxyless_cifar10_demo") == "sound"  # it comes with the package
    assert set(states.values()) == {"absent"}
    assert run("verify", "proxyless_cpu").code == 1


def test_verify_of_files_that_are_not_published(run: Run, files: Path) -> None:
    result = run("verify", files / "mine.pth", files / "nowhere.pth")
    assert result.code == 1
    assert "mine.pth: not a published file, or damaged" in result.err
    assert "nowhere.pth: no such file" in result.err
    assert result.err.splitlines()[-1] == "error: 2 of 2 sets of weights failed"


# ---- with real weights and photos

REAL = "proxyless_w025_r112"
REAL_FILE = "proxyless-w0.25-r112_imagenet.pth"


@pytest.fixture(scope="module")
def by_wnid(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the real photos as class folders."""
    root = tmp_path_factory.mktemp("by_wnid")
    for photo in (shared_data / "imagenet_sample").glob("*.jpg"):
        folder = root / photo.name.split("_")[1]
        folder.mkdir(exist_ok=True)
        (folder / photo.name).symlink_to(photo)
    return root


def test_real_accuracy(run: Run, shared_data: Path, by_wnid: Path) -> None:
    """115 and 153 of 200 photos; with ImageNet's usual mean and std, 81 and 127."""
    options = ["--weights", shared_data / "weights" / REAL_FILE, "--json", "--workers", 0]
    for folder in (by_wnid, shared_data / "imagenet_sample"):
        d = run("eval", REAL, folder, *options).json
        assert (d["n"], d["top1_correct"], d["top5_correct"]) == (200, 115, 153)
        assert (d["loss"], d["ece"]) == (pytest.approx(1.8898, abs=0.002), pytest.approx(13.46, abs=0.2))
        assert d["weights"]["published"] == REAL
        assert d["weights"]["sha256"] == get_weights(REAL).sha256
    other = ["--mean", "0.485", "0.456", "0.406", "--std", "0.229", "0.224", "0.225"]
    d = run("eval", shared_data / "weights" / REAL_FILE, by_wnid, "--json", *other).json
    assert (d["n"], d["top1_correct"], d["top5_correct"]) == (200, 81, 127)


def test_real_predictions(run: Run, shared_data: Path) -> None:
    photos = sorted((shared_data / "imagenet_sample").glob("*.jpg"))
    document = run("predict", shared_data / "weights" / REAL_FILE, *photos, "--json").json
    hits1 = hits5 = 0
    for image in document["images"]:
        wnid = Path(image["image"]).name.split("_")[1]
        found = [p["wnid"] for p in image["predictions"]]
        hits1, hits5 = hits1 + (found[0] == wnid), hits5 + (wnid in found)
    assert (hits1, hits5) == (115, 153)


@pytest.mark.parametrize("kind", ["L", "P", "LA", "CMYK", "I;16", "rotated", "gif"])
def test_odd_kinds_of_a_real_photo(run: Run, shared_data: Path, tmp_path: Path, kind: str) -> None:
    """A zebra is a zebra in every form of file."""
    with Image.open(next((shared_data / "imagenet_sample").glob("0340_*.jpg"))) as opened:
        photo = opened.convert("RGB")
    path = tmp_path / ("x.gif" if kind == "gif" else "x.tif" if kind == "CMYK" else "x.png")
    if kind == "rotated":
        exif = Image.Exif()
        exif[0x0112] = 6
        photo.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    elif kind == "I;16":
        import numpy as np

        Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 257).save(path)
    else:
        (photo if kind == "gif" else photo.convert(kind)).save(path)
    result = run("predict", shared_data / "weights" / REAL_FILE, path, "--json")
    best = result.json["images"][0]["predictions"][0]
    assert best["name"] == "zebra"
    assert best["probability"] > 0.9


def test_fetch_list_info_verify_with_real_weights(
    run: Run, shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from weights_tools import serve_real_weights

    with serve_real_weights(shared_data / "weights") as url:
        monkeypatch.setenv("PROXYLESSNAS_WEIGHTS_URL", url)
        fetched = run("fetch", "w025-r112", "proxyless_w03_r176", "--to", tmp_path / "stick")
    assert fetched.code == 0, fetched.err
    assert fetched.out.splitlines()[-1] == (
        f"there: export PROXYLESSNAS_CACHE={tmp_path / 'stick'} PROXYLESSNAS_OFFLINE=1"
    )
    monkeypatch.setenv("PROXYLESSNAS_CACHE", str(tmp_path / "stick"))
    monkeypatch.setenv("PROXYLESSNAS_OFFLINE", "1")
    verified = run("verify", REAL, shared_data / "weights" / REAL_FILE)
    assert (verified.code, verified.out.count("sound")) == (0, 2)
    assert {model["name"] for model in run("list", "--json").json["nets"] if model["cached"]} == {
        "proxyless_w025_r112",
        "proxyless_w03_r176",
    }
    assert run("info", REAL, "--json").json["cache"]["state"] == "sound"
    photo = next((shared_data / "imagenet_sample").glob("0000_*.jpg"))
    assert "tench" in run("predict", REAL, photo).out.splitlines()[1]
    file = Path(run("info", REAL, "--json").json["cache"]["path"])
    for damaged in file.parent.glob(f"{REAL}*.safetensors"):
        damaged.unlink()
    with file.open("r+b") as stream:
        stream.seek(1000)
        stream.write(b"damage")
    assert run("verify", REAL).code == 1
    assert run("info", REAL, "--json").json["cache"]["state"] == "damaged"
    assert run("predict", REAL, photo).code == 1
