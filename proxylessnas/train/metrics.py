"""What is counted while a model classifies labelled images: accuracy, loss, confusion and calibration."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import DataError


class Metrics:
    """Sums over classified images, from which accuracy, loss and calibration follow.

    Everything is a sum, so that neither the order nor the batches matter, and processes that each classified
    a share add up theirs (:meth:`tensors`). Nothing waits for the device until a result is read. The
    confusion matrix takes ``8 * classes**2`` bytes (8 MB for 1000 classes).

        >>> metrics = Metrics(3)
        >>> metrics.add(torch.tensor([[4.0, 0.0, 0.0], [0.0, 9.0, 0.0]]), torch.tensor([0, 2]))
        >>> metrics.n, metrics.top1, metrics.confusion.tolist()
        (2, 50.0, [[1, 0, 0], [0, 0, 0], [0, 1, 0]])

    Args:
        classes: number of the model's outputs.
        bins: equal-width intervals of confidence that the calibration error is computed from.
        device: where the sums are kept: the model's device spares a transfer a batch, and NCCL reduces only
            what is on a GPU. On "mps", which has no float64, they are kept on the CPU.
    """

    def __init__(self, classes: int, bins: int = 15, *, device: str | torch.device = "cpu") -> None:
        if classes < 1 or bins < 1:
            raise ValueError(f"classes and bins must be at least 1, not {classes} and {bins}")
        device = torch.device(device)
        if device.type == "mps":
            device = torch.device("cpu")
        self.classes, self.bins, self.device = classes, bins, device
        # Two tensors, so that processes need two messages; the names below are views of them.
        self._counts = torch.zeros(3 + 2 * bins + classes * classes, dtype=torch.int64, device=device)
        self._sums = torch.zeros(1 + bins, dtype=torch.float64, device=device)
        sizes = [3, bins, bins, classes * classes]
        self._heads, self._bin_n, self._bin_right, self._cells = self._counts.split(sizes)
        self._loss, self._bin_confidence = self._sums.split([1, bins])

    @torch.no_grad()
    def add(self, logits: Tensor, targets: Tensor) -> None:
        """Count a batch: logits [B, classes] of any floating type, and class indices [B], on any device.

        Raises:
            DataError: a shape does not fit, or (where the targets are on the CPU) a target is no class.
        """
        if logits.dim() != 2 or logits.shape[1] != self.classes or targets.shape != logits.shape[:1]:
            raise DataError(
                f"logits {list(logits.shape)} and targets {list(targets.shape)} do not fit: expected are "
                f"[B, {self.classes}] and [B]"
            )
        if not len(targets):
            return
        if targets.device.type == "cpu":
            low, high = int(targets.min()), int(targets.max())
            if low < 0 or high >= self.classes:
                raise DataError(f"targets {low} to {high}: the classes are 0 to {self.classes - 1}")
        targets = targets.to(logits.device, torch.int64)
        logarithms = logits.float().log_softmax(1)
        best = logarithms.topk(min(5, self.classes), dim=1)
        hits = best.indices == targets[:, None]
        loss = -logarithms.gather(1, targets[:, None])[:, 0]
        confidence, predicted = best.values[:, 0].exp(), best.indices[:, 0]
        self._add(targets * self.classes + predicted, hits, loss, confidence)

    def _add(self, cells: Tensor, hits: Tensor, loss: Tensor, confidence: Tensor) -> None:
        """Add up [B] (cell of the confusion matrix), [B, k] (right class at that place), [B], [B]."""
        cells, hits = cells.to(self.device), hits.to(self.device)
        loss, confidence = loss.to(self.device).double(), confidence.to(self.device).double()
        right = hits[:, 0]
        # A confidence of exactly k / bins belongs to the k-th interval; one that is NaN must be some index.
        bin_ = ((confidence * self.bins).ceil() - 1).nan_to_num().long().clamp(0, self.bins - 1)
        # Sums over a one-hot table, not scattered ones: on a GPU those would depend on the order.
        in_bin = bin_[:, None] == torch.arange(self.bins, device=self.device)
        self._heads += torch.stack([torch.ones_like(right).sum(), right.sum(), hits.sum()])
        self._bin_n += in_bin.sum(0)
        self._bin_right += (in_bin & right[:, None]).sum(0)
        self._cells.index_add_(0, cells, torch.ones_like(cells))
        self._loss += loss.sum()
        self._bin_confidence += (in_bin * confidence[:, None]).sum(0)

    def tensors(self) -> list[Tensor]:
        """Return all sums, [*] int64 and [*] float64, to be added up over processes in place."""
        return [self._counts, self._sums]

    @property
    def n(self) -> int:
        """Images counted."""
        return int(self._heads[0])

    @property
    def top1_correct(self) -> int:
        """Images whose best class is right."""
        return int(self._heads[1])

    @property
    def top5_correct(self) -> int:
        """Images whose five best classes hold the right one."""
        return int(self._heads[2])

    @property
    def top1(self) -> float:
        """Top-1 accuracy in percent; NaN if nothing was counted."""
        return _percent(self.top1_correct, self.n)

    @property
    def top5(self) -> float:
        """Top-5 accuracy in percent; NaN if nothing was counted."""
        return _percent(self.top5_correct, self.n)

    @property
    def loss(self) -> float:
        """Mean cross-entropy (without label smoothing) in nats; NaN if nothing was counted."""
        return float(self._loss) / self.n if self.n else float("nan")

    @property
    def confusion(self) -> Tensor:
        """Images by [true class, predicted class], int64 [classes, classes], on the CPU."""
        return self._cells.view(self.classes, self.classes).cpu().clone()

    @property
    def per_class(self) -> Tensor:
        """Top-1 accuracy on each class's images, percent, float64 [classes]; NaN where there are none."""
        confusion = self.confusion.double()
        return 100 * confusion.diagonal() / confusion.sum(1)

    @property
    def ece(self) -> float:
        """Expected calibration error in percent; NaN if nothing was counted.

        How far the model's confidence (the probability of its best class) is from its accuracy: the images
        are sorted into equal-width bins of confidence, and |accuracy - mean confidence| of each bin is
        weighted with its share of the images (Guo et al. 2017, "On Calibration of Modern Neural Networks").
        """
        if not self.n:
            return float("nan")
        # n_bin / n * |right / n_bin - confidence / n_bin|, in which n_bin cancels
        return float(100 * (self._bin_right - self._bin_confidence).abs().sum() / self.n)


def _percent(part: int, whole: int) -> float:
    return 100 * part / whole if whole else float("nan")
