"""The arch step: one update of alpha, and of nothing else."""

from __future__ import annotations

import contextlib
import math

import pytest
import torch
from search_tools import (
    BLOCKS,
    COLUMNS,
    ZERO_COLUMN,
    batch,
    counted,
    mixture_gradient,
    same,
    sgd_paths,
    small_model,
    state_of,
)
from torch import Tensor, nn

from proxylessnas import DataError, ProxylessError
from proxylessnas.search.arch_optimizers import MODES, ArchStep, GateScale, ReinforceStep
from proxylessnas.search.constraints import Costs
from proxylessnas.search.objective import Objective
from proxylessnas.search.supernet import SuperNet
from proxylessnas.utils.distributed import Processes

LATENCY = Objective("add_linear", 3.0, strength=0.4)
LOG = Objective("mul_log", 3.0)


def costs_of(model: SuperNet) -> Tensor:
    g = torch.Generator().manual_seed(7)
    table = torch.rand(BLOCKS, COLUMNS, generator=g, dtype=torch.float64).masked_fill(~model.alphas.mask, 0)
    table[:, ZERO_COLUMN] = 0
    return table


def make_step(model: SuperNet, mode: str, seed: int = 0, rate: float = 1e-3, **options: object) -> ArchStep:
    optimizer = torch.optim.Adam([model.alphas.logits], rate, betas=(0.0, 0.999))
    costs = Costs("latency", "ms", costs_of(model), 0.5, model.alphas.mask)
    generator = torch.Generator().manual_seed(seed)
    return ArchStep(sgd_paths(model), optimizer, costs, mode=mode, generator=generator, **options)


@pytest.mark.parametrize("objective", [LATENCY, LOG, Objective("none")], ids=lambda o: o.kind)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", range(4))
def test_gradient_is_that_of_probabilities_in_place_of_gates(
    mode: str, seed: int, objective: Objective
) -> None:
    model, (x, t) = small_model(), batch()
    before = model.alphas.logits.detach().clone().requires_grad_()
    result = make_step(model, mode, seed)(x, t, objective)
    found = model.alphas.logits.grad
    # The same by hand: L(g) and E(p), with dL/dp taken for dL/dg.
    loss, gates = mixture_gradient(model, model.path, x, t)
    inside = model.alphas.mask.clone()
    if mode == "two":
        g = torch.Generator().manual_seed(seed)
        twin = small_model()
        inside = torch.zeros_like(inside).scatter_(1, twin.alphas.sample_pairs(g).indices, True)
        assert all(inside[i, k] for i, k in enumerate(model.path))
    p = before.masked_fill(~inside, -float("inf")).softmax(1)
    expected = (p * costs_of(model)).sum() + 0.5
    gradient = objective.gradient(loss.item(), expected.item())
    (gradient.by_loss * (p * gates).sum() + gradient.by_cost * expected).backward()
    torch.testing.assert_close(found, before.grad, rtol=1e-5, atol=1e-9)  # gates are of 32 bits
    assert not found[~inside].any()
    assert result.loss == pytest.approx(loss.item(), rel=1e-6)
    assert result.expected == pytest.approx(expected.item(), rel=1e-9)
    assert result.objective.value == pytest.approx(gradient.value, rel=1e-6)
    assert result.gradient_norm == pytest.approx(before.grad.norm().item(), rel=1e-5)


def test_full_and_full_v2_are_the_same_step() -> None:
    results = []
    for mode in ("full", "full_v2"):
        model = small_model()
        step = make_step(model, mode, rate=0.05)
        results.append([step(*batch(i), LOG) for i in range(5)] + [model.alphas.logits.detach().clone()])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_weights_and_statistics_are_not_touched(mode: str) -> None:
    model = small_model(dtype=torch.float32)
    with torch.no_grad():
        model.alphas.logits[1, ZERO_COLUMN] = 3.0  # Zero is sampled often
    step, before = make_step(model, mode), state_of(model)
    wanted = [p.requires_grad for p in model.parameters()]
    seen = []
    for p in model.parameters():
        p.register_hook(seen.append)
    for i in range(12):
        step(*batch(i, torch.float32), LATENCY)
        assert all(p.grad is None for p in model.parameters())
    assert not seen  # no gradient of a weight was even computed
    assert same(before, model.state_dict())
    assert [p.requires_grad for p in model.parameters()] == wanted
    assert model.training
    assert all(c.gates is None for c in model.mixed_ops)


@pytest.mark.parametrize("mode", MODES)
def test_zero_feels_the_latency_whether_sampled_or_not(mode: str) -> None:
    moved: dict[bool, list[float]] = {True: [], False: []}
    for seed in range(30):
        model = small_model()
        with torch.no_grad():
            model.alphas.logits.zero_()
        step = make_step(model, mode, seed)
        pairs = small_pairs(model, seed) if mode == "two" else None
        step(*batch(), Objective("add_linear", 3.0, strength=1e6))  # the cost is all that counts
        for i in (1, 3):
            if pairs is None or ZERO_COLUMN in pairs[i]:
                moved[model.path[i] == ZERO_COLUMN].append(float(model.alphas.logits.grad[i, ZERO_COLUMN]))
    for gradients in moved.values():
        assert len(gradients) > 3
        assert max(gradients) < 0  # Zero costs nothing: alpha rises


def small_pairs(model: SuperNet, seed: int) -> list[list[int]]:
    return model.alphas.sample_pairs(torch.Generator().manual_seed(seed)).indices.tolist()


def test_zero_learns_what_it_does_to_the_loss() -> None:
    model, (x, t) = small_model(), batch()
    with torch.no_grad():
        model.alphas.logits.zero_()
        model.alphas.logits[1, ZERO_COLUMN] = 20.0
    make_step(model, "full_v2")(x, t, Objective("none"))
    assert model.path[1] == ZERO_COLUMN
    assert model.alphas.logits.grad[1].count_nonzero() == COLUMNS  # the original code leaves this block out


def test_two_moves_two_candidates_a_block() -> None:
    model = small_model()
    step = make_step(model, "two", seed=3, rate=0.1)
    for i in range(10):
        before, p = model.alphas.logits.detach().clone(), model.alphas.probs().detach()
        step(*batch(i), LOG)
        moved = model.alphas.logits.detach() != before
        assert (moved.sum(1) <= 2).all()
        assert moved.any()
        now = model.alphas.probs().detach()
        torch.testing.assert_close(now[~moved], p[~moved], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("mode", MODES)
def test_each_mode_runs_what_it_needs(mode: str) -> None:
    model = small_model()
    counts, step = counted(model), make_step(model, mode)
    for i in range(6):
        step(*batch(i), LOG)
        for row, choice in zip(counts(), model.path, strict=True):
            zero = choice == ZERO_COLUMN
            assert max(row) == 1
            assert row[choice] == (not zero)
            if mode == "two":  # the other one may be Zero, which does not run
                assert sum(row) in (1 - zero, 2 - zero)
            else:
                assert sum(row) == COLUMNS - 1


@pytest.mark.parametrize("mode", MODES)
def test_steps_follow_from_the_seed(mode: str) -> None:
    found = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        model = small_model()
        step = make_step(model, mode, seed=5)
        results = [step(*batch(i), LOG) for i in range(4)]
        found.append((results, model.path, model.alphas.logits.tolist()))
    assert found[0] == found[1]


@pytest.mark.parametrize("mode", MODES)
def test_a_gradient_that_is_no_number_stops_the_search(mode: str) -> None:
    model, (x, t) = small_model(), batch()
    step = make_step(model, mode)
    before = model.alphas.logits.detach().clone()
    with pytest.raises(ProxylessError, match="not finite"):
        step(x.fill_(float("nan")), t, LOG)
    assert torch.equal(model.alphas.logits, before)
    assert all(p.requires_grad for p in model.parameters())


class _Broken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("broken candidate")


@pytest.mark.parametrize("mode", MODES)
def test_after_an_error_all_is_as_before(mode: str) -> None:
    model, (x, t) = small_model(), batch()
    step, before = make_step(model, mode), state_of(model)
    good, alpha = model.mixed_ops[2]._ops, model.alphas.logits.detach().clone()
    model.mixed_ops[2]._ops = (_Broken(),) * 4 + good[4:]
    with pytest.raises(RuntimeError, match="broken candidate"):
        step(x, t, LOG)
    model.mixed_ops[2]._ops = good
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(c.gates is None and c.others == () for c in model.mixed_ops)
    assert all(norm.track_running_stats for norm in model._norms)
    assert same(before, model.state_dict())
    assert torch.equal(model.alphas.logits, alpha)
    assert step(x, t, LOG).loss > 0


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(DataError, match="two, full, full_v2"):
        make_step(small_model(), "both")


def test_autocast_is_that_of_the_recipe() -> None:
    model, (x, t) = small_model(dtype=torch.float32), batch(dtype=torch.float32)
    exact = make_step(small_model(dtype=torch.float32), "full_v2")(x, t, LOG)
    used = []

    @contextlib.contextmanager
    def autocast():  # type: ignore[no-untyped-def]
        used.append(True)
        with torch.autocast("cpu", torch.bfloat16):
            yield

    found = make_step(model, "full_v2", autocast=autocast)(x, t, LOG)
    assert used
    assert found.loss == pytest.approx(exact.loss, rel=0.05)
    assert found.loss != exact.loss


def half() -> contextlib.AbstractContextManager[object]:
    return torch.autocast("cpu", torch.float16)


def faint_model() -> SuperNet:
    """Return a model whose gradients are below what fp16 can hold."""
    model = small_model(dtype=torch.float32)
    with torch.no_grad():
        model.classifier.linear.weight *= 1e-5
    return model


@pytest.mark.parametrize("mode", MODES)
def test_gradients_in_fp16_do_not_round_to_zero(mode: str) -> None:
    x, t = batch(dtype=torch.float32)
    found = []
    for options in ({}, {"autocast": half}, {"autocast": half, "scale": GateScale()}):
        model = faint_model()
        result = make_step(model, mode, **options)(x, t, Objective("none"))
        assert not result.skipped
        found.append(model.alphas.logits.grad.clone())
    exact, plain, scaled = found
    assert (plain - exact).norm() > 0.5 * exact.norm()  # without a scale most of it is lost
    assert (scaled - exact).norm() < 0.1 * exact.norm()


@pytest.mark.parametrize("mode", MODES)
def test_too_large_a_scale_is_lowered_and_the_step_skipped(mode: str) -> None:
    model, (x, t) = small_model(dtype=torch.float32), batch(dtype=torch.float32)
    scale, before = GateScale(2.0**24), model.alphas.logits.detach().clone()
    step = make_step(model, mode, autocast=half, scale=scale)
    result = step(x, t, LOG)
    assert result.skipped
    assert math.isnan(result.gradient_norm)
    assert result.loss > 0
    assert torch.equal(model.alphas.logits, before)
    assert scale.factor == 2.0**23
    later = [step(x, t, LOG) for _ in range(20)]
    assert not later[-1].skipped
    assert not torch.equal(model.alphas.logits, before)


def test_the_scale_rises_again_and_has_an_end() -> None:
    scale, good, bad = GateScale(4.0), torch.ones(2), torch.tensor([1.0, math.inf])
    assert all(scale.fits(good) for _ in range(2000))
    assert scale.factor == 8.0
    assert not scale.fits(bad)
    twin = GateScale()
    twin.load_state_dict(scale.state_dict())
    assert twin == scale == GateScale(4.0)
    assert not scale.fits(bad)
    assert not scale.fits(bad)
    with pytest.raises(ProxylessError, match='set amp to "bf16" or "off"'):
        scale.fits(bad)


@pytest.mark.parametrize("mode", [*MODES, "backward", "reinforce"])
def test_a_single_value_a_channel_says_what_to_do(mode: str) -> None:
    model, (x, t) = small_model(), batch(n=1, size=8)
    if mode == "backward":  # nothing but the other candidates of the last block has BatchNorm on 1x1 px
        model.feature_mix_layer = nn.Conv2d(12, 16, 1).double()  # type: ignore[assignment]
        with torch.no_grad():
            model.alphas.logits.zero_()
            model.alphas.logits[2:, 2] = 50.0
    if mode == "reinforce":
        optimizer = torch.optim.Adam([model.alphas.logits], 0.1)
        reinforce = ReinforceStep(model, optimizer, None, generator=torch.Generator())
        with pytest.raises(DataError, match=r"with 1 image.*raise arch_batch_size"):
            reinforce(x, t)
        return
    step = make_step(model, "full_v2" if mode == "backward" else mode)
    with pytest.raises(DataError, match=r"with 1 image.*raise arch_batch_size"):
        step(x, t, LOG)


class _Others(Processes):
    """Two processes, of which the other one has a loss and gates of its own."""

    def sum_(self, tensors: object) -> None:
        for tensor in tensors:  # type: ignore[attr-defined]
            tensor += 3.0


def test_processes_share_gates_and_loss() -> None:
    x, t = batch()
    alone = make_step(small_model(), "full_v2")(x, t, LATENCY)
    model = small_model()
    result = make_step(model, "full_v2", processes=_Others(0, 2, torch.device("cpu")))(x, t, LATENCY)
    assert result.loss == pytest.approx((alone.loss + 3.0) / 2)
    # The same 3 for all gates says nothing about which one is better: what is left is half of this process's.
    whole, of_loss = small_model(), small_model()
    make_step(whole, "full_v2")(x, t, LATENCY)
    make_step(of_loss, "full_v2")(x, t, Objective("none"))
    wanted = whole.alphas.logits.grad - of_loss.alphas.logits.grad / 2
    torch.testing.assert_close(model.alphas.logits.grad, wanted, rtol=1e-5, atol=1e-8)
