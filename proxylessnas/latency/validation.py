"""Measure whole nets that a table was not fitted on, and compare."""

from __future__ import annotations

import dataclasses
import random
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ..arch import Arch
from ..errors import LatencyError, ProxylessError
from ..space import SearchSpace
from .agreement import LEAST_NETS, Validation, judge
from .history import elsewhere, fitted_on
from .journal import Journal
from .keys import DEFAULT_RESOLUTION
from .random_nets import random_nets
from .spec import NetSpec
from .table import LatencyTable
from .table_json import conditions_to_dict
from .table_parts import LONGEST_MS
from .visits import Job, Lab, Progress, Visit, combined

#: Every net is visited so many times, in a fresh measuring process each time.
ROUNDS = 3
#: A net that takes longer than this to load is visited once.
SLOW_LOAD_S = 2.0
_PATIENCE_S = 2.0  # for each net, until the machine has its usual pace
_MOST_PATIENCE_S = 180.0


def validate_table(
    table: LatencyTable,
    space: SearchSpace | None = None,
    *,
    nets: int = 30,
    seed: int = 1,
    force: bool = False,
    imports: Sequence[str] = (),
    progress: Progress | None = None,
) -> Validation:
    """Measure random nets on this machine with the table's own settings, and compare.

    Nets that the table was fitted on are not among them. Every net is measured in several processes; its
    latency is the median.

    Args:
        table: made on this machine.
        space: the nets are drawn from; by default the one that the table was made for.
        nets: how many; 30 are enough to tell a good table from a bad one.
        seed: of the nets.
        force: measure even if this machine or the runtime's version differs from the table's. The result then
            says how well the table does here, and is no reason to trust it elsewhere.
        imports: names of modules that register operations.
        progress: called with (steps done, steps in all, what comes next).

    Raises:
        LatencyError: the table was made on another device or with another version of the runtime (see
            ``force``), or by another program, or for no space; or measuring failed.
        LatencyKeyError: the table does not cover the space.
    """
    space = space or table.space
    if space is None:
        raise LatencyError("the table was made for no search space: give one")
    check_count("nets", nets, LEAST_NETS)
    table.costs(space)  # raises if it does not cover the space
    drawn = random_nets(space, nets, seed=seed, avoid=fitted_on(table, space))
    pace = table.method.get("pace")
    reference, usual_ms = _reference(pace, space.arch(drawn[0]))
    with Journal(None, {}) as journal, Lab(
        table.conditions.settings, imports, journal, net_spec(reference), progress,
        usual_ms=usual_ms, patience_s=min(_MOST_PATIENCE_S, _PATIENCE_S * nets),
    ) as lab:  # fmt: skip
        differences = elsewhere(table, lab.conditions)
        if differences and not force:
            raise LatencyError(
                f"the table was made under other conditions: {'; '.join(differences)}. Its validation would "
                "say nothing about the device it is for; force=True (--force) compares it all the same"
            )
        if differences:
            lab.pace.given_ms = usual_ms = None  # another machine has a pace of its own
        found = measure_nets(lab, [space.arch(picks) for picks in drawn], seed=seed)
        judged = judge(
            compared(table, space, drawn, found.ms),
            seed=seed,
            conditions=lab.conditions.describe(),
            noisy_nets=found.noisy_nets,
            pace=found.reference_ms / usual_ms if usual_ms else 1.0,
        )
        return dataclasses.replace(
            judged, measured_with=conditions_to_dict(lab.conditions), space=space.digest
        )


class MeasuredNets(NamedTuple):
    """What :func:`measure_nets` found: latencies in milliseconds, and how far to trust them.

    ``noisy_nets`` were disturbed at every visit, or never visited at the usual pace; ``reference_ms`` is the
    median latency of the lab's reference net meanwhile.
    """

    ms: list[float]
    noisy_nets: int
    reference_ms: float


def measure_nets(lab: Lab, archs: Sequence[Arch], *, seed: int = 0, rounds: int = ROUNDS) -> MeasuredNets:
    """Measure nets end to end, in every round in a fresh process and in another order.

    Args:
        lab: makes the visits.
        archs: the nets.
        seed: of the orders.
        rounds: visits to each net; it stays at one where loading takes long.
    """
    what = "whole nets, to judge the table"
    jobs = [Job(f"check {i}", net_spec(arch), what) for i, arch in enumerate(archs)]
    found: list[list[Visit]] = [[] for _ in jobs]
    lab.total = max(lab.total, lab.done + rounds * len(jobs))
    for number in range(rounds):
        lab.new_process()
        order = list(range(len(jobs)))
        random.Random(f"{seed} {number}").shuffle(order)
        for i in order:
            found[i].append(lab.visit(jobs[i], f"round {number}"))
        again = [i for i in order if lab.disturbed(found[i][-1])]
        lab.total += len(again)
        for i in again:
            found[i].append(lab.visit(jobs[i], f"round {number} again"))
        if statistics.fmean(visits[0].load_s for visits in found) > SLOW_LOAD_S:
            break
    lab.new_process()
    noisy = [[lab.disturbed(v) for v in visits] for visits in found]
    values = [combined([v.ms for v in visits], bad) for visits, bad in zip(found, noisy, strict=True)]
    return MeasuredNets(
        values,
        sum(map(all, noisy)),
        statistics.median(visit.reference_ms for visits in found for visit in visits),
    )


def net_spec(arch: Arch) -> NetSpec:
    """Return what a measuring process is given to load a net."""
    size = arch.resolution or DEFAULT_RESOLUTION
    return NetSpec("arch", str(arch), (arch.in_channels, size, size), arch.num_classes)


def compared(
    table: LatencyTable, space: SearchSpace, drawn: Sequence[tuple[int, ...]], measured: Sequence[float]
) -> list[tuple[str, float, float]]:
    """Return (block tokens, stages apart by "|"; predicted ms; measured ms) of each net."""
    archs = [space.arch(picks) for picks in drawn]
    return [
        (" | ".join(stage.ops for stage in arch.stages), table.predict(arch), ms)
        for arch, ms in zip(archs, measured, strict=True)
    ]


def check_count(name: str, value: object, least: int, most: int = 100_000) -> None:
    """Raise LatencyError unless ``value`` is a whole number from ``least`` to ``most``."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise LatencyError(f"{name} must be a whole number from {least} to {most}, not {value!r}")


def _reference(pace: object, other: Arch) -> tuple[Arch, float | None]:
    """Return the net that tells the pace, and its latency when the table was made, if that is known."""
    try:
        assert isinstance(pace, Mapping)
        ms, net = float(pace["reference_ms"]), Arch.parse(pace["net"])
        return (net, ms) if isinstance(net, Arch) and 0 < ms < LONGEST_MS else (other, None)
    except (AssertionError, KeyError, TypeError, ValueError, ProxylessError):
        return other, None
