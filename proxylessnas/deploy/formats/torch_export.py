"""``.pt2``: a graph of torch.export, or (``aot``) machine code for this machine from AOTInductor."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import ExportError, LatencyError
from ...runtimes.files import METADATA_FILE, load_program
from ...runtimes.torch_compile import missing_compiler
from ..bundle import ModelBundle
from ..settings import ExportOptions
from .base import Format, Program, exporting


class TorchFormat(Format):
    """What PyTorch itself runs."""

    def versions(self) -> dict[str, str]:
        """Return the version of torch."""
        return {"torch": str(torch.__version__)}

    def open(self, path: Path, *, threads: int | None = None) -> Program:
        """Load a file in PyTorch; machine code has the number of threads it was made for."""
        try:
            program = load_program(path)
        except LatencyError as e:
            raise ExportError(str(e)) from e

        def run(x: Tensor) -> Tensor:
            with torch.inference_mode():
                found: Tensor = program(x.contiguous())
                return found

        return run


class TorchExportFormat(TorchFormat):
    """torch.export, or AOTInductor."""

    name = "torch.export"
    suffix = ".pt2"
    options = ("batch_size", "aot", "threads")

    def check(self, bundle: ModelBundle, options: ExportOptions) -> None:
        """Refuse at once what cannot work."""
        super().check(bundle, options)
        todo = missing_compiler() if options.aot else None
        if todo:
            raise ExportError(f"machine code needs a C++ compiler: {todo}; without --aot none is needed")

    def write(self, bundle: ModelBundle, path: Path, options: ExportOptions) -> list[Path]:
        """Write the file and return it."""
        # The exporter takes a batch of one for a constant.
        example = torch.zeros(options.batch_size or 2, *bundle.input_size)
        shapes: Any = None if options.batch_size else ({0: torch.export.Dim("batch", min=1)},)
        with exporting(f"{bundle.name}: torch.export cannot take the model"):
            program = torch.export.export(bundle.model, (example,), dynamic_shapes=shapes, strict=False)
        if options.aot:
            compile_program(program, path, bundle.name, options.threads, bundle.metadata())
        else:
            buffer = io.BytesIO()
            torch.export.save(program, buffer, extra_files={METADATA_FILE: json.dumps(bundle.metadata())})
            path.write_bytes(buffer.getbuffer())
        return [path]


def compile_program(
    program: Any, path: Path, name: str, threads: int | None, metadata: Mapping[str, str] | None = None
) -> None:
    """Write an exported program as machine code with the weights frozen into it.

    Args:
        program: a ``torch.export.ExportedProgram``.
        path: of the package, which ends in ``.pt2``.
        name: of the model, for messages.
        threads: number of threads that the code is made for; None is torch's own.
        metadata: what the package says of the model.

    Raises:
        ExportError: the compiler fails.
    """
    options = {"freezing": True, "aot_inductor.metadata": dict(metadata or {})}
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)  # the number is part of the code that is made
    try:
        with exporting(f"{name}: AOTInductor cannot compile the model"):
            torch._inductor.aoti_compile_and_package(
                program, package_path=str(path), inductor_configs=options
            )
    finally:
        torch.set_num_threads(before)


FORMAT = TorchExportFormat()
