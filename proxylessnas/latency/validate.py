"""Validate a latency table on whole models that it was not fitted on, and say how far to trust it.

A validation also fits a line through the predictions, on half of its models, and evaluates it on the other
half. A table that adopts the line (:func:`adopt_correction`) has then been fitted on the first half, so its
validation is that of the second, and the models of the first are named in the table's method, so that no
later validation draws them.
"""

from __future__ import annotations

import dataclasses
import statistics
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from ..arch.arch import Arch
from ..arch.op_key import DEFAULT_RESOLUTION
from ..arch.space import SearchSpace
from ..errors import ArchError, LatencyError, ProxylessError, shown
from ..runtimes.base import ModelSpec
from ..runtimes.settings import Conditions, Settings
from ..utils.checks import is_int, is_number
from .metrics import (
    LEAST,
    LEAST_JUDGED,
    LEAST_MODELS,
    MOST_MAPE_PERCENT,
    NO_ORDER,
    OFF,
    Validation,
    evaluate,
    halves,
    kendall_tau,
    wanted_tau,
)
from .random_models import Picks, random_models
from .session import REFERENCE, Item, MeasurementSession, Progress, conditions_differ
from .table import Correction, LatencyTable
from .table_io import LONGEST_MS, conditions_to_dict, read_conditions
from .worker import Worker

#: Seconds a model may take, over all windows, and uncertainty that is wanted.
_SECONDS_EACH, _LEAST_SECONDS = 3.0, 30.0
LIMIT = 0.004
#: Names in a table's method: models that it was fitted on, beyond those that "nets" and "seed" tell (a list
#: of picks each); what its device calls itself, where the user named it; what became of what was disturbed.
FITTED_ON, OWN_NAME, DISTURBED = "fitted_on", "device_calls_itself", "disturbed"
_MAY_DIFFER = ("Python", "torch")  # versions, for a runtime that is neither
_SAME_PERCENT = 1e-3
_LARGER = {"tiny": "small", "small": "imagenet", "cpu26-small": "cpu26"}  # spaces to advise


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
    """Measure random models that the table was not fitted on, with its own settings here, and compare.

    They are measured in one interleaved session (:mod:`.session`), with the table's reference model among
    them.

    Args:
        table: made on this machine.
        space: of the models; None takes the one that the table was made for.
        nets: how many; 30 are enough to tell a good table from a bad one.
        seed: of the models.
        force: measure even if this machine or the runtime's version differs from the table's. The result is
            then no reason to trust the table elsewhere.
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
    check_count("nets", nets, LEAST_MODELS)
    table.costs(space)  # raises if it does not cover the space
    drawn = random_models(space, nets, seed=seed, avoid=fitted_on(table, space))
    settings = table.conditions.settings
    archs = [space.arch(choices) for choices in drawn]
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
    ratio = 1.0
    if known is not None and not differences:  # another machine has a speed of its own
        ratio = session.measured[REFERENCE].undisturbed_ms / known[1]
    here = session.conditions(settings)
    return evaluated(table, space, drawn, session, here, seed=seed, reference_ratio=ratio)


def evaluated(
    table: LatencyTable,
    space: SearchSpace,
    drawn: Sequence[Picks],
    session: MeasurementSession,
    conditions: Conditions,
    *,
    seed: int,
    reference_ratio: float = 1.0,
) -> Validation:
    """Compare a table with the models that a session measured as "check 0", "check 1" and so on."""
    found = [session.measured[f"check {i}"] for i in range(len(drawn))]
    result = evaluate(
        compared(table, space, drawn, [m.undisturbed_ms for m in found]),
        seed=seed,
        conditions=conditions.describe(),
        two_runs=[m.two_runs() for m in found],
        disturbance=statistics.median(m.median_ms / m.undisturbed_ms for m in found),
        reference_ratio=reference_ratio,
    )
    return of_conditions(result, conditions, space)


def of_conditions(result: Validation, conditions: Conditions, space: SearchSpace) -> Validation:
    """Return a validation that says under which conditions and on which space's models it was made."""
    return dataclasses.replace(result, measured_with=conditions_to_dict(conditions), space=space.digest)


def conditions_here(settings: Settings, imports: Sequence[str] = ()) -> Conditions:
    """Return what these settings are measured with on this machine."""
    with Worker(settings, imports) as worker:
        return worker.conditions


def model_spec(arch: Arch) -> ModelSpec:
    """Return what a measuring process is given to load a model."""
    size = arch.resolution or DEFAULT_RESOLUTION
    return ModelSpec("arch", str(arch), (arch.in_channels, size, size), arch.num_classes)


def compared(
    table: LatencyTable, space: SearchSpace, drawn: Sequence[tuple[int, ...]], measured: Sequence[float]
) -> list[tuple[str, float, float]]:
    """Return (block tokens, stages apart by "|"; predicted ms; measured ms) of each model."""
    archs = [space.arch(choices) for choices in drawn]
    return [
        (" | ".join(stage.ops for stage in arch.stages), table.predict(arch), ms)
        for arch, ms in zip(archs, measured, strict=True)
    ]


def check_count(name: str, value: object, least: int, most: int = 100_000) -> None:
    """Raise LatencyError unless ``value`` is a whole number from ``least`` to ``most``."""
    if not is_int(value, least, most):
        raise LatencyError(f"{name} must be a whole number from {least} to {most}, not {shown(value)}")


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


def adopt_correction(table: LatencyTable, validation: Validation | None = None) -> LatencyTable:
    """Return a table with the line that a validation of it found, and with a validation of the result.

    No model is measured: the new validation is that of the half of the models on which the line was not
    fitted. Of 60 models 30 are left, as many as a search wants.

    Args:
        table: as it was when it was validated.
        validation: None takes the table's own.

    Raises:
        LatencyError: the line does not help, or the validation is not one to correct the table by: of another
            machine or space, when this one was slower, damaged, or there is none.
    """
    if validation is None:
        if table.validation is None:
            raise LatencyError("the table was never validated, so there is no correction to adopt")
        validation = Validation.from_dict(table.validation)
    found = validation
    if not found.correction_helps:
        raise LatencyError(
            "the correction does not help: on the models that it was not fitted on, the mean error is "
            f"{found.judged_after_percent:.1f} % with it and {found.judged_before_percent:.1f} % without; it "
            "must be lower by a tenth and by 0.3 points"
        )
    wrong = misplaced(table.with_validation(found))
    if wrong:
        raise LatencyError(f"the validation is not one to correct this table by: {wrong[0]}")
    if max(found.reference_ratio, 1 / found.reference_ratio) > 1 + OFF:
        raise LatencyError(
            f"the reference model took {found.reference_ratio:.2f} times as long as when the table was made, "
            "and a correction would make that the rule: validate it again when the machine is less disturbed"
        )
    fitted, evaluated = halves(len(found.pairs), found.seed)
    if len(evaluated) < LEAST_MODELS:
        raise LatencyError(f"{len(found.pairs)} models are too few to find a correction and to evaluate it")
    errors = [abs(found.pairs[i][1] / found.pairs[i][2] - 1) for i in evaluated]
    if abs(100 * statistics.fmean(errors) - found.judged_before_percent) > _SAME_PERCENT:
        raise LatencyError("the validation does not say on which of its models the correction was fitted")
    before = table.correction
    line = Correction(found.scale * before.scale, found.scale * before.offset_ms + found.offset_ms)
    space = table.space
    method: dict[str, Any] = {
        **table.method,
        FITTED_ON: [*_listed(table), *([*_choices(found.pairs[i][0], space)] for i in fitted if space)],
        "correction": {
            "fitted_on_nets": len(fitted),
            "judged_on_nets": len(evaluated),
            "mape_before_percent": found.judged_before_percent,
            "mape_after_percent": found.judged_after_percent,
            "date": found.date,
        },
    }
    corrected = dataclasses.replace(table, correction=line, method=method, validation=None)
    return corrected.with_validation(_of(found, sorted(evaluated)))


def _of(found: Validation, evaluated: list[int]) -> Validation:
    """Return what a validation would have been of these of its models, with its line."""
    pairs = [
        (text, found.scale * predicted + found.offset_ms, measured)
        for text, predicted, measured in (found.pairs[i] for i in evaluated)
    ]
    again = evaluate(
        pairs,
        seed=found.seed,
        conditions=found.conditions,
        noisy_nets=min(found.noisy_nets, len(pairs)),  # which ones is not known
        date=found.date,
        reference_ratio=found.reference_ratio,
        disturbance=found.disturbance,
    )
    uniform = [pair for i, pair in zip(evaluated, pairs, strict=True) if i % 2 == 0]
    tau = kendall_tau([a for _, a, _ in uniform], [b for _, _, b in uniform])
    return dataclasses.replace(
        again,
        uniform_kendall_tau=tau,
        measured_with=found.measured_with,
        space=found.space,
        ceiling_tau=found.ceiling_tau,  # of all the nets: what two runs of each one gave is not kept
        ceiling_percent=found.ceiling_percent,
    )


def _listed(table: LatencyTable) -> list[Any]:
    listed = table.method.get(FITTED_ON, [])
    return listed if isinstance(listed, list) else []


def _choices(text: str, space: SearchSpace) -> Picks:
    """Return the columns that the block tokens of a validation stand for."""
    try:
        return tuple(space.candidate_ops.index(token) for token in text.replace("|", " ").split())
    except ValueError as e:
        raise LatencyError(
            f"the validation names a model that is not one of the table's space: {text}"
        ) from e


def elsewhere(table: LatencyTable, now: Conditions) -> list[str]:
    """Return in words how conditions differ from a table's, but for versions that its runtime does not use.

    The allocator may differ as well: measuring processes set theirs.
    """
    before, own_name = table.conditions, table.method.get(OWN_NAME)
    names = {before.device_name, own_name if isinstance(own_name, str) else before.device_name}
    return conditions_differ(
        dataclasses.replace(
            before,
            device_name=now.device_name if now.device_name in names else before.device_name,
            versions=_that_matter(before),
            allocator=now.allocator,
        ),
        dataclasses.replace(now, versions=_that_matter(now)),
    )


def _that_matter(conditions: Conditions) -> dict[str, str]:
    runtime = conditions.runtime
    return {
        name: version
        for name, version in conditions.versions.items()
        if name not in _MAY_DIFFER or runtime.startswith(name)
    }


def misplaced(table: LatencyTable) -> list[str]:
    """Return in words whether a table's validation was made on another machine or on models of another space.

    Older tables do not say what theirs was made with.
    """
    validation: Mapping[str, Any] = table.validation or {}
    found = []
    where, space = validation.get("measured_with"), validation.get("space")
    if where is not None:
        problems: list[str] = []
        now = read_conditions(problems, where)
        differences = problems if now is None else elsewhere(table, now)
        if differences:
            found.append(
                f"it was compared with models measured under other conditions: {'; '.join(differences)}"
            )
    if space and table.space is not None and space != table.space.digest:
        found.append(f"it was compared with models of another space than its own, {table.space.name!r}")
    return found


def fitted_on(table: LatencyTable, space: SearchSpace) -> list[Picks]:
    """Return the models that a table and its correction were fitted on; none if its space is another.

    Raises:
        LatencyError: what the table's method says about them is damaged.
    """
    if table.space is None or table.space.digest != space.digest:
        return []
    nets, seed, more = (table.method.get(name) for name in ("nets", "seed", FITTED_ON))
    found: list[Picks] = []
    if isinstance(nets, int) and isinstance(seed, int) and 0 < nets < 100_000:
        found += random_models(space, nets, seed=seed)
    for choices in more if isinstance(more, list) else []:
        try:
            space.arch(choices)
        except (ArchError, TypeError) as e:
            raise LatencyError(f"the table's method is damaged: {FITTED_ON} holds no such models") from e
        found.append(tuple(choices))
    return found


def doubts(table: LatencyTable) -> list[str]:
    """Return reasons not to search with a table; empty if there are none."""
    guessed = sum(entry.how == "predicted" for entry in table.entries.values())
    found = [f"{guessed} of its operations were guessed, not measured"] if guessed else []
    found += [str(table.method["doubt"])] if "doubt" in table.method else []
    return [*_disagreements(table), *found]


def require_trust(table: LatencyTable, force: bool = False) -> None:
    """Refuse a table that :func:`doubts` finds fault with; ``force`` makes it a warning.

    Raises:
        LatencyError: it is not to be trusted.
    """
    problems = doubts(table)
    if not problems:
        return
    message = (
        f"this latency table ({table.conditions.describe()}) is not to be trusted: {'; '.join(problems)}"
    )
    if not force:
        raise LatencyError(message)
    warnings.warn(message, stacklevel=2)


def _disagreements(table: LatencyTable) -> list[str]:
    validation = table.validation
    if validation is None:
        return ["it was never compared with measured models (`proxylessnas latency validate`)"]
    tau, mape, nets = (validation.get(key) for key in ("kendall_tau", "mape_percent", "nets"))
    problems = []
    if not is_int(nets, LEAST_JUDGED, 10**9):
        problems.append(
            f"it was compared with {_rounded(nets)} models only, wanted {LEAST_JUDGED} (`proxylessnas "
            "latency validate`)"
        )
    ceiling = validation.get("ceiling_tau")
    ceiling = ceiling if is_number(ceiling, -1.001, 1.001) else None
    if ceiling is not None and ceiling < NO_ORDER:
        larger = _LARGER.get(table.space.name.partition("@")[0]) if table.space is not None else None
        problems.append(
            "its models differ by less than two runs of one of them, which put them in unlike orders "
            f"(Kendall's tau {ceiling:.2f}): this space has no latency to choose by here"
            + (f"; a larger one: --space {larger}" if larger else "")
        )
    elif not is_number(tau, wanted_tau(ceiling, LEAST), 1.001):  # rounding may leave it a little above 1
        limited = "" if ceiling is None else f" (two runs of the same models: {ceiling:.3g})"
        problems.append(
            f"it orders models badly: Kendall's tau is {_rounded(tau)}, wanted "
            f"{wanted_tau(ceiling, LEAST):.2g} or more{limited}"
        )
    if not is_number(mape, 0, MOST_MAPE_PERCENT):
        wanted = f"wanted {MOST_MAPE_PERCENT:g} % or less"
        problems.append(f"it is off by {_rounded(mape)} % of the latency on average, {wanted}")
    return problems + misplaced(table)


def _rounded(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, (int, float)) else "unknown"
