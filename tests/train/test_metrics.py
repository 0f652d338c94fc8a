"""Accuracy, loss and calibration equal what is computed by hand, in any order and over any processes."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from proxylessnas.errors import DataError
from proxylessnas.train.metrics import Metrics


def logits_for(confidence: float, best: int, classes: int) -> list[float]:
    """Return logits whose softmax gives one class this probability, and the others equal shares."""
    rest = math.log((1 - confidence) / (classes - 1))
    return [math.log(confidence) if i == best else rest for i in range(classes)]


def test_by_hand() -> None:
    """Confidence 0.9 right, 0.92 wrong, 0.5 right, 0.5 wrong, 0.34 right: bins 14, 14, 8, 8 and 6 of 15."""
    images = [(0.9, 0, 0), (0.92, 1, 2), (0.5, 2, 2), (0.5, 0, 1), (0.34, 1, 1)]  # confidence, best, true
    metrics = Metrics(3)
    logits = torch.tensor([logits_for(c, b, 3) for c, b, _ in images])
    metrics.add(logits, torch.tensor([true for _, _, true in images]))
    assert (metrics.n, metrics.top1_correct, metrics.top5_correct) == (5, 3, 5)
    assert metrics.top1 == 60
    assert metrics.top5 == 100
    assert metrics.confusion.tolist() == [[1, 0, 0], [1, 1, 0], [0, 1, 1]]
    assert metrics.per_class.tolist() == [100, 50, 50]
    losses = [-math.log(p) for p in (0.9, 0.04, 0.5, 0.25, 0.34)]
    assert metrics.loss == pytest.approx(sum(losses) / 5)
    by_hand = 2 / 5 * abs(1 / 2 - 0.91) + 2 / 5 * abs(1 / 2 - 0.5) + 1 / 5 * abs(1 - 0.34)
    assert metrics.ece == pytest.approx(100 * by_hand)


def reference_ece(logits: torch.Tensor, targets: torch.Tensor, bins: int) -> float:
    """Return the calibration error as it is defined, a bin at a time."""
    confidence, predicted = logits.double().softmax(1).max(1)
    total = 0.0
    for k in range(bins):
        inside = (confidence > k / bins) & (confidence <= (k + 1) / bins)
        if inside.any():
            right = (predicted[inside] == targets[inside]).double().mean()
            total += float(inside.double().mean() * (right - confidence[inside].mean()).abs())
    return 100 * total


def drawn(n: int = 500, classes: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    logits = 3 * torch.randn(n, classes)
    targets = torch.randint(0, classes - 1, (n,))  # the last class never comes
    logits[torch.arange(n), targets] += 3
    return logits, targets


def counted(logits: torch.Tensor, targets: torch.Tensor, sizes: list[int], bins: int = 15) -> Metrics:
    metrics = Metrics(logits.shape[1], bins)
    for x, y in zip(logits.split(sizes), targets.split(sizes), strict=True):
        metrics.add(x, y)
    return metrics


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_equals_the_definitions(bins: int) -> None:
    logits, targets = drawn()
    metrics = counted(logits, targets, [500], bins)
    best = logits.argsort(1, descending=True)
    assert metrics.n == 500
    assert 0 < metrics.top1 < metrics.top5 < 100
    assert metrics.top1 == pytest.approx(100 * (best[:, 0] == targets).double().mean())
    assert metrics.top5 == pytest.approx(100 * (best[:, :5] == targets[:, None]).any(1).double().mean())
    assert metrics.loss == pytest.approx(float(F.cross_entropy(logits.double(), targets)), rel=1e-6)
    assert metrics.ece == pytest.approx(reference_ece(logits, targets, bins), rel=1e-6)
    confusion = torch.zeros(20, 20, dtype=torch.long)
    for true, predicted in zip(targets.tolist(), best[:, 0].tolist(), strict=True):
        confusion[true, predicted] += 1
    assert torch.equal(metrics.confusion, confusion)
    assert metrics.per_class[:-1].tolist() == pytest.approx(
        [100 * float((best[targets == c, 0] == c).double().mean()) for c in range(19)]
    )
    assert math.isnan(metrics.per_class[-1])


def same(a: Metrics, b: Metrics) -> bool:
    counts = torch.equal(a.tensors()[0], b.tensors()[0])
    return counts and torch.allclose(a.tensors()[1], b.tensors()[1], rtol=1e-12, atol=0)


def test_order_and_batches_change_nothing() -> None:
    logits, targets = drawn()
    whole = counted(logits, targets, [500])
    order = torch.randperm(500)
    assert same(whole, counted(logits[order], targets[order], [1, 0, 99, 128, 128, 128, 16]))


def test_shares_of_processes_add_up_in_place() -> None:
    logits, targets = drawn()
    whole = counted(logits, targets, [500])
    shares = [counted(logits[r::3], targets[r::3], [len(targets[r::3])]) for r in range(3)]
    shares.append(Metrics(20))  # a process without images
    for parts in zip(*(share.tensors() for share in shares), strict=True):
        total = torch.stack(parts).sum(0)
        for part in parts:
            part.copy_(total)  # what all_reduce does
    for share in shares:
        assert same(share, whole)
        assert share.ece == pytest.approx(whole.ece)
        assert torch.equal(share.confusion, whole.confusion)


def test_edges_of_bins_and_certain_answers() -> None:
    metrics = Metrics(2)
    metrics.add(torch.tensor([[1e4, 0.0], [0.0, 0.0]]), torch.tensor([0, 0]))  # confidence 1 and 0.5
    assert metrics.top1 == 100
    assert metrics.ece == pytest.approx(100 * (0 + 0.5) / 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions(dtype: torch.dtype) -> None:
    logits, targets = drawn()
    metrics = counted(logits.to(dtype), targets, [500])
    assert metrics.loss == pytest.approx(float(F.cross_entropy(logits, targets)), rel=1e-2)


def test_fewer_than_five_classes_and_a_single_one() -> None:
    metrics = Metrics(1)
    metrics.add(torch.zeros(4, 1), torch.zeros(4, dtype=torch.int32))
    assert (metrics.top1, metrics.top5, metrics.loss, metrics.ece) == (100, 100, 0, 0)


def test_nothing_counted() -> None:
    metrics = Metrics(4)
    metrics.add(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))
    assert metrics.n == 0
    assert all(math.isnan(x) for x in (metrics.top1, metrics.top5, metrics.loss, metrics.ece))
    assert metrics.per_class.isnan().all()


def test_a_model_that_broke_down_shows_as_nan() -> None:
    """Whoever adds NaN must see it in the loss, and no count may leave its place."""
    metrics = Metrics(3)
    metrics.add(torch.full((2, 3), float("nan")), torch.tensor([0, 1]))
    assert math.isnan(metrics.loss)
    assert math.isnan(metrics.ece)
    assert int(metrics.confusion.sum()) == metrics.n == 2


@pytest.mark.parametrize(
    ("logits", "targets", "message"),
    [
        (torch.zeros(2, 4), torch.zeros(2, dtype=torch.long), r"logits \[2, 4\] .* expected are \[B, 3\]"),
        (torch.zeros(2, 3), torch.zeros(1, dtype=torch.long), r"targets \[1\]"),
        (torch.zeros(2, 3), torch.zeros(2, 3), r"targets \[2, 3\]"),
        (torch.zeros(2, 3), torch.tensor([0, 3]), "targets 0 to 3: the classes are 0 to 2"),
        (torch.zeros(2, 3), torch.tensor([-100, 1]), "targets -100 to 1"),
    ],
)
def test_what_does_not_fit(logits: torch.Tensor, targets: torch.Tensor, message: str) -> None:
    metrics = Metrics(3)
    with pytest.raises(DataError, match=message):
        metrics.add(logits, targets)
    assert metrics.n == 0


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    logits, targets = drawn()
    metrics = Metrics(20, device="cuda")
    metrics.add(logits.cuda(), targets.cuda())
    on_cpu = counted(logits, targets, [500])
    assert torch.equal(metrics.tensors()[0].cpu(), on_cpu.tensors()[0])
    assert metrics.loss == pytest.approx(on_cpu.loss, rel=1e-6)
    assert metrics.ece == pytest.approx(on_cpu.ece, rel=1e-5)
