from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import proxylessnas
from proxylessnas.data.open import open_data
from proxylessnas.data.sources import Data, ImageSource, TensorImages
from proxylessnas.data.transforms import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from proxylessnas.errors import DataError
from proxylessnas.train.batch_reader import dead_workers_as_data_error
from proxylessnas.train.loader import Batch, EvalLoader, TrainLoader
from proxylessnas.train.ram_cache import load_into_memory
from proxylessnas.train.recipe import Recipe
from proxylessnas.train.setup import preprocessing_of
from proxylessnas.utils.distributed import Processes

# a hint of torch's on machines with fewer cores than the workers asked for
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

SMALL = Preprocessing(16, 16)
WHOLE = Recipe(crop="padded", crop_padding=2, cutout=4, batch_size=8, seed=1)  # augmented a batch at a time
SINGLE = WHOLE.replace(rand_augment=1)  # image by image
PHOTOS = Recipe(crop="resized", batch_size=8, seed=1)


def tensors(n: int = 40, classes: int = 4, size: int = 16) -> TensorImages:
    """Return images in memory; every one is one of a kind."""
    images = torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8)
    return TensorImages(images, [i % classes for i in range(n)], "train")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """Return photos of different sizes in files: 2 classes, 20 to train on and 7 to validate on in each."""
    return open_data(photo_folder(tmp_path_factory.mktemp("photos")))


def photo_folder(root: Path, height: int | None = None) -> Path:
    from PIL import Image

    dice = np.random.default_rng(0)
    for part, count in (("train", 20), ("val", 7)):
        for kind in ("cat", "dog"):
            folder = root / part / kind
            folder.mkdir(parents=True)
            for i in range(count):
                coarse = dice.integers(0, 256, (4, 4, 3), dtype=np.uint8)
                image = Image.fromarray(coarse).resize((24, height or 20 + i))
                image.save(folder / f"{i:02d}.jpg")
    return root


def processes(rank: int = 0, world: int = 1, device: str = "cpu") -> Processes:
    return Processes(rank, world, torch.device(device))


def loader(images: ImageSource, recipe: Recipe = WHOLE, **more: object) -> TrainLoader:
    return TrainLoader(images, recipe, SMALL, num_classes=4, **more)  # type: ignore[arg-type]


def assert_same(some: Iterator[Batch] | list[Batch], others: Iterator[Batch] | list[Batch]) -> None:
    for a, b in zip(some, others, strict=True):
        assert torch.equal(a.inputs, b.inputs)
        assert torch.equal(a.targets, b.targets)


# ---- what comes out


def test_batches_in_memory() -> None:
    images = tensors(43)
    train = loader(images)
    batches = list(train.epoch(0))
    assert (train.in_memory, train.steps_per_epoch, len(batches)) == (True, 5, 5)
    for batch in batches:
        assert (batch.inputs.shape, batch.inputs.dtype) == ((8, 3, 16, 16), torch.float32)
        assert batch.inputs.is_contiguous(memory_format=torch.channels_last)
        assert (batch.targets.shape, batch.targets.dtype) == ((8,), torch.int64)
    assert not torch.equal(batches[0].inputs, batches[1].inputs)


@pytest.mark.parametrize("limit_bytes", [1 << 30, 0])
def test_without_augmentation_the_images_are_those_of_the_evaluation(limit_bytes: int) -> None:
    images = tensors(16)
    train = loader(images, Recipe(crop="none", flip=False, batch_size=16), limit_bytes=limit_bytes)
    (batch,) = train.epoch(0)
    transform = SMALL.build()
    expected = {transform(images.read(i)).numpy().tobytes(): images.labels[i] for i in range(16)}
    found = {x.contiguous().numpy().tobytes(): int(y) for x, y in zip(*batch, strict=True)}
    assert found == expected
    assert train.in_memory is bool(limit_bytes)


def test_other_memory_layout() -> None:
    for recipe in (WHOLE, SINGLE):
        batch = next(loader(tensors(), recipe.replace(channels_last=False)).epoch(0))
        assert batch.inputs.is_contiguous()


@pytest.mark.parametrize("recipe", [WHOLE, SINGLE, WHOLE.replace(mixup_alpha=0.5, cutmix_alpha=1.0)])
def test_a_batch_follows_from_seed_epoch_and_step(recipe: Recipe) -> None:
    images = tensors()
    train = loader(images, recipe)
    first, second = list(train.epoch(0)), list(train.epoch(1))
    assert not torch.equal(first[0].inputs, second[0].inputs)
    assert_same(train.epoch(0), first)
    assert_same(loader(images, recipe).epoch(1, first_step=3), second[3:])
    assert not torch.equal(next(loader(images, recipe.replace(seed=2)).epoch(0)).inputs, first[0].inputs)


@pytest.mark.parametrize("recipe", [SINGLE, PHOTOS])
def test_the_number_of_workers_changes_nothing(photos: Data, recipe: Recipe) -> None:
    images = tensors() if recipe is SINGLE else photos.train
    alone = loader(images, recipe)
    assert alone.in_memory is (recipe is SINGLE)
    first, second = list(alone.epoch(0)), list(alone.epoch(1))
    with_workers = loader(images, recipe, workers=2)
    next(with_workers.epoch(7))  # an epoch that is left while its batches are being made
    assert_same(with_workers.epoch(0), first)
    assert_same(with_workers.epoch(1, first_step=2), second[2:])
    with_workers.close()
    assert_same(with_workers.epoch(0, first_step=4), first[4:])
    with_workers.close()


@pytest.mark.parametrize("recipe", [WHOLE, SINGLE])
def test_parts_of_two_processes_make_up_the_batch(recipe: Recipe) -> None:
    images = tensors()
    whole = loader(images, recipe).epoch(2)
    parts = zip(*(loader(images, recipe, processes=processes(r, 2)).epoch(2) for r in range(2)), strict=True)
    joined = [Batch(*(torch.cat(pair) for pair in zip(*part, strict=True))) for part in parts]
    assert len(joined[0].inputs) == 8
    assert_same(whole, joined)


@pytest.mark.parametrize("recipe", [WHOLE, SINGLE])
def test_parts_of_a_step_hold_the_same_images_on_two_processes(recipe: Recipe) -> None:
    images, recipe = tensors(), recipe.replace(accumulate=2)
    for whole, *shares in zip(
        loader(images, recipe).epoch(1),
        *(loader(images, recipe, processes=processes(r, 2)).epoch(1) for r in range(2)),
        strict=True,
    ):
        for k, part in enumerate(whole.inputs.chunk(2)):
            assert torch.equal(torch.cat([share.inputs.chunk(2)[k] for share in shares]), part)
    with pytest.raises(DataError, match=r"by 3 processes, each in 2 parts .* multiple of 6, such as 6 or 12"):
        loader(images, recipe, processes=processes(world=3))


def test_images_are_augmented_anew_in_each_epoch() -> None:
    for recipe in (WHOLE, SINGLE):
        train = loader(tensors(8), recipe)
        seen = [
            {x.contiguous().numpy().tobytes() for x in next(train.epoch(epoch)).inputs} for epoch in range(3)
        ]
        assert len(set.union(*seen)) > 20  # of 24


def test_memory_changes_nothing_where_images_are_augmented_one_by_one(photos: Data) -> None:
    for recipe in (SINGLE, Recipe(crop="none", rand_augment=1, batch_size=8)):
        kept, read = (loader(photos.train, recipe, limit_bytes=limit) for limit in (1 << 30, 0))
        assert (kept.in_memory, read.in_memory) == (True, False)
        assert_same(kept.epoch(0), read.epoch(0))


def test_mixing_can_be_left_out() -> None:
    images = tensors()
    train = loader(images, WHOLE.replace(mixup_alpha=0.5))
    mixed = next(train.epoch(0))
    assert (mixed.targets.shape, mixed.targets.dtype) == ((8, 4), torch.float32)
    assert torch.allclose(mixed.targets.sum(1), torch.ones(8))
    assert_same(train.epoch(0, mix=False), loader(images).epoch(0))


@pytest.mark.parametrize("recipe", [WHOLE, SINGLE, PHOTOS.replace(mixup_alpha=1.0)])
def test_the_callers_random_numbers_stay(photos: Data, recipe: Recipe) -> None:
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    train = loader(photos.train, recipe)
    for _ in train.epoch(0):
        assert torch.equal(torch.get_rng_state(), states[0])
        assert random.getstate() == states[1]
        assert np.random.get_state()[1].tolist() == states[2]


def test_waiting_is_counted(photos: Data) -> None:
    train = loader(photos.train, PHOTOS)
    list(train.epoch(0))
    assert train.waited_s > 0


# ---- images in memory


def test_photos_are_kept_once_they_are_of_one_size(photos: Data) -> None:
    assert loader(photos.train, WHOLE).in_memory
    assert not loader(photos.train, PHOTOS).in_memory


def test_files_are_read_by_several_threads_like_by_one(tmp_path: Path) -> None:
    data = open_data(photo_folder(tmp_path, height=24))
    indices = list(range(40)) * 10
    kept = load_into_memory(data.train, indices=indices)
    assert kept is not None
    assert kept.images.shape == (400, 24, 24, 3)
    for i in (0, 63, 64, 399):
        assert torch.equal(kept.read(i), data.train.read(indices[i]))
        assert kept.labels[i] == data.train.labels[indices[i]]


def test_not_kept_if_too_large_or_of_two_sizes() -> None:
    images = tensors(10)
    assert load_into_memory(images, limit_bytes=10 * 3 * 16 * 16) is not None
    assert load_into_memory(images, limit_bytes=10 * 3 * 16 * 16 - 1) is None
    odd_one = Replaced(tensors(200), {101: torch.zeros(3, 16, 17, dtype=torch.uint8)})
    assert load_into_memory(odd_one) is None  # none of the first few that are looked at has this size


class Replaced:
    """Images some of which are others."""

    def __init__(self, images: TensorImages, others: dict[int, Tensor]) -> None:
        self.images, self.others = images, others
        self.labels = images.labels

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        return self.images.name(index)

    def read(self, index: int) -> Tensor:
        return self.others[index] if index in self.others else self.images.read(index)


class Restless(Replaced):
    """Images that are augmented already when they are read."""

    def read(self, index: int) -> Tensor:
        image = super().read(index)
        return image.flip(-1) if random.random() < 0.5 else image


def test_a_data_set_with_augmentation_of_its_own_is_not_frozen() -> None:
    images = Restless(tensors(), {})
    recipe = Recipe(crop="none", flip=False, batch_size=8)
    train = loader(images, recipe)
    assert not train.in_memory
    first, second = (list(loader(images, recipe, workers=w).epoch(0)) for w in (0, 2))
    assert_same(first, second)
    epochs = [torch.cat([batch.inputs for batch in train.epoch(e)]) for e in range(2)]
    seen = {x.contiguous().numpy().tobytes() for inputs in epochs for x in inputs}
    assert 50 < len(seen) < 70  # of 40 images, half of which are turned between the epochs


# ---- images that cannot be read


@pytest.fixture
def damaged(tmp_path: Path) -> Data:
    """Return photos of one size; the first and the last but one training image are damaged."""
    folder = photo_folder(tmp_path, height=24)
    for name in ("train/cat/00.jpg", "train/dog/18.jpg", "val/dog/03.jpg"):
        path = folder / name
        path.write_bytes(path.read_bytes()[:200])
    return open_data(folder)


@pytest.mark.parametrize("limit_bytes", [1 << 30, 0])
@pytest.mark.parametrize("workers", [0, 2])
def test_the_next_readable_image_stands_in(damaged: Data, limit_bytes: int, workers: int) -> None:
    recipe = Recipe(crop="none", flip=False, batch_size=40)
    train = loader(damaged.train, recipe, max_unreadable=0.05, limit_bytes=limit_bytes, workers=workers)
    (batch,) = train.epoch(0)
    read = [damaged.train.read(i) for i in range(40) if i not in (0, 38)]
    expected = SMALL.build()(torch.stack([read[0], *read[:37], read[37], read[37]]))
    found = sorted(x.contiguous().numpy().tobytes() for x in batch.inputs)
    assert found == sorted(x.contiguous().numpy().tobytes() for x in expected)
    assert sorted(Path(name).name for name in train.unreadable) == ["00.jpg", "18.jpg"]
    assert all("truncated" in reason for reason in train.unreadable.values())


@pytest.mark.parametrize("limit_bytes", [1 << 30, 0])
def test_too_many_unreadable_images(damaged: Data, limit_bytes: int) -> None:
    message = r"(?s)2 of 40 training images cannot be read, more than the 4.9 % .*00\.jpg: .*18\.jpg: "
    recipe = Recipe(crop="none", batch_size=40)
    with pytest.raises(DataError, match=message):
        list(loader(damaged.train, recipe, max_unreadable=0.049, limit_bytes=limit_bytes).epoch(0))


@pytest.mark.parametrize("limit_bytes", [1 << 30, 0])
def test_nothing_can_be_read(tmp_path: Path, limit_bytes: int) -> None:
    folder = photo_folder(tmp_path)
    data = open_data(folder)
    for path in folder.rglob("*.jpg"):
        path.write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"(?s)none of 40 .*images can be read; .*\.jpg: "):
        next(loader(data.train, WHOLE, max_unreadable=1, limit_bytes=limit_bytes).epoch(0))
    with pytest.raises(DataError, match=r"(?s)none of 14 validation images can be read; .*\.jpg: "):
        list(EvalLoader(data.val, SMALL, batch_size=8, limit_bytes=limit_bytes))  # type: ignore[arg-type]


# ---- wrong data


def test_fewer_images_than_a_batch() -> None:
    with pytest.raises(DataError, match="there are 7 training images, fewer than one batch of 8"):
        loader(tensors(7))


def test_labels_that_the_model_has_no_output_for() -> None:
    with pytest.raises(DataError, match="labels run from 0 to 4; a model of 4 outputs takes 0 to 3"):
        loader(tensors(classes=5))


# ---- worker processes

DIED = r"a process that reads images died .* try 0 workers"


class Killing(Replaced):
    """Images whose reading kills the worker process that does it, or sends it another signal."""

    def __init__(self, number: int, spared: int = 0) -> None:
        super().__init__(tensors(16), {})
        self.number, self.main, self.spared = number, os.getpid(), spared

    def read(self, index: int) -> Tensor:
        if os.getpid() != self.main:
            self.spared -= 1
            if self.spared < 0:
                os.kill(os.getpid(), self.number)
        return super().read(index)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_workers_leave_stopping_to_the_main_process(number: int) -> None:
    train = loader(Killing(number), SINGLE, workers=1, limit_bytes=0)
    assert len(list(train.epoch(0))) == 2
    train.close()


def test_a_worker_that_dies() -> None:
    train = loader(Killing(signal.SIGKILL), SINGLE, workers=1, limit_bytes=0)
    with pytest.raises(DataError, match=DIED):
        next(train.epoch(0))


def test_a_worker_that_dies_while_the_main_process_does_something_else() -> None:
    train = loader(Killing(signal.SIGKILL, spared=8), SINGLE, workers=1, limit_bytes=0)

    def work() -> None:
        with dead_workers_as_data_error():
            for _ in train.epoch(0):
                time.sleep(500)

    start = time.monotonic()
    with pytest.raises(DataError, match=DIED):
        work()
    assert time.monotonic() - start < 500
    train.close()


def test_what_passes_for_a_worker_that_died() -> None:
    killed = RuntimeError("DataLoader worker (pid 12) is killed by signal: Killed. ")
    raised = RuntimeError("Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback ...")
    torn = [ConnectionResetError(104, "reset by peer"), EOFError(), FileNotFoundError(2, "no listener")]
    caught = EOFError("Caught EOFError in DataLoader worker process 0.\nOriginal Traceback ...")

    def translated(error: Exception, fetching: bool, cause: Exception | None = None) -> bool:
        try:
            with dead_workers_as_data_error(fetching=fetching):
                raise error from cause
        except DataError as e:
            return e is not error
        except (RuntimeError, ValueError, OSError, EOFError):
            return False

    for fetching in (False, True):
        assert translated(killed, fetching)
        assert translated(ValueError("while leaving"), fetching, killed)
        assert not translated(DataError("something that was understood"), fetching, killed)
        assert not translated(raised, fetching)
        assert not translated(caught, fetching)
        assert [translated(error, fetching) for error in torn] == [fetching] * 3


# Reads one batch, and leaves two workers with others that take long.
BUSY = """
import sys, time
import torch
import torch.utils.data._utils as internals
from proxylessnas.train.loader import EvalLoader
from proxylessnas.data.sources import TensorImages
from proxylessnas.data.transforms import Preprocessing

internals.MP_STATUS_CHECK_INTERVAL = internals.worker.MP_STATUS_CHECK_INTERVAL = 0.3  # else 5 s

class Slow(TensorImages):
    def read(self, index):
        time.sleep(float(sys.argv[1]) if index >= 8 else 0)
        return super().read(index)

if __name__ == "__main__":
    images = Slow(torch.zeros(4000, 3, 16, 16, dtype=torch.uint8), [0] * 4000, "train")
    loader = EvalLoader(images, Preprocessing(16, 16), batch_size=8, workers=2, limit_bytes=0)
    batches = iter(loader)
    next(batches)
    print("ready", flush=True)
    if sys.argv[2] == "raise":
        raise ValueError("of the main process")
    if sys.argv[2] == "wait":
        time.sleep(500)
"""


@pytest.mark.skipif(os.name == "nt", reason="signals")
@pytest.mark.parametrize(
    ("pause_s", "then", "code"),
    [
        ("0.01", "end", 0),
        ("500", "end", 0),
        ("0.01", "raise", 1),
        ("0.01", "SIGTERM", -signal.SIGTERM),
        ("0.01", "SIGKILL", -signal.SIGKILL),
    ],
)
def test_no_worker_is_left(tmp_path: Path, pause_s: str, then: str, code: int) -> None:
    script = tmp_path / "busy.py"
    script.write_text(BUSY)
    env = {**os.environ, "PYTHONPATH": str(Path(proxylessnas.__file__).parent.parent)}
    words = [sys.executable, str(script), pause_s, "wait" if then.startswith("SIG") else then]
    process = subprocess.Popen(
        words, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        if then == "SIGTERM":  # as a job scheduler does; this main process does not care to save anything
            os.killpg(process.pid, signal.SIGTERM)
        elif then == "SIGKILL":
            process.kill()
        _, errors = process.communicate(timeout=300)  # to the end of the pipe, which the workers hold too
        assert process.returncode == code
        assert errors.endswith("ValueError: of the main process\n") if then == "raise" else not errors
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


# ---- validation


@pytest.mark.parametrize(("limit_bytes", "workers"), [(1 << 30, 0), (0, 0), (0, 2)])
def test_validation_sees_what_evaluation_sees(photos: Data, limit_bytes: int, workers: int) -> None:
    val = photos.val
    assert val is not None
    preprocessing = Preprocessing(16, 18, interpolation="bicubic")
    batches = EvalLoader(val, preprocessing, batch_size=4, workers=workers, limit_bytes=limit_bytes)
    transform = preprocessing.build()
    for _ in range(2):
        found = list(batches)
        assert len(found) == len(batches) == 4
        assert torch.equal(
            torch.cat([x for x, _ in found]), torch.stack([transform(val.read(i)) for i in range(14)])
        )
        assert torch.cat([y for _, y in found]).tolist() == list(val.labels)
        assert all(x.is_contiguous(memory_format=torch.channels_last) for x, _ in found)
    assert not batches.unreadable


@pytest.mark.parametrize("limit_bytes", [1 << 30, 0])
def test_each_validation_image_counts_in_one_process(limit_bytes: int) -> None:
    images = tensors(5)
    transform = SMALL.build()
    for rank in range(7):
        batches = EvalLoader(
            images, SMALL, batch_size=2, processes=processes(rank, 7), limit_bytes=limit_bytes
        )
        found = [x for inputs, _ in batches for x in inputs]
        assert len(found) == (rank < 5)
        assert all(torch.equal(x, transform(images.read(rank))) for x in found)


@pytest.mark.parametrize("limit_bytes", [1 << 30, 0])
def test_unreadable_validation_images_are_left_out(damaged: Data, limit_bytes: int) -> None:
    val = damaged.val
    assert val is not None
    batches = EvalLoader(val, SMALL, batch_size=4, limit_bytes=limit_bytes)
    targets = [y for _, labels in batches for y in labels.tolist()]
    assert targets == [0] * 7 + [1] * 6
    assert [Path(name).name for name in batches.unreadable] == ["03.jpg"]


def test_validation_works_in_inference_mode(photos: Data) -> None:
    assert photos.val is not None
    batches = EvalLoader(photos.val, SMALL, batch_size=8)
    with torch.inference_mode():
        first = [x for x, _ in batches]
    assert all(torch.equal(a, b) for a, (b, _) in zip(first, batches, strict=True))


# ---- preprocessing


def small_model(preprocessing: Preprocessing | None = None) -> proxylessnas.ImageClassifier:
    model = proxylessnas.create_model("proxyless_mobile", num_classes=2)
    model.preprocessing = preprocessing
    return model


def test_preprocessing_of_a_new_model(photos: Data) -> None:
    resolution = small_model().arch.resolution or 224
    found = preprocessing_of(Recipe(), small_model(), photos)
    assert found == Preprocessing(resolution, round(resolution * 256 / 224), IMAGENET_MEAN, IMAGENET_STD)
    sizes = {63: 63, 64: 73, 128: 146, 224: 256}
    for size, resize in sizes.items():
        found = preprocessing_of(Recipe(image_size=size), small_model(), photos)
        assert (found.input_size, found.resize) == (size, resize)


def test_preprocessing_of_a_trained_model(photos: Data) -> None:
    own = Preprocessing(160, 176, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert preprocessing_of(Recipe(), small_model(own), photos) == own
    assert preprocessing_of(Recipe(image_size=160), small_model(own), photos) == own
    found = preprocessing_of(Recipe(image_size=32, interpolation="bicubic"), small_model(own), photos)
    assert found == Preprocessing(32, 32, own.mean, own.std, "bicubic")
    mean = (0.5, 0.5, 0.5)
    recipe = Recipe(resize=200, mean=mean, std=mean)
    assert preprocessing_of(recipe, small_model(own), photos) == Preprocessing(160, 200, mean, mean)


def test_preprocessing_from_the_data() -> None:
    data = open_data("digits")
    found = preprocessing_of(Recipe(image_size=16), small_model(), data)
    assert (found.mean, found.std) == (data.mean or IMAGENET_MEAN, data.std or IMAGENET_STD)


def test_resize_below_the_input_size(photos: Data) -> None:
    own = Preprocessing(160, 176)
    with pytest.raises(DataError, match="resize 100 is smaller than the model's input of 160 px: set resize"):
        preprocessing_of(Recipe(resize=100), small_model(own), photos)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"cutout": 16}, "cutout 16 must be below image_size, which is 16"),
        ({"crop": "padded", "crop_padding": 16}, "crop_padding 16 must be below image_size, which is 16"),
    ],
)
def test_augmentation_that_leaves_nothing_of_a_image(
    photos: Data, changes: dict[str, Any], problem: str
) -> None:
    model = small_model(Preprocessing(16, 16))
    with pytest.raises(DataError, match=problem):
        preprocessing_of(Recipe(**changes), model, photos)
    smaller = {name: value - 1 if value == 16 else value for name, value in changes.items()}
    assert preprocessing_of(Recipe(**smaller), model, photos).input_size == 16
    assert preprocessing_of(Recipe(crop_padding=16), model, photos).input_size == 16  # not a padded crop


@pytest.mark.gpu
@pytest.mark.parametrize("recipe", [WHOLE, SINGLE])
def test_batches_on_a_gpu_are_those_on_the_cpu(recipe: Recipe) -> None:
    images = tensors()
    here, there = (
        loader(images, recipe),
        loader(images, recipe, processes=processes(device="cuda"), workers=2),
    )
    for a, b in zip(here.epoch(0), there.epoch(0), strict=True):
        assert b.inputs.device.type == b.targets.device.type == "cuda"
        assert b.inputs.is_contiguous(memory_format=torch.channels_last)
        assert torch.allclose(a.inputs, b.inputs.cpu(), atol=1e-5)
        assert torch.equal(a.targets, b.targets.cpu())
    for (a, _), (b, _) in zip(
        EvalLoader(images, SMALL, batch_size=7),
        EvalLoader(images, SMALL, batch_size=7, processes=processes(device="cuda"), limit_bytes=0, workers=1),
        strict=True,
    ):
        assert torch.allclose(a, b.cpu(), atol=1e-5)
