"""Measure whole models that a table was not fitted on, and compare."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence

from ..arch import Arch
from ..errors import LatencyError, ProxylessError
from ..space import SearchSpace
from .agreement import LEAST_NETS, Validation, judge
from .history import elsewhere, fitted_on
from .keys import DEFAULT_RESOLUTION
from .process import Worker
from .random_nets import random_nets
from .session import REFERENCE, Item, MeasurementSession, Progress
from .settings import Conditions, Settings
from .spec import NetSpec
from .table import LatencyTable
from .table_json import conditions_to_dict
from .table_parts import LONGEST_MS

#: Seconds a model may take, over all windows, and uncertainty that is wanted.
_SECONDS_EACH, _LEAST_SECONDS = 3.0, 30.0
LIMIT = 0.004


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
    """Measure random models on this machine with the table's own settings, and compare.

    Models that the table was fitted on are not among them. They are measured in one interleaved session
    (:mod:`.session`), with the reference model of the table among them.

    Args:
        table: made on this machine.
        space: the models are drawn from; by default the one that the table was made for.
        nets: how many; 30 are enough to tell a good table from a bad one.
        seed: of the models.
        force: measure even if this machine or the runtime's version differs from the table's. The result then
            says how well the table does here, and is no reason to trust it elsewhere.
        imports: names of modules that register operations.
        progress: called with (seconds done, seconds in all, what is being done).

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
    settings = table.conditions.settings
    archs = [space.arch(picks) for picks in drawn]
    known = reference_of(table)
    items = [Item(REFERENCE, model_spec(known[0] if known else archs[0]), settings)]
    items += [Item(f"check {i}", model_spec(arch), settings) for i, arch in enumerate(archs)]
    differences = elsewhere(table, conditions_here(settings, imports))
    if differences and not force:
        raise LatencyError(
            f"the table was made under other conditions: {'; '.join(differences)}. Its validation would "
            "say nothing about the device it is for; force=True (--force) compares it all the same"
        )
    session = MeasurementSession(items, imports=imports, seed=seed, progress=progress)
    session.run(max(_LEAST_SECONDS, _SECONDS_EACH * len(archs)), limit=LIMIT)
    found = [session.measured[f"check {i}"] for i in range(len(archs))]
    same_machine = known is not None and not differences  # another one has a speed of its own
    conditions = session.conditions(settings)
    evaluated = judge(
        compared(table, space, drawn, [m.undisturbed_ms for m in found]),
        seed=seed,
        conditions=conditions.describe(),
        two_runs=[m.two_runs() for m in found],
        disturbance=statistics.median(m.median_ms / m.undisturbed_ms for m in found),
        reference_ratio=session.measured[REFERENCE].undisturbed_ms / known[1]
        if same_machine and known
        else 1.0,
    )
    return dataclasses.replace(evaluated, measured_with=conditions_to_dict(conditions), space=space.digest)


def conditions_here(settings: Settings, imports: Sequence[str] = ()) -> Conditions:
    """Return what these settings are measured with on this machine."""
    with Worker(settings, imports) as worker:
        return worker.conditions


def model_spec(arch: Arch) -> NetSpec:
    """Return what a measuring process is given to load a model."""
    size = arch.resolution or DEFAULT_RESOLUTION
    return NetSpec("arch", str(arch), (arch.in_channels, size, size), arch.num_classes)


def compared(
    table: LatencyTable, space: SearchSpace, drawn: Sequence[tuple[int, ...]], measured: Sequence[float]
) -> list[tuple[str, float, float]]:
    """Return (block tokens, stages apart by "|"; predicted ms; measured ms) of each model."""
    archs = [space.arch(picks) for picks in drawn]
    return [
        (" | ".join(stage.ops for stage in arch.stages), table.predict(arch), ms)
        for arch, ms in zip(archs, measured, strict=True)
    ]


def check_count(name: str, value: object, least: int, most: int = 100_000) -> None:
    """Raise LatencyError unless ``value`` is a whole number from ``least`` to ``most``."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise LatencyError(f"{name} must be a whole number from {least} to {most}, not {value!r}")


def reference_of(table: LatencyTable) -> tuple[Arch, float] | None:
    """Return the reference model of a table and its undisturbed latency then; None if it has none.

    Older tables have medians, with which a low quantile cannot be compared.
    """
    found = table.method.get("reference")
    try:
        assert isinstance(found, Mapping)
        ms, arch = float(found["ms"]), Arch.parse(found["net"])
        return (arch, ms) if isinstance(arch, Arch) and 0 < ms < LONGEST_MS else None
    except (AssertionError, KeyError, TypeError, ValueError, ProxylessError):
        return None
