"""Which image is seen when, and from which random numbers: pure functions of the recipe's seed.

Nothing here has a state that would have to be saved. A run that is resumed in the middle of an epoch, one
with another number of worker processes, and each of several training processes all work out the same order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import DataError

# What a stream of random numbers is for. Two streams of one seed must not be equal.
ORDER, IMAGE, BATCHES, MIXING, MIRRORS = 1, 2, 3, 4, 5

_MASK = (1 << 64) - 1


def mix64(*values: int) -> int:
    """Return a 64-bit number in which every bit of every value, and their order, counts (SplitMix64).

    Neighbouring seeds, epochs and images get unrelated numbers; ``seed + index`` would give two epochs the
    same augmentations shifted by one image.
    """
    state = 0x9E3779B97F4A7C15
    for value in values:
        state = ((state ^ (value & _MASK)) + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state


def generator(*values: int) -> torch.Generator:
    """Return a random generator (CPU) of its own, seeded by :func:`mix64`."""
    return torch.Generator().manual_seed(mix64(*values))


def order(n: int, seed: int, epoch: int) -> Tensor:
    """Return the order of ``n`` images in an epoch: a permutation, long [n]."""
    return torch.randperm(n, generator=generator(seed, ORDER, epoch))


class Steps:
    """The images of every optimiser step, for one process of several.

    Step ``t`` of an epoch takes images ``[t * batch_size, (t + 1) * batch_size)`` of the epoch's order;
    what does not fill a batch is left out. A step is computed in ``accumulate`` parts, one after the other,
    and of each part process ``rank`` of ``world`` takes the ``rank``-th piece. Its share of the step is these
    pieces in their order, so that in each part all processes together see what a single one would: this
    matters to BatchNorm, where its statistics are taken over all of them.

    As the sampler of a ``DataLoader`` this yields the batches of one epoch, each a list of ``(epoch,
    image)``: so the epoch gets to worker processes that outlive it.

    Attributes:
        epoch: the epoch to iterate over.
        first_step: where to start in it.

    Raises:
        DataError: fewer images than a batch, or a batch that cannot be shared evenly.
    """

    def __init__(
        self, n: int, batch_size: int, seed: int, rank: int = 0, world: int = 1, accumulate: int = 1
    ) -> None:
        pieces = world * accumulate
        if batch_size < 1 or batch_size % pieces:
            below = batch_size // pieces * pieces
            usable = [size for size in (below, below + pieces) if 0 < size <= n] or [pieces]
            parts = f", each in {accumulate} parts (accumulate)" if accumulate > 1 else ""
            raise DataError(
                f"a batch of {batch_size} images cannot be shared evenly by {world} processes{parts}: "
                f"batch_size has to be a multiple of {pieces}, such as {' or '.join(map(str, usable))}"
            )
        if n < batch_size:
            raise DataError(
                f"there are {n} training images, fewer than one batch of {batch_size}: "
                f"choose a batch_size of at most {n}, or add images"
            )
        self.n, self.batch_size, self.seed = n, batch_size, seed
        self.rank, self.world, self.accumulate = rank, world, accumulate
        self.epoch = self.first_step = 0

    def __len__(self) -> int:
        return self.n // self.batch_size

    def indices(self, epoch: int, first_step: int = 0) -> Iterator[Tensor]:
        """Yield this process's images, long [batch_size / world], for each step of an epoch."""
        everything = order(self.n, self.seed, epoch)
        for step in range(first_step, len(self)):
            whole = everything[step * self.batch_size : (step + 1) * self.batch_size]
            yield whole.view(self.accumulate, self.world, -1)[:, self.rank].flatten()

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch = self.epoch  # the worker processes are fed ahead, while the attribute may change
        for indices in self.indices(epoch, self.first_step):
            yield [(epoch, i) for i in indices.tolist()]


@dataclass
class Position:
    """How far a run is: whole epochs, steps in the present one, and sums over those steps."""

    epoch: int = 0
    step: int = 0
    global_step: int = 0
    loss_sum: float = 0.0
    seconds: float = 0.0
    waited: float = 0.0
    total_seconds: float = 0.0
    best: dict[str, float] = field(default_factory=dict)

    def add(self, loss: float, seconds: float, waited: float) -> None:
        """Add the sum of the losses of some steps, and the time that they took."""
        self.loss_sum, self.waited = self.loss_sum + loss, self.waited + waited
        self.seconds, self.total_seconds = self.seconds + seconds, self.total_seconds + seconds

    def next_epoch(self) -> None:
        """Go to the start of the next epoch."""
        self.epoch, self.step = self.epoch + 1, 0
        self.loss_sum = self.seconds = self.waited = 0.0
