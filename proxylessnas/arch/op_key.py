"""Keys of a latency table: one operation with all that its latency depends on.

    >>> str(OpKey("k3e6", 24, 40, 56, 2, False))
    'k3e6 in=24x56x56 out=40 stride=2'

A model is a list of such operations; equal ones share one entry of a table. BatchNorm and activation belong
to their convolution, the addition of a shortcut to its block, and the global pooling to the classifier.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

from ..errors import ArchError, LatencyError, shown
from ..utils.checks import is_int
from .arch import Arch
from .blocks import MAX_WIDTH, Block
from .ops import IDENTIFIER, ZERO, is_spelled, op_name, parse_token
from .ops.spec import RELU6, ConvSpec, Layers, OpSpec, kernel_of, widest_of, with_sizes
from .space import SearchBlock, SearchSpace

STEM, LAST, CLASSIFIER = "stem", "last", "classifier"
FIXED = (STEM, LAST, CLASSIFIER)
DEFAULT_RESOLUTION = 224  # px, of the published models, whose tables do not say it

_TEXT = re.compile(
    r"(?P<op>\S{1,64}) in=(?P<channels>[0-9]{1,8})x(?P<height>[0-9]{1,5})x(?P<width>[0-9]{1,5}) "
    r"out=(?P<out>[0-9]{1,8})(?: stride=(?P<stride>[12]))?(?P<shortcut> shortcut)?(?P<act> relu)?",
    re.ASCII,
)


class OpKey(NamedTuple):
    """One operation of a model.

    Attributes:
        op: "stem" (3x3 convolution), "last" (1x1 convolution), "classifier" (global pooling and linear
            layer), or a block's token without "!".
        in_channels, out_channels: channels; for the classifier, features and classes.
        size: height and width of the input in pixels.
        stride: 1 or 2.
        shortcut: whether the input is added to the output.
        act: activation of its convolutions. It is part of the key and not of a table, so that a table never
            answers for another one, and what measures an operation builds the right one from its text. In the
            text only "relu" is written; the classifier and registered operations keep "relu6".
    """

    op: str
    in_channels: int
    out_channels: int
    size: int
    stride: int = 1
    shortcut: bool = False
    act: str = RELU6

    def __str__(self) -> str:
        text = f"{self.op} in={self.in_channels}x{self.size}x{self.size} out={self.out_channels}"
        stride = "" if self.op in (LAST, CLASSIFIER) else f" stride={self.stride}"
        act = "" if self.act == RELU6 else f" {self.act}"
        return text + stride + (" shortcut" if self.shortcut else "") + act

    @staticmethod
    def parse(text: str) -> OpKey:
        """Read a key from its text, that of ``str(key)``.

        An operation that is not registered here passes: the table may come from elsewhere.

        Raises:
            LatencyError: it is not the text of a key.
        """
        match = _TEXT.fullmatch(text) if isinstance(text, str) else None
        if match is None:
            example = "k3e6 in=24x56x56 out=40 stride=2"
            raise LatencyError(f"{shown(text)} is no key of a latency table, such as {example!r}")
        op = _checked_op(match["op"], text)
        channels, size, out = int(match["channels"]), int(match["height"]), int(match["out"])
        stride, shortcut = int(match["stride"] or 1), match["shortcut"] is not None
        if size != int(match["width"]):
            raise LatencyError(f"key {text!r}: the input must be square")
        if not (0 < channels <= MAX_WIDTH and 0 < size <= MAX_WIDTH and 0 < out <= 10_000_000):
            raise LatencyError(f"key {text!r}: channels and sizes must be from 1 to {MAX_WIDTH}")
        if (match["stride"] is None) != (op in (LAST, CLASSIFIER)):
            raise LatencyError(f"key {text!r}: {op!r} takes {'no' if match['stride'] else 'a'} stride=")
        if shortcut and (op in FIXED or stride != 1 or channels != out):
            raise LatencyError(f"key {text!r}: a shortcut needs a block whose input and output are alike")
        spec = _spec(op)
        if spec is not None and stride not in spec.strides:
            raise LatencyError(f"key {text!r}: {op} exists at stride {spec.strides[0]} alone")
        act = (match["act"] or RELU6).strip()
        if act != _act(op, act):
            raise LatencyError(f"key {text!r}: {op!r} has no activation to choose")
        return OpKey(op, channels, out, size, stride, shortcut, act)

    @property
    def kind(self) -> str:
        """What it is: "stem", "last", "classifier", "custom", or an operation's kind such as "mbconv"."""
        spec = _spec(self.op)
        return self.op if self.op in FIXED else spec.kind if spec else "custom"

    @property
    def family(self) -> str:
        """What it shares its costs with: what is of its kind; for a registered operation, itself."""
        spec = _spec(self.op)
        return spec.family if spec else f"{self.kind} {self.op}"

    @property
    def layers(self) -> Layers | None:
        """The convolutions that it is made of; None if it has none, or if that is not known."""
        return _layers(self.op, self.in_channels, self.out_channels, self.stride)

    @property
    def kernel(self) -> int:
        """Side of a block's largest kernel; 0 if it is no block, or not known."""
        return kernel_of(self.layers or ()) if _spec(self.op) else 0

    @property
    def expand(self) -> float:
        """Channels of a block's widest map for each one that enters; 0 if it is no block, or not known."""
        return widest_of(self.layers or (), self.in_channels) / self.in_channels if _spec(self.op) else 0

    @property
    def out_size(self) -> int:
        """Height and width of the output in pixels."""
        return 1 if self.op == CLASSIFIER else -(-self.size // self.stride)

    @property
    def block(self) -> Block:
        """The block of a model that it stands for.

        Raises:
            LatencyError: it is no block, or its operation is not registered.
        """
        if self.op in FIXED:
            raise LatencyError(f"{self} is no block")
        try:
            op, _ = parse_token(self.op)
        except ArchError as e:
            raise LatencyError(f"{self}: {e}") from e
        token = (
            self.op
            if self.shortcut or self.stride != 1 or self.in_channels != self.out_channels
            else f"{self.op}!"
        )
        return Block(op, token, 0, self.in_channels, self.out_channels, self.stride, self.shortcut)


@lru_cache(maxsize=4096)
def _spec(op: str) -> OpSpec | None:
    """Return an operation of the package; None for a fixed layer, or what a user registers."""
    try:
        found, _ = parse_token(op)
    except ArchError:
        return None
    return found if isinstance(found, OpSpec) else None


@lru_cache(maxsize=4096)
def _layers(op: str, in_channels: int, out_channels: int, stride: int) -> Layers | None:
    if op in (STEM, LAST):
        return (ConvSpec("conv", in_channels, out_channels, 3 if op == STEM else 1, stride),)
    spec = _spec(op)
    return spec.layers(in_channels, out_channels, stride) if spec else None


def _act(op: str, act: str) -> str:
    """Return the activation in a key: the classifier and registered operations do not have the model's."""
    return act if op in (STEM, LAST) or _spec(op) else RELU6


def _checked_op(op: str, text: str) -> str:
    if is_spelled(op):
        try:
            return op_name(op)
        except ArchError as e:
            raise LatencyError(f"key {text!r}: {e}") from e
    if not IDENTIFIER.fullmatch(op):
        raise LatencyError(f"key {text!r}: {op!r} is no operation such as {', '.join(FIXED)} or k3e6")
    return op


def _block_op(token: str) -> str:
    op = op_name(token)
    if op in FIXED:
        raise LatencyError(
            f"the registered operation {op!r} has the name of a fixed layer: register it under another"
        )
    return op


def arch_keys(
    arch: Arch,
    *,
    resolution: int | None = None,
    num_classes: int | None = None,
    in_channels: int | None = None,
) -> list[OpKey]:
    """Return a model's operations in order of execution; skipped blocks are left out.

    Args:
        arch: a chain of blocks.
        resolution: height and width of its input in pixels; None takes the architecture's, 224 if that has
            none.
        num_classes: outputs; None takes the architecture's.
        in_channels: input channels; None takes the architecture's.

    Raises:
        LatencyError: it is a model of another kind, or a number is out of range.
    """
    if not isinstance(arch, Arch):
        raise LatencyError(
            f"a {type(arch).__name__} is not made of MBConv blocks, which are what a latency table holds: "
            "measure it as a whole"
        )
    size = _number("resolution", resolution, arch.resolution or DEFAULT_RESOLUTION, MAX_WIDTH)
    classes = _number("num_classes", num_classes, arch.num_classes, 10_000_000)
    channels = _number("in_channels", in_channels, arch.in_channels, MAX_WIDTH)
    keys = [OpKey(STEM, channels, arch.stem, size, arch.stem_stride, act=arch.act)]
    width = arch.stem
    for block in arch.iter_blocks():
        if block.kind != "zero":
            op = _block_op(block.token)
            shape = width, block.out_channels, keys[-1].out_size, block.stride, block.shortcut
            keys.append(OpKey(op, *shape, _act(op, arch.act)))
        width = block.out_channels
    size = keys[-1].out_size
    last = OpKey(LAST, width, arch.last, size, act=arch.act)
    return [*keys, last, OpKey(CLASSIFIER, arch.last, classes, size)]


def _number(what: str, given: int | None, default: int, most: int) -> int:
    value = default if given is None else given
    if not is_int(value, 1, most):
        raise LatencyError(f"{what} must be a whole number from 1 to {most}, not {shown(value)}")
    return value


def space_keys(space: SearchSpace) -> list[OpKey]:
    """Return the distinct operations of all models of a space, in order of first use.

    A table that holds these covers the space.
    """
    deepest = arch_keys(space.arch(space.first_choices))
    fixed = len(deepest) - 2 - len(space.search_blocks)  # the stem, and the first block if there is one
    keys = deepest[:fixed]
    for block in space.search_blocks:
        keys += [candidate_key(block, token) for token in block.candidate_ops if token != ZERO]
    return list(dict.fromkeys([*keys, *deepest[-2:]]))


def candidate_key(search_block: SearchBlock, token: str) -> OpKey:
    """Return the key of a candidate operation of a block."""
    p, op = search_block, _block_op(token)
    shape = p.in_channels, p.out_channels, p.in_size, p.stride, p.shortcut
    return OpKey(op, *shape, _act(op, p.act))


def nearest_key(key: OpKey, known: Iterable[OpKey]) -> OpKey | None:
    """Return the key most like ``key``, None if none are known.

    One of its kind if there is one, for a block at least another block; then the nearest in shape, kernel and
    ratio on a log scale.
    """
    return min(known, key=lambda other: _distance(key, other), default=None)


def _distance(a: OpKey, b: OpKey) -> tuple[int, float]:
    shape = sum(
        abs(math.log(x / y))
        for x, y in (
            (a.in_channels, b.in_channels), (a.out_channels, b.out_channels),
            (a.size, b.size), (a.out_size, b.out_size),
            (a.kernel or 1, b.kernel or 1), (a.expand or 1, b.expand or 1),
        )
    )  # fmt: skip
    strangers = 0 if a.family == b.family else 1 if a.op not in FIXED and b.op not in FIXED else 2
    return strangers, shape + 0.1 * (a.shortcut != b.shortcut) + 0.01 * (a.act != b.act)


def key_macs(key: OpKey) -> int | None:
    """Return the multiply-accumulates of an operation for one image; None for a registered operation.

    Those of convolutions and of the linear layer, as :func:`~proxylessnas.profile` counts them.
    """
    if key.op == CLASSIFIER:
        return key.in_channels * key.out_channels
    layers = key.layers
    return None if layers is None else sum(layer.macs(size) for layer, size in with_sizes(layers, key.size))


def key_bytes(key: OpKey, dtype_bytes: int = 4) -> tuple[int, int] | None:
    """Return the memory traffic of an operation: bytes of weights, and bytes of activations for one image.

    Weights are the parameters, BatchNorm's two a channel included. Activations are what each convolution,
    pooling or linear layer reads and writes, with BatchNorm and activation fused into it, and one more
    reading of the input for a shortcut. None for a registered operation.
    """
    if key.op == CLASSIFIER:
        features, classes = key.in_channels, key.out_channels
        activations = features * key.size**2 + 2 * features + classes
        return (features + 1) * classes * dtype_bytes, activations * dtype_bytes
    layers = key.layers
    if layers is None:
        return None
    weights = sum(layer.params for layer in layers)
    activations = sum(layer.values(size) for layer, size in with_sizes(layers, key.size))
    if key.shortcut:
        activations += key.in_channels * key.size**2
    return weights * dtype_bytes, activations * dtype_bytes
