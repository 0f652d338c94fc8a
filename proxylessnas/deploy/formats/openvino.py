"""``.xml`` with its ``.bin``: OpenVINO's own format (IR)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ...runtimes.onnx_graph import import_onnx
from ...runtimes.openvino import RUNTIME, last_line
from ..bundle import ModelBundle
from ..settings import ExportOptions
from .base import Format, Program, export_errors, guarded
from .onnx import model_proto

#: Where the metadata is: ``model.get_rt_info(["proxylessnas", "categories"])``.
SECTION = "proxylessnas"
#: Left alone, OpenVINO computes in bfloat16 where the processor can, without a word.
EXACT = {"INFERENCE_PRECISION_HINT": "f32"}


class OpenVinoFormat(Format):
    """OpenVINO IR; weights stay float32."""

    name = "OpenVINO IR"
    suffix = ".xml"
    options = ("batch_size",)

    def versions(self) -> dict[str, str]:
        """Return the versions of the libraries it is written and run with."""
        return {**RUNTIME.versions(), "onnx": str(import_onnx().__version__)}

    def write(self, bundle: ModelBundle, path: Path, options: ExportOptions) -> list[Path]:
        """Write the two files and return them, the one with the graph first."""
        ov = RUNTIME.library()
        proto = model_proto(bundle, options.batch_size)
        with export_errors(f"{bundle.name}: OpenVINO cannot write the model", last_line):
            save(ov.Core().read_model(proto.SerializeToString()), path, bundle.metadata())
        return [path, path.with_suffix(".bin")]

    def open(self, path: Path, *, threads: int | None = None) -> Program:
        """Load a file in OpenVINO on the CPU, in float32."""
        ov = RUNTIME.library()
        options: dict[str, Any] = {**EXACT, **({"INFERENCE_NUM_THREADS": threads} if threads else {})}
        with export_errors(f"{path}: OpenVINO cannot load it", last_line):
            compiled = ov.Core().compile_model(str(path), "CPU", options)
        return guarded(lambda x: torch.from_numpy(compiled(x.numpy())[0].copy()), path, "OpenVINO", last_line)


def save(model: Any, path: Path, metadata: Mapping[str, str]) -> None:
    """Write one of OpenVINO's models with what it says of itself."""
    for key, value in metadata.items():
        model.set_rt_info(value, [SECTION, key])
    RUNTIME.library().save_model(model, str(path), compress_to_fp16=False)


FORMAT = OpenVinoFormat()
