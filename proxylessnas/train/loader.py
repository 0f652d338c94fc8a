"""Batches for training, as a pure function of (seed, epoch, step, process)."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import signal
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..data.transforms import Preprocessing
from ..data.unreadable import Unreadable
from ..errors import DataError, ImageError
from ..utils.devices import sent
from ..utils.random import keep_random_state, seed_everything
from ..utils.subprocesses import safe_path
from .augment import BatchAugment, Mixing, preparation, train_transform
from .eval_loader import EvalLoader
from .evaluate import allowed_workers, dead_workers_as_data_error, ignore_interrupt, read_ahead
from .ram_cache import LIMIT_BYTES, Progress, RamPictures, load_into_memory, pictures_of
from .recipe import Recipe
from .sampler import PICTURE, Steps, mix64

if TYPE_CHECKING:
    from ..data.sources import Pictures

# DOC proxylessnas.train.reading: """Batches read picture by picture, in this process or in worker processes."""

__all__ = ["Batch", "EvalLoader", "TrainLoader", "measure_loader"]


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
        limit_bytes: most memory for keeping the pictures. With the recipe and the pictures it decides how
            batches are made, and so which random numbers they get.
        progress: called while pictures are read into memory, with how many are done and how many there are.

    Attributes:
        steps_per_epoch: whole batches in an epoch.
        unreadable: name to reason of the pictures that could not be read so far.
        waited_s: seconds that the consumer waited for batches so far; may be set back to 0.
        in_memory: whether the pictures are kept in memory.

    Raises:
        DataError: fewer pictures than a batch, a batch that the processes cannot share evenly in the recipe's
            ``accumulate`` parts, a label the net has no output for, or too many unreadable pictures.
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
        limit_bytes: int = LIMIT_BYTES,
        progress: Progress | None = None,
    ) -> None:
        self.recipe, self.preprocessing, self.device = recipe, preprocessing, torch.device(device)
        self.workers = workers
        self._unreadable = Unreadable(len(pictures), max_unreadable, "training pictures")
        self.unreadable = self._unreadable.reasons
        self.waited_s = 0.0
        self._steps = Steps(len(pictures), recipe.batch_size, recipe.seed, rank, world, recipe.accumulate)
        self.steps_per_epoch = len(self._steps)
        lowest, highest = min(pictures.labels), max(pictures.labels)
        if lowest < 0 or highest >= num_classes:
            raise DataError(
                f"the pictures' labels run from {lowest} to {highest}; a net of {num_classes} outputs takes "
                f"0 to {num_classes - 1}"
            )
        self._mixing = Mixing(recipe, num_classes, rank)
        kept = self._in_memory(pictures, limit_bytes, progress)
        self.in_memory = kept is not None
        if kept is not None:
            self._unreadable.add(kept.unreadable)
            kept.fill_gaps()
        self._source: _Source
        if kept is not None and BatchAugment.covers(recipe):
            self._source = _WholeBatches(kept, recipe, preprocessing, self._steps, self.device)
        else:
            transform = train_transform(recipe, preprocessing, prepared=self.in_memory)
            batches = TrainBatches(pictures if kept is None else kept, transform, recipe.seed)
            self._source = _PictureByPicture(batches, self._steps, workers, self.device)

    def epoch(self, epoch: int, first_step: int = 0, *, mix: bool = True) -> Iterator[Batch]:
        """Yield the batches of an epoch. It may be left before its end, but is over when the next one begins.

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
        self, pictures: Pictures, limit_bytes: int, progress: Progress | None
    ) -> RamPictures | None:
        prepare = preparation(self.recipe, self.preprocessing)
        size = None if prepare is None else (prepare.size, prepare.size)
        return load_into_memory(pictures, prepare, size=size, limit_bytes=limit_bytes, progress=progress)


class _Source(Protocol):
    """Where batches come from."""

    def epoch(self, epoch: int, first_step: int) -> Iterator[Item]: ...

    def close(self) -> None: ...


class _WholeBatches:
    """Batches from pictures in memory, augmented at once on the device."""

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
        self.images = pictures.on(device)
        self.labels = torch.tensor(pictures.labels)

    def epoch(self, epoch: int, first_step: int) -> Iterator[Item]:
        draws = self.augment.draws(len(self.images), epoch)
        for indices in self.steps.indices(epoch, first_step):
            images = pictures_of(self.images, indices, self.device)
            yield self.augment(images, draws.of(indices, self.device)), self.labels[indices], {}

    def close(self) -> None:
        pass


class _PictureByPicture:
    """Batches from pictures that are augmented one by one, by worker processes if there are any."""

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


Transform = Callable[[Tensor], Tensor]

#: Inputs (None if no picture could be read), targets, and name to reason of the unreadable pictures.
Item = tuple[Tensor | None, Tensor, dict[str, str]]


class TrainBatches:
    """A dataset whose items are whole batches: ``[(epoch, picture), ...]`` to inputs and targets.

    Every picture is read and augmented from random numbers of its own, which follow from the seed, the epoch
    and its index. In place of one that cannot be read stands the next readable one.
    """

    def __init__(self, pictures: Pictures, transform: Transform, seed: int) -> None:
        self.pictures, self.transform, self.seed = pictures, transform, seed

    def __getitem__(self, places: Sequence[tuple[int, int]]) -> Item:
        images, labels = [], []
        reasons: dict[str, str] = {}
        with keep_random_state():
            for epoch, index in places:
                seed_everything(mix64(self.seed, PICTURE, epoch, index))
                image, label = self._readable(index, reasons)
                images.append(self.transform(image))
                labels.append(label)
        return _stacked(images), torch.tensor(labels), reasons

    def _readable(self, index: int, reasons: dict[str, str]) -> tuple[Tensor, int]:
        n = len(self.pictures)
        for k in range(n):
            i = (index + k) % n
            try:
                return self.pictures.read(i), int(self.pictures.labels[i])
            except ImageError as e:
                reasons[self.pictures.name(i)] = str(e)
        raise DataError(f"none of {n} training pictures can be read; {next(iter(reasons.values()))}")


class EvalBatches:
    """A dataset whose items are whole batches: ``[picture, ...]`` to inputs and targets.

    Pictures that cannot be read are left out.
    """

    def __init__(self, pictures: Pictures, transform: Transform) -> None:
        self.pictures, self.transform = pictures, transform

    def __getitem__(self, indices: Sequence[int]) -> Item:
        images, labels = [], []
        reasons: dict[str, str] = {}
        with keep_random_state():
            for i in indices:
                try:
                    image = self.pictures.read(i)
                except ImageError as e:
                    reasons[self.pictures.name(i)] = str(e)
                    continue
                images.append(self.transform(image))
                labels.append(int(self.pictures.labels[i]))
        return _stacked(images) if images else None, torch.tensor(labels), reasons


class BatchReader:
    """Passes over batches, made ahead by worker processes (a ``DataLoader``) or, without any, when asked for.

    One pass at a time: the next one ends the one before.

    Args:
        batches: makes a batch.
        sampler: says, for each pass, which pictures each batch holds.
        workers: processes; 0 reads in this one.
        device: where the batches go; for a GPU they are put into pinned memory.
        persistent: keep the worker processes from one pass to the next.
    """

    def __init__(
        self,
        batches: TrainBatches | EvalBatches,
        sampler: Iterable[Any],
        *,
        workers: int,
        device: torch.device,
        persistent: bool = False,
    ) -> None:
        self.batches, self.sampler, self.workers = batches, sampler, allowed_workers(workers)
        self.pin_memory, self.persistent = device.type == "cuda", persistent and self.workers > 0
        self._loader: Any = None
        self._items: Any = None

    def __iter__(self) -> Iterator[Item]:
        """Yield the batches of one pass.

        Raises:
            DataError: a worker process died.
        """
        from torch.utils.data import DataLoader

        if self._loader is None:
            self._loader = DataLoader(
                self.batches,  # type: ignore[arg-type]  # any class with __getitem__ will do
                batch_size=None,
                sampler=self.sampler,
                num_workers=self.workers,
                collate_fn=_unchanged,
                pin_memory=self.pin_memory,
                worker_init_fn=_start_worker if self.workers else None,
                persistent_workers=self.persistent,
                generator=torch.Generator(),  # else each pass draws from the global one
            )
        try:
            with dead_workers_as_data_error(fetching=self.workers > 0), safe_path():
                items = self._items = iter(self._loader)
            if self.workers:
                _RUNNING.add(items)
                for worker in getattr(items, "_workers", ()):
                    worker.terminate = worker.kill  # SIGTERM they pass over
            yield from read_ahead(items, workers=self.workers)
        except DataError:
            self.close()
            raise

    def close(self) -> None:
        """End the worker processes; the next pass starts new ones."""
        if self.workers and self._items is not None:
            _end_workers(self._items)
        self._loader = self._items = None


def _stacked(images: Sequence[Tensor]) -> Tensor:
    """Return pictures [C, H, W] as one batch [B, C, H, W] in channels-last layout."""
    first = images[0]
    batch = first.new_empty(len(images), *first.shape[1:], first.shape[0])
    for place, image in zip(batch, images, strict=True):
        place.copy_(image.permute(1, 2, 0))
    return batch.permute(0, 3, 1, 2)


def _unchanged(item: Any) -> Any:
    return item


def _start_worker(worker: int) -> None:
    ignore_interrupt(worker)
    signal.signal(signal.SIGTERM, functools.partial(_leave_if_alone, os.getppid()))


def _leave_if_alone(parent: int, number: int, frame: FrameType | None) -> None:
    # A job scheduler sends SIGTERM to every process; the main one still has to end its step, or a validation
    # of many minutes, and save, for which this one must live. Once the main process has gone this one leaves
    # anyway: a DataLoader's workers look for it between two batches and every few seconds.
    if os.getppid() != parent:
        os._exit(1)


# Passes with worker processes. When Python exits, it sends each worker that is left a SIGTERM and waits for
# it to end, which it does not do: the workers must have gone by then.
_RUNNING: weakref.WeakSet[Any] = weakref.WeakSet()


def _end_workers(items: Any) -> None:
    end = getattr(items, "_shutdown_workers", None)  # not public; what the iterator does when it is freed
    if end is not None:
        with contextlib.suppress(DataError), dead_workers_as_data_error():  # dead is what they shall be
            end()


@atexit.register
def _end_all_workers() -> None:
    for items in list(_RUNNING):
        _end_workers(items)
