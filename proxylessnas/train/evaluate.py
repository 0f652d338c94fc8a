"""Evaluates a model on labelled images: accuracy, best classes, also over several processes."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..data.images import load_image
from ..data.sources import ImageSource
from ..errors import DataError
from ..models.base import ImageClassifier, check_finite, evaluation_mode
from ..utils.distributed import Processes
from .batch_reader import BatchReader, EvalBatches
from .metrics import Metrics

#: Inputs [B, 3, H, W] and class indices [B] (the inputs are None where none could be read); reasons of what
#: could not be read.
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
    transform: Callable[[Any], Tensor],
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
        transform: makes an RGB image of Pillow the model's input ``[3, H, W]``: ``Preprocessing.build()``.
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

    See :func:`evaluate`.

    Raises:
        DataError: a class index is no output of the model.
        WeightsCorruptError: the model's output is not finite.
    """
    n = 0
    finite = torch.tensor(True, device=device)  # read when somebody looks: each reading waits for the device
    metrics: Metrics | None = None
    unreadable: list[str] = []
    model.to(device).to(memory_format=torch.channels_last)
    start = time.perf_counter()

    def result(done: bool) -> Evaluation:
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
                    finite = finite & logits.isfinite().all()
                if metrics is None:
                    metrics = Metrics(logits.shape[1], device=logits.device)
                metrics.add(logits, targets)
                n += len(targets)
            if progress is not None:
                progress(result(done=False))
    return result(done=True)


class _Files:
    """Image files that are read as Pillow images."""

    def __init__(self, samples: Sequence[tuple[str, int]]) -> None:
        self.samples, self.labels = samples, [label for _, label in samples]

    def __len__(self) -> int:
        return len(self.samples)

    def name(self, index: int) -> str:
        return str(index)  # a file may be there twice; why it cannot be read names it

    def read(self, index: int) -> Any:
        return load_image(self.samples[index][0])


def read_batches(
    samples: Sequence[tuple[str, int]] | ImageSource,
    transform: Callable[[Any], Tensor],
    batch_size: int,
    workers: int,
    indices: Sequence[int] | None = None,
) -> Iterator[Batch]:
    """Yield batches of images from files, or wherever they are, in order; see :func:`evaluate`.

    Args:
        samples: (path, class index), or images as a run has them.
        transform: makes an input of an image.
        batch_size: images a batch.
        workers: see :func:`evaluate`.
        indices: of some of the images; None takes all.

    Raises:
        DataError: a worker process died.
    """
    chosen = range(len(samples)) if indices is None else indices
    parts = [chosen[i : i + batch_size] for i in range(0, len(chosen), batch_size)]
    images = samples if isinstance(samples, ImageSource) else _Files(samples)
    batches = EvalBatches(images, transform)
    workers = min(workers, len(parts))
    for inputs, targets, reasons in BatchReader(batches, parts, workers=workers, device=torch.device("cpu")):
        yield inputs, targets, list(reasons.values())


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
