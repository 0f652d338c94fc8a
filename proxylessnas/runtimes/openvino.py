"""OpenVINO on x86 and Arm processors, fed with the same ONNX model as ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import LatencyError
from .base import ModelSpec, Runtime, Session
from .settings import Settings

#: Left alone, OpenVINO computes in bfloat16 where the processor can, without a word.
_PRECISION = {"float32": "f32", "bfloat16": "bf16", "int8": "f32"}  # of what is not in 8 bits


class OpenVinoSession(Session):
    """A compiled model with its input and output in place, so that a run copies nothing."""

    def __init__(self, model: bytes | str, spec: ModelSpec, settings: Settings) -> None:
        import numpy as np

        ov, name = RUNTIME.library(), spec.label
        precision = _PRECISION[settings.dtype]
        options = {
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": settings.threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_CPU_PINNING": False,  # a pinned thread cannot leave a processor that another program uses
        }
        shape = (settings.batch_size, *spec.input_size)
        try:
            core = ov.Core()
            read = core.read_model(model)
            if len(read.inputs) != 1:
                raise LatencyError(f"{name} has {len(read.inputs)} inputs; one can be measured")
            own = read.input(0).get_partial_shape()
            if not own.compatible(ov.PartialShape(list(shape))):
                raise LatencyError(f"{name} takes input of the shape {own}, not {list(shape)}")
            if own.is_dynamic:
                read.reshape(list(shape))
            takes = read.input(0).get_element_type()
            if takes not in (ov.Type.f32, ov.Type.u8):
                raise LatencyError(f"{name} takes {takes}; float32 or uint8 can be measured")
            compiled = core.compile_model(read, "CPU", options)
        except RuntimeError as e:
            raise LatencyError(f"OpenVINO cannot load {name}: {last_line(e)}") from e
        used = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        if used != precision:
            raise LatencyError(f"OpenVINO computes in {used} on this processor, not in {settings.dtype}")
        # Set one by one, as every other option could be refused or rounded in silence.
        threads = compiled.get_property("INFERENCE_NUM_THREADS")
        if threads != settings.threads:
            raise LatencyError(f"OpenVINO uses {threads} threads on this machine, not {settings.threads}")
        draw = np.random.default_rng(0)
        if takes == ov.Type.u8:
            self._input: Any = draw.integers(0, 256, shape, dtype=np.uint8)
        else:
            self._input = draw.standard_normal(shape, dtype=np.float32)
        self._compiled: Any = compiled
        self._request: Any = compiled.create_infer_request()
        self._request.set_input_tensor(ov.Tensor(self._input, shared_memory=True))

    def run(self) -> None:
        """Run one forward pass of the whole batch."""
        self._request.infer(share_outputs=True)

    def output(self) -> Any:
        """Return the first output of the last run as a numpy array."""
        return self._request.get_output_tensor(0).data

    def input(self) -> Any:
        """Return the input as a numpy array."""
        return self._input


class OpenVino(Runtime):
    """OpenVINO."""

    name = "openvino"
    module = "openvino"
    needs = ("onnx", "onnxscript", "openvino")
    extra = "openvino"
    suffixes = (".xml", ".onnx")
    dtypes: Mapping[str, tuple[str, ...]] = {"cpu": tuple(_PRECISION)}

    def versions(self) -> dict[str, str]:
        """Return its version."""
        return {self.name: self.library().__version__.partition("-")[0]}

    def _load(self, spec: ModelSpec, settings: Settings) -> OpenVinoSession:
        self.library()
        if spec.kind == "file":  # by name: an .xml file has its weights in another one beside it
            return OpenVinoSession(spec.text, spec, settings)
        from .onnx_graph import whole_model_onnx

        # bfloat16 as well: OpenVINO casts the weights when it compiles, input and output stay float32.
        dtype = "int8" if settings.dtype == "int8" else "float32"
        return OpenVinoSession(whole_model_onnx(spec, settings.batch_size, dtype), spec, settings)


def last_line(error: Exception) -> str:
    """Return the last line of what OpenVINO says, which holds the reason."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]


RUNTIME = OpenVino()
