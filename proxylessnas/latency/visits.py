"""Visits to nets: load one in a measuring process, time it, note the result, go on to the next."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from ..errors import LatencyError
from .journal import Journal
from .pace import Pace, is_off
from .process import Worker
from .settings import Conditions, Settings
from .spec import NetSpec
from .timing import quantile

#: Told after each step: steps done, steps in all, and what comes next.
Progress = Callable[[int, int, str], None]

_DRIFT_WINDOW = 8  # visits to each side
_BY_CHANCE = 0.04  # how far the reference may be off in a process
_TRIES = 3  # of a visit during which the machine changes its pace
_MIN_SECONDS = 0.15
_MAX_SECONDS = 5.0
_CONDITIONS = "conditions"
_MAY_DIFFER = ("system",)  # between the parts of a table that was continued


@dataclass(frozen=True)
class Job:
    """Something to be measured.

    Attributes:
        name: unique in a journal.
        spec: the net or operation.
        what: in words, for a progress bar.
        min_runs: timed runs of the whole.
        parts_runs: runs in which the parts are timed as well; 0 for none.
    """

    name: str
    spec: NetSpec
    what: str
    min_runs: int = 12
    parts_runs: int = 0


@dataclass(frozen=True)
class Visit:
    """What a visit found; times in milliseconds.

    Attributes:
        ms: of the whole: the median run; if the visit is noisy, the 10 % quantile.
        p10_ms, p90_ms: of the whole, over its runs.
        runs: timed runs of the whole.
        noisy: whether something disturbed it, a change of the machine's pace included.
        parts: (text of the key, ms as for the whole) of each part, in order.
        load_s: what loading took, seconds.
        seconds: what the visit took in all.
        process: number of the measuring process.
        reference_ms: latency, just before and after, of a net that is measured again and again.
    """

    ms: float
    p10_ms: float
    p90_ms: float
    runs: int
    noisy: bool
    parts: tuple[tuple[str, float], ...]
    load_s: float
    seconds: float
    process: int
    reference_ms: float

    @staticmethod
    def from_record(record: Mapping[str, Any]) -> Visit:
        """Read one from a journal."""
        values = {f.name: record[f.name] for f in dataclasses.fields(Visit)}
        return Visit(**{**values, "parts": tuple((key, ms) for key, ms in record["parts"])})


class Lab:
    """Makes visits, each once: what the journal has is not measured again. A context manager.

    Args:
        settings: of the measuring processes.
        imports: modules they import first.
        journal: keeps the visits.
        reference: a net that is measured in between; it tells the machine's pace.
        progress: told after each visit.
        usual_ms: latency of the reference at the pace that is wanted, if known.
        patience_s: how long to wait for that, all in all; never longer than twice what was measured.
    """

    def __init__(
        self,
        settings: Settings,
        imports: Sequence[str],
        journal: Journal,
        reference: NetSpec,
        progress: Progress | None = None,
        *,
        usual_ms: float | None = None,
        patience_s: float = 0.0,
    ) -> None:
        self.settings, self.journal = settings, journal
        self._imports, self._reference, self._progress = tuple(imports), reference, progress
        self._worker: Worker | None = None
        self._process = sum(name.startswith("process ") for name in journal)
        readings = [journal[name]["reference_ms"] for name in journal if "reference_ms" in journal[name]]
        self.pace = Pace(readings, usual_ms=usual_ms, clock=time.perf_counter, sleep=time.sleep)
        self.patience_s, self._worked_s = patience_s, 0.0
        self.done, self.total = 0, 0
        self.measured = 0

    def __enter__(self) -> Lab:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.new_process()

    @property
    def conditions(self) -> Conditions:
        """What is measured with."""
        return Conditions(**self._machine()["conditions"])

    @property
    def has_parts(self) -> bool:
        """Whether the operations of a net can be timed inside it."""
        return bool(self._machine()["has_parts"])

    def _machine(self) -> dict[str, Any]:
        if _CONDITIONS not in self.journal:
            self._open()
        return self.journal[_CONDITIONS]

    @property
    def spent_s(self) -> float:
        """Seconds of measuring so far, those of an earlier run that is continued included."""
        return sum(self.journal[name].get("seconds", 0.0) for name in self.journal)

    def disturbed(self, visit: Visit) -> bool:
        """Tell whether something disturbed a visit, or the machine had another pace than usual."""
        usual = self.pace.usual_ms
        return visit.noisy or (usual is not None and is_off(visit.reference_ms, usual))

    def new_process(self) -> None:
        """End the measuring process, if there is one; the next visit starts a fresh one.

        Where a process happens to have its memory moves all its times a little.
        """
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def visits(self, jobs: Iterable[Job], label: str) -> list[Visit]:
        """Visit each job once; ``label`` tells apart several visits to one job."""
        return [self.visit(job, label) for job in jobs]

    def visit(self, job: Job, label: str) -> Visit:
        """Load, time and drop a net, or return what the journal has about this visit.

        Raises:
            LatencyError: it cannot be measured, or (for a table that is continued) the machine changed.
        """
        name = f"{job.name} {label}"
        if name not in self.journal:
            if self._progress is not None:
                self._progress(self.done, max(self.total, self.done + 1), job.what)
            self.journal.add(name, {"job": job.name, **vars(self._measure(job))})
            self.measured += 1
        self.done += 1
        return Visit.from_record(self.journal[name])

    def _measure(self, job: Job) -> Visit:
        begin = time.perf_counter()
        for left in reversed(range(_TRIES)):
            visit, changed = self._try(job)
            if not changed or not left or not self.pace.left_s:
                break
            self.pace.waited_s += visit.seconds  # as good as waiting
        self.pace.readings.append(visit.reference_ms)
        self._worked_s += visit.seconds
        self.pace.patience_s = min(self.patience_s, 2 * self._worked_s)
        return dataclasses.replace(visit, seconds=time.perf_counter() - begin)

    def _try(self, job: Job) -> tuple[Visit, bool]:
        """Return a visit, and whether the machine changed its pace meanwhile."""
        worker = self._open()
        before_ms = self.pace.settled(self._read, self._tell_waiting)
        begin = time.perf_counter()
        load_s = worker.load("net", job.spec)
        found = worker.sample(
            "net", min_runs=job.min_runs, min_seconds=_MIN_SECONDS, max_seconds=_MAX_SECONDS
        )
        parts = worker.parts("net", runs=job.parts_runs) if job.parts_runs else []
        worker.drop("net")
        after_ms = self._read()
        changed = is_off(before_ms, after_ms)
        noisy = bool(found.noise) or changed
        # What disturbs adds time, and seldom to every run: a low run tells more than the median then.
        share = 0.1 if noisy else 0.5
        visit = Visit(
            quantile(found.ms, share),
            quantile(found.ms, 0.1),
            quantile(found.ms, 0.9),
            len(found.ms),
            noisy,
            tuple((key, quantile(ms, share)) for key, ms in parts),
            load_s,
            time.perf_counter() - begin,
            self._process,
            (before_ms + after_ms) / 2,
        )
        return visit, changed

    def _read(self) -> float:
        return self._open().sample("reference", min_runs=5, min_seconds=0.0).median_ms

    def _tell_waiting(self) -> None:
        if self._progress is not None:
            self._progress(self.done, max(self.total, self.done + 1), "waiting for the usual pace")

    def _open(self) -> Worker:
        if self._worker is None:
            begin = time.perf_counter()
            self._worker = Worker(self.settings, self._imports)
            self._same_machine(self._worker)
            self._worker.load("reference", self._reference)
            self._worker.sample("reference", min_runs=10, min_seconds=0.5)  # the process's own warm-up
            self._process += 1
            self.journal.add(f"process {self._process}", {"seconds": time.perf_counter() - begin})
        return self._worker

    def _same_machine(self, worker: Worker) -> None:
        if _CONDITIONS not in self.journal:
            record = {"conditions": worker.conditions.to_dict(), "has_parts": worker.has_parts}
            self.journal.add(_CONDITIONS, record)
            return
        differences = conditions_differ(self.conditions, worker.conditions)
        if differences:
            self.new_process()
            raise LatencyError(
                f"{self.journal.path} was begun under other conditions: {'; '.join(differences)}. "
                "Go on where it was begun, or delete the file to begin anew"
            )

    def found(self, *kinds: str) -> dict[str, list[Visit]]:
        """Return the visits so far by the names of their jobs, as if the machine had kept one pace.

        Args:
            kinds: how the names of the jobs may begin.
        """
        records = [record for record in map(self.journal.__getitem__, self.journal) if "ms" in record]
        records = [record for record in records if record["job"].startswith(kinds)]
        found: dict[str, list[Visit]] = {}
        visits = at_one_pace([Visit.from_record(record) for record in records], self.pace.given_ms)
        for record, visit in zip(records, visits, strict=True):
            found.setdefault(record["job"], []).append(visit)
        return found


def conditions_differ(before: Conditions, now: Conditions) -> list[str]:
    """Return in words what differs between two conditions and may change latencies."""
    old, new = before.to_dict(), now.to_dict()
    old_versions, new_versions = old.pop("versions"), new.pop("versions")
    pairs = [(n, old[n], new[n]) for n in old if n not in _MAY_DIFFER]
    pairs += [(n, old_versions.get(n), new_versions.get(n)) for n in {**old_versions, **new_versions}]
    return [f"{name} was {a}, is {b}" for name, a, b in pairs if a != b]


def at_one_pace(visits: Sequence[Visit], usual_ms: float | None = None) -> list[Visit]:
    """Return visits, which are given in the order they were made, as if the machine had kept one pace.

    Their times are divided by how slow the reference net was around then. Between processes it differs by a
    percent or two by chance, as any net does: so each process's visits are compared with its own median,
    unless that is so far from the others' that the machine itself must have changed. Visits at quite another
    pace are noisy from now on: not all operations change alike.

    Args:
        visits: to be compared.
        usual_ms: latency of the reference net at the wanted pace; None takes the median.
    """
    corrected = list(visits)
    overall = usual_ms or (statistics.median(visit.reference_ms for visit in visits) if visits else 1.0)
    for process in {visit.process for visit in visits}:
        places = [i for i, visit in enumerate(visits) if visit.process == process]
        readings = [visits[i].reference_ms for i in places]
        usual = statistics.median(readings)
        if abs(usual / overall - 1) > _BY_CHANCE:
            usual = overall
        for n, i in enumerate(places):
            near = statistics.median(readings[max(0, n - _DRIFT_WINDOW) : n + _DRIFT_WINDOW + 1])
            factor = (readings[n] if is_off(readings[n], near) else near) / usual
            visit = visits[i]
            corrected[i] = dataclasses.replace(
                visit,
                ms=visit.ms / factor,
                p10_ms=visit.p10_ms / factor,
                p90_ms=visit.p90_ms / factor,
                parts=tuple((key, ms / factor) for key, ms in visit.parts),
                noisy=visit.noisy or is_off(visit.reference_ms, overall),
            )
    return corrected


def combined(values: Sequence[float], noisy: Sequence[bool]) -> float:
    """Return one latency for several visits to the same thing.

    The median of the undisturbed ones; if all were disturbed, the lowest, because disturbances add time.
    """
    quiet = [value for value, bad in zip(values, noisy, strict=True) if not bad]
    return statistics.median(quiet) if quiet else min(values)
