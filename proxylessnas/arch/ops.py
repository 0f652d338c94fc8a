"""Remembers which module registered an operation, so that a file can name it where it is missing.

Texts of architectures and search spaces end in a comment line an operation, which every reader of them skips:

    # operation my_conv: registered by my_ops

A module that is named in a file is never imported because of that; a person reads its name in an error.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import FrameType

from ..errors import shown

_NOTE = re.compile(r"^# operation ([A-Za-z_]\w{0,63}): registered by (\w[\w.-]{0,199})$", re.MULTILINE)
_MAIN = "__main__"
_modules: dict[str, str] = {}


def remember(token: str, frame: FrameType | None) -> None:
    """Note which module registers an operation.

    Args:
        token: of the operation.
        frame: of the code that registers it. The module is the one whose import runs that code, for that is
            what has to be imported; else the one that holds it; of a program, the name of its file.
    """
    here = frame
    while here and not (here.f_code.co_name == "<module>" and _is_imported_now(here)):
        here = here.f_back
    found = here or frame
    name = str(found.f_globals.get("__name__", "")) if found else ""
    if name == _MAIN:
        main = sys.modules[_MAIN]
        spec = getattr(main, "__spec__", None)  # of `python -m name`
        name = spec.name if spec else Path(getattr(main, "__file__", None) or "").name
    _modules[token] = name


def _is_imported_now(frame: FrameType) -> bool:
    spec = getattr(sys.modules.get(str(frame.f_globals.get("__name__"))), "__spec__", None)
    return bool(getattr(spec, "_initializing", False))


def modules_of(tokens: Iterable[str]) -> dict[str, str]:
    """Return the modules that registered operations, by token, where they are known."""
    names = sorted({token.removesuffix("!") for token in tokens})
    return {name: _modules[name] for name in names if _modules.get(name)}


def notes(tokens: Iterable[str]) -> list[str]:
    """Return the comment lines for the end of a text in which these operations are."""
    lines = [f"# operation {token}: registered by {module}" for token, module in modules_of(tokens).items()]
    return [line for line in lines if _NOTE.fullmatch(line)]


def noted(text: str) -> dict[str, str]:
    """Return the modules that the comments of a text name, by operation."""
    return dict(_NOTE.findall(text))


def missing(token: str, modules: Mapping[str, object], what: str = "model") -> str:
    """Return what to do about an operation that is not registered, if a file names its module; else ""."""
    module = modules.get(token)
    if not isinstance(module, str) or not module:
        return ""
    if module.endswith(".py"):
        remedy = "move its register_op into a module of its own and add --import MODULE"
        return f"this {what} uses operation {token!r}, registered by the program {shown(module)}: {remedy}"
    remedy = f"add --import {module[:200]} (in Python: import it first)"
    return f"this {what} uses operation {token!r}, registered by module {shown(module)}: {remedy}"
