"""``.pte``: ExecuTorch with the XNNPACK delegate, for phones and small boards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ...errors import ExportError, LatencyError
from ...runtimes.executorch import RUNTIME, Lowered, _set_threads, lower
from ..bundle import ModelBundle
from ..settings import ExportOptions
from .base import Format, Program, export_errors, guarded
from .split_depthwise import split_depthwise

#: Largest batch of a program whose batch is open: ExecuTorch plans the memory of its output for this many.
LARGEST_BATCH = 64

#: Operators that must not be left to ExecuTorch's own kernels, which are written to be read, not to be fast.
_MUST_BE_DELEGATED = ("aten.convolution", "aten.linear", "aten.addmm", "aten.mm")


class ExecuTorchFormat(Format):
    """ExecuTorch with XNNPACK.

    The texts of :meth:`.ModelBundle.metadata` are methods of the program, one a key:
    ``module.run_method("categories", ())[0]`` in Python, ``module.execute("categories")[0].toStr()`` on
    Android.
    """

    name = "ExecuTorch (XNNPACK)"
    suffix = ".pte"
    options = ("batch_size",)
    fixed_trees = True

    def versions(self) -> dict[str, str]:
        """Return the versions of the libraries it is written and run with."""
        return {**RUNTIME.versions(), "torch": torch.__version__}

    def write(self, bundle: ModelBundle, path: Path, options: ExportOptions) -> list[Path]:
        """Write the file and return it.

        Raises:
            ExportError: an operation cannot be exported, or a convolution or linear layer would not run in
                XNNPACK; the message names it.
        """
        example = torch.zeros(options.batch_size or 1, *bundle.input_size)
        largest = LARGEST_BATCH if options.batch_size is None else None
        model = split_depthwise(bundle.model)
        try:
            lowered = lower(model, example, largest_batch=largest, metadata=bundle.metadata())
        except LatencyError as e:
            raise ExportError(f"{bundle.name}: {e}") from e
        write_program(lowered, bundle.name, path)
        return [path]

    def open(self, path: Path, *, threads: int | None = None) -> Program:
        """Load a file in ExecuTorch; ``threads`` counts for all programs of the process."""
        library = RUNTIME.library()
        if threads is not None:
            _set_threads(library, threads)
        module = _load(library, path)
        return guarded(lambda x: module.forward((x.contiguous(),))[0], path, "ExecuTorch")


def write_program(lowered: Lowered, name: str, path: Path) -> None:
    """Write a program to a file.

    Raises:
        ExportError: a convolution or linear layer of it would not run in XNNPACK.
    """
    slow = [operator for operator in lowered.outside if operator in _MUST_BE_DELEGATED]
    if slow:
        raise ExportError(
            f"{name}: XNNPACK does not take {', '.join(slow)}, and ExecuTorch's own kernels are many times "
            "slower; .onnx takes it"
        )
    path.write_bytes(lowered.program)


def read_metadata(path: Path) -> dict[str, str]:
    """Return the texts that a ``.pte`` file of ours holds.

    Raises:
        ExportError: the file cannot be loaded.
        MissingExtraError: executorch is not installed.
    """
    module = _load(RUNTIME.library(), path)
    names = [name for name in module.method_names() if name != "forward"]
    return {name: str(module.run_method(name, ())[0]) for name in names}


def _load(library: Any, path: Path) -> Any:
    with export_errors(f"{path}: ExecuTorch cannot load it"):
        module = library._load_for_executorch(str(path))
        module.method_meta("forward")  # reads the file, which the line above may put off
        return module


FORMAT = ExecuTorchFormat()
