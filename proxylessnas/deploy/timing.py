"""What was gained: the latency of the net in PyTorch and of the file in its runtime, measured by turns."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import LatencyError, first_line
from ..latency.files import file_runtimes
from ..latency.measuring import pickle_module
from ..latency.process import Worker
from ..latency.settings import Settings
from ..latency.spec import NetSpec
from ..latency.timing import Samples, pool, quantile
from .formats import ExportOptions
from .subject import Subject

_ROUNDS = 5
_SECONDS = 0.2  # a round
_PHOTO = 4 / 3  # long side over short side, of a picture for a file that resizes itself


@dataclass(frozen=True)
class LatencyRow:
    """The latency of the net in one runtime.

    Attributes:
        runtime: what ran, in words: "torch (eager)" is the net, others are the file.
        threads, batch: as measured.
        median_ms, p10_ms, p90_ms: of a call of the whole batch, over all rounds.
        speedup: over the net in eager PyTorch, by the medians.
        noise: reasons to distrust the figures; empty if there are none.
    """

    runtime: str
    threads: int
    batch: int
    median_ms: float
    p10_ms: float
    p90_ms: float
    speedup: float
    noise: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return dataclasses.asdict(self)


def time_file(subject: Subject, path: Path, options: ExportOptions, threads: int) -> tuple[LatencyRow, ...]:
    """Measure a net and its file by turns, each in a process of its own.

    Args:
        subject: the net.
        path: the file.
        options: what it was written with.
        threads: of each process.

    Returns:
        The net first; nothing where no runtime that can be measured reads the file.

    Raises:
        LatencyError: it cannot be measured.
    """
    readers = file_runtimes(path)[:1]
    if not readers:
        return ()
    batch, size = options.batch_size or 1, subject.input_size
    if options.uint8_input and subject.preprocessing is not None:
        short = subject.preprocessing.resize
        size = (3, short, round(_PHOTO * short))
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="proxylessnas-")))
        pickle_module(subject.model, folder / "net.pickle")
        jobs = [
            (Settings("torch", threads=threads, batch_size=batch),
             NetSpec("module", str(folder / "net.pickle"), subject.input_size)),
            *((Settings(runtime, threads=threads, batch_size=batch), NetSpec("file", str(path), size))
              for runtime in readers),
        ]  # fmt: skip
        workers = []
        for settings, spec in jobs:
            worker = stack.enter_context(Worker(settings))
            worker.load("net", spec)
            workers.append(worker)
        found: list[list[Samples]] = [[] for _ in workers]
        order = random.Random(0)
        for _ in range(_ROUNDS):
            for i in order.sample(range(len(workers)), len(workers)):
                found[i].append(workers[i].sample("net", min_runs=5, min_seconds=_SECONDS, max_seconds=5.0))
    names = ["torch (eager)", *(f"{path.suffix} in {reader}" for reader in readers)]
    return _rows(names, [pool(samples) for samples in found], threads, batch)


def _rows(names: list[str], pooled: list[Samples], threads: int, batch: int) -> tuple[LatencyRow, ...]:
    eager = pooled[0].median_ms
    return tuple(
        LatencyRow(
            name, threads, batch, s.median_ms, quantile(s.ms, 0.1), quantile(s.ms, 0.9), eager / s.median_ms,
            s.noise,
        )
        for name, s in zip(names, pooled, strict=True)
    )  # fmt: skip


def not_measured(error: LatencyError) -> str:
    """Return why there are no latencies, for the report: an export is sound without them."""
    return f"the latency was not measured: {first_line(error)}"
