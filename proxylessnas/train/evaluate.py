"""Evaluates a model on labelled images: accuracy, best classes, also over several processes."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from ..data.folders import ImageDataset
from ..errors import DataError, ProxylessError
from ..models.base import ImageClassifier, check_finite, evaluation_mode
from ..utils.distributed import Processes
from ..utils.subprocesses import safe_path
from .metrics import Metrics

if TYPE_CHECKING:
    import torch
    from torch import nn

    from .metrics import Metrics


T = TypeVar("T")
#: Inputs [B, 3, H, W] and class indices [B], or None for both; reasons of what could not be read.
Batch = tuple[Any, Any, list[str]]


@dataclass(frozen=True)
class Evaluation:
    """What :func:`evaluate` found.

    Attributes:
        n: images classified (unreadable ones are not counted).
        top1_correct: images whose best class is right.
        top5_correct: images whose five best classes hold the right one.
        unreadable: one line an image that could not be read: file name and reason.
        seconds: wall-clock time for reading and classifying, without start-up.
        metrics: loss, calibration and confusion; None while the images are still being classified, and
            where none could be read.
    """

    n: int
    top1_correct: int
    top5_correct: int
    unreadable: tuple[str, ...]
    seconds: float
    metrics: Metrics | None = field(default=None, compare=False, repr=False)

    @property
    def top1(self) -> float:
        """Top-1 accuracy in percent of ``n``."""
        return 100 * self.top1_correct / self.n if self.n else 0.0

    @property
    def top5(self) -> float:
        """Top-5 accuracy in percent of ``n``."""
        return 100 * self.top5_correct / self.n if self.n else 0.0

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats; NaN without :attr:`metrics`."""
        return self.metrics.loss if self.metrics is not None else float("nan")

    @property
    def ece(self) -> float:
        """Expected calibration error in percent (:attr:`Metrics.ece`); NaN without :attr:`metrics`."""
        return self.metrics.ece if self.metrics is not None else float("nan")

    @property
    def confusion(self) -> list[list[int]]:
        """Images by [true class][predicted class]; empty without :attr:`metrics`."""
        return self.metrics.confusion.tolist() if self.metrics is not None else []

    @property
    def per_class(self) -> list[float | None]:
        """Top-1 accuracy on each class's images in percent, None where there are none."""
        values = self.metrics.per_class.tolist() if self.metrics is not None else []
        return [None if math.isnan(value) else value for value in values]

    def classes(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Return what happened to the images of each class that has any, in output order.

        Args:
            names: of the classes, in output order.
        """
        found = []
        for i, row in enumerate(self.confusion):
            n, correct = sum(row), row[i]
            if n:
                wrong = [*row[:i], 0, *row[i + 1 :]]
                most = max(range(len(row)), key=wrong.__getitem__)
                taken = {"index": most, "name": names[most], "n": wrong[most]} if wrong[most] else None
                share = round(100 * correct / n, 4)
                known = {"index": i, "name": names[i], "n": n, "correct": correct}
                found.append({**known, "top1": share, "taken_for": taken})
        return found

    def confusion_by_name(self, names: Sequence[str]) -> dict[str, dict[str, int]]:
        """Return how often each class was taken for which, without zeros: nearly all of a large matrix."""
        return {
            names[i]: {names[j]: n for j, n in enumerate(row) if n}
            for i, row in enumerate(self.confusion)
            if any(row)
        }

    @property
    def images_per_second(self) -> float:
        """Images read, preprocessed and classified in a second of wall-clock time."""
        return self.n / self.seconds if self.seconds > 0 else 0.0


def evaluate(
    model: nn.Module,
    samples: Sequence[tuple[str, int]],
    transform: Callable[[Any], torch.Tensor],
    *,
    batch_size: int = 32,
    workers: int = 0,
    device: str | torch.device = "cpu",
    progress: Callable[[Evaluation], None] | None = None,
) -> Evaluation:
    """Return the accuracy of a model on labelled images.

    The model is moved to ``device`` in channels-last layout, and stays so; it runs in evaluation mode, and
    each of its parts gets its own mode back.

    Args:
        model: gives logits ``[B, classes]`` for ``[B, 3, H, W]``.
        samples: (path, class index), for example :attr:`LabelledImages.samples`.
        transform: makes one RGB image the model's input, for example ``Preprocessing.build()``.
        batch_size: images a forward pass.
        workers: processes that read images; 0 reads them in this one.
        device: where the model runs.
        progress: called after each batch with the result so far.

    Raises:
        DataError: no samples, or a worker process died.
        WeightsCorruptError: the model's output is not finite.
    """
    if not samples:
        raise DataError("no images to evaluate on")
    batches = read_batches(samples, transform, batch_size, workers)
    return evaluate_batches(model, batches, device=device, progress=progress)


def evaluate_batches(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    device: str | torch.device = "cpu",
    progress: Callable[[Evaluation], None] | None = None,
) -> Evaluation:
    """Return the accuracy of a model on batches of labelled images, wherever these come from.

    Args:
        model: see :func:`evaluate`.
        batches: each is (inputs [B, 3, H, W], class indices [B], reasons of what could not be read); the
            first two are None where nothing could be.
        device: where the model runs.
        progress: called after each batch with the result so far.

    Raises:
        DataError: a class index is no output of the model.
        WeightsCorruptError: the model's output is not finite.
    """
    import torch

    from .metrics import Metrics

    n = 0
    finite: torch.Tensor | None = None  # read when somebody looks: each reading waits for the device
    metrics: Metrics | None = None
    unreadable: list[str] = []
    model.to(device).to(memory_format=torch.channels_last)
    start = time.perf_counter()

    def result(metrics: Metrics | None, finite: torch.Tensor | None, done: bool) -> Evaluation:
        if finite is not None:
            check_finite(finite)
        right = (metrics.top1_correct, metrics.top5_correct) if metrics is not None else (0, 0)
        seconds = time.perf_counter() - start
        return Evaluation(n, *right, tuple(unreadable), seconds, metrics if done else None)

    with evaluation_mode(model):
        for inputs, targets, reasons in batches:
            unreadable += reasons
            if inputs is not None:
                with torch.inference_mode():
                    logits = model(inputs.to(device, memory_format=torch.channels_last))
                    good = logits.isfinite().all()
                    finite = good if finite is None else finite & good
                if metrics is None:
                    metrics = Metrics(logits.shape[1], device=logits.device)
                metrics.add(logits, targets)
                n += len(targets)
            if progress is not None:
                progress(result(metrics, finite, done=False))
    return result(metrics, finite, done=True)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute with one thread: sharing the resize of a single image gains next to nothing.

    (And where other programs run it costs a lot, ten times the work: each thread waits for a core.)
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


#: Said where :func:`allowed_workers` leaves none.
NO_WORKERS = (
    "images are read without worker processes: this process is a daemonic one (of a multiprocessing pool, "
    "Celery, Airflow, ...), which may not start any"
)


def allowed_workers(workers: int) -> int:
    """Return how many worker processes this process may start: as many as are asked for, or none."""
    return 0 if multiprocessing.current_process().daemon else workers


def read_batches(
    samples: Sequence[tuple[str, int]], transform: Callable[[Any], Any], batch_size: int, workers: int
) -> Iterator[Batch]:
    """Yield batches of images from files, in order; see :func:`evaluate`.

    Raises:
        DataError: a worker process died.
    """
    from torch.utils.data import DataLoader

    workers = allowed_workers(workers)
    loader: Any = DataLoader(
        ImageDataset(samples, transform),  # type: ignore[arg-type]  # any class with __len__ and __getitem__ will do
        batch_size=batch_size,
        num_workers=min(workers, -(-len(samples) // batch_size)),
        collate_fn=_collate,
        worker_init_fn=ignore_interrupt if workers else None,
    )
    with safe_path():
        items = iter(loader)
    yield from read_ahead(items, workers=workers)


def read_ahead(items: Iterator[T], *, workers: int) -> Iterator[T]:
    """Yield what a ``DataLoader``'s iterator gives, read with one thread where this process does it.

    Raises:
        DataError: a worker process died.
    """
    alone: Any = contextlib.nullcontext if workers else one_thread  # workers have one thread anyway
    while True:
        with alone(), dead_workers_as_data_error(fetching=workers > 0):
            item = next(items, None)
        if item is None:
            return
        yield item


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


def _collate(items: list[tuple[Any, int, str]]) -> Batch:
    """Stack what could be read; pass on the reasons of what could not."""
    import torch

    good = [(x, y) for x, y, reason in items if not reason]
    reasons = [reason for _, _, reason in items if reason]
    if not good:
        return None, None, reasons
    return torch.stack([x for x, _ in good]), torch.tensor([y for _, y in good]), reasons


def ignore_interrupt(worker: int) -> None:
    """Make a worker process deaf to Ctrl-C, which reaches every process; only the main one should speak."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def accuracy_on(
    model: ImageClassifier,
    batches: Iterable[tuple[Tensor, Tensor]],
    processes: Processes,
    autocast: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
    before: Callable[[int], None] = lambda done: None,
) -> Metrics:
    """Return the accuracy of a model as it is, in evaluation mode; all processes take part.

    Args:
        model: on the processes' device.
        batches: inputs and class indices; this process's share of the images.
        processes: those that share them.
        autocast: makes the context of each forward pass; without it the model computes in its own precision.
        before: called before each batch with how many are done.
    """
    metrics = Metrics(model.num_classes, device=processes.device)
    with evaluation_mode(model), torch.inference_mode():
        for done, (inputs, targets) in enumerate(batches):
            before(done)
            with autocast():
                logits = model(inputs)
            metrics.add(logits.float(), targets)
    processes.sum_(metrics.tensors())
    return metrics
