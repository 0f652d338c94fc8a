"""TOML and the ``name=value`` words of a command line: read, parsed and written, whatever they describe."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from .errors import DataError, ProxylessError, missing_extra
from .user_files import read_text

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
