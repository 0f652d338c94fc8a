"""``.xml`` with its ``.bin``: OpenVINO's own format (IR)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import ExportError
from ...runtimes.openvino import RUNTIME, last_line
from ..bundle import ModelBundle
from ..settings import ExportOptions
from .base import Program, refuse

#: Where the metadata is: ``model.get_rt_info(["proxylessnas", "categories"])``.
SECTION = "proxylessnas"
#: Left alone, OpenVINO computes in bfloat16 where the processor can, without a word.
EXACT = {"INFERENCE_PRECISION_HINT": "f32"}


class OpenVinoFormat:
    """See :class:`~proxylessnas.deploy.formats.base.Format`. Weights stay float32."""

    name = "OpenVINO IR"
    suffix = ".xml"

    def versions(self) -> dict[str, str]:
        """Return the versions of the libraries it is written and run with."""
        from ...runtimes.onnx_graph import import_onnx

        return {**RUNTIME.versions(), "onnx": str(import_onnx().__version__)}

    def check(self, bundle: ModelBundle, options: ExportOptions) -> None:
        """Refuse at once what cannot work."""
        refuse(self, options, "batch_size")
        self.versions()

    def write(self, bundle: ModelBundle, path: Path, options: ExportOptions) -> list[Path]:
        """Write the two files and return them, the one with the graph first."""
        from .onnx import model_proto

        ov = RUNTIME.library()
        proto = model_proto(bundle, options.batch_size)
        try:
            model = ov.Core().read_model(proto.SerializeToString())
            for key, value in bundle.metadata().items():
                model.set_rt_info(value, [SECTION, key])
            ov.save_model(model, str(path), compress_to_fp16=False)
        except RuntimeError as e:
            raise ExportError(f"{bundle.name}: OpenVINO cannot write the model ({last_line(e)})") from e
        return [path, path.with_suffix(".bin")]

    def open(self, path: Path, *, threads: int | None = None) -> Program:
        """Load a file in OpenVINO on the CPU, in float32."""
        ov = RUNTIME.library()
        options: dict[str, Any] = {**EXACT, **({"INFERENCE_NUM_THREADS": threads} if threads else {})}
        try:
            compiled = ov.Core().compile_model(str(path), "CPU", options)
        except RuntimeError as e:
            raise ExportError(f"{path}: OpenVINO cannot load it ({last_line(e)})") from e

        def run(x: Tensor) -> Tensor:
            try:
                found = compiled(x.numpy())[0]
            except RuntimeError as e:
                raise ExportError(f"{path}: OpenVINO cannot run {list(x.shape)} ({last_line(e)})") from e
            return torch.from_numpy(found.copy())

        return run


FORMAT = OpenVinoFormat()
