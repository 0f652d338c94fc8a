"""The end of a search: probable models are evaluated, evolution goes on from them, the best is taken."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from search_tools import SHORT, TINY_SPACE, searcher_of, silent
from train_tools import noise_folder

from proxylessnas.search import search
from proxylessnas.search.baselines import Evaluated, Sampler, best_of, fits, probable_models
from proxylessnas.search.constraints import Constraint, Costs, MinDepth
from proxylessnas.search.derivation import Infeasible, most_probable
from proxylessnas.search.run import derive, dry_run
from proxylessnas.search.supernet import seeded
from proxylessnas.train import Settings
from proxylessnas.utils.signals import StopRequest

END = SHORT.replace(final_candidates=6, final_evolution=4)
MASK = torch.tensor(TINY_SPACE.mask)
COSTS = Costs("macs", "M", torch.rand(MASK.shape, generator=torch.Generator().manual_seed(0)).double() * MASK,
              0.5, MASK)  # fmt: skip
LIMITS = [Constraint(COSTS, 2.3)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return noise_folder(tmp_path_factory.mktemp("pictures") / "data")


def log_probs(sharpness: float, seed: int = 0) -> torch.Tensor:
    model = seeded(TINY_SPACE, 0)
    model.alphas.init(torch.Generator().manual_seed(seed), std=sharpness)
    return model.alphas.log_probs().detach()


@pytest.mark.parametrize("sharpness", [1e-3, 1.0, 30.0])
@pytest.mark.parametrize("depth", [None, MinDepth((0, 0, 1, 1), 4, 1)])
def test_probable_models_are_different_and_within_the_limits(
    sharpness: float, depth: MinDepth | None
) -> None:
    scores = log_probs(sharpness)
    found = probable_models(scores, LIMITS, 24, seed=1, min_utilization=0.85, depth=depth)
    assert len(set(found)) == len(found) == 24
    assert all(fits(choices, LIMITS, 0.0, depth) for choices in found)
    assert list(found[0]) == most_probable(scores, LIMITS, min_utilization=0.85, depth=depth)
    assert found == probable_models(scores, LIMITS, 24, seed=1, min_utilization=0.85, depth=depth)
    assert found != probable_models(scores, LIMITS, 24, seed=2, min_utilization=0.85, depth=depth)
    assert any(not fits(choices, LIMITS, 0.85, depth) for choices in found)  # below it, too


def test_probable_models_are_more_probable_than_most() -> None:
    scores = log_probs(2.0)
    found = probable_models(scores, [], 16, seed=0)
    assert list(found[0]) == scores.argmax(1).tolist()
    rows = torch.arange(4)
    values = [float(scores[rows, torch.tensor(choices)].sum()) for choices in found]
    every = torch.cartesian_prod(*[torch.arange(5)] * 4)
    every = every[MASK[rows, every].all(1)]
    middle = float(scores[rows, every].sum(1).median())
    assert sum(value > middle for value in values) >= 14


def test_few_models_are_all_of_them_and_none_is_an_error() -> None:
    cheapest = COSTS.of(COSTS.cheapest())
    assert probable_models(log_probs(1.0), [Constraint(COSTS, cheapest)], 9, seed=0) == [
        tuple(COSTS.cheapest())
    ]
    with pytest.raises(Infeasible):
        probable_models(log_probs(1.0), [Constraint(COSTS, 0.9 * cheapest)], 9, seed=0)


def test_the_best_has_the_lowest_loss_then_the_highest_accuracy() -> None:
    a, b = Evaluated((0,), 61.0, (1.0,), 0.9), Evaluated((1,), 60.0, (2.0,), 0.8)
    assert best_of([a, b, Evaluated((2,), 59.0, (0.0,), 0.8)]) is b
    assert best_of([dataclasses.replace(a, loss=float("nan")), b]) is b
    last_digits = dataclasses.replace(b, choices=(3,), costs=(1.0,), loss=0.8 + 1e-9)
    assert best_of([b, last_digits]) is last_digits  # of equals the cheapest
    assert [Evaluated.from_list(json.loads(json.dumps(e.to_list()))) for e in (a, b)] == [a, b]
    assert Evaluated((1,), 5.0, (2.0,)).to_list() == [[1], 5.0, [2.0]]  # as it always was
    assert Evaluated.from_list([[1], 5, [2.0]]) == Evaluated((1,), 5.0, (2.0,))


def test_evolution_goes_on_from_the_first_models() -> None:
    first = probable_models(log_probs(1.0), LIMITS, 8, seed=0)
    sampler = Sampler(TINY_SPACE, LIMITS, END, first)
    evaluated: list[Evaluated] = []
    for number in range(20):
        choices = sampler.next(evaluated)
        evaluated.append(Evaluated(choices, float(choices.count(0)), (COSTS.of(choices),), 1.0))  # one loss
        assert number >= 8 or choices == first[number]
    assert len({e.choices for e in evaluated}) == 20
    assert all(fits(e.choices, LIMITS, 0.0, None) for e in evaluated)
    later = [e.top1 for e in evaluated[8:]]
    assert sum(later) / len(later) > sum(e.top1 for e in evaluated[:8]) / 8
    again = Sampler(TINY_SPACE, LIMITS, END, first)
    assert [again.next(evaluated[:n]) for n in range(20)] == [e.choices for e in evaluated]


def test_the_best_of_those_evaluated_is_what_a_search_ends_with(data: Path, tmp_path: Path) -> None:
    searcher = searcher_of(data, tmp_path / "x", END)
    assert searcher.evaluator.due == 10
    assert searcher.fit(StopRequest(), silent())
    assert searcher.finished
    evaluator = searcher.evaluator
    found = evaluator.evaluated
    assert len({e.choices for e in found}) == len(found) == 10
    assert list(found[0].choices) == evaluator.most_probable(searcher.setup.constraints)
    best = min(found, key=lambda e: e.loss)
    assert evaluator.derived() == list(best.choices)
    metrics = evaluator.inherited(best.choices)[1]
    assert (metrics.top1, metrics.loss) == (best.top1, best.loss)
    assert best.loss <= found[0].loss
    # A lower limit: the best of those that keep to it, or else the most probable model.
    costs = sorted(e.costs[0] for e in found)
    lower = [Constraint(searcher.setup.constraints[0].costs, costs[4])]
    assert evaluator.derived(lower) == list(best_of([e for e in found if e.costs[0] <= costs[4]]).choices)
    evaluator.evaluated[:] = [e for e in found if e.costs[0] > costs[4]]
    assert evaluator.derived(lower) == evaluator.most_probable(lower)


def test_a_search_says_what_its_end_will_be_and_was(data: Path, tmp_path: Path) -> None:
    settings = Settings(tmp_path / "run", device="cpu", workers=0, console=False)
    assert dry_run(TINY_SPACE, data, END, settings=settings).judgings == 10
    result = search(TINY_SPACE, data, END, out=settings)
    kept = json.loads((tmp_path / "run" / "result.json").read_text())
    assert kept["chosen_of"] == result.chosen_of == 10
    assert kept["most_probable_top1"] == result.most_probable_top1
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    notes = [line["text"] for line in lines if line["event"] == "note"]
    assert sum("6 probable models and 4 more by evolution" in text for text in notes) == 1
    assert any("the best of 10 evaluated models" in text for text in notes)
    rows = [json.loads(line) for line in (tmp_path / "run" / "search.jsonl").read_text().splitlines()]
    assert [row["number"] for row in rows if row["event"] == "judged"] == list(range(1, 11))
    # Another end asked for afterwards, or none by an earlier version: the result is kept.
    for changes in ({}, {"final_candidates": 0}, {"final_candidates": 9}):
        assert search(TINY_SPACE, data, END.replace(**changes), out=settings) == result
    derived = derive(tmp_path / "run", tmp_path / "same", device="cpu")
    assert (derived.choices, derived.top1) == (result.choices, result.top1)


def test_without_candidates_it_is_the_published_rule(data: Path, tmp_path: Path) -> None:
    for changes in ({"final_candidates": 0}, {"final_candidates": 0, "final_evolution": 0}):
        recipe: Any = END.replace(**changes)
        assert recipe.evaluated_models == 0
    searcher = searcher_of(data, tmp_path / "x", SHORT)
    assert searcher.fit(StopRequest(), silent())
    assert searcher.evaluator.evaluated == []
    assert searcher.evaluator.told_of(searcher.setup.constraints) == {}
    chosen = searcher.evaluator.derived()
    assert chosen == searcher.evaluator.most_probable(searcher.setup.constraints)
    assert math.isclose(searcher.setup.constraints[0].limit, 0.03)
