"""Could any device have these latencies? Figures in another unit than they claim are off by a thousand.

What is looked at is the work of all operations together, in multiply-accumulates a second. Phones, computers
and GPUs lie within four or five powers of ten, so a slow device's seconds look like a very fast one's
milliseconds: what is beyond every device is refused, what only the slowest or fastest reach is asked about.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping

from ..errors import LatencyError
from .import_files import UNITS
from .keys import OpKey, key_macs
from .table_parts import Entry

_MEDIAN_MS = (0.001, 10_000.0)  # of an operation: a launch alone takes longer; nobody waits hours for a net
#: (multiply-accumulates a second, ms an operation on top): whatever is slower is slower than any device, or
#: than all but microcontrollers. What is on top is the cost of a call, which dominates in little nets.
_SLOWEST, _SLOW = (5e6, 100.0), (3e8, 3.0)
#: Multiply-accumulates a second, for one picture a call and at most: a call of one picture keeps no large
#: processor busy, and no processor multiplies faster with all of it busy.
_FAST, _FASTEST = 2e12, 2e14


def doubt_about(entries: Mapping[OpKey, Entry], unit: str, batch_size: int, where: str) -> str | None:
    """Return why the unit of latencies is to be doubted; None if it is not.

    Args:
        entries: converted to milliseconds.
        unit: that they were given in: "ms", "s" or "us".
        batch_size: pictures a call; 0 if that is not known.
        where: names their source in messages.

    Raises:
        LatencyError: no device has such latencies.
    """
    middle = statistics.median(entry.ms for entry in entries.values())
    if not _MEDIAN_MS[0] <= middle <= _MEDIAN_MS[1]:
        raise LatencyError(
            f"{where}: its median operation takes {middle:.3g} ms; is the unit {unit!r} right?"
        )
    # A registered operation's work is not known.
    known = [(macs, entry.ms) for key, entry in entries.items() if (macs := key_macs(key)) is not None]
    macs = max(1, batch_size) * sum(m for m, _ in known)
    ms, count = sum(t for _, t in known), len(known)
    if not known or not macs:
        return None
    factors = {other: factor / UNITS[unit] for other, factor in UNITS.items()}
    words = {other: _word(macs, factor * ms, count, batch_size) for other, factor in factors.items()}
    word = words[unit]
    if word is None:
        return None
    others = " or ".join(other for other in UNITS if words[other] is None)
    hint = f"; in {others} they would be ordinary" if others else ""
    text = (
        f"together its operations do {macs / ms / 1e6:.2g} billion multiply-accumulates a second, which is "
        f"{word}: is the unit {unit!r} right{hint}?"
    )
    if word.startswith("beyond"):
        raise LatencyError(f"{where}: {text}")
    return text


def _word(macs: float, ms: float, count: int, batch_size: int) -> str | None:
    """Return how a device that does this work in this time compares with others; None if it is ordinary."""
    for (rate, extra_ms), word in (
        (_SLOWEST, "beyond the slowest device"),
        (_SLOW, "as slow as a microcontroller"),
    ):
        if ms > 1e3 * macs / rate + extra_ms * count:
            return word
    rate = 1e3 * macs / ms
    if rate > _FASTEST:
        return "beyond the fastest device"
    return "as fast as the very fastest devices" if rate > _FAST * max(1, batch_size) else None
