"""Checks single values: fields of decoded JSON, ranges of numbers, and what a field of a config may hold."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from ..errors import shown


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


def is_int(value: object, low: int, high: float = math.inf) -> TypeGuard[int]:
    """Tell whether a value is a whole number from ``low`` to ``high``; True and 1.0 are none."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def is_number(value: object, low: float, high: float) -> TypeGuard[float]:
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


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``; the ends belong to it unless they are open. ``or_zero`` adds 0."""

    low: float
    high: float
    open_low: bool = False
    open_high: bool = False
    or_zero: bool = False

    def __contains__(self, value: object) -> bool:
        if self.or_zero and is_number(value, 0, 0):
            return True
        ends = (self.open_low and value == self.low) or (self.open_high and value == self.high)
        return is_number(value, self.low, self.high) and not ends

    def __str__(self) -> str:
        if not self.open_low and not self.open_high:
            return f"from {self.low:.10g} to {self.high:.10g}"
        low = "above" if self.open_low else "at least"
        return f"{low} {self.low:.10g} and {'below' if self.open_high else 'at most'} {self.high:.10g}"


#: What a field may hold: a range of numbers, the choices of a text, what returns them, or all of its type.
Allowed = Range | tuple[str, ...] | Callable[[], Iterable[str]] | None


@dataclass(frozen=True)
class Option:
    """A field of a :class:`Config`: what it may hold and what that means.

    Attributes:
        name: of the field.
        type: bool, int, float, str, object for anything, or, for a table within, another class of config.
        count: numbers of a tuple; 0 for a single value, -1 for a tuple of any number of them.
        optional: whether it may be None.
        default: the field's.
        given: the range of a number or the choices of a text.
        help: a line about it.
        also: what people call it elsewhere, for the hint at an unknown name.
        group: the title it stands under.
        metavar: what stands for its value in help texts; "" for what fits its type.
    """

    name: str
    type: Any
    count: int
    optional: bool
    default: Any
    given: Allowed
    help: str
    also: tuple[str, ...]
    group: str
    metavar: str

    @property
    def allowed(self) -> Range | tuple[str, ...] | None:
        """The range of a number or the choices of a text."""
        return tuple(self.given()) if callable(self.given) else self.given

    @property
    def wanted(self) -> str:
        """What it must be, for messages: "a whole number from 1 to 4096"."""
        allowed = self.allowed
        if self.count > 0:
            return f"{self.count} numbers, each {allowed}"
        one = f"a {self.type.__name__}"
        if isinstance(allowed, Range):
            zero = "0 or " if allowed.or_zero else ""
            one = f"{zero}a {'whole ' if self.type is int else ''}number {allowed}"
        elif allowed:
            *known, last = (f'"{choice}"' for choice in allowed)
            one = f"{', '.join(known)} or {last}"
        elif self.type is bool:
            one = "true or false"
        if self.count < 0:
            return (
                f"numbers such as 1,2, each {allowed}" if isinstance(allowed, Range) else f"a list of {one}"
            )
        return one

    def check(self, value: object) -> tuple[Any, str]:
        """Return a value in the type of the field, and what is wrong with it, or "".

        A whole number also passes for a real one, a list for a tuple.
        """
        if value is None and self.optional:
            return None, ""
        if self.count:
            values = value if isinstance(value, Sequence) and not isinstance(value, str) else (None,)
            found = [self._checked(v) for v in values]
            if (len(values) == self.count or self.count < 0) and all(ok for _, ok in found):
                return tuple(v for v, _ in found), ""
        else:
            checked, ok = self._checked(value)
            if ok:
                return checked, ""
        return value, f"{self.name} must be {self.wanted}, not {shown(value)}"

    def _checked(self, value: object) -> tuple[Any, bool]:
        allowed = self.allowed
        if isinstance(allowed, Range):
            ok = value in allowed and (self.type is float or isinstance(value, int))
            return (self.type(value) if ok else value), ok
        return value, isinstance(value, self.type) and (allowed is None or value in allowed)

    def none_for(self, value: object) -> Any:
        """Return None for the word "none", if it may be None."""
        return None if self.optional and isinstance(value, str) and value.lower() == "none" else value

    def parse(self, word: str) -> Any:
        """Return what a word of a command line means; the word itself if it cannot mean any value."""
        if self.none_for(word) is None:
            return None
        try:
            if self.count:
                inside = word.strip("[]()")
                return tuple(
                    map(self.type, inside.split(",") if self.count > 0 else re.findall(r"[^\s,]+", inside))
                )
            if self.type in (int, float):
                return self.type(word)
        except ValueError:
            return word
        if self.type is bool:
            return {"true": True, "false": False}.get(word.lower(), word)
        return word.strip("\"'") if self.type is str else word
