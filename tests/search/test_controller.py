"""The expected cost arrives at the target, whatever the target, the trade-off and the length."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from proxylessnas.search.arch_params import ArchParameters
from proxylessnas.search.objective import ConstraintController, Objective, expected_cost

#: Alpha's rate, arch steps, blocks, candidates: the recipe `tiny` on the bundled digits, `small` on fewer
#: images than it is made for, and a fraction of `imagenet`, which has some hundred thousand.
SEARCHES = {"tiny": (3e-2, 130, 6, 5), "small": (1e-2, 600, 11, 9), "imagenet": (1e-3, 2000, 21, 7)}


def course(
    search: tuple[float, int, int, int],
    share: float,
    kind: str,
    *,
    worth: float = 0.02,
    noise: float = 0.02,
    adapt: bool = True,
    start: float = 0.0,
) -> tuple[list[float], Tensor, list[float]]:
    """Return the expected cost after each arch step by the target, probabilities, and strengths by the first.

    Costs and what each candidate does for the cross-entropy are drawn; the dearer it is, the more. The last
    candidate is Zero. What an arch step sees of it is noisy.

    Args:
        search: one of ``SEARCHES``.
        share: where in the range of all models' costs the target is.
        kind: of the objective.
        worth: cross-entropy that one unit of cost brings down.
        noise: of the gates' gradient.
        adapt: of the controller.
        start: how much more probable the dearer candidates are at first.
    """
    rate, steps, blocks, columns = search
    g = torch.Generator().manual_seed(0)

    def randn() -> Tensor:
        return torch.randn(blocks, columns, generator=g, dtype=torch.float64)

    alphas = ArchParameters([[True] * columns] * blocks)
    alphas.init(g)
    costs = torch.rand(blocks, columns, generator=g, dtype=torch.float64) * 6 + 2
    costs[:, -1] = 0.0
    with torch.no_grad():
        alphas.logits += start * costs / 8
    gain, fixed = worth * (costs + randn()), 11.0
    least, most = (float(v.sum()) + fixed for v in (costs.amin(1), costs.amax(1)))
    target = least + share * (most - least)
    optimizer = torch.optim.Adam([alphas.logits], rate, betas=(0.0, 0.999))
    strength = 0.3 if kind == "mul_log" else 0.1
    controller = ConstraintController(Objective(kind, target, strength), adapt=adapt, rate=rate)
    found, factors = [], [1.0]
    for _ in range(steps):
        optimizer.zero_grad()
        probs = alphas.probs()
        cost = expected_cost(probs, costs, fixed)
        loss = max(0.1, 4.0 - float((probs.detach() * gain).sum()))
        gradient = controller.current().gradient(loss, float(cost.detach()))
        (cost * gradient.by_cost).backward()
        alphas.add_gate_gradient((noise * randn() - gain) * gradient.by_loss)
        optimizer.step()
        after = float(expected_cost(alphas.probs().detach(), costs, fixed))
        controller.update(after)
        found.append(after / target)
        factors.append(controller.current().strength / strength)
    return found, alphas.probs().detach(), factors


@pytest.mark.parametrize("kind", ["mul_log", "add_linear"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("name", SEARCHES)
def test_the_expected_cost_ends_within_5_percent_of_the_target(name: str, share: float, kind: str) -> None:
    found, _, _ = course(SEARCHES[name], share, kind)
    assert all(0.95 < ratio < 1.05 for ratio in found[-len(found) // 10 :]), found[:: len(found) // 10]


@pytest.mark.parametrize("start", [-1.5, 1.5])
@pytest.mark.parametrize("share", [0.3, 0.7])
def test_wherever_it_starts(share: float, start: float) -> None:
    found, _, _ = course(SEARCHES["small"], share, "mul_log", start=start)
    assert found[-1] / 0.97 == pytest.approx(1.0, abs=0.03), found[:: len(found) // 10]


@pytest.mark.parametrize("worth", [0.0, -0.005])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("name", ["tiny", "small"])
def test_models_become_dearer_again_where_accuracy_does_not_ask_for_it(
    name: str, share: float, worth: float
) -> None:
    found, _, factors = course(SEARCHES[name], share, "mul_log", worth=worth)
    assert found[-1] / 0.97 == pytest.approx(1.0, abs=0.03), found[:: len(found) // 10]
    assert factors[-1] < 0.5


def test_but_not_against_a_loss_that_wants_cheaper_ones_by_far() -> None:
    found, _, factors = course(SEARCHES["small"], 0.7, "add_linear", worth=-0.5)
    assert found[-1] < 0.8
    assert factors[-1] == pytest.approx(-30.0)


@pytest.mark.parametrize("share", [0.2, 0.8])
@pytest.mark.parametrize("name", SEARCHES)
def test_the_strength_moves_smoothly(name: str, share: float) -> None:
    _, _, factors = course(SEARCHES[name], share, "mul_log")
    assert max(abs(b - a) / (1 + abs(a)) for a, b in itertools.pairwise(factors)) < 0.9
    settled = factors[len(factors) // 2 :]
    assert max(abs(b - a) / (1 + abs(a)) for a, b in itertools.pairwise(settled)) < 0.6


@pytest.mark.parametrize(("worth", "noise"), [(0.002, 0.02), (0.02, 0.3), (0.06, 0.02)])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_whatever_accuracy_is_worth_and_however_noisy_it_is(share: float, worth: float, noise: float) -> None:
    found, _, _ = course(SEARCHES["small"], share, "mul_log", worth=worth, noise=noise)
    assert 0.95 < found[-1] < 1.05, found[:: len(found) // 10]


def test_without_the_controller_it_does_not() -> None:
    for share in (0.2, 0.5):
        found, _, factors = course(SEARCHES["tiny"], share, "mul_log", adapt=False)
        assert found[-1] > 1.1
        assert set(factors) == {1.0}


def test_a_large_cost_at_the_start_leaves_the_loss_its_say() -> None:
    """Far from the target the cost decides; once there, alpha still moves to what is better at its cost."""
    found, probs, _ = course(SEARCHES["small"], 0.2, "mul_log")
    assert found[0] > 1.3
    entropy = -(probs * probs.clamp_min(1e-300).log()).sum(1).mean()
    assert float(entropy) < 1.0  # of 2.2 nats


def test_a_strength_of_zero_stays_one() -> None:
    controller = ConstraintController(Objective("add_linear", 10.0, 0.0), rate=0.1)
    for _ in range(10):
        controller.update(30.0)
    assert controller.current().gradient(1.0, 30.0).by_cost == 0.0
    assert controller.current().gradient(1.0, 30.0).by_loss == 1.0


def test_a_run_goes_on_from_its_state() -> None:
    first, second = (ConstraintController(Objective("mul_log", 10.0), rate=0.1) for _ in range(2))
    for cost in (12.0, 10.5, 9.0):
        first.update(cost)
    second.load_state_dict(first.state_dict())
    assert second.current() == first.current() != Objective("mul_log", 10.0)


def test_a_state_of_before_is_read() -> None:
    """It had the logarithm of the strength's multiple, but for the proportional part."""
    controller = ConstraintController(Objective("mul_log", 10.0), rate=0.1)
    controller.load_state_dict({"integral": 1.5, "error": 0.1})
    assert controller.strength == pytest.approx(0.3 * math.exp(1.5))
