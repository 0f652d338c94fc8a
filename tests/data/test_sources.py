"""Images are read as RGB, wherever they come from, also in worker processes; a data set object will do."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from proxylessnas.data.open import open_data
from proxylessnas.data.sources import DatasetImages, FileImages, ImageSource, TensorImages, pixels
from proxylessnas.errors import DataError, ImageError, MissingExtraError, needs
from proxylessnas.train.evaluate import read_batches
from proxylessnas.train.settings import Settings


def names(images: ImageSource | None) -> list[str]:
    assert isinstance(images, FileImages)
    return [images.relative(i) for i in range(len(images))]


def draw(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (5, 4)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def test_images_are_read_as_rgb(tmp_path: Path) -> None:
    for name, colour in {"red": (255, 0, 0), "sea": (0, 100, 200)}.items():
        for i in range(3):
            draw(tmp_path / name / f"{i}.png", colour)
    Image.new("L", (5, 4), 7).save(tmp_path / "red" / "0.png")
    data = open_data(tmp_path, val=0.34)
    assert data.size == (4, 5)
    for part in (data.train, data.val):
        assert part is not None
        for i in range(len(part)):
            image = part.read(i)
            assert (image.dtype, tuple(image.shape)) == (torch.uint8, (3, 4, 5))
            assert image.is_contiguous()
            grey = part.name(i).endswith(os.path.join("red", "0.png"))
            colour = (7, 7, 7) if grey else [(255, 0, 0), (0, 100, 200)][part.labels[i]]
            assert tuple(image[:, 3, 4].tolist()) == colour
    draw(tmp_path / "red" / "9.png", (0, 0, 0), (9, 9))
    assert open_data(tmp_path).size is None
    with pytest.raises(IndexError, match="image 4 of 4"):
        data.train.read(4)


def test_damaged_files_are_found_when_they_are_read(tmp_path: Path) -> None:
    for i in range(4):
        draw(tmp_path / "ab"[i % 2] / f"00{i // 2}.jpg", (1, 2, 3))
        (tmp_path / "ab"[i % 2] / f"00{i // 2}.jpg").write_bytes(b"rubbish")
    data = open_data(tmp_path)
    assert data.size is None
    with pytest.raises(ImageError, match=r"a/00[01]\.jpg: is not an image"):
        data.train.read(0)


def test_names_that_are_not_ascii(tmp_path: Path) -> None:
    draw(tmp_path / "Bär" / "1 é.png", (1, 2, 3))
    draw(tmp_path / "Bär" / "雪.png", (1, 2, 3))
    draw(tmp_path / "ßa" / "1.png", (1, 2, 3))
    data = open_data(tmp_path)
    assert data.categories == ("Bär", "ßa")
    assert sorted([*names(data.train), *names(data.val)]) == ["Bär/1 é.png", "Bär/雪.png", "ßa/1.png"]
    assert data.train.read(0)[:, 0, 0].tolist() == [1, 2, 3]


def test_images_travel_to_worker_processes(tmp_path: Path) -> None:
    for i in range(6):
        draw(tmp_path / "ab"[i % 2] / f"{i}.png", (i, 0, 0))
    images = open_data(tmp_path, val=0.4).train
    copy = pickle.loads(pickle.dumps(images))
    assert (names(copy), copy.labels, copy.digest()) == (names(images), images.labels, copy.digest())
    loader = DataLoader(Reader(images), batch_size=2, num_workers=1, multiprocessing_context="spawn")
    read = torch.cat(list(loader))
    assert read.equal(torch.stack([images.read(i) for i in range(len(images))]))


class Reader(Dataset):
    def __init__(self, images: ImageSource) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.images.read(index)


def test_a_million_names_stay_small() -> None:
    names = [f"n{i % 1000:08d}/n{i % 1000:08d}_{i}.JPEG" for i in range(100_000)]
    images = FileImages("root", names, [i % 1000 for i in range(100_000)], torch.zeros(100_000).long())
    assert len(pickle.dumps(images)) < 60 * 100_000  # bytes
    assert images.name(99_999) == os.path.join("root", names[-1])
    some = images.take([5, 99_999, 5])
    assert [some.relative(i) for i in range(3)] == [names[5], names[-1], names[5]]
    assert some.labels == [5, 999, 5]


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (torch.zeros(3, 4, 4), "float32 is not an image"),
        (torch.zeros(2, 4, 4, dtype=torch.uint8), "1 or 3 channels"),
        (torch.zeros(3, 0, 4, dtype=torch.uint8), "is not an image"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), "is not an image"),
        ("cat.jpg", "neither a Pillow image"),
    ],
)
def test_items_that_are_no_images(item: Any, reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        pixels(item)


def test_grey_tensors_become_rgb() -> None:
    grey = torch.arange(12, dtype=torch.uint8).view(3, 4)
    for image in (grey, grey[None]):
        assert pixels(image).equal(torch.stack([grey] * 3))
    assert TensorImages(grey[None, None], [0], "x").read(0).equal(torch.stack([grey] * 3))


class Shades(Dataset):
    """Grey images; the label is the shade."""

    def __init__(self, n: int = 20, n_classes: int = 4, kind: str = "pil") -> None:
        self.n, self.n_classes, self.kind = n, n_classes, kind

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> tuple[Any, int]:
        label = index % self.n_classes
        if self.kind == "pil":
            return Image.new("L", (6, 5), label), label
        return torch.full((3, 5, 6), label, dtype=torch.uint8), label


class Listed(Shades):
    def __init__(self, targets: Any, **options: Any) -> None:
        super().__init__(**options)
        self.targets = targets
        self.classes = ["black", "dark", "grey", "light"]


@pytest.mark.parametrize("kind", ["pil", "tensor"])
def test_data_set_objects(kind: str) -> None:
    data = open_data(Shades(kind=kind))
    assert data.val is not None
    assert (len(data.train), len(data.val), data.size) == (16, 4, (5, 6))
    assert data.categories == ("0", "1", "2", "3")
    assert data.notes[0] == "Shades has no list of labels (targets): read once to find them"
    for part in (data.train, data.val):
        for i, label in enumerate(part.labels):
            assert part.read(i).tolist() == torch.full((3, 5, 6), label).tolist()
            assert int(part.name(i).removeprefix("train/")) % 4 == label
    assert open_data(Shades(kind=kind)).fingerprint == data.fingerprint
    assert open_data(Shades(kind=kind), categories=list("abcd")).categories == tuple("abcd")
    own_val = open_data(Shades(kind=kind), val=Shades(n=8, kind=kind)).val
    assert own_val is not None
    assert own_val.name(3) == "val/00003"
    assert list(own_val.labels) == [0, 1, 2, 3] * 2


class Flickering(Listed):
    """Images that are augmented already, with noise from everybody's generators or one of its own."""

    def __init__(self, own: bool = False, noise: int = 50, **options: Any) -> None:
        super().__init__([0, 1, 2, 3] * 5, **options)
        self.noise, self.own = noise, random.Random() if own else None

    def __getitem__(self, index: int) -> tuple[Any, int]:
        if self.own is not None:
            value = self.own.randrange(self.noise)
        else:
            value = random.randrange(self.noise) + int(torch.randint(self.noise, ()))
            value += int(np.random.randint(self.noise))
        return torch.full((3, 5, 6), 100 + value, dtype=torch.uint8), index % 4


@pytest.mark.parametrize("own", [False, True])
def test_the_fingerprint_of_a_data_set_that_augments_by_itself(own: bool) -> None:
    seen = set()
    for seed in (1, 2):  # two processes
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        expected = random.Random(seed).random(), np.random.RandomState(seed).rand()
        images = DatasetImages(Flickering(own), [0, 1, 2, 3] * 5, "train")
        seen |= {images.digest(), images.digest()}
        assert (random.random(), np.random.rand()) == expected  # the caller's numbers stay
    assert len(seen) == 1
    for seed in (1, 2):
        random.seed(seed)
        torch.manual_seed(seed)
        seen.add(open_data(Flickering(own)).fingerprint)
    assert len(seen) == 2  # of the parts that were split off, and the same again
    assert DatasetImages(Flickering(own), [1, 0, 2, 3] * 5, "train").digest() not in seen
    still = [DatasetImages(Flickering(own, noise=1), [0] * 20, "train").digest() for _ in range(2)]
    assert still[0] == still[1]  # where the images are the same again, they count
    assert still[0] != DatasetImages(Shades(kind="tensor"), [0] * 20, "train").digest()


@pytest.mark.parametrize("targets", [[0, 1, 2, 3] * 5, torch.arange(20) % 4, (torch.arange(20) % 4).numpy()])
def test_labels_and_classes_of_a_data_set(targets: Any) -> None:
    data = open_data(Listed(targets))
    assert data.categories == ("black", "dark", "grey", "light")
    assert len(data.notes) == 1  # nothing was read for the labels
    part = open_data(Subset(Listed(targets), [0, 1, 4, 5, 8, 9]), val=0.4)
    assert (sorted(part.train.labels), part.categories) == ([0, 0, 1, 1], data.categories)


def test_labels_that_a_transform_changes() -> None:
    data = open_data(Listed([3, 2, 1, 0] * 5))  # not what the items say
    assert "read once" in data.notes[0]
    assert all(int(data.train.read(i)[0, 0, 0]) == label for i, label in enumerate(data.train.labels))


def test_data_sets_that_do_not_fit() -> None:
    class Stream(IterableDataset):
        def __iter__(self) -> Iterator[int]:
            return iter(range(3))

    class Floats(Shades):
        def __getitem__(self, index: int) -> tuple[Any, int]:
            return torch.rand(3, 4, 4), 0

    class Broken(Shades):
        def __getitem__(self, index: int) -> tuple[Any, int]:
            raise OSError("disk on fire")

    one = torch.zeros(3, 4, 4, dtype=torch.uint8)
    for source, reason in [
        (Stream(), "Stream is an IterableDataset"),
        (Floats(), r"Floats: item 0 cannot be used: .*leave out transforms"),
        (Broken(), "Broken: item 0 cannot be read: OSError: disk on fire"),
        (Shades(n=0), "the data set is empty"),
        (Shades(n_classes=1), "only one class has images"),
        ([one, one], r"\(image, class index\) is expected"),
        ([(one, "cat")], "item 0 has the label 'cat'; a class index is expected"),
        ([(one, 0), (one, -1)], "class index -1"),
    ]:
        with pytest.raises(DataError, match=reason):
            open_data(source)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"class index 3, but there are 2 classes \(a, b\)"):
        open_data(Shades(), categories=["a", "b"])
    with pytest.raises(DataError, match="class index 5, but there are 4 classes"):
        open_data(Shades(), val=Shades(n_classes=6))
    with pytest.raises(DataError, match="a folder, a data set or a share"):
        open_data(Shades(), val={1, 2})  # type: ignore[arg-type]


def test_an_item_that_cannot_be_read() -> None:
    class Holey(Listed):
        def __getitem__(self, index: int) -> tuple[Any, int]:
            if index == 7:
                raise OSError("image file is truncated")
            return super().__getitem__(index)

    data = open_data(Holey([0, 1, 2, 3] * 5))
    for part in (data.train, data.val):
        assert part is not None
        for i in range(len(part)):
            if part.name(i) != "train/00007":
                assert part.read(i).shape == (3, 5, 6)
                continue
            with pytest.raises(ImageError, match="train/00007: image file is truncated"):
                part.read(i)


def test_real_photos(shared_data: Path, tmp_path: Path) -> None:
    photos = sorted((shared_data / "imagenet_sample").glob("*.jpg"))[:12]
    if not photos:
        pytest.skip("no photos in imagenet_sample")
    for i, path in enumerate(photos):
        (tmp_path / "ab"[i % 2]).mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / "ab"[i % 2])
    data = open_data(tmp_path)
    assert data.size is None
    for i in range(len(data.train)):
        with Image.open(data.train.name(i)) as image:
            assert data.train.read(i).shape == (3, image.height, image.width)


@pytest.mark.parametrize("label", [torch.eye(3)[1], torch.tensor(1.7), torch.tensor(True), 1.0, True])
def test_labels_are_whole_numbers(label: Any) -> None:
    one = torch.zeros(3, 4, 4, dtype=torch.uint8)
    with pytest.raises(DataError, match=r"item 1 has the label .* a class index is expected, a whole number"):
        open_data([(one, 0), (one, label)], val_fraction=0)


def test_labels_may_be_numbers_of_a_tensor() -> None:
    one = torch.zeros(3, 4, 4, dtype=torch.uint8)
    data = open_data([(one, torch.tensor(0)), (one, torch.tensor([2]))], val_fraction=0)
    assert data.train.labels == [0, 2]


def test_a_broken_library_is_told_apart_from_one_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "brokenlib"
    broken.mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    for cause in ("raise RuntimeError('operator nms does not exist')", "import no_such_dependency"):
        (broken / "__init__.py").write_text(cause)
        match = r"installed but broken \((operator nms|No module)"
        with pytest.raises(MissingExtraError, match=match), needs("brokenlib", "a test"):
            __import__("brokenlib")
    match = "a test needs absentlib, which is not installed: pip install"
    with pytest.raises(MissingExtraError, match=match), needs("absentlib", "a test"):
        __import__("absentlib")


def test_a_daemonic_process_starts_no_workers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = Settings(tmp_path, workers=2)
    assert (settings.worker_count(1), settings.notes()) == (2, [])
    monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)  # type: ignore[attr-defined]
    assert settings.worker_count(1) == 0
    (note,) = settings.notes()
    assert "daemonic" in note
    assert Settings(tmp_path, workers=0).notes() == []
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    batches = read_batches([(str(tmp_path / "a.png"), 1)], lambda image: torch.zeros(3), 1, workers=2)
    assert [targets.tolist() for _, targets, _ in batches] == [[1]]
