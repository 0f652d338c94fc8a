"""Candidates without a graph: the same outputs, and the ordinary way wherever something is unusual."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from search_tools import gate_gradient, mixture_gradient, same, small_model, state_of
from torch import Tensor, nn

from proxylessnas.arch.blocks import Block
from proxylessnas.arch.space import SearchSpace, SpaceStage
from proxylessnas.models.layers import MBConv
from proxylessnas.search.arch_params import ArchParameters
from proxylessnas.search.mixed_op import Moments, output

LAST = torch.channels_last
#: Maps of many pixels a channel, whose covariance pays, and of few, whose does not.
MANY, FEW = (8, 8, 32, 32), (16, 48, 8, 8)


def block(
    channels: int = 8, kernel: int = 3, expand: int = 3, stride: int = 1, dtype: torch.dtype = torch.float64
) -> MBConv:
    """Return an MBConv whose BatchNorms are far from new, and use the batch's statistics alone."""
    torch.manual_seed(0)
    op = MBConv(Block("mbconv", "", 0, channels, 12, stride, False, kernel, expand)).to(dtype).train()
    for module in op.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.5)
            nn.init.normal_(module.bias)
            module.track_running_stats = False
    return op.to(memory_format=LAST)


def batch(shape: tuple[int, ...] = MANY, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return correlated channels of different size, away from 0."""
    g = torch.Generator().manual_seed(1)
    x = torch.randn(shape, generator=g, dtype=torch.float64)
    mix = torch.randn(shape[1], shape[1], generator=g, dtype=torch.float64)
    x = torch.einsum("nchw,cd->ndhw", x, mix) + 3.0
    return x.to(dtype).contiguous(memory_format=LAST)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 7])
@pytest.mark.parametrize("shape", [MANY, FEW], ids=["many", "few"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-4)])
def test_the_output_is_that_of_the_candidate(
    dtype: torch.dtype, tolerance: float, shape: tuple[int, ...], kernel: int, stride: int
) -> None:
    op, x, moments = block(shape[1], kernel, 6, stride, dtype), batch(shape, dtype), Moments()
    with torch.no_grad():
        wanted, found = op(x), output(op, x, moments)
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)
    assert found.is_contiguous(memory_format=LAST)
    assert (moments._found is not None) == (shape == MANY)


def test_snapshots_are_those_of_the_map_and_found_once() -> None:
    x, moments = batch(), Moments()
    rows = x.permute(1, 0, 2, 3).flatten(1)
    mean, covariance = moments.of(x)
    torch.testing.assert_close(mean, rows.mean(1))
    torch.testing.assert_close(covariance, torch.cov(rows, correction=0))
    assert moments.of(x)[1] is covariance


def test_an_input_without_spread_is_no_obstacle() -> None:
    op, x = block(), torch.ones(MANY, dtype=torch.float64).contiguous(memory_format=LAST)
    with torch.no_grad():
        torch.testing.assert_close(output(op, x, Moments()), op(x), rtol=1e-9, atol=1e-9)


def _hook(path: str) -> Callable[[MBConv], object]:
    return lambda op: op.get_submodule(path).register_forward_hook(lambda *_: None)


def _before(path: str) -> Callable[[MBConv], object]:
    return lambda op: op.get_submodule(path).register_forward_pre_hook(lambda *_: None)


def _parametrised(op: MBConv) -> None:
    torch.nn.utils.parametrizations.weight_norm(op.point_linear.conv)


def _replaced(op: MBConv) -> None:
    op.point_linear.forward = lambda x: x.mean((2, 3), keepdim=True)  # type: ignore[method-assign]


@pytest.mark.parametrize(
    "change",
    [
        *(_hook(p) for p in ("", "inverted_bottleneck", "inverted_bottleneck.bn", "point_linear")),
        *(_before(p) for p in ("inverted_bottleneck.conv", "point_linear.conv")),
        _parametrised, _replaced,
        lambda op: op.to(torch.float32).to(torch.bfloat16),
        lambda op: setattr(op, "__class__", type("Other", (MBConv,), {})),
    ],
)  # fmt: skip
def test_what_is_out_of_the_ordinary_runs_as_it_is(change: Callable[[MBConv], object]) -> None:
    op, moments = block(), Moments()
    change(op)
    x = batch(dtype=op.depth_conv.conv.weight.dtype)
    with torch.no_grad():
        assert torch.equal(output(op, x, moments), op(x))
    assert moments._found is None


@pytest.mark.parametrize("change", ["evaluation", "tracked", "no scale"])
def test_statistics_other_than_the_batch_alone_are_left_to_batchnorm(change: str) -> None:
    op, twin, x, moments = block(), block(), batch(), Moments()
    for one in (op, twin):
        assert one.inverted_bottleneck is not None
        bn = one.inverted_bottleneck.bn
        if change == "no scale":
            one.inverted_bottleneck.bn = nn.BatchNorm2d(24, affine=False).double()
        elif change == "tracked":
            bn.track_running_stats = True
        else:
            bn.eval()
    with torch.no_grad():
        torch.testing.assert_close(output(op, x, moments), twin(x), rtol=1e-11, atol=1e-11)
    assert moments._found is None
    assert same(op.state_dict(), twin.state_dict())  # running statistics too


def test_autocast_other_layouts_and_small_maps_run_as_they_are() -> None:
    op, x, moments = block(dtype=torch.float32), batch(dtype=torch.float32), Moments()
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(output(op, x, moments), op(x))
        plain = x.contiguous()
        assert torch.equal(output(op, plain, moments), op(plain))
        assert torch.equal(output(op, x[:2], moments), op(x[:2]))
    without = block(expand=1)
    with torch.no_grad():
        assert torch.equal(output(without, batch(), moments), without(batch()))
    assert moments._found is None


SPACE = SearchSpace(
    "quick", stem=8, first=8, last=16, stages=(SpaceStage(12, 2, 2), SpaceStage(16, 2, 2)),
    candidates=("k3e2", "k5e3", "search_curve", "k7e2"), resolution=96, num_classes=5, in_channels=2,
)  # fmt: skip


@pytest.mark.parametrize("store", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_alpha_gets_the_gradient_of_the_explicit_mixture(
    dtype: torch.dtype, tolerance: float, store: bool
) -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(8, 2, 96, 96, generator=g).to(dtype).contiguous(memory_format=LAST)
    t = torch.randint(0, 5, (8,), generator=g)
    model = small_model(0, SPACE, dtype).to(memory_format=LAST)
    before = state_of(model)
    for path in ([0, 1, 2, 3], [3, 4, 1, 4]):
        _, wanted = mixture_gradient(model, path, x, t)  # runs its candidates as they are
        _, found = gate_gradient(model, path, x, t, store=store)
        gradients = []
        for gates in (wanted, found):
            alphas = ArchParameters(SPACE.mask)
            alphas.init(torch.Generator().manual_seed(1), std=1.0)
            alphas.add_gate_gradient(gates)
            gradients.append(alphas.logits.grad)
        size = float(gradients[0].abs().max())
        torch.testing.assert_close(gradients[1], gradients[0], rtol=tolerance, atol=tolerance * size)
    assert same(before, model.state_dict())
