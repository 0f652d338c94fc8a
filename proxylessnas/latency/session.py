"""A measuring session: many models, each in many short windows that are interleaved with all the others.

A shared machine changes its speed for seconds at a time. So all models are loaded, and every round gives each
one short window, in a new random order, with a reference model in between; a latency is a low quantile over
all windows (:mod:`.measurement`). Rounds are made until the figures are certain, and in several processes, as
where a process has its memory moves its times by a percent.
"""

from __future__ import annotations

import contextlib
import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..errors import LatencyError, ProxylessError
from ..runtimes.base import ModelSpec
from ..runtimes.settings import Conditions, Settings
from ..runtimes.timer import MIN_RUNS, MIN_SECONDS, Window
from .journal import Journal
from .measurement import LIMIT, Measurement, uncertainty
from .worker import Worker

#: Called now and then with seconds done, seconds in all as far as is known, and what is being done.
Progress = Callable[[int, int, str], None]

REFERENCE = "reference"
PROCESSES = 2
LEAST_ROUNDS = 4
LEAST_SECONDS = 10.0  # neighbours come and go in seconds
_REFERENCE_EVERY = 8  # windows
_SLOW_LOAD_S = 2.0  # where loading takes longer, one process measures everything
_MOST_PIXELS = 48 * 224 * 224  # inputs of the models that are loaded at a time, as a measure of memory
_PARTS_RUNS = 2  # a window
_CONDITIONS = "conditions"
_MAY_DIFFER = ("system",)  # between the parts of a session that was continued


@dataclass(frozen=True)
class Item:
    """Something to be measured.

    Attributes:
        name: unique in a session.
        spec: the model or operation.
        settings: of the process that measures it.
        parts: whether its operations are to be timed inside it as well.
        seconds: length of a window, at least.
    """

    name: str
    spec: ModelSpec
    settings: Settings
    parts: bool = False
    seconds: float = MIN_SECONDS


class _Wanted(NamedTuple):
    """Arguments of :meth:`MeasurementSession.run`."""

    seconds: float
    limit: float
    processes: int
    least_rounds: int
    least_seconds: float


class MeasurementSession:
    """Measures items; what a journal has already is not measured again.

    Args:
        items: one of the name :data:`REFERENCE` is measured more often, between the others, in every group.
        imports: modules that the measuring processes import first.
        journal: keeps the windows; None keeps them in memory only.
        seed: of the orders.
        keep_going: leave out an item that cannot be loaded or run (see :attr:`failed`) instead of raising.
        progress: called with what is being done.

    Attributes:
        measured: by name.
        parts: by name of the item: (text of the key, ms of each run) of each operation, in order.
        failed: why an item was left out.
        spent_s: seconds so far, those of an earlier session that is continued included.
        rounds: of the first process.
    """

    def __init__(
        self,
        items: Sequence[Item],
        *,
        imports: Sequence[str] = (),
        journal: Journal | None = None,
        seed: int = 0,
        keep_going: bool = False,
        progress: Progress | None = None,
    ) -> None:
        self.items = {item.name: item for item in items}
        self.measured = {item.name: Measurement() for item in items}
        self.parts: dict[str, list[tuple[str, list[float]]]] = {}
        self.failed: dict[str, ProxylessError] = {}
        self.spent_s, self.rounds, self.processes = 0.0, 0, 0
        self._imports, self._seed, self._keep_going = tuple(imports), seed, keep_going
        self._journal = Journal(None, {}) if journal is None else journal
        self._progress, self._total_s = progress, 0.0
        self._machines: dict[Settings, Conditions] = {}
        #: Seconds spent when a process, or a group of one, began.
        self._begun: dict[tuple[int, int | None], float] = {}
        self._workers: dict[Settings, Worker] = {}
        for name in list(self._journal):
            self._take(name, self._journal[name])

    def conditions(self, settings: Settings) -> Conditions:
        """Return what is measured with, once a process was started."""
        return self._machines[settings]

    def uncertainty(self) -> float:
        """Return how uncertain the latencies are, as a share of them."""
        return uncertainty(m for name, m in self.measured.items() if name not in self.failed)

    def run(
        self,
        seconds: float,
        *,
        limit: float = LIMIT,
        processes: int = PROCESSES,
        least_rounds: int = LEAST_ROUNDS,
        least_seconds: float = LEAST_SECONDS,
        settled: Callable[[], bool] = lambda: True,
    ) -> None:
        """Measure in several processes, one after the other, until the latencies are certain.

        The first process measures until it alone is as certain as each of them needs to be; the others make
        as many rounds, so that after the first it is known how long the rest takes.

        Args:
            seconds: about how long it may take, earlier sessions that are continued included.
            limit: uncertainty that is wanted, as a share.
            processes: how many; one where loading takes long.
            least_rounds: that each process makes, however long they take.
            least_seconds: that a process measures, if there is the time: less may lie within one disturbance.
            settled: asked at the end; while it is False and there are seconds left, more rounds are made.

        Raises:
            LatencyError: something cannot be measured, or a continued session is on another machine.
        """
        wanted = _Wanted(seconds, limit, processes, least_rounds, least_seconds)
        self._total_s = seconds
        while self.processes < wanted.processes:
            process = self.processes
            with contextlib.ExitStack() as stack:
                wanted, group = self._process(process, stack, wanted)
                while process + 1 == wanted.processes and not settled() and self.spent_s < seconds:
                    self._round(group, f"process {process} extra {self.spent_s:.3f}", process)
            self._keep(f"process {process} done", {"processes": process + 1, "rounds": self.rounds})

    # ---- one process

    def _process(
        self, process: int, stack: contextlib.ExitStack, wanted: _Wanted
    ) -> tuple[_Wanted, list[str]]:
        """Measure every group in fresh processes; return what is wanted, and the group that is loaded last.

        Where loading takes long, only this process is wanted.
        """
        begin_s = self._begun.setdefault((process, None), self.spent_s)  # earlier, if it is continued
        self._start(process, stack)
        groups = self._groups(process)
        loads: list[float] = []
        for g, group in enumerate(groups):
            for name in groups[g - 1] if g else ():
                if name != REFERENCE and name not in self.failed:
                    with self._tolerant(name):
                        self._workers[self.items[name].settings].drop(name)
            load_s = self._load(group, process, g, loads)
            if loads and statistics.fmean(loads) > _SLOW_LOAD_S:
                wanted = wanted._replace(processes=process + 1)
            share_s = (wanted.seconds - begin_s) / (wanted.processes - process)
            limit = wanted.limit * wanted.processes**0.5
            group_s = self._begun.setdefault((process, g), self.spent_s)
            end_s = group_s + (begin_s + share_s - group_s) / (len(groups) - g)
            least_s = wanted.least_seconds / len(groups)
            rounds, round_s, needed, look_at, certain = 0, 0.0, 0.0, 0, False
            while f"process {process} group {g} round {rounds}" in self._journal:
                rounds += 1
            while rounds < wanted.least_rounds or (
                self.spent_s + round_s <= end_s and (rounds < self.rounds if process else not certain)
            ):
                before = self.spent_s
                self._round(group, f"process {process} group {g} round {rounds}", process)
                round_s = self.spent_s - before
                rounds += 1
                if process:
                    left_s = (self.rounds - rounds) * round_s
                else:
                    if rounds >= look_at:  # seldom: all runs so far are looked at
                        begin = time.perf_counter()
                        look_at = max(rounds + 1, round(1.1 * rounds))
                        certain = self._certain(group, limit, self.spent_s - group_s < least_s)
                        needed = rounds + self._rounds_left(group, rounds, limit, wanted.least_rounds)
                        self.spent_s += time.perf_counter() - begin
                    left_s = max((needed - rounds) * round_s, group_s + least_s - self.spent_s, 0.0)
                each_s = load_s + rounds * round_s + left_s  # of a group
                so_far_s = self.spent_s - begin_s
                wanted_s = so_far_s + left_s + (len(groups) - g - 1) * each_s
                each_process_s = max(so_far_s, min(wanted_s, share_s))
                self._total_s = begin_s + (wanted.processes - process) * each_process_s
            if not process:
                self.rounds = max(self.rounds, rounds)
        return wanted, groups[-1]

    def _certain(self, group: Sequence[str], limit: float, early: bool) -> bool:
        """Tell whether a group needs no more rounds; where all of it failed, it does not, however early."""
        found = [self.measured[name] for name in group if name not in self.failed]
        return not found or (not early and uncertainty(found) <= limit)

    def _rounds_left(self, group: Sequence[str], rounds: int, limit: float, least: int) -> float:
        """Guess how many more rounds are needed.

        Noise falls with the root of their number; a neighbour is met in all of a model's windows ever less
        likely.
        """
        if rounds < least:  # too few windows to tell
            return least - rounds + 1
        found = [self.measured[name] for name in group if name not in self.failed]
        by_root = max(rounds * ((uncertainty(found) / limit) ** 2 - 1), 0.0)
        busy = min(max(statistics.fmean(map(_busy, found)), 0.01), 0.95) if found else 0.01
        all_met = 2 * math.log(2 * len(found) + 1) / -math.log(busy)
        return min(by_root, max(all_met - rounds, rounds * 2 / 3))

    def _groups(self, process: int) -> list[list[str]]:
        """Return the names that are loaded at a time, shared out anew in each process.

        Without a reference that ties groups together, all are loaded at once.
        """
        names = [name for name in self.items if name != REFERENCE]
        if self._reference is None:
            return [names]
        random.Random(f"{self._seed} {process}").shuffle(names)
        groups: list[list[str]] = [[]]
        room = 0
        for name in names:
            item = self.items[name]
            _, height, width = item.spec.input_size
            pixels = height * width * item.settings.batch_size
            if groups[-1] and room + pixels > _MOST_PIXELS:
                groups.append([])
                room = 0
            groups[-1].append(name)
            room += pixels
        return [[*group, REFERENCE] for group in groups]

    @property
    def _reference(self) -> Item | None:
        return self.items.get(REFERENCE)

    def _start(self, process: int, stack: contextlib.ExitStack) -> None:
        begin = time.perf_counter()
        self._workers.clear()
        for settings in dict.fromkeys(item.settings for item in self.items.values()):
            self._tell(f"starting {settings.runtime}")
            worker = stack.enter_context(Worker(settings, self._imports))
            self._workers[settings] = worker
            self._same_machine(settings, worker)
        spent = time.perf_counter() - begin
        self._keep(f"process {process} start {self.spent_s:.3f}", {"process": process, "seconds": spent})

    def _same_machine(self, settings: Settings, worker: Worker) -> None:
        known = self._machines.get(settings)
        if known is None:
            record = {"settings": settings.to_dict(), "conditions": worker.conditions.to_dict()}
            self._keep(f"{_CONDITIONS} {len(self._machines)}", record)
            return
        differences = conditions_differ(known, worker.conditions)
        if differences:
            where = self._journal.path or "the session"
            raise LatencyError(
                f"{where} was begun under other conditions: {'; '.join(differences)}. "
                "Resume where it was begun, or delete the file to begin anew"
            )

    def _load(self, group: Sequence[str], process: int, g: int, loads: list[float]) -> float:
        begin = time.perf_counter()
        for name in group:
            item = self.items[name]
            if name in self.failed or (name == REFERENCE and g):
                continue
            self._tell("loading models", time.perf_counter() - begin)
            with self._tolerant(name):
                loads.append(self._workers[item.settings].load(name, item.spec))
        spent = time.perf_counter() - begin
        record = {"process": process, "group": g, "seconds": spent}
        self._keep(f"process {process} load {g} {self.spent_s:.3f}", record)
        return spent

    def _round(self, names: Sequence[str], label: str, process: int) -> None:
        """Give each item a window, in random order, and the reference one between them."""
        begin = time.perf_counter()
        order = [name for name in names if name != REFERENCE and name not in self.failed]
        random.Random(f"{self._seed} {label}").shuffle(order)
        if self._reference is not None:
            for place in range(0, len(order) + len(order) // _REFERENCE_EVERY + 1, _REFERENCE_EVERY + 1):
                order.insert(place, REFERENCE)
        windows: list[Any] = []
        parts: dict[str, Any] = {}
        for name in order:
            item = self.items[name]
            worker = self._workers[item.settings]
            self._tell("measuring", time.perf_counter() - begin)
            with self._tolerant(name):
                found = worker.window(name, min_runs=MIN_RUNS, min_seconds=item.seconds)
                same = found.own_ms == found.ms
                windows.append([name, _rounded(found.ms), None if same else _rounded(found.own_ms)])
                if item.parts and worker.has_parts:
                    parts[name] = [[key, _rounded(ms)] for key, ms in worker.parts(name, runs=_PARTS_RUNS)]
        spent = time.perf_counter() - begin
        self._keep(label, {"process": process, "windows": windows, "parts": parts, "seconds": spent})

    @contextlib.contextmanager
    def _tolerant(self, name: str) -> Any:
        """Note an item that fails, where the session is to keep going."""
        try:
            yield
        except ProxylessError as e:
            if not self._keep_going:
                raise
            self.failed[name] = e

    def _tell(self, what: str, since_s: float = 0.0) -> None:
        if self._progress is not None:
            done = self.spent_s + since_s
            self._progress(round(done), max(round(self._total_s), round(done) + 1), what)

    # ---- what is kept

    def _keep(self, name: str, record: dict[str, Any]) -> None:
        self._journal.add(name, record)
        self._take(name, record)

    def _take(self, name: str, record: dict[str, Any]) -> None:
        """Take over one record of the journal."""
        if "process" in record:
            place = (record["process"], record.get("group"))
            self._begun.setdefault(place, self.spent_s + (0.0 if place[1] is None else record["seconds"]))
        self.spent_s += record.get("seconds", 0.0)
        self.rounds = max(self.rounds, record.get("rounds", 0))
        self.processes = max(self.processes, record.get("processes", 0))
        if name.startswith(_CONDITIONS):
            settings = Settings(**record["settings"])
            self._machines[settings] = Conditions(**record["conditions"])
        for item, ms, own_ms in record.get("windows", ()):
            window = Window(tuple(ms), tuple(ms if own_ms is None else own_ms), record["process"])
            self.measured.setdefault(item, Measurement()).windows.append(window)
        for item, timed in record.get("parts", {}).items():
            known = self.parts.setdefault(item, [(key, []) for key, _ in timed])
            for (_, kept), (_, ms) in zip(known, timed, strict=True):
                kept += ms


def conditions_differ(before: Conditions, now: Conditions) -> list[str]:
    """Return in words what differs between two conditions and may change latencies."""
    old, new = before.to_dict(), now.to_dict()
    old_versions, new_versions = old.pop("versions"), new.pop("versions")
    pairs = [(n, old[n], new[n]) for n in old if n not in _MAY_DIFFER]
    pairs += [(n, old_versions.get(n), new_versions.get(n)) for n in {**old_versions, **new_versions}]
    return [f"{name} was {a}, is {b}" for name, a, b in pairs if a != b]


def _busy(found: Measurement) -> float:
    """Return the share of the windows without a run as quick as the quickest."""
    lows = [min(window.own_ms) for window in found.windows]
    quickest = min(lows)
    return statistics.fmean(low > 1.05 * quickest for low in lows)


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(value, 6) for value in values]
