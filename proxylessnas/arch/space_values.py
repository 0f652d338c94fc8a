"""Values of a search space: checks each of them, reads them from JSON or TOML, and writes them as TOML.

    stem = 16
    first = 16
    last = 640
    candidates = ["k3e3", "k5e6"]
    stages = [
        { width = 24, stride = 1, blocks = 2 },
        { width = 48, stride = 2, blocks = 4 },
    ]

The other fields of a :class:`~proxylessnas.arch.space.SearchSpace` may be left out.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Any

from ..errors import ArchError, shown
from ..utils.checks import is_int, is_number, is_text
from ..utils.config import problems_error, toml_value
from . import ops
from .blocks import MAX_BLOCKS, MAX_WIDTH
from .ops.spec import ACTIVATIONS, RELU6

if TYPE_CHECKING:
    from .space import SearchSpace

MAX_CANDIDATES = 256
MIN_MAP = 2  # px; a depthwise kernel on a single pixel sees nothing but padding


@dataclass(frozen=True)
class SpaceStage:
    """Blocks of one width; checked by the :class:`SearchSpace` that holds it.

    Attributes:
        width: output channels of every block.
        stride: stride of the first block, 1 or 2.
        blocks: how many there are at most (exactly as many, if none may be skipped).
    """

    width: int
    stride: int
    blocks: int


_Rule = tuple[Callable[[Any], bool], str]


def _whole(low: int, high: int) -> _Rule:
    return partial(is_int, low=low, high=high), f"a whole number from {low} to {high}"


def _number(low: float, high: float) -> _Rule:
    return partial(is_number, low=low, high=high), f"a number from {low} to {high}"


_RULES: dict[str, _Rule] = {
    "name": (partial(is_text, longest=200), "a printable text of at most 200 characters"),
    "stem": _whole(1, MAX_WIDTH),
    "first": _whole(0, MAX_WIDTH),
    "last": _whole(1, MAX_WIDTH),
    "resolution": _whole(MIN_MAP, MAX_WIDTH),
    "num_classes": _whole(1, 10_000_000),
    "in_channels": _whole(1, MAX_WIDTH),
    "stem_stride": _whole(1, 2),
    "zero": (lambda value: isinstance(value, bool), "true or false"),
    "bn_eps": _number(1e-12, 1.0),
    "bn_momentum": _number(0.0, 1.0),
    "act": (lambda value: value in ACTIVATIONS, " or ".join(ACTIVATIONS)),
    "stages": (lambda value: isinstance(value, (tuple, list)) and bool(value), "one SpaceStage or more"),
    "candidates": (
        lambda value: isinstance(value, (tuple, list)) and 1 <= len(value) <= MAX_CANDIDATES,
        f"1 to {MAX_CANDIDATES} block tokens",
    ),
}
_STAGE_RULES = {"width": _whole(1, MAX_WIDTH), "stride": _whole(1, 2), "blocks": _whole(1, MAX_BLOCKS)}


def value_problems(values: Mapping[str, Any], modules: Mapping[str, object] | None = None) -> list[str]:
    """Return what is wrong with each value of a space; names that are missing are passed over.

    ``modules`` are those that registered its operations, by token, where that is known.
    """
    found = _broken(values, _RULES)
    for s, stage in enumerate(_items(values, "stages"), 1):
        if isinstance(stage, SpaceStage):
            found += _broken(vars(stage), _STAGE_RULES, f"stage {s}: ")
        else:
            found.append(f"stage {s} must be a SpaceStage, not {shown(stage)}")
    if "candidates" in values and _RULES["candidates"][0](values["candidates"]):
        found += _bad_candidates(values["candidates"], modules or {})
    return found


def _broken(values: Mapping[str, Any], rules: Mapping[str, _Rule], where: str = "") -> list[str]:
    return [
        f"{where}{name} must be {wanted}, not {shown(values[name])}"
        for name, (ok, wanted) in rules.items()
        if name in values and not ok(values[name])
    ]


def _items(values: Mapping[str, Any], name: str) -> tuple[Any, ...]:
    found = values.get(name)
    return tuple(found) if isinstance(found, (tuple, list)) else ()


def _bad_candidates(tokens: tuple[Any, ...], modules: Mapping[str, object]) -> Iterator[str]:
    names: list[str] = []
    for token in tokens:
        if not isinstance(token, str) or token.removesuffix("!") == ops.ZERO or token.endswith("!"):
            why = "'-' comes with zero, and shortcuts belong to the space"
            yield f"candidates: {shown(token)} is no plain operation such as 'k3e6' ({why})"
            continue
        try:
            name = ops.op_name(token)
        except ArchError as e:
            yield f"candidates: {ops.missing(token, modules, 'space') or e}"
            continue
        if name in names:
            yield f"candidates: {token!r} is there twice"
        names.append(name)


def read_values(
    data: Mapping[str, Any], kind: type[SearchSpace], where: str, modules: Mapping[str, object] | None
) -> dict[str, Any]:
    """Return the checked fields of a space, the dataclass ``kind``; see :meth:`SearchSpace.from_dict`."""
    known = [f.name for f in fields(kind)]
    if not isinstance(data, Mapping):
        raise ArchError(f"{where}: wanted an object with {', '.join(known)}, not {shown(data)}")
    found = [f"{f.name} is missing" for f in fields(kind) if f.default is MISSING and f.name not in data]
    found += _unknown(data, known, "")
    values = {name: data[name] for name in known if name in data}
    if isinstance(values.get("stages"), (list, tuple)):
        values["stages"] = tuple(
            _stage(f"stage {s}: ", stage, found) for s, stage in enumerate(values["stages"], 1)
        )
    found += value_problems(values, modules)
    if found:
        raise problems_error(where, found, ArchError)
    return values


def _stage(where: str, data: Any, found: list[str]) -> Any:
    """Return one stage, or what else was given, which is noted later."""
    if not isinstance(data, Mapping):
        return data
    found += [f"{where}{name} is missing" for name in _STAGE_RULES if name not in data]
    found += _unknown(data, list(_STAGE_RULES), where)
    return SpaceStage(**{name: data.get(name, 1) for name in _STAGE_RULES})


def _unknown(data: Mapping[str, Any], known: list[str], where: str) -> list[str]:
    found = []
    for name in [name for name in data if name not in known][:10]:
        near = difflib.get_close_matches(str(name), known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(known)}"
        found.append(f"{where}there is no {shown(name)}: {hint}")
    return found


_GROUPS = {
    "fixed layers: channels of the stem, the first block (0 for none) and the last 1x1 convolution":
        "stem first last stem_stride",
    "input: images of resolution x resolution px": "resolution in_channels num_classes",
    "BatchNorm": "bn_eps bn_momentum",
    "what every block can be; with zero, a block with a shortcut can also be skipped": "candidates zero",
}  # fmt: skip


def to_toml(space: SearchSpace) -> str:
    """Return a space as TOML text, with every value."""
    lines = [f"name = {json.dumps(space.name, ensure_ascii=False)}"]  # its escapes are those of TOML
    activation = {} if space.act == RELU6 else {"activation behind the convolutions": "act"}
    for title, names in {**_GROUPS, **activation}.items():
        lines += ["", f"# {title}"]
        lines += [f"{name} = {toml_value(getattr(space, name))}" for name in names.split()]
    lines += ["", "# the searched blocks; stride is that of a stage's first block", "stages = ["]
    lines += [f"    {{ width = {s.width}, stride = {s.stride}, blocks = {s.blocks} }}," for s in space.stages]
    return "\n".join([*lines, "]", *ops.notes(space.candidates), ""])
