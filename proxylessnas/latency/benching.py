"""Compare nets on this machine: all of them, under all settings, in one interleaved run.

Latencies that were measured one after another are not comparable on a machine whose clock rate and neighbours
change by the minute. So every round measures every net under every setting once, in a fresh random order, and
what counts is the median over all rounds.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import datetime
import io
import itertools
import os
import random
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import LatencyError, ProxylessError
from ..filesystem import write_atomically
from .accuracy_rows import accuracy_panels, describe, panels_png
from .bench_nets import PEERS, SPECIALISED, BenchNet, open_nets
from .files import file_runtimes
from .process import Worker
from .settings import Settings
from .timing import Samples, Timing, pool, quantile

if TYPE_CHECKING:
    from ..arch import Arch
    from ..tree_arch import TreeArch

#: Told after each step: steps done, steps in all, and what comes next.
Progress = Callable[[int, int, str], None]
_PROCESSES_UP_TO = 24


@dataclass(frozen=True)
class BenchRow:
    """A net under one setting."""

    net: BenchNet
    timing: Timing

    @property
    def setting(self) -> str:
        """The setting in words, as in "torch, 2 threads, batch 1"."""
        return describe(self.timing.conditions)

    def to_dict(self) -> dict[str, Any]:
        """Return it flat, as JSON values: a line of the CSV file."""
        net, t = self.net, self.timing
        c = t.conditions
        return {
            "net": net.name,
            "peer": net.peer,
            "runtime": c.runtime,
            "device": c.device,
            "threads": c.threads,
            "batch": c.batch_size,
            "dtype": c.dtype,
            "memory_format": c.memory_format,
            "cuda_graph": c.cuda_graph,
            "input_size": t.input_size[1],
            "median_ms": round(t.median_ms, 4),
            "p10_ms": round(t.p10_ms, 4),
            "p90_ms": round(t.p90_ms, 4),
            "runs": t.runs,
            "noise": "; ".join(t.noise),
            "images_per_second": round(t.images_per_second, 2),
            "params": net.params,
            "macs": net.macs,
            "top1": net.top1,
            "top1_status": net.top1_status,
            "top1_source": net.top1_source,
            "top1_dataset": net.dataset,
            "device_name": c.device_name,
            "allocator": c.allocator,
            "versions": ", ".join(f"{name} {version}" for name, version in c.versions.items()),
            "date": t.date,
        }


@dataclass(frozen=True)
class Bench:
    """The result of :func:`bench`.

    Attributes:
        rows: setting by setting, in it net by net, as they were named.
        notes: what was left out, and why.
        rounds: how often each was measured.
    """

    rows: tuple[BenchRow, ...]
    notes: tuple[str, ...]
    rounds: int

    def write_csv(self, path: str | os.PathLike[str]) -> None:
        """Write a line a row, with machine, versions and date.

        Raises:
            OSError: the file cannot be written.
        """
        text = io.StringIO()
        lines = [row.to_dict() for row in self.rows]
        writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
        write_atomically(Path(path), text.getvalue().encode())

    def write_png(self, path: str | os.PathLike[str]) -> None:
        """Draw accuracy against latency, a panel a setting; bars of latency where no accuracy is known.

        Left out are nets whose accuracy is not known while that of others is, or is one on other pictures.

        Raises:
            DataError: there are over 12 settings.
            MissingExtraError: matplotlib is not installed.
            OSError: the file cannot be written.
        """
        panels_png(accuracy_panels(row.to_dict() for row in self.rows), path)


def bench(
    nets: Iterable[str | os.PathLike[str] | Arch | TreeArch] = SPECIALISED,
    *,
    runtimes: Sequence[str] = ("torch",),
    threads: Sequence[int] = (1,),
    batches: Sequence[int] = (1,),
    device: str = "cpu",
    dtype: str = "float32",
    memory_format: str = "channels_last",
    cuda_graph: bool = False,
    image_size: int | None = None,
    peers: Sequence[str] = PEERS,
    rounds: int = 7,
    seconds: float = 0.3,
    seed: int = 0,
    imports: Sequence[str] = (),
    progress: Progress | None = None,
) -> Bench:
    """Measure nets x runtimes x threads x batches in one interleaved run.

    Each setting has a process of its own, of which only one works at a time.

    Args:
        nets: of the zoo, files with an architecture, architectures, "torchvision/NAME" or "timm/NAME"; by
            default the authors' four. Also exported files (:mod:`.files`), each measured in those of
            ``runtimes`` that read it, or else in its own.
        runtimes: see :data:`~proxylessnas.latency.settings.RUNTIMES`.
        threads: sizes of the thread pool, on a CPU; on a GPU only the first counts, which a note says.
        batches: pictures a call.
        device: "cpu" or "cuda".
        dtype: of weights and input.
        memory_format: of weights and input, for PyTorch's runtimes.
        cuda_graph: replay a captured graph (runtime "torch" on a GPU).
        image_size: side of the input in pixels; None takes each net's own. Accuracies that belong to another
            size are left out.
        peers: other libraries' nets that are measured too if there is an ImageNet net among ``nets``; () for
            none.
        rounds: how often each net is measured under each setting.
        seconds: how long each time, at least.
        seed: of the order.
        imports: modules that the measuring processes import first, which register operations.
        progress: told after each step.

    Raises:
        LatencyError: a setting makes no sense, or nothing could be measured.
        UnknownModelError, ArchError: there is no such net.
        MissingExtraError: a runtime, or the library of a net, is not installed.
    """
    if rounds < 1 or seconds <= 0:
        raise LatencyError(f"rounds ({rounds}) and seconds ({seconds:g}) must be positive")
    counts, said = _thread_counts(threads, device)
    asked = [
        Settings(runtime, device, count, size, dtype, memory_format, cuda_graph)
        for runtime, count, size in itertools.product(dict.fromkeys(runtimes), counts, dict.fromkeys(batches))
    ]
    if not asked:
        raise LatencyError("no setting to measure: runtimes, threads and batches need a value each")
    _check_count(asked)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="proxylessnas-")))
        entries, notes = open_nets(nets, folder, image_size=image_size, peers=peers)
        if not entries:
            raise LatencyError("no net to measure")
        plan = _plan(asked, entries)
        _check_count(plan)
        run = _Run(entries, plan, [*said, *notes], rounds, progress)
        for settings in plan:
            run.start(settings, lambda s: stack.enter_context(Worker(s, imports=tuple(imports))))
        run.measure(random.Random(seed), seconds)
        return run.result()


def _check_count(asked: Sized) -> None:
    if len(asked) > _PROCESSES_UP_TO:
        raise LatencyError(
            f"{len(asked)} settings (runtimes x threads x batches) need as many processes at a time; "
            f"{_PROCESSES_UP_TO} are the limit: measure them in several runs"
        )


def _plan(asked: Sequence[Settings], nets: Sequence[BenchNet]) -> dict[Settings, list[int]]:
    """Return which nets are measured under which setting.

    An exported file is measured in the runtimes that read it; if none of them is asked for, in its own.
    """
    plan: dict[Settings, list[int]] = {settings: [] for settings in asked}
    for i, net in enumerate(nets):
        reading = file_runtimes(net.spec.text) if net.spec.kind == "file" else None
        its = [settings for settings in asked if reading is None or settings.runtime in reading]
        if not its and reading:
            its = [dataclasses.replace(s, runtime=reading[0], cuda_graph=False) for s in asked]
        for settings in dict.fromkeys(its):
            plan.setdefault(settings, []).append(i)
    return {settings: chosen for settings, chosen in plan.items() if chosen}


def _thread_counts(threads: Sequence[int], device: str) -> tuple[list[int], list[str]]:
    """Return the thread counts that make a difference on a device, and what a user should know about that."""
    counts = list(dict.fromkeys(threads))
    if device == "cpu" or len(counts) < 2:
        return counts, []
    left_out = ", ".join(map(str, counts[1:]))
    return counts[:1], [
        f"threads are of a CPU: with device {device} nothing is measured for {left_out} threads"
    ]


class _Run:
    """The processes of one bench, and what they have measured so far."""

    def __init__(
        self,
        nets: Sequence[BenchNet],
        plan: Mapping[Settings, Sequence[int]],
        notes: list[str],
        rounds: int,
        progress: Progress | None,
    ) -> None:
        self._nets, self._plan, self._notes, self._rounds = nets, plan, notes, rounds
        self._workers: dict[Settings, Worker] = {}
        self._cells: dict[tuple[Settings, int], list[Samples]] = {}
        self._failed: dict[tuple[str, str], list[str]] = {}  # (net, reason) to settings
        self._progress = progress
        self._done, self._total = 0, sum(map(len, plan.values())) * (1 + rounds)

    def _step(self, what: str, count: int = 0) -> None:
        self._done += count
        if self._progress is not None:
            self._progress(self._done, self._total, what)

    def start(self, settings: Settings, enter: Callable[[Settings], Worker]) -> None:
        """Start the process of a setting and load the nets there; note those that cannot be loaded."""
        self._step(f"starting {describe(settings)}")
        worker = self._workers[settings] = enter(settings)
        for i in self._plan[settings]:
            net = self._nets[i]
            self._step(f"loading {net.name} ({describe(settings)})")
            try:
                worker.load(str(i), net.spec)
            except ProxylessError as e:
                self._leave_out(settings, i, e)
            else:
                self._cells[settings, i] = []
            self._step("", 1)

    def _leave_out(self, settings: Settings, i: int, reason: ProxylessError) -> None:
        self._failed.setdefault((self._nets[i].name, str(reason)), []).append(describe(settings))
        self._total -= self._rounds - len(self._cells.pop((settings, i), ()))

    def measure(self, order: random.Random, seconds: float) -> None:
        """Measure everything once a round, in random order."""
        for number in range(self._rounds):
            for settings, i in order.sample(list(self._cells), len(self._cells)):
                self._step(f"round {number + 1}: {self._nets[i].name} ({describe(settings)})")
                try:
                    samples = self._workers[settings].sample(
                        str(i), min_runs=5, min_seconds=seconds, max_seconds=max(4.0, 4 * seconds)
                    )
                except ProxylessError as e:
                    self._leave_out(settings, i, e)
                    continue
                self._cells[settings, i].append(samples)
                self._step("", 1)

    def result(self) -> Bench:
        """Return what was measured.

        Raises:
            LatencyError: nothing was.
        """
        failed = [
            f"{name} is left out ({'; '.join(where)}): {reason}"
            for (name, reason), where in self._failed.items()
        ]
        if not self._cells:
            raise LatencyError("nothing could be measured:\n  " + "\n  ".join(failed))
        date = datetime.date.today().isoformat()
        rows = []
        for settings in self._plan:
            for i, net in enumerate(self._nets):
                if (settings, i) in self._cells:
                    pooled = pool(self._cells[settings, i])
                    timing = Timing(
                        pooled.median_ms, quantile(pooled.ms, 0.1), quantile(pooled.ms, 0.9), len(pooled.ms),
                        pooled.warmup_runs, pooled.noise, self._workers[settings].conditions,
                        net.spec.input_size, date,
                    )  # fmt: skip
                    rows.append(BenchRow(net, timing))
        return Bench(tuple(rows), (*self._notes, *failed), self._rounds)
