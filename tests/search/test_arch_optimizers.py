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
    small_net,
    state_of,
)
from torch import Tensor, nn

from proxylessnas import DataError, ProxylessError
from proxylessnas.search.arch_optimizers import MODES, ArchStep, GateScale, ReinforceStep
from proxylessnas.search.objective import Objective
from proxylessnas.search.supernet import SuperNet
from proxylessnas.utils.distributed import Processes

LATENCY = Objective("add_linear", 3.0, strength=0.4)
LOG = Objective("mul_log", 3.0)


def costs_of(net: SuperNet) -> Tensor:
    g = torch.Generator().manual_seed(7)
    table = torch.rand(BLOCKS, COLUMNS, generator=g, dtype=torch.float64).masked_fill(~net.alphas.mask, 0)
    table[:, ZERO_COLUMN] = 0
    return table


def make_step(net: SuperNet, mode: str, seed: int = 0, rate: float = 1e-3, **options: object) -> ArchStep:
    optimizer = torch.optim.Adam([net.alphas.logits], rate, betas=(0.0, 0.999))
    return ArchStep(
        net, optimizer, sgd_paths(net), costs_of(net), 0.5, mode=mode,
        generator=torch.Generator().manual_seed(seed), **options,
    )  # fmt: skip


@pytest.mark.parametrize("objective", [LATENCY, LOG, Objective("none")], ids=lambda o: o.kind)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", range(4))
def test_gradient_is_that_of_probabilities_in_place_of_gates(
    mode: str, seed: int, objective: Objective
) -> None:
    net, (x, t) = small_net(), batch()
    before = net.alphas.logits.detach().clone().requires_grad_()
    result = make_step(net, mode, seed)(x, t, objective)
    found = net.alphas.logits.grad
    # The same by hand: L(g) and E(p), with dL/dp taken for dL/dg.
    loss, gates = mixture_gradient(net, net.path, x, t)
    inside = net.alphas.mask.clone()
    if mode == "two":
        g = torch.Generator().manual_seed(seed)
        twin = small_net()
        inside = torch.zeros_like(inside).scatter_(1, twin.alphas.sample_pairs(g).indices, True)
        assert all(inside[i, k] for i, k in enumerate(net.path))
    p = before.masked_fill(~inside, -float("inf")).softmax(1)
    expected = (p * costs_of(net)).sum() + 0.5
    pull = objective.pull(loss.item(), expected.item())
    (pull.by_loss * (p * gates).sum() + pull.by_cost * expected).backward()
    torch.testing.assert_close(found, before.grad, rtol=1e-5, atol=1e-9)  # gates are of 32 bits
    assert not found[~inside].any()
    assert result.loss == pytest.approx(loss.item(), rel=1e-6)
    assert result.expected == pytest.approx(expected.item(), rel=1e-9)
    assert result.pull.value == pytest.approx(pull.value, rel=1e-6)
    assert result.gradient_norm == pytest.approx(before.grad.norm().item(), rel=1e-5)


def test_full_and_full_v2_are_the_same_step() -> None:
    results = []
    for mode in ("full", "full_v2"):
        net = small_net()
        step = make_step(net, mode, rate=0.05)
        results.append([step(*batch(i), LOG) for i in range(5)] + [net.alphas.logits.detach().clone()])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_weights_and_statistics_are_not_touched(mode: str) -> None:
    net = small_net(dtype=torch.float32)
    with torch.no_grad():
        net.alphas.logits[1, ZERO_COLUMN] = 3.0  # Zero is sampled often
    step, before = make_step(net, mode), state_of(net)
    wanted = [p.requires_grad for p in net.parameters()]
    seen = []
    for p in net.parameters():
        p.register_hook(seen.append)
    for i in range(12):
        step(*batch(i, torch.float32), LATENCY)
        assert all(p.grad is None for p in net.parameters())
    assert not seen  # no gradient of a weight was even computed
    assert same(before, net.state_dict())
    assert [p.requires_grad for p in net.parameters()] == wanted
    assert net.training
    assert all(c.gates is None for c in net.choices)


@pytest.mark.parametrize("mode", MODES)
def test_zero_feels_the_latency_whether_sampled_or_not(mode: str) -> None:
    moved: dict[bool, list[float]] = {True: [], False: []}
    for seed in range(30):
        net = small_net()
        with torch.no_grad():
            net.alphas.logits.zero_()
        step = make_step(net, mode, seed)
        pairs = small_pairs(net, seed) if mode == "two" else None
        step(*batch(), Objective("add_linear", 3.0, strength=1e6))  # the cost is all that counts
        for i in (1, 3):
            if pairs is None or ZERO_COLUMN in pairs[i]:
                moved[net.path[i] == ZERO_COLUMN].append(float(net.alphas.logits.grad[i, ZERO_COLUMN]))
    for gradients in moved.values():
        assert len(gradients) > 3
        assert max(gradients) < 0  # Zero costs nothing: alpha rises


def small_pairs(net: SuperNet, seed: int) -> list[list[int]]:
    return net.alphas.sample_pairs(torch.Generator().manual_seed(seed)).indices.tolist()


def test_zero_learns_what_it_does_to_the_loss() -> None:
    net, (x, t) = small_net(), batch()
    with torch.no_grad():
        net.alphas.logits.zero_()
        net.alphas.logits[1, ZERO_COLUMN] = 20.0
    make_step(net, "full_v2")(x, t, Objective("none"))
    assert net.path[1] == ZERO_COLUMN
    assert net.alphas.logits.grad[1].count_nonzero() == COLUMNS  # the original code leaves this block out


def test_two_moves_two_candidates_a_block() -> None:
    net = small_net()
    step = make_step(net, "two", seed=3, rate=0.1)
    for i in range(10):
        before, p = net.alphas.logits.detach().clone(), net.alphas.probs().detach()
        step(*batch(i), LOG)
        moved = net.alphas.logits.detach() != before
        assert (moved.sum(1) <= 2).all()
        assert moved.any()
        now = net.alphas.probs().detach()
        torch.testing.assert_close(now[~moved], p[~moved], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("mode", MODES)
def test_each_mode_runs_what_it_needs(mode: str) -> None:
    net = small_net()
    counts, step = counted(net), make_step(net, mode)
    for i in range(6):
        step(*batch(i), LOG)
        for row, pick in zip(counts(), net.path, strict=True):
            zero = pick == ZERO_COLUMN
            assert max(row) == 1
            assert row[pick] == (not zero)
            if mode == "two":  # the other one may be Zero, which does not run
                assert sum(row) in (1 - zero, 2 - zero)
            else:
                assert sum(row) == COLUMNS - 1


@pytest.mark.parametrize("mode", MODES)
def test_steps_follow_from_the_seed(mode: str) -> None:
    found = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        net = small_net()
        step = make_step(net, mode, seed=5)
        results = [step(*batch(i), LOG) for i in range(4)]
        found.append((results, net.path, net.alphas.logits.tolist()))
    assert found[0] == found[1]


@pytest.mark.parametrize("mode", MODES)
def test_a_gradient_that_is_no_number_stops_the_search(mode: str) -> None:
    net, (x, t) = small_net(), batch()
    step = make_step(net, mode)
    before = net.alphas.logits.detach().clone()
    with pytest.raises(ProxylessError, match="not finite"):
        step(x.fill_(float("nan")), t, LOG)
    assert torch.equal(net.alphas.logits, before)
    assert all(p.requires_grad for p in net.parameters())


class _Broken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("broken candidate")


@pytest.mark.parametrize("mode", MODES)
def test_after_an_error_all_is_as_before(mode: str) -> None:
    net, (x, t) = small_net(), batch()
    step, before = make_step(net, mode), state_of(net)
    good, alpha = net.choices[2]._ops, net.alphas.logits.detach().clone()
    net.choices[2]._ops = (_Broken(),) * 4 + good[4:]
    with pytest.raises(RuntimeError, match="broken candidate"):
        step(x, t, LOG)
    net.choices[2]._ops = good
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    assert all(c.gates is None and c.others == () for c in net.choices)
    assert all(norm.track_running_stats for norm in net._norms)
    assert same(before, net.state_dict())
    assert torch.equal(net.alphas.logits, alpha)
    assert step(x, t, LOG).loss > 0


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(DataError, match="two, full, full_v2"):
        make_step(small_net(), "both")


def test_autocast_is_that_of_the_recipe() -> None:
    net, (x, t) = small_net(dtype=torch.float32), batch(dtype=torch.float32)
    exact = make_step(small_net(dtype=torch.float32), "full_v2")(x, t, LOG)
    used = []

    @contextlib.contextmanager
    def autocast():  # type: ignore[no-untyped-def]
        used.append(True)
        with torch.autocast("cpu", torch.bfloat16):
            yield

    found = make_step(net, "full_v2", autocast=autocast)(x, t, LOG)
    assert used
    assert found.loss == pytest.approx(exact.loss, rel=0.05)
    assert found.loss != exact.loss


def half() -> contextlib.AbstractContextManager[object]:
    return torch.autocast("cpu", torch.float16)


def faint_net() -> SuperNet:
    """Return a net whose gradients are below what fp16 can hold."""
    net = small_net(dtype=torch.float32)
    with torch.no_grad():
        net.classifier.linear.weight *= 1e-5
    return net


@pytest.mark.parametrize("mode", MODES)
def test_gradients_in_fp16_do_not_round_to_zero(mode: str) -> None:
    x, t = batch(dtype=torch.float32)
    found = []
    for options in ({}, {"autocast": half}, {"autocast": half, "scale": GateScale()}):
        net = faint_net()
        result = make_step(net, mode, **options)(x, t, Objective("none"))
        assert not result.skipped
        found.append(net.alphas.logits.grad.clone())
    exact, plain, scaled = found
    assert (plain - exact).norm() > 0.5 * exact.norm()  # without a scale most of it is lost
    assert (scaled - exact).norm() < 0.1 * exact.norm()


@pytest.mark.parametrize("mode", MODES)
def test_too_large_a_scale_is_lowered_and_the_step_skipped(mode: str) -> None:
    net, (x, t) = small_net(dtype=torch.float32), batch(dtype=torch.float32)
    scale, before = GateScale(2.0**24), net.alphas.logits.detach().clone()
    step = make_step(net, mode, autocast=half, scale=scale)
    result = step(x, t, LOG)
    assert result.skipped
    assert math.isnan(result.gradient_norm)
    assert result.loss > 0
    assert torch.equal(net.alphas.logits, before)
    assert scale.factor == 2.0**23
    later = [step(x, t, LOG) for _ in range(20)]
    assert not later[-1].skipped
    assert not torch.equal(net.alphas.logits, before)


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
    net, (x, t) = small_net(), batch(n=1, size=8)
    if mode == "backward":  # nothing but the other candidates of the last block has BatchNorm on 1x1 px
        net.feature_mix_layer = nn.Conv2d(12, 16, 1).double()  # type: ignore[assignment]
        with torch.no_grad():
            net.alphas.logits.zero_()
            net.alphas.logits[2:, 2] = 50.0
    if mode == "reinforce":
        optimizer = torch.optim.Adam([net.alphas.logits], 0.1)
        reinforce = ReinforceStep(net, optimizer, None, None, generator=torch.Generator())
        with pytest.raises(DataError, match=r"with 1 picture.*raise arch_batch_size"):
            reinforce(x, t)
        return
    step = make_step(net, "full_v2" if mode == "backward" else mode)
    with pytest.raises(DataError, match=r"with 1 picture.*raise arch_batch_size"):
        step(x, t, LOG)


class _Others(Processes):
    """Two processes, of which the other one has a loss and gates of its own."""

    def sum_(self, tensors: object) -> None:
        for tensor in tensors:  # type: ignore[attr-defined]
            tensor += 3.0


def test_processes_share_gates_and_loss() -> None:
    x, t = batch()
    alone = make_step(small_net(), "full_v2")(x, t, LATENCY)
    net = small_net()
    result = make_step(net, "full_v2", processes=_Others(0, 2, torch.device("cpu")))(x, t, LATENCY)
    assert result.loss == pytest.approx((alone.loss + 3.0) / 2)
    # The same 3 for all gates says nothing about which one is better: what is left is half of this process's.
    whole, of_loss = small_net(), small_net()
    make_step(whole, "full_v2")(x, t, LATENCY)
    make_step(of_loss, "full_v2")(x, t, Objective("none"))
    wanted = whole.alphas.logits.grad - of_loss.alphas.logits.grad / 2
    torch.testing.assert_close(net.alphas.logits.grad, wanted, rtol=1e-5, atol=1e-8)
