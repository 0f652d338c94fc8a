"""Build a latency table: measure operations and whole nets here, fit, and check against other nets.

1. Each operation's own time. A runtime whose operations can be timed inside a whole net (``torch``) is timed
   there, in random nets, so between real neighbours and with real caches. For the others each operation is a
   net of its own.
2. Random whole nets, end to end. Operations and nets come in random order, from several measuring processes
   one after the other, because where a process has its memory moves its times by a percent; a reference net
   in between tells the machine's pace, and what other programs or another pace disturbed is measured again.
3. Entries, fitted so that sums are the latencies of whole nets (:mod:`.fitting`).
4. A check on nets that were not used so far, in fresh processes (:mod:`.validation`).
"""

from __future__ import annotations

import dataclasses
import os
import random
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..arch import Arch
from ..space import SearchSpace
from ..spaces import read_space
from .agreement import Validation, judge
from .fitting import fit_entries
from .journal import Journal
from .keys import OpKey, arch_keys
from .plan import PARTS_RUNS, Plan
from .settings import Settings
from .table import Entry, LatencyTable
from .table_json import conditions_to_dict
from .timing import quantile
from .validation import SLOW_LOAD_S, compared, measure_nets, net_spec
from .visits import Job, Lab, Progress, Visit, combined

_PROBE = 4  # nets after which it is known what one costs
_FOR_REPEATS = 1.15  # nets that are disturbed are measured again
_ENOUGH_QUIET = 3  # undisturbed times of an operation; with fewer all count
_FIRST, _DECIDED = "first", "decided"


def build_table(
    space: SearchSpace | str | Path,
    *,
    runtime: str = "torch",
    device: str = "cpu",
    threads: int = 1,
    batch_size: int = 1,
    dtype: str = "float32",
    memory_format: str = "channels_last",
    cuda_graph: bool = False,
    path: str | os.PathLike[str] | None = None,
    nets: int | None = None,
    validation_nets: int = 30,
    minutes: float | None = None,
    seed: int = 0,
    extra: Sequence[Arch] = (),
    imports: Sequence[str] = (),
    progress: Progress | None = None,
) -> LatencyTable:
    """Measure a latency table of a search space on this machine.

    With a ``path`` every finished measurement is kept next to it (``PATH.part``): the same call goes on from
    there after Ctrl-C, a kill or a crash.

    Args:
        space: a space, the name of one, or a .toml file; see :func:`~proxylessnas.space.read_space`.
        runtime: one of :data:`~proxylessnas.latency.settings.RUNTIMES`.
        device: "cpu" or "cuda".
        threads: of the runtime's pool, on a CPU.
        batch_size: pictures a call.
        dtype: of weights and input.
        memory_format: of weights and input, for torch.
        cuda_graph: replay CUDA graphs (device "cuda", runtime "torch").
        path: where to write the table; None returns it only.
        nets: whole nets to fit it on; by default 2.2 for each operation, fewer if the time does not allow.
        validation_nets: other nets to judge it on; 0 leaves the table unvalidated, and a search refuses it.
        minutes: about how long it may take, 8 by default. At least 24 nets are measured all the same, which
            takes longer where loading a net takes long (compiling, lowering for a phone).
        seed: of the random nets.
        extra: nets outside the space whose operations are to be in the table as well. How long such a net
            takes as a whole is not used.
        imports: names of modules to import first in the measuring processes, which register operations.
        progress: called with (steps done, steps in all, what comes next).

    Returns:
        The table, with 100 % of the space's operations and its validation.

    Raises:
        LatencyError: it cannot be measured so; the journal belongs to other options or to another machine.
        MissingExtraError: the runtime's library is not installed.
    """
    settings = Settings(runtime, device, threads, batch_size, dtype, memory_format, cuda_graph)
    space = space if isinstance(space, SearchSpace) else read_space(space)
    plan = Plan(space, nets, validation_nets, minutes, seed, tuple(extra))
    request = {"settings": settings.to_dict(), "imports": list(imports), **plan.request()}
    with (
        Journal(path, request) as journal,
        Lab(settings, imports, journal, net_spec(space.arch(plan.drawn[0])), progress) as lab,
    ):
        table = _table(plan, lab, _measure(plan, lab))
        if validation_nets:
            table = table.with_validation(_validated(plan, lab, table).to_dict())
        if path is not None:
            table.save(path)
            journal.remove()
        if progress is not None:
            progress(lab.total, lab.total, "done")
    return table


def _measure(plan: Plan, lab: Lab) -> int:
    """Measure operations and nets; return how many nets there was time for."""
    parts = lab.has_parts
    lab.total = len(plan.drawn) + plan.processes * len(plan.checked)
    first = [plan.net_job(i, parts) for i in range(min(_PROBE, len(plan.drawn)))]
    probes = lab.visits(first, _FIRST)
    slow = statistics.fmean(visit.load_s for visit in probes) > SLOW_LOAD_S
    others = plan.extra_jobs() if parts else plan.op_jobs()
    rounds = plan.processes if parts else 1 if slow else min(2, plan.processes)
    checks = len(plan.checked) * (1 if slow else plan.processes)
    cost_s = statistics.fmean(visit.seconds for visit in probes)
    # An operation takes about half as long as a net, most of which is getting it there.
    reserved_s = cost_s * (checks + (1.0 if parts else 0.5) * rounds * len(others))
    nets = _affordable(plan, lab, reserved_s, cost_s)
    lab.total = nets + rounds * len(others) + checks
    for process in range(plan.processes):
        label = f"process {process}"
        if process:
            lab.new_process()
        todo = [plan.net_job(i, parts) for i in range(_PROBE, nets) if i % plan.processes == process]
        todo += others if process < rounds else []
        random.Random(f"{plan.seed} {process}").shuffle(todo)
        noisy = [job for job in todo if lab.disturbed(lab.visit(job, label))]
        noisy += [job for job, visit in zip(first, probes, strict=True) if visit.noisy and process == 0]
        _again(noisy, f"{label} again", lab, plan.budget_s - cost_s * checks)
    # Only now is it known which pace was the usual one.
    found = lab.found("net ", "op ", "extra ")
    every = [*first, *(plan.net_job(i, parts) for i in range(_PROBE, nets)), *others]
    noisy = [job for job in every if all(visit.noisy for visit in found[job.name])]
    _again(noisy, "at last", lab, plan.budget_s - cost_s * checks)
    return nets


def _again(jobs: Sequence[Job], label: str, lab: Lab, until_s: float) -> None:
    """Visit jobs once more, as long as there is time."""
    for job in jobs:
        if lab.spent_s < until_s:
            lab.total += 1
            lab.visit(job, label)


def _affordable(plan: Plan, lab: Lab, reserved_s: float, cost_s: float) -> int:
    """Return how many nets there is time for; once found, it is kept for whoever continues."""
    if plan.given is not None:
        return len(plan.drawn)
    if _DECIDED not in lab.journal:
        start_s = max(0.0, lab.spent_s - _PROBE * cost_s)  # of the first process
        left_s = plan.budget_s - lab.spent_s - start_s * (2 * plan.processes - 1) - reserved_s
        nets = _PROBE + int(left_s / (_FOR_REPEATS * cost_s))
        lab.journal.add(_DECIDED, {"nets": min(max(nets, plan.least), len(plan.drawn))})
    return int(lab.journal[_DECIDED]["nets"])


def _table(plan: Plan, lab: Lab, nets: int) -> LatencyTable:
    """Fit the entries to what the journal has."""
    found = lab.found("net ", "op ", "extra ")
    usual_ms = statistics.median(visit.reference_ms for visits in found.values() for visit in visits)
    net_visits = [found[f"net {i}"] for i in range(nets)]
    own = _own_times(plan, found, lab.has_parts)
    measured = [
        (
            arch_keys(plan.space.arch(picks)),
            combined([v.ms for v in visits], [v.noisy for v in visits]),
        )
        for picks, visits in zip(plan.drawn, net_visits, strict=False)
    ]
    fit = fit_entries({key: entry.ms for key, entry in own.items()}, measured)
    entries = {}
    for key, entry in own.items():
        ms = fit.costs_ms[key]
        share = ms / entry.ms
        assert entry.p10_ms is not None
        assert entry.p90_ms is not None
        entries[key] = Entry(ms, share * entry.p10_ms, share * entry.p90_ms, entry.runs, "fitted")
    return LatencyTable(
        lab.conditions,
        entries,
        space=plan.space,
        offset_ms=fit.offset_ms,
        method={
            "own_times": "each operation inside random nets" if lab.has_parts else "each operation alone",
            "nets": nets,
            "seed": plan.seed,
            "noisy_nets": sum(all(v.noisy for v in visits) for visits in net_visits),
            "minutes": round(lab.spent_s / 60, 2),
            "pace": {"net": str(plan.space.arch(plan.drawn[0])), "reference_ms": usual_ms},
            "fit": {
                "left_out_rmspe_percent": fit.loo_percent,
                "strength": fit.strength,
                "terms": list(fit.terms),
                "scale": fit.scale,
                "outliers": fit.outliers,
            },
        },
    )


def _own_times(plan: Plan, found: Mapping[str, Sequence[Visit]], parts: bool) -> dict[OpKey, Entry]:
    """Return each operation's own time, in the order of the plan."""
    if not parts:
        own = {}
        for key in plan.all_keys:
            visits = found[f"op {key}"]
            ms = combined([v.ms for v in visits], [v.noisy for v in visits])
            low, high = min(ms, *(v.p10_ms for v in visits)), max(ms, *(v.p90_ms for v in visits))
            own[key] = Entry(ms, low, high, sum(v.runs for v in visits))
        return own
    times: dict[str, list[tuple[float, bool]]] = {str(key): [] for key in plan.all_keys}
    for name, visits in found.items():
        if name.startswith(("net ", "extra ")):
            for visit in visits:
                for text, ms in visit.parts:
                    times[text].append((ms, visit.noisy))
    own = {}
    for key in plan.all_keys:
        every = times[str(key)]
        quiet = [ms for ms, noisy in every if not noisy]
        used = quiet if len(quiet) >= _ENOUGH_QUIET else [ms for ms, _ in every]
        low, high = quantile(used, 0.1), quantile(used, 0.9)
        own[key] = Entry(statistics.median(used), low, high, PARTS_RUNS * len(used))
    return own


def _validated(plan: Plan, lab: Lab, table: LatencyTable) -> Validation:
    """Judge the table on nets that it was not fitted on."""
    archs = [plan.space.arch(picks) for picks in plan.checked]
    lab.pace.given_ms = usual_ms = table.method["pace"]["reference_ms"]
    # The fit can do with some visits at another pace, the check cannot: here is where to wait.
    lab.patience_s = max(0.0, plan.budget_s - lab.spent_s)
    measured = measure_nets(lab, archs, seed=plan.seed + 1, rounds=plan.processes)
    judged = judge(
        compared(table, plan.space, plan.checked, measured.ms),
        seed=plan.seed + 1,
        conditions=lab.conditions.describe(),
        noisy_nets=measured.noisy_nets,
        pace=measured.reference_ms / usual_ms,
    )
    return dataclasses.replace(
        judged, measured_with=conditions_to_dict(lab.conditions), space=plan.space.digest
    )
