"""What the recipes of trainings and of searches have in common: values by name, in and out."""

from __future__ import annotations

import dataclasses
import importlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

from ..errors import DataError
from .recipe_rules import problems_error

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
    """A frozen dataclass of values that keep rules; beside its module are ``recipe_toml`` and ``presets``.

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
        """Return the recipe in a TOML file or text; see ``from_toml`` in the package's ``recipe_toml.py``."""
        recipe: R = cls._beside("recipe_toml").from_toml(source, base=base)
        return recipe

    def to_toml(self) -> str:
        """Return the recipe as TOML, grouped and commented; :meth:`from_toml` reads it back exactly."""
        return str(self._beside("recipe_toml").to_toml(self))

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
