"""ONNX Runtime: the model as an ONNX file, on the CPU or, through the CUDA provider, on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..errors import LatencyError, first_line
from .base import ModelSpec, Runtime, Session
from .settings import Settings

_ERRORS_ONLY = 3

#: Threads of the pool that all sessions of this process share; None until a session wants several.
_shared_threads: int | None = None


class OnnxSession(Session):
    """A loaded model with its input and output in place, so that a run copies nothing."""

    def __init__(self, model: bytes, spec: ModelSpec, settings: Settings) -> None:
        ort, name = RUNTIME.library(), spec.label
        options = ort.SessionOptions()
        options.log_severity_level = _ERRORS_ONLY
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        if settings.device == "cpu" and _share_pool(ort, settings.threads):
            options.use_per_session_threads = False
        else:
            options.intra_op_num_threads = settings.threads if settings.device == "cpu" else 1
            options.inter_op_num_threads = 1
        try:
            self._session: Any = ort.InferenceSession(model, options, providers=_providers(ort, settings))
        except Exception as e:  # its exceptions share no base class
            raise LatencyError(f"ONNX Runtime cannot load {name}: {first_line(e)}") from e
        in_use = self._session.get_providers()
        if settings.device == "cuda" and in_use[0] != "CUDAExecutionProvider":
            raise LatencyError(
                "ONNX Runtime could not start its CUDA provider; mostly a CUDA or cuDNN library is missing. "
                "Use runtime 'torch' or 'torch-compile' on this GPU, or device 'cpu'"
            )
        self._bind(ort, spec, settings)

    def _bind(self, ort: Any, spec: ModelSpec, settings: Settings) -> None:
        import numpy as np

        inputs, outputs, name = self._session.get_inputs(), self._session.get_outputs(), spec.label
        if len(inputs) != 1:
            raise LatencyError(f"{name} has {len(inputs)} inputs; one can be measured")
        kinds: dict[str, Any] = {
            "tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8,
        }  # fmt: skip
        if inputs[0].type not in kinds:
            raise LatencyError(f"{name} takes {inputs[0].type}; float32, float16 or uint8 can be measured")
        asked = (settings.batch_size, *spec.input_size)
        own = inputs[0].shape
        if len(own) != 4 or any(
            isinstance(side, int) and side != a for side, a in zip(own, asked, strict=True)
        ):
            raise LatencyError(f"{name} takes input of the shape {own}, not {list(asked)}")
        place = "cuda" if settings.device == "cuda" else "cpu"
        draw = np.random.default_rng(0)
        if inputs[0].type == "tensor(uint8)":
            values = draw.integers(0, 256, asked, dtype=np.uint8)
        else:
            values = draw.standard_normal(asked, dtype=np.float32).astype(kinds[inputs[0].type])
        self._input = ort.OrtValue.ortvalue_from_numpy(values, place, 0)
        binding = self._session.io_binding()
        binding.bind_ortvalue_input(inputs[0].name, self._input)
        for output in outputs:
            binding.bind_output(output.name, place)
        self._binding: Any = binding
        self._names = [output.name for output in outputs]
        # The first run tells the shapes of the outputs, into which all others write.
        self.run()
        self._outputs = binding.get_outputs()
        binding.clear_binding_outputs()
        for output, value in zip(self._names, self._outputs, strict=True):
            binding.bind_ortvalue_output(output, value)

    def run(self) -> None:
        """Run one forward pass of the whole batch."""
        self._session.run_with_iobinding(self._binding)
        self._binding.synchronize_outputs()

    def output(self) -> Any:
        """Return the first output of the last run as a numpy array."""
        return self._binding.copy_outputs_to_cpu()[0]

    def input(self) -> Any:
        """Return the input as a numpy array."""
        return self._input.numpy()


class _KitLoader:
    """Loads ONNX files in a kit, where nothing else of this file is."""

    FILES, NEEDS, CPU = "onnx", "onnxruntime", "CPUExecutionProvider"

    def __init__(self, threads: int, provider: str) -> None:
        from importlib import import_module

        self.library: Any = import_module("onnxruntime")
        self.numpy: Any = import_module("numpy")  # comes with it
        known = self.library.get_available_providers()
        self.threads, self.provider = threads, provider or self.CPU
        if self.provider not in known:
            raise ValueError(f"this onnxruntime has no provider {provider!r}; it has {', '.join(known)}")
        self.versions = {"onnxruntime": self.library.__version__}

    def load(self, path: str, shape: list[int]) -> Callable[[], object]:
        """Return what runs a file once."""
        options = self.library.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        wanted = list(dict.fromkeys([self.provider, self.CPU]))
        session = self.library.InferenceSession(path, options, providers=wanted)
        if session.get_providers()[0] != self.provider:
            raise ValueError(f"{self.provider} could not be started")
        taken, draw = session.get_inputs()[0], self.numpy.random.RandomState(0)
        if taken.type == "tensor(uint8)":  # an operation of an INT8 model
            values = draw.randint(0, 256, shape).astype("uint8")
        else:
            values = draw.standard_normal(shape).astype("float32")
        binding = session.io_binding()
        binding.bind_cpu_input(taken.name, values)
        for output in session.get_outputs():
            binding.bind_output(output.name)
        return lambda: session.run_with_iobinding(binding)


class OnnxRuntime(Runtime):
    """ONNX Runtime."""

    name = "onnxruntime"
    module = "onnxruntime"
    needs = ("onnx", "onnxscript", "onnxruntime")
    extra = "onnx"
    suffixes = (".onnx",)
    dtypes: Mapping[str, tuple[str, ...]] = {"cpu": ("float32", "int8"), "cuda": ("float32", "float16")}
    kit_loader = _KitLoader

    def versions(self) -> dict[str, str]:
        """Return its version, that of whichever distribution brings it."""
        return {self.name: self.library().__version__}

    def device_name(self, settings: Settings) -> str | None:
        """Return the name of the GPU; None for the CPU."""
        if settings.device != "cuda":
            return None
        import torch

        return torch.cuda.get_device_name() if torch.cuda.is_available() else "CUDA GPU"

    def _load(self, spec: ModelSpec, settings: Settings) -> OnnxSession:
        ort = self.library()
        if settings.device == "cuda" and "CUDAExecutionProvider" not in ort.get_available_providers():
            raise LatencyError(
                "the installed ONNX Runtime has no CUDA provider: pip install onnxruntime-gpu, or use "
                "runtime 'torch' or 'torch-compile' on this GPU, or device 'cpu'"
            )
        from .onnx_graph import whole_model_onnx

        if settings.device == "cpu":
            _share_pool(ort, settings.threads)  # before any other session, such as one that calibrates
        return OnnxSession(whole_model_onnx(spec, settings.batch_size, settings.dtype), spec, settings)

    def kit_file(self, spec: ModelSpec, batch_size: int, dtype: str = "float32") -> bytes:
        """Return a small ONNX file, whose weights repeat a pattern."""
        from .onnx_graph import import_onnx, whole_model_onnx, with_repeated_weights

        proto = import_onnx().load_model_from_string(whole_model_onnx(spec, batch_size, dtype))
        content: bytes = with_repeated_weights(proto).SerializeToString()
        return content


def _providers(ort: Any, settings: Settings) -> list[Any]:
    if settings.device == "cuda":
        # "HEURISTIC" and "DEFAULT" pick slow convolutions; the search is part of the warm-up.
        return [("CUDAExecutionProvider", {"cudnn_conv_algo_search": "EXHAUSTIVE"}), "CPUExecutionProvider"]
    return ["CPUExecutionProvider"]


def _share_pool(ort: Any, threads: int) -> bool:
    """Let all sessions of this process use one pool of threads; return False where each needs its own.

    A pool's idle threads wait in a busy loop, and would take processors from the session that runs now.

    Raises:
        LatencyError: the pool has another number of threads; it cannot be changed.
    """
    global _shared_threads
    if _shared_threads is None:
        if threads == 1:
            return False  # a session of one thread has no pool
        try:
            ort.set_global_thread_pool_sizes(threads, 1)
        except Exception:  # noqa: BLE001 - somebody else's session was there first: its pool is the session's own
            return False
        _shared_threads = threads
    if _shared_threads != threads:
        raise LatencyError(
            f"this process measures ONNX Runtime with {_shared_threads} threads; {threads} need a new process"
        )
    return True


RUNTIME = OnnxRuntime()
