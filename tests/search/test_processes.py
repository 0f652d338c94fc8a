"""Several processes search as one (gloo, on this CPU), with the engine itself."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from search_tools import BLOCKS, COLUMNS, SHORT, searcher_of, silent
from torch import Tensor
from train_tools import differences_of, in_two_processes, noise_folder

from proxylessnas.search import SearchRecipe
from proxylessnas.search.searcher import Searcher
from proxylessnas.utils.distributed import Processes
from proxylessnas.utils.signals import StopRequest

SYNCED = SHORT.replace(sync_bn=True)
RECIPES = {
    "gradient": SYNCED,
    "two": SYNCED.replace(arch_mode="two"),
    "reinforce": SYNCED.replace(algorithm="reinforce"),
    # Statistics of each process's own; models are evaluated with the supernet's.
    "unsynced": SHORT.replace(recalibrate_batches=0),
    "with an end": SYNCED.replace(final_candidates=3, final_evolution=3),
}
WEIGHT_STEPS = 9


class Counted(Processes):
    """Takes note of what travels: how many numbers of which type, and what a plain model of the path has."""

    def watch(self, searcher: Searcher, found: dict[str, Any]) -> None:
        self.__dict__["watched"] = searcher, found

    def sum_(self, tensors: Iterable[Tensor]) -> None:
        tensors = list(tensors)
        if "watched" in self.__dict__:
            searcher, found = self.__dict__["watched"]
            path = [p for params in searcher.paths.of_path() for p in params]
            if sum(len(group["params"]) for group in searcher.optimizer.param_groups) == len(path):
                for tensor in tensors:  # of a weight step
                    found["sent"].append((tensor.numel(), sum(p.numel() for p in path)))
                    found["paths"].append(list(searcher.model.path))
        super().sum_(tensors)


def search_and_save(folder: str, name: str, rank: int, world: int) -> None:
    processes = Counted(rank, world, torch.device("cpu"))
    recipe: SearchRecipe = RECIPES[name]
    searcher = searcher_of(Path(folder) / "data", Path(folder) / f"{name}-{world}", recipe, processes)
    found: dict[str, Any] = {"sent": [], "paths": []}
    processes.watch(searcher, found)
    assert searcher.fit(StopRequest(), silent())
    del processes.__dict__["watched"]
    child, metrics = searcher.evaluator.inherited(searcher.evaluator.derived(), "child")
    found |= {
        "alphas": searcher.model.alphas.logits.detach(), "model": searcher.model.state_dict(),
        "child": child.state_dict(), "right": metrics.top1_correct, "loss": metrics.loss,
        "all": sum(p.numel() for p in searcher.model.parameters()), "arch_steps": searcher.arch_steps,
        "evaluated": [(list(e.choices), e.top1, e.loss) for e in searcher.evaluator.evaluated],
    }  # fmt: skip
    torch.save(found, f"{folder}/{name}-{world}-{rank}.pt")


def work(rank: int, folder: str) -> None:
    for name in RECIPES:
        search_and_save(folder, name, rank, 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    noise_folder(folder / "data")
    in_two_processes(work, folder)
    return folder


def found_by(folder: Path, name: str, rank: int, world: int = 2) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(folder / f"{name}-{world}-{rank}.pt", weights_only=True)
    return found


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "unsynced"])
def test_two_processes_give_what_one_with_the_whole_batch_gives(folder: Path, name: str) -> None:
    search_and_save(str(folder), name, 0, 1)
    one, two = found_by(folder, name, 0, world=1), found_by(folder, name, 0)
    assert one["arch_steps"] == two["arch_steps"] == 6
    torch.testing.assert_close(one["alphas"], two["alphas"], rtol=0, atol=1e-5)
    assert float(one["alphas"].abs().max()) > 0.05  # it has moved
    assert differences_of(one["model"], two["model"]) < 1e-5
    assert differences_of(one["child"], two["child"]) < 1e-5  # the model that is saved, recalibrated
    assert one["right"] == two["right"]
    assert [e[:2] for e in one["evaluated"]] == [e[:2] for e in two["evaluated"]]
    assert len(one["evaluated"]) == (6 if name == "with an end" else 0)


@pytest.mark.parametrize("name", RECIPES)
def test_all_processes_hold_the_same_bits(folder: Path, name: str) -> None:
    first, second = found_by(folder, name, 0), found_by(folder, name, 1)
    assert torch.equal(first["alphas"], second["alphas"])
    for part in ("model", "child"):  # statistics too: the first process's, which are in the checkpoint
        assert differences_of(first[part], second[part]) == 0
    assert (first["right"], first["loss"]) == (second["right"], second["loss"])
    assert first["evaluated"] == second["evaluated"]
    saved = torch.load(folder / f"{name}-2" / "checkpoints" / "last.pt", weights_only=True)
    assert differences_of(saved["model"], second["model"]) == 0
    assert torch.equal(saved["alphas"], second["alphas"])


@pytest.mark.parametrize("name", RECIPES)
def test_only_gradients_of_the_path_travel(folder: Path, name: str) -> None:
    for rank in (0, 1):
        found = found_by(folder, name, rank)
        assert len(found["sent"]) == WEIGHT_STEPS
        assert all(sent == active < found["all"] for sent, active in found["sent"])
        used = {(i, k) for path in found["paths"] for i, k in enumerate(path)}
        assert len(used) < BLOCKS * COLUMNS  # and the others' lack of a gradient keeps nobody waiting
