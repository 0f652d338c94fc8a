"""The over-parameterised model: paths, what is trained on them, and the plain models that come out."""

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
    small_model,
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


def trained_a_little(model: SuperNet, steps: int = 6) -> SuperNet:
    """Give weights and statistics values of their own."""
    x, _ = batch(3, model.classifier.linear.weight.dtype)
    rng = random.Random(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())), alpha=0.05)
        for _ in range(steps):
            model.random_path(rng)
            model(x)
    return model


# ---- paths


def test_alpha_is_no_weight() -> None:
    model = small_model()
    assert all(p is not model.alphas.logits for p in model.parameters())
    assert not [key for key in model.state_dict() if "alpha" in key or "logits" in key]
    assert model.alphas.logits.shape == (BLOCKS, COLUMNS)
    assert model.alphas.mask.tolist() == [list(row) for row in SPACE.mask]


def test_paths_are_set_and_read() -> None:
    model = small_model()
    for path in PATHS:
        model.set_path(path)
        assert model.path == path
    drawn = {tuple(model.random_path(random.Random(seed))) for seed in range(50)}
    assert len(drawn) > 40
    assert model.path == list(model.space.random_choices(random.Random(49)))


@pytest.mark.parametrize("path", [[0, 0, 0], [0] * 5, [5, 0, 0, 0], [-1, 0, 0, 0], [ZERO_COLUMN, 0, 0, 0]])
def test_a_path_that_is_not_there_is_refused(path: list[int]) -> None:
    model = small_model()
    with pytest.raises(ArchError):
        model.set_path(path)
    with pytest.raises(ArchError):
        model.child(path)


def test_a_weight_step_runs_its_path_and_nothing_else() -> None:
    model, (x, t) = small_model(), batch()
    counts = counted(model)
    for path in PATHS:
        model.set_path(path)
        F.cross_entropy(model(x), t).backward()
        expected = [[int(k == choice and k != ZERO_COLUMN) for k in range(COLUMNS)] for choice in path]
        assert counts() == expected


def test_active_parts_are_those_of_a_plain_model() -> None:
    model = small_model()
    for path in PATHS:
        model.set_path(path)
        assert sum(p.numel() for part in model.active_parts() for p in part.parameters()) == sum(
            p.numel() for p in model.child().parameters()
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


# ---- no state outside of a model


def test_a_copy_may_be_made_at_any_time() -> None:
    model, (x, t) = small_model(), batch()
    model.alphas.sample(torch.Generator().manual_seed(0))
    _, wanted = gate_gradient(model, PATHS[1], x, t)
    model.alphas.probs().sum().backward()
    twin = copy.deepcopy(model)
    assert twin.path == model.path
    assert same(state_of(model), state_of(twin))
    assert torch.equal(gate_gradient(twin, PATHS[1], x, t)[1], wanted)
    before = state_of(model)
    twin(x)  # in training mode: moves the twin's statistics, also after statistics_kept() of either
    assert same(before, model.state_dict())
    assert not same(before, twin.state_dict())
    twin.alphas.init(torch.Generator().manual_seed(9))
    assert not torch.equal(twin.alphas.logits, model.alphas.logits)
    assert not {id(p) for p in model.parameters()} & {id(p) for p in twin.parameters()}


def test_two_models_side_by_side_know_nothing_of_each_other() -> None:
    one, two, (x, t) = small_model(0), small_model(1), batch()
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


def test_models_in_threads_of_their_own() -> None:
    x, t = batch()
    wanted = [gate_gradient(small_model(seed), PATHS[seed], x, t, store=seed % 2 > 0)[1] for seed in range(4)]
    models = [small_model(seed) for seed in range(4)]  # torch's own generator is one for all threads
    found: dict[int, bool] = {}

    def work(seed: int) -> None:
        found[seed] = all(
            gate_gradient(models[seed], PATHS[seed], x, t, store=seed % 2 > 0)[1].allclose(wanted[seed], 1e-9)
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
    model, (x, _) = trained_a_little(small_model()), batch()
    child = model.child(path, "mine")
    assert child.training
    model.set_path(path)
    model.eval()
    child.eval()
    with torch.no_grad():
        torch.testing.assert_close(child(x), model(x), rtol=0, atol=1e-12)
    assert child.arch == SPACE.arch(path, "mine")
    fresh = create_model(child.arch)
    assert list(fresh.state_dict()) == list(child.state_dict())  # the original names
    assert type(child) is type(fresh)
    fresh.double().load_state_dict(child.state_dict(), strict=True)
    with torch.no_grad():
        torch.testing.assert_close(fresh.eval()(x), model(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["tiny", "small", "cpu26-small"])
def test_children_of_the_bundled_spaces_in_single_precision(name: str) -> None:
    model = trained_a_little(
        small_model(space=read_space(name).replace(in_channels=2), dtype=torch.float32), 2
    )
    x, _ = batch(1, torch.float32, n=2, size=32)
    model.eval()
    rng = random.Random(1)
    with torch.no_grad():
        for _ in range(3):
            path = model.random_path(rng)
            torch.testing.assert_close(model.child(path).eval()(x), model(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["cpu26", "cpu26-small"])
def test_spaces_of_modern_operations_give_every_gate_its_gradient(name: str) -> None:
    space = read_space(name).replace(resolution=64)
    model = SuperNet(space).train()
    mask = torch.tensor(space.mask)
    gates = torch.zeros(mask.shape, requires_grad=True)
    model.random_path(random.Random(0))
    with model.statistics_kept(), model.gated(gates, [range(len(space.candidate_ops))] * len(mask)):
        loss = model(torch.randn(2, 3, 64, 64)).square().sum()
    loss.backward()  # type: ignore[no-untyped-call]
    assert gates.grad is not None
    is_zero = torch.tensor([[token == "-" for token in space.candidate_ops]])
    active = torch.zeros_like(mask).scatter_(1, torch.tensor(model.path)[:, None], True)
    assert bool(gates.grad.isfinite().all())
    assert torch.equal(gates.grad != 0, mask & ~is_zero)
    assert all(p.grad is not None for part in model.active_parts() for p in part.parameters())
    assert not (active & ~mask).any()


def test_a_child_is_a_copy() -> None:
    model, (x, t) = trained_a_little(small_model()), batch()
    model.set_path(PATHS[0])
    F.cross_entropy(model(x), t).backward()
    with sgd_paths(model).frozen():
        child = model.child()
    assert all(p.requires_grad and p.grad is None for p in child.parameters())
    before = state_of(model)
    child(x)
    with torch.no_grad():
        for p in child.parameters():
            p.add_(1.0)
    assert same(before, model.state_dict())
    assert not any(m is n for m in child.modules() for n in model.modules())
    assert model.path == PATHS[0]
    assert model.child(PATHS[1]).arch == SPACE.arch(PATHS[1], "searched")
    assert model.path == PATHS[0]


def test_a_childs_training_is_the_paths_training() -> None:
    model, path = small_model(), PATHS[0]
    child = model.child(path)
    paths = sgd_paths(model)
    own = torch.optim.SGD(child.parameters(), 0.05, 0.9, weight_decay=1e-2, nesterov=True)
    model.set_path(path)
    for seed in range(3):
        x, t = batch(seed)
        with paths.selected():
            F.cross_entropy(model(x), t).backward()
            paths.optimizer.step()
        own.zero_grad()
        F.cross_entropy(child(x), t).backward()
        own.step()
    again = model.child(path).state_dict()
    for key, value in child.state_dict().items():
        torch.testing.assert_close(again[key], value, rtol=1e-9, atol=1e-12)


# ---- the parameters of a path


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_changes_the_weights_of_its_path_only(fused: bool) -> None:
    model = small_model()
    paths = sgd_paths(model, fused=fused)
    for seed, path in enumerate([*PATHS, *PATHS]):  # each twice: by then all have momentum
        x, t = batch(seed)
        model.set_path(path)
        active = {id(p) for part in model.active_parts() for p in part.parameters()}
        before = [p.detach().clone() for p in model.parameters()]
        with paths.selected() as chosen:
            assert {id(p) for p in chosen} == active
            F.cross_entropy(model(x), t).backward()
            paths.optimizer.step()
        assert all(p.grad is None for p in model.parameters())
        for p, old in zip(model.parameters(), before, strict=True):
            assert torch.equal(p, old) == (id(p) not in active)
    assert [id(p) for p in paths.optimizer.param_groups[0]["params"]] == [id(p) for p in model.parameters()]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
def test_the_optimisers_of_recipes_take_paths_that_change(optimizer: str) -> None:
    model = small_model(dtype=torch.float32)
    recipe = Recipe(optimizer=optimizer, learning_rate=0.01)
    paths = PathParameters(model, make_optimizer(parameter_groups(model, recipe), recipe))
    step = WeightStep(model, paths.optimizer, recipe, torch.device("cpu"))
    for seed, path in enumerate(PATHS):
        model.set_path(path)
        before = [p.detach().clone() for p in model.parameters()]
        with paths.selected() as chosen:
            loss = step(*batch(seed, torch.float32), seed, 1.0)
        assert loss.isfinite()
        active = {id(p) for p in chosen}
        for p, old in zip(model.parameters(), before, strict=True):
            assert id(p) in active or torch.equal(p, old)
        assert (
            sum(not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
            > len(active) / 2
        )


def test_an_error_in_a_step_leaves_all_parameters_with_the_optimiser() -> None:
    model, (x, t) = small_model(), batch()
    paths = sgd_paths(model)

    def interrupted() -> None:
        with paths.selected():
            F.cross_entropy(model(x), t).backward()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(paths.optimizer.param_groups[0]["params"]) == len(list(model.parameters()))
    assert all(p.grad is None for p in model.parameters())


def test_freezing_is_undone_and_leaves_what_was_frozen_before() -> None:
    model, (x, _) = small_model(), batch()
    model.first_conv.conv.weight.requires_grad_(False)
    wanted = [p.requires_grad for p in model.parameters()]
    paths = sgd_paths(model)
    model.set_path(PATHS[1])
    with paths.frozen():
        assert not any(p.requires_grad for part in model.active_parts() for p in part.parameters())
        assert not model(x).requires_grad
    assert [p.requires_grad for p in model.parameters()] == wanted

    def interrupted() -> None:
        with paths.frozen():
            model.set_path(PATHS[0])  # whatever happens inside
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [p.requires_grad for p in model.parameters()] == wanted


class _Together(Processes):
    """Two processes with equal gradients."""

    def sum_(self, tensors: object) -> None:
        for tensor in tensors:  # type: ignore[attr-defined]
            tensor *= 2


def test_gradients_are_averaged_in_one_message_of_active_ones() -> None:
    model, (x, t) = small_model(), batch()
    model.set_path(PATHS[0])
    F.cross_entropy(model(x), t).backward()
    before = {id(p): p.grad.clone() for p in model.parameters() if p.grad is not None}
    mean_gradients(model.parameters(), Processes(0, 1, torch.device("cpu")))
    mean_gradients(model.parameters(), _Together(0, 2, torch.device("cpu")))
    for p in model.parameters():
        assert (p.grad is None) == (id(p) not in before)
        assert p.grad is None or torch.equal(p.grad, before[id(p)])


def test_operations_of_ones_own_keep_their_buffers_in_a_child() -> None:
    model = small_model()
    op = model.mixed_ops[1].op(2)
    assert isinstance(op, Curve)
    op.scale.fill_(0.3)
    child = model.child([0, 2, 0, 0])
    assert torch.equal(child.blocks[2].mobile_inverted_conv.scale, op.scale)
    assert child.blocks[2].mobile_inverted_conv.scale is not op.scale
