"""What an operation says of itself: how its token is spelled, and the layers that it is made of.

All else follows from the layers, without a word about the operation anywhere: its module, parameters and
multiply-accumulates, its latency key and what the predictor knows of it, its ONNX graph, what may be folded,
fused, how its weights start in a supernet, and how it is drawn.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import astuple, dataclass, fields
from functools import cache, lru_cache
from typing import Any, ClassVar, NamedTuple, TypeAlias

#: What a model can have behind its convolutions; the first is that of the published ones.
ACTIVATIONS = ("relu6", "relu")
RELU6 = ACTIVATIONS[0]


class ConvSpec(NamedTuple):
    """A convolution with "same" padding, its BatchNorm and, unless ``act`` is False, an activation."""

    name: str  # of the module, and so of its parameters in a state dict
    in_channels: int
    out_channels: int
    kernel: int = 1
    stride: int = 1
    groups: int = 1
    act: bool = True

    @property
    def weights(self) -> int:
        """Numbers in its filters."""
        return self.kernel**2 * self.in_channels // self.groups * self.out_channels

    @property
    def params(self) -> int:
        """Numbers that are learned, BatchNorm's two a channel included."""
        return self.weights + 2 * self.out_channels

    @property
    def is_depthwise(self) -> bool:
        """Whether memory and not arithmetic sets its pace."""
        return self.groups == self.in_channels == self.out_channels

    def out_size(self, size: int) -> int:
        """Return the side of its output from that of its input, px."""
        return -(-size // self.stride)

    def macs(self, size: int) -> int:
        """Return its multiply-accumulates for one image, from the side of its input."""
        return self.weights * self.out_size(size) ** 2

    def values(self, size: int) -> int:
        """Return how many values it reads and writes for one image, with all that follows fused into it."""
        return self.in_channels * size**2 + self.out_channels * self.out_size(size) ** 2


class SESpec(NamedTuple):
    """Squeeze-and-excite: channels weighted by what two 1x1 convolutions make of their means."""

    name: str
    channels: int
    squeezed: int
    is_depthwise: bool = True

    @property
    def weights(self) -> int:
        """Numbers in its filters."""
        return 2 * self.channels * self.squeezed

    @property
    def params(self) -> int:
        """Numbers that are learned, biases included."""
        return self.weights + self.channels + self.squeezed

    @property
    def out_channels(self) -> int:
        """Channels of its output."""
        return self.channels

    def out_size(self, size: int) -> int:
        """Return the side of its output from that of its input, px."""
        return size

    def macs(self, size: int) -> int:
        """Return its multiply-accumulates for one image."""
        return self.weights

    def values(self, size: int) -> int:
        """Return how many values it reads and writes: the map once for the means, once for the product."""
        return 3 * self.channels * size**2 + 4 * self.channels + 2 * self.squeezed


Layer: TypeAlias = ConvSpec | SESpec
Layers: TypeAlias = tuple[Layer, ...]


class Op:
    """An operation of a block, such as a token names it.

    Attributes:
        kind: "zero" and "custom", or the kind of an operation of the package, such as "mbconv".
        name: the one spelling of its token.
        strides: that its blocks can have; 1 is always among them.
    """

    kind: ClassVar[str]
    strides: ClassVar[tuple[int, ...]] = (1, 2)

    @property
    def name(self) -> str:
        """The one spelling of its token."""
        raise NotImplementedError

    @property
    def label(self) -> str:
        """What a figure calls it, in a few letters."""
        return self.name

    def layers(self, in_channels: int, out_channels: int, stride: int) -> Layers | None:
        """Return what it is made of, first to last; None where that is not known."""
        return None


_NUMBERS = {"int": "[0-9]{1,2}", "float": r"[0-9]{1,2}(?:\.[0-9]{1,3})?"}


@dataclass(frozen=True)
class OpSpec(Op):
    """An operation of the package; each is a subclass in a file of its own.

    A subclass is a frozen dataclass. Its fields, each of which is an ``int``, a ``float`` or a ``bool``, are
    what a token spells: each number behind its letter, and a letter alone for what is true. An ``int`` is the
    side of a kernel.

    Attributes:
        title: what ``info`` calls it.
        mark: what its label in figures begins with.
        letters: of the fields, in order: "kes" for ``k5e3`` and ``k5e3s``.
        example: the token that messages and ``info`` show.
        official: name of its layer in the original code's JSON, or one of our own.
        official_keys: names of the fields there.
        optional: names of layers that only some have: of the others, the module has None there.
    """

    title: ClassVar[str]
    mark: ClassVar[str] = ""
    letters: ClassVar[str]
    example: ClassVar[str]
    official: ClassVar[str]
    official_keys: ClassVar[tuple[str, ...]]
    optional: ClassVar[tuple[str, ...]] = ()

    def layers(self, in_channels: int, out_channels: int, stride: int) -> Layers:
        """Return what it is made of, first to last."""
        raise NotImplementedError

    @classmethod
    def spelled(cls) -> list[tuple[str, str, str]]:
        """Return letter, name and type of each field."""
        types = [f.type if isinstance(f.type, str) else f.type.__name__ for f in fields(cls)]
        return list(zip(cls.letters, [f.name for f in fields(cls)], types, strict=True))

    @classmethod
    def grammar(cls) -> str:
        """Return how its tokens are spelled, such as ``k<kernel>e<ratio>[s]``."""
        return "".join(f"[{a}]" if kind == "bool" else f"{a}<{name}>" for a, name, kind in cls.spelled())

    @classmethod
    @cache
    def pattern(cls) -> re.Pattern[str]:
        """Return the pattern of its tokens, a group a field."""
        parts = [f"({a}?)" if kind == "bool" else f"{a}({_NUMBERS[kind]})" for a, _, kind in cls.spelled()]
        return re.compile("".join(parts), re.ASCII)

    @classmethod
    @lru_cache(1024)
    def parse(cls, token: str) -> OpSpec | None:
        """Return the operation of a token without ``!``; None if it is spelled as another kind is.

        Raises:
            ValueError: there is no operation of these numbers.
        """
        match = cls.pattern().fullmatch(token)
        if match is None:
            return None
        values: list[Any] = []
        for text, (_, _, kind) in zip(match.groups(), cls.spelled(), strict=True):
            number = float(text) if kind != "bool" else 0.0
            values.append(bool(text) if kind == "bool" else int(number) if number.is_integer() else number)
        found = cls(*values)
        problem = found.problem()
        if problem:
            raise ValueError(problem)
        return found

    @property
    def name(self) -> str:
        """The one spelling of its token."""
        values = zip(self.spelled(), astuple(self), strict=True)
        return "".join(a * value if kind == "bool" else f"{a}{value:g}" for (a, _, kind), value in values)

    def problem(self) -> str:
        """Return what is wrong with its numbers; "" if nothing is."""
        if any(kernel % 2 == 0 for kernel in self.kernels):
            return "the kernel size must be odd"
        return "the expansion ratio must be at least 1" if getattr(self, "ratio", 1) < 1 else ""

    @property
    def kernels(self) -> tuple[int, ...]:
        """Sides of its kernels larger than 1x1, first to last."""
        return tuple(getattr(self, name) for _, name, kind in self.spelled() if kind == "int")

    @property
    def family(self) -> str:
        """What shares its costs: its kind, and the letters of what it has besides, such as "mbconv s"."""
        return " ".join([self.kind, *(a for a, name, _ in self.spelled() if getattr(self, name) is True)])

    @property
    def label(self) -> str:
        """What a figure calls it, in a few letters."""
        if not self.kernels:
            return self.name
        ratio, squeezed = self._usual()
        first, *others = self.kernels
        size = "-".join(map(str, self.kernels)) if others else f"{first}×{first}"
        return f"{self.mark}{size}  e{ratio:g}{' SE' * squeezed}"

    @property
    def about(self) -> str:
        """What ``info`` says of it, in a few words."""
        ratio, squeezed = self._usual()
        title = " ".join([*[" and ".join(f"{k}x{k}" for k in self.kernels)] * bool(self.kernels), self.title])
        return title + f", expansion {ratio:g}" * bool(ratio) + ", squeeze-and-excite" * squeezed

    def _usual(self) -> tuple[float, bool]:
        """Return ratio and squeeze-and-excite; 0 and False if it lacks them."""
        return getattr(self, "ratio", 0), getattr(self, "squeezed", False)


def kernel_of(layers: Layers) -> int:
    """Return the side of the largest kernel; 0 if there is none."""
    return max((layer.kernel for layer in layers if isinstance(layer, ConvSpec)), default=0)


def widest_of(layers: Layers, in_channels: int) -> int:
    """Return the channels of the widest map between the layers; of one layer, those of the input."""
    return max((layer.out_channels for layer in layers[:-1]), default=in_channels)


def with_sizes(layers: Layers, size: int) -> Iterator[tuple[Layer, int]]:
    """Yield each layer with the side of its input, from that of the first one's, px."""
    for layer in layers:
        yield layer, size
        size = layer.out_size(size)


def squeeze(channels: int, in_channels: int) -> SESpec:
    """Return the squeeze-and-excite of a map inside an operation: to a quarter of the operation's input.

    That is EfficientNet's rule; the module is ``squeeze_excite``.
    """
    return SESpec("squeeze_excite", channels, max(1, in_channels // 4))
