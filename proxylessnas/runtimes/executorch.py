"""ExecuTorch with the XNNPACK delegate: what runs on phones, here on this processor."""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..errors import LatencyError, first_line
from ..utils.files import read_bytes
from .base import ModelSpec, Runtime, Session
from .settings import Settings

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

_LOG = logging.getLogger("proxylessnas")

#: Operators outside XNNPACK that cost little next to a model's convolutions.
_CHEAP = ("aten.mean", "aten.clone", "dim_order_ops._clone_dim_order", "dim_order_ops._to_dim_order_copy")
#: Calls of a lowered graph that are no computation of their own.
_BOOKKEEPING = ("Delegate", "delegate", "getitem", "alloc", "memory", "sym_size", "view")


class ExecuTorchSession(Session):
    """A loaded program and its input."""

    def __init__(self, program: bytes, example: Tensor) -> None:
        library = RUNTIME.library()
        self._program = program  # the module reads from this memory
        try:
            self._module: Any = library._load_for_executorch_from_buffer(program)
            self._input = example.contiguous()
            self._output: Any = None
            self.run()
        except RuntimeError as e:
            raise LatencyError(f"ExecuTorch cannot run the model: {e}") from e

    def run(self) -> None:
        """Run one forward pass of the whole batch."""
        self._output = self._module.forward((self._input,), clone_outputs=False)

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


class _KitLoader:
    """Loads programs in a kit, where nothing else of this file is."""

    FILES, NEEDS, CPU = "executorch", "executorch (with torch)", ""
    provider = ""

    def __init__(self, threads: int, provider: str) -> None:
        from importlib import import_module, metadata

        self.torch: Any = import_module("torch")
        self.library: Any = import_module("executorch.extension.pybindings.portable_lib")
        self.library._unsafe_reset_threadpool(threads)
        if self.library._threadpool_get_thread_count() != threads:
            raise ValueError(f"ExecuTorch cannot use {threads} threads here")
        self.versions = {"executorch": metadata.version("executorch")}

    def load(self, path: str, shape: list[int]) -> Callable[[], object]:
        """Return what runs a file once."""
        module = self.library._load_for_executorch(path)
        values = (self.torch.randn(*shape),)
        return lambda: module.forward(values, clone_outputs=False)


class ExecuTorch(Runtime):
    """ExecuTorch."""

    name = "executorch"
    module = "executorch.extension.pybindings.portable_lib"
    needs = ("executorch",)
    extra = "mobile"
    suffixes = (".pte",)
    kit_loader = _KitLoader

    def library(self, module: str | None = None) -> Any:
        """Import a module of it, by default what loads programs."""
        with undisturbed():  # it calls itself experimental
            return super().library(module)

    def _load(self, spec: ModelSpec, settings: Settings) -> ExecuTorchSession:
        from .modules import build_model, example_input

        _set_threads(self.library(), settings.threads)
        plain = Settings(batch_size=settings.batch_size, memory_format="contiguous")
        if spec.kind == "file":
            return ExecuTorchSession(read_bytes(spec.text), example_input(spec.input_size, plain))
        model, example = build_model(spec, plain)
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

    def kit_file(self, spec: ModelSpec, batch_size: int, dtype: str = "float32") -> bytes:
        """Return a program, which holds all weights; takes up to ten seconds."""
        from .modules import build_model

        plain = Settings(batch_size=batch_size, memory_format="contiguous")
        return lower(*build_model(spec, plain)).program


def _set_threads(library: Any, threads: int) -> None:
    """Give the process's one pool so many threads; programs that are loaded already use it too."""
    if library._threadpool_get_thread_count() != threads:
        library._unsafe_reset_threadpool(threads)
    found = library._threadpool_get_thread_count()
    if found != threads:
        raise LatencyError(f"ExecuTorch uses {found} threads on this machine, not {threads}")


RUNTIME = ExecuTorch()


@dataclass(frozen=True)
class Lowered:
    """A program, and what of it XNNPACK does not take.

    Attributes:
        program: the content of a ``.pte`` file.
        outside: operators that run in ExecuTorch's own, mostly slow, kernels: ``"aten.convolution"``.
    """

    program: bytes
    outside: tuple[str, ...]


def lower(
    model: nn.Module,
    example: Tensor,
    *,
    largest_batch: int | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Lowered:
    """Return a module as an ExecuTorch program whose operators run in XNNPACK; takes about ten seconds.

    Args:
        model: in evaluation mode, float32.
        example: an input [N, C, H, W]; its shape becomes the program's.
        largest_batch: the program takes 1 to so many images a call; None fixes N.
        metadata: see :func:`lower_exported`.

    Raises:
        LatencyError: the module cannot be exported.
        MissingExtraError: executorch is not installed.
    """
    import torch

    shapes = None
    if largest_batch is not None:
        example = example[:1].repeat(2, 1, 1, 1)  # traced with one image, the batch would be fixed at one
        shapes = ({0: torch.export.Dim("batch", min=1, max=largest_batch)},)
    try:
        with undisturbed():
            exported = torch.export.export(model, (example,), dynamic_shapes=shapes)
    except Exception as e:  # the exporter raises whatever the module's code or its own does
        raise _cannot(model, e) from e
    return lower_exported(exported, type(model).__name__, metadata)


def lower_exported(
    exported: torch.export.ExportedProgram, name: str, metadata: Mapping[str, str] | None = None
) -> Lowered:
    """Return an exported program (quantised perhaps) as an ExecuTorch program.

    Args:
        exported: what ``torch.export.export`` returned.
        name: of the model, for messages.
        metadata: texts that the program also holds, each as a method of its key's name.

    Raises:
        LatencyError: it has an operator that ExecuTorch lacks.
        MissingExtraError: executorch is not installed.
    """
    with undisturbed():
        exir = RUNTIME.library("executorch.exir")
        xnnpack = RUNTIME.library("executorch.backends.xnnpack.partition.xnnpack_partitioner")
        memory = RUNTIME.library("executorch.exir.passes").MemoryPlanningPass
        try:
            edge = exir.to_edge_transform_and_lower(
                exported,
                transform_passes=[_rewriting_pass(fixed=not exported.range_constraints)],
                partitioner=[xnnpack.XnnpackPartitioner()],
                constant_methods=dict(metadata or {}),
            )
            graph = edge.exported_program().graph
            # The caller's image is read where it is, and takes no memory of the program's own.
            config = exir.ExecutorchBackendConfig(memory_planning_pass=memory(alloc_graph_input=False))
            program: bytes = edge.to_executorch(config).buffer
        except Exception as e:  # as above
            raise _cannot(name, e) from e
    calls = {str(node.target) for node in graph.nodes if node.op == "call_function"}
    outside = {name for name in calls if not any(word in name for word in _BOOKKEEPING)}
    return Lowered(program, tuple(sorted(_short(name) for name in outside)))


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Keep the exporters from printing their insides, and from narrowing the batch.

    They run convolutions without data to learn shapes: torch then asks whether the batch is below 16, which
    decides between oneDNN, NNPACK and its own code, and the answer becomes a limit of the program.
    """
    import torch

    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    silent = io.StringIO()
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stderr(silent),
            contextlib.redirect_stdout(silent),
            contextlib.ExitStack() as switches,
        ):
            warnings.simplefilter("ignore")  # the switches of the backends warn too
            switches.enter_context(torch.backends.mkldnn.flags(enabled=False))
            switches.enter_context(torch.backends.nnpack.flags(enabled=False))
            yield
    finally:
        logging.disable(before)


def _cannot(model: object, error: Exception) -> LatencyError:
    name = model if isinstance(model, str) else type(model).__name__
    return LatencyError(f"ExecuTorch cannot take {name} ({first_line(error)})")


def _short(target: str) -> str:
    """Return "aten.mean" for "<EdgeOpOverload: aten.mean.dim>: schema = ..."."""
    words = target.split("EdgeOpOverload: ")[-1].split(">")[0].split(":")[0].split(".")
    return ".".join(words[:2])


def _rewriting_pass(fixed: bool) -> Any:
    """Return the pass that writes two operators as XNNPACK takes them; ExecuTorch's own kernels are slower.

    The mean over a map's two sides has to give [N, C, 1, 1], and channels are shared out by slices, if the
    batch is ``fixed``: a slice keeps that of the example.
    """
    operators = import_module("executorch.exir.dialects._ops").ops.edge.aten
    base: Any = import_module("executorch.exir.pass_base").ExportPass
    mean, view = operators.mean.dim, operators.view_copy.default
    split, cut = operators.split_with_sizes_copy.default, operators.slice_copy.Tensor

    class Rewrite(base):
        def call_operator(self, op: Any, args: Any, kwargs: Any, meta: Any) -> Any:
            if fixed and op is split:
                dim = args[2] if len(args) > 2 else 0
                ends = list(itertools.accumulate(args[1]))
                return [
                    super(Rewrite, self).call_operator(cut, (args[0], dim, end - size, end), {}, meta)
                    for size, end in zip(args[1], ends, strict=True)
                ]
            sides = sorted(d % 4 for d in args[1]) if op is mean and args[1] and not any(args[2:]) else []
            if sides != [2, 3] or args[0].to_tensor().dim() != 4:
                return super().call_operator(op, args, kwargs, meta)
            pooled = super().call_operator(op, (args[0], args[1], True), kwargs, meta)
            channels = int(args[0].to_tensor().shape[1])
            return super().call_operator(view, (pooled, [-1, channels]), {}, meta)

        def call_getitem(self, value: Any, key: int, meta: Any) -> Any:
            return value[key] if isinstance(value, list) else super().call_getitem(value, key, meta)

    return Rewrite()
