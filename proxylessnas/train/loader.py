"""Batches for training, as a pure function of (seed, epoch, step, process)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor

from ..data.transforms import Preprocessing
from ..data.unreadable import Unreadable
from ..errors import DataError
from ..utils.devices import sent
from .augment import BatchAugment, Mixing, preparation, train_transform
from .batch_reader import BatchReader, Item, TrainBatches
from .eval_loader import EvalLoader
from .ram_cache import LIMIT_BYTES, Progress, RamImages, images_of, load_into_memory
from .recipe import Recipe
from .sampler import Steps

if TYPE_CHECKING:
    from ..data.sources import ImageSource


__all__ = ["Batch", "EvalLoader", "TrainLoader", "measure_loader"]


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
    ``device``, and there are no worker processes.

    Args:
        images: the training images.
        recipe: sizes of batches, seed and augmentation.
        preprocessing: size and normalisation of the model's input.
        num_classes: outputs of the model.
        rank: number of this process.
        world: how many processes train together.
        workers: processes that read and augment images for this one; 0 does it in this one.
        device: where the batches are put.
        max_unreadable: share of all images that may be unreadable.
        limit_bytes: most memory for keeping the images. With the recipe and the images it decides how
            batches are made, and so which random numbers they get.
        progress: called while images are read into memory, with how many are done and how many there are.

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
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        device: str | torch.device = "cpu",
        max_unreadable: float = 0.01,
        limit_bytes: int = LIMIT_BYTES,
        progress: Progress | None = None,
    ) -> None:
        self.recipe, self.preprocessing, self.device = recipe, preprocessing, torch.device(device)
        self.workers = workers
        self._unreadable = Unreadable(len(images), max_unreadable, "training images")
        self.unreadable = self._unreadable.reasons
        self.waited_s = 0.0
        self._steps = Steps(len(images), recipe.batch_size, recipe.seed, rank, world, recipe.accumulate)
        self.steps_per_epoch = len(self._steps)
        lowest, highest = min(images.labels), max(images.labels)
        if lowest < 0 or highest >= num_classes:
            raise DataError(
                f"the images' labels run from {lowest} to {highest}; a model of {num_classes} outputs takes "
                f"0 to {num_classes - 1}"
            )
        self._mixing = Mixing(recipe, num_classes, rank)
        kept = self._in_memory(images, limit_bytes, progress)
        self.in_memory = kept is not None
        if kept is not None:
            self._unreadable.add(kept.unreadable)
            kept.fill_gaps()
        self._source: _Source
        if kept is not None and BatchAugment.covers(recipe):
            self._source = _WholeBatches(kept, recipe, preprocessing, self._steps, self.device)
        else:
            transform = train_transform(recipe, preprocessing, prepared=self.in_memory)
            batches = TrainBatches(images if kept is None else kept, transform, recipe.seed)
            self._source = _ImageByImage(batches, self._steps, workers, self.device)

    def epoch(self, epoch: int, first_step: int = 0, *, mix: bool = True) -> Iterator[Batch]:
        """Yield the batches of an epoch. It may be left before its end, but is over when the next one begins.

        Args:
            epoch: number of the epoch, from 0; there is no last one.
            first_step: step to begin at.
            mix: False leaves out mixup and cutmix.

        Raises:
            DataError: too many images cannot be read, or a worker process died.
        """
        layout = torch.channels_last if self.recipe.channels_last else torch.contiguous_format
        batches = self._source.epoch(epoch, first_step)
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

    def close(self) -> None:
        """End the worker processes, if there are any; the next epoch starts new ones."""
        self._source.close()

    def _in_memory(
        self, images: ImageSource, limit_bytes: int, progress: Progress | None
    ) -> RamImages | None:
        prepare = preparation(self.recipe, self.preprocessing)
        size = None if prepare is None else (prepare.size, prepare.size)
        return load_into_memory(images, prepare, size=size, limit_bytes=limit_bytes, progress=progress)


class _Source(Protocol):
    """Where batches come from."""

    def epoch(self, epoch: int, first_step: int) -> Iterator[Item]: ...

    def close(self) -> None: ...


class _WholeBatches:
    """Batches from images in memory, augmented at once on the device."""

    def __init__(
        self,
        images: RamImages,
        recipe: Recipe,
        preprocessing: Preprocessing,
        steps: Steps,
        device: torch.device,
    ) -> None:
        self.augment = BatchAugment(recipe, preprocessing, device)
        self.steps, self.device = steps, device
        self.images = images.on(device)
        self.labels = torch.tensor(images.labels)

    def epoch(self, epoch: int, first_step: int) -> Iterator[Item]:
        draws = self.augment.draws(len(self.images), epoch)
        for indices in self.steps.indices(epoch, first_step):
            images = images_of(self.images, indices, self.device)
            yield self.augment(images, draws.of(indices, self.device)), self.labels[indices], {}

    def close(self) -> None:
        pass


class _ImageByImage:
    """Batches from images that are augmented one by one, by worker processes if there are any."""

    def __init__(self, batches: TrainBatches, steps: Steps, workers: int, device: torch.device) -> None:
        self.steps = steps
        workers = min(workers, len(steps))
        self.reader = BatchReader(batches, steps, workers=workers, device=device, persistent=True)

    def epoch(self, epoch: int, first_step: int) -> Iterator[Item]:
        self.steps.epoch, self.steps.first_step = epoch, first_step
        yield from self.reader

    def close(self) -> None:
        self.reader.close()


def measure_loader(loader: TrainLoader, seconds: float = 5.0) -> float:
    """Return how many images a second the loader alone delivers to this process.

    Worker processes are started, and a first batch fetched, before the clock runs.
    """
    waited = loader.waited_s
    n = epoch = 0
    start = None
    while start is None or time.perf_counter() - start < seconds:
        for batch in loader.epoch(epoch):
            if start is None:
                start = time.perf_counter()
                continue
            n += len(batch.inputs)
            if time.perf_counter() - start >= seconds:
                break
        epoch += 1
    loader.waited_s = waited
    return n / max(time.perf_counter() - start, 1e-9)
