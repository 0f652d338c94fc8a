"""Build a latency table: measure operations and whole models here, fit, and check against other models.

1. Each operation's own time. A runtime whose operations can be timed inside a whole model (``torch``) is
   timed there, in random models, so between real neighbours and with real caches. For the others each
   operation is a model of its own.
2. Random whole models, end to end: some to fit the entries on, others to check them with. Operations and
   models are measured in one session (:mod:`.session`), interleaved with each other and with a reference.
3. Entries, fitted so that sums are the latencies of whole models (:mod:`.fit`).
4. A check on the models that were not used so far (:mod:`.metrics`), which also says what this machine
   allows: how far two runs of the same models agree.
"""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..arch.arch import Arch
from ..arch.op_key import OpKey, arch_keys, space_keys
from ..arch.space import SearchSpace
from ..arch.spaces import read_chain
from ..runtimes.base import ModelSpec
from ..runtimes.registry import get_runtime
from .fit import fitted_table
from .journal import Journal
from .measurement import UNDISTURBED, Measurement, quantile
from .random_models import random_models, too_few
from .session import REFERENCE, Item, MeasurementSession, Progress
from .settings import DEFAULT_MINUTES, BuildSettings
from .table import Entry, LatencyTable
from .validate import check_count, evaluated, model_spec

#: Uncertainty of the latencies a table is made of, as a share.
LIMIT = 0.004


def build_table(
    space: SearchSpace | str | Path,
    settings: BuildSettings | None = None,
    *,
    path: str | os.PathLike[str] | None = None,
    extra: Sequence[Arch] = (),
    progress: Progress | None = None,
) -> LatencyTable:
    """Measure a latency table of a search space on this machine.

    With a ``path`` every round is kept next to it (``PATH.part``): the same call goes on from there after
    Ctrl-C, a kill or a crash.

    Args:
        space: a space, the name of one, or a .toml file; see :func:`~proxylessnas.arch.spaces.read_chain`.
        settings: what the table holds for, and how much is measured; None takes the defaults.
        path: where to write the table; None returns it only.
        extra: models outside the space whose operations are to be in the table as well. How long such a
            model takes as a whole is not used.
        progress: called with (seconds done, seconds in all, what is being done).

    Returns:
        The table, with 100 % of the space's operations and its validation.

    Raises:
        LatencyError: it cannot be measured so; the journal belongs to other options or to another machine.
        MissingExtraError: the runtime's library is not installed.
    """
    asked = settings or BuildSettings()
    space = space if isinstance(space, SearchSpace) else read_chain(space)
    plan = Plan(space, asked, tuple(extra))
    request = {
        "settings": asked.settings.to_dict(), "imports": list(asked.imports), "statistic": "undisturbed",
        **plan.request(),
    }  # fmt: skip
    with Journal(path, request) as journal:
        session = MeasurementSession(
            plan.items(), imports=asked.imports, journal=journal, seed=asked.seed, progress=progress
        )
        session.run(plan.budget_s, limit=LIMIT, processes=plan.processes)
        table = _table(plan, session)
        if asked.validation_nets:
            found = evaluated(table, space, plan.checked, session, table.conditions, seed=asked.seed + 1)
            table = table.with_validation(found)
        if path is not None:
            table.save(path)
            journal.remove()
        if progress is not None:
            progress(round(session.spent_s), round(session.spent_s), "done")
    return table


def _table(plan: Plan, session: MeasurementSession) -> LatencyTable:
    """Fit the entries to what was measured."""
    method = {
        "own_times": "each operation inside random models" if session.parts else "each operation alone",
        "nets": len(plan.drawn),
        "seed": plan.seed,
        "minutes": round(session.spent_s / 60, 2),
        **described(session, plan.space.arch(plan.drawn[0])),
    }
    models = [(choices, session.measured[f"net {i}"].undisturbed_ms) for i, choices in enumerate(plan.drawn)]
    conditions = session.conditions(plan.settings)
    own = _own_times(plan, session)
    return fitted_table(conditions, plan.space, own, models, method, statistic="undisturbed")


def described(session: MeasurementSession, reference: Arch) -> dict[str, object]:
    """Return what a table keeps of its session: the reference, the uncertainty, how disturbed it was."""
    found = session.measured[REFERENCE]
    every = [m.median_ms / m.undisturbed_ms for m in session.measured.values()]
    return {
        "reference": {"net": str(reference), "ms": found.undisturbed_ms, "median_ms": found.median_ms},
        "uncertainty_percent": round(100 * session.uncertainty(), 3),
        "disturbance": round(statistics.median(every), 3),
        "rounds": sum(len(m.windows) for m in session.measured.values()) // len(session.measured),
        "processes": session.processes,
    }


def _own_times(plan: Plan, session: MeasurementSession) -> dict[OpKey, Entry]:
    """Return each operation's own time, in the order of the plan."""
    if not session.parts:
        return {key: _alone(session.measured[f"op {key}"]) for key in plan.all_keys}
    times: dict[str, list[float]] = {str(key): [] for key in plan.all_keys}
    runs: dict[str, int] = dict.fromkeys(times, 0)
    for parts in session.parts.values():
        for text, ms in parts:
            times[text].append(quantile(ms, UNDISTURBED))
            runs[text] += len(ms)
    own = {}
    for key in plan.all_keys:
        every = times[str(key)]
        low, high = quantile(every, 0.1), quantile(every, 0.9)
        own[key] = Entry(statistics.median(every), low, high, runs[str(key)])
    return own


def _alone(found: Measurement) -> Entry:
    runs = found.runs_ms
    return Entry(found.undisturbed_ms, quantile(runs, 0.1), quantile(runs, 0.9), len(runs))


#: Measuring processes that share the work; fewer where there is little time.
PROCESSES, FEW_PROCESSES = 4, 2
LITTLE_MINUTES = 3.0
#: Models a table is fitted on: at least, and by default for each operation, and at most.
LEAST_MODELS = 24
MODELS_PER_OPERATION = 2.2
MOST_MODELS = 240
_FEWEST_MODELS = 5  # in a space that has hardly more


class Plan:
    """What is to be measured."""

    def __init__(self, space: SearchSpace, asked: BuildSettings, extra: tuple[Arch, ...] = ()) -> None:
        least = max(LEAST_MODELS, 2 * max(len(p.candidate_ops) for p in space.search_blocks))
        if asked.nets is not None:
            check_count("nets", asked.nets, least)
        for arch in extra:
            arch_keys(arch)  # raises if it is not made of blocks
        self.space, self.settings, self.seed, self.extra = space, asked.settings, asked.seed, extra
        self.given, self.minutes = asked.nets, asked.minutes
        self.budget_s = 60 * (asked.minutes or DEFAULT_MINUTES)
        self.processes = PROCESSES if self.budget_s >= 60 * LITTLE_MINUTES else FEW_PROCESSES
        self.keys = space_keys(space)
        self.all_keys = list(dict.fromkeys([*self.keys, *(key for arch in extra for key in arch_keys(arch))]))
        wanted = asked.nets or min(
            MOST_MODELS, max(least, 40, math.ceil(MODELS_PER_OPERATION * len(self.keys)))
        )
        self.drawn = random_models(space, _leaving_some(space, wanted, asked), seed=self.seed)
        if len(self.drawn) < _FEWEST_MODELS:
            raise too_few(space)
        self.extra += self._never_drawn()
        self.checked = []
        if asked.validation_nets:
            self.checked = random_models(space, asked.validation_nets, seed=self.seed + 1, avoid=self.drawn)

    def _never_drawn(self) -> tuple[Arch, ...]:
        """Return models with the operations that none of the drawn ones has, for their parts."""
        space, seen = self.space, set[OpKey]()
        for choices in self.drawn:
            seen.update(arch_keys(space.arch(choices)))
        found = []
        for search_block in space.search_blocks:
            for column in search_block.columns:
                choices = (
                    *self.drawn[0][: search_block.index],
                    column,
                    *self.drawn[0][search_block.index + 1 :],
                )
                keys = arch_keys(space.arch(choices))
                if not seen.issuperset(keys):
                    seen.update(keys)
                    found.append(space.arch(choices))
        return tuple(found)

    def request(self) -> dict[str, Any]:
        """Return what a journal must agree with, as JSON values."""
        return {
            "space": self.space.digest,
            "nets": self.given,
            "validation_nets": len(self.checked),
            "minutes": self.minutes,
            "seed": self.seed,
            "extra": [str(arch) for arch in self.extra],
        }

    def items(self) -> list[Item]:
        """Return what a session measures: the reference, models to fit on and to check with, operations."""
        settings, parts = self.settings, get_runtime(self.settings.runtime).has_parts
        archs = {f"net {i}": self.space.arch(choices) for i, choices in enumerate(self.drawn)}
        found = [Item(REFERENCE, model_spec(archs["net 0"]), settings)]
        found += [Item(name, model_spec(arch), settings, parts) for name, arch in archs.items()]
        for i, choices in enumerate(self.checked):
            found.append(Item(f"check {i}", model_spec(self.space.arch(choices)), settings))
        if parts:
            for i, arch in enumerate(self.extra):
                found.append(Item(f"extra {i}", model_spec(arch), settings, parts))
        else:
            for key in self.all_keys:
                spec = ModelSpec("op", str(key), (key.in_channels, key.size, key.size))
                found.append(Item(f"op {key}", spec, settings))
        return found


def _leaving_some(space: SearchSpace, wanted: int, asked: BuildSettings) -> int:
    """Return how many models to fit on, so that a space of few leaves others to check with."""
    every = wanted + max(asked.validation_nets, wanted // 2)
    if space.count > 4 * every:
        return wanted
    return min(wanted, math.ceil(len(random_models(space, every, seed=asked.seed)) * 2 / 3))
