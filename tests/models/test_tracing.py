"""Every model passes torch.compile, torch.export (strict) and torch.jit.trace."""

from __future__ import annotations

import logging
import shutil
import warnings

import pytest
import torch

from proxylessnas import create_model
from proxylessnas.arch.published import MODEL_NAMES
from tests.models.test_models import SMALL_TREE, randomise

# The published tree model has 911 convolutions: the same code with 4 of its 54 cells is traced in the quick
# tests.
QUICK = [name for name in MODEL_NAMES if name != "proxyless_cifar"]
ALL = [*QUICK, pytest.param("proxyless_cifar", marks=pytest.mark.slow), SMALL_TREE]
ids = [*MODEL_NAMES[:-1], "cifar", "small_tree"]
SIZE = 32


@pytest.fixture(autouse=True)
def _no_trace_log(monkeypatch):
    """Keep torch from formatting thousands of debug records for pytest's log capture, which takes most of the
    time."""
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "disabled", True)


@pytest.fixture(params=ALL, ids=ids)
def model(request):
    model = randomise(create_model(request.param)).train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model(torch.randn(8, 3, SIZE, SIZE))  # without statistics of its own the deep tree model overflows
    return model.eval()


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_export_strict_with_any_batch(model):
    example = torch.randn(2, 3, SIZE, SIZE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own making, different in every release
        program = torch.export.export(
            model, (example,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},), strict=True
        )
    with torch.inference_mode():
        for batch in (1, 2, 7):
            x = torch.randn(batch, 3, SIZE, SIZE)
            close(program.module()(x), model(x))
    calls = [node.target for node in program.graph.nodes if node.op == "call_function"]
    targets = {getattr(t, "overloadpacket", t).__name__ for t in calls}
    allowed = {
        "conv2d",
        "batch_norm",
        "relu6",
        "relu6_",
        "hardtanh",
        "hardtanh_",
        "relu",
        "add",
        "mean",
        "linear",
        "avg_pool2d",
        "max_pool2d",
        "pad",
        "chunk",
        "split",
        "view",
        "transpose",
        "reshape",
        "sym_size",
        "flatten",
    }
    arithmetic = {
        "mul",
        "floordiv",
        "eq",
        "ge",
        "le",
        "_assert_scalar",
        "sym_constrain_range_for_size",
        "getitem",
        "mod",
    }
    assert targets <= allowed | arithmetic


def test_jit_trace(model):
    x = torch.randn(1, 3, SIZE, SIZE)
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # torch.jit is deprecated in new releases
        traced = torch.jit.trace(model, x)
        x = torch.randn(3, 3, SIZE, SIZE)
        close(traced(x), model(x))


@pytest.mark.parametrize("training", [False, True])
def test_compile_captures_one_graph(training):
    """The whole model is one graph, in both modes (eager backend: no compiler needed)."""
    for arch in ("proxyless_w025_r112", SMALL_TREE):
        torch._dynamo.reset()
        model = randomise(create_model(arch)).train(training)
        x = torch.randn(4, 3, SIZE, SIZE)
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        expected = model(x).detach()
        if training:
            compiled(x).mean().backward()
            assert all(p.grad is not None for p in model.parameters())
        else:
            close(compiled(x), expected)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("gcc"), reason="inductor needs a C++ compiler")
def test_compile_with_inductor(model):
    torch._dynamo.reset()
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        x = torch.randn(2, 3, SIZE, SIZE)
        close(torch.compile(model)(x), model(x))
