"""What an arch step minimises, against its formulas."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable

import pytest
import torch

from proxylessnas import DataError
from proxylessnas.search.objective import Objective, Reward, expected_cost


def slope(function: Callable[[float], float], at: float) -> float:
    step = 1e-6 * max(abs(at), 1.0)
    return (function(at + step) - function(at - step)) / (2 * step)


OBJECTIVES = [
    Objective("mul_log", 80.0),
    Objective("mul_log", 80.0, strength=0.6, scale=1.0),
    Objective("mul_log", 5.0),
    Objective("mul_log", 0.5, strength=2.0),
    Objective("mul_log", 1.0),
    Objective("add_linear", 80.0, strength=0.1),
    Objective("add_linear", 0.02, strength=0.2),
    Objective("none"),
]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
@pytest.mark.parametrize("loss", [0.1, 2.3, 6.9])
@pytest.mark.parametrize("share", [0.4, 0.99, 1.0, 1.8])
def test_derivatives_are_those_of_finite_differences(objective: Objective, loss: float, share: float) -> None:
    cost = share * (objective.target or 7.0)
    gradient = objective.gradient(loss, cost)
    by_loss = slope(lambda v: objective.gradient(v, cost).value, loss)
    by_cost = slope(lambda v: objective.gradient(loss, v * cost).value, 1.0) / cost
    assert gradient.by_loss == pytest.approx(by_loss, rel=1e-6)
    assert gradient.by_cost == pytest.approx(by_cost, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(("loss", "cost"), list(itertools.product([0.5, 6.0], [30.0, 80.0, 190.0])))
def test_values_are_those_of_the_original_code(loss: float, cost: float) -> None:
    assert Objective("mul_log", 80.0).gradient(loss, cost).value == pytest.approx(
        0.2 * loss * (math.log(cost) / math.log(80.0)) ** 0.3
    )
    assert Objective("add_linear", 80.0, strength=0.1).gradient(loss, cost).value == pytest.approx(
        loss + 0.1 * (cost - 80.0) / 80.0
    )
    assert Objective("none").gradient(loss, cost) == (loss, 1.0, 0.0)


def test_at_the_target_mul_log_is_the_scaled_loss() -> None:
    for target in (0.01, 0.5, 1.0, 9.9, 10.0, 80.0, 5e3):
        assert Objective("mul_log", target).gradient(2.0, target).value == pytest.approx(0.4)


@pytest.mark.parametrize("target", [1e-4, 0.05, 0.9999, 1.0, 1.0001, 3.0, 9.99, 10.0, 1e4])
def test_small_targets_keep_their_sense(target: float) -> None:
    objective = Objective("mul_log", target)
    assert target * objective.unit_scale >= 10 - 1e-9
    assert target >= 10 or target * objective.unit_scale < 100
    values = [objective.gradient(2.0, share * target) for share in (1e-3, 0.3, 0.7, 1.0, 1.5, 4.0, 100.0)]
    for gradient in values:
        assert all(math.isfinite(v) for v in gradient)
        assert gradient.by_cost > 0  # a dearer model is always worse
    assert all(a.value < b.value for a, b in itertools.pairwise(values))


def test_the_logarithms_are_those_of_milliseconds_from_ten_on() -> None:
    for target in (10.0, 80.0, 300.0):
        assert Objective("mul_log", target).unit_scale == 1.0
    assert Objective("mul_log", 5.0).unit_scale == 10.0
    assert Objective("mul_log", 0.5).unit_scale == 100.0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "mul#log"}, "mul_log, add_linear, none"),
        ({"target": None}, "target above 0"),
        ({"target": 0.0}, "target above 0"),
        ({"target": -1.0}, "target above 0"),
        ({"target": float("nan")}, "target above 0"),
        ({"target": float("inf")}, "target above 0"),
        ({"strength": -0.1}, "strength"),
        ({"strength": float("nan")}, "strength"),
        ({"scale": float("inf")}, "scale"),
    ],
)
def test_nonsense_is_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(DataError, match=words):
        dataclasses.replace(Objective("mul_log", 80.0), **changes)


def test_expected_cost_is_the_mean_over_all_models() -> None:
    g = torch.Generator().manual_seed(0)
    costs = torch.rand(3, 4, generator=g, dtype=torch.float64)
    logits = torch.randn(3, 4, generator=g, dtype=torch.float64, requires_grad=True)
    p = logits.softmax(1)
    found = expected_cost(p, costs, 1.5)
    mean = sum(
        math.prod(float(p[i, k].detach()) for i, k in enumerate(choices))
        * (1.5 + sum(float(costs[i, k]) for i, k in enumerate(choices)))
        for choices in itertools.product(range(4), repeat=3)
    )
    assert found.item() == pytest.approx(mean, rel=1e-12)
    found.backward()
    q = p.detach()
    torch.testing.assert_close(logits.grad, q * (costs - (q * costs).sum(1, keepdim=True)))


def test_reward() -> None:
    reward = Reward().of
    assert reward(0.7, 40.0, 80.0) == pytest.approx(0.7 * 2**0.1)
    assert reward(0.7, 160.0, 80.0) == pytest.approx(0.7 * 0.5**0.1)
    assert reward(0.7, 80.0, 80.0) == pytest.approx(0.7)
