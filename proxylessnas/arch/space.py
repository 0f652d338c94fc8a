"""A search space as data: the models a search can choose from (ProxylessNAS, section 3.1 and appendix A).

A space is a chain of stages like that of an :class:`~proxylessnas.arch.arch.Arch`, but each block is a choice
among the same candidates. Where the input and the output of a block have the same shape, the block has an
identity shortcut, and if the space says ``zero`` it may be skipped, which is the candidate ``"-"``.

    >>> from proxylessnas.arch.spaces import read_space
    >>> space = read_space("imagenet")
    >>> len(space.search_blocks), space.candidate_ops
    (21, ('k3e3', 'k3e6', 'k5e3', 'k5e6', 'k7e3', 'k7e6', '-'))

This module needs neither torch nor any file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..errors import ArchError, shown
from ..utils.checks import is_number
from ..utils.config import problems_error
from .arch import Arch
from .blocks import MAX_BLOCKS, Stage
from .ops import ZERO, op_name, parse_token
from .ops.spec import RELU6
from .space_base import SearchBlock, Space
from .space_values import MIN_MAP, SpaceStage, read_values, to_toml, value_problems


def make_divisible(value: float, divisor: int = 8) -> int:
    """Round a number of channels to a multiple of ``divisor``, never below 90 % of ``value``."""
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


@dataclass(frozen=True)
class SearchSpace(Space):
    """The chains of blocks a search can choose from.

    Attributes:
        name: free text.
        stem: output channels of the 3x3 stem convolution.
        first: output channels of the fixed first block (MBConv 3x3, ratio 1, no shortcut); 0 if there is
            none.
        last: output channels of the last 1x1 convolution.
        stages: the searched stages.
        candidates: block tokens (``k5e3``, or one that was registered) that every block can be whose stride
            they exist at.
        zero: whether blocks with a shortcut may be skipped.
        resolution: input height and width in pixels.
        num_classes: outputs of the classifier.
        in_channels: input channels.
        stem_stride: 2, or 1 to keep small images large.
        bn_eps, bn_momentum: of every BatchNorm.
        act: activation behind the convolutions: "relu6", as published, or "relu".

    Raises:
        ArchError: something is wrong with it; the message lists every problem with its place.
    """

    kind = "chain"

    name: str
    stem: int
    first: int
    last: int
    stages: tuple[SpaceStage, ...]
    candidates: tuple[str, ...]
    zero: bool = True
    resolution: int = 224
    num_classes: int = 1000
    in_channels: int = 3
    stem_stride: int = 2
    bn_eps: float = 1e-3
    bn_momentum: float = 0.1
    act: str = RELU6

    def __post_init__(self) -> None:
        found = value_problems(vars(self))
        if not found:
            object.__setattr__(self, "stages", tuple(self.stages))
            object.__setattr__(self, "candidates", tuple(op_name(token) for token in self.candidates))
            for name in ("bn_eps", "bn_momentum"):  # 0 and 0.0 are one space with one digest
                object.__setattr__(self, name, float(getattr(self, name)))
            found = list(_misfits(self))
        if found:
            raise problems_error(f"search space {shown(self.name)}", found, ArchError)

    @cached_property
    def search_blocks(self) -> tuple[SearchBlock, ...]:
        """The searched blocks in order."""
        found: list[SearchBlock] = []
        width, size = self.first or self.stem, -(-self.resolution // self.stem_stride)
        strides = [parse_token(token)[0].strides for token in self.candidates]
        for s, stage in enumerate(self.stages):
            for b in range(stage.blocks):
                stride = stage.stride if b == 0 else 1
                shortcut = stride == 1 and width == stage.width
                columns = tuple(k for k, possible in enumerate(strides) if stride in possible)
                columns += (len(self.candidates),) if self.zero and shortcut else ()
                tokens = tuple(self.candidate_ops[k] for k in columns)
                shape = (width, stage.width, size, stride, shortcut)
                found.append(SearchBlock(len(found), s, b, *shape, tokens, columns, self.act))
                width, size = stage.width, found[-1].out_size
        return tuple(found)

    @property
    def candidate_ops(self) -> tuple[str, ...]:
        """The candidates' tokens, and last "-" if blocks may be skipped."""
        return self.candidates + ((ZERO,) if self.zero else ())

    def arch(self, choices: Sequence[int], name: str = "net") -> Arch:
        """Return the model with candidate ``choices[i]`` as block ``i``; skipped blocks keep their place.

        Raises:
            ArchError: there is a wrong number of choices, or one that its block does not have.
        """
        tokens = self.tokens(choices)
        stages, start = [], 0
        for stage in self.stages:
            stages.append(Stage(stage.width, stage.stride, " ".join(tokens[start : start + stage.blocks])))
            start += stage.blocks
        return Arch(
            name, self.stem, self.first, self.last, tuple(stages), **{f: getattr(self, f) for f in _MODEL}
        )

    def _lacks(self, block: SearchBlock, token: str) -> str:
        if token == ZERO:
            return f"{self.place(block)}: it cannot be skipped, its input and output differ"
        return f"{self.place(block)}: {token} does not exist at its stride of {block.stride}"

    def choices(self, arch: Any) -> tuple[int, ...]:
        """Return the candidate that each block of a model is; undoes :meth:`arch`.

        A stage with fewer blocks than the space's counts as one whose last blocks are skipped. BatchNorm
        constants, dropout and the name are not compared; nor is the resolution, if the model has none.

        Raises:
            ArchError: the model is not in the space; the message says where it differs.
        """
        if not isinstance(arch, Arch):
            raise ArchError(f"a {type(arch).__name__} is not in a space of MBConv stages")
        for (what, given), (_, wanted) in zip(_outline(arch), _outline(self), strict=False):
            if given != wanted and (what, given) != ("resolution", None):
                raise self._not_here(arch, f"{what} is {given}, in the space {wanted}")
        for s, (stage, wide) in enumerate(zip(arch.stages, self.stages, strict=True)):
            if len(stage.tokens) > wide.blocks:
                there = f"{len(stage.tokens)} blocks, in the space at most {wide.blocks}"
                raise self._not_here(arch, f"stage {s + 1} has {there}")
        found = []
        for search_block in self.search_blocks:
            tokens = arch.stages[search_block.stage].tokens
            token = tokens[search_block.block] if search_block.block < len(tokens) else ZERO
            name = op_name(token)
            if name not in search_block.candidate_ops:
                there = f"{shown(token)} is none of {' '.join(search_block.candidate_ops)}"
                raise self._not_here(arch, f"{self.place(search_block)}: {there}")
            if token.endswith("!") and name != ZERO and search_block.shortcut:
                lacking = f"{self.place(search_block)}: {token} lacks the shortcut of the space"
                raise self._not_here(arch, lacking)
            found.append(self.candidate_ops.index(name))
        return tuple(found)

    def scaled(self, width_mult: float) -> SearchSpace:
        """Return the space with every width multiplied, rounded to multiples of 8 as published.

        The last convolution never becomes narrower, as in the original code. 1 changes nothing.

        Raises:
            ArchError: the multiplier is not a number from 0.01 to 100, or makes a width too large.
        """
        if not is_number(width_mult, 0.01, 100):
            raise ArchError(f"a width multiplier is a number from 0.01 to 100, not {shown(width_mult)}")
        if width_mult == 1:
            return self
        stages = tuple(
            SpaceStage(make_divisible(s.width * width_mult), s.stride, s.blocks) for s in self.stages
        )
        return self.replace(
            name=f"{self.name}@{width_mult:g}",
            stem=make_divisible(self.stem * width_mult),
            first=make_divisible(self.first * width_mult) if self.first else 0,
            last=make_divisible(self.last * width_mult) if width_mult > 1 else self.last,
            stages=stages,
        )

    def replace(self, **changes: Any) -> SearchSpace:
        """Return a copy with other values, checked anew.

        Raises:
            ArchError: there is no such field, or the values make no space.
        """
        names = [f.name for f in dataclasses.fields(self)]
        for name in changes:
            if name not in names:
                raise ArchError(f"a search space has no {shown(name)}; it has {', '.join(names)}")
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values, which :meth:`from_dict` reads back; the usual activation is left out."""
        data = dataclasses.asdict(self)
        if self.act == RELU6:  # as before there was a choice, so that digests stay
            del data["act"]
        return {**data, "stages": list(data["stages"]), "candidates": list(self.candidates)}

    @classmethod
    def from_dict(
        cls,
        data: Mapping[str, Any],
        where: str = "search space",
        modules: Mapping[str, object] | None = None,
    ) -> SearchSpace:
        """Read a space from JSON (or TOML) values.

        Args:
            data: the values.
            where: what errors call them.
            modules: those that registered its operations, by token, if that is known.

        Raises:
            ArchError: something is wrong with them; the message lists every problem.
        """
        values = read_values(data, cls, where, modules)
        try:
            return cls(**values)
        except ArchError as e:
            raise ArchError(f"{where}: {e}") from e

    def to_toml(self) -> str:
        """Return it as a TOML file, which :func:`~proxylessnas.arch.spaces.read_space` reads back."""
        return to_toml(self)


#: The fields that a model of the space has as well.
_MODEL = ("num_classes", "in_channels", "stem_stride", "bn_eps", "bn_momentum", "resolution", "act")


def _outline(model: Arch | SearchSpace) -> Iterator[tuple[str, Any]]:
    """Yield what a model and its space have in common, with names."""
    names = ("stem", "first", "last", "stem_stride", "in_channels", "num_classes", "resolution", "act")
    for what in names:
        yield what, getattr(model, what)
    yield "the number of stages", len(model.stages)
    for s, stage in enumerate(model.stages):
        for what in ("width", "stride"):
            yield f"the {what} of stage {s + 1}", getattr(stage, what)


def _misfits(space: SearchSpace) -> Iterator[str]:
    """Yield what does not fit together in a space whose values are each in order."""
    blocks = sum(stage.blocks for stage in space.stages)
    if blocks > MAX_BLOCKS:
        yield f"it has {blocks} blocks; at most {MAX_BLOCKS} are possible"
        return
    stuck = [p for p in space.search_blocks if not p.columns]
    if stuck:
        yield f"{space.place(stuck[0])} has stride {stuck[0].stride}, at which none of the candidates exists"
        return
    for k in range(len(space.candidates)):  # the widest map of each block
        try:
            space.arch([k if k in p.columns else p.columns[0] for p in space.search_blocks])
        except ArchError as e:
            yield str(e)
    size = space.resolution
    strides = {"the stem": space.stem_stride}
    strides |= {f"stage {s}": stage.stride for s, stage in enumerate(space.stages, 1)}
    for where, stride in strides.items():
        size = -(-size // stride)
        if size < MIN_MAP:
            remedy = "use a larger resolution or a stride of 1"
            yield f"{where} shrinks the map to {size}x{size} px, below {MIN_MAP}x{MIN_MAP}: {remedy}"
            break
