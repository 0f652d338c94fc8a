"""The search spaces that come with the package, and reading one of your own."""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ..errors import ArchError, shown
from ..utils import config as toml_text
from ..utils.config import problems_error
from ..utils.files import decode, read_bytes
from . import ops as registration
from .space import SearchSpace, SpaceStage
from .space_rules import value_problems

# DOC proxylessnas.space_toml: """A search space as JSON values and as a TOML file.
#
#     stem = 16
#     first = 16
#     last = 640
#     candidates = ["k3e3", "k5e6"]
#     stages = [
#         { width = 24, stride = 1, blocks = 2 },
#         { width = 48, stride = 2, blocks = 4 },
#     ]
#
# The other fields of a :class:`~proxylessnas.arch.space.SearchSpace` may be left out.
# """


def _stages(*rows: tuple[int, int, int]) -> tuple[SpaceStage, ...]:
    return tuple(SpaceStage(width, stride, blocks) for width, stride, blocks in rows)


#: The published one (ProxylessNAS, section 4.2): 21 blocks of three kernels and two ratios, 2.2e17 nets.
IMAGENET = SearchSpace(
    "imagenet", stem=32, first=16, last=1280,
    stages=_stages((24, 2, 4), (40, 2, 4), (80, 2, 4), (96, 1, 4), (192, 2, 4), (320, 1, 1)),
    candidates=("k3e3", "k3e6", "k5e3", "k5e6", "k7e3", "k7e6"),
)  # fmt: skip

#: For pictures of 28 to 64 px, whose resolution is kept early; it holds ``proxyless_cifar10_demo``.
SMALL = SearchSpace(
    "small", stem=16, first=16, last=640, stages=_stages((24, 1, 2), (48, 2, 4), (112, 2, 5)),
    candidates=("k3e2", "k3e3", "k3e4", "k3e6", "k5e2", "k5e3", "k5e4", "k5e6"),
    resolution=32, num_classes=10, stem_stride=1,
)  # fmt: skip

#: Searched, measured and trained in minutes on a CPU.
TINY = SearchSpace(
    "tiny", stem=8, first=8, last=64, stages=_stages((16, 1, 2), (24, 2, 2), (40, 2, 2)),
    candidates=("k3e2", "k3e4", "k5e2", "k5e4"), resolution=32, num_classes=10,
)  # fmt: skip

SPACES: dict[str, SearchSpace] = {space.name: space for space in (IMAGENET, SMALL, TINY)}


def read_space(name_or_path: str | os.PathLike[str]) -> SearchSpace:
    """Return a search space by name, or read it from a file.

    >>> read_space("imagenet@1.4").stem
    48

    Args:
        name_or_path: "imagenet", "small" or "tiny"; with "@" and a number, that space with its widths
            multiplied; or the path of a ``.toml`` file.

    Raises:
        ArchError: there is no such space (the nearest names are listed), or the file is wrong (every problem
            is listed).
        MissingExtraError: Python is 3.10 and tomli, which reads TOML, is not installed.
    """
    if not isinstance(name_or_path, str):
        return _read_file(os.fspath(name_or_path))
    word = name_or_path.strip()
    if word.lower().endswith(".toml") or "/" in word or os.sep in word:
        return _read_file(word)
    name, at, factor = word.partition("@")
    key = name.strip().lower()
    if key not in SPACES:
        near = difflib.get_close_matches(key, SPACES, n=2, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}? Known" if near else "known"
        known = f"{', '.join(SPACES)}, and files whose names end in .toml"
        raise ArchError(f"unknown search space {shown(name_or_path)}: {hint} are {known}")
    if not at:
        return SPACES[key]
    try:
        multiplier = float(factor)
    except ValueError:
        raise ArchError(f"{shown(name_or_path)}: wanted a number after @, as in {key}@1.4") from None
    return SPACES[key].scaled(multiplier)


def _read_file(path: str) -> SearchSpace:

    return read_toml(path)


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
        raise problems_error(where, found, ArchError)
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
