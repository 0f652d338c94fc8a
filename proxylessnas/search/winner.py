"""The net a search ends with: measured beside the table's reference, and replaced while it is too slow.

A table predicts; what counts is the device. So the most probable model within the constraints is measured,
interleaved with the reference model of the table (:mod:`..latency.session`), and if its undisturbed latency
is above the target, the constraint is tightened by what the prediction missed, and the next candidate is
taken.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..arch import Arch
from ..errors import DataError, first_line
from ..progress import tell
from ..registration import modules_of
from .budgets import Budget

if TYPE_CHECKING:
    from ..latency.table import LatencyTable
    from ..latency.timing import Timing
    from .engine import Searcher
    from .job import Job

_SECONDS = 40.0  # at most, for a candidate
_LEAST_SECONDS = 4.0  # of a process; the reference tells whether that was enough
_LEAST_ROUNDS = 25  # of a process: two models only
CANDIDATES = 5
#: Beyond this the machine is not as it was when the table was made.
_REFERENCE_OFF = 0.03
#: The next candidate is to be faster than the target by so much, as its prediction is uncertain, too.
_MARGIN = 0.995


@dataclass(frozen=True)
class Measured:
    """A candidate for the end of a search, measured.

    Attributes:
        picks: the candidate: its columns in the space, one a block.
        predicted_ms: by the table.
        timing: on this machine; None where that could not be done, for the reason in ``note``.
        reference_ratio: how many times longer the reference model took than when the table was made; None
            where that is not known.
        note: why it was not measured.
    """

    picks: tuple[int, ...]
    predicted_ms: float
    timing: Timing | None
    reference_ratio: float | None = None
    note: str = ""

    @property
    def ms(self) -> float | None:
        """Its undisturbed latency, on the machine as it was when the table was made.

        A reference that takes longer now tells that everything was disturbed throughout.
        """
        if self.timing is None:
            return None
        ratio = self.reference_ratio or 1.0
        return self.timing.undisturbed_ms / (ratio if ratio > 1 + _REFERENCE_OFF else 1.0)


def choose(job: Job, searcher: Searcher) -> tuple[list[int], list[Measured]]:
    """Return the net that a search ends with, and every candidate that was measured, the last one being it.

    Every process takes part; the first one measures.

    Raises:
        DataError: no net meets the constraints.
    """
    share = searcher.processes.sum_of  # the other processes add nothing
    target = next((b for b in job.budgets if b.costs.name == "latency"), None)
    candidates, tried = [searcher.derived()], list[Measured]()
    while True:
        limit_ms = 0.0  # of the table, for the next candidate; 0: there is none
        if searcher.processes.main and job.table is not None:
            if not tried:
                tell("note: measuring the latency of what was found; this takes half a minute")
            arch = job.space.arch(candidates[-1])
            tried.append(measure_like(arch, tuple(candidates[-1]), job.table))
            limit_ms = _next_limit_ms(tried, target)
        limit_ms = share(limit_ms)[0]
        if not limit_ms:
            break
        budgets = [Budget(b.costs, limit_ms) if b is target else b for b in job.budgets]
        try:
            candidates.append(searcher.derived(budgets))
        except DataError:  # nothing is as fast as that
            break
    best = int(share(_best(tried, target) if tried else 0)[0])
    if tried:
        tried.append(tried.pop(best))
    return candidates[best], tried


def _next_limit_ms(tried: Sequence[Measured], target: Budget | None) -> float:
    """Return the predicted latency that the next candidate may have; 0 where the last one will do."""
    last = tried[-1]
    if target is None or last.ms is None or last.ms <= target.limit:
        return 0.0
    if len(tried) == CANDIDATES or last.predicted_ms <= 0:
        return 0.0
    missed = last.ms / last.predicted_ms
    lowest_ms = 1.0001 * target.costs.range()[0]  # where nothing can keep to the target, this comes nearest
    limit_ms = min(max(_MARGIN * target.limit / missed, lowest_ms), 0.9999 * last.predicted_ms)
    tell(
        f"note: measured {last.ms:.3f} ms, above the target of {target.limit:.3f} ms: the next candidate has "
        f"a predicted latency of at most {limit_ms:.3f} ms"
    )
    return limit_ms


def _best(tried: Sequence[Measured], target: Budget | None) -> int:
    """Return the first candidate that keeps to the target, or else the fastest."""
    if target is None or any(t.ms is None for t in tried):
        return len(tried) - 1
    times = [t.ms or 0.0 for t in tried]
    return next((i for i, ms in enumerate(times) if ms <= target.limit), times.index(min(times)))


def measure_like(arch: Arch, picks: tuple[int, ...], table: LatencyTable) -> Measured:
    """Measure a model under a table's conditions, beside its reference, if this is its machine."""
    from ..latency.history import elsewhere
    from ..latency.session import REFERENCE, Item, MeasurementSession
    from ..latency.timing import Timing
    from ..latency.validation import conditions_here, model_spec, reference_of

    predicted = 0.0
    try:
        predicted = table.predict(arch)
        settings = table.conditions.settings
        modules = set(modules_of(block.token for block in arch.iter_blocks()).values())
        imports = sorted(name for name in modules if not name.endswith(".py"))
        if len(imports) < len(modules):
            program = min(modules - set(imports))
            why = f"its operation is registered by the program {program}, not by a module to import"
            return Measured(picks, predicted, None, note=f"not measured: {why}")
        differences = elsewhere(table, conditions_here(settings, imports))
        if differences:
            return Measured(picks, predicted, None, note=f"not measured: {'; '.join(differences)}")
        known = reference_of(table)
        spec = model_spec(arch)
        items = [Item("model", spec, settings)]
        items += [Item(REFERENCE, model_spec(known[0]), settings)] if known else []
        session = MeasurementSession(items, imports=imports)

        def ratio() -> float | None:
            return session.measured[REFERENCE].undisturbed_ms / known[1] if known else None

        session.run(
            _SECONDS,
            least_rounds=_LEAST_ROUNDS,
            least_seconds=_LEAST_SECONDS,
            settled=lambda: (ratio() or 1.0) <= 1 + _REFERENCE_OFF,
        )
        day = datetime.date.today().isoformat()
        timing = Timing.of(session.measured["model"], session.conditions(settings), spec.input_size, day)
        return Measured(picks, predicted, timing, ratio())
    except Exception as e:  # noqa: BLE001 - hours of search are not lost to a failed measurement
        return Measured(picks, predicted, None, note=f"not measured: {first_line(e)}")
