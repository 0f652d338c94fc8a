"""Batches for training, as a pure function of (seed, epoch, step, process), and batches to validate on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ..data.sources import ImageSource
from ..data.transforms import Geometry, Preprocessing, normalised
from ..errors import DataError
from ..utils.devices import sent
from ..utils.distributed import ALONE, Processes
from .augment import BatchAugment, Mixing, preparation, train_transform
from .batch_reader import BatchReader, EvalBatches, Item, TrainBatches
from .ram_cache import LIMIT_BYTES, images_of, load_into_memory
from .recipe import Recipe
from .sampler import Steps

_IN_ERROR, _IN_NOTE = 3, 10  # at most so many unreadable images are named


class Batch(NamedTuple):
    """What one process trains on in one step."""

    inputs: Tensor
    """float32 [B, 3, S, S], normalised."""

    targets: Tensor
    """long [B], or with mixing float32 [B, classes], rows sum to 1."""


class TrainLoader:
    """Batches of augmented training images for one process of several.

    The same (seed, epoch, step, rank) gives the same batch, whatever came before it and with any number of
    worker processes. An image that cannot be read is replaced by the next readable one.

    Images of one size that fit into memory are decoded once, in the constructor. If the recipe asks for no
    more than a crop with padding (or none), mirroring and cutout, whole batches are then augmented at once on
    the device, and there are no worker processes.

    Args:
        images: to train on.
        recipe: sizes of batches, seed and augmentation.
        preprocessing: size and normalisation of the model's input.
        num_classes: outputs of the model.
        processes: those that train together; the batches are put on this one's device.
        workers: processes that read and augment images for this one; 0 does it in this one.
        max_unreadable: share of all images that may be unreadable.
        limit_bytes: most memory for keeping the images. With the recipe and the images it decides how
            batches are made, and so which random numbers they get.

    Attributes:
        steps_per_epoch: whole batches in an epoch.
        unreadable: name to reason of the images that could not be read so far.
        waited_s: seconds that the consumer waited for batches so far; may be set back to 0.
        in_memory: whether the images are kept in memory.

    Raises:
        DataError: fewer images than a batch, a batch that the processes cannot share evenly in the recipe's
            ``accumulate`` parts, a label the model has no output for, or too many unreadable images.
    """

    def __init__(
        self,
        images: ImageSource,
        recipe: Recipe,
        preprocessing: Preprocessing,
        *,
        num_classes: int,
        processes: Processes = ALONE,
        workers: int = 0,
        max_unreadable: float = 0.01,
        limit_bytes: int = LIMIT_BYTES,
    ) -> None:
        self.recipe, self.preprocessing, self.device = recipe, preprocessing, processes.device
        self._unreadable = Unreadable(len(images), max_unreadable, "training images")
        self.unreadable = self._unreadable.reasons
        self.waited_s = 0.0
        rank, world = processes.rank, processes.world
        self._steps = Steps(len(images), recipe.batch_size, recipe.seed, rank, world, recipe.accumulate)
        self.steps_per_epoch = len(self._steps)
        lowest, highest = min(images.labels), max(images.labels)
        if lowest < 0 or highest >= num_classes:
            raise DataError(
                f"the images' labels run from {lowest} to {highest}; a model of {num_classes} outputs takes "
                f"0 to {num_classes - 1}"
            )
        self._mixing = Mixing(recipe, num_classes, rank)
        prepare = preparation(recipe, preprocessing)
        size = None if prepare is None else (prepare.size, prepare.size)
        kept = load_into_memory(images, prepare, size=size, limit_bytes=limit_bytes)
        self.in_memory = kept is not None
        if kept is not None:
            self._unreadable.add(kept.unreadable)
            kept.fill_gaps()
        self._reader: BatchReader | None = None
        if kept is not None and BatchAugment.covers(recipe):
            self._augment = BatchAugment(recipe, preprocessing, self.device)
            self._images, self._labels = kept.on(self.device), torch.tensor(kept.labels)
        else:
            transform = train_transform(recipe, preprocessing, prepared=self.in_memory)
            batches = TrainBatches(images if kept is None else kept, transform, recipe.seed)
            workers = min(workers, self.steps_per_epoch)
            self._reader = BatchReader(
                batches, self._steps, workers=workers, device=self.device, persistent=True
            )

    def epoch(self, epoch: int, first_step: int = 0, *, mix: bool = True) -> Iterator[Batch]:
        """Yield the batches of an epoch. It may be left before its end, but is over when the next one begins.

        Args:
            epoch: from 0; there is no last one.
            first_step: to begin at.
            mix: False leaves out mixup and cutmix.

        Raises:
            DataError: too many images cannot be read, or a worker process died.
        """
        layout = torch.channels_last if self.recipe.channels_last else torch.contiguous_format
        batches = self._items(epoch, first_step)
        for step in range(first_step, self.steps_per_epoch):
            start = time.perf_counter()
            inputs, targets, unreadable = next(batches)
            assert inputs is not None
            self._unreadable.add(unreadable)
            inputs = inputs.to(self.device, memory_format=layout, non_blocking=True)
            targets = sent(targets, self.device)
            if mix and self._mixing:
                inputs, targets = self._mixing(inputs, targets, epoch, step)
            self.waited_s += time.perf_counter() - start
            yield Batch(inputs, targets)

    def _items(self, epoch: int, first_step: int) -> Iterator[Item]:
        if self._reader is not None:  # image by image
            self._steps.epoch, self._steps.first_step = epoch, first_step
            yield from self._reader
            return
        draws = self._augment.draws(len(self._images), epoch)
        for indices in self._steps.indices(epoch, first_step):
            images = images_of(self._images, indices, self.device)
            yield self._augment(images, draws.of(indices, self.device)), self._labels[indices], {}

    def close(self) -> None:
        """End the worker processes, if there are any; the next epoch starts new ones."""
        if self._reader is not None:
            self._reader.close()


class EvalLoader:
    """Batches ``(inputs, targets)`` of one process's share of the validation images, in order.

    Process ``rank`` of ``world`` gets the images ``rank, rank + world, ...``, so that none counts twice;
    the shares may differ by one image, and a share may be empty. Images that cannot be read are left out.
    What fits into memory is read and resized once, in the constructor. Arguments are as of
    :class:`TrainLoader`; the last batch may be smaller than ``batch_size``.

    Attributes:
        unreadable: name to reason of this share's images that could not be read so far.

    Raises:
        DataError: none of the images of this share can be read.
    """

    def __init__(
        self,
        images: ImageSource,
        preprocessing: Preprocessing,
        *,
        batch_size: int,
        processes: Processes = ALONE,
        workers: int = 0,
        limit_bytes: int = LIMIT_BYTES,
    ) -> None:
        self.preprocessing, self.batch_size, self.device = preprocessing, batch_size, processes.device
        self.indices = range(processes.rank, len(images), processes.world)
        self.unreadable: dict[str, str] = {}
        self._source, self._workers, self._geometry = images, workers, Geometry(preprocessing)
        size = (preprocessing.input_size, preprocessing.input_size)
        kept = load_into_memory(
            images, self._geometry, size=size, indices=self.indices, limit_bytes=limit_bytes
        )
        self._in_memory = kept is not None
        if kept is not None:
            self.unreadable = kept.unreadable
            self._chosen = kept.readable.nonzero().flatten()
            self._check(len(self._chosen))
            self._images, self._labels = kept.on(self.device), torch.tensor(kept.labels)

    def __len__(self) -> int:
        """Return the number of batches (fewer come if images cannot be read)."""
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield float32 [B, 3, S, S] in channels-last layout, and long [B].

        Raises:
            DataError: none of the images of this share can be read, or a worker process died.
        """
        found = 0
        for images, targets in self._from_memory() if self._in_memory else self._read():
            found += len(targets)
            yield normalised(sent(images, self.device), self.preprocessing), sent(targets, self.device)
        self._check(found)

    def _check(self, found: int) -> None:
        if self.indices and not found:
            raise DataError(
                f"none of {len(self.indices)} validation images can be read; "
                f"{next(iter(self.unreadable.values()))}"
            )

    def _from_memory(self) -> Iterator[tuple[Tensor, Tensor]]:
        for chosen in self._chosen.split(self.batch_size):
            images = images_of(self._images, chosen, self.device)
            yield images.permute(0, 3, 1, 2), self._labels[chosen]

    def _read(self) -> Iterator[tuple[Tensor, Tensor]]:
        parts = [self.indices[i : i + self.batch_size] for i in range(0, len(self.indices), self.batch_size)]
        batches = EvalBatches(self._source, self._geometry)
        workers = min(self._workers, len(parts))
        for images, targets, unreadable in BatchReader(batches, parts, workers=workers, device=self.device):
            self.unreadable.update(unreadable)
            if images is not None:
                yield images, targets


class Unreadable:
    """The images of a loader that could not be read so far; a share of all is let pass.

    Args:
        n: how many images there are.
        share: of them that may be unreadable.
        what: they are, in messages: "training images".

    Attributes:
        reasons: name of an image to why it cannot be read.
    """

    def __init__(self, n: int, share: float, what: str) -> None:
        self._n, self._share, self._what = n, share, what
        self.reasons: dict[str, str] = {}

    def add(self, reasons: Mapping[str, str]) -> None:
        """Take note of some more.

        Raises:
            DataError: they are too many now; names the first ones.
        """
        if not reasons:
            return
        self.reasons.update(reasons)
        if len(self.reasons) > self._share * self._n:
            first = "\n  ".join(list(self.reasons.values())[:_IN_ERROR])
            more = "\n  ..." if len(self.reasons) > _IN_ERROR else ""
            raise DataError(
                f"{len(self.reasons)} of {self._n} {self._what} cannot be read, more than the "
                f"{100 * self._share:g} % that are let pass (--max-unreadable); repair, convert or remove "
                f"them:\n  {first}{more}"
            )


class UnreadableNotes:
    """Tells the user of unreadable images, each of them once."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def tell(self, note: Callable[[str], None], part: str, reasons: Mapping[str, str], instead: str) -> None:
        """Tell of those that were not told of yet.

        Args:
            note: shows a text.
            part: which images, such as "training".
            reasons: name to reason of all that were found so far.
            instead: what is done about them, such as "they are left out".
        """
        fresh = [reason for name, reason in reasons.items() if name not in self._told]
        self._told.update(reasons)
        if fresh:
            more = f"\n  and {len(fresh) - _IN_NOTE} more" if len(fresh) > _IN_NOTE else ""
            shown = "\n  ".join(fresh[:_IN_NOTE])
            note(f"{len(fresh)} {part} image(s) cannot be read, {instead}:\n  {shown}{more}")
