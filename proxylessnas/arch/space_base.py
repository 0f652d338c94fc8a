"""What every search space has: positions, candidates to choose from at each, and the models they make."""

from __future__ import annotations

import hashlib
import json
import math
import operator
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from ..errors import ArchError, shown
from .ops.spec import RELU6
from .space_values import SpaceStage


@dataclass(frozen=True)
class SearchBlock:
    """One position of a space: a block of a chain, or an edge of a tree cell.

    Attributes:
        index: its row in every table over the space's positions, from 0.
        stage, block: where it is, both from 0; edges are numbered through a stage's cells.
        in_channels, out_channels: channels.
        in_size: height and width of its input in pixels.
        stride: 1 or 2.
        shortcut: whether it has an identity shortcut.
        candidate_ops: tokens of its candidates, in the order of the space's; "-" last where it may be
            skipped. Those that do not exist at its stride are left out.
        columns: their places among the space's ``candidate_ops``.
        act: activation of all of them.
    """

    index: int
    stage: int
    block: int
    in_channels: int
    out_channels: int
    in_size: int
    stride: int
    shortcut: bool
    candidate_ops: tuple[str, ...]
    columns: tuple[int, ...]
    act: str = RELU6

    @property
    def out_size(self) -> int:
        """Height and width of its output in pixels."""
        return -(-self.in_size // self.stride)


class Space:
    """Base of the kinds of search space. A model is one candidate a position: a tuple of *choices*.

    A kind is a frozen dataclass that names its ``candidate_ops`` and ``search_blocks``, and makes the models
    (:meth:`arch`, :meth:`choices`).

    Attributes:
        kind: "chain" or "tree"; a file of a chain need not say it.
        name: free text.
        resolution: input height and width in pixels.
        num_classes: outputs of the classifier.
        in_channels: input channels.
        stages: widths, strides and numbers of positions, for people.
        group: positions that people see together: a block alone, or the edges of a cell.
    """

    kind: ClassVar[str]
    group: ClassVar[int] = 1

    name: str
    resolution: int
    num_classes: int
    in_channels: int
    stages: tuple[SpaceStage, ...]

    @property
    def candidate_ops(self) -> tuple[str, ...]:
        """The candidates' tokens: the columns of every table over the space."""
        raise NotImplementedError

    @property
    def search_blocks(self) -> tuple[SearchBlock, ...]:
        """The positions in order: the rows of every table over the space."""
        raise NotImplementedError

    def arch(self, choices: Sequence[int], name: str = "net") -> Any:
        """Return the model with candidate ``choices[i]`` at position ``i``.

        Raises:
            ArchError: there is a wrong number of choices, or one that its position does not have.
        """
        raise NotImplementedError

    def choices(self, arch: Any) -> tuple[int, ...]:
        """Return the candidate at each position of a model; undoes :meth:`arch`.

        Raises:
            ArchError: the model is not in the space; the message says where it differs.
        """
        raise NotImplementedError

    def place(self, search_block: SearchBlock) -> str:
        """Return what messages call a position."""
        return f"stage {search_block.stage + 1}, block {search_block.block + 1}"

    def label(self, search_block: SearchBlock) -> str:
        """Return what figures call a position: "2.1" is stage and block in it, counted from 1."""
        return f"{search_block.stage + 1}.{search_block.block + 1}"

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values, which :func:`~proxylessnas.arch.spaces.space_from_dict` reads back."""
        raise NotImplementedError

    def to_toml(self) -> str:
        """Return it as a TOML file, which :func:`~proxylessnas.arch.spaces.read_space` reads back."""
        raise NotImplementedError

    def replace(self, **changes: Any) -> Any:
        """Return a copy with other values, checked anew.

        Raises:
            ArchError: there is no such field, or the values make no space.
        """
        raise NotImplementedError

    @property
    def mask(self) -> tuple[tuple[bool, ...], ...]:
        """Whether a position can be a candidate, [positions, candidates]."""
        every = range(len(self.candidate_ops))
        return tuple(tuple(k in block.columns for k in every) for block in self.search_blocks)

    @property
    def count(self) -> int:
        """How many models there are, those alike but for the place of a skipped block counted apart."""
        return math.prod(len(block.columns) for block in self.search_blocks)

    @property
    def first_choices(self) -> tuple[int, ...]:
        """The choices of the model that has the first candidate everywhere; it skips nothing."""
        return tuple(block.columns[0] for block in self.search_blocks)

    def tokens(self, choices: Sequence[int]) -> list[str]:
        """Return the candidates that are chosen.

        Raises:
            ArchError: there is a wrong number of choices, or one that its position does not have.
        """
        if len(choices) != len(self.search_blocks):
            raise ArchError(f"the space has {len(self.search_blocks)} blocks, but {len(choices)} are chosen")
        found = []
        for block, choice in zip(self.search_blocks, map(operator.index, choices), strict=True):
            if not 0 <= choice < len(self.candidate_ops):
                raise ArchError(
                    f"{self.place(block)}: {choice} is no candidate; they are 0 to "
                    f"{len(self.candidate_ops) - 1}"
                )
            if choice not in block.columns:
                raise ArchError(self._lacks(block, self.candidate_ops[choice]))
            found.append(self.candidate_ops[choice])
        return found

    def _lacks(self, block: SearchBlock, token: str) -> str:
        """Return why a position does not have one of the space's candidates."""
        return f"{self.place(block)}: it cannot be {token}"

    def random_choices(self, rng: random.Random, weights: Sequence[float] | None = None) -> tuple[int, ...]:
        """Return the choices of a random model: each position one of its candidates, independently.

        Args:
            rng: the source of randomness.
            weights: relative weights of the candidates; None makes all of a position equally likely.

        Raises:
            ArchError: the weights do not fit the candidates, or leave a position without a choice.
        """
        if weights is None:
            return tuple(p.columns[rng.randrange(len(p.columns))] for p in self.search_blocks)
        if len(weights) != len(self.candidate_ops) or not all(0 <= w < math.inf for w in weights):
            raise ArchError(
                f"wanted {len(self.candidate_ops)} weights of at least 0, not {shown(list(weights))}"
            )
        found = []
        for block in self.search_blocks:
            own = [weights[k] for k in block.columns]
            if not sum(own):
                raise ArchError(f"{self.place(block)}: the weights of all its choices are 0")
            found.append(rng.choices(block.columns, own)[0])
        return tuple(found)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of everything but the name: equal for equal spaces, on every machine."""
        content = {name: value for name, value in self.to_dict().items() if name != "name"}
        return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def _not_here(self, arch: Any, why: str) -> ArchError:
        return ArchError(f"{shown(arch.name)} is not in the search space {shown(self.name)}: {why}")
