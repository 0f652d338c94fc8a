"""Make a latency table of what a kit measured on another device."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from .agreement import judge
from .fitting import fit_entries
from .history import DISTURBED, FITTED_ON, OWN_NAME
from .keys import OpKey, arch_keys
from .kit_results import KitResults
from .table import Entry, LatencyTable
from .table_json import conditions_to_dict
from .timing import quantile
from .validation import compared

#: Nets from which on entries are fitted to them, and from which on the fit is judged.
LEAST_TO_FIT, LEAST_TO_JUDGE = 8, 16
_PARTS = 8
_OWN_TIMES = "each operation alone, by a kit"

Picks = tuple[int, ...]


def kit_table(results: KitResults) -> LatencyTable:
    """Fit a table to a kit's operations and whole nets, and judge it on the same nets, an eighth at a time.

    The nets are split into eight parts; those of each part are predicted by a table that was fitted to the
    other seven, so the validation is of nets that the fit did not see. The table itself is fitted to all.

    Disturbed visits count only where a file has no others; the method and the validation say how many there
    were.

    With fewer than 8 nets, an entry is the operation's own time: such sums are not whole nets' latencies, and
    the table stays unvalidated, as it does with fewer than 16.
    """
    space, nets = results.space, results.nets
    own = {
        key: Entry(s.median_ms, quantile(s.ms, 0.1), quantile(s.ms, 0.9), len(s.ms), "imported")
        for key, s in results.ops_ms.items()
    }
    if len(nets) < LEAST_TO_FIT:
        method = {"own_times": _OWN_TIMES, "nets": 0, **_method(results)}
        return LatencyTable(results.conditions, own, space=space, method=method, date=results.date)
    table = _fitted(results, own, nets)
    if len(nets) < LEAST_TO_JUDGE:
        return table
    pairs: list[tuple[str, float, float]] = [("", 0.0, 0.0)] * len(nets)
    for part in range(_PARTS):
        others = _fitted(results, own, [net for i, net in enumerate(nets) if i % _PARTS != part])
        picks, ms = zip(*nets[part::_PARTS], strict=True)
        pairs[part::_PARTS] = compared(others, space, picks, ms)
    found = judge(
        pairs,
        conditions=results.conditions.describe(),
        date=results.date,
        noisy_nets=results.noise.nets,
    )
    where = conditions_to_dict(results.conditions)
    return table.with_validation(dataclasses.replace(found, measured_with=where, space=space.digest))


def _method(results: KitResults) -> dict[str, Any]:
    """Return what disturbed the measurement and what the device calls itself, for the record."""
    return {
        DISTURBED: "left out where others were not",
        "noise": dataclasses.asdict(results.noise),
        **({OWN_NAME: results.own_name} if results.own_name else {}),
    }


def _fitted(
    results: KitResults, own: dict[OpKey, Entry], nets: Sequence[tuple[Picks, float]]
) -> LatencyTable:
    """Return a table that is fitted to some of the kit's nets."""
    measured = [(arch_keys(results.space.arch(picks)), ms) for picks, ms in nets]
    fit = fit_entries({key: entry.ms for key, entry in own.items()}, measured)
    return LatencyTable(
        results.conditions,
        {key: _scaled(entry, fit.costs_ms[key]) for key, entry in own.items()},
        space=results.space,
        offset_ms=fit.offset_ms,
        method={
            "own_times": _OWN_TIMES,
            "nets": len(nets),
            "fit": {
                "left_out_rmspe_percent": fit.loo_percent,
                "strength": fit.strength,
                "terms": list(fit.terms),
                "scale": fit.scale,
                "outliers": fit.outliers,
            },
            FITTED_ON: [list(picks) for picks, _ in nets],
            **_method(results),
        },
        date=results.date,
    )


def _scaled(entry: Entry, ms: float) -> Entry:
    """Return an entry of ``ms`` with the same relative spread."""
    assert entry.p10_ms is not None
    assert entry.p90_ms is not None
    share = ms / entry.ms
    return Entry(ms, share * entry.p10_ms, share * entry.p90_ms, entry.runs, "fitted")
