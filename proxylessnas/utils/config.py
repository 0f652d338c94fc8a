"""Frozen dataclasses whose fields say what they hold: checked, read and written as TOML and JSON.

A :class:`Config` is written as a table of fields,

    class Recipe(Config):
        epochs: int = option(100, Range(1, 1_000_000), "passes over the training images")

from which come its checks, its docstring, its form as TOML and JSON, the ``name=value`` words of a command
line and, with :func:`options`, all that a command line needs to offer them.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
import os
import re
import sys
import textwrap
import types
import typing
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from ..errors import DataError, ProxylessError, missing_extra, shown
from .checks import Allowed, Option
from .files import read_text

T = TypeVar("T")
C = TypeVar("C", bound="Config")

MAX_BYTES = 1_000_000
_MOST_DOTS = 20  # of a key: what the parser keeps of one grows with the square of its parts
_STRING = re.compile(r'"(?:[^"\\\n]|\\.)*"|\'[^\'\n]*\'')


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
    for line in _STRING.sub("", text).splitlines():
        if any(key.count(".") > _MOST_DOTS for key in re.split(r"[=,{}\[\]]", line.partition("#")[0])):
            raise error(f"{where}: not valid TOML (a key of more than {_MOST_DOTS} parts)")
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


def problems_error(
    where: str, found: Sequence[str], error: type[ProxylessError] = DataError
) -> ProxylessError:
    """Return one error for all problems."""
    if len(found) == 1:
        return error(f"{where}: {found[0]}")
    return error(f"{where}: {len(found)} problems\n  " + "\n  ".join(found))


def option(
    default: T, allowed: Allowed, help: str, *, also: str = "", group: str = "", metavar: str = ""
) -> T:
    """Return a dataclass field with the meaning of an :class:`Option`, whose type is the annotation.

    Names in ``also`` are separated by spaces; ``group`` is the title of all fields up to the next title.
    """
    meaning = {
        "given": allowed,
        "help": help,
        "also": tuple(also.split()),
        "group": group,
        "metavar": metavar,
    }
    field: T = dataclasses.field(default=default, metadata=meaning)
    return field


def same_option(config: type[Config], name: str, default: Any = None) -> Any:
    """Return a field that means what that of another class does; ``default`` may be another."""
    field = next(field for field in dataclasses.fields(config) if field.name == name)  # type: ignore[arg-type]
    return dataclasses.field(
        default=field.default if default is None else default, metadata={**field.metadata, "group": ""}
    )


_options: dict[type, dict[str, Option]] = {}


def options(config: type[Config]) -> dict[str, Option]:
    """Return the options of a class by name, in the order of its fields."""
    if config in _options:
        return _options[config]
    found, hints, group = {}, typing.get_type_hints(config), ""
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        if "help" in field.metadata:
            group = field.metadata["group"] or group
            kind, count, optional = _kind(hints[field.name])
            meaning = {**field.metadata, "group": group}
            found[field.name] = Option(field.name, kind, count, optional, field.default, **meaning)
    _options[config] = found
    return found


def _kind(hint: Any) -> tuple[Any, int, bool]:
    """Return type, count and whether None is allowed, as :class:`Option` has them, of an annotation."""
    kinds = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
    kinds, optional = tuple(kind for kind in kinds if kind is not type(None)), type(None) in kinds
    kind = kinds[0] if len(kinds) == 1 and kinds[0] is not Any else object
    inner = typing.get_args(kind)
    if not inner:
        return kind, 0, optional
    return inner[0], -1 if inner[-1] is Ellipsis else len(inner), optional


def settable(config: type[Config]) -> dict[str, Option]:
    """Return options by every name they can be set by: its own, and those of a table within.

    The latter are called ``table.name``, and ``name`` alone where the class has none of that name.
    """
    found = dict(options(config))
    for table in options(config).values():
        if issubclass(table.type, Config):
            for name, known in options(table.type).items():
                found.setdefault(name, known)
                found[f"{table.name}.{name}"] = known
    return found


class Config:
    """Base of frozen dataclasses whose fields are made by :func:`option`.

    Attributes:
        what: what messages call it.
        example: a ``name=value`` word, for messages.
        beside: values that change nothing in what comes out; those of a table within as ``table.name``.
        presets: ready-made ones by name, each a table as a file has it: its ``base`` may name another.
        error: class of the errors about values.
    """

    what: ClassVar[str] = "configuration"
    example: ClassVar[str] = "name=value"
    beside: ClassVar[frozenset[str]] = frozenset()
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    error: ClassVar[type[ProxylessError]] = DataError

    def __init_subclass__(cls) -> None:
        fields = {n: f for n, f in vars(cls).items() if isinstance(f, dataclasses.Field)}
        if any(
            "help" in field.metadata for field in fields.values()
        ):  # and those of a config it derives from
            fields = {**getattr(cls, "__dataclass_fields__", {}), **fields}
        fill = textwrap.TextWrapper(106, initial_indent=" " * 4, subsequent_indent=" " * 8).fill
        meant = {name: field.metadata["help"] for name, field in fields.items() if "help" in field.metadata}
        if meant:
            lines = [fill(f"{name}: {text}") for name, text in meant.items()]
            cls.__doc__ = "\n".join([inspect.cleandoc(cls.__doc__ or ""), "", "Attributes:", *lines, ""])

    def __post_init__(self) -> None:
        if found := self._settle():
            raise problems_error(self.what, found, self.error)

    def _settle(self) -> list[str]:
        """Bring each value into the type of its field; return what is wrong, or does not fit together."""
        found = []
        for name, known in options(type(self)).items():
            vars(self)[name], problem = known.check(vars(self)[name])
            found += [problem] if problem else []
        # What does not fit together is only told where each value makes sense alone.
        return found or self.conflicts()

    def conflicts(self) -> list[str]:
        """Return what does not fit together, where each value is in order."""
        return []

    def implied(self, given: Mapping[str, Any], *, from_file: bool = False) -> dict[str, Any]:
        """Return values that follow from new ones, of a file or a command line, unless they are set too."""
        return {}

    @classmethod
    def unknown(cls, name: object) -> str:
        """Return the problem line for a name that no option has, with the nearest ones."""
        return f"there is no {shown(name)}{_hint(cls.nearest(str(name)))}"

    @classmethod
    def nearest(cls, name: str) -> list[str]:
        """Return the options that a name may mean; ``table.name`` means those of this table."""
        table, dot, inner = name.lower().replace("-", "_").rpartition(".")
        if dot and table in options(cls) and issubclass(options(cls)[table].type, Config):
            return [f"{table}.{near}" for near in options(cls)[table].type.nearest(inner)]
        known = {n: o for n, o in settable(cls).items() if "." not in n and n != name}
        return [n for n, o in known.items() if inner in o.also][:1] or _nearest(inner, known)

    @classmethod
    def completed(cls: type[C], given: Mapping[str, Any], base: C) -> tuple[C, list[str]]:
        """Return a config of the given values over those of ``base``, and what is wrong with it."""
        known = options(cls)
        made = object.__new__(cls)
        vars(made).update({name: given.get(name, getattr(base, name)) for name in known})
        return made, [cls.unknown(name) for name in given if name not in known] + made._settle()

    @classmethod
    def _complete(cls: type[C], given: Mapping[str, Any], base: C, found: list[str], where: str) -> C:
        made, wrong = cls.completed(given, base)
        if found or wrong:
            raise problems_error(where, [*found, *wrong], cls.error)
        return made

    def replace(self: C, **changes: Any) -> C:
        """Return one with some values changed.

        Raises:
            DataError: there is no such value, or the new ones are wrong; the message lists every problem.
        """
        return self._complete(changes, self, [], self.what)

    def changed(self: C, words: Iterable[str] = (), values: Mapping[str, Any] | None = None) -> C:
        """Return one with changes as a command line has them, and with those that :meth:`implied` adds.

        Args:
            words: ``name=value`` texts; see :meth:`parse_set`.
            values: values by name, which win.

        Raises:
            DataError: a name or a value is wrong; the message lists every problem.
        """
        given: dict[str, Any] = {}
        found = []
        for word in words:
            try:
                name, value = self.parse_set(word)
                given[name] = value
            except DataError as e:
                found.append(str(e))
        given |= values or {}
        for name in [name for name in given if "." in name]:
            (table, _, inner), value = name.partition("."), given.pop(name)
            if inner not in given:
                given.setdefault(table, {})[inner] = value
        return self._complete(self.implied(given) | given, self, found, self.what)

    @classmethod
    def parse_set(cls, text: str) -> tuple[str, Any]:
        """Return the name and value in ``name=value``, as a command line has it.

        Strings need no quotes, several numbers are joined by commas, and ``none`` is no value:
        ``optimizer=adamw``, ``mean=0.5,0.5,0.5``, ``image_size=none``. A value of a table within needs the
        table's name before it only where another has its name: ``weights.recalibrate_batches=0``.

        Raises:
            DataError: there is no such name, or the value is wrong.
        """
        name, equals, word = (part.strip() for part in text.partition("="))
        name = name.replace("-", "_")
        if not name or not equals:
            raise DataError(f"{shown(text)}: write name=value, as in {cls.example}")
        known = settable(cls).get(name)
        if known is None or issubclass(known.type, Config):
            raise DataError(f"{text}: {cls.unknown(name)}")
        value, problem = known.check(known.parse(word))
        if problem:
            raise DataError(problem)
        return name, value

    def to_dict(self) -> dict[str, Any]:
        """Return the values as plain JSON types, tables last; :meth:`from_dict` reads them back."""
        values = {name: getattr(self, name) for name in options(type(self))}
        tables = {name: value.to_dict() for name, value in values.items() if isinstance(value, Config)}
        plain = {n: list(v) if isinstance(v, tuple) else v for n, v in values.items() if n not in tables}
        return plain | tables

    @classmethod
    def from_dict(
        cls: type[C], mapping: Mapping[str, Any], where: str | None = None, *, base: C | None = None
    ) -> C:
        """Return the config that a mapping describes.

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
        return cls._complete(mapping, base or cls(), [], where)

    def differences(self: C, old: C) -> list[str]:
        """Return a line for each value that is not that of ``old``, as in ``learning_rate: 0.05, was 0.1``.

        Left out are values ``beside`` the result.
        """
        a, b = _flat(self.to_dict()), _flat(old.to_dict())
        changed = [name for name in a if a[name] != b[name] and name not in self.beside]
        return [f"{name}: {a[name]}, was {b[name]}" for name in changed]

    @classmethod
    def preset(cls: type[C], name: str) -> C:
        """Return a ready-made one; case, hyphens and underscores in its name do not matter.

        Raises:
            DataError: there is none of this name; the message names the nearest and lists all.
        """
        names = {_squeezed(known): known for known in cls.presets}
        key = _squeezed(name) if isinstance(name, str) else ""
        if key not in names:
            hint = _hint([names[n] for n in _nearest(key, names)])
            known = f"known: {', '.join(cls.presets)}; a file's name ends in .toml"
            raise DataError(f"no {cls.what} is called {shown(name)}{hint} ({known})")
        return cls._from_table(cls.presets[names[key]], f"preset {names[key]}")

    @classmethod
    def read(cls: type[C], name_or_path: str | os.PathLike[str]) -> C:
        """Return a preset by its name, or what is in a file, whose name ends in ``.toml``.

        Raises:
            DataError: there is no such preset, or the file is missing or wrong.
            MissingExtraError: Python is 3.10 and tomli is not installed.
        """
        if isinstance(name_or_path, str) and not name_or_path.lower().endswith(".toml"):
            return cls.preset(name_or_path)
        return cls.from_toml(Path(name_or_path))

    @classmethod
    def from_toml(cls: type[C], source: str | os.PathLike[str], *, base: C | None = None) -> C:
        """Return what is in a TOML file or text.

        The file, and each table within, may name a preset as its ``base``, and may set a value that can be
        None (``image_size``, say) to ``"none"``.

        Args:
            source: a path, or the text itself. A string of one line that ends in ``.toml`` is a path.
            base: gives the values that the file lacks, unless it names a base of its own; None stands for
                the defaults.

        Raises:
            DataError: the file cannot be read, is not TOML, or holds something wrong; the message lists
                every problem.
            MissingExtraError: Python is 3.10 and tomli is not installed.
        """
        where, table = read_toml(source, cls.what)
        return cls._from_table(table, where, base)

    @classmethod
    def _from_table(cls: type[C], table: Mapping[str, Any], where: str, base: C | None = None) -> C:
        found: list[str] = []
        start, given = cls._unpacked(table, base or cls(), found)
        return cls._complete(start.implied(given, from_file=True) | given, start, found, where)

    @classmethod
    def _unpacked(
        cls: type[C], table: Mapping[str, Any], start: C, found: list[str]
    ) -> tuple[C, dict[str, Any]]:
        """Return the preset that a table names as its base, or ``start``, and the table's other values."""
        given: dict[str, Any] = {}
        known = settable(cls)
        inner = [name for name, o in options(cls).items() if issubclass(o.type, Config)]
        if "base" in table:
            try:
                start = cls.preset(table["base"])
            except DataError as e:
                found.append(f"base: {e}")
        for key, value in table.items():
            if key in inner and isinstance(value, Mapping):
                lines: list[str] = []
                old = getattr(start, key)
                new, given[key] = known[key].type._unpacked(value, old, lines)
                found += [f"[{key}] {line}" for line in lines]
                start = start if new is old else start.replace(**{key: new})
            elif isinstance(value, Mapping):
                hint = f"write {next(iter(value), next(iter(known)))} = ... above it, without [{key}]"
                hint = f"only [{'], ['.join(inner)}]" if inner else f"none: {hint}"
                found.append(f"[{key}] is a table, but a {cls.what} has {hint}")
            elif key != "base":
                given[key] = known[key].none_for(value) if key in known else value
        return start, given

    def to_toml(self) -> str:
        """Return it as TOML, grouped and commented, without what is None; :meth:`from_toml` reads it back."""
        return "\n".join(self.toml_lines()[1:]) + "\n"

    def toml_lines(self, leave_out: Container[str] = ()) -> list[str]:
        """Return the lines of all values that are not None or left out, an empty line before each title."""
        lines, group = [], ""
        for name, known in options(type(self)).items():
            value = getattr(self, name)
            if value is None or isinstance(value, Config) or name in leave_out:
                continue
            if known.group != group:
                group = known.group
                lines += ["", f"# {group}"]
            choices = f"  # {' | '.join(known.allowed)}" if isinstance(known.allowed, tuple) else ""
            lines.append(f"{name} = {toml_value(value)}{choices}")
        return lines


def _squeezed(name: str) -> str:
    return re.sub(r"[^a-z0-9+]", "", name.lower())


def _nearest(key: str, known: Iterable[str]) -> list[str]:
    return difflib.get_close_matches(key, list(known), n=2, cutoff=0.6)


def _hint(near: Sequence[str]) -> str:
    return f": did you mean {' or '.join(near)}?" if near else ""


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat
