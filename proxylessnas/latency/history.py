"""Where a latency table and its validation come from: under which conditions, and fitted on which nets."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..errors import ArchError, LatencyError
from ..space import SearchSpace
from .random_nets import Picks, random_nets
from .settings import Conditions
from .table_json import read_conditions

if TYPE_CHECKING:
    from .table import LatencyTable

#: Names in a table's method: nets that it was fitted on, beyond those that "nets" and "seed" tell (a list of
#: picks each); what its device calls itself, where the user named it; what became of disturbed visits.
FITTED_ON, OWN_NAME, DISTURBED = "fitted_on", "device_calls_itself", "disturbed"

_MAY_DIFFER = ("Python", "torch")  # versions, for a runtime that is neither


def elsewhere(table: LatencyTable, now: Conditions) -> list[str]:
    """Return in words how conditions differ from a table's, but for versions that its runtime does not use.

    The allocator may differ as well: measuring processes set theirs.
    """
    from .session import conditions_differ

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
    """Return in words whether a table's validation was made on another machine or on nets of another space.

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
                f"it was compared with nets measured under other conditions: {'; '.join(differences)}"
            )
    if space and table.space is not None and space != table.space.digest:
        found.append(f"it was compared with nets of another space than its own, {table.space.name!r}")
    return found


def fitted_on(table: LatencyTable, space: SearchSpace) -> list[Picks]:
    """Return the nets of a space that a table was fitted on, its correction included.

    None if it was made for another space.

    Raises:
        LatencyError: what the table's method says about them is damaged.
    """
    if table.space is None or table.space.digest != space.digest:
        return []
    nets, seed, more = (table.method.get(name) for name in ("nets", "seed", FITTED_ON))
    found: list[Picks] = []
    if isinstance(nets, int) and isinstance(seed, int) and 0 < nets < 100_000:
        found += random_nets(space, nets, seed=seed)
    for picks in more if isinstance(more, list) else []:
        try:
            space.arch(picks)
        except (ArchError, TypeError) as e:
            raise LatencyError(f"the table's method is damaged: {FITTED_ON} holds no such nets") from e
        found.append(tuple(picks))
    return found
