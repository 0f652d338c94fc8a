"""Check decoded JSON field by field, noting every problem instead of stopping at the first."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any


class Fields:
    """Takes fields out of one JSON object, noting every problem and carrying on."""

    def __init__(self, problems: list[str], where: str, data: dict[str, Any]) -> None:
        self.problems, self.where, self.data = problems, where, data

    def take(self, key: str, ok: Callable[[Any], bool], wanted: str) -> Any:
        """Return the value of ``key``, or None after noting that it is not ``wanted``."""
        if key not in self.data:
            return None  # a missing key was noted with all the others
        value = self.data[key]
        if ok(value):
            return value
        self.problems.append(f"{self.where}: {key} is {show(value)}; wanted {wanted}")
        return None


def check_keys(
    problems: list[str],
    where: str,
    data: dict[str, Any],
    *,
    required: set[str] | frozenset[str],
    optional: set[str] | frozenset[str],
) -> None:
    """Note the keys that are missing from an object and (the first ten of) those it should not have."""
    problems.extend(f"{where}: {key} is missing" for key in sorted(required - data.keys()))
    unknown = [key for key in data if key not in required and key not in optional]
    problems.extend(f"{where}: unknown key {show(key)}" for key in unknown[:10])


def is_int(value: object, low: int, high: int) -> bool:
    """Tell whether a value is a whole number from ``low`` to ``high``; True and 1.0 are none."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def is_number(value: object, low: float, high: float) -> bool:
    """Tell whether a value is a finite number from ``low`` to ``high``."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    # Compared first: float() of a huge int would overflow.
    return low <= value <= high and math.isfinite(value)


def is_triple(value: object, low: float, high: float) -> bool:
    """Tell whether a value is a list of three numbers from ``low`` to ``high``."""
    return isinstance(value, list) and len(value) == 3 and all(is_number(v, low, high) for v in value)


def is_hex(value: object, digits: int) -> bool:
    """Tell whether a value is a text of so many lower-case hexadecimal digits."""
    return isinstance(value, str) and re.fullmatch(rf"[0-9a-f]{{{digits}}}", value) is not None


def is_text(value: object, longest: int) -> bool:
    """Tell whether a value is a printable text of one line that is not blank."""
    return (
        isinstance(value, str) and 0 < len(value) <= longest and value.isprintable() and bool(value.strip())
    )


def show(value: object) -> str:
    """Return a short, printable form of any JSON value."""
    if isinstance(value, dict):
        return f"an object of {len(value)}"
    if isinstance(value, list):
        return f"a list of {len(value)}" if len(value) > 3 else f"[{', '.join(map(_show_flat, value))}]"
    return _show_flat(value)


def _show_flat(value: object) -> str:
    if isinstance(value, (dict, list)):
        return "..."
    if isinstance(value, int) and abs(value) > 10**40:
        return "a huge number"  # Python refuses to print integers of thousands of digits
    text = (
        json.dumps(value) if isinstance(value, (str, bool, int, float, type(None))) else type(value).__name__
    )
    return text if len(text) <= 80 else text[:77] + "..."
