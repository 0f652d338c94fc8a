"""Names of a package that are imported when first asked for, and what its modules declare."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any


def lazy_names(
    package: str, names: Mapping[str, str]
) -> tuple[list[str], Callable[[str], Any], Callable[[], list[str]]]:
    """Return ``__all__``, ``__getattr__`` and ``__dir__`` of a package.

    Args:
        package: its ``__name__``.
        names: module, relative to the package, to the public names that it has, separated by spaces. No
            module of the package may be called like one of the names: importing it would put it in the
            name's place.
    """
    home = {name: module for module, some in names.items() for name in some.split()}

    def get(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(home[name], package), name)
        setattr(sys.modules[package], name, value)  # found without this function from now on
        return value

    def known() -> list[str]:
        return sorted({*vars(sys.modules[package]), *home})

    return list(home), get, known


def declared(package: str, name: str, *, but: Collection[str] = ()) -> list[Any]:
    """Return what the modules of a package have under a name, of those that have it, except ``but``."""
    path = importlib.import_module(package).__path__
    names = [module.name for module in pkgutil.iter_modules(path) if module.name not in but]
    modules = [importlib.import_module(f"{package}.{module}") for module in names]
    return [getattr(module, name) for module in modules if hasattr(module, name)]
