"""Searches of tree cells: the same gates, paths, costs, resume and reports as of chains."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from search_tools import SHORT, same, silent, state_of
from torch import Tensor
from torch.nn import functional as F
from train_tools import in_two_processes, noise_folder

from proxylessnas import ArchError, create_model
from proxylessnas.arch.tree_space import TreeSpace
from proxylessnas.models.profile import profile
from proxylessnas.report import write_report
from proxylessnas.search import SearchRecipe, search
from proxylessnas.search.constraints import Constraint, size_costs
from proxylessnas.search.derivation import most_probable
from proxylessnas.search.mixed_op import MixedOp
from proxylessnas.search.searcher import Searcher
from proxylessnas.search.setup import SearchSetup
from proxylessnas.search.supernet import SuperNet, TreeSuperNet, seeded
from proxylessnas.train import Settings
from proxylessnas.utils.distributed import Processes
from proxylessnas.utils.signals import StopRequest

SPACE = TreeSpace("s", cells=2, start=4, alpha=4, num_stages=2, resolution=8, num_classes=5)
EDGES = 24
RECIPE = SHORT.replace(target_macs_m=None, target_params_m=0.0035, arch_rate=0.1)


def supernet(seed: int = 0) -> SuperNet:
    model = seeded(SPACE, seed).double().train()
    model.alphas.init(torch.Generator().manual_seed(seed), std=1.0)
    return model


def batch(n: int = 6) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(n, 3, 8, 8, generator=g, dtype=torch.float64), torch.arange(n) % 5


class Mixture:
    """Every edge written out as ``sum_k g_k o_k(x)``."""

    def __init__(self, model: SuperNet, gates: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
        row_of = {id(mixed_op): row for mixed_op, row in zip(model.mixed_ops, gates, strict=True)}

        def forward(mixed_op: MixedOp, x: Tensor) -> Tensor:
            row, total = row_of[id(mixed_op)], torch.zeros(())
            for k in range(len(mixed_op.allowed)):
                op = mixed_op.op(k)
                assert op is not None
                total = total + row[k] * op(x)
            return total

        monkeypatch.setattr(MixedOp, "forward", forward)


@pytest.mark.parametrize("store", [False, True])
def test_gates_get_the_gradient_of_the_mixture(store: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, (x, t) = supernet(), batch()
    assert isinstance(model, TreeSuperNet)
    path = model.random_path(random.Random(1))
    gates = torch.zeros(EDGES, 7, dtype=torch.float64, requires_grad=True)
    with model.statistics_kept():
        with model.gated(gates, [range(7)] * EDGES, store=store):
            loss = F.cross_entropy(model(x), t)
        (found,) = torch.autograd.grad(loss, gates)
        written = F.one_hot(torch.tensor(path), 7).double().requires_grad_()
        with monkeypatch.context() as patch:
            Mixture(model, written, patch)
            true_loss = F.cross_entropy(model(x), t)
            (wanted,) = torch.autograd.grad(true_loss, written)
    assert wanted.abs().max() > 1e-3
    torch.testing.assert_close(loss, true_loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


def test_a_child_is_the_path() -> None:
    model, (x, _) = supernet(), batch()
    model(x)  # statistics that are not those of the start
    model.eval()
    choices = model.random_path(random.Random(2))
    child = model.child(name="mine")
    assert child.arch == SPACE.arch(choices, "mine")
    assert torch.equal(child(x), model(x))
    before = state_of(model)
    with torch.no_grad():
        for p in child.parameters():
            p.add_(1)
    assert same(before, state_of(model))
    again = create_model(child.arch)
    again.load_state_dict(child.state_dict())


def test_costs_are_those_of_the_models_and_limits_are_kept() -> None:
    model = seeded(SPACE, 0)
    model.alphas.init(torch.Generator().manual_seed(0), std=1.0)
    costs = size_costs(model)
    for seed in range(3):
        choices = model.random_path(random.Random(seed))
        counted = profile(create_model(SPACE.arch(choices)), 8)
        assert costs["macs"].of(choices) == pytest.approx(counted.macs / 1e6, rel=1e-12)
        assert costs["params"].of(choices) == pytest.approx(counted.params / 1e6, rel=1e-12)
    low, high = costs["params"].range()
    limit = low + 0.3 * (high - low)
    found = most_probable(model.alphas.log_probs(), [Constraint(costs["params"], limit)])
    assert low < costs["params"].of(found) <= limit


def searcher_of(folder: Path, out: str, processes: Processes | None = None, **changes: object) -> Searcher:
    settings = Settings(folder / out, device="cpu", workers=0, console=False)
    setup = SearchSetup(SPACE, str(folder / "data"), RECIPE.replace(**changes))
    return Searcher(setup, settings, processes or Processes(0, 1, torch.device("cpu")))


class After:
    """Asks to stop after some looks, as a signal would."""

    def __init__(self, looks: int) -> None:
        self.looks = looks

    @property
    def signal(self) -> int | None:
        self.looks -= 1
        return 15 if self.looks < 0 else None


@pytest.mark.parametrize("mode", ["two", "full_v2"])
def test_a_search_that_was_stopped_ends_with_the_same_bits(tmp_path: Path, mode: str) -> None:
    noise_folder(tmp_path / "data")
    whole = searcher_of(tmp_path, "whole", arch_mode=mode)
    assert whole.fit(StopRequest(), silent())
    stopped = searcher_of(tmp_path, "stopped", arch_mode=mode)
    assert not stopped.fit(After(6), silent())  # type: ignore[arg-type]
    assert 0 < stopped.position.global_step < whole.position.global_step
    resumed = searcher_of(tmp_path, "stopped", arch_mode=mode)
    resumed.resume()
    assert resumed.fit(StopRequest(), silent())
    assert torch.equal(resumed.model.alphas.logits, whole.model.alphas.logits)
    assert same(state_of(resumed.model), state_of(whole.model))
    assert whole.model.alphas.logits.abs().max() > 0.02  # it has moved


def work(rank: int, folder: str) -> None:
    searcher = searcher_of(Path(folder), "two", Processes(rank, 2, torch.device("cpu")), sync_bn=True)
    assert searcher.fit(StopRequest(), silent())
    torch.save(searcher.model.alphas.logits.detach(), f"{folder}/{rank}.pt")


def test_two_processes_search_as_one(tmp_path: Path) -> None:
    noise_folder(tmp_path / "data")
    in_two_processes(work, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    alone = searcher_of(tmp_path, "one", sync_bn=True)
    assert alone.fit(StopRequest(), silent())
    assert torch.equal(first, second)
    torch.testing.assert_close(first, alone.model.alphas.logits.detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("algorithm", ["gradient", "reinforce", "evolution"])
def test_a_whole_search_and_its_page(tmp_path: Path, algorithm: str) -> None:
    noise_folder(tmp_path / "data")
    recipe: SearchRecipe = RECIPE.replace(algorithm=algorithm, population=2)
    out = tmp_path / "run"
    result = search(
        SPACE, tmp_path / "data", recipe, out=Settings(out, device="cpu", workers=0, console=False)
    )
    assert result.finished
    assert result.costs["params"] <= 0.0035
    model = create_model(str(out / "child.safetensors"))
    assert str(model.arch) == str(result.arch) == (out / "arch.txt").read_text().strip()
    assert (out / "net.config").is_file()
    write_report(out, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "24 searched edges" in page
    assert "depthwise-separable" in page


def test_a_table_serves_no_tree(tmp_path: Path) -> None:
    """That is said first, and not that the table should be validated."""
    noise_folder(tmp_path / "data")
    with pytest.raises(ArchError, match="is a space of tree cells, and latencies are known of blocks alone"):
        SearchSetup(SPACE, str(tmp_path / "data"), RECIPE, "pixel1")
