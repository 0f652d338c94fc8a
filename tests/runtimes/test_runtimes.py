"""The runtimes that take a model as a graph: outputs of the eager model, threads as asked, clear refusals."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from proxylessnas.arch.arch import Arch
from proxylessnas.arch.blocks import Stage
from proxylessnas.errors import LatencyError, MissingExtraError
from proxylessnas.runtimes.base import ModelSpec
from proxylessnas.runtimes.modules import build_model
from proxylessnas.runtimes.settings import Settings

MODEL = ModelSpec(
    "arch", str(Arch("net", 8, 8, 32, (Stage(16, 2, "k3e2 - k5e2 k3e2!"),), num_classes=10)), (3, 32, 32)
)
FAST = ("onnxruntime", "openvino")
# Importing and lowering takes it ten seconds and more.
ALL = [*FAST, pytest.param("executorch", marks=pytest.mark.slow)]
NAMES = ("onnxruntime", "openvino", "executorch")
EXTRAS = {"onnxruntime": "onnx", "openvino": "openvino", "executorch": "mobile"}


def get(name: str) -> Any:
    if name != "executorch":
        pytest.importorskip("onnx")
    pytest.importorskip(name)
    return importlib.import_module(f"proxylessnas.runtimes.{name}").RUNTIME


@pytest.mark.parametrize("name", ALL)
def test_output_is_that_of_the_eager_model(name: str, tmp_path: Path) -> None:
    runtime = get(name)
    settings = Settings(name, batch_size=2)
    session = runtime.load(MODEL, settings, tmp_path)
    model, _ = build_model(MODEL, Settings(batch_size=2))
    for _ in range(3):
        session.run()
    x = torch.from_numpy(session.input().copy())
    assert x.shape == (2, 3, 32, 32)
    torch.testing.assert_close(torch.from_numpy(session.output().copy()), model(x), rtol=1e-3, atol=1e-4)
    assert session.times_ms(3) is None  # the caller's clock is right
    assert not runtime.has_parts
    assert runtime.device_name(settings) is None
    assert [*runtime.versions()] == [name]
    session.close()


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize(
    "key",
    [
        "stem in=3x32x32 out=8 stride=2", "k3e6 in=8x16x16 out=8 stride=1 shortcut",
        "last in=8x7x7 out=16", "classifier in=16x7x7 out=10",
    ],
)  # fmt: skip
def test_single_operations(name: str, key: str, tmp_path: Path) -> None:
    channels, size, _ = (int(n) for n in key.split("in=")[1].split()[0].split("x"))
    spec = ModelSpec("op", key, (channels, size, size))
    session = get(name).load(spec, Settings(name), tmp_path)
    session.run()
    model, _ = build_model(spec, Settings())
    x = torch.from_numpy(session.input().copy())
    torch.testing.assert_close(torch.from_numpy(session.output().copy()), model(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", FAST)
def test_onnx_files(name: str, tmp_path: Path) -> None:
    runtime = get(name)
    from proxylessnas.runtimes.onnx_graph import whole_model_onnx

    path = tmp_path / "net.onnx"
    path.write_bytes(whole_model_onnx(MODEL, 2))
    spec = ModelSpec("file", str(path), (3, 32, 32))
    session = runtime.load(spec, Settings(name, batch_size=2), tmp_path)
    session.run()
    assert session.output().shape == (2, 10)
    with pytest.raises(
        LatencyError, match=r"net\.onnx takes input of the shape .*2.*3.*32.*32.*, not \[1, 3"
    ):
        runtime.load(spec, Settings(name), tmp_path)
    path.write_bytes(b"no model")
    with pytest.raises(LatencyError, match=r"cannot load net\.onnx") as caught:
        runtime.load(spec, Settings(name), tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", FAST)
def test_onnx_files_with_a_free_batch(name: str, tmp_path: Path) -> None:
    runtime = get(name)
    import onnx

    from proxylessnas.runtimes.onnx_graph import whole_model_onnx

    model = onnx.load_model_from_string(whole_model_onnx(MODEL))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    path = tmp_path / "net.onnx"
    onnx.save(model, path)
    session = runtime.load(ModelSpec("file", str(path), (3, 32, 32)), Settings(name, batch_size=3), tmp_path)
    session.run()
    assert session.output().shape == (3, 10)


@pytest.mark.parametrize("name", ALL)
def test_refusals_name_another_way(name: str, tmp_path: Path) -> None:
    runtime = get(name)
    if name == "onnxruntime":
        import onnxruntime

        if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            pytest.skip("this ONNX Runtime has a CUDA provider")
    with pytest.raises(LatencyError, match=r"'torch'"):
        runtime.load(MODEL, Settings(name, device="cuda"), tmp_path)
    with pytest.raises(LatencyError, match=r"float16.*'torch'"):
        runtime.load(MODEL, Settings(name, dtype="float16"), tmp_path)


def test_executorch_cannot_read_onnx_files(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.touch()
    with pytest.raises(LatencyError, match=r"'onnxruntime' or 'openvino'"):
        get("executorch").load(ModelSpec("file", str(path), (3, 32, 32)), Settings("executorch"), tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_library_names_the_extra(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    runtime = importlib.import_module(f"proxylessnas.runtimes.{name}").RUNTIME
    monkeypatch.setitem(sys.modules, name, None)
    for module in [m for m in sys.modules if m.startswith(f"{name}.")]:
        monkeypatch.setitem(sys.modules, module, None)
    for ask in (runtime.versions, lambda: runtime.load(MODEL, Settings(name), tmp_path)):
        with pytest.raises(MissingExtraError, match=rf"pip install 'proxylessnas\[{EXTRAS[name]}\]'"):
            ask()


def test_openvino_computes_in_the_precision_asked_for(tmp_path: Path) -> None:
    """Left alone, it takes bfloat16 where the processor can."""
    runtime = get("openvino")
    model, _ = build_model(MODEL, Settings())

    def error(dtype: str) -> float:
        session = runtime.load(MODEL, Settings("openvino", dtype=dtype), tmp_path)
        session.run()
        x = torch.from_numpy(session.input().copy())
        return (torch.from_numpy(session.output().copy()) - model(x)).abs().max().item()

    assert error("float32") < 1e-5
    try:
        assert error("bfloat16") > 1e-4
    except LatencyError as e:
        assert "bfloat16" in str(e)  # noqa: PT017 - a processor that has none


_THREADS = """
from pathlib import Path
import torch
from proxylessnas.errors import LatencyError
from proxylessnas.runtimes.modules import build_model
from proxylessnas.runtimes.onnxruntime import RUNTIME
from proxylessnas.runtimes.settings import Settings
from proxylessnas.runtimes.base import ModelSpec

def count():
    return len([*Path("/proc/self/task").iterdir()])

spec = ModelSpec("arch", TEXT, (3, 32, 32))
torch.set_num_threads(1)
model, _ = build_model(spec, Settings())
RUNTIME.versions()
kept, added = [], []
for number in range(3):
    before = count()
    kept.append(RUNTIME.load(spec, Settings("onnxruntime", threads=3), Path(".")))
    kept[-1].run()
    added.append(count() - before)
    error = model(torch.from_numpy(kept[-1].input())) - torch.from_numpy(kept[-1].output())
    assert error.abs().max() < 1e-4, error
print(*added)
try:
    RUNTIME.load(spec, Settings("onnxruntime", threads=4), Path(".")).run()
except LatencyError as e:
    print(e)
"""


needs_proc = pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts threads in /proc")


@needs_proc
def test_onnxruntime_starts_no_thread_when_asked_for_one(tmp_path: Path) -> None:
    runtime = get("onnxruntime")
    runtime.versions()
    before = len(os.listdir("/proc/self/task"))
    session = runtime.load(MODEL, Settings("onnxruntime"), tmp_path)
    session.run()
    assert len(os.listdir("/proc/self/task")) == before


@needs_proc
def test_onnxruntime_has_as_many_threads_as_asked_and_one_pool() -> None:
    """Idle threads of other sessions would take processors from the one that is measured."""
    get("onnxruntime")
    done = subprocess.run(
        [sys.executable, "-c", _THREADS.replace("TEXT", repr(MODEL.text))],
        capture_output=True, text=True, timeout=300, cwd=Path(__file__).resolve().parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    added, refused = done.stdout.splitlines()
    assert added == "2 0 0"
    assert refused == "this process measures ONNX Runtime with 3 threads; 4 need a new process"


@pytest.mark.slow
def test_executorch_changes_its_pool(tmp_path: Path) -> None:
    runtime = get("executorch")

    library = runtime.library()
    spec = ModelSpec("op", "k3e2 in=8x8x8 out=8 stride=1 shortcut", (8, 8, 8))
    for threads in (2, 1):
        runtime.load(spec, Settings("executorch", threads=threads), tmp_path).run()
        assert library._threadpool_get_thread_count() == threads
