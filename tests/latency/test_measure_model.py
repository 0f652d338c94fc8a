"""`latency.measure`: what it measures, what it says about it, and that it leaves the model alone."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import os
import random
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from proxylessnas import create_model, save_weights
from proxylessnas.arch.arch import Arch
from proxylessnas.arch.blocks import Stage
from proxylessnas.arch.ops import register_op
from proxylessnas.arch.published import PUBLISHED
from proxylessnas.arch.tree import TreeArch
from proxylessnas.errors import ArchError, LatencyError, UnknownModelError
from proxylessnas.latency import MeasureSettings, measure
from proxylessnas.latency import measure_model as measuring
from proxylessnas.runtimes.environment import allocator
from proxylessnas.runtimes.modules import build_model
from proxylessnas.runtimes.settings import Settings

ARCH = Arch("small", stem=8, first=8, last=32, num_classes=10, resolution=24, in_channels=2,
            stages=(Stage(16, 2, "k3e2 - k5e3"), Stage(24, 2, "k3e4")))  # fmt: skip
QUICK = MeasureSettings(min_runs=5, min_seconds=0.0, max_seconds=2.0)


class Model(nn.Module):
    """A module that other processes can import, with everything that could be changed by accident."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.frozen = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, 4)
        self.head.bias.requires_grad_(False)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.note = ["kept"]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1  # an evaluation counter, which must not count our runs
        return self.head(self.drop(self.frozen(self.bn(self.conv(x)))).mean((2, 3)))


def hook(module: nn.Module, inputs: Any, output: Any) -> None:
    """Do nothing; importable, so that it can travel."""


def prepared(kind: type[Model] = Model) -> Model:
    """Return a module in the middle of training: gradients, hooks, one part in evaluation mode."""
    model = kind().to(memory_format=torch.channels_last)
    model.conv.register_forward_hook(hook)
    model.train()
    model.frozen.eval()
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    return model


def local_kind() -> type[Model]:
    class Local(Model):
        """A class that no other process can import."""

    return Local


def digest(model: nn.Module) -> str:
    """Return a digest of all that a module and this process's torch have for state."""
    found = hashlib.sha256()

    def add(*values: object) -> None:
        found.update(repr(values).encode())

    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        grad = tensor.grad
        add(name, id(tensor), tensor.data_ptr(), tensor.dtype, tensor.device, tensor.stride())
        add(tensor.requires_grad, None if tensor.is_inference() else tensor._version)
        found.update(tensor.detach().contiguous().numpy().tobytes())
        if grad is not None:
            add(id(grad), grad.stride())
            found.update(grad.contiguous().numpy().tobytes())
    for name, module in model.named_modules():
        hooks = [list(getattr(module, key)) for key in sorted(vars(module)) if key.endswith("hooks")]
        add(name, type(module), module.training, hooks, sorted(vars(module)))
    add(getattr(model, "note", None))
    add(torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled())
    add(torch.is_inference_mode_enabled(), random.getstate(), torch.get_rng_state().tolist())
    return found.hexdigest()


# The model is left alone


OWN, HERE = "in a process of its own", "in this process"


@pytest.mark.parametrize(
    ("where", "mode"),
    [(OWN, contextlib.nullcontext), (HERE, contextlib.nullcontext), (HERE, torch.inference_mode)],
)
def test_the_model_is_bit_for_bit_as_before(where: str, mode: Any) -> None:
    model = prepared(local_kind() if where == HERE else Model)
    with mode():
        before = digest(model)
        timing = measure(model, input_size=16, settings=QUICK.replace(memory_format="contiguous"))
        assert digest(model) == before
    assert timing.runs >= 5
    assert model.calls == 1
    model(torch.randn(2, 3, 8, 8)).sum().backward()  # and it can be trained on


@pytest.mark.parametrize("where", [OWN, HERE])
def test_the_model_is_as_before_after_an_error(where: str) -> None:
    model = prepared(local_kind() if where == HERE else Model)
    with torch.inference_mode():
        before = digest(model)
        with pytest.raises(LatencyError, match=r"expected input.* to have 3 channels"):
            measure(model, input_size=(5, 16, 16), settings=QUICK)
        assert digest(model) == before


def test_a_model_of_the_package_in_training_is_left_alone() -> None:
    model = create_model(ARCH)
    model.freeze_bn()
    before = digest(model)
    with torch.no_grad():
        timing = measure(model, batch_size=2, settings=QUICK.replace(dtype="bfloat16"))
    assert digest(model) == before
    assert timing.input_size == (2, 24, 24)
    assert (timing.conditions.dtype, timing.conditions.batch_size) == ("bfloat16", 2)


def test_a_model_made_in_inference_mode_can_be_measured() -> None:
    with torch.inference_mode():
        nets = [Model(), local_kind()()]
    for model in nets:
        before = digest(model)
        assert measure(model, input_size=16, settings=QUICK).median_ms > 0
        assert digest(model) == before


# What is measured, and what is said about it


def test_the_figures_of_a_timing() -> None:
    timing = measure(
        ARCH, batch_size=3, settings=MeasureSettings(min_runs=12, min_seconds=0.1, max_seconds=3)
    )
    assert 0.01 < timing.p10_ms <= timing.median_ms <= timing.p90_ms < 3000
    assert timing.runs >= 12
    assert 0 < timing.undisturbed_ms <= timing.median_ms
    assert timing.uncertainty >= 0
    assert timing.disturbance == timing.median_ms / timing.undisturbed_ms
    assert timing.noisy == bool(timing.noise)
    assert timing.images_per_second == pytest.approx(3000 / timing.undisturbed_ms)
    assert timing.input_size == (2, 24, 24)
    assert timing.date == datetime.date.today().isoformat()
    conditions = timing.conditions
    assert (conditions.runtime, conditions.device, conditions.threads) == ("torch", "cpu", 1)
    assert (conditions.dtype, conditions.memory_format) == ("float32", "channels_last")
    if allocator() == "pages kept":
        assert conditions.allocator == "pages kept"
    assert f"torch {torch.__version__}" in conditions.describe()


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Let nothing be measured, and tell what would be loaded with which settings."""
    specs: list[Any] = []

    class Nothing:
        def __init__(self, settings: Any) -> None:
            self.settings = settings

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: object) -> None: ...

        def load(self, name: str, spec: Any) -> None:
            specs.append((spec, self.settings))
            raise LatencyError("enough")

    monkeypatch.setattr(measuring, "Worker", Nothing)
    return specs


def spec_of(loaded: list[Any], what: Any, **options: Any) -> Any:
    with pytest.raises(LatencyError, match="enough"):
        measure(what, **options)
    return loaded[-1][0]


def test_names_and_files_stand_for_models(loaded: list[Any], tmp_path: Path) -> None:
    (tmp_path / "net.txt").write_text(str(ARCH))
    for what in ("proxyless-mobile", PUBLISHED["proxyless_mobile"]):
        spec = spec_of(loaded, what)
        assert (spec.kind, spec.text) == ("arch", str(PUBLISHED["proxyless_mobile"]))
        assert spec.input_size == (3, 224, 224)
    assert spec_of(loaded, "proxyless_w025_r112").input_size == (3, 112, 112)
    assert spec_of(loaded, tmp_path / "net.txt").text == str(ARCH)
    save_weights(create_model(ARCH, num_classes=4), tmp_path / "net.safetensors")
    spec = spec_of(loaded, tmp_path / "net.safetensors")
    assert (spec.kind, spec.input_size) == ("module", (2, 24, 24))


def test_one_thread_is_the_default(loaded: list[Any]) -> None:
    spec_of(loaded, ARCH)
    assert loaded[-1][1] == Settings(threads=1)
    spec_of(loaded, ARCH, threads=2, device=torch.device("cpu"), settings=MeasureSettings(dtype="float16"))
    assert loaded[-1][1] == Settings(threads=2, dtype="float16")


def test_the_size_of_the_input(loaded: list[Any]) -> None:
    assert spec_of(loaded, nn.Conv2d(3, 4, 3)).input_size == (3, 224, 224)
    assert spec_of(loaded, nn.Conv2d(3, 4, 3), input_size=64).input_size == (3, 64, 64)
    assert spec_of(loaded, nn.Conv2d(1, 4, 3), input_size=(1, 28, 20)).input_size == (1, 28, 20)
    assert spec_of(loaded, ARCH, input_size=32).input_size == (2, 32, 32)
    assert spec_of(loaded, create_model(ARCH, in_chans=5)).input_size == (5, 24, 24)


def test_the_tree_structured_model_can_be_measured(loaded: list[Any]) -> None:
    tree = TreeArch("tree", "7mdi7m5d5577 aiaa3im7didd", start=8, alpha=4, num_stages=2, resolution=16)
    spec = spec_of(loaded, tree)
    assert (spec.kind, spec.input_size) == ("arch", (3, 16, 16))
    model, x = build_model(spec, Settings(batch_size=2))
    assert model(x).shape == (2, 10)


def test_registered_operations_can_be_measured_although_no_other_process_knows_them() -> None:
    register_op("measured_op", lambda i, o, s: nn.Conv2d(i, o, 1, s))
    arch = Arch("own", stem=8, first=8, last=16, num_classes=4, resolution=16,
                stages=(Stage(8, 1, "measured_op k3e2"),))  # fmt: skip
    assert measure(arch, settings=QUICK).median_ms > 0


# Modules that cannot travel


def test_a_module_that_cannot_travel_is_measured_here() -> None:
    """With the state that this process's allocator really has, and on this process's clock."""
    threads = torch.get_num_threads()
    seen = []

    class Local(Model):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append((torch.get_num_threads(), self.training, torch.is_inference_mode_enabled()))
            random.random()
            torch.rand(1)
            return super().forward(x)

    model = Local()
    before = digest(model)
    timing = measure(model, input_size=16, threads=2, settings=QUICK)
    assert set(seen) == {(2, False, True)}
    assert timing.conditions.allocator == allocator()
    assert timing.conditions.threads == 2
    assert torch.get_num_threads() == threads
    assert digest(model) == before
    with torch.autocast("cpu", torch.bfloat16):
        assert measure(model, input_size=16, settings=QUICK).conditions.dtype == "float32"


IN_MAIN = """
import proxylessnas, torch
from proxylessnas import latency
from proxylessnas.runtimes.environment import allocator
{first}
class Model(torch.nn.Sequential):
    pass
found = latency.measure(Model(torch.nn.Conv2d(3, 4, 3)), input_size=16,
                        settings=latency.MeasureSettings(min_runs=3, min_seconds=0.0))
assert found.conditions.allocator == allocator()
print(found.conditions.allocator, any("hands freed memory back" in reason for reason in found.noise))
"""


@pytest.mark.skipif(allocator() not in ("pages kept", "default"), reason="not glibc's allocator")
@pytest.mark.parametrize("keeps", [False, True])
def test_freed_memory_that_is_not_kept_is_a_reason_to_distrust(keeps: bool) -> None:
    """The state of this process's allocator decides the latency of what is measured in it."""
    first = "assert proxylessnas.keep_freed_pages()" if keeps else ""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", IN_MAIN.format(first=first)], env=plain, capture_output=True, text=True,
        check=True, cwd=Path(__file__).resolve().parents[2],
    )  # fmt: skip
    assert done.stdout.strip() == ("pages kept False" if keeps else "default True")


def test_a_lambda_inside_is_no_obstacle() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    model[0].register_forward_hook(lambda *_: None)
    assert measure(model, input_size=16, settings=QUICK).median_ms > 0


def test_a_class_that_only_looks_importable_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is written by name, and the other process does not find it."""
    import sys
    import types

    ghost = types.ModuleType("ghost_module")
    ghost.Ghost = type("Ghost", (Model,), {"__module__": "ghost_module"})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ghost_module", ghost)
    assert measure(ghost.Ghost(), input_size=16, settings=QUICK).conditions.allocator == allocator()


@pytest.mark.parametrize("runtime", ["torch-compile", "onnxruntime", "openvino", "executorch"])
def test_other_runtimes_say_what_to_do_about_it(runtime: str) -> None:
    with pytest.raises(LatencyError, match=r"can be imported.*or use runtime 'torch'"):
        measure(local_kind()(), runtime=runtime, input_size=16)


def test_a_module_that_can_be_neither_sent_nor_copied_is_an_error() -> None:
    class Stubborn(nn.Module):
        def __deepcopy__(self, memo: Any) -> Any:
            raise TypeError("there is only one of me")

    with pytest.raises(LatencyError, match="cannot be run: TypeError: there is only one of me"):
        measure(Stubborn())


# Bad input


@pytest.mark.parametrize(
    ("what", "options", "error", "text"),
    [
        (ARCH, {"threads": 0}, LatencyError, "threads must be a whole number"),
        (ARCH, {"batch_size": 1.5}, LatencyError, "batch_size must be a whole number"),
        (ARCH, {"runtime": "tensorrt"}, LatencyError, "runtime must be \"torch\", .*, not 'tensorrt'"),
        (ARCH, {"device": "tpu"}, LatencyError, 'device must be "cpu" or "cuda", not \'tpu\''),
        (ARCH, {"dtype": "int4"}, LatencyError, "dtype must be .*, not 'int4'"),
        (ARCH, {"cuda_graph": True}, LatencyError, "`cuda_graph` needs `device=cuda`"),
        (ARCH, {"input_size": 0}, LatencyError, "input_size must be"),
        (ARCH, {"input_size": True}, LatencyError, "input_size must be"),
        (ARCH, {"input_size": (3, 32)}, LatencyError, "input_size must be"),
        (ARCH, {"input_size": "224"}, LatencyError, "input_size must be"),
        (ARCH, {"min_runs": 0}, LatencyError, "min_runs must be"),
        (ARCH, {"min_seconds": -1}, LatencyError, "min_seconds must be"),
        (ARCH, {"max_seconds": float("nan")}, LatencyError, "max_seconds must be"),
        (3, {}, LatencyError, "must be a module, an architecture"),
        ("proxyless_moble", {}, UnknownModelError, "proxyless_mobile"),
        ("no/such/file.txt", {}, ArchError, "No such file"),
        (nn.Conv2d(3, 4, 3, device="meta"), {}, LatencyError, "device 'meta'"),
    ],
)
def test_bad_input_is_one_clear_error(
    what: Any, options: dict[str, Any], error: type[Exception], text: str
) -> None:
    own = {name: value for name, value in options.items() if name in MeasureSettings.__dataclass_fields__}
    others = {name: value for name, value in options.items() if name not in own}
    with pytest.raises(error, match=text):
        measure(what, **others, settings=MeasureSettings(**own))


def test_a_model_that_gives_up_while_it_is_timed() -> None:
    class Tired(Model):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.calls > 3:
                raise MemoryError("enough")
            return super().forward(x)

    with pytest.raises(LatencyError, match="cannot be run: MemoryError: enough"):
        measure(Tired(), input_size=16)


@pytest.mark.slow
def test_the_published_models_keep_their_order() -> None:
    """More work takes longer: the two ends of the zoo, several times each."""
    times: dict[str, list[float]] = {"proxyless_w025_r112": [], "proxyless_gpu": []}
    for _ in range(3):
        for name, found in times.items():
            found.append(measure(name, settings=MeasureSettings(min_seconds=0.3)).median_ms)
    assert statistics.median(times["proxyless_w025_r112"]) * 3 < statistics.median(times["proxyless_gpu"])


def test_a_device_may_be_given_as_a_module_says_it() -> None:
    with pytest.raises(LatencyError, match="device cuda:7: set CUDA_VISIBLE_DEVICES"):
        measure("proxyless_cifar10_demo", device=torch.device("cuda:7"))
    model = create_model("proxyless_cifar10_demo")
    found = measure(
        model, device=next(model.parameters()).device, settings=MeasureSettings(min_runs=3, min_seconds=0.01)
    )
    assert found.conditions.device == "cpu"
