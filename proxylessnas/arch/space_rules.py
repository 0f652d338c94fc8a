"""What makes a search space a possible one: the range of each value, and what fits together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from ..errors import ArchError, shown
from ..utils.checks import is_int, is_number, is_text
from .arch import MAX_BLOCKS, MAX_WIDTH, ZERO
from .ops import missing
from .space import SearchSpace, SpaceStage, op_name

MAX_CANDIDATES = 256
MIN_MAP = 2  # px; a depthwise kernel on a single pixel sees nothing but padding

_LIMITS = {
    "stem": (1, MAX_WIDTH), "first": (0, MAX_WIDTH), "last": (1, MAX_WIDTH),
    "resolution": (MIN_MAP, MAX_WIDTH), "num_classes": (1, 10_000_000), "in_channels": (1, MAX_WIDTH),
    "stem_stride": (1, 2),
}  # fmt: skip
_STAGE_LIMITS = {"width": (1, MAX_WIDTH), "stride": (1, 2), "blocks": (1, MAX_BLOCKS)}


def value_problems(space: Any, modules: Mapping[str, object] = MappingProxyType({})) -> Iterator[str]:
    """Yield what is wrong with each value of a space, or of any object with a space's attributes.

    ``modules`` are those that registered its operations, by token, where that is known.
    """
    if not is_text(space.name, 200):
        yield f"name must be a printable text of at most 200 characters, not {shown(space.name)}"
    for name, (low, high) in _LIMITS.items():
        yield from _whole(name, getattr(space, name), low, high)
    if not isinstance(space.zero, bool):
        yield f"zero must be true or false, not {shown(space.zero)}"
    for name, least in (("bn_eps", 1e-12), ("bn_momentum", 0.0)):
        if not is_number(getattr(space, name), least, 1.0):
            yield f"{name} must be a number from {least} to 1.0, not {shown(getattr(space, name))}"
    if not isinstance(space.stages, (tuple, list)) or not space.stages:
        yield f"stages must be one SpaceStage or more, not {shown(space.stages)}"
    else:
        for s, stage in enumerate(space.stages):
            if not isinstance(stage, SpaceStage):
                yield f"stage {s + 1} must be a SpaceStage, not {shown(stage)}"
                continue
            for name, (low, high) in _STAGE_LIMITS.items():
                yield from _whole(f"stage {s + 1}: {name}", getattr(stage, name), low, high)
    if not isinstance(space.candidates, (tuple, list)) or not 1 <= len(space.candidates) <= MAX_CANDIDATES:
        yield f"candidates must be 1 to {MAX_CANDIDATES} block tokens, not {shown(space.candidates)}"
        return
    names: list[str] = []
    for token in space.candidates:
        if not isinstance(token, str) or token.removesuffix("!") == ZERO or token.endswith("!"):
            why = "'-' comes with zero, and shortcuts belong to the space"
            yield f"candidates: {shown(token)} is no plain operation such as 'k3e6' ({why})"
            continue
        try:
            name = op_name(token)
        except ArchError as e:
            yield f"candidates: {missing(token, modules, 'space') or e}"
            continue
        if name in names:
            yield f"candidates: {token!r} is there twice"
        names.append(name)


def _whole(what: str, value: object, low: int, high: int) -> Iterator[str]:
    if not is_int(value, low, high):
        yield f"{what} must be a whole number from {low} to {high}, not {shown(value)}"


def misfits(space: SearchSpace) -> Iterator[str]:
    """Yield what does not fit together in a space whose values are each in order."""
    blocks = sum(stage.blocks for stage in space.stages)
    if blocks > MAX_BLOCKS:
        yield f"it has {blocks} blocks; at most {MAX_BLOCKS} are possible"
        return
    for token in range(len(space.candidates)):  # the widest map of each block
        try:
            space.arch([token] * blocks)
        except ArchError as e:
            yield str(e)
    size = -(-space.resolution // space.stem_stride)
    if size < MIN_MAP:
        yield _too_small("the stem", size)
    for s, stage in enumerate(space.stages):
        size = -(-size // stage.stride)
        if size < MIN_MAP:
            yield _too_small(f"stage {s + 1}", size)
            break


def _too_small(where: str, size: int) -> str:
    return (
        f"{where} shrinks the map to {size}x{size} px, below {MIN_MAP}x{MIN_MAP}: "
        "use a larger resolution or a stride of 1"
    )
