"""Alpha: probabilities, sampling, gradients, and what an update of two leaves alone."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import Tensor, nn

from proxylessnas.search.arch_params import ArchParameters, Pairs

MASK = [
    [True, True, True, True],
    [True, True, True, False],
    [False, True, True, False],
    [False, False, True, False],
]


def alphas(seed: int = 0, std: float = 1.0) -> ArchParameters:
    found = ArchParameters(MASK)
    found.init(generator(seed), std)
    return found


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_probabilities_are_a_softmax_over_the_mask() -> None:
    a = alphas()
    p = a.probs()
    assert p.dtype == torch.float64
    torch.testing.assert_close(p.sum(1), torch.ones(4, dtype=torch.float64), rtol=1e-14, atol=0)
    assert not p[~a.mask].any()
    torch.testing.assert_close(p[2, 1:3], a.logits[2, 1:3].softmax(0))
    assert p[3, 2] == 1
    torch.testing.assert_close(a.log_probs()[a.mask], p[a.mask].log())
    assert (a.log_probs()[~a.mask] == -float("inf")).all()


def test_init_is_the_published_one_and_leaves_the_rest_at_zero() -> None:
    big = ArchParameters([[True] * 500 + [False] * 10] * 100)
    assert not big.logits.any()
    big.init(generator())
    assert big.logits[big.mask].std().item() == pytest.approx(1e-3, rel=0.02)
    assert not big.logits[~big.mask].any()
    again = ArchParameters([[True] * 500 + [False] * 10] * 100)
    again.init(generator())
    assert torch.equal(big.logits, again.logits)


@pytest.mark.parametrize("mask", [[[True, False], [False, False]], [], [[]]])
def test_a_block_without_candidates_is_refused(mask: list[list[bool]]) -> None:
    with pytest.raises((ValueError, IndexError)):
        ArchParameters(mask)


def test_alpha_stays_double_and_on_the_cpu_whatever_happens_to_the_model() -> None:
    model = nn.Sequential(alphas(), nn.Linear(2, 2))
    logits = model[0].logits
    model.half().to("meta")
    assert model[0].logits is logits
    assert logits.dtype == torch.float64
    assert logits.device.type == "cpu"
    twin = copy.deepcopy(model[0])
    assert torch.equal(twin.logits, logits)
    assert twin.logits is not logits


def chi_square(counts: Tensor, wanted: Tensor) -> float:
    """Return the statistic over what can happen, a degree of freedom."""
    seen = wanted > 0
    assert not counts[~seen].any()
    total = counts.sum()
    value = ((counts[seen] - total * wanted[seen]) ** 2 / (total * wanted[seen])).sum()
    return float(value) / max(int(seen.sum()) - 1, 1)


def test_paths_are_drawn_by_their_probabilities() -> None:
    a, g = alphas(), generator(1)
    drawn = torch.tensor([a.sample(g) for _ in range(4000)])
    for i, p in enumerate(a.probs().detach()):
        assert chi_square(drawn[:, i].bincount(minlength=4).double(), p) < 5.0
    assert (drawn[:, 3] == 2).all()


def test_pairs_are_drawn_by_their_probabilities() -> None:
    a, g = alphas(), generator(1)
    p, q = a.probs().detach(), a.logits.detach()
    drawn = [a.sample_pairs(g) for _ in range(4000)]
    indices = torch.stack([d.indices for d in drawn])
    assert drawn[0].real.tolist() == [True, True, True, False]
    assert (indices[:, 3] == 2).all()
    for i in range(3):
        wanted = torch.zeros(4, 4, dtype=torch.float64)
        for k, m in itertools.permutations(range(4), 2):
            if a.mask[i, k] and a.mask[i, m]:
                together = p[i, k] * p[i, m] / (1 - p[i, k]) + p[i, m] * p[i, k] / (1 - p[i, m])
                wanted[k, m] = together * q[i, [k, m]].softmax(0)[0]  # the active one first
        torch.testing.assert_close(wanted.sum(), torch.ones((), dtype=torch.float64))
        counts = (indices[:, i, 0] * 4 + indices[:, i, 1]).bincount(minlength=16).double()
        assert chi_square(counts, wanted.reshape(-1)) < 5.0


def test_the_same_generator_draws_the_same() -> None:
    a = alphas()
    assert [a.sample(generator(i)) for i in range(20)] == [a.sample(generator(i)) for i in range(20)]
    first, second = a.sample_pairs(generator(3)), a.sample_pairs(generator(3))
    assert torch.equal(first.indices, second.indices)
    state = torch.get_rng_state()
    a.sample(generator())
    a.sample_pairs(generator())
    assert torch.equal(state, torch.get_rng_state())  # torch's own generator is left alone


@pytest.mark.parametrize("extreme", [80.0, 800.0, 1e6])
def test_certain_probabilities_break_nothing(extreme: float) -> None:
    a = alphas()
    with torch.no_grad():
        a.logits[:, 1] = extreme
        a.logits[3] = 0.0
    for seed in range(10):
        pairs = a.sample_pairs(generator(seed))
        assert (pairs.indices[:3, 0] == 1).all()
        assert (pairs.indices[:3, 1] != 1).all()
        assert a.mask.gather(1, pairs.indices).all()
        assert a.sample(generator(seed))[:3] == [1, 1, 1]
    a.add_gate_gradient(torch.ones(4, 4), pairs)
    a.add_gate_gradient(torch.full((4, 4), float("inf")).masked_fill(a.probs() > 0, 1.0))
    assert a.logits.grad.isfinite().all()
    before = a.logits.detach().clone()
    torch.optim.Adam([a.logits], 0.1).step()
    a.keep_others(before, pairs)
    assert a.logits.isfinite().all()
    assert a.entropy().isfinite().all()
    a.logits.grad = None
    a.probs().sum().backward()
    assert a.logits.grad.isfinite().all()


@pytest.mark.parametrize("two", [False, True])
def test_gradient_is_that_of_gates_replaced_by_probabilities(two: bool) -> None:
    a, g = alphas(), generator(2)
    pairs = a.sample_pairs(g) if two else None
    gates = torch.randn(4, 4, generator=g, dtype=torch.float64)
    p = a.probs() if pairs is None else a.pair_probs(pairs)
    (p * gates).sum().backward()  # L as a linear function of p, whose gradient is G
    wanted = a.logits.grad.clone()
    a.logits.grad = None
    a.add_gate_gradient(gates, pairs)
    torch.testing.assert_close(a.logits.grad, wanted, rtol=1e-12, atol=1e-16)
    for i in range(4):  # the double sum of the paper
        for k in range(4):
            row = p[i].detach()
            value = sum(gates[i, j] * row[j] * (float(k == j) - row[k]) for j in range(4))
            assert a.logits.grad[i, k].item() == pytest.approx(float(value), rel=1e-9, abs=1e-15)
    a.add_gate_gradient(gates, pairs)
    torch.testing.assert_close(a.logits.grad, 2 * wanted)  # it is added, not set
    assert not a.logits.grad[~a.mask].any()
    assert not a.logits.grad[3].any()  # one candidate: nothing to choose
    if pairs is not None:
        others = torch.ones(4, 4, dtype=torch.bool).scatter_(1, pairs.indices, False)
        assert not a.logits.grad[others].any()


def test_gradient_takes_gates_of_32_bits() -> None:
    a = alphas()
    a.add_gate_gradient(torch.ones(4, 4))
    assert a.logits.grad.dtype == torch.float64
    torch.testing.assert_close(a.logits.grad, torch.zeros_like(a.logits), rtol=0, atol=1e-15)


def test_pair_probabilities_are_the_two_way_softmax() -> None:
    a = alphas()
    pairs = a.sample_pairs(generator(4))
    q = a.pair_probs(pairs)
    torch.testing.assert_close(
        q.gather(1, pairs.indices)[:3], a.logits.gather(1, pairs.indices)[:3].softmax(1)
    )
    assert (q > 0).sum(1).tolist() == [2, 2, 2, 1]
    assert q[3, 2] == 1


OPTIMISERS = {
    "published": lambda p: torch.optim.Adam([p], 0.1, betas=(0.0, 0.999)),
    "momentum": lambda p: torch.optim.Adam([p], 0.1, betas=(0.9, 0.999)),
    "decay": lambda p: torch.optim.Adam([p], 0.1, betas=(0.0, 0.999), weight_decay=0.1),
    "decoupled decay": lambda p: torch.optim.AdamW([p], 0.1, weight_decay=0.1),
    "sgd": lambda p: torch.optim.SGD([p], 0.5, momentum=0.9, weight_decay=0.1),
}


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_updating_two_leaves_all_other_probabilities_alone(optimiser: str) -> None:
    a, g = alphas(), generator(5)
    step = OPTIMISERS[optimiser](a.logits)
    start = a.logits.detach().clone()
    for _ in range(25):
        pairs = a.sample_pairs(g)
        before, p = a.logits.detach().clone(), a.probs().detach()
        a.logits.grad = None
        a.add_gate_gradient(torch.randn(4, 4, generator=g), pairs)
        step.step()
        a.keep_others(before, pairs)
        now = a.probs().detach()
        inside = torch.zeros(4, 4, dtype=torch.bool).scatter_(1, pairs.indices, True)
        torch.testing.assert_close(now[~inside], p[~inside], rtol=1e-12, atol=1e-15)
        assert torch.equal(a.logits[~inside], before[~inside])
        together = now.gather(1, pairs.indices).sum(1) - p.gather(1, pairs.indices).sum(1)
        assert together.abs().max() < 1e-12
        assert (now[inside] - p[inside])[:6].abs().max() > 1e-6  # while the two themselves move
        assert torch.equal(a.logits[3], start[3])
    assert not a.logits[~a.mask].any()


def test_the_two_move_as_the_optimiser_said() -> None:
    a = alphas()
    pairs = Pairs(torch.tensor([[0, 2], [1, 0], [2, 1], [2, 2]]), torch.tensor([True, True, True, False]))
    before = a.logits.detach().clone()
    with torch.no_grad():
        a.logits[0, 0] += 0.3
        a.logits[0, 2] -= 0.2
    a.keep_others(before, pairs)
    moved = (a.logits - before)[0]
    assert (moved[0] - moved[2]).item() == pytest.approx(0.5)
    torch.testing.assert_close(a.logits[1:], before[1:], rtol=0, atol=1e-15)  # their pairs did not move


def test_entropy() -> None:
    a = ArchParameters(MASK)
    counts = torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(a.entropy(), counts.log())
    with torch.no_grad():
        a.logits[0, 2] = 1e5
    assert a.entropy()[0] == 0


def test_most_probable_candidate() -> None:
    a = ArchParameters(MASK)
    assert a.most_probable() == [0, 0, 1, 2]  # the first of equals, of those there are
    with torch.no_grad():
        a.logits.copy_(torch.tensor([[-1.0, -3, -2, -0.5], [1, 2, 3, 0], [0, -5, -4, 0], [0, 0, -9, 0]]))
    assert a.most_probable() == [3, 2, 2, 2]


def test_in_turns_every_candidate_comes_once_a_round() -> None:
    mask = [[True] * 3, [True, False, True], [False, True, False], [True] * 3]
    alphas = ArchParameters(mask)
    steps = torch.tensor([alphas.turn(step, seed=7) for step in range(24)])
    for block, row in enumerate(mask):
        allowed = [k for k, ok in enumerate(row) if ok]
        rounds = steps[:, block].view(-1, len(allowed))
        assert torch.equal(rounds.sort(1).values, torch.tensor(allowed).expand_as(rounds))
    assert len({tuple(rounds.tolist()) for rounds in steps[:, 0].view(-1, 3)}) > 2  # in new orders
    assert not torch.equal(steps[:, 0], steps[:, 3])
    assert steps[13].tolist() == alphas.turn(13, seed=7)  # of the step and the seed alone
    assert steps.tolist() != [alphas.turn(step, seed=8) for step in range(24)]
