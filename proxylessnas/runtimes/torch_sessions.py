"""Models that PyTorch runs, loaded: on the CPU, on a GPU, or as a captured CUDA graph."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..arch.arch import Arch
from ..arch.op_key import arch_keys
from ..errors import LatencyError, first_line
from ..models.proxylessnas import ProxylessNAS
from .base import ModelSpec, Session
from .files import load_program
from .modules import example_input
from .settings import Settings

#: One step of a model: the text of its operation's key, or "" for a block that is skipped, and what it does.
Part = tuple[str, Callable[[Tensor], Tensor]]


class EagerSession(Session):
    """A model on the CPU."""

    def __init__(self, model: Callable[[Tensor], Any], x: Tensor, parts: list[Part]) -> None:
        self.model, self.x, self.parts = model, x, parts

    @torch.inference_mode()
    def run(self) -> None:
        """Run one forward pass."""
        self.model(self.x)

    @torch.inference_mode()
    def parts_ms(self, runs: int) -> list[tuple[str, list[float]]]:
        """Time every operation inside whole forward passes."""
        check_parts(self.parts)
        times: list[list[float]] = [[] for _ in self.parts]
        clock = time.perf_counter
        for _ in range(runs):
            x = self.x
            for (_, step), kept in zip(self.parts, times, strict=True):
                begin = clock()
                x = step(x)  # frees the step's input, as in the model's own loop
                kept.append((clock() - begin) * 1e3)
        return [(key, kept) for (key, _), kept in zip(self.parts, times, strict=True) if key]


class CudaSession(EagerSession):
    """A model on a GPU: timed by events, which the GPU stamps when it gets there."""

    @torch.inference_mode()
    def run(self) -> None:
        """Run one forward pass and wait for it."""
        self._forward()
        torch.cuda.synchronize()

    def _forward(self) -> None:
        self.model(self.x)

    def _steps(self) -> list[tuple[str, Callable[[Any], Any]]]:
        return list(self.parts)

    @torch.inference_mode()
    def times_ms(self, runs: int) -> list[float] | None:
        """Time single calls: each waits for the one before, as a service that answers requests does."""
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        times = []
        torch.cuda.synchronize()
        for _ in range(runs):
            begin.record()
            self._forward()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end))
        return times

    @torch.inference_mode()
    def parts_ms(self, runs: int) -> list[tuple[str, list[float]]]:
        """Time every operation inside whole forward passes: events between them, one wait a pass."""
        check_parts(self.parts)
        steps = self._steps()
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(len(steps) + 1)]
        times: list[list[float]] = [[] for _ in steps]
        torch.cuda.synchronize()
        for _ in range(runs):
            x: Any = self.x
            marks[0].record()
            for i, (_, step) in enumerate(steps):
                x = step(x)
                marks[i + 1].record()
            marks[-1].synchronize()
            for i, kept in enumerate(times):
                kept.append(marks[i].elapsed_time(marks[i + 1]))
        return [(key, kept) for (key, _), kept in zip(steps, times, strict=True) if key]


class CudaGraphSession(CudaSession):
    """A model on a GPU, captured once and replayed: no time goes into launching kernels from Python."""

    def __init__(self, model: Callable[[Tensor], Any], x: Tensor, parts: list[Part]) -> None:
        super().__init__(model, x, parts)
        self.kept: list[Tensor] = []
        self._part_graphs: list[tuple[str, torch.cuda.CUDAGraph | None]] = []
        with torch.inference_mode():
            warm_up_stream(lambda: model(x))
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.kept.append(model(x))

    def _forward(self) -> None:
        self.graph.replay()

    def _steps(self) -> list[tuple[str, Callable[[Any], Any]]]:
        """One graph a step, in one memory pool, for they are always replayed in the same order."""
        if not self._part_graphs:
            pool = torch.cuda.graph_pool_handle()
            x = self.x
            for key, step in self.parts:
                if not key:  # a skipped block launches nothing, and an empty graph cannot be captured
                    self._part_graphs.append((key, None))
                    continue
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, pool=pool):
                    x = step(x)
                self._part_graphs.append((key, graph))
            self.kept.append(x)
        return [(key, _replayer(graph)) for key, graph in self._part_graphs]


def _replayer(graph: torch.cuda.CUDAGraph | None) -> Callable[[Any], Any]:
    def replay(x: Any) -> Any:
        if graph is not None:
            graph.replay()
        return x

    return replay


def warm_up_stream(run: Callable[[], object]) -> None:
    """Run a few times on a stream of its own, as torch wants it before a capture."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()


def check_parts(parts: list[Part]) -> None:
    """Raise LatencyError for a model that has no parts."""
    if not parts:
        raise LatencyError(
            "only a model made from an architecture (Arch) with square input has parts to time"
        )


def parts_of(model: nn.Module, spec: ModelSpec) -> list[Part]:
    """Return the steps of a model made from an :class:`~proxylessnas.Arch`; none for anything else."""
    channels, height, width = spec.input_size
    if spec.kind != "arch" or not isinstance(model, ProxylessNAS) or height != width:
        return []
    arch = model.arch
    assert isinstance(arch, Arch)
    keys = iter(arch_keys(arch, resolution=height, num_classes=model.num_classes, in_channels=channels))
    steps: list[Part] = [(str(next(keys)), model.first_conv)]
    for block in model.blocks:
        skipped = block.mobile_inverted_conv is None
        steps.append(("" if skipped else str(next(keys)), block))
    steps.append((str(next(keys)), model.feature_mix_layer))
    steps.append((str(next(keys)), model.forward_head))
    return steps


def file_session(spec: ModelSpec, settings: Settings) -> EagerSession:
    """Return a session for an exported program, whose weights and layout are its own.

    Raises:
        LatencyError: it cannot be loaded, or not be run with these settings.
    """
    if (settings.device, settings.dtype) != ("cpu", "float32"):
        raise LatencyError(
            f"{spec.text} is measured on the CPU in float32: its model is what it was made from"
        )
    x = example_input(spec.input_size, dataclasses.replace(settings, memory_format="contiguous"))
    session = EagerSession(load_program(spec.text), x, [])
    try:
        session.run()
    except RuntimeError as e:
        raise LatencyError(f"{spec.text} does not take {list(x.shape)} ({first_line(e)})") from e
    return session


def session_for(model: nn.Module, x: Tensor, settings: Settings, parts: list[Part]) -> EagerSession:
    """Return the right kind of session for a model that is in place."""
    kind = EagerSession
    if settings.device == "cuda":
        kind = CudaGraphSession if settings.cuda_graph else CudaSession
    session = kind(model, x, parts)
    session.run()  # whatever is wrong with the model shows here
    return session


def check_device(settings: Settings) -> None:
    """Raise LatencyError if the GPU that is asked for is not there."""
    if settings.device == "cuda" and not torch.cuda.is_available():
        why = "this build of torch has no CUDA" if torch.version.cuda is None else "torch finds no GPU"
        raise LatencyError(f"device 'cuda' cannot be used: {why}; use device 'cpu'")


def cuda_name() -> str | None:
    """Return the name of the current GPU."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def torch_versions() -> dict[str, str]:
    """Return torch's version, with those of CUDA and cuDNN where a GPU can be used."""
    found = {"torch": str(torch.__version__)}
    if torch.cuda.is_available():
        found["CUDA"] = str(torch.version.cuda)
        found["cuDNN"] = str(torch.backends.cudnn.version())
    return found
