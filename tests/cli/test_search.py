"""`proxylessnas search` as typed: options, messages, exit codes, what is left behind."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from latency_table_tools import little
from train_tools import command, differences_of, environment, tensors

from proxylessnas import cli, create_model
from proxylessnas.arch.spaces import read_space
from proxylessnas.cli._command import Command
from proxylessnas.cli._search import Derive, Resume, Run, resolved_recipe
from proxylessnas.cli._search_show import Show
from proxylessnas.search import SearchRecipe

FITTED = "--space tiny --data digits --limit 8 --image-size 16 --warmup-epochs 1 --epochs 1".split()
FITTED += ["--set", "recalibrate_batches=1", "--threads", "1", "--system-malloc"]
SHORT = [*FITTED, "--batch-size", "16"]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished search."""
    folder = tmp_path_factory.mktemp("searches") / "a"
    assert cli.main(["search", "run", *SHORT, "--target-macs", "0.5", "--out", str(folder), "--quiet"]) == 0
    return folder


def parsed(command: Command, *words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.arguments(parser)
    args = parser.parse_args(words)
    args.parser = parser
    return args


def test_there_are_fewer_than_thirty_five_options() -> None:
    for action in (Run(), Resume(), Derive(), Show()):
        parser = argparse.ArgumentParser()
        action.arguments(parser)
        assert len(parser._actions) < 35


def test_every_action_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["search"]) == 2
    assert "derive another model from a search" in capsys.readouterr().err
    for action in ("run", "resume", "derive", "show"):
        assert cli.main(["search", action, "--help"]) == 0
        assert f"$ proxylessnas search {action}" in capsys.readouterr().out


def test_the_recipe_is_shown_as_it_would_be_used(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = "--target-ms 2.5 --target-params 3 --algorithm reinforce --set arch-rate=0.01 --seed 4".split()
    words += ["--epochs", "1", "--batch-size", "32", "--show-recipe"]
    assert cli.main(["search", "run", "--space", "small@1.2", "--data", "nowhere", *words]) == 0
    recipe = SearchRecipe.from_toml(capsys.readouterr().out)
    assert recipe.targets == {"latency": 2.5, "params": 3.0}
    assert (recipe.algorithm, recipe.arch_rate, recipe.seed) == ("reinforce", 0.01, 4)
    assert (recipe.warmup_epochs, recipe.epochs, recipe.frozen_epochs) == (20, 1, 0)
    assert (recipe.weights.batch_size, recipe.weights.learning_rate, recipe.search_rate) == (
        32,
        0.025,
        0.0125,
    )
    assert cli.main(["search", "run", "--space", "x", "--data", "y", "--list-recipes"]) == 0
    assert "published: ImageNet" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_the_recipe_goes_with_the_space(tmp_path: Path) -> None:
    def resolved(space: str, *words: str) -> SearchRecipe:
        return resolved_recipe(parsed(Run(), "--space", space, "--data", "x", *words))

    assert resolved("tiny") == SearchRecipe.preset("tiny")
    assert resolved("ImageNet@1.4") == SearchRecipe.preset("imagenet+")  # not the published one
    assert resolved("ImageNet@1.4", "--recipe", "imagenet") == SearchRecipe.preset("imagenet")
    assert resolved("mine.toml") == resolved("small") == SearchRecipe.preset("small")
    assert resolved("cpu26@0.75") == SearchRecipe.preset("imagenet+")
    assert resolved("cifar-tree") == SearchRecipe.preset("cifar+")
    assert resolved("cpu26-small") == SearchRecipe.preset("small")
    assert resolved("tiny", "--recipe", "cifar") == SearchRecipe.preset("cifar")
    (tmp_path / "own.toml").write_text("target_ms = 3.0\n")
    assert resolved("tiny", "--recipe", str(tmp_path / "own.toml")) == SearchRecipe.preset("small").replace(
        target_ms=3.0
    )
    rate = resolved("tiny", "--batch-size", "8", "--set", "learning_rate=0.2").weights.learning_rate
    assert rate == 0.2


def test_a_search_leaves_a_model_that_every_command_takes(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {path.name for path in run_folder.iterdir()}
    assert {
        "arch.txt",
        "net.config",
        "child.safetensors",
        "search.toml",
        "search.jsonl",
        "result.json",
    } <= names
    result = json.loads((run_folder / "result.json").read_text())
    assert result["finished"] is True
    assert result["costs"]["macs"] <= 0.5
    model = create_model(run_folder / "child.safetensors").eval()
    assert model(torch.zeros(1, 3, 16, 16)).shape == (1, 10)
    capsys.readouterr()
    assert cli.main(["info", str(run_folder / "child.safetensors")]) == 0
    assert "tiny" not in capsys.readouterr().err


def test_show(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["search", "show", str(run_folder)]) == 0
    out = capsys.readouterr().out
    assert "gradient in the space tiny" in out
    assert re.search(r"state +finished", out)
    assert "multiply-accumulates of at most 0.5 M" in out
    assert "entropy" in out
    assert len(re.findall(r"^ +\d +\d  \S+ +\d\.\d\d", out, re.MULTILINE)) == 6
    assert "Arch('a'" in out
    assert cli.main(["search", "show", str(run_folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["finished"] is True


def test_derive(run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "small"
    words = ["search", "derive", str(run_folder), "--target-macs", "0.4", "--out", str(out)]
    assert cli.main(words) == 0
    printed = capsys.readouterr()
    assert printed.out.strip() == str(out / "child.safetensors")
    assert "of at most 0.4 M" in printed.err
    result = json.loads((out / "result.json").read_text())
    assert result["costs"]["macs"] <= 0.4
    assert create_model(out / "child.safetensors").num_classes == 10
    assert cli.main(words) == 1
    assert "is there already" in capsys.readouterr().err
    words[-1] = str(tmp_path / "other")
    assert cli.main([*words[:4], "0.01", *words[5:], "--json"]) == 1
    assert "error" in json.loads(capsys.readouterr().out)


def test_resuming_a_finished_search_gives_the_same_model(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, arch = tensors(run_folder / "child.safetensors"), (run_folder / "arch.txt").read_bytes()
    result = (run_folder / "result.json").read_bytes()
    assert cli.main(["search", "resume", str(run_folder), "--quiet", "--json", "--system-malloc"]) == 0
    assert json.loads(capsys.readouterr().out)["finished"] is True
    assert differences_of(tensors(run_folder / "child.safetensors"), before) == 0
    assert (run_folder / "arch.txt").read_bytes() == arch
    assert (run_folder / "result.json").read_bytes() == result


def test_a_dry_run_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["search", "run", *SHORT, "--dry-run"]) == 0
    printed = capsys.readouterr()
    assert re.search(r"weight steps +10 of \d+ ms", printed.out)
    assert "80 to train weights on, 80 held out" in printed.out
    assert "no target is set" in printed.err
    assert cli.main(["search", "run", *SHORT, "--target-macs", "0.5", "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["weight_steps"] == 10
    assert found["pictures"] == [80, 80]
    assert list(tmp_path.iterdir()) == []


def test_few_images_make_smaller_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["search", "run", *FITTED, "--target-macs", "0.5", "--dry-run"]) == 0
    printed = capsys.readouterr()
    assert "batches of 8 in place of 32, with a learning rate of 0.05" in printed.err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("--target-ms 2", 1, "needs a latency table"),
        ("--target-ms 2 --table nowhere.json", 1, "nowhere.json"),
        ("--target-macs 0.01", 1, "go from"),
        ("--recipe tny", 1, "did you mean tiny"),
        ("--set arch_rat=1 --set epochs=0", 1, "2 problems"),
        ("--algorithm darts", 1, '"gradient", "reinforce", "random" or "evolution"'),
        ("--target-macs -1", 1, "target_macs_m must be a number above 0"),
        ("--space tny", 1, "did you mean tiny"),
        ("--data nowhere", 1, "nowhere: no such folder"),
        ("--import no_such_module_here", 2, "--import no_such_module_here"),
        ("--workers -1", 2, "--workers: wanted"),
        ("--dry-run --restart", 2, "leave one out"),
        ("--colour red", 2, "unrecognised arguments"),
    ],
)
def test_wrong_words(
    words: str,
    code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["search", "run", *SHORT, *words.split()]) == code
    printed = capsys.readouterr()
    assert message in printed.err
    assert "Traceback" not in printed.err
    assert printed.out == ""
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_table_that_was_never_tried_names_the_option(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    little(space=read_space("tiny").replace(resolution=16)).save(tmp_path / "t.json")
    words = ["search", "run", *SHORT, "--target-ms", "50", "--table", str(tmp_path / "t.json")]
    assert cli.main([*words, "--out", str(tmp_path / "a")]) == 1
    assert capsys.readouterr().err.rstrip().endswith("or search with it all the same: --force")


_OPS = """
from torch import nn
from proxylessnas import register_op

def plain(inputs, outputs, stride):
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs))

register_op("clisearchplain3", plain)
"""
_SPACE = """
stem = 8
first = 8
last = 32
resolution = 16
candidates = ["k3e2", "clisearchplain3"]
zero = false
stages = [{ width = 16, stride = 2, blocks = 2 }]
"""


def test_a_space_and_operations_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("cli_search_ops.py").write_text(_OPS)
    Path("mine.toml").write_text(_SPACE)
    words = ["search", "run", *SHORT, "--space", "mine.toml", "--recipe", "tiny", "--quiet"]
    assert cli.main(words) == 1
    assert "unknown operation 'clisearchplain3'" in capsys.readouterr().err
    assert cli.main([*words, "--import", "cli_search_ops"]) == 0
    assert capsys.readouterr().out.strip() == "runs/search-mine-digits/child.safetensors"
    folder = "runs/search-mine-digits"
    assert cli.main(["search", "show", folder, "--import", "cli_search_ops"]) == 0
    words = ["search", "derive", folder, "-o", "d", "--import", "cli_search_ops", "--threads", "1"]
    assert cli.main(words) == 0
    assert create_model("d/child.safetensors").num_classes == 10


@pytest.mark.parametrize("action", ["resume", "show", "derive"])
def test_a_folder_without_a_search(action: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["-o", str(tmp_path / "new")] if action == "derive" else []
    assert cli.main(["search", action, str(tmp_path / "no"), *more]) == 1
    assert "holds no search" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_another_search_in_the_folder(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["search", "run", *SHORT, "--target-macs", "0.45", "--out", str(run_folder), "--quiet"]
    assert cli.main(words) == 1
    assert "target_macs_m: 0.45, was 0.5" in capsys.readouterr().err


def test_interrupted_a_search_says_how_far_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    words = [*SHORT, "--target-macs", "0.5", "--quiet", "--save-every", "1"]
    words[words.index("--epochs") + 1] = "40"
    process = subprocess.Popen(
        command("search", "run", *words, "--out", str(folder)), env=environment(),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 300
    while not list(folder.glob("checkpoints/*.pt")) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGTERM, err
    assert out == ""
    assert "stopped and saved at step" in err
    assert cli.main(["search", "show", str(folder)]) == 0
    assert "not finished" in capsys.readouterr().out
