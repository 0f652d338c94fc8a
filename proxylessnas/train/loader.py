"""Batches for training, as a pure function of (seed, epoch, step, process)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..errors import DataError
from ..transforms import Preprocessing
from .augment import BatchAugment, Geometry
from .eval_loader import EvalLoader
from .mixing import Mixing
from .preprocess import preprocessing_of
from .ram import Progress, RamPictures, load_into_memory
from .recipe import Recipe
from .sampler import Steps

if TYPE_CHECKING:
    from .data import Pictures

__all__ = ["Batch", "EvalLoader", "TrainLoader", "measure_loader", "preprocessing_of"]

_SHOWN = 3  # at most so many unreadable pictures in a message


class Batch(NamedTuple):
    """What one process trains on in one step."""

    inputs: Tensor
    """float32 [B, 3, S, S], normalised."""

    targets: Tensor
    """long [B], or with mixing float32 [B, classes], rows sum to 1."""


class TrainLoader:
    """Batches of augmented training pictures for one process of several.

    The same (seed, epoch, step, rank) gives the same batch, whatever came before it and with any number of
    worker processes. A picture that cannot be read is replaced by the next readable one.

    Pictures of one size that fit into memory are decoded once, in the constructor. If the recipe asks for no
    more than a crop with padding (or none), mirroring and cutout, whole batches are then augmented at once on
    ``device``, and there are no worker processes.

    Args:
        pictures: the training pictures.
        recipe: sizes of batches, seed and augmentation.
        preprocessing: size and normalisation of the net's input.
        num_classes: outputs of the net.
        rank: number of this process.
        world: how many processes train together.
        workers: processes that read and augment pictures for this one; 0 does it in this one.
        device: where the batches are put.
        max_unreadable: share of all pictures that may be unreadable.
        progress: called while pictures are decoded into memory, with how many are done and how many there are.

    Attributes:
        steps_per_epoch: whole batches in an epoch.
        unreadable: name to reason of the pictures that could not be read so far.
        waited_s: seconds that the consumer waited for batches so far; may be set back to 0.
        in_memory: whether the pictures are kept in memory.

    Raises:
        DataError: fewer pictures than a batch, a label the net has no output for, or too many unreadable
            pictures.
    """

    def __init__(
        self,
        pictures: Pictures,
        recipe: Recipe,
        preprocessing: Preprocessing,
        *,
        num_classes: int,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        device: str | torch.device = "cpu",
        max_unreadable: float = 0.01,
        progress: Progress | None = None,
    ) -> None:
        self.recipe, self.preprocessing, self.device = recipe, preprocessing, torch.device(device)
        self.workers, self.max_unreadable = workers, max_unreadable
        self.unreadable: dict[str, str] = {}
        self.waited_s = 0.0
        self._n = len(pictures)
        self._steps = Steps(self._n, recipe.batch_size, recipe.seed, rank, world)
        self.steps_per_epoch = len(self._steps)
        highest = max(int(label) for label in pictures.labels)
        if highest >= num_classes:
            raise DataError(
                f"the pictures have labels up to {highest}, but the net has {num_classes} outputs"
            )
        self._mixing = Mixing(recipe, num_classes, rank)
        kept = self._in_memory(pictures, progress)
        self.in_memory = kept is not None
        if kept is not None:
            self._record(kept.unreadable)
        if kept is None or not BatchAugment.covers(recipe):
            raise NotImplementedError
        self._source = _WholeBatches(kept, recipe, preprocessing, self._steps, self.device)

    def epoch(self, epoch: int, first_step: int = 0, *, mix: bool = True) -> Iterator[Batch]:
        """Yield the batches of an epoch.

        Args:
            epoch: number of the epoch, from 0; there is no last one.
            first_step: step to begin at.
            mix: False leaves out mixup and cutmix.

        Raises:
            DataError: too many pictures cannot be read, or a worker process died.
        """
        layout = torch.channels_last if self.recipe.channels_last else torch.contiguous_format
        batches = self._source.epoch(epoch, first_step)
        for step in range(first_step, self.steps_per_epoch):
            start = time.perf_counter()
            inputs, targets, unreadable = next(batches)
            self._record(unreadable)
            inputs = inputs.contiguous(memory_format=layout)
            if mix and self._mixing:
                inputs, targets = self._mixing(inputs, targets, epoch, step)
            self.waited_s += time.perf_counter() - start
            yield Batch(inputs, targets)

    def _in_memory(self, pictures: Pictures, progress: Progress | None) -> RamPictures | None:
        prepare, size = None, None
        if self.recipe.crop != "resized":  # then the first thing done to a picture is always the same
            p = self.preprocessing
            prepare = Geometry(p, p.input_size if self.recipe.crop == "padded" else None)
            size = (p.input_size, p.input_size)
        return load_into_memory(pictures, prepare, size=size, progress=progress)

    def _record(self, unreadable: dict[str, str]) -> None:
        if not unreadable:
            return
        self.unreadable.update(unreadable)
        if len(self.unreadable) > self.max_unreadable * self._n:
            first = "\n  ".join(list(self.unreadable.values())[:_SHOWN])
            more = "\n  ..." if len(self.unreadable) > _SHOWN else ""
            raise DataError(
                f"{len(self.unreadable)} of {self._n} training pictures cannot be read, more than the "
                f"{self.max_unreadable:.3%} that are let pass; repair or remove them:\n  {first}{more}"
            )


class _WholeBatches:
    """Batches from pictures in memory, augmented at once."""

    def __init__(
        self,
        pictures: RamPictures,
        recipe: Recipe,
        preprocessing: Preprocessing,
        steps: Steps,
        device: torch.device,
    ) -> None:
        self.augment = BatchAugment(recipe, preprocessing, device)
        self.steps, self.device = steps, device
        self.stand_ins = pictures.next_readable()
        self.images = pictures.on(device)
        self.labels = torch.tensor(pictures.labels)

    def epoch(self, epoch: int, first_step: int) -> Iterator[tuple[Tensor, Tensor, dict[str, str]]]:
        draws = self.augment.draws(len(self.images), epoch)
        for indices in self.steps.indices(epoch, first_step):
            shown = self.stand_ins[indices]
            images = self.images.index_select(0, shown.to(self.images.device))
            if images.device != self.device:
                images = images.pin_memory() if self.device.type == "cuda" else images
                images = images.to(self.device, non_blocking=True)
            targets = self.labels[shown].to(self.device, non_blocking=True)
            yield self.augment(images, draws.of(indices, self.device)), targets, {}


def measure_loader(loader: TrainLoader, seconds: float = 5.0) -> float:
    """Return how many pictures a second the loader alone delivers to this process.

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
