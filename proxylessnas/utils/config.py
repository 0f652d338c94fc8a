"""Check decoded JSON field by field, noting every problem instead of stopping at the first."""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

from ..errors import DataError, ProxylessError, missing_extra
from .files import read_text

# DOC proxylessnas.toml_text: """TOML and the ``name=value`` words of a command line: read, parsed and written, whatever they describe."""

# DOC proxylessnas.train.recipe_base: """What the recipes of trainings and of searches have in common: values by name, in and out."""


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


MAX_BYTES = 1_000_000


def read_toml(
    source: str | os.PathLike[str], what: str, *, error: type[ProxylessError] = DataError
) -> tuple[str, dict[str, Any]]:
    """Return where a table was read from, for messages, and the table.

    Args:
        source: a path, or the text itself. A string of one line that ends in ``.toml`` is a path.
        what: it is to describe: "recipe".
        error: class of the errors.

    Raises:
        error: the file cannot be read, is too large, or is not TOML; the message names it.
        MissingExtraError: Python is 3.10 and tomli is not installed.
    """
    if isinstance(source, str) and not ("\n" not in source and source.lower().endswith(".toml")):
        return what, _parsed(source, what, what, error)
    where = os.fspath(source)
    return where, _parsed(read_text(source, f"a {what}", error, MAX_BYTES), where, what, error)


def _parsed(text: str, where: str, what: str, error: type[ProxylessError]) -> dict[str, Any]:
    name = "tomllib" if sys.version_info >= (3, 11) else "tomli"
    try:
        library = importlib.import_module(name)
    except ModuleNotFoundError as e:
        raise missing_extra(name, f"reading a {what} on Python 3.10") from e
    try:
        table: dict[str, Any] = library.loads(text)
    except (ValueError, RecursionError) as e:  # TOMLDecodeError, or a number of over 4,300 digits
        raise error(f"{where}: not valid TOML ({e})") from e
    return table


def toml_value(value: Any) -> str:
    """Return a value as TOML: a plain string, a number, true or false, or a list of them."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return f"[{', '.join(map(toml_value, value))}]"
    return f'"{value}"' if isinstance(value, str) else repr(value)


def absent(kind: str, value: Any) -> Any:
    """Return None for the word "none", if a value of this kind (``"int | None"``) can be absent."""
    return None if kind.endswith("None") and isinstance(value, str) and value.lower() == "none" else value


def split_word(text: str) -> tuple[str, str]:
    """Return name and word of ``name=word``, the name with ``_`` for ``-``; ("", ...) if it is none."""
    name, equals, word = (part.strip() for part in text.partition("="))
    return (name.replace("-", "_") if equals else ""), word


def value_of_word(word: str, kind: str) -> Any:
    """Return what a word means for a kind of value, an annotation; the word itself if it cannot mean any."""
    if kind.endswith("| None") and word.lower() == "none":
        return None
    if kind == "str":
        return word.strip("\"'")
    if kind == "bool":
        return {"true": True, "false": False}.get(word.lower(), word)
    number = int if kind.startswith("int") else float
    try:
        if kind.startswith("tuple"):
            return tuple(float(part) for part in word.strip("[]()").split(","))
        return number(word)
    except ValueError:
        return word


R = TypeVar("R", bound="RecipeBase")


class Rules(NamedTuple):
    """What the values of a kind of recipe keep.

    Attributes:
        check: returns all values in their proper types, and what is wrong with each of them.
        misfits: returns what does not fit together in a recipe whose values are each in order.
        completed: returns all values, the given ones over those of a recipe, and what is wrong with them.
    """

    check: Callable[[Mapping[str, Any]], tuple[dict[str, Any], list[str]]]
    misfits: Callable[[Any], list[str]]
    completed: Callable[[Mapping[str, Any], Any], tuple[dict[str, Any], list[str]]]


class RecipeBase:
    """A frozen dataclass of values that keep rules; beside its module is ``presets``.

    Attributes:
        what: what messages call it.
        beside: values that change nothing in what comes out; those of a table within as ``table.name``.
        rules: set once the functions are there that come after the class.
    """

    what: ClassVar[str] = "recipe"
    beside: ClassVar[frozenset[str]] = frozenset()
    rules: ClassVar[Rules]

    @classmethod
    def _beside(cls, module: str) -> Any:
        # Not at the top: both make recipes.
        return importlib.import_module(f"..{module}", cls.__module__)

    def __post_init__(self) -> None:
        values, found = self.rules.check({f.name: getattr(self, f.name) for f in dataclasses.fields(self)})  # type: ignore[arg-type]
        if not found:
            for name, value in values.items():
                object.__setattr__(self, name, value)
            found = self.rules.misfits(self)
        if found:
            raise problems_error(self.what, found)

    def replace(self: R, **changes: Any) -> R:
        """Return a recipe with some values changed.

        Raises:
            DataError: there is no such value, or the new ones are wrong; the message lists every problem.
        """
        return type(self).from_dict(changes, base=self)

    def to_dict(self) -> dict[str, Any]:
        """Return the values as plain JSON types, tables last; :meth:`from_dict` reads them back."""
        values = {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}  # type: ignore[arg-type]
        return dict(sorted(values.items(), key=lambda item: isinstance(item[1], dict)))

    @classmethod
    def from_dict(
        cls: type[R], mapping: Mapping[str, Any], where: str | None = None, *, base: R | None = None
    ) -> R:
        """Return the recipe that a mapping describes.

        Args:
            mapping: values by name, as :meth:`replace` takes them; lists pass for tuples.
            where: what the mapping was read from, for messages.
            base: gives the values that the mapping lacks; None stands for the defaults.

        Raises:
            DataError: a name is unknown, a value is wrong, or values do not fit together; the message lists
                every problem.
        """
        where = where or cls.what
        if not isinstance(mapping, Mapping):
            raise DataError(f"{where}: must be a table of values, not {type(mapping).__name__}")
        return cls.complete(mapping, cls() if base is None else base, [], where)

    @classmethod
    def complete(
        cls: type[R], given: Mapping[str, Any], base: R, found: Sequence[str], where: str | None = None
    ) -> R:
        """Return a recipe of the given values over those of ``base``.

        Raises:
            DataError: there is a problem, or was one before: ``found``. ``where`` is for the message.
        """
        values, wrong = cls.rules.completed(given, base)
        if found or wrong:
            raise problems_error(where or cls.what, [*found, *wrong])
        return cls(**values)

    @classmethod
    def from_toml(cls: type[R], source: str | os.PathLike[str], *, base: R | None = None) -> R:
        """Return the recipe in a TOML file or text; see ``from_toml`` in the package's ``presets.py``."""
        recipe: R = cls._beside("presets").from_toml(source, base=base)
        return recipe

    def to_toml(self) -> str:
        """Return the recipe as TOML, grouped and commented; :meth:`from_toml` reads it back exactly."""
        return str(self._beside("presets").to_toml(self))

    @classmethod
    def read(cls: type[R], name_or_path: str | os.PathLike[str]) -> R:
        """Return a preset by its name, or the recipe in a file, whose name ends in ``.toml``.

        Raises:
            DataError: there is no such preset, or the file is missing or wrong.
            MissingExtraError: Python is 3.10 and tomli is not installed.
        """
        if isinstance(name_or_path, str) and not name_or_path.lower().endswith(".toml"):
            recipe: R = cls._beside("presets").preset(name_or_path)
            return recipe
        return cls.from_toml(Path(name_or_path))

    def differences(self: R, old: R) -> list[str]:
        """Return a line for each value that is not that of ``old``, as in ``learning_rate: 0.05, was 0.1``.

        Left out are values ``beside`` the result.
        """
        a, b = _flat(self.to_dict()), _flat(old.to_dict())
        return [
            f"{name}: {a[name]}, was {b[name]}"
            for name in a
            if a[name] != b[name] and name not in self.beside
        ]


def parsed_settings(
    texts: Iterable[str], parse: Callable[[str], tuple[str, Any]]
) -> tuple[dict[str, Any], list[str]]:
    """Return the values in ``name=value`` texts by name, and what is wrong with the others."""
    given: dict[str, Any] = {}
    found = []
    for text in texts:
        try:
            name, value = parse(text)
            given[name] = value
        except DataError as e:
            found.append(str(e))
    return given, found


def _plain(value: object) -> Any:
    if isinstance(value, RecipeBase):
        return value.to_dict()
    return list(value) if isinstance(value, tuple) else value


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def problems_error(
    where: str, found: Sequence[str], error: type[ProxylessError] = DataError
) -> ProxylessError:
    """Return one error for all problems."""
    if len(found) == 1:
        return error(f"{where}: {found[0]}")
    return error(f"{where}: {len(found)} problems\n  " + "\n  ".join(found))
