"""Accuracy is counted right, damaged images do not stop it, and worker processes change nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from proxylessnas.errors import DataError, WeightsCorruptError
from proxylessnas.models.base import top_classes
from proxylessnas.train.evaluate import Evaluation, evaluate, evaluate_batches, read_batches


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class ByRed(nn.Module):
    """Ranks 10 classes by how near their number is to the image's red level / 20."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []
        self.was_training: list[bool] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(x))
        self.was_training.append(self.training)
        return -(x[:, :1, 0, 0] * 255 / 20 - torch.arange(10)).abs()


def to_tensor(image: Image.Image) -> torch.Tensor:
    """Return a [3, 2, 2] tensor of the first pixel."""
    return torch.tensor(image.getpixel((0, 0)))[:, None, None].expand(3, 2, 2) / 255


@pytest.fixture
def samples(tmp_path: Path) -> list[tuple[str, int]]:
    """Return 7 images of class 3: 4 exact, 2 off by two classes, 1 off by six."""
    found = []
    for i, level in enumerate([60, 60, 60, 60, 100, 100, 180]):
        path = tmp_path / f"{i}.png"
        Image.new("RGB", (3, 3), (level, 0, 0)).save(path)
        found.append((str(path), 3))
    return found


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 0), (3, 0), (100, 0), (3, 2)])
def test_counting(samples: list[tuple[str, int]], batch_size: int, workers: int) -> None:
    model, seen = ByRed().train(), []
    result = evaluate(
        model, samples, to_tensor, batch_size=batch_size, workers=workers, progress=lambda r: seen.append(r.n)
    )
    assert (result.n, result.top1_correct, result.top5_correct, result.unreadable) == (7, 4, 6, ())
    assert result.top1 == pytest.approx(100 * 4 / 7)
    assert result.top5 == pytest.approx(100 * 6 / 7)
    assert result.images_per_second > 0
    assert sum(model.batches) == 7
    assert max(model.batches) == min(batch_size, 7)
    assert not any(model.was_training)
    assert model.training
    assert seen[-1] == 7
    assert seen == sorted(seen)


def test_batches_survive_damaged_files(tmp_path: Path) -> None:
    Image.new("RGB", (4, 3), "red").save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"rubbish")
    samples = [(str(tmp_path / name), label) for label, name in enumerate(["good.png", "bad.png", "bad.png"])]
    (inputs, targets, reasons), rest = read_batches(samples, to_tensor, 2, workers=0)
    assert (inputs.shape, targets.tolist()) == ((1, 3, 2, 2), [0])
    assert reasons == [f"{tmp_path / 'bad.png'}: is not an image, or of a kind that is not supported"]
    assert (rest[0], rest[2]) == (None, reasons)


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_are_named_and_left_out(samples: list[tuple[str, int]], workers: int) -> None:
    Path(samples[1][0]).write_bytes(b"rubbish")
    Path(samples[5][0]).unlink()
    result = evaluate(ByRed(), samples, to_tensor, batch_size=1, workers=workers)
    assert (result.n, result.top1_correct, result.top5_correct) == (5, 3, 4)
    assert [reason.split(": ")[0] for reason in result.unreadable] == [samples[1][0], samples[5][0]]


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 0), (3, 0), (100, 2)])
def test_loss_calibration_and_confusion(
    samples: list[tuple[str, int]], batch_size: int, workers: int
) -> None:
    seen: list[Evaluation] = []
    result = evaluate(
        ByRed(), samples, to_tensor, batch_size=batch_size, workers=workers, progress=seen.append
    )
    logits = -(torch.tensor([3.0, 3, 3, 3, 5, 5, 9])[:, None] - torch.arange(10)).abs()
    probabilities = logits.double().softmax(1)
    assert result.loss == pytest.approx(float(-probabilities[:, 3].log().mean()), rel=1e-5)
    # Four right with the confidence of the middle, two wrong with the same bin's, one at the end.
    confidence, bins = probabilities.amax(1), (probabilities.amax(1) * 15).ceil()
    gaps = [
        (torch.tensor([1.0] * 4 + [0.0] * 3, dtype=torch.float64) - confidence)[bins == b].sum().abs()
        for b in bins.unique()
    ]
    assert result.ece == pytest.approx(100 * float(sum(gaps)) / 7, rel=1e-5)
    assert result.confusion[3] == [0, 0, 0, 4, 0, 2, 0, 0, 0, 1]
    assert sum(map(sum, result.confusion)) == 7
    assert result.per_class == [None] * 3 + [pytest.approx(100 * 4 / 7)] + [None] * 6
    assert math.isnan(seen[0].loss)  # not before the end
    assert seen[0].confusion == seen[0].per_class == []


def test_batches_from_elsewhere(samples: list[tuple[str, int]]) -> None:
    inputs = torch.stack([to_tensor(Image.open(path)) for path, _ in samples])
    batches = [
        (inputs[:4], torch.full((4,), 3), []),
        (None, None, ["gone"]),
        (inputs[4:], torch.full((3,), 3), ["x"]),
    ]
    found, same = evaluate_batches(ByRed(), batches), evaluate(ByRed(), samples, to_tensor)
    assert (found.n, found.top1_correct, found.top5_correct) == (7, 4, 6)
    assert found.unreadable == ("gone", "x")
    assert (found.confusion, found.loss) == (same.confusion, pytest.approx(same.loss))
    assert evaluate_batches(ByRed(), [(None, None, ["gone"])]).n == 0


def test_a_class_that_the_model_does_not_have(samples: list[tuple[str, int]]) -> None:
    with pytest.raises(DataError, match="targets 3 to 10: the classes are 0 to 9"):
        evaluate(ByRed(), [*samples, (samples[0][0], 10)], to_tensor)


def test_nothing_to_count(samples: list[tuple[str, int]]) -> None:
    with pytest.raises(DataError, match="no images"):
        evaluate(ByRed(), [], to_tensor)
    assert Evaluation(0, 0, 0, (), 0.0).top1 == Evaluation(0, 0, 0, (), 0.0).images_per_second == 0


def test_fewer_than_five_classes(samples: list[tuple[str, int]]) -> None:
    class Two(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.stack([x[:, 0, 0, 0], 0.3 + 0 * x[:, 0, 0, 0]], 1)

    result = evaluate(Two(), [(path, 0) for path, _ in samples], to_tensor)
    assert (result.top1_correct, result.top5_correct) == (3, 7)


def test_a_model_that_answers_nan(samples: list[tuple[str, int]]) -> None:
    class Broken(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.full((len(x), 10), float("nan"))

    model = Broken().train()
    with pytest.raises(WeightsCorruptError, match="not finite"):
        evaluate(model, samples, to_tensor)
    assert model.training
    with pytest.raises(WeightsCorruptError, match="not finite"):
        top_classes(model, torch.zeros(1, 3, 2, 2))


class KillsItsProcess:
    def __call__(self, image: Any) -> torch.Tensor:
        import os

        os._exit(3)


def test_a_worker_that_dies(samples: list[tuple[str, int]]) -> None:
    with pytest.raises(DataError, match=r"a process that reads images died .* try 0 workers"):
        evaluate(ByRed(), samples, KillsItsProcess(), workers=1)


def test_top_classes() -> None:
    inputs = torch.zeros(2, 3, 2, 2)
    inputs[0, 0] = 60 / 255
    first, second = top_classes(ByRed().eval(), inputs, 3)
    assert [i for i, _ in first] == [3, 2, 4] or [i for i, _ in first] == [3, 4, 2]
    assert [i for i, _ in second] == [0, 1, 2]
    assert all(0 < p < 1 for _, p in first)
    assert sum(p for _, p in top_classes(ByRed(), inputs, 99)[0]) == pytest.approx(1)


def test_threads_are_given_back(samples: list[tuple[str, int]]) -> None:
    torch.set_num_threads(2)
    seen = []

    class Watch(ByRed):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(torch.get_num_threads())
            return super().forward(x)

    evaluate(Watch(), samples, to_tensor)
    assert set(seen) == {2}
    assert torch.get_num_threads() == 2
