"""Models as a measuring process builds them, and the runtimes of torch."""

from __future__ import annotations

import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from proxylessnas import runtimes
from proxylessnas.arch.arch import Arch
from proxylessnas.arch.blocks import Stage
from proxylessnas.arch.op_key import arch_keys
from proxylessnas.errors import LatencyError, MissingExtraError
from proxylessnas.latency.worker import Worker
from proxylessnas.runtimes import registry
from proxylessnas.runtimes.base import ModelSpec
from proxylessnas.runtimes.files import file_runtimes
from proxylessnas.runtimes.modules import build_model, op_module
from proxylessnas.runtimes.settings import Settings
from proxylessnas.runtimes.torch_compile import own_function
from proxylessnas.runtimes.torch_sessions import parts_of, session_for

ARCH = Arch("small", stem=8, first=8, last=32, num_classes=10, resolution=32,
            stages=(Stage(16, 2, "k3e2 - k5e3"), Stage(24, 2, "k3e4! k7e2")))  # fmt: skip
SPEC = ModelSpec("arch", str(ARCH), (3, 32, 32))
QUICK = {"min_runs": 5, "min_seconds": 0.0, "max_seconds": 2.0}


def test_every_runtime_is_known_by_name() -> None:
    assert list(registry.available()) == list(registry.runtimes())
    assert registry.available(["torch"]) == {"torch": None}
    assert registry.get_runtime("torch").name == "torch"
    for call in (registry.get_runtime, lambda name: registry.available([name])):
        with pytest.raises(LatencyError, match="runtime is 'tensorrt'; known are torch, torch-compile"):
            call("tensorrt")


def test_a_runtime_without_its_library_names_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    found = registry.available()
    assert found["torch"] is None
    assert found["onnxruntime"] == "pip install 'proxylessnas[onnx]'"
    assert found["executorch"] == "pip install 'proxylessnas[mobile]'"
    assert "install a C++ compiler" in str(found["torch-compile"])


_TOY = """
from proxylessnas.runtimes.base import Runtime

class Toy(Runtime):
    name = "toy"
    module = "toy_lib.engine"
    needs = ("toy_lib",)
    extra = "toy"
    suffixes = (".toy",)

RUNTIME = Toy()
"""


def test_a_runtime_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "toy.py").write_text(_TOY)
    monkeypatch.setattr(runtimes, "__path__", [*runtimes.__path__, str(tmp_path)])
    registry.runtimes.cache_clear()
    try:
        assert [*registry.runtimes()][:2] == ["torch", "torch-compile"]
        assert registry.available(["toy"]) == {"toy": "pip install 'proxylessnas[toy]'"}
        assert file_runtimes("net.toy") == ("toy",)
        toy = registry.get_runtime("toy")
        with pytest.raises(LatencyError, match="'toy' measures float32 on cpu, not float16 on cpu: use"):
            toy.check(Settings("toy", dtype="float16"))
        with pytest.raises(MissingExtraError, match="'toy' needs toy-lib, which is not installed"):
            toy.versions()
    finally:
        sys.modules.pop("proxylessnas.runtimes.toy", None)
        registry.runtimes.cache_clear()


def test_runtimes_are_found_without_their_libraries() -> None:
    heavy = {"torch", "onnx", "onnxruntime", "openvino", "executorch", "ai_edge_litert", "numpy"}
    code = (
        "import sys; from proxylessnas.runtimes.registry import available; available(); "
        f"print({heavy} & {{*sys.modules}})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "set()", done.stderr


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_models_are_built_as_asked_for_and_the_same_every_time(dtype: torch.dtype) -> None:
    settings = Settings(batch_size=3, dtype=str(dtype).removeprefix("torch."))
    state = torch.get_rng_state()
    (model, x), (again, y) = (build_model(SPEC, settings) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert x.shape == (3, 3, 32, 32)
    assert x.dtype == dtype
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert {p.dtype for p in model.parameters()} == {dtype}
    weights = [p for p in model.parameters() if p.dim() == 4 and p.shape[2] > 1 and p.shape[1] > 1]
    assert weights
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in weights)
    with torch.inference_mode():
        assert torch.equal(model(x), again(y))
        assert model(x).std() > 0.01


def test_the_parts_of_a_model_make_its_output() -> None:
    model, x = build_model(SPEC, Settings(batch_size=2))
    y = x
    with torch.inference_mode():
        for _, step in parts_of(model, SPEC):
            y = step(y)
        assert torch.equal(y, model(x))
    keys = [key for key, _ in parts_of(model, SPEC) if key]
    assert keys == [str(key) for key in arch_keys(ARCH)]
    assert parts_of(model, ModelSpec("arch", str(ARCH), (3, 32, 24))) == []  # keys are of square inputs
    other = parts_of(model, ModelSpec("arch", str(ARCH), (3, 64, 64)))
    assert other[0][0] == "stem in=3x64x64 out=8 stride=2"


def test_an_operation_alone_does_what_it_does_in_a_model() -> None:
    model, x = build_model(SPEC, Settings())
    with torch.inference_mode():
        for key, step in parts_of(model, SPEC):
            if key:
                alone = op_module(key).eval()
                state = dict(zip(alone.state_dict(), _state_of(step).values(), strict=True))
                alone.load_state_dict(state)
                assert torch.equal(alone(x), step(x)), key
            x = step(x)


def _state_of(step: object) -> dict[str, torch.Tensor]:
    module = step if isinstance(step, nn.Module) else step.__self__.classifier  # type: ignore[attr-defined]
    return module.state_dict()


def test_every_compiled_model_has_a_function_of_its_own() -> None:
    """The compiler keeps a few results for each function, and runs the rest uncompiled without a word."""
    compiled: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        compiled.append(1)
        return graph.forward

    models = [nn.Sequential(nn.Conv2d(2, 2, 1), nn.Conv2d(2, n, 1)) for n in range(1, 13)]
    with torch.no_grad():
        calls = [torch.compile(own_function(model), backend=backend, dynamic=False) for model in models]
        for _ in range(2):
            for n, call in enumerate(calls):
                assert call(torch.zeros(1, 2, 4, 4)).shape[1] == n + 1
    torch.compiler.reset()
    assert len(compiled) == len(models)


@pytest.mark.slow
def test_compiled_models_are_timed() -> None:
    if registry.available(["torch-compile"])["torch-compile"]:
        pytest.skip("no compiler")
    with Worker(Settings(runtime="torch-compile")) as worker:
        assert not worker.has_parts
        for name in "ab":
            worker.load(name, SPEC)
            assert min(worker.window(name, **QUICK).own_ms) > 0
        with pytest.raises(LatencyError, match="cannot time the parts"):
            worker.parts("a", runs=1)


@pytest.mark.gpu
@pytest.mark.parametrize("cuda_graph", [False, True])
def test_a_gpu_times_by_its_own_clock(cuda_graph: bool) -> None:
    settings = Settings(device="cuda", cuda_graph=cuda_graph)
    with Worker(settings) as worker:
        worker.load("net", SPEC)
        whole = statistics.median(worker.window("net", min_runs=50).ms)
        parts = worker.parts("net", runs=50)
        assert [key for key, _ in parts] == [str(key) for key in arch_keys(ARCH)]
        total = sum(sorted(ms)[25] for _, ms in parts)
        assert 0.2 < total / whole < 5
        assert torch.cuda.get_device_name() == worker.conditions.device_name
    model, x = build_model(SPEC, settings)
    with torch.inference_mode():
        expected = model(x)
        session = session_for(model, x, settings, parts_of(model, SPEC))
        session.run()
        session.parts_ms(1)
        if cuda_graph:
            torch.testing.assert_close(session.kept[0], expected)
            torch.testing.assert_close(session.kept[-1], expected)


def test_a_gpu_that_is_not_there_is_named(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with (
        pytest.raises(LatencyError, match="device 'cuda' cannot be used"),
        Worker(Settings(device="cuda")) as worker,
    ):
        worker.load("net", SPEC)
