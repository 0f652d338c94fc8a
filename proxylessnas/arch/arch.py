"""A ProxylessNAS architecture as data: a short table that can be read, compared, printed and parsed.

    MOBILE = Arch("proxyless_mobile", stem=32, first=16, last=1280, stages=(
        Stage(32, 2, "k5e3 k3e3 -    -   "), Stage(40, 2, "k7e3 k3e3 k5e3 k5e3"), ...))

One token of a stage is one block:

* ``k5e3``   mobile inverted bottleneck (MBConv) with a 5x5 depthwise convolution and expansion ratio 3;
             ``k5e3s``: with squeeze-and-excite
* ``f3e4``   fused MBConv: a dense 3x3 convolution with expansion ratio 4, then 1x1; ``f3e4s`` likewise
* ``u3-5e4`` MobileNetV4's ExtraDW: depthwise 3x3, expansion, depthwise 5x5, 1x1; ``c7e4``: depthwise 7x7,
             expansion, 1x1; ``n4``: expansion, 1x1, in blocks of stride 1 alone; each with ``s`` likewise
* ``-``      the Zero candidate: the block is skipped, its input passes on. It keeps its place, so that block
             numbers equal those of the original checkpoints
* ``name``   an operation registered with :func:`register_op`
* a trailing ``!`` leaves the shortcut out of a block that would have one

The first block of a stage carries the stage's stride. A block has an identity shortcut where its input and
output have the same shape, as in the paper's space (ProxylessNAS, section 3.1). This module needs neither
torch nor any file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import ArchError, shown
from .blocks import (
    MAX_BLOCKS,
    MAX_WIDTH,
    Block,
    Stage,
    check_activation,
    check_common,
    check_int,
    check_number,
    first_block,
)
from .official import mbconv_to_official, read_mbconv, read_official
from .official_tree import read_tree
from .ops import parse_token
from .ops.spec import RELU6
from .text import format_arch, parse_arch
from .tree import TreeArch


@dataclass(frozen=True)
class Arch:
    """A chain of stages of blocks between a stem and a classifier.

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
        dropout: rate before the classifier that the model was trained with (a record; builders take
            ``drop_rate``).
        resolution: input height and width in pixels that the model was made for, if known.
        official_keys: optional keys with default values that the official JSON spelled out;
            :meth:`to_official` writes them again. They say nothing about the model and do not count in
            comparisons.
        act: activation behind the convolutions: "relu6", as published, or "relu".
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
    act: str = RELU6

    def __post_init__(self) -> None:
        check_common(self)
        check_int("stem", self.stem, 1, MAX_WIDTH)
        check_int("first", self.first, 0, MAX_WIDTH)
        check_int("last", self.last, 1, MAX_WIDTH)
        check_int("stem_stride", self.stem_stride, 1, 2)
        check_number("bn_eps", self.bn_eps, 1e-12, 1.0)
        check_number("bn_momentum", self.bn_momentum, 0.0, 1.0)
        check_number("dropout", self.dropout, 0.0, 1.0)
        check_activation(self.act)
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
            yield first_block(width, self.first)
            width = self.first
        for s, stage in enumerate(self.stages):
            for b, token in enumerate(stage.tokens):
                op, shortcut = parse_token(token)
                stride = stage.stride if b == 0 else 1
                same_shape = stride == 1 and width == stage.width
                if op.kind == "zero" and not same_shape:
                    raise ArchError(
                        f"stage {s + 1}, block {b + 1}: '-' (a skipped block) needs equal shapes around it, "
                        f"but here {width} channels become {stage.width} with stride {stride}"
                    )
                if stride not in op.strides:
                    raise ArchError(
                        f"stage {s + 1}, block {b + 1}: {token!r} exists at stride {op.strides[0]} alone, "
                        f"but this block has stride {stride}"
                    )
                block = Block(op, token, s, width, stage.width, stride, shortcut and same_shape)
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
        return format_arch(self)

    @staticmethod
    def parse(text: str) -> Arch | TreeArch:
        """Read an architecture from its text form, that of ``str(arch)``.

        Raises:
            ArchError: with the line and column of the bad token.
        """
        return parse_arch(text, Arch, TreeArch)

    @staticmethod
    def from_official(source: Mapping[str, Any] | str | Path) -> Arch | TreeArch:
        """Read the original code's JSON (``net.config``): a parsed dict, or the path of a file.

        ``PyramidTreeNet`` files give a :class:`~proxylessnas.arch.tree.TreeArch`. The format has no name for
        the model: ``name`` is that of the file without its suffix, or "net".

        Raises:
            ArchError: the file is not such a JSON, or holds a layer that these models do not have; the
                message says where.
        """
        return read_official(
            source,
            {"ProxylessNASNets": partial(read_mbconv, Arch), "PyramidTreeNet": partial(read_tree, TreeArch)},
        )

    def to_official(self) -> dict[str, Any]:
        """Return the original code's JSON description (``net.config``) as a dict."""
        return mbconv_to_official(self)
