"""Folding, fusing, and the choice of the fastest way to run a model."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest
import torch
from deploy_tools import TREE, small
from torch import Tensor, nn

from proxylessnas.deploy import optimized as optimizing
from proxylessnas.deploy.backends import Candidate
from proxylessnas.deploy.optimized import optimize
from proxylessnas.deploy.settings import OptimizeSettings
from proxylessnas.errors import ExportError
from proxylessnas.models.batchnorm import fold_batchnorm
from proxylessnas.models.fuse import FusedConv, fuse
from proxylessnas.models.layers import ConvLayer, folded


@pytest.fixture
def model() -> nn.Module:
    """Return a small model in training mode whose BatchNorms all do something."""
    return small().train()


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@torch.inference_mode()
def far(a: nn.Module, b: nn.Module, x: Tensor) -> float:
    return float((a(x) - b(x)).abs().max())


def test_folded_models_compute_the_same(model: nn.Module) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    twin = fold_batchnorm(model)
    assert norms(model) > 0
    assert norms(twin) == 0
    assert model.training
    assert not twin.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in twin.parameters())
    assert {type(layer.conv) for layer in twin.modules() if isinstance(layer, ConvLayer)} == {nn.Conv2d}
    assert 0 < far(model.eval(), twin, torch.randn(2, 3, 32, 32)) < 1e-5


def test_folding_rounds_once() -> None:
    conv, bn = nn.Conv2d(4, 6, 3, bias=True), nn.BatchNorm2d(6)
    bn.running_mean, bn.running_var = torch.randn(6), torch.rand(6) + 0.1
    weight, bias = folded(conv, bn)
    x = torch.randn(1, 4, 8, 8)
    exact = bn.double().eval()(conv.double()(x.double()))
    assert torch.allclose(nn.functional.conv2d(x.double(), weight, bias), exact, rtol=1e-12, atol=1e-12)


def test_folding_in_plain_sequences() -> None:
    conv = nn.Conv2d(3, 4, 3)
    model = nn.Sequential(conv, nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4))
    model[1].running_mean.fill_(0.3)
    model.eval()
    twin = fold_batchnorm(model)
    assert isinstance(twin[1], nn.Identity)
    assert isinstance(twin[3], nn.BatchNorm2d)
    assert far(model, twin, torch.randn(1, 3, 8, 8)) < 1e-6


def test_what_cannot_be_folded_is_left() -> None:
    """A convolution used twice, one that is watched, and one whose weight is made from something else."""
    shared = nn.Conv2d(3, 3, 3, padding=1)
    watched, made = nn.Conv2d(3, 3, 3), nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 3, 3))
    watched.register_forward_hook(lambda module, inputs, output: output * 2)
    model = nn.Sequential(
        nn.Sequential(shared, nn.BatchNorm2d(3)),
        nn.Sequential(shared, nn.BatchNorm2d(3)),
        nn.Sequential(watched, nn.BatchNorm2d(3)),
        nn.Sequential(made, nn.BatchNorm2d(3)),
        nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False)),
    ).eval()
    twin = fold_batchnorm(model)
    assert norms(twin) == 5
    assert far(model, twin, torch.randn(1, 3, 16, 16)) == 0


def fused(model: nn.Module, x: Tensor) -> nn.Module:
    try:
        with torch.no_grad():
            return fuse(fold_batchnorm(model), x)
    except (AttributeError, RuntimeError) as e:
        pytest.skip(f"this build of PyTorch has no oneDNN operators: {e}")


def test_fused_models_compute_the_same(model: nn.Module) -> None:
    x = torch.randn(2, 3, 32, 32)
    twin = fused(model, x)
    layers = sum(isinstance(module, ConvLayer) for module in model.modules())
    assert sum(isinstance(module, FusedConv) for module in twin.modules()) == layers
    assert sum(type(module).__name__ == "FusedBlock" for module in twin.modules()) == 2  # shortcuts
    for shape in ((2, 3, 32, 32), (5, 3, 32, 32), (1, 3, 50, 38)):  # weights are ordered for the first
        assert far(model.eval(), twin, torch.randn(shape)) < 1e-5


def test_nothing_to_fuse() -> None:
    with pytest.raises((RuntimeError, AttributeError)):
        fuse(nn.Sequential(nn.Conv2d(3, 3, 3)), torch.randn(1, 3, 8, 8))


def test_optimize(model: nn.Module) -> None:
    """It computes the same, says what it chose, and leaves the model and the process as they were."""
    before = pickle.dumps(model.state_dict())
    fast = optimize(
        model, settings=OptimizeSettings(batch_size=2, compile="never", seconds=0.05, allow_bf16=False)
    )
    assert pickle.dumps(model.state_dict()) == before
    assert model.training
    report = fast.report
    names = [candidate.name for candidate in report.candidates]
    assert names[:4] == ["as given", "channels last", "folded", "folded, channels last"]
    timed = {candidate.name: candidate.ms for candidate in report.candidates if not candidate.out}
    assert all(ms and ms > 0 for ms in timed.values())
    assert timed[report.chosen] <= 1.03 * min(ms for ms in timed.values() if ms)
    assert (report.threads, report.batch_size, report.input_size) == (1, 2, (3, 32, 32))
    assert report.why.startswith(f"{report.chosen}: ")
    assert f"> {report.chosen}" in str(report)
    assert report.images.startswith("32 random inputs and ")
    stored = json.loads(json.dumps(report.to_dict()))
    assert (stored["chosen"], stored["pictures"]) == (report.chosen, report.images)
    assert "images" not in stored
    for shape in ((2, 3, 32, 32), (1, 3, 32, 32), (3, 3, 64, 48)):
        x = torch.randn(shape)
        assert far(model.eval(), fast, x) < 1e-4
        # Not to the last bit: the order of sums may follow the memory format, as it does in the model as
        # given.
        assert far(model.eval(), fast, x.contiguous(memory_format=torch.channels_last)) < 1e-4
    x = torch.randn(2, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        assert fast(x).dtype == torch.float32
    assert not fast(x).requires_grad


@pytest.mark.parametrize("backend", optimizing.WAYS[:5], ids=lambda backend: backend.name)
def test_each_way_computes_the_same(model: nn.Module, backend: Any) -> None:
    model.eval()
    x = torch.randn(2, 3, 32, 32)
    if backend.name == "oneDNN fused":
        fused(model, x)  # skips where that is not to be had
    with torch.no_grad():
        run = backend.make(model, fold_batchnorm(model), x)
        expected = model(x)
        assert float((run(x) - expected).abs().max()) < 1e-5
        # The kernel, and so the order of its sums, may follow the input's memory format.
        other = run(x.contiguous(memory_format=torch.channels_last))
        assert float((other - expected).abs().max()) < 1e-5


def test_bfloat16_is_taken_only_where_it_agrees(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizing, "no_bfloat16", lambda device: "")
    x = torch.randn(16, 3, 32, 32)
    for bar, out in ((0.0, False), (1.01, True)):
        report = optimize(
            model,
            x,
            OptimizeSettings(batch_size=1, compile="never", seconds=0.01, min_agreement=bar, tolerance=1.0),
        ).report
        found = {candidate.name: candidate for candidate in report.candidates}
        half = found["folded, channels last, bfloat16"]
        assert bool(half.out) == out
        assert (half.ms is None) == out
        assert half.difference is not None
        assert half.difference > 1e-4
        assert report.images == "the 16 inputs given"
        if out:
            assert report.chosen == "as given" or found[report.chosen].out == ""
    assert not any(
        "bfloat16" in c.name
        for c in optimize(
            model, x, OptimizeSettings(compile="never", allow_bf16=False, seconds=0)
        ).report.candidates
    )


def test_a_candidate_that_differs_is_out(model: nn.Module) -> None:
    report = optimize(model, settings=OptimizeSettings(compile="never", seconds=0.01, tolerance=0.0)).report
    exact, *others = [candidate for candidate in report.candidates if "bfloat16" not in candidate.name]
    assert exact.out == ""
    assert all("more than" in candidate.out for candidate in others if candidate.difference)


def test_a_way_that_fails_is_out() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 5))
    fast = optimize(model, torch.randn(4, 1, 8, 8), OptimizeSettings(compile="never", seconds=0.01))
    found = {candidate.name: candidate for candidate in fast.report.candidates}
    assert found["oneDNN fused"].out.startswith("failed: ")
    assert fast.report.batch_size == 4
    assert fast.report.chosen in found


def test_a_tree_model_runs() -> None:
    model = small(TREE)
    assert (
        far(
            model.eval(),
            optimize(model, settings=OptimizeSettings(compile="never", seconds=0)),
            torch.randn(1, 3, 32, 32),
        )
        < 1e-3
    )


def test_of_two_as_fast_the_simpler_is_taken() -> None:
    slow, plain = Candidate("as given", ms=10.0), Candidate("plain", ms=5.05)
    barely, out = Candidate("compiled", ms=5.0), Candidate("wrong", out="differs")
    chosen, why = optimizing._choose([slow, plain, out, barely])
    assert chosen == "plain"
    assert "no more than noise" in why
    chosen, why = optimizing._choose([slow, plain, Candidate("compiled", ms=4.0)])
    assert chosen == "compiled"
    assert why == "compiled: 4.00 ms, 2.50 times as fast as the model as given; next is plain with 5.05 ms"


def test_without_a_compiler(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ExportError, match=r"needs a C\+\+ compiler: install"):
        optimize(model, settings=OptimizeSettings(compile="always"))
    assert not any(
        "nductor" in c.name
        for c in optimize(model, settings=OptimizeSettings(seconds=0.01)).report.candidates
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"compile": "maybe"}, "'maybe'"),
        ({"threads": 0}, "threads must be a whole number"),
        ({"batch_size": True}, "batch_size must be a whole number"),
        ({"seconds": -1}, "seconds must be a number"),
        ({"example": torch.zeros(3, 32, 32)}, r"not torch.float32 \[3, 32, 32\]"),
        ({"example": "photo.jpg"}, "not 'photo.jpg'"),
        ({"example": torch.zeros(1, 3, 32, 32), "input_size": 64}, "input_size 64"),
        ({"example": torch.zeros(1, 4, 32, 32)}, r"does not take \[1, 4, 32, 32\]"),
    ],
)
def test_bad_arguments(model: nn.Module, arguments: dict[str, Any], message: str) -> None:
    arguments = {"compile": "never", "threads": 2, **arguments}
    example = arguments.pop("example", None)
    with pytest.raises(ExportError, match=message) as caught:
        optimize(model, example, OptimizeSettings(**arguments))
    assert torch.get_num_threads() == 1
    assert "\n" not in str(caught.value)


def test_it_is_for_inference_in_this_process(model: nn.Module) -> None:
    fast = optimize(model, settings=OptimizeSettings(compile="never", seconds=0))
    assert fast.eval() is fast
    with pytest.raises(ExportError, match="train the model it was made from"):
        fast.train()
    with pytest.raises(ExportError, match="belongs to this process"):
        pickle.dumps(fast)


@pytest.mark.slow
def test_compiled_ways(model: nn.Module) -> None:
    """Both compilers make something that computes the same, and nothing of them stays behind."""
    import torch._inductor.config as inductor

    if optimizing.missing_compiler():
        pytest.skip("no C++ compiler")
    freezing = inductor.freezing
    fast = optimize(model, settings=OptimizeSettings(compile="always", allow_bf16=False, seconds=0.05))
    assert inductor.freezing == freezing
    found = {candidate.name: candidate for candidate in fast.report.candidates}
    for name in ("inductor", "AOTInductor"):
        assert found[name].out == ""
        assert found[name].ms is not None
    assert far(model.eval(), fast, torch.randn(1, 3, 32, 32)) < 1e-4
