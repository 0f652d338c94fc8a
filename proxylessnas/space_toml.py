"""A search space as JSON values and as a TOML file.

    stem = 16
    first = 16
    last = 640
    candidates = ["k3e3", "k5e6"]
    stages = [
        { width = 24, stride = 1, blocks = 2 },
        { width = 48, stride = 2, blocks = 4 },
    ]

The other fields of a :class:`~proxylessnas.space.SearchSpace` may be left out.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from . import registration, toml_text
from .errors import ArchError, shown
from .space import SearchSpace, SpaceStage
from .space_rules import problems_error, value_problems
from .user_files import decode, read_bytes

_FIELDS = {f.name: f.default is dataclasses.MISSING for f in dataclasses.fields(SearchSpace)}
_STAGE_FIELDS = [f.name for f in dataclasses.fields(SpaceStage)]

_GROUPS = {
    "fixed layers: channels of the stem, the first block (0 for none) and the last 1x1 convolution":
        "stem first last stem_stride",
    "input: pictures of resolution x resolution px": "resolution in_channels num_classes",
    "BatchNorm": "bn_eps bn_momentum",
    "what every block can be; with zero, a block with a shortcut can also be skipped": "candidates zero",
}  # fmt: skip


# What is missing has been noted; the other values are checked beside these.
_STAND_INS: dict[str, Any] = {
    **{f.name: f.default for f in dataclasses.fields(SearchSpace)},
    "name": "space", "stem": 8, "first": 0, "last": 8, "candidates": ("k3e6",),
    "stages": (SpaceStage(8, 1, 1),),
}  # fmt: skip


def from_dict(
    data: Mapping[str, Any], where: str = "search space", modules: Mapping[str, object] | None = None
) -> SearchSpace:
    """Read a space from JSON or TOML values.

    Args:
        data: the values.
        where: what errors call them.
        modules: those that registered its operations, by token, if that is known.

    Raises:
        ArchError: with every problem.
    """
    if not isinstance(data, Mapping):
        raise ArchError(f"{where}: wanted an object with {', '.join(_FIELDS)}, not {shown(data)}")
    found = [f"{name} is missing" for name, needed in _FIELDS.items() if needed and name not in data]
    found += _unknown(data, list(_FIELDS), "")
    values: dict[str, Any] = {name: data[name] for name in _FIELDS if name in data}
    if isinstance(values.get("stages"), (list, tuple)):
        values["stages"] = tuple(
            _stage(f"stage {s}", stage, found) for s, stage in enumerate(values["stages"], 1)
        )
    found += value_problems(SimpleNamespace(**{**_STAND_INS, **values}), modules or {})
    if found:
        raise problems_error(where, found)
    try:
        return SearchSpace(**values)
    except ArchError as e:
        raise ArchError(f"{where}: {e}") from e


def _stage(where: str, data: Any, found: list[str]) -> Any:
    """Return one stage, or what else was given, which is noted later."""
    if not isinstance(data, Mapping):
        return data
    found += [f"{where}: {name} is missing" for name in _STAGE_FIELDS if name not in data]
    found += _unknown(data, _STAGE_FIELDS, f"{where}: ")
    return SpaceStage(**{name: data.get(name, 1) for name in _STAGE_FIELDS})


def _unknown(data: Mapping[str, Any], known: list[str], where: str) -> list[str]:
    found = []
    for name in [name for name in data if name not in known][:10]:
        near = difflib.get_close_matches(str(name), known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(known)}"
        found.append(f"{where}there is no {shown(name)}: {hint}")
    return found


def read_toml(path: str | os.PathLike[str]) -> SearchSpace:
    """Read a space from a TOML file; without a ``name``, it is called like the file.

    Raises:
        ArchError: the file cannot be read, is not TOML or holds no space; every problem is listed.
        MissingExtraError: Python is 3.10 and tomli is not installed.
    """
    where, data = toml_text.read_toml(Path(path), "search space", error=ArchError)
    modules = registration.noted(decode(read_bytes(path), "replace"))
    return from_dict({"name": Path(path).stem, **data}, where, modules)


def to_toml(space: SearchSpace) -> str:
    """Return a space as TOML text, with every value."""
    lines = [f"name = {_quoted(space.name)}"]
    for title, names in _GROUPS.items():
        lines += ["", f"# {title}"]
        lines += [f"{name} = {_value(getattr(space, name))}" for name in names.split()]
    lines += ["", "# the searched blocks; stride is that of a stage's first block", "stages = ["]
    lines += [f"    {{ width = {s.width}, stride = {s.stride}, blocks = {s.blocks} }}," for s in space.stages]
    return "\n".join([*lines, "]", *registration.notes(space.candidates), ""])


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return f"[{', '.join(map(_quoted, value))}]"
    return repr(value)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)  # its escapes are those of TOML
