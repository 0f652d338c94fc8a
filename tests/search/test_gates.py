"""Gates: their gradient is that of the explicit mixture, and nothing else changes."""

from __future__ import annotations

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
    mixture,
    mixture_gradient,
    one_hot,
    same,
    small_model,
    state_of,
)
from torch import Tensor, nn
from torch.nn import functional as F

from proxylessnas.search.mixed_op import MixedOp, binary_gate, inner_product
from proxylessnas.search.supernet import SuperNet


@pytest.mark.parametrize("store", [False, True])
@pytest.mark.parametrize("path", PATHS)
def test_gates_have_the_gradient_of_the_explicit_mixture(path: list[int], store: bool) -> None:
    model, (x, t) = small_model(), batch()
    loss, wanted = mixture_gradient(model, path, x, t)
    found_loss, found = gate_gradient(model, path, x, t, store=store)
    torch.testing.assert_close(found_loss, loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-14)
    assert found[:, :ZERO_COLUMN].count_nonzero() == BLOCKS * ZERO_COLUMN
    assert not found[:, ZERO_COLUMN].any()  # the output of Zero is 0


@pytest.mark.parametrize("path", PATHS[:3])
def test_gates_have_the_gradient_of_finite_differences(path: list[int]) -> None:
    model, (x, t) = small_model(), batch()
    _, found = gate_gradient(model, path, x, t)
    step = 1e-7  # short: a step across the kink of a ReLU6 has another slope

    def loss(gates: Tensor) -> float:
        with torch.no_grad(), model.statistics_kept():
            return float(F.cross_entropy(mixture(model, gates, x), t))

    for i in range(BLOCKS):
        for k in range(COLUMNS):
            up, down = one_hot(path), one_hot(path)
            up[i, k] += step
            down[i, k] -= step
            slope = (loss(up) - loss(down)) / (2 * step)
            assert found[i, k].item() == pytest.approx(slope, rel=1e-4, abs=1e-8)


@pytest.mark.parametrize("store", [False, True])
def test_only_wanted_gates_get_a_gradient(store: bool) -> None:
    model, (x, t), path = small_model(), batch(), [0, 4, 3, 1]
    others = [2, 0, 1, 4]
    _, everything = mixture_gradient(model, path, x, t)
    _, found = gate_gradient(model, path, x, t, [[k] for k in others], store)
    kept = one_hot(path).bool() | one_hot(others).bool()
    torch.testing.assert_close(found, everything * kept, rtol=1e-9, atol=1e-14)


def test_unasked_candidates_do_not_run() -> None:
    model, (x, t), path = small_model(), batch(), [0, 4, 3, 1]
    counts = counted(model)
    F.cross_entropy(model(x), t).backward()  # a weight step, on the path that is set at first: all 0
    assert counts() == [[1, 0, 0, 0, 0]] * BLOCKS
    gate_gradient(model, path, x, t, [[2], [1], [3], [4]])
    assert counts() == [[1, 0, 1, 0, 0], [0, 1, 0, 0, 0], [0, 0, 0, 1, 0], [0, 1, 0, 0, 0]]
    for store in (False, True):
        gate_gradient(model, path, x, t, store=store)
        assert counts() == [[1, 1, 1, 1, 0]] * BLOCKS


@pytest.mark.parametrize("path", PATHS[:3])
def test_weights_get_the_gradient_of_a_plain_step(path: list[int]) -> None:
    model, (x, t) = small_model(), batch()
    model.set_path(path)
    x.requires_grad_()
    plain = torch.autograd.grad(F.cross_entropy(model(x), t), [x, *model.parameters()], allow_unused=True)
    for store in (False, True):
        gates = torch.zeros(BLOCKS, COLUMNS, dtype=x.dtype, requires_grad=True)
        with model.gated(gates, ALL, store=store):
            loss = F.cross_entropy(model(x), t)
        found = torch.autograd.grad(loss, [x, *model.parameters()], allow_unused=True)
        for a, b in zip(plain, found, strict=True):
            assert (a is None) == (b is None)
            assert a is None or torch.equal(a, b)


def assert_gradients_of_the_mixture(
    model: SuperNet, x: Tensor, t: Tensor, *, store: bool, atol: float
) -> None:
    for path in PATHS:
        _, wanted = mixture_gradient(model, path, x, t)
        found = gate_gradient(model, path, x, t, store=store)[1]
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=atol)


@pytest.mark.parametrize("store", [False, True])
def test_frozen_weights_are_no_obstacle(store: bool) -> None:
    model, (x, t) = small_model(), batch()
    model.requires_grad_(False)
    assert_gradients_of_the_mixture(model, x, t, store=store, atol=1e-14)


@pytest.mark.parametrize("store", [False, True])
def test_channels_last(store: bool) -> None:
    model, (x, t) = small_model().to(memory_format=torch.channels_last), batch()
    x = x.contiguous(memory_format=torch.channels_last)
    assert_gradients_of_the_mixture(model, x, t, store=store, atol=1e-13)


@pytest.mark.parametrize("store", [False, True])
def test_autocast_reaches_what_the_backward_pass_runs(store: bool) -> None:
    model, (x, t) = small_model(dtype=torch.float32), batch(dtype=torch.float32)
    types: set[torch.dtype] = set()
    for mixed_op in model.mixed_ops:
        op = mixed_op.op(2)
        assert isinstance(op, Curve)
        op.mix.register_forward_hook(lambda _m, _i, out: types.add(out.dtype))
    path = [0, 4, 1, 3]
    with torch.autocast("cpu", torch.bfloat16):
        _, exact = mixture_gradient(model, path, x, t)
    gates = torch.zeros(BLOCKS, COLUMNS, requires_grad=True)
    model.set_path(path)
    types.clear()
    with model.statistics_kept(), torch.autocast("cpu", torch.bfloat16):
        with model.gated(gates, ALL, store=store):
            logits = model(x)
        loss = F.cross_entropy(logits.float(), t)
    with model.statistics_kept():
        loss.backward()  # as always outside of autocast
    assert types == {torch.bfloat16}
    assert gates.grad is not None
    assert gates.grad.dtype == torch.float32
    assert F.cosine_similarity(gates.grad.flatten(), exact.flatten(), dim=0) > 0.999


def test_statistics_and_weights_stay_as_they_are() -> None:
    model, (x, t) = small_model(), batch()
    before = state_of(model)
    for path in PATHS:
        for store in (False, True):
            gate_gradient(model, path, x, t, store=store)
    assert same(before, model.state_dict())
    model(x)
    assert not same(before, model.state_dict())  # a plain forward pass in training mode moves them


class _Broken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("broken candidate")


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_after_an_error_no_gate_is_open(where: str) -> None:
    model, (x, t) = small_model(), batch()
    good = model.mixed_ops[1]._ops
    model.mixed_ops[1]._ops = (*good[:2], _Broken(), *good[3:])
    with pytest.raises(RuntimeError, match="broken candidate"):
        gate_gradient(model, [0, 2 if where == "forward" else 0, 0, 0], x, t)
    assert all(c.gates is None and c.others == () and not c.store for c in model.mixed_ops)
    assert all(norm.track_running_stats for norm in model._norms)
    model.mixed_ops[1]._ops = good
    before = state_of(model)
    _, wanted = mixture_gradient(model, PATHS[0], x, t)
    torch.testing.assert_close(gate_gradient(model, PATHS[0], x, t)[1], wanted, rtol=1e-9, atol=1e-14)
    assert same(before, model.state_dict())


def test_gates_of_another_shape_are_refused_and_leave_nothing_open() -> None:
    model = small_model()
    with pytest.raises(ValueError, match="zip"), model.gated(torch.zeros(BLOCKS - 1, COLUMNS), ALL):
        pytest.fail("not reached")
    assert all(c.gates is None for c in model.mixed_ops)


@pytest.mark.parametrize("active", [0, 1, 2])
@pytest.mark.parametrize("shortcut", [False, True])
def test_one_block_alone(active: int, shortcut: bool) -> None:
    if active == 2 and not shortcut:
        return  # Zero is the block's shortcut and nothing else
    g = torch.Generator().manual_seed(0)
    candidates = [
        nn.Conv2d(3, 3, 3, padding=1).double(),
        nn.Conv2d(3, 3, 1).double(),
        None if shortcut else False,
    ]
    block = MixedOp(candidates, shortcut)
    x = torch.randn(2, 3, 5, 5, generator=g, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 3, 5, 5, generator=g, dtype=torch.float64)
    block.active, block.gates = active, torch.zeros(3, dtype=torch.float64, requires_grad=True)
    block.others = tuple(k for k in range(2) if k != active)
    y = block(x)
    assert torch.equal(y, block_output(block, x))
    gates, by_x = torch.autograd.grad((y * weight).sum(), [block.gates, x])
    outputs = [candidates[0](x), candidates[1](x), torch.zeros_like(x)]
    torch.testing.assert_close(
        gates, torch.stack([(weight * o).sum() for o in outputs]), rtol=1e-12, atol=1e-14
    )
    (wanted,) = torch.autograd.grad((block_output(block, x) * weight).sum(), x)
    torch.testing.assert_close(by_x, wanted, rtol=1e-14, atol=0)


def block_output(block: MixedOp, x: Tensor) -> Tensor:
    op = block.op(block.active)
    y = x.new_zeros(()) if op is None else op(x)
    return x + y if block.shortcut else y


def test_echo_returns_what_it_was_given() -> None:
    x, y = torch.randn(2, 3, 4, 4, requires_grad=True), torch.randn(2, 3, 4, 4, requires_grad=True)
    gates = torch.zeros(2, requires_grad=True)
    out = binary_gate(x, y, gates, 0, [(1, torch.sin)])
    assert torch.equal(out, y)
    out.sum().backward()
    assert x.grad is None  # its way is through the operation
    assert torch.equal(y.grad, torch.ones_like(y))
    torch.testing.assert_close(gates.grad, torch.stack([y.detach().sum(), x.detach().sin().sum()]))


def test_gradients_add_up_over_two_backward_passes() -> None:
    model, (x, t) = small_model(), batch()
    _, once = gate_gradient(model, PATHS[1], x, t)
    gates = torch.zeros(BLOCKS, COLUMNS, dtype=x.dtype, requires_grad=True)
    for _ in range(2):
        with model.statistics_kept(), model.gated(gates, ALL):
            F.cross_entropy(model(x), t).backward()
    torch.testing.assert_close(gates.grad, 2 * once, rtol=1e-12, atol=0)


def _layouts() -> dict[str, Tensor]:
    base = torch.randn(4, 6, 5, 5, generator=torch.Generator().manual_seed(1))
    return {
        "contiguous": base,
        "channels last": base.contiguous(memory_format=torch.channels_last),
        "slice": torch.randn(4, 12, 5, 5)[:, 3:9],
        "offset": torch.randn(5, 6, 5, 5)[1:],
        "expanded": torch.randn(4, 1, 1, 1).expand(4, 6, 5, 5),
        "permuted": torch.randn(5, 5, 6, 4).permute(3, 2, 0, 1),
        "bfloat16": base.bfloat16(),
        "half": base.half(),
    }


@pytest.mark.parametrize("first", _layouts())
@pytest.mark.parametrize("second", _layouts())
def test_inner_product_minds_no_layout_and_no_type(first: str, second: str) -> None:
    a, b = _layouts()[first], _layouts()[second]
    found = inner_product(a, b)
    assert found.dtype == torch.float32
    assert found.shape == ()
    assert float(found) == pytest.approx(float((a.double() * b.double()).sum()), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("shape", [(4, 6, 1, 1), (4, 1, 3, 3), (1, 6, 1, 3), (4, 6), (0, 3, 2, 2)])
def test_inner_product_of_flat_maps(shape: tuple[int, ...]) -> None:
    a, b = torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)
    pairs = [(a, b)]
    if len(shape) == 4:
        last = torch.channels_last
        pairs += [(a, b.contiguous(memory_format=last)), (a.contiguous(memory_format=last), b)]
    for left, right in pairs:
        torch.testing.assert_close(inner_product(left, right), (a * b).sum())


def test_the_space_of_these_tests_has_what_they_need() -> None:
    model = small_model()
    assert [c.shortcut for c in model.mixed_ops] == [False, True, False, True]
    assert [c.allowed[ZERO_COLUMN] for c in model.mixed_ops] == [False, True, False, True]
    assert len(SPACE.candidate_ops) == COLUMNS
