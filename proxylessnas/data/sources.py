"""Labelled images to train on: in files, in one tensor, or behind somebody's data set; their classes.

All of them are read one at a time as 8-bit RGB, can be sent to the worker processes of a ``DataLoader`` and
hold no more per image than they must: a list of a million paths would be copied into each worker.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from ..errors import DataError, ImageError, shown
from ..utils.random import keep_random_state, seed_everything
from .categories import categories, class_places, wnids
from .folders import leading_wnid
from .images import load_image, to_rgb

#: What Pillow and torchvision's decoders raise for a damaged file.
UNREADABLE = (OSError, ValueError, SyntaxError, RuntimeError)

_HASHED_IMAGES = 64  # so many images that are not files are read for a fingerprint


@runtime_checkable
class ImageSource(Protocol):
    """Labelled images, read one by one."""

    @property
    def labels(self) -> Sequence[int]:
        """The class index of each image."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> Tensor:
        """Return an image as RGB, uint8 [3, H, W].

        Raises:
            ImageError: it cannot be read; names it.
        """

    def name(self, index: int) -> str:
        """Return what to call an image in a message: its path, or such as ``train/00012``."""


class Source(ImageSource, Protocol):
    """Images that parts can be taken of."""

    def take(self: S, indices: Sequence[int]) -> S:
        """Return some of the images, in this order."""

    def digest(self) -> str:
        """Return a hash that changes with the images' names, labels and (cheaply) their content."""


S = TypeVar("S", bound="Source")


@dataclass(frozen=True)
class Data:
    """What a model is trained and validated on.

    Attributes:
        name: of the data set or its folder, for logs.
        train: images to train on.
        val: images to validate on; None if no class has an image to spare.
        categories: class names, in the order of the labels.
        wnids: WordNet ids of the classes, or ().
        mean, std: per channel on a scale of 0 to 1, where they are known for a data set.
        size: (height, width) in px if the images are all alike. For files this is what a sample of them
            shows: a hint, to be checked by whoever relies on it.
        notes: what a user should know, one line each: how the split was made, empty folders.
        fingerprint: SHA-256 (hex) of names, labels, file sizes and classes of both parts.
        held_out: whether ``val`` was split off the images to train on.
    """

    name: str
    train: ImageSource
    val: ImageSource | None
    categories: tuple[str, ...]
    wnids: tuple[str, ...] = ()
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    size: tuple[int, int] | None = None
    notes: tuple[str, ...] = ()
    fingerprint: str = ""
    held_out: bool = False


class FileImages:
    """Images in files below one folder.

    Args:
        root: the folder.
        names: paths relative to it.
        labels: their class indices.
        sizes: of the files, bytes.
    """

    def __init__(self, root: str, names: Iterable[str | bytes], labels: list[int], sizes: Tensor) -> None:
        encoded = [os.fsencode(name) for name in names]
        self.root = root
        self.labels = labels
        self.sizes = sizes
        self._names = b"".join(encoded)
        self._ends = torch.tensor([0, *map(len, encoded)]).cumsum(0)

    def __len__(self) -> int:
        return len(self.labels)

    def relative(self, index: int) -> str:
        """Return a path relative to the folder."""
        start, end = self._ends[_checked(index, len(self)) :][:2].tolist()
        return os.fsdecode(self._names[start:end])

    def name(self, index: int) -> str:
        """Return the path of an image."""
        return os.path.join(self.root, self.relative(index))

    def read(self, index: int) -> Tensor:
        """Return an image, uint8 [3, H, W].

        Raises:
            ImageError: the file cannot be read.
        """
        return pixels(load_image(self.name(index)))

    def take(self, indices: Sequence[int]) -> FileImages:
        """Return some of the images, in this order."""
        chosen = list(indices)
        ends = self._ends.tolist()
        names = [self._names[ends[i] : ends[i + 1]] for i in chosen]
        return FileImages(self.root, names, [self.labels[i] for i in chosen], self.sizes[chosen])

    def digest(self) -> str:
        """Return a hash of relative names, labels and file sizes; the same wherever the folder lies."""
        # "/" on every system; the ends of the names keep "ab","c" apart from "a","bc".
        names = self._names.replace(os.sep.encode(), b"/")
        return _sha256(names, self._ends, self.sizes, torch.tensor(self.labels))


class _NumberedImages:
    """Images without file names: they are known by the part they belong to and a number."""

    def __init__(self, labels: list[int], part: str, numbers: Tensor | None) -> None:
        self.labels = labels
        self.part = part
        self.numbers = torch.arange(len(labels)) if numbers is None else numbers

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """Return such as ``train/00012``."""
        return f"{self.part}/{int(self.numbers[index]):05d}"

    def read(self, index: int) -> Tensor:
        """Return an image, uint8 [3, H, W]."""
        raise NotImplementedError  # pragma: no cover

    def digest(self) -> str:
        """Return a hash of numbers, labels and, unless they change, some of the images."""
        return _sha256(self.part.encode(), self.numbers, torch.tensor(self.labels), *_some_images(self))


class TensorImages(_NumberedImages):
    """Images of one size in memory.

    Args:
        images: uint8 [N, 1 or 3, H, W]; grey ones are read as RGB.
        labels: their class indices.
        part: what they are called in messages: "train" gives ``train/00012``.
        numbers: the images' numbers in messages; None counts them.
    """

    def __init__(self, images: Tensor, labels: list[int], part: str, numbers: Tensor | None = None) -> None:
        super().__init__(labels, part, numbers)
        self.images = images

    def read(self, index: int) -> Tensor:
        """Return an image, uint8 [3, H, W]."""
        image = self.images[_checked(index, len(self))]
        return image.expand(3, -1, -1).contiguous() if image.shape[0] == 1 else image

    def take(self, indices: Sequence[int]) -> TensorImages:
        """Return some of the images, in this order."""
        chosen = list(indices)
        labels = [self.labels[i] for i in chosen]
        return TensorImages(self.images[chosen], labels, self.part, self.numbers[chosen])


class DatasetImages(_NumberedImages):
    """Images of a ``torch.utils.data.Dataset`` whose items are (image, class index).

    Args:
        dataset: gives Pillow images or uint8 tensors [C, H, W]; has to be picklable if it is read by worker
            processes.
        labels: the class indices of the images taken.
        part: what they are called in messages.
        numbers: the places of the images in the data set; None takes all.
    """

    def __init__(self, dataset: Any, labels: list[int], part: str, numbers: Tensor | None = None) -> None:
        super().__init__(labels, part, numbers)
        self.dataset = dataset

    def read(self, index: int) -> Tensor:
        """Return an image, uint8 [3, H, W].

        Raises:
            ImageError: it cannot be read, or is neither a Pillow image nor a uint8 tensor.
        """
        number = int(self.numbers[_checked(index, len(self))])
        try:
            return pixels(self.dataset[number][0])
        except UNREADABLE as e:
            raise ImageError(f"{self.name(index)}: {e}") from e

    def take(self, indices: Sequence[int]) -> DatasetImages:
        """Return some of the images, in this order."""
        chosen = list(indices)
        return DatasetImages(self.dataset, [self.labels[i] for i in chosen], self.part, self.numbers[chosen])


def pixels(image: Any) -> Tensor:
    """Return a Pillow image of any mode, or a uint8 tensor [1 or 3, H, W], as uint8 RGB [3, H, W].

    Raises:
        ImageError: it is something else.
    """
    if isinstance(image, Tensor):
        if image.dtype != torch.uint8 or image.ndim not in (2, 3):
            raise ImageError(
                f"a tensor {list(image.shape)} of {image.dtype} is not an image; uint8 [3, H, W] is "
                "expected (leave out transforms that scale or normalise: training does that itself)"
            )
        planes = image[None] if image.ndim == 2 else image
        if planes.shape[0] not in (1, 3) or not planes.numel():
            raise ImageError(
                f"a tensor {list(image.shape)} is not an image; 1 or 3 channels come first: [3, H, W]"
            )
        return planes.expand(3, -1, -1).contiguous()
    if not hasattr(image, "tobytes") or not hasattr(image, "mode"):
        raise ImageError(f"{shown(image)} is neither a Pillow image nor a uint8 tensor")
    rgb = image if image.mode == "RGB" else to_rgb(image)
    width, height = rgb.size
    flat = torch.frombuffer(bytearray(rgb.tobytes()), dtype=torch.uint8)
    return flat.view(height, width, 3).permute(2, 0, 1).contiguous()


def _checked(index: int, length: int) -> int:
    if not 0 <= index < length:
        raise IndexError(f"image {index} of {length}")
    return index


def seeded_read(images: ImageSource, index: int, seed: int) -> Tensor:
    """Read an image after seeding the global random generators, for data sets that augment by themselves.

    It leaves them seeded: call it within :func:`~.seeding.keep_random_state`.

    Raises:
        ImageError: it cannot be read.
    """
    seed_everything(seed)
    return images.read(index)


def _some_images(images: ImageSource) -> list[Tensor]:
    """Return some images, spread evenly; one that cannot be read is empty.

    There are none if the same image is another one the next time: a data set with augmentation of its own
    would get another hash in each process, and no run on it could be continued.
    """
    found = []
    total = len(images)
    with keep_random_state():
        for i in range(min(total, _HASHED_IMAGES)):
            index = i * total // min(total, _HASHED_IMAGES)
            try:
                image, again = (seeded_read(images, index, seed) for seed in (1, 2))
            except ImageError:
                image = again = torch.empty(0, dtype=torch.uint8)
            if not torch.equal(image, again):
                return []
            found.append(image)
    return found


def _sha256(*parts: bytes | Tensor) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else part.contiguous().numpy().tobytes()
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


@dataclass(frozen=True)
class Classes:
    """What the classes are called.

    Attributes:
        names: in the order of the labels.
        wnids: WordNet ids in the same order, or ().
    """

    names: tuple[str, ...]
    wnids: tuple[str, ...] = ()

    @classmethod
    def listed(cls, names: Sequence[str]) -> Classes:
        """Return the classes of a list of names given by a user.

        Raises:
            DataError: it is something else.
        """
        if isinstance(names, str) or not all(isinstance(name, str) for name in names):
            raise DataError(f"categories is {shown(names)}; a list of class names is expected")
        return cls(tuple(names), wnids() if tuple(names) == categories() else ())

    @classmethod
    def of_folders(cls, folders: Sequence[str]) -> Classes:
        """Return the classes that folders stand for, in their order; ImageNet's wnids get their names."""
        table = _imagenet()
        ids = tuple(leading_wnid(folder) or "" for folder in folders)
        if len(set(ids)) == len(folders) and all(wnid in table for wnid in ids):
            return cls(tuple(table[wnid] for wnid in ids), ids)
        return cls(tuple(folders))

    def places(self, folders: Sequence[str]) -> dict[str, int]:
        """Return the label of each folder that is called like a class (or its wnid); others are left out."""
        table = _imagenet()
        by_wnid = {wnid: i for i, wnid in enumerate(self.wnids)}
        wnid_of = {folder: leading_wnid(folder) or "" for folder in folders}
        found = {folder: by_wnid[wnid] for folder, wnid in wnid_of.items() if wnid in by_wnid}
        by_name = class_places([folder for folder in folders if folder not in found], self.names)
        if not self.wnids:  # a folder of ImageNet's for a class that goes by its name
            meant = {folder: table[wnid] for folder, wnid in wnid_of.items() if wnid in table}
            places = class_places(list(meant.values()), self.names)
            by_name = {folder: places[name] for folder, name in meant.items() if name in places} | by_name
        found.update({folder: place for folder, place in by_name.items() if place >= 0})
        return found


@dataclass
class Parts:
    """What a source holds, before anything is held out or left out.

    Attributes:
        name: what to call it.
        train: images to train on.
        val: images to validate on, if it has such a part.
        classes: of both.
        mean, std: per channel on a scale of 0 to 1, where they are known.
        notes: what a user should know, one line each.
    """

    name: str
    train: Source
    val: Source | None
    classes: Classes
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    notes: list[str] = field(default_factory=list)


def _imagenet() -> dict[str, str]:
    """Return the class name of each of ImageNet's wnids."""
    return dict(zip(wnids(), categories(), strict=True))
