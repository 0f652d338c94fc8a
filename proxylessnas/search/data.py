"""The images of a search: those that train the weights, and those held out to evaluate architectures on.

Both come out of the *training* part of a source. Its validation and test images have no part in a search,
so that the model that comes out of it can be evaluated on them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..data.open import open_data
from ..data.sources import Data, ImageSource
from ..data.transforms import Geometry, Preprocessing, normalised
from ..errors import DataError, shown
from ..train.batch_reader import BatchReader, Item, TrainBatches
from ..train.loader import Unreadable
from ..train.ram_cache import LIMIT_BYTES, images_of, load_into_memory
from ..train.sampler import Steps, mix64
from ..utils.checks import Range
from ..utils.devices import sent
from ..utils.text import counted

if TYPE_CHECKING:
    from torch.utils.data import Dataset

_ARCH_ORDER = 103  # keeps this order of images apart from all streams of random numbers in train.sampler


def open_search_data(
    source: str | os.PathLike[str] | Dataset[Any],
    *,
    arch_fraction: float,
    seed: int,
    limit: int | None = None,
) -> Data:
    """Return the images of a search: ``train`` for the weights, ``val`` held out for the architecture.

    Of each class of the training part, a share is held out. The choice is that which
    :func:`~proxylessnas.data.open.open_data` makes for a share and a seed: whoever trains the derived model
    further with the same two validates it on images that its inherited weights have never seen.

    Args:
        source: whatever :func:`~proxylessnas.data.open.open_data` takes. Folders called val or test beside
            train are not looked into.
        arch_fraction: share of each class that is held out, above 0 and at most 0.9.
        seed: of the choice of what is held out, or kept under a limit.
        limit: take at most so many images a class for the weights, and as many for the architecture.

    Raises:
        DataError: there is nothing to learn from; says where, and what is expected there.
    """
    if arch_fraction not in Range(0, 0.9, open_low=True):
        raise DataError(
            f"arch_fraction is {shown(arch_fraction)}; the share of each class to hold out for the "
            "architecture is above 0 and at most 0.9"
        )
    # With a share as `val`, the source's own validation part is passed over; the share comes out of train.
    data = open_data(source, val=float(arch_fraction), seed=seed, limit=limit)
    if data.val is None:
        raise DataError(
            f"{data.name}: no class has two images, so that none can be held out for the architecture"
        )
    taken, held = (
        f"validation part taken from {data.name}: ",
        f"held out of {data.name} for the architecture: ",
    )
    notes = [note.replace(taken, held) for note in data.notes]
    if limit is not None:
        notes.append(f"architectures are evaluated on {counted(len(data.val), 'held-out image')}")
    if short := len(set(data.train.labels) - set(data.val.labels)):
        notes.append(f"architectures are evaluated without {short} of {len(data.categories)} classes")
    return replace(data, notes=tuple(notes))


class ArchLoader:
    """Batches of held-out images without augmentation, for one process of several.

    Batch ``number`` is a pure function of the seed and this number, with any number of worker processes and
    whatever was asked for before. The batches go through the images in an order drawn anew for each pass;
    what does not fill a batch at the end of a pass is left out. An image that cannot be read is replaced by
    the next readable one. Asked for one after the other, batches are made ahead by the worker processes;
    images that fit into memory are read and resized once, in the constructor, and need none.

    Args: as of :class:`~proxylessnas.train.loader.TrainLoader`, but for

        batch_size: images a batch of all processes together, as in a recipe; each gets its equal share, so
            that together they see what a single one would. Where there are fewer images, a batch is as many
            of them as the processes can share.
        channels_last: memory layout of the inputs.

    Attributes:
        batch_size: images a batch of all processes together.
        batches_per_pass: whole batches until the order is drawn anew.
        unreadable: name to reason of the images that could not be read so far.
        waited_s: seconds that the consumer waited for batches so far.
        in_memory: whether the images are kept in memory.

    Raises:
        DataError: a batch that the processes cannot share evenly, fewer images than processes, or too many
            unreadable images.
    """

    def __init__(
        self,
        images: ImageSource,
        preprocessing: Preprocessing,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        device: str | torch.device = "cpu",
        channels_last: bool = True,
        max_unreadable: float = 0.01,
        limit_bytes: int = LIMIT_BYTES,
    ) -> None:
        self.preprocessing, self.device = preprocessing, torch.device(device)
        self._unreadable = Unreadable(len(images), max_unreadable, "images held out for the architecture")
        self.unreadable = self._unreadable.reasons
        self.waited_s = 0.0
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        self._order = _Order(len(images), batch_size, seed, rank, world)
        self.batch_size, self.batches_per_pass = self._order.steps.batch_size, len(self._order.steps)
        geometry = Geometry(preprocessing)
        size = (preprocessing.input_size, preprocessing.input_size)
        kept = load_into_memory(images, geometry, size=size, limit_bytes=limit_bytes)
        self.in_memory = kept is not None
        self._next = -1
        self._items: Iterator[Item] = iter(())
        if kept is not None:
            self._unreadable.add(kept.unreadable)
            kept.fill_gaps()
            self._images, self._labels = kept.on(self.device), torch.tensor(kept.labels)
        else:
            batches = TrainBatches(images, geometry, mix64(seed, _ARCH_ORDER))
            self._reader = BatchReader(batches, self._order, workers=workers, device=self.device)

    def batch(self, number: int) -> tuple[Tensor, Tensor]:
        """Return this process's share of a batch, numbered from 0; there is no last one.

        Returns:
            float32 [B, 3, S, S], normalised, and long [B]; B is ``batch_size`` over the number of processes.

        Raises:
            DataError: too many images cannot be read, or a worker process died.
        """
        if number < 0:
            raise ValueError(f"batches are numbered from 0, not {number}")
        start = time.perf_counter()
        images, targets = self._from_memory(number) if self.in_memory else self._read(number)
        inputs = normalised(sent(images, self.device), self.preprocessing)
        inputs = inputs.contiguous(memory_format=self._layout)
        targets = sent(targets, self.device)
        self.waited_s += time.perf_counter() - start
        return inputs, targets

    def close(self) -> None:
        """End the worker processes; the next batch starts new ones."""
        self._next, self._items = -1, iter(())
        if not self.in_memory:
            self._reader.close()

    def _from_memory(self, number: int) -> tuple[Tensor, Tensor]:
        chosen = self._order.images(number)
        return images_of(self._images, chosen, self.device).permute(0, 3, 1, 2), self._labels[chosen]

    def _read(self, number: int) -> tuple[Tensor, Tensor]:
        if number != self._next:
            self.close()
            self._order.first = number
            self._items = iter(self._reader)
        self._next = -1  # should reading fail
        images, targets, unreadable = next(self._items)
        self._unreadable.add(unreadable)
        assert images is not None
        self._next = number + 1
        return images, targets


class _Order:
    """Which images are in which batch of one process; as a sampler, all batches from ``first`` on."""

    def __init__(self, n: int, batch_size: int, seed: int, rank: int, world: int) -> None:
        if n < world:
            what = f"{counted(n, 'image')} held out for the architecture"
            raise DataError(f"{what}, fewer than the {world} processes")
        size = batch_size if n >= batch_size else n // world * world
        self.steps = Steps(n, size, mix64(seed, _ARCH_ORDER), rank, world)
        self.first = 0
        self._pass, self._batches = -1, list[Tensor]()

    def images(self, number: int) -> Tensor:
        """Return the places of this process's images in a batch, long [B]."""
        which, step = divmod(number, len(self.steps))
        if which != self._pass:
            self._pass, self._batches = which, list(self.steps.indices(which))
        return self._batches[step]

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        number = self.first
        while True:
            which = number // len(self.steps)
            yield [(which, i) for i in self.images(number).tolist()]
            number += 1
