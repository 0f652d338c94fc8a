"""Measure the accuracy of a net on labelled pictures, and name the best classes of a few."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .datasets import ImageDataset
from .errors import DataError, WeightsCorruptError

if TYPE_CHECKING:
    import torch
    from torch import nn

_Batch = tuple[Any, Any, list[str]]


@dataclass(frozen=True)
class Evaluation:
    """What :func:`evaluate` found.

    Attributes:
        n: pictures classified (unreadable ones are not counted).
        top1_correct: pictures whose best class is right.
        top5_correct: pictures whose five best classes hold the right one.
        unreadable: one line a picture that could not be read: file name and reason.
        seconds: wall-clock time for reading and classifying, without start-up.
    """

    n: int
    top1_correct: int
    top5_correct: int
    unreadable: tuple[str, ...]
    seconds: float

    @property
    def top1(self) -> float:
        """Top-1 accuracy in percent of ``n``."""
        return 100 * self.top1_correct / self.n if self.n else 0.0

    @property
    def top5(self) -> float:
        """Top-5 accuracy in percent of ``n``."""
        return 100 * self.top5_correct / self.n if self.n else 0.0

    @property
    def images_per_second(self) -> float:
        """Pictures read, preprocessed and classified in a second of wall-clock time."""
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
    """Return the accuracy of a net on labelled pictures.

    The net is moved to ``device`` in channels-last layout, and stays so; it runs in evaluation mode, and each
    of its parts gets its own mode back.

    Args:
        model: gives logits ``[B, classes]`` for ``[B, 3, H, W]``.
        samples: (path, class index), for example :attr:`LabelledImages.samples`.
        transform: makes one RGB picture the net's input, for example ``Preprocessing.build()``.
        batch_size: pictures a forward pass.
        workers: processes that read pictures; 0 reads them in this one.
        device: where the net runs.
        progress: called after each batch with the result so far.

    Raises:
        DataError: no samples, or a worker process died.
        WeightsCorruptError: the net's output is not finite.
    """
    import torch

    if not samples:
        raise DataError("no pictures to evaluate on")
    n = right1 = right5 = 0
    unreadable: list[str] = []
    model.to(device).to(memory_format=torch.channels_last)
    start = time.perf_counter()
    with evaluation_mode(model):
        for inputs, targets, reasons in _batches(samples, transform, batch_size, workers):
            unreadable += reasons
            if inputs is not None:
                targets = targets.to(device)
                logits = _logits(model, inputs.to(device, memory_format=torch.channels_last))
                hits = logits.topk(min(5, logits.shape[1])).indices == targets[:, None]
                n += len(targets)
                right1 += int(hits[:, 0].sum())
                right5 += int(hits.sum())
            if progress is not None:
                progress(Evaluation(n, right1, right5, tuple(unreadable), time.perf_counter() - start))
    return Evaluation(n, right1, right5, tuple(unreadable), time.perf_counter() - start)


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a net into evaluation mode and give every part its own mode back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def top_classes(model: nn.Module, inputs: torch.Tensor, k: int = 5) -> list[list[tuple[int, float]]]:
    """Return the ``k`` best classes of each picture, best first, as (class index, probability 0 to 1).

    The net is used as it is: put it in evaluation mode first.

    Args:
        model: gives logits ``[B, classes]``.
        inputs: ``[B, 3, H, W]``, preprocessed, on the net's device.
        k: how many classes; all of them when there are fewer.

    Raises:
        WeightsCorruptError: the net's output is not finite.
    """
    best = _logits(model, inputs).float().softmax(1)
    values, indices = best.topk(min(k, best.shape[1]))
    return [list(zip(i, v, strict=True)) for i, v in zip(indices.tolist(), values.tolist(), strict=True)]


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute with one thread: sharing the resize of a single picture gains next to nothing.

    (And where other programs run it costs a lot, ten times the work: each thread waits for a core.)
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _logits(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    import torch

    with torch.inference_mode():
        logits: torch.Tensor = model(inputs)
    if not bool(logits.isfinite().all()):
        raise WeightsCorruptError("the net's output is not finite (NaN or infinite): the weights are damaged")
    return logits


def _batches(
    samples: Sequence[tuple[str, int]], transform: Callable[[Any], Any], batch_size: int, workers: int
) -> Iterator[_Batch]:
    from torch.utils.data import DataLoader

    loader: Any = DataLoader(
        ImageDataset(samples, transform),  # type: ignore[arg-type]  # any class with __len__ and __getitem__ will do
        batch_size=batch_size,
        num_workers=min(workers, -(-len(samples) // batch_size)),
        collate_fn=_collate,
        worker_init_fn=_ignore_interrupt if workers else None,
    )
    try:
        batches = iter(loader)
        while True:
            with one_thread():
                batch = next(batches, None)
            if batch is None:
                return
            yield batch
    except RuntimeError as e:
        if "DataLoader worker" in str(e):
            why = "too little memory, or too small a /dev/shm?"
            raise DataError(f"a process that reads pictures died ({why}); try 0 workers") from e
        raise


def _collate(items: list[tuple[Any, int, str]]) -> _Batch:
    """Stack what could be read; pass on the reasons of what could not."""
    import torch

    good = [(x, y) for x, y, reason in items if not reason]
    reasons = [reason for _, _, reason in items if reason]
    if not good:
        return None, None, reasons
    return torch.stack([x for x, _ in good]), torch.tensor([y for _, y in good]), reasons


def _ignore_interrupt(worker: int) -> None:
    # Ctrl-C reaches every process of the terminal; only the main one should speak.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
