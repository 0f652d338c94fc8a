"""One search, several targets: a model each, and what is said of all of them."""

from __future__ import annotations

import csv
import io
import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from report_tools import Page
from search_tools import SHORT, TINY_SPACE, searcher_of, silent
from train_tools import noise_folder

from proxylessnas import DataError, cli, create_model, report
from proxylessnas.cli._front import chart
from proxylessnas.search import SearchRecipe, search
from proxylessnas.search.baselines import best_of
from proxylessnas.search.recipe import several_targets
from proxylessnas.search.run import derive
from proxylessnas.search.setup import SearchSetup
from proxylessnas.train import Settings
from proxylessnas.train.run import held_folder
from proxylessnas.utils.distributed import Processes
from proxylessnas.utils.signals import StopRequest

LIMITS = (0.026, 0.03, 0.05)
FRONT = SHORT.replace(front=LIMITS, final_candidates=4, final_evolution=2)
NAMES = ["0.026M-macs", "0.03M-macs", "0.05M-macs"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return noise_folder(tmp_path_factory.mktemp("pictures") / "data")


def settings(out: Path) -> Settings:
    return Settings(out, device="cpu", workers=0, console=False)


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished search."""
    out = tmp_path_factory.mktemp("runs") / "front"
    assert search(TINY_SPACE, data, FRONT, out=settings(out)).finished
    return out


def test_each_target_has_a_model(run: Path) -> None:
    document = json.loads((run / "front.json").read_text())
    assert (document["kind"], document["unit"], document["learnt_for"]) == ("macs", "M", 0.03)
    rows = document["models"]
    assert [row["target"] for row in rows] == list(LIMITS)
    assert [row["folder"] for row in rows] == NAMES
    for row in rows:
        assert row["predicted"] == row["macs_m"] <= row["target"]
        result = json.loads((run / row["folder"] / "result.json").read_text())
        assert (result["top1_held_out"], result["costs"]["macs"]) == (row["top1_held_out"], row["macs_m"])
        assert str(create_model(run / row["folder"] / "child.safetensors").arch) == row["arch"]
    accuracies = [row["top1_held_out"] for row in rows]
    assert accuracies == sorted(accuracies)  # what keeps to a lower limit keeps to a higher one
    table = list(csv.DictReader(io.StringIO((run / "front.csv").read_text())))
    assert [float(line["macs_m"]) for line in table] == [row["macs_m"] for row in rows]
    # The one that was learnt for is that of the run itself.
    for name in ("child.safetensors", "arch.txt"):
        assert (run / name).read_bytes() == (run / NAMES[1] / name).read_bytes()
    assert json.loads((run / "result.json").read_text())["limits"] == {"macs": 0.03}


def test_a_single_target_leaves_what_it_always_did(data: Path, tmp_path: Path) -> None:
    result = search(TINY_SPACE, data, SHORT, out=settings(tmp_path / "one"))
    assert result.front == ()
    assert not [path for path in (tmp_path / "one").iterdir() if path.name.startswith("front")]
    assert [path.name for path in (tmp_path / "one").iterdir() if path.is_dir()] == ["checkpoints"]
    kept = json.loads((tmp_path / "one" / "result.json").read_text())
    assert not {"front", "chosen_of", "most_probable_top1"} & kept.keys()
    assert "front" not in SHORT.to_toml()


def test_a_finished_front_is_kept_and_shown(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    result = search(TINY_SPACE, data, FRONT, out=settings(run))
    assert [r.folder.name for r in result.front] == NAMES
    assert [r.limits["macs"] for r in result.front] == list(LIMITS)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    capsys.readouterr()
    words = ["search", "show", str(run), "--import", "search_tools"]
    assert cli.main(words) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in NAMES)
    assert "macs (M): o predicted" in shown
    pytest.importorskip("matplotlib")
    report.write_report(run, tmp_path / "report.html")
    text = Page(tmp_path / "report.html").text
    assert "A model for each target" in text
    assert all(name in text for name in NAMES)


def test_evaluations_are_shared_and_those_of_each_target_resumed(data: Path, tmp_path: Path) -> None:
    whole = searcher_of(data, tmp_path / "whole", FRONT)
    assert whole.evaluator.due == 18
    assert whole.fit(StopRequest(), silent())
    for _ in range(20):  # stopped after every evaluation
        part = searcher_of(data, tmp_path / "parts", FRONT)
        part.resume()
        stop = StopRequest()
        stop.signal = signal.SIGTERM if part.trained else None
        if part.fit(stop, silent()):
            break
    assert part.evaluator.evaluated == whole.evaluator.evaluated
    for constraints in whole.setup.targets:
        found = whole.evaluator.within(constraints)
        assert whole.evaluator.derived(constraints) == list(best_of(found).choices)
    assert len(whole.evaluator.within(whole.setup.targets[2])) == 18


@pytest.mark.parametrize("algorithm", ["random", "evolution"])
def test_baselines_evaluate_as_many_for_each_target(algorithm: str, data: Path, tmp_path: Path) -> None:
    recipe = FRONT.replace(algorithm=algorithm, population=2)
    searcher = searcher_of(data, tmp_path / "x", recipe)
    assert searcher.fit(StopRequest(), silent())
    costs = [e.costs[0] for e in searcher.evaluator.evaluated]
    assert len(costs) == 12
    for n, limit in enumerate(LIMITS):
        assert all(cost <= limit for cost in costs[4 * n : 4 * n + 4])


def test_derive_for_several_targets(run: Path, tmp_path: Path) -> None:
    result = derive(run, tmp_path / "two", target_macs_m=[0.04, 0.028], device="cpu")
    assert [r.limits["macs"] for r in result.front] == [0.028, 0.04]
    assert result.limits == {"macs": 0.04}
    assert "learnt_for" not in json.loads(
        (tmp_path / "two" / "front.json").read_text()
    )  # alpha learnt for 0.03
    assert result.chosen_of > 12  # what was evaluated before counts too
    one = derive(run, tmp_path / "one", target_macs_m=0.04, device="cpu")
    assert one.front == ()
    assert one.costs["macs"] <= 0.04
    same = derive(run, tmp_path / "same", device="cpu")
    kept = json.loads((run / "result.json").read_text())
    assert list(same.choices) == kept["picks"]
    assert [r.folder.name for r in same.front] == NAMES


def test_what_is_learnt_for(data: Path) -> None:
    assert several_targets({"target_ms": (8, 3, 5, 3), "target_macs_m": None}) == {
        "target_ms": 5.0, "target_macs_m": None, "front": (3.0, 5.0, 8.0),
    }  # fmt: skip
    assert several_targets({"target_ms": [3, 5]})["target_ms"] == 5.0
    assert several_targets({"target_ms": 3, "target_macs_m": 9}) == {
        "target_ms": 3, "target_macs_m": 9, "front": None,
    }  # fmt: skip
    with pytest.raises(DataError, match="`target_macs_m` is several limits, which the first target alone"):
        several_targets({"target_ms": 3, "target_macs_m": (1, 2)})
    for limits in ([], [1.0, None], [1.0, True], ("1", "2")):
        with pytest.raises(DataError, match="`target_ms` must be a number or several, not"):
            several_targets({"target_ms": limits})
    with pytest.raises(DataError, match="target_ms must be a number"):
        SearchRecipe(**several_targets({"target_ms": "1,2"}))
    with pytest.raises(DataError, match="front must hold the first target, and it is 4"):
        SearchRecipe(target_ms=4.0, front=(3.0, 5.0))
    with pytest.raises(DataError, match="front must hold the first target, and there is none"):
        SearchRecipe(front=(3.0, 5.0))
    with pytest.raises(DataError, match=r"no model of this space keeps to macs 0\.001 M"):
        SearchSetup(TINY_SPACE, str(data), FRONT.replace(front=(0.001, *LIMITS)))
    recipe = SearchRecipe(target_ms=3.0, front=(3.0, 5.0))
    assert SearchRecipe.from_toml(recipe.to_toml()) == recipe


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("--target-macs 0.3,0.5,0.4 --show-recipe", 0, "front = [0.3, 0.4, 0.5]"),
        ("--target-macs 0.3,x", 2, "argument --target-macs: wanted a number above 0"),
        ("--target-macs 0.3 --target-params 1,2", 2, "--target-params is several limits"),
        ("--target-macs 0.3,-1 --show-recipe", 1, "each above 0 and at most"),
    ],
)
def test_words(words: str, code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["search", "run", "--space", "tiny", "--data", "nowhere", *words.split()]) == code
    printed: Any = capsys.readouterr()
    assert said in printed.out + printed.err


def test_a_chart_of_characters() -> None:
    lines = chart({"o": [(1, 50), (3, 70)], "x": [(2, 60), (3, 70)]}, "up", "across").splitlines()
    assert lines[0] == "up"
    assert lines[1].startswith("  70.00 |")
    assert lines[1].endswith("*")
    assert lines[10].startswith("  50.00 |o")
    assert sum("x" in line for line in lines[1:11]) == 1
    assert lines[12].split() == ["1", "3"]
    assert chart({"o": [(1, 50)]}, "up", "across")  # a single point


def test_what_a_killed_write_left_in_the_folder_of_a_target_goes(run: Path) -> None:
    left = run / NAMES[0] / "result.json.1-ab.tmp"
    left.write_text("half", encoding="utf-8")
    with held_folder(run, Processes(0, 1, torch.device("cpu"))):
        assert not left.exists()
