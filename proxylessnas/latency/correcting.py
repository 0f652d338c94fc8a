"""Adopt the line that a validation found through a table's predictions.

A validation fits a line on half of its nets and judges it on the other half. Whoever adopts it has fitted the
table on the first half, so only the second may still say how well the table predicts: the validation of the
corrected table is that of the second half, with the corrected predictions, and the nets of the first are
named in the table's method, so that no later validation draws them.
"""

from __future__ import annotations

import dataclasses
import statistics
from typing import TYPE_CHECKING, Any

from ..errors import LatencyError
from .agreement import LEAST_NETS, OFF, Validation, halves, judge, kendall_tau
from .history import FITTED_ON, misplaced
from .random_nets import Picks
from .table_parts import Correction

if TYPE_CHECKING:
    from ..space import SearchSpace
    from .table import LatencyTable

_SAME_PERCENT = 1e-3


def adopt_correction(table: LatencyTable, validation: Validation | None = None) -> LatencyTable:
    """Return a table with the line that a validation of it found, and with a validation of the result.

    No net is measured: the new validation is that of the half of the nets on which the line was not fitted,
    with the corrected predictions. Of 60 nets 30 are left, as many as a search wants.

    Args:
        table: as it was when it was validated.
        validation: by default the table's own.

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
            "the correction does not help: on the nets that it was not fitted on, the mean error is "
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
    fitted, judged = halves(len(found.pairs), found.seed)
    if len(judged) < LEAST_NETS:
        raise LatencyError(f"{len(found.pairs)} nets are too few to find a correction and to judge it")
    errors = [abs(found.pairs[i][1] / found.pairs[i][2] - 1) for i in judged]
    if abs(100 * statistics.fmean(errors) - found.judged_before_percent) > _SAME_PERCENT:
        raise LatencyError("the validation does not say on which of its nets the correction was fitted")
    before = table.correction
    line = Correction(found.scale * before.scale, found.scale * before.offset_ms + found.offset_ms)
    space = table.space
    method: dict[str, Any] = {
        **table.method,
        FITTED_ON: [*_listed(table), *([*_picks(found.pairs[i][0], space)] for i in fitted if space)],
        "correction": {
            "fitted_on_nets": len(fitted),
            "judged_on_nets": len(judged),
            "mape_before_percent": found.judged_before_percent,
            "mape_after_percent": found.judged_after_percent,
            "date": found.date,
        },
    }
    corrected = dataclasses.replace(table, correction=line, method=method, validation=None)
    return corrected.with_validation(_of(found, sorted(judged)))


def _of(found: Validation, judged: list[int]) -> Validation:
    """Return what a validation would have been of these of its nets, with its line."""
    pairs = [
        (text, found.scale * predicted + found.offset_ms, measured)
        for text, predicted, measured in (found.pairs[i] for i in judged)
    ]
    again = judge(
        pairs,
        seed=found.seed,
        conditions=found.conditions,
        noisy_nets=min(found.noisy_nets, len(pairs)),  # which ones is not known
        date=found.date,
        reference_ratio=found.reference_ratio,
        disturbance=found.disturbance,
    )
    uniform = [pair for i, pair in zip(judged, pairs, strict=True) if i % 2 == 0]
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


def _picks(text: str, space: SearchSpace) -> Picks:
    """Return the columns that the block tokens of a validation stand for."""
    try:
        return tuple(space.columns.index(token) for token in text.replace("|", " ").split())
    except ValueError as e:
        raise LatencyError(f"the validation names a net that is not one of the table's space: {text}") from e
