"""Compare models on this machine: all of them, under all settings, in one interleaved run.

Latencies that were measured one after another are not comparable on a machine whose clock rate and neighbours
change by the minute. So every round gives every model under every setting one short window, in a fresh random
order, and what counts is a low quantile over all of them (:mod:`.session`, :mod:`.measurement`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import itertools
import math
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import LatencyError
from ..runtimes.files import file_runtimes, report_of
from ..runtimes.registry import get_runtime
from ..runtimes.settings import FLOATS, Settings
from ..utils.files import write_atomically
from ..utils.text import csv_text
from .benchmark_models import PEERS, SPECIALISED, BenchModel, open_models
from .measurement import Timing
from .plots import accuracy_panels, describe, panels_png
from .session import Item, MeasurementSession, Progress
from .settings import BenchSettings

if TYPE_CHECKING:
    from ..arch.arch import Arch
    from ..arch.tree import TreeArch

_PROCESSES_UP_TO = 24
_WINDOW_S = 0.05  # many short windows tell more than a few long ones
_LONGER = 2.0  # than asked for, until the latencies are certain
_START_S = 4.0


@dataclass(frozen=True)
class BenchRow:
    """A model under one setting."""

    model: BenchModel
    timing: Timing

    @property
    def setting(self) -> str:
        """The setting in words, as in "torch, 2 threads, batch 1"."""
        return describe(self.timing.conditions)

    @property
    def top1(self) -> float | None:
        """Accuracy in percent, if it is known: in INT8 that of a file only, as images decide what is left."""
        rounded = self.timing.conditions.dtype == "int8" and self.model.spec.kind != "file"
        return None if rounded else self.model.top1

    def to_dict(self) -> dict[str, Any]:
        """Return it flat, as JSON values: a line of the CSV file."""
        model, t = self.model, self.timing
        c = t.conditions
        known = model if self.top1 is not None else None
        return {
            "net": model.name,
            "peer": model.peer,
            "runtime": c.runtime,
            "device": c.device,
            "threads": c.threads,
            "batch": c.batch_size,
            "dtype": c.dtype,
            "memory_format": c.memory_format,
            "cuda_graph": c.cuda_graph,
            "input_size": t.input_size[1],
            "undisturbed_ms": round(t.undisturbed_ms, 4),
            "uncertainty": round(t.uncertainty, 5) if math.isfinite(t.uncertainty) else "",
            "disturbance": round(t.disturbance, 4),
            "median_ms": round(t.median_ms, 4),
            "p10_ms": round(t.p10_ms, 4),
            "p90_ms": round(t.p90_ms, 4),
            "runs": t.runs,
            "noise": "; ".join(t.noise),
            "images_per_second": round(t.images_per_second, 2),
            "params": model.params,
            "macs": model.macs,
            "top1": self.top1,
            "top1_status": known and known.top1_status,
            "top1_source": known and known.top1_source,
            "top1_dataset": known and known.dataset,
            "device_name": c.device_name,
            "allocator": c.allocator,
            "versions": ", ".join(f"{name} {version}" for name, version in c.versions.items()),
            "date": t.date,
        }


@dataclass(frozen=True)
class Bench:
    """The result of :func:`bench`.

    Attributes:
        rows: setting by setting, in it model by model, as they were named.
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
        lines = [row.to_dict() for row in self.rows]
        text = csv_text(list(lines[0]), [list(line.values()) for line in lines])
        write_atomically(Path(path), text.encode("utf-8", "backslashreplace"))

    def write_png(self, path: str | os.PathLike[str]) -> None:
        """Draw accuracy against latency, a panel a setting; bars of latency where no accuracy is known.

        Left out are models whose accuracy is not known while that of others is, or is one on other images.

        Raises:
            DataError: there are over 12 settings.
            MissingExtraError: matplotlib is not installed.
            OSError: the file cannot be written.
        """
        panels_png(accuracy_panels(row.to_dict() for row in self.rows), path)


def bench(
    models: Iterable[str | os.PathLike[str] | Arch | TreeArch] = SPECIALISED,
    settings: BenchSettings | None = None,
    *,
    peers: Sequence[str] = PEERS,
    progress: Progress | None = None,
) -> Bench:
    """Measure models x runtimes x threads x batches x dtypes in one interleaved run.

    Each setting has a process of its own, of which only one works at a time.

    Args:
        models: of the zoo, files with an architecture, architectures, "torchvision/NAME" or "timm/NAME"; by
            default the authors' four. Also exported files, each measured in those of the runtimes that read
            it, or else in its own.
        settings: what they are measured under, and how long; None takes the defaults. On a GPU only the
            first number of threads counts, which a note says.
        peers: other libraries' models that are measured too if there is an ImageNet model among ``models``;
            () for none.
        progress: told (seconds done, seconds in all, what is being done).

    Raises:
        LatencyError: a setting makes no sense, or nothing could be measured.
        UnknownModelError, ArchError: there is no such model.
        MissingExtraError: a runtime, or the library of a model, is not installed.
    """
    wanted = settings or BenchSettings()
    counts, said = _thread_counts(wanted.threads, wanted.device)
    dtypes = dict.fromkeys(wanted.dtypes or (wanted.dtype,))
    asked = [
        Settings(runtime, wanted.device, count, size, dtype, wanted.memory_format, wanted.cuda_graph)
        for runtime, count, size, dtype in itertools.product(
            dict.fromkeys(wanted.runtimes), counts, dict.fromkeys(wanted.batches), dtypes
        )
    ]
    computed, left_out = _computed(asked)
    _check_count(computed)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="proxylessnas-")))
        entries, notes = open_models(models, folder, image_size=wanted.image_size, peers=peers)
        if not entries:
            raise LatencyError("no model to measure")
        plan = _plan(asked, entries)
        _check_count(plan)
        items = [
            Item(_subject(one, i), entries[i].spec, one, seconds=min(wanted.seconds, _WINDOW_S))
            for one, chosen in plan.items()
            for i in chosen
        ]
        session = MeasurementSession(
            items, imports=wanted.imports, seed=wanted.seed, keep_going=True, progress=progress
        )
        seconds = wanted.rounds * wanted.seconds
        least = max(wanted.rounds, round(seconds / _WINDOW_S))
        windows_s = max(seconds, _WINDOW_S) * len(items)
        session.run(
            _LONGER * windows_s + _START_S * len(plan), processes=1, least_rounds=least, least_seconds=0.0
        )
        rows, failed = _measured(entries, plan, session)
        return Bench(tuple(rows), (*said, *left_out, *notes, *failed), session.rounds)


def _check_count(asked: Sized) -> None:
    if len(asked) > _PROCESSES_UP_TO:
        raise LatencyError(
            f"{len(asked)} settings (runtimes x threads x batches x dtypes) need as many processes at a "
            f"time; {_PROCESSES_UP_TO} are the limit: measure them in several runs"
        )


def _plan(asked: Sequence[Settings], models: Sequence[BenchModel]) -> dict[Settings, list[int]]:
    """Return which models are measured under which setting: those whose dtype its runtime computes in.

    An exported file is measured in the runtimes that read it; if none of them is asked for, in its own. Its
    precision is its own, too, so of several dtypes it has one.
    """
    computed = _computed(asked)[0]
    plan: dict[Settings, list[int]] = {settings: [] for settings in computed}
    for i, model in enumerate(models):
        reading = file_runtimes(model.spec.text) if model.spec.kind == "file" else None
        its = [s for s in (computed if reading is None else asked) if not reading or s.runtime in reading]
        if not its and reading:
            its = [dataclasses.replace(s, runtime=reading[0], cuda_graph=False) for s in asked]
        if reading is not None:
            own = report_of(model.spec.text).get("precision")
            its = [dataclasses.replace(s, dtype=_dtype_of_file(own, s, its)) for s in its]
        for settings in dict.fromkeys(its):
            plan.setdefault(settings, []).append(i)
    return {settings: chosen for settings, chosen in plan.items() if chosen}


def _dtype_of_file(own: object, settings: Settings, asked: Sequence[Settings]) -> str:
    """Return the dtype that a file is measured under: its own where it is asked for, else one of floats."""
    dtypes = [s.dtype for s in asked if s.runtime == settings.runtime]
    if own in dtypes and own in get_runtime(settings.runtime).dtypes.get(settings.device, ()):
        return str(own)
    return next((dtype for dtype in dtypes if dtype in FLOATS), FLOATS[0])


def _computed(asked: Sequence[Settings]) -> tuple[list[Settings], list[str]]:
    """Return the settings whose runtime computes in their dtype, and what to say of the others.

    Where there is one dtype, or no runtime for any, all are returned: each says why it cannot.
    """
    fits = [s for s in asked if s.dtype in get_runtime(s.runtime).dtypes.get(s.device, ())]
    others = dict.fromkeys((s.runtime, s.dtype, s.device) for s in asked if s not in fits)
    if not fits or len({s.dtype for s in asked}) == 1:
        return list(asked), []
    return fits, [f"{name} is left out in {dtype}: it has none on {where}" for name, dtype, where in others]


def _thread_counts(threads: Sequence[int], device: str) -> tuple[list[int], list[str]]:
    """Return the thread counts that make a difference on a device, and what a user should know about that."""
    counts = list(dict.fromkeys(threads))
    if device == "cpu" or len(counts) < 2:
        return counts, []
    left_out = ", ".join(map(str, counts[1:]))
    return counts[:1], [
        f"threads are of a CPU: with device {device} nothing is measured for {left_out} threads"
    ]


def _measured(
    models: Sequence[BenchModel], plan: Mapping[Settings, Sequence[int]], session: MeasurementSession
) -> tuple[list[BenchRow], list[str]]:
    """Return the rows of a session, setting by setting, and what to say of those that failed.

    Raises:
        LatencyError: nothing could be measured.
    """
    date = datetime.date.today().isoformat()
    rows, failed = [], dict[tuple[str, str], list[str]]()
    for settings, chosen in plan.items():
        for i in chosen:
            model, name = models[i], _subject(settings, i)
            if name in session.failed:
                failed.setdefault((model.name, str(session.failed[name])), []).append(describe(settings))
                continue
            found, conditions = session.measured[name], session.conditions(settings)
            rows.append(BenchRow(model, Timing.of(found, conditions, model.spec.input_size, date)))
    notes = [f"{name} is left out ({'; '.join(where)}): {reason}" for (name, reason), where in failed.items()]
    if not rows:
        raise LatencyError("nothing could be measured:\n  " + "\n  ".join(notes))
    return rows, notes


def _subject(settings: Settings, i: int) -> str:
    return f"{i} {describe(settings)} {settings.dtype} {settings.memory_format}"
