"""ExecuTorch with the XNNPACK delegate: what runs on phones, here on this processor."""

from __future__ import annotations

import logging
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import LatencyError, MissingExtraError, missing_extra
from ..settings import Settings
from ..spec import NetSpec

_LOG = logging.getLogger("proxylessnas")

#: Operators that XNNPACK does not take from our nets, and that cost little: the mean of a small map, say.
_CHEAP = ("getitem", "alloc", "mean", "view", "clone", "dim_order", "memory")


def _missing() -> MissingExtraError:
    return missing_extra("executorch", "the runtime 'executorch'", extra="mobile")


def _runtime_library() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it calls itself experimental
            return import_module("executorch.extension.pybindings.portable_lib")
    except Exception as e:  # a broken install, or one for another torch, raises anything
        raise _missing() from e


def lower(model: nn.Module, example: Tensor) -> bytes:
    """Return a module as an ExecuTorch program whose operators run in XNNPACK; takes about ten seconds.

    Args:
        model: in evaluation mode, float32.
        example: an input [N, C, H, W]; its shape becomes the program's.

    Raises:
        LatencyError: the module cannot be exported.
        MissingExtraError: executorch is not installed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the exporters' own insides
        try:
            exir = import_module("executorch.exir")
            xnnpack = import_module("executorch.backends.xnnpack.partition.xnnpack_partitioner")
        except Exception as e:  # a broken install, or one for another torch, raises anything
            raise _missing() from e
        try:
            exported = torch.export.export(model, (example,))
            partitioner = [xnnpack.XnnpackPartitioner()]
            edge = exir.to_edge_transform_and_lower(exported, partitioner=partitioner)
            buffer: bytes = edge.to_executorch().buffer
        except Exception as e:  # the exporters raise whatever the module's code or their own does
            first = next((line.strip() for line in str(e).splitlines() if line.strip()), type(e).__name__)
            raise LatencyError(
                f"ExecuTorch cannot take {type(model).__name__} ({first[:300]}); "
                "runtime 'torch' measures any module"
            ) from e
    targets = [str(n.target) for n in edge.exported_program().graph.nodes if n.op == "call_function"]
    left = {t for t in targets if "Delegate" not in t and not any(word in t for word in _CHEAP)}
    if left:
        _LOG.warning(
            "ExecuTorch runs %s outside XNNPACK, in its slow reference implementation",
            ", ".join(sorted(left)),
        )
    return buffer


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
        from ..nets import build_net

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
        if spec.kind == "onnx":
            raise LatencyError(
                "runtime 'executorch' cannot read ONNX files: use runtime 'onnxruntime' or 'openvino'"
            )
        _set_threads(_runtime_library(), settings.threads)
        plain = Settings(batch_size=settings.batch_size, memory_format="contiguous")
        model, example = build_net(spec, plain)
        return ExecuTorchSession(lower(model, example), example)


def _set_threads(library: Any, threads: int) -> None:
    """Give the process's one pool so many threads; programs that are loaded already use it too."""
    if library._threadpool_get_thread_count() != threads:
        library._unsafe_reset_threadpool(threads)
    found = library._threadpool_get_thread_count()
    if found != threads:
        raise LatencyError(f"ExecuTorch uses {found} threads on this machine, not {threads}")


RUNTIME = ExecuTorch()
