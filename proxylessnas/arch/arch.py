"""A ProxylessNAS architecture as data: a short table that can be read, compared, printed and parsed.

    MOBILE = Arch("proxyless_mobile", stem=32, first=16, last=1280, stages=(
        Stage(32, 2, "k5e3 k3e3 -    -   "), Stage(40, 2, "k7e3 k3e3 k5e3 k5e3"), ...))

One token of a stage is one block:

* ``k5e3``   mobile inverted bottleneck (MBConv) with a 5x5 depthwise convolution and expansion ratio 3
* ``-``      the Zero candidate: the block is skipped, its input passes on. It keeps its place, so that block
             numbers equal those of the original checkpoints
* ``name``   an operation registered with :func:`register_op`
* a trailing ``!`` leaves the shortcut out of a block that would have one

The first block of a stage carries the stage's stride. A block has an identity shortcut where its input and
output have the same shape, as in the paper's space (ProxylessNAS, section 3.1). This module needs neither
torch nor any file.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ArchError, shown
from .ops import remember

if TYPE_CHECKING:
    from .tree import TreeArch

MAX_WIDTH = 65_536
MAX_BLOCKS = 4_096
_MBCONV = re.compile(r"k([0-9]{1,2})e([0-9]{1,2}(?:\.[0-9]{1,3})?)")
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
ZERO = "-"

#: Builds a registered operation: ``build(in_channels, out_channels, stride) -> nn.Module``.
OpBuilder = Callable[[int, int, int], Any]
_custom_ops: dict[str, OpBuilder] = {}


def register_op(token: str, build: OpBuilder) -> None:
    """Make ``token`` usable as a block in every architecture.

    Args:
        token: an identifier that is not an MBConv token (``k3e6``).
        build: called with ``(in_channels, out_channels, stride)``; returns an ``nn.Module`` that maps [N,
            in_channels, H, W] to [N, out_channels, ceil(H / stride), ceil(W / stride)].

    Raises:
        ArchError: the token is not an identifier, or it is taken by another builder.
    """
    if not isinstance(token, str) or not _IDENTIFIER.fullmatch(token) or _MBCONV.fullmatch(token):
        raise ArchError(
            f"cannot register {token!r}: an operation's name is an identifier other than k<kernel>e<ratio>"
        )
    if token in ("ZeroLayer", "MBInvertedConvLayer", "IdentityLayer"):
        raise ArchError(f"cannot register {token!r}: the original JSON format uses that name")
    if not callable(build):
        raise ArchError(f"cannot register {token!r}: its builder {shown(build)} cannot be called")
    if _custom_ops.get(token, build) is not build:
        raise ArchError(f"operation {token!r} is registered already, with another builder")
    _custom_ops[token] = build
    remember(token, sys._getframe(1))


def custom_op(token: str) -> OpBuilder:
    """Return the builder registered for ``token``."""
    return _custom_ops[token]


@dataclass(frozen=True)
class Block:
    """One block, resolved: what :class:`~proxylessnas.models.proxylessnas.ProxylessNAS` builds.

    ``kind`` is ``"mbconv"``, ``"zero"`` or ``"custom"``; ``kernel`` and ``expand`` are 0 unless it is an
    MBConv. ``stage`` is the index of its stage, -1 for the fixed first block.
    """

    kind: str
    token: str
    stage: int
    in_channels: int
    out_channels: int
    stride: int
    shortcut: bool
    kernel: int = 0
    expand: float = 0

    @property
    def mid_channels(self) -> int:
        """Channels of the depthwise convolution (not rounded to a multiple of 8, as in the original code)."""
        return round(self.in_channels * self.expand)


def parse_token(token: str) -> tuple[str, int, float, bool]:
    """Split a block token into ``(kind, kernel, expansion ratio, shortcut allowed)``.

    Raises:
        ArchError: the token names no operation.
    """
    name = token.removesuffix("!")
    shortcut = name == token
    if name == ZERO:
        return "zero", 0, 0, shortcut
    match = _MBCONV.fullmatch(name)
    if match:
        kernel, ratio = int(match[1]), float(match[2])
        if kernel % 2 == 0:
            raise ArchError(f"{shown(token)}: the kernel size must be odd")
        if ratio < 1:
            raise ArchError(f"{token!r}: the expansion ratio must be at least 1")
        return "mbconv", kernel, int(ratio) if ratio.is_integer() else ratio, shortcut
    if name in _custom_ops:
        return "custom", 0, 0, shortcut
    known = ", ".join(["k<kernel>e<ratio> such as k5e3", "- for a skipped block", *sorted(_custom_ops)])
    own = "; one of your own is registered first: --import MODULE" if _IDENTIFIER.fullmatch(name) else ""
    raise ArchError(f"unknown operation {shown(token)}; known are {known}{own}")


def check_int(what: str, value: object, low: int, high: int) -> None:
    """Raise ArchError unless ``value`` is a whole number from ``low`` to ``high``."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ArchError(f"{what} must be a whole number from {low} to {high}, not {shown(value)}")


def _check_number(what: str, value: object, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ArchError(f"{what} must be a number from {low} to {high}, not {shown(value)}")


def check_common(arch: Arch | TreeArch) -> None:
    """Check the fields that both kinds of architecture have.

    Raises:
        ArchError: a field is of the wrong type or out of range.
    """
    if not isinstance(arch.name, str) or not arch.name.isprintable() or len(arch.name) > 200:
        raise ArchError(f"name must be a printable string of at most 200 characters, not {shown(arch.name)}")
    check_int("num_classes", arch.num_classes, 1, 10_000_000)
    check_int("in_channels", arch.in_channels, 1, MAX_WIDTH)
    if arch.resolution is not None:
        check_int("resolution", arch.resolution, 1, MAX_WIDTH)


@dataclass(frozen=True)
class Stage:
    """Blocks of one width; the first carries the stride.

    Attributes:
        width: output channels of every block.
        stride: stride of the first block, 1 or 2.
        ops: block tokens separated by spaces (stored with single spaces).
    """

    width: int
    stride: int
    ops: str

    def __post_init__(self) -> None:
        check_int("a stage's width", self.width, 1, MAX_WIDTH)
        check_int("a stage's stride", self.stride, 1, 2)
        if not isinstance(self.ops, str):
            raise ArchError(f"a stage's operations are one string of tokens, not {shown(self.ops)}")
        if not self.tokens:
            raise ArchError("a stage needs at least one block")
        for token in self.tokens:
            parse_token(token)
        object.__setattr__(self, "ops", " ".join(self.tokens))

    @property
    def tokens(self) -> tuple[str, ...]:
        """The block tokens, in order."""
        return tuple(self.ops.split())


@dataclass(frozen=True)
class Arch:
    """A chain of MBConv stages between a stem and a classifier.

    Attributes:
        name: free text, by habit the builder's name.
        stem: output channels of the 3x3 stem convolution.
        first: output channels of the fixed first block (MBConv 3x3, ratio 1, no shortcut); 0 if there is
            none.
        last: output channels of the last 1x1 convolution.
        stages: the searched stages.
        num_classes: outputs of the classifier.
        in_channels: input channels.
        stem_stride: stride of the stem, 2 as published; 1 keeps small images large.
        bn_eps, bn_momentum: of every BatchNorm, as published.
        dropout: rate before the classifier that the net was trained with (a record; builders take
            ``drop_rate``).
        resolution: input height and width in pixels that the net was made for, if known.
        official_keys: optional keys with default values that the official JSON spelled out;
            :meth:`to_official` writes them again. They say nothing about the net and do not count in
            comparisons.
    """

    name: str
    stem: int
    first: int
    last: int
    stages: tuple[Stage, ...]
    num_classes: int = 1000
    in_channels: int = 3
    stem_stride: int = 2
    bn_eps: float = 1e-3
    bn_momentum: float = 0.1
    dropout: float = 0.0
    resolution: int | None = None
    official_keys: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        check_common(self)
        check_int("stem", self.stem, 1, MAX_WIDTH)
        check_int("first", self.first, 0, MAX_WIDTH)
        check_int("last", self.last, 1, MAX_WIDTH)
        check_int("stem_stride", self.stem_stride, 1, 2)
        _check_number("bn_eps", self.bn_eps, 1e-12, 1.0)
        _check_number("bn_momentum", self.bn_momentum, 0.0, 1.0)
        _check_number("dropout", self.dropout, 0.0, 1.0)
        for what, kind in (("stages", Stage), ("official_keys", str)):
            value = getattr(self, what)
            if not isinstance(value, (tuple, list)) or not all(isinstance(item, kind) for item in value):
                raise ArchError(f"{what} must be a tuple of {kind.__name__}, not {shown(value)}")
            object.__setattr__(self, what, tuple(value))
        if not self.stages and not self.first:
            raise ArchError("an architecture needs at least one block")
        if sum(len(stage.tokens) for stage in self.stages) > MAX_BLOCKS:
            raise ArchError(f"an architecture has at most {MAX_BLOCKS} blocks")
        for _ in self.iter_blocks():  # checks that every Zero block and every width is possible
            pass

    def iter_blocks(self) -> Iterator[Block]:
        """Yield every block in order, the fixed first block included.

        Raises:
            ArchError: a Zero block stands where input and output shapes differ, or a block grows too wide.
        """
        width = self.stem
        if self.first:
            yield Block("mbconv", "k3e1!", -1, width, self.first, 1, False, 3, 1)
            width = self.first
        for s, stage in enumerate(self.stages):
            for b, token in enumerate(stage.tokens):
                kind, kernel, expand, shortcut = parse_token(token)
                stride = stage.stride if b == 0 else 1
                same_shape = stride == 1 and width == stage.width
                if kind == "zero" and not same_shape:
                    raise ArchError(
                        f"stage {s + 1}, block {b + 1}: '-' (a skipped block) needs equal shapes around it, "
                        f"but here {width} channels become {stage.width} with stride {stride}"
                    )
                block = Block(
                    kind, token, s, width, stage.width, stride, shortcut and same_shape, kernel, expand
                )
                if block.mid_channels > 4 * MAX_WIDTH:
                    raise ArchError(
                        f"stage {s + 1}, block {b + 1}: {token!r} expands to {block.mid_channels} channels"
                    )
                yield block
                width = stage.width

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Every block in order, the fixed first block included."""
        return tuple(self.iter_blocks())

    def __str__(self) -> str:
        """Return the text form, which :meth:`parse` reads back; comments name the modules of operations."""
        from .text import format_arch

        return format_arch(self)

    @staticmethod
    def parse(text: str) -> Arch | TreeArch:
        """Read an architecture from its text form, that of ``str(arch)``.

        Raises:
            ArchError: with the line and column of the bad token.
        """
        from .text import parse_arch

        return parse_arch(text)

    @staticmethod
    def from_official(source: Mapping[str, Any] | str | Path) -> Arch | TreeArch:
        """Read the original code's JSON (``net.config``): a parsed dict, or the path of a file.

        ``PyramidTreeNet`` files give a :class:`~proxylessnas.arch.tree.TreeArch`. The format has no name for
        the net: ``name`` is that of the file without its suffix, or "net".

        Raises:
            ArchError: the file is not such a JSON, or holds a layer these nets do not have; the message says
                where.
        """
        from .official import from_official

        return from_official(source)

    def to_official(self) -> dict[str, Any]:
        """Return the original code's JSON description (``net.config``) as a dict."""
        from .official import mbconv_to_official

        return mbconv_to_official(self)


def optional_fields(arch: Arch | TreeArch) -> Iterator[tuple[str, Any]]:
    """Yield ``(name, value)`` of the fields that differ from their default, which the text form names."""
    for f in fields(arch):
        value = getattr(arch, f.name)
        if f.name != "name" and value != f.default:
            yield f.name, value
