"""The images of a search: what is held out of train, and the batches that arch steps see."""

from __future__ import annotations

import os
import random
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from proxylessnas.data.open import open_data
from proxylessnas.data.sources import Data, FileImages, TensorImages
from proxylessnas.data.transforms import Preprocessing
from proxylessnas.errors import DataError
from proxylessnas.search.data import ArchLoader, open_search_data

# a hint of torch's on machines with fewer cores than the workers asked for
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

SMALL = Preprocessing(16, 18)
KINDS = {"ant": 8, "bee": 5, "cow": 12}


def folder_of(root: Path, kinds: dict[str, int] = KINDS, size: int | None = 20) -> Path:
    """Make a folder of class folders; with no size, the images are of different ones."""
    from PIL import Image

    dice = np.random.default_rng(0)
    for kind, count in kinds.items():
        (root / kind).mkdir(parents=True)
        for i in range(count):
            image = Image.fromarray(dice.integers(0, 256, (6, 6, 3), dtype=np.uint8))
            image.resize((24, size or 20 + i)).save(root / kind / f"{i:02d}.png")
    return root


def names(data: Data) -> tuple[set[str], set[str]]:
    parts = (data.train, data.val)
    return tuple({p.name(i) for i in range(len(p))} for p in parts)  # type: ignore[return-value]


@contextmanager
def recorded_accesses() -> Iterator[list[str]]:
    """Record the paths of all files and folders that Python opens, lists or looks up."""
    found: list[str] = []
    on = True

    def hook(event: str, args: tuple[object, ...]) -> None:
        if on and event in ("open", "os.listdir", "os.scandir") and isinstance(args[0], (str, bytes)):
            found.append(os.fsdecode(args[0]))

    sys.addaudithook(hook)  # there is no way to take one out again
    try:
        yield found
    finally:
        on = False


# ---- what is held out


def test_a_share_of_each_class_is_held_out_of_train(tmp_path: Path) -> None:
    folder_of(tmp_path / "train")
    data = open_search_data(tmp_path, arch_fraction=0.25, seed=3)
    weights, arch = names(data)
    assert weights & arch == set()
    assert weights | arch == set(map(str, (tmp_path / "train").rglob("*.png")))
    assert [list(data.val.labels).count(c) for c in range(3)] == [2, 1, 3]
    assert data.categories == ("ant", "bee", "cow")
    assert data.size == (20, 24)
    assert data.notes == (
        f"held out of {tmp_path} for the architecture: 25 % of each class held out, 6 of 25 images, seed 3",
    )


def test_the_choice_follows_from_the_seed(tmp_path: Path) -> None:
    folder_of(tmp_path)
    one = open_search_data(tmp_path, arch_fraction=0.4, seed=1)
    again = open_search_data(str(tmp_path), arch_fraction=0.4, seed=1)
    other = open_search_data(tmp_path, arch_fraction=0.4, seed=2)
    assert names(one) == names(again) != names(other)
    assert one.fingerprint == again.fingerprint != other.fingerprint


def test_training_the_model_further_validates_on_what_the_search_held_out(tmp_path: Path) -> None:
    folder_of(tmp_path)
    data, later = (
        open_search_data(tmp_path, arch_fraction=0.2, seed=5),
        open_data(tmp_path, val_fraction=0.2, seed=5),
    )
    assert later.val is not None
    assert names(data)[1] == {later.val.name(i) for i in range(len(later.val))}


@pytest.mark.parametrize("part", ["val", "valid", "validation", "test"])
def test_validation_and_test_folders_are_never_looked_into(tmp_path: Path, part: str) -> None:
    folder_of(tmp_path / "train")
    folder_of(tmp_path / part)
    clean = open_search_data(tmp_path, arch_fraction=0.25, seed=0)
    shutil.rmtree(tmp_path / part)
    # Anything that reads this stumbles: a class that train lacks, garbage for images, a link to itself.
    (tmp_path / part / "ant").mkdir(parents=True)
    (tmp_path / part / "ant" / "00.png").write_bytes(b"no image")
    (tmp_path / part / "unknown").mkdir()
    os.symlink("01.png", tmp_path / part / "unknown" / "01.png")
    with recorded_accesses() as found:
        data = open_search_data(tmp_path, arch_fraction=0.25, seed=0)
        loader = ArchLoader(data.val, SMALL, batch_size=4, seed=0)
        for number in range(3):
            loader.batch(number)
    below = [path for path in found if path.startswith(str(tmp_path / part))]
    assert below == []
    assert any(path.startswith(str(tmp_path / "train")) for path in found)  # the recording works
    assert data.fingerprint == clean.fingerprint
    assert names(data) == names(clean)


def test_named_data_and_data_sets() -> None:
    data = open_search_data("digits", arch_fraction=0.1, seed=0, limit=12)
    assert (len(data.train), len(data.val), data.name) == (120, 120, "digits")
    assert data.mean is not None
    assert data.std is not None
    own = torch.utils.data.TensorDataset(
        torch.randint(0, 256, (20, 1, 8, 8), dtype=torch.uint8), torch.arange(20) % 2
    )
    data = open_search_data(own, arch_fraction=0.3, seed=0)
    assert (len(data.train), len(data.val)) == (14, 6)
    assert data.val.read(0).shape == (3, 8, 8)


def test_classes_that_have_no_image_to_spare(tmp_path: Path) -> None:
    folder_of(tmp_path / "some", {"ant": 1, "bee": 4})
    data = open_search_data(tmp_path / "some", arch_fraction=0.25, seed=0)
    assert list(data.val.labels) == [1]
    assert data.notes[-1] == "architectures are evaluated without 1 of 2 classes"
    folder_of(tmp_path / "none", {"ant": 1, "bee": 1})
    with pytest.raises(DataError, match="no class has two images"):
        open_search_data(tmp_path / "none", arch_fraction=0.25, seed=0)


@pytest.mark.parametrize("fraction", [0, 1.0, -0.1, "0.1", True, None, float("nan")])
def test_a_wrong_share(fraction: float) -> None:
    with pytest.raises(DataError, match=r"arch_fraction is .* above 0 and at most 0\.9"):
        open_search_data("digits", arch_fraction=fraction, seed=0)


def test_a_source_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        open_search_data(tmp_path / "nowhere", arch_fraction=0.1, seed=0)


# ---- batches


def tensors(n: int = 23, classes: int = 4, size: int = 16) -> TensorImages:
    """Return images in memory; every one is one of a kind."""
    images = torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8)
    return TensorImages(images, [i % classes for i in range(n)], "train")


def arch_loader(images: object, batch_size: int = 6, seed: int = 1, **more: object) -> ArchLoader:
    return ArchLoader(images, SMALL, batch_size=batch_size, seed=seed, **more)  # type: ignore[arg-type]


def same(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> bool:
    return torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


def test_batches_are_evaluation_images_in_a_new_order_each_pass() -> None:
    images = tensors(23)
    transform = SMALL.build()
    expected = [transform(images.read(i)) for i in range(23)]
    loader = arch_loader(images)
    assert (loader.batch_size, loader.batches_per_pass, loader.in_memory) == (6, 3, True)
    passes = []
    for first in (0, 3):
        seen = []
        for number in range(first, first + 3):
            inputs, targets = loader.batch(number)
            assert inputs.shape == (6, 3, 16, 16)
            assert inputs.is_contiguous(memory_format=torch.channels_last)
            for x, y in zip(inputs, targets.tolist(), strict=True):
                place = next(i for i, e in enumerate(expected) if torch.equal(x, e))
                assert y == place % 4
                seen.append(place)
        assert len(set(seen)) == 18
        passes.append(seen)
    assert passes[0] != passes[1]
    assert loader.waited_s > 0


def test_a_batch_is_a_function_of_the_seed_and_its_number() -> None:
    images = tensors()
    loader = arch_loader(images)
    forward = [loader.batch(i) for i in range(8)]
    other = arch_loader(images)
    for number in (7, 0, 3, 3, 2):
        assert same(other.batch(number), forward[number])
    assert not same(arch_loader(images, seed=2).batch(0), forward[0])
    with pytest.raises(ValueError, match="numbered from 0"):
        loader.batch(-1)


def test_no_random_number_is_drawn(tmp_path: Path) -> None:
    files = open_search_data(folder_of(tmp_path, size=None), arch_fraction=0.5, seed=0).val
    in_memory = tensors()
    states = torch.get_rng_state(), random.getstate()
    for images in (in_memory, files):
        loader = arch_loader(images, limit_bytes=0)
        loader.batch(3)
        loader.close()
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]


@pytest.mark.parametrize("workers", [0, 2])
def test_reading_one_by_one_gives_the_same_batches_as_memory(tmp_path: Path, workers: int) -> None:
    files = open_search_data(folder_of(tmp_path), arch_fraction=0.5, seed=0).val
    assert isinstance(files, FileImages)
    kept, read = arch_loader(files, 4), arch_loader(files, 4, limit_bytes=0, workers=workers)
    assert kept.in_memory
    assert not read.in_memory
    for number in (0, 1, 2, 7, 8, 1, 2):  # in turn, ahead, and back
        assert same(kept.batch(number), read.batch(number))
    read.close()
    assert same(kept.batch(5), read.batch(5))  # it starts again
    read.close()
    read.close()


@pytest.mark.parametrize("limit_bytes", [1 << 30, 0])
def test_all_processes_together_see_what_one_would(limit_bytes: int) -> None:
    images = tensors()
    one = arch_loader(images, 6, limit_bytes=limit_bytes)
    shares = [arch_loader(images, 6, rank=r, world=3, limit_bytes=limit_bytes) for r in range(3)]
    for number in (0, 1, 2, 5):
        parts = [share.batch(number) for share in shares]
        assert [len(part[1]) for part in parts] == [2, 2, 2]
        together = tuple(torch.cat(column) for column in zip(*parts, strict=True))
        assert same(together, one.batch(number))  # type: ignore[arg-type]


@pytest.mark.parametrize("limit_bytes", [1 << 30, 0])
def test_unreadable_images_are_replaced_by_the_next(tmp_path: Path, limit_bytes: int) -> None:
    files = open_search_data(folder_of(tmp_path, {"ant": 20, "bee": 20}), arch_fraction=0.5, seed=0).val
    good = arch_loader(files, 20)
    damaged = files.name(3), files.name(4), files.name(19)
    for name in damaged:
        Path(name).write_bytes(b"no image")
    loader = arch_loader(files, 20, max_unreadable=0.2, limit_bytes=limit_bytes)
    order = loader._order.images(0).tolist()
    stand_ins = {3: 5, 4: 5, 19: 0}
    inputs, targets = loader.batch(0)
    expected_inputs, expected_targets = good.batch(0)
    place = {image: row for row, image in enumerate(order)}
    for row, image in enumerate(order):
        from_row = place[stand_ins.get(image, image)]
        assert torch.equal(inputs[row], expected_inputs[from_row])
        assert targets[row] == expected_targets[from_row]
    assert set(loader.unreadable) == set(damaged)
    assert len(files) == 20


@pytest.mark.parametrize("limit_bytes", [1 << 30, 0])
def test_too_many_unreadable_images(tmp_path: Path, limit_bytes: int) -> None:
    files = open_search_data(folder_of(tmp_path), arch_fraction=0.5, seed=0).val
    Path(files.name(0)).write_bytes(b"no image")
    with pytest.raises(DataError, match=r"1 of 12 images held out .* more than the 1 %"):
        arch_loader(files, 12, limit_bytes=limit_bytes).batch(0)
    for i in range(len(files)):
        Path(files.name(i)).write_bytes(b"no image")
    with pytest.raises(DataError):
        arch_loader(files, 12, limit_bytes=limit_bytes, max_unreadable=1.0).batch(0)


def test_fewer_images_than_a_batch_make_smaller_ones() -> None:
    loader = arch_loader(tensors(7), 64)
    assert (loader.batch_size, loader.batches_per_pass) == (7, 1)
    assert len(loader.batch(2)[1]) == 7
    shares = [arch_loader(tensors(7), 64, rank=r, world=2) for r in range(2)]
    assert [share.batch_size for share in shares] == [6, 6]
    assert [len(share.batch(0)[1]) for share in shares] == [3, 3]
    with pytest.raises(DataError, match="1 image held out for the architecture, fewer than the 2 proc"):
        arch_loader(tensors(1), 64, world=2)
    with pytest.raises(DataError, match="cannot be shared evenly by 2 processes"):
        arch_loader(tensors(20), 7, world=2)


def test_the_memory_layout_is_chosen() -> None:
    images = tensors()
    plain = arch_loader(images, channels_last=False).batch(0)
    assert plain[0].is_contiguous()
    assert same(plain, arch_loader(images).batch(0))


def test_images_that_change_by_themselves_are_the_same_for_the_same_batch() -> None:
    class Noisy(torch.utils.data.Dataset[tuple[Tensor, int]]):
        targets = (0, 1) * 8

        def __len__(self) -> int:
            return 16

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            return torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8), index % 2

    data = open_search_data(Noisy(), arch_fraction=0.5, seed=0)
    one, two = arch_loader(data.val, 4), arch_loader(data.val, 4, workers=1)
    assert not one.in_memory
    one.batch(0)
    assert same(one.batch(2), two.batch(2))
    assert not same(one.batch(0), one.batch(2))
    two.close()
