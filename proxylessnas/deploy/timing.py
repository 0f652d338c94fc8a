"""What was gained: the latency of the net in PyTorch and of the file in its runtime, measured by turns."""

from __future__ import annotations

import dataclasses
import datetime
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import LatencyError, first_line
from ..latency.files import file_runtimes
from ..latency.measuring import pickle_module
from ..latency.session import Item, MeasurementSession
from ..latency.settings import Settings
from ..latency.spec import NetSpec
from ..latency.timing import Timing
from .formats import ExportOptions
from .subject import Subject

_ROUNDS = 20  # at least
_SECONDS = 30.0  # at most, with the start of the processes
_PHOTO = 4 / 3  # long side over short side, of a picture for a file that resizes itself


@dataclass(frozen=True)
class LatencyRow:
    """The latency of the net in one runtime.

    Attributes:
        runtime: what ran, in words: "torch (eager)" is the net, others are the file.
        threads, batch: as measured.
        undisturbed_ms: of a call of the whole batch: the figure to compare (:mod:`..latency.timing`).
        median_ms, p10_ms, p90_ms: over all calls: what one gets on this machine now.
        speedup: over the model in eager PyTorch, undisturbed.
        noise: reasons to distrust the figures; empty if there are none.
    """

    runtime: str
    threads: int
    batch: int
    undisturbed_ms: float
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
    with tempfile.TemporaryDirectory(prefix="proxylessnas-") as folder:
        pickled = Path(folder) / "net.pickle"
        pickle_module(subject.model, pickled)
        jobs = {
            "torch (eager)": ("torch", NetSpec("module", str(pickled), subject.input_size)),
            **{
                f"{path.suffix} in {reader}": (reader, NetSpec("file", str(path), size)) for reader in readers
            },
        }
        items = [
            Item(name, spec, Settings(runtime, threads=threads, batch_size=batch))
            for name, (runtime, spec) in jobs.items()
        ]
        session = MeasurementSession(items)
        session.run(_SECONDS, processes=1, least_rounds=_ROUNDS, least_seconds=0.0)
    day = datetime.date.today().isoformat()
    found = {
        s.name: Timing.of(session.measured[s.name], session.conditions(s.settings), size, day) for s in items
    }
    eager_ms = found["torch (eager)"].undisturbed_ms
    return tuple(
        LatencyRow(
            name, threads, batch, t.undisturbed_ms, t.median_ms, t.p10_ms, t.p90_ms, eager_ms /
            t.undisturbed_ms, t.noise,
        )
        for name, t in found.items()
    )  # fmt: skip


def not_measured(error: LatencyError) -> str:
    """Return why there are no latencies, for the report: an export is sound without them."""
    return f"the latency was not measured: {first_line(error)}"
