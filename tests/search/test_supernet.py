"""The over-parameterised net: paths, what is trained on them, and the plain nets that come out."""

from __future__ import annotations

import copy
import random
import threading

import pytest
import torch
from search_tools import (
    ALL,
    BLOCKS,
    COLUMNS,
    PATHS,
    SPACE,
    ZERO_COLUMN,
    Curve,
    batch,
    counted,
    gate_gradient,
    same,
    sgd_paths,
    small_net,
    state_of,
)
from torch.nn import functional as F

from proxylessnas import ArchError, create_model
from proxylessnas.arch.spaces import read_space
from proxylessnas.search.path_optimizer import PathParameters, mean_gradients
from proxylessnas.search.supernet import SuperNet, seeded
from proxylessnas.train import Recipe
from proxylessnas.train.optim import make_optimizer, parameter_groups
from proxylessnas.train.step import WeightStep
from proxylessnas.utils.distributed import Processes


def trained_a_little(net: SuperNet, steps: int = 6) -> SuperNet:
    """Give weights and statistics values of their own."""
    x, _ = batch(3, net.classifier.linear.weight.dtype)
    rng = random.Random(0)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())), alpha=0.05)
        for _ in range(steps):
            net.random_path(rng)
            net(x)
    return net


# ---- paths


def test_alpha_is_no_weight() -> None:
    net = small_net()
    assert all(p is not net.alphas.logits for p in net.parameters())
    assert not [key for key in net.state_dict() if "alpha" in key or "logits" in key]
    assert net.alphas.logits.shape == (BLOCKS, COLUMNS)
    assert net.alphas.mask.tolist() == [list(row) for row in SPACE.mask]


def test_paths_are_set_and_read() -> None:
    net = small_net()
    for path in PATHS:
        net.set_path(path)
        assert net.path == path
    drawn = {tuple(net.random_path(random.Random(seed))) for seed in range(50)}
    assert len(drawn) > 40
    assert net.path == list(net.space.random_picks(random.Random(49)))


@pytest.mark.parametrize("path", [[0, 0, 0], [0] * 5, [5, 0, 0, 0], [-1, 0, 0, 0], [ZERO_COLUMN, 0, 0, 0]])
def test_a_path_that_is_not_there_is_refused(path: list[int]) -> None:
    net = small_net()
    with pytest.raises(ArchError):
        net.set_path(path)
    with pytest.raises(ArchError):
        net.child(path)


def test_a_weight_step_runs_its_path_and_nothing_else() -> None:
    net, (x, t) = small_net(), batch()
    counts = counted(net)
    for path in PATHS:
        net.set_path(path)
        F.cross_entropy(net(x), t).backward()
        expected = [[int(k == pick and k != ZERO_COLUMN) for k in range(COLUMNS)] for pick in path]
        assert counts() == expected


def test_active_parts_are_those_of_a_plain_net() -> None:
    net = small_net()
    for path in PATHS:
        net.set_path(path)
        assert sum(p.numel() for part in net.active_parts() for p in part.parameters()) == sum(
            p.numel() for p in net.child().parameters()
        )


def test_a_seed_alone_makes_the_weights() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = seeded(SPACE, 3)
    assert torch.equal(state, torch.get_rng_state())
    torch.rand(7)
    again, other = seeded(SPACE, 3), seeded(SPACE, 4)
    assert same(state_of(first), state_of(again))
    assert torch.equal(first.alphas.logits, again.alphas.logits)
    assert not same(state_of(first), state_of(other))
    assert not torch.equal(first.alphas.logits, other.alphas.logits)


# ---- no state outside of a net


def test_a_copy_may_be_made_at_any_time() -> None:
    net, (x, t) = small_net(), batch()
    net.alphas.sample(torch.Generator().manual_seed(0))
    _, wanted = gate_gradient(net, PATHS[1], x, t)
    net.alphas.probs().sum().backward()
    twin = copy.deepcopy(net)
    assert twin.path == net.path
    assert same(state_of(net), state_of(twin))
    assert torch.equal(gate_gradient(twin, PATHS[1], x, t)[1], wanted)
    before = state_of(net)
    twin(x)  # in training mode: moves the twin's statistics, also after statistics_kept() of either
    assert same(before, net.state_dict())
    assert not same(before, twin.state_dict())
    twin.alphas.init(torch.Generator().manual_seed(9))
    assert not torch.equal(twin.alphas.logits, net.alphas.logits)
    assert not {id(p) for p in net.parameters()} & {id(p) for p in twin.parameters()}


def test_two_nets_side_by_side_know_nothing_of_each_other() -> None:
    one, two, (x, t) = small_net(0), small_net(1), batch()
    gates = torch.zeros(BLOCKS, COLUMNS, dtype=x.dtype, requires_grad=True)
    one.set_path(PATHS[0])
    two.set_path(PATHS[1])
    with one.gated(gates, ALL), one.statistics_kept():
        before = state_of(two)
        F.cross_entropy(two(x), t).backward()  # a weight step in the midst of the other's arch step
        assert not same(before, two.state_dict())
        kept = state_of(one)
        F.cross_entropy(one(x), t).backward()
    assert same(kept, one.state_dict())
    assert torch.equal(gates.grad, gate_gradient(one, PATHS[0], x, t)[1])


def test_nets_in_threads_of_their_own() -> None:
    x, t = batch()
    wanted = [gate_gradient(small_net(seed), PATHS[seed], x, t, store=seed % 2 > 0)[1] for seed in range(4)]
    nets = [small_net(seed) for seed in range(4)]  # torch's own generator is one for all threads
    found: dict[int, bool] = {}

    def work(seed: int) -> None:
        found[seed] = all(
            gate_gradient(nets[seed], PATHS[seed], x, t, store=seed % 2 > 0)[1].allclose(wanted[seed], 1e-9)
            for _ in range(10)
        )

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == dict.fromkeys(range(4), True)


# ---- children


@pytest.mark.parametrize("path", PATHS)
def test_a_child_computes_what_the_path_does(path: list[int]) -> None:
    net, (x, _) = trained_a_little(small_net()), batch()
    child = net.child(path, "mine")
    assert child.training
    net.set_path(path)
    net.eval()
    child.eval()
    with torch.no_grad():
        torch.testing.assert_close(child(x), net(x), rtol=0, atol=1e-12)
    assert child.arch == SPACE.arch(path, "mine")
    fresh = create_model(child.arch)
    assert list(fresh.state_dict()) == list(child.state_dict())  # the original names
    assert type(child) is type(fresh)
    fresh.double().load_state_dict(child.state_dict(), strict=True)
    with torch.no_grad():
        torch.testing.assert_close(fresh.eval()(x), net(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["tiny", "small"])
def test_children_of_the_bundled_spaces_in_single_precision(name: str) -> None:
    net = trained_a_little(small_net(space=read_space(name).replace(in_channels=2), dtype=torch.float32), 2)
    x, _ = batch(1, torch.float32, n=2, size=32)
    net.eval()
    rng = random.Random(1)
    with torch.no_grad():
        for _ in range(3):
            path = net.random_path(rng)
            torch.testing.assert_close(net.child(path).eval()(x), net(x), rtol=0, atol=1e-6)


def test_a_child_is_a_copy() -> None:
    net, (x, t) = trained_a_little(small_net()), batch()
    net.set_path(PATHS[0])
    F.cross_entropy(net(x), t).backward()
    with sgd_paths(net).frozen():
        child = net.child()
    assert all(p.requires_grad and p.grad is None for p in child.parameters())
    before = state_of(net)
    child(x)
    with torch.no_grad():
        for p in child.parameters():
            p.add_(1.0)
    assert same(before, net.state_dict())
    assert not any(m is n for m in child.modules() for n in net.modules())
    assert net.path == PATHS[0]
    assert net.child(PATHS[1]).arch == SPACE.arch(PATHS[1], "searched")
    assert net.path == PATHS[0]


def test_a_childs_training_is_the_paths_training() -> None:
    net, path = small_net(), PATHS[0]
    child = net.child(path)
    paths = sgd_paths(net)
    own = torch.optim.SGD(child.parameters(), 0.05, 0.9, weight_decay=1e-2, nesterov=True)
    net.set_path(path)
    for seed in range(3):
        x, t = batch(seed)
        with paths.selected():
            F.cross_entropy(net(x), t).backward()
            paths.optimizer.step()
        own.zero_grad()
        F.cross_entropy(child(x), t).backward()
        own.step()
    again = net.child(path).state_dict()
    for key, value in child.state_dict().items():
        torch.testing.assert_close(again[key], value, rtol=1e-9, atol=1e-12)


# ---- the parameters of a path


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_changes_the_weights_of_its_path_only(fused: bool) -> None:
    net = small_net()
    paths = sgd_paths(net, fused=fused)
    for seed, path in enumerate([*PATHS, *PATHS]):  # each twice: by then all have momentum
        x, t = batch(seed)
        net.set_path(path)
        active = {id(p) for part in net.active_parts() for p in part.parameters()}
        before = [p.detach().clone() for p in net.parameters()]
        with paths.selected() as chosen:
            assert {id(p) for p in chosen} == active
            F.cross_entropy(net(x), t).backward()
            paths.optimizer.step()
        assert all(p.grad is None for p in net.parameters())
        for p, old in zip(net.parameters(), before, strict=True):
            assert torch.equal(p, old) == (id(p) not in active)
    assert [id(p) for p in paths.optimizer.param_groups[0]["params"]] == [id(p) for p in net.parameters()]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
def test_the_optimisers_of_recipes_take_paths_that_change(optimizer: str) -> None:
    net = small_net(dtype=torch.float32)
    recipe = Recipe(optimizer=optimizer, learning_rate=0.01)
    paths = PathParameters(net, make_optimizer(parameter_groups(net, recipe), recipe))
    step = WeightStep(net, paths.optimizer, recipe, torch.device("cpu"))
    for seed, path in enumerate(PATHS):
        net.set_path(path)
        before = [p.detach().clone() for p in net.parameters()]
        with paths.selected() as chosen:
            loss = step(*batch(seed, torch.float32), seed, 1.0)
        assert loss.isfinite()
        active = {id(p) for p in chosen}
        for p, old in zip(net.parameters(), before, strict=True):
            assert id(p) in active or torch.equal(p, old)
        assert (
            sum(not torch.equal(p, old) for p, old in zip(net.parameters(), before, strict=True))
            > len(active) / 2
        )


def test_an_error_in_a_step_leaves_all_parameters_with_the_optimiser() -> None:
    net, (x, t) = small_net(), batch()
    paths = sgd_paths(net)

    def interrupted() -> None:
        with paths.selected():
            F.cross_entropy(net(x), t).backward()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(paths.optimizer.param_groups[0]["params"]) == len(list(net.parameters()))
    assert all(p.grad is None for p in net.parameters())


def test_freezing_is_undone_and_leaves_what_was_frozen_before() -> None:
    net, (x, _) = small_net(), batch()
    net.first_conv.conv.weight.requires_grad_(False)
    wanted = [p.requires_grad for p in net.parameters()]
    paths = sgd_paths(net)
    net.set_path(PATHS[1])
    with paths.frozen():
        assert not any(p.requires_grad for part in net.active_parts() for p in part.parameters())
        assert not net(x).requires_grad
    assert [p.requires_grad for p in net.parameters()] == wanted

    def interrupted() -> None:
        with paths.frozen():
            net.set_path(PATHS[0])  # whatever happens inside
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [p.requires_grad for p in net.parameters()] == wanted


class _Together(Processes):
    """Two processes with equal gradients."""

    def sum_(self, tensors: object) -> None:
        for tensor in tensors:  # type: ignore[attr-defined]
            tensor *= 2


def test_gradients_are_averaged_in_one_message_of_active_ones() -> None:
    net, (x, t) = small_net(), batch()
    net.set_path(PATHS[0])
    F.cross_entropy(net(x), t).backward()
    before = {id(p): p.grad.clone() for p in net.parameters() if p.grad is not None}
    mean_gradients(net.parameters(), Processes(0, 1, torch.device("cpu")))
    mean_gradients(net.parameters(), _Together(0, 2, torch.device("cpu")))
    for p in net.parameters():
        assert (p.grad is None) == (id(p) not in before)
        assert p.grad is None or torch.equal(p.grad, before[id(p)])


def test_operations_of_ones_own_keep_their_buffers_in_a_child() -> None:
    net = small_net()
    op = net.choices[1].op(2)
    assert isinstance(op, Curve)
    op.scale.fill_(0.3)
    child = net.child([0, 2, 0, 0])
    assert torch.equal(child.blocks[2].mobile_inverted_conv.scale, op.scale)
    assert child.blocks[2].mobile_inverted_conv.scale is not op.scale
