"""Parts of architectures: blocks and stages of chains, cells of tree models, and checks of both."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..errors import ArchError, shown
from ..utils.checks import is_int, is_number
from .ops import parse_token
from .ops.spec import ACTIVATIONS, Layers, Op, kernel_of, widest_of

if TYPE_CHECKING:
    from .arch import Arch
    from .tree import TreeArch

MAX_WIDTH = 65_536
MAX_BLOCKS = 4_096
FIRST = "k3e1!"  # token of the fixed first block

#: The operations of a tree cell's edges; :mod:`proxylessnas.arch.tree` says what they are.
EDGE_LETTERS = "i357dam"
EDGES_PER_BRANCH = 6
BRANCHES = 2
BOTTLENECK = 4


@dataclass(frozen=True)
class Block:
    """One block, resolved: what :class:`~proxylessnas.models.proxylessnas.ProxylessNAS` builds.

    ``stage`` is the index of its stage, -1 for the fixed first block.
    """

    op: Op
    token: str
    stage: int
    in_channels: int
    out_channels: int
    stride: int
    shortcut: bool

    @property
    def kind(self) -> str:
        """Kind of its operation, such as "mbconv"; "zero": skipped, "custom": registered by a user."""
        return self.op.kind

    @property
    def layers(self) -> Layers | None:
        """What its operation is made of, first to last; None where that is not known."""
        return self.op.layers(self.in_channels, self.out_channels, self.stride)

    @property
    def kernel(self) -> int:
        """Side of its largest kernel; 0 if there is none or it is not known."""
        return kernel_of(self.layers or ())

    @property
    def mid_channels(self) -> int:
        """Channels of its widest map inside."""
        layers = self.layers
        most = max(self.in_channels, self.out_channels)
        return most if layers is None else widest_of(layers, self.in_channels)


def first_block(in_channels: int, out_channels: int) -> Block:
    """Return the fixed first block: an MBConv of ratio 1 without a shortcut."""
    return Block(parse_token(FIRST)[0], FIRST, -1, in_channels, out_channels, 1, False)


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
    ops: str = field(metadata={"check_word": parse_token})

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


def check_cell(word: str, where: str = "") -> None:
    """Check the word of a tree cell.

    Raises:
        ArchError: it has not 12 letters, or a letter that is no operation.
    """
    if len(word) != BRANCHES * EDGES_PER_BRANCH:
        raise ArchError(
            f"{where}{shown(word)} has {len(word)} letters; a cell has {BRANCHES * EDGES_PER_BRANCH}"
        )
    for letter in word:
        if letter not in EDGE_LETTERS:
            raise ArchError(
                f"{where}{shown(word)}: unknown operation {letter!r}; known are {' '.join(EDGE_LETTERS)}"
            )


def check_int(what: str, value: object, low: int, high: int) -> None:
    """Raise ArchError unless ``value`` is a whole number from ``low`` to ``high``."""
    if not is_int(value, low, high):
        raise ArchError(f"{what} must be a whole number from {low} to {high}, not {shown(value)}")


def check_number(what: str, value: object, low: float, high: float) -> None:
    """Raise ArchError unless ``value`` is a number from ``low`` to ``high``."""
    if not is_number(value, low, high):
        raise ArchError(f"{what} must be a number from {low} to {high}, not {shown(value)}")


def check_activation(value: object) -> None:
    """Raise ArchError unless ``value`` is the name of an activation."""
    if value not in ACTIVATIONS:
        raise ArchError(f"act must be {' or '.join(ACTIVATIONS)}, not {shown(value)}")


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
