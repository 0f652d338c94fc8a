"""ExecuTorch with the XNNPACK delegate: what runs on phones, here on this processor."""

from __future__ import annotations

import logging
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor

from ...errors import LatencyError
from ...user_files import read_bytes
from ..executorch_net import lower, missing_executorch, undisturbed
from ..files import check_runtime
from ..settings import Settings
from ..spec import NetSpec

_LOG = logging.getLogger("proxylessnas")

#: Operators outside XNNPACK that cost little next to a net's convolutions.
_CHEAP = ("aten.mean", "aten.clone", "dim_order_ops._clone_dim_order", "dim_order_ops._to_dim_order_copy")


def _runtime_library() -> Any:
    try:
        with undisturbed():  # it calls itself experimental
            return import_module("executorch.extension.pybindings.portable_lib")
    except Exception as e:  # a broken install, or one for another torch, raises anything
        raise missing_executorch() from e


class ExecuTorchSession:
    """A loaded program and its input."""

    def __init__(self, program: bytes, example: Tensor) -> None:
        library = _runtime_library()
        self._program = program  # the module reads from this memory
        try:
            self._module: Any = library._load_for_executorch_from_buffer(program)
            self._input = example.contiguous()
            self._output: Any = None
            self.run()
        except RuntimeError as e:
            raise LatencyError(f"ExecuTorch cannot run the net: {e}") from e

    def run(self) -> None:
        """Run one forward pass of the whole batch."""
        self._output = self._module.forward((self._input,), clone_outputs=False)

    def times_ms(self, runs: int) -> list[float] | None:
        """Return None: a run ends when its output is there, so the caller's clock is right."""
        return None

    def output(self) -> Any:
        """Return the first output of the last run as a numpy array."""
        return self._output[0].numpy()

    def input(self) -> Any:
        """Return the input as a numpy array."""
        return self._input.numpy()

    def close(self) -> None:
        """Free the program."""
        self._output = self._module = None
        self._program = b""


class ExecuTorch:
    """See :class:`~proxylessnas.latency.runtimes.base.Runtime`."""

    name = "executorch"
    has_parts = False

    def versions(self) -> dict[str, str]:
        """Return the versions of the libraries it runs on."""
        from importlib import metadata

        _runtime_library()
        try:
            return {"executorch": metadata.version("executorch")}
        except metadata.PackageNotFoundError:
            return {"executorch": "unknown"}

    def device_name(self, settings: Settings) -> str | None:
        """Return None: it runs on the CPU."""
        return None

    def load(self, spec: NetSpec, settings: Settings, folder: Path) -> ExecuTorchSession:
        """Load a net.

        Raises:
            LatencyError: device or dtype is not one it runs, or the net cannot be exported.
            MissingExtraError: executorch is not installed.
        """
        from ..nets import build_net, example_input

        if settings.device != "cpu":
            raise LatencyError(
                f"runtime 'executorch' measures on the CPU, not on {settings.device}: use runtime 'torch', "
                "'torch-compile' or 'onnxruntime' there"
            )
        if settings.dtype != "float32":
            raise LatencyError(
                f"runtime 'executorch' measures float32, not {settings.dtype}; "
                "runtime 'torch' takes any dtype"
            )
        plain = Settings(batch_size=settings.batch_size, memory_format="contiguous")
        if spec.kind == "file":
            check_runtime(spec.text, self.name)
            _set_threads(_runtime_library(), settings.threads)
            return ExecuTorchSession(read_bytes(spec.text), example_input(spec.input_size, plain))
        _set_threads(_runtime_library(), settings.threads)
        model, example = build_net(spec, plain)
        try:
            lowered = lower(model, example)
        except LatencyError as e:
            raise LatencyError(f"{e}; runtime 'torch' measures any module") from e
        slow = [name for name in lowered.outside if name not in _CHEAP]
        if slow:
            _LOG.warning(
                "ExecuTorch runs %s outside XNNPACK, in its slow reference implementation", ", ".join(slow)
            )
        return ExecuTorchSession(lowered.program, example)


def _set_threads(library: Any, threads: int) -> None:
    """Give the process's one pool so many threads; programs that are loaded already use it too."""
    if library._threadpool_get_thread_count() != threads:
        library._unsafe_reset_threadpool(threads)
    found = library._threadpool_get_thread_count()
    if found != threads:
        raise LatencyError(f"ExecuTorch uses {found} threads on this machine, not {threads}")


RUNTIME = ExecuTorch()
