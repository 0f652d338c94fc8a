"""`proxylessnas train` and `finetune` as typed: options, messages, exit codes, signals."""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import time
from pathlib import Path

import pytest
from train_tools import arch_file, checkpoint_of, command, differences_of, environment, run_command, tensors

from proxylessnas import cli
from proxylessnas.cli.finetune import COMMAND as FINETUNE
from proxylessnas.cli.train import COMMAND as TRAIN
from proxylessnas.train import Recipe

SHORT = [
    "--recipe",
    "small-images",
    "--epochs",
    "2",
    "--batch-size",
    "10",
    "--limit",
    "5",
    "--image-size",
    "8",
]
SHORT += ["--set", "cutout=0", "--threads", "1"]


def test_there_are_fewer_than_thirty_options() -> None:
    for each in (TRAIN, FINETUNE):
        parser = argparse.ArgumentParser()
        each.arguments(parser)
        # MODEL and DATA are none, and --help is every command's.
        options = [a for a in parser._actions if a.option_strings and a.dest != "help"]
        assert len(options) < 30


def test_train_then_finetune_then_predict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The path of somebody with a folder of images."""
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", str(arch_file(tmp_path)), "digits", *SHORT, "--quiet"]) == 0
    model = capsys.readouterr().out.strip()
    assert model == "runs/tiny-digits/model.safetensors"
    words = [
        "--epochs",
        "2",
        "--batch-size",
        "10",
        "--limit",
        "5",
        "--freeze-epochs",
        "1",
        "--json",
        "--quiet",
    ]
    assert cli.main(["finetune", model, "digits", *words]) == 0
    out = json.loads(capsys.readouterr().out)
    assert out["finished"] is True
    assert out["model"] == "runs/tiny-digits-digits/model.safetensors"
    assert Recipe.from_toml(Path("runs/tiny-digits-digits/recipe.toml")).freeze_epochs == 1
    photo = Path(__file__).resolve().parents[2] / "examples" / "photos" / "cat.jpg"
    assert cli.main(["predict", out["model"], str(photo), "--top", "1"]) == 0


def test_the_recipe_is_shown_as_it_would_be_used(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--recipe", "imagenet-gpu", "--lr", "0.1", "--set", "mixup_alpha=0.2", "--show-recipe"]
    assert cli.main(["train", "proxyless_gpu", "nowhere", *words]) == 0
    recipe = Recipe.from_toml(capsys.readouterr().out)
    assert (recipe.learning_rate, recipe.mixup_alpha, recipe.dropout, recipe.epochs) == (0.1, 0.2, 0.3, 300)
    assert cli.main(["train", "x", "y", "--list-recipes"]) == 0
    assert "imagenet-mobile-14" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["train", "proxyless_cifar10_demo", "nowhere"], 1, "nowhere: no such folder"),
        (["train", "proxyless_cifar10_dem", "digits"], 1, "did you mean proxyless_cifar10_demo"),
        (
            ["train", "proxyless_cifar10_demo", "digits", "--recipe", "smal-images"],
            1,
            "did you mean small-images",
        ),
        (
            ["train", "proxyless_cifar10_demo", "digits", "--set", "lr=1", "--set", "epochs=-1"],
            1,
            "learning_rate",
        ),
        (["train", "proxyless_cifar10_demo", "digits", "--device", "quantum"], 1, "'quantum': not usable"),
        (["train", "proxyless_cifar10_demo", "digits", "--threads", "0"], 2, "--threads: wanted"),
        (
            ["train", "proxyless_cifar10_demo", "digits", "--max-unreadable", "5"],
            2,
            "--max-unreadable: wanted a number from 0 to 1",
        ),
        (["finetune", "proxyless_cifar10_demo", "digits", "--weights", "none.pth"], 1, "none.pth"),
        (["train", "proxyless_cifar10_demo", "digits", "--batch-size", "5000"], 1, "fewer than one batch"),
    ],
)
def test_wrong_use_is_one_clear_error(
    words: list[str], code: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    try:
        found = cli.main(words)
    except SystemExit as e:
        found = int(str(e.code))
    assert found == code
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_same_command_goes_on(number: signal.Signals, tmp_path: Path) -> None:
    words = ["train", str(arch_file(tmp_path)), "digits", *SHORT, "--epochs", "300", "--save-every", "1"]
    words += ["--out", str(tmp_path / "run"), "--workers", "0"]
    child = subprocess.Popen(command(*words), env=environment(), stderr=subprocess.PIPE, text=True)
    last = tmp_path / "run" / "checkpoints" / "last.pt"
    deadline = time.monotonic() + 300
    while not last.exists() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    child.send_signal(number)
    _, err = child.communicate(timeout=300)
    assert child.returncode == 128 + number, err
    assert "stopped and saved at step" in err
    assert "Traceback" not in err
    reached = checkpoint_of(tmp_path / "run")["position"]["global_step"]
    assert f"saved at step {reached:,}" in err
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path: Path) -> None:
    """The size of files is limited, which makes writing fail as a full disk does."""
    arch = arch_file(tmp_path)
    words = ["train", str(arch), "digits", *SHORT, "--quiet", "--out", str(tmp_path / "run")]
    first = run_command(*words, "--epochs", "2")
    assert first.returncode == 0, first.stderr
    (tmp_path / "broken").mkdir()
    limited = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000));"
        "from proxylessnas.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    words[words.index(str(tmp_path / "run"))] = str(tmp_path / "broken")
    start = command(*words)
    done = subprocess.run(
        [start[0], "-c", limited, *start[3:]], env=environment(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 1
    assert "cannot be written" in done.stderr
    assert "run the same command again" in done.stderr
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "broken" / "checkpoints").iterdir()) == []
    again = run_command(*words)
    assert again.returncode == 0, again.stderr
    files = [tensors(tmp_path / name / "model.safetensors") for name in ("run", "broken")]
    assert differences_of(*files) == 0


def test_few_images_make_small_batches_with_a_lower_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [
        "train",
        str(arch_file(tmp_path)),
        "digits",
        "--recipe",
        "small-images",
        "--epochs",
        "1",
        "--limit",
        "6",
    ]
    words += ["--image-size", "8", "--set", "cutout=0", "--quiet", "--out"]
    assert cli.main([*words, "a"]) == 0
    assert "60 training images: batches of 4 in place of 128" in capsys.readouterr().err
    recipe = Recipe.from_toml(Path("a/recipe.toml"))
    assert (recipe.batch_size, recipe.learning_rate) == (4, pytest.approx(0.1 / 32))
    assert cli.main([*words, "b", "--batch-size", "32"]) == 0
    assert Recipe.from_toml(Path("b/recipe.toml")).learning_rate == pytest.approx(0.1 / 4)
    assert cli.main([*words, "c", "--batch-size", "32", "--lr", "0.1"]) == 0
    assert Recipe.from_toml(Path("c/recipe.toml")).learning_rate == pytest.approx(0.1)


def test_a_file_with_little_in_it_starts_from_the_default_of_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.toml").write_text("epochs = 7\n", encoding="utf-8")
    assert cli.main(["finetune", "x", "y", "--recipe", str(tmp_path / "mine.toml"), "--show-recipe"]) == 0
    recipe = Recipe.from_toml(capsys.readouterr().out)
    assert (recipe.epochs, recipe.learning_rate, recipe.freeze_epochs) == (7, 0.02, 1)


def test_a_folder_of_something_else_is_no_place_for_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    words = ["train", str(arch_file(tmp_path)), "digits", *SHORT, "--quiet", "--out"]
    assert cli.main([*words, str(tmp_path / "photos")]) == 1
    assert "holds other files and no run" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "photos").iterdir()] == ["cat"]


def test_a_run_is_begun_anew_beside_the_earlier_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    words = ["train", str(arch_file(tmp_path)), "digits", *SHORT, "--quiet", "--out", str(out)]
    assert cli.main(words) == 0
    assert cli.main([*words, "--seed", "1"]) == 1
    assert "seed: 1, was 0" in (err := capsys.readouterr().err)
    assert "--restart" in err
    assert cli.main([*words, "--seed", "1", "--restart"]) == 0
    assert Recipe.from_toml(tmp_path / "run.old1" / "recipe.toml").seed == 0
    assert Recipe.from_toml(out / "recipe.toml").seed == 1
    assert (out / "validation.txt").read_text().count("\n") == 50
