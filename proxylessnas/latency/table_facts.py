"""Everything about a latency table but its entries, as JSON values."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from typing import Any

from ..arch.arch import Arch
from ..arch.space import SearchSpace
from ..errors import LatencyError
from .metrics import Validation
from .table import LatencyTable
from .validate import DISTURBED, doubts


def facts_of(found: LatencyTable, space: SearchSpace | None) -> dict[str, Any]:
    """Return everything about a table but its entries, as JSON values.

    Args:
        found: the table.
        space: the search space it is looked at with; None if there is none.
    """
    known: dict[str, Any] = {
        "conditions": {**found.conditions.to_dict(), "versions": dict(found.conditions.versions)},
        "date": found.date,
        "source": found.source,
        "statistic": found.statistic,
        "disturbed": _disturbed(found),
        "entries": len(found.entries),
        "how": dict(Counter(entry.how for entry in found.entries.values())),
        "offset_ms": found.offset_ms,
        "correction": _correction(found),
        "digest": found.digest,
        "validation": None if found.validation is None else dict(found.validation),
        "trust": doubts(found),
        "space": None if space is None else _space_facts(found, space),
    }
    return known


def _disturbed(found: LatencyTable) -> str | None:
    """Return what an entry is where the measurement was disturbed; None if the table does not say."""
    what, models, noise = (found.method.get(name) for name in (DISTURBED, "noisy_nets", "noise"))
    if isinstance(noise, dict) and isinstance(what, str):
        text = f"{noise.get('disturbed')} of {noise.get('visits')} measurements, {what}"
        unknown = "" if noise.get("load_known") else "; what other programs used is not known"
        most = f"; at worst {noise['most']}" if noise.get("most") else ""
        return text + most + unknown
    if isinstance(models, int):  # a table made here by an earlier version
        every = found.method.get("nets", "all")
        what = "of disturbed measurements the 10 % quantile of the runs"
        return f"{what}; {models} of {every} models had no others"
    if isinstance(found.method.get("uncertainty_percent"), (int, float)):
        return (
            f"then {found.method.get('disturbance')} times as slow as undisturbed (median run over the 2 % "
            f"quantile); latencies are uncertain by {found.method['uncertainty_percent']:.2f} %"
        )
    return None


def _correction(found: LatencyTable) -> dict[str, Any]:
    """Return the line through the predictions, and whether that of the validation would help."""
    known: dict[str, Any] = {
        **dataclasses.asdict(found.correction),
        "adopted": found.method.get("correction"),
        "another_would_help": None,
    }
    with contextlib.suppress(LatencyError):  # an older validation, or another program's
        evaluated = Validation.from_dict(found.validation or {})
        known["another_would_help"] = evaluated.correction_helps
        known["judged_before_percent"] = evaluated.judged_before_percent
        known["judged_after_percent"] = evaluated.judged_after_percent
    return known


def _space_facts(found: LatencyTable, space: SearchSpace) -> dict[str, Any]:
    have, need, missing = found.coverage(space)
    known: dict[str, Any] = {
        "name": space.name,
        "resolution": space.resolution,
        "num_classes": space.num_classes,
        "nets": space.count,
        "coverage": {"have": have, "need": need, "missing": [str(key) for key in missing]},
    }
    if not missing:
        for name, value, arch in zip(
            ("fastest", "slowest"), found.range_ms(space), _extremes(found, space), strict=True
        ):
            blocks = " | ".join(stage.ops for stage in arch.stages)
            known[name] = {"ms": value, "blocks": blocks, "arch": str(arch)}
    return known


def _extremes(found: LatencyTable, space: SearchSpace) -> tuple[Arch, Arch]:
    """Return the fastest and the slowest model of a space, as predicted."""
    costs = found.costs(space)[0].tolist()
    choices = [
        [
            best((i for i, allowed in enumerate(mask) if allowed), key=row.__getitem__)
            for row, mask in zip(costs, space.mask, strict=True)
        ]
        for best in (min, max)
    ]
    return space.arch(choices[0], name="fastest"), space.arch(choices[1], name="slowest")
