"""Batches read image by image, in this process or in worker processes."""

from __future__ import annotations

import atexit
import contextlib
import functools
import multiprocessing
import os
import signal
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from ..data.sources import ImageSource
from ..errors import DataError, ImageError, ProxylessError
from ..utils.random import keep_random_state, seed_everything
from ..utils.subprocesses import safe_path
from .sampler import IMAGE, mix64

Transform = Callable[[Any], Tensor]
#: Inputs (None if no image could be read), targets, and name to reason of the unreadable images.
Item = tuple[Tensor | None, Tensor, dict[str, str]]

#: Said where :func:`allowed_workers` leaves none.
NO_WORKERS = (
    "images are read without worker processes: this process is a daemonic one (of a multiprocessing pool, "
    "Celery, Airflow, ...), which may not start any"
)


def allowed_workers(workers: int) -> int:
    """Return how many worker processes this process may start: as many as are asked for, or none."""
    return 0 if multiprocessing.current_process().daemon else workers


class TrainBatches:
    """A dataset whose items are whole batches: ``[(epoch, image), ...]`` to inputs and targets.

    Every image is read and augmented from random numbers of its own, which follow from the seed, the epoch
    and its index. In place of one that cannot be read stands the next readable one.
    """

    def __init__(self, images: ImageSource, transform: Transform, seed: int) -> None:
        self.images, self.transform, self.seed = images, transform, seed

    def __getitem__(self, places: Sequence[tuple[int, int]]) -> Item:
        images, labels = [], []
        reasons: dict[str, str] = {}
        with keep_random_state():
            for epoch, index in places:
                seed_everything(mix64(self.seed, IMAGE, epoch, index))
                image, label = self._readable(index, reasons)
                images.append(self.transform(image))
                labels.append(label)
        return _stacked(images), torch.tensor(labels), reasons

    def _readable(self, index: int, reasons: dict[str, str]) -> tuple[Tensor, int]:
        n = len(self.images)
        for k in range(n):
            i = (index + k) % n
            try:
                return self.images.read(i), int(self.images.labels[i])
            except ImageError as e:
                reasons[self.images.name(i)] = str(e)
        raise DataError(f"none of {n} training images can be read; {next(iter(reasons.values()))}")


class EvalBatches:
    """A dataset whose items are whole batches: ``[image, ...]`` to inputs and targets.

    Images that cannot be read are left out.
    """

    def __init__(self, images: ImageSource, transform: Transform) -> None:
        self.images, self.transform = images, transform

    def __getitem__(self, indices: Sequence[int]) -> Item:
        images, labels = [], []
        reasons: dict[str, str] = {}
        with keep_random_state():
            for i in indices:
                try:
                    image = self.images.read(i)
                except ImageError as e:
                    reasons[self.images.name(i)] = str(e)
                    continue
                images.append(self.transform(image))
                labels.append(int(self.images.labels[i]))
        return _stacked(images) if images else None, torch.tensor(labels), reasons


def _stacked(images: Sequence[Tensor]) -> Tensor:
    """Return images [C, H, W] as one batch [B, C, H, W] in channels-last layout."""
    return torch.stack([image.movedim(0, -1) for image in images]).movedim(-1, 1)


class BatchReader:
    """Passes over batches, made ahead by worker processes (a ``DataLoader``) or, without any, when asked for.

    One pass at a time: the next one ends the one before.

    Args:
        batches: makes a batch.
        sampler: says, for each pass, which images each batch holds.
        workers: processes; 0 reads in this one, with one thread.
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
            alone: Any = contextlib.nullcontext if self.workers else one_thread  # workers have one anyway
            while True:
                with alone(), dead_workers_as_data_error(fetching=self.workers > 0):
                    item = next(items, None)
                if item is None:
                    return
                yield item
        except DataError:
            self.close()
            raise

    def close(self) -> None:
        """End the worker processes; the next pass starts new ones."""
        if self.workers and self._items is not None:
            _end_workers(self._items)
        self._loader = self._items = None


def _unchanged(item: Any) -> Any:
    return item


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute with one thread: sharing the resize of a single image gains next to nothing.

    (And where other programs run it costs a lot, ten times the work: each thread waits for a core.)
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


# ---- worker processes


def _start_worker(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C reaches every process; only the main one speaks
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


@contextlib.contextmanager
def dead_workers_as_data_error(*, fetching: bool = False) -> Iterator[None]:
    """Turn what torch raises if a worker process died into a :class:`DataError`.

    To be put around a whole loop over batches: torch hears of the death by a signal, and raises its error
    wherever the main thread happens to be, say in the middle of a backward pass.

    Args:
        fetching: the code in it only fetches from worker processes, and a connection that breaks is one to
            them.

    Raises:
        DataError: a worker process died.
    """
    try:
        yield
    except Exception as e:
        if isinstance(e, ProxylessError) or not _worker_died(e, fetching):
            raise
        why = "too little memory, or too small a /dev/shm?"
        raise DataError(f"a process that reads images died ({why}); try 0 workers") from e


def _worker_died(error: Exception, fetching: bool) -> bool:
    # What is raised in a worker comes as "Caught ... in DataLoader worker process 0": that one lives.
    if fetching and isinstance(error, (ConnectionError, EOFError, FileNotFoundError)):
        return "DataLoader worker process" not in str(error)
    cause: BaseException | None = error
    while cause is not None:  # torch's error may have met code that raises another one as it is left
        if isinstance(cause, RuntimeError) and "DataLoader worker (pid" in str(cause):
            return True
        cause = cause.__cause__ or cause.__context__
    return False
