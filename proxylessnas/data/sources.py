"""Labelled images to train on: in files, in one tensor, or behind somebody's data set.

All of them are read one at a time as 8-bit RGB, can be sent to the worker processes of a ``DataLoader`` and
hold no more per image than they must: a list of a million paths would be copied into each worker.
"""

from __future__ import annotations

import hashlib
import operator
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, Subset

from ..errors import DataError, ImageError, shown
from ..utils.random import keep_random_state, seed_everything
from ..utils.text import counted, some_of
from .categories import Classes
from .images import load_image, pixels_of, to_rgb

# What Pillow and torchvision's decoders raise for a damaged file.
_UNREADABLE = (OSError, ValueError, SyntaxError, RuntimeError)
_SAMPLE = 64  # so many images that are not files are read for a fingerprint


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


@dataclass
class Parts:
    """What a source holds, before anything is held out or left out; fields as of :class:`Data`."""

    name: str
    train: Source
    val: Source | None
    classes: Classes
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    notes: list[str] = field(default_factory=list)


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
        self.root, self.labels, self.sizes = root, labels, sizes
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
        """Return an image, uint8 [3, H, W]; an :class:`ImageError` names a file that cannot be read."""
        return pixels_of(load_image(self.name(index)))

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
    """Images without file names: they are known by the part they belong to and a number.

    Args:
        content: what holds them, and others.
        labels: their class indices.
        part: what they are called in messages: "train" gives ``train/00012``.
        numbers: their places in the content; None takes all.
    """

    def __init__(self, content: Any, labels: list[int], part: str, numbers: Tensor | None = None) -> None:
        self.content, self.labels, self.part = content, labels, part
        self.numbers = torch.arange(len(labels)) if numbers is None else numbers

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """Return such as ``train/00012``."""
        return f"{self.part}/{int(self.numbers[index]):05d}"

    def read(self, index: int) -> Tensor:
        """Return an image, uint8 [3, H, W].

        Raises:
            ImageError: it cannot be read, or is neither a Pillow image nor a uint8 tensor.
        """
        return self._read(int(self.numbers[_checked(index, len(self))]), index)

    def _read(self, number: int, index: int) -> Tensor:
        raise NotImplementedError  # pragma: no cover

    def take(self: N, indices: Sequence[int]) -> N:
        """Return some of the images, in this order."""
        chosen = list(indices)
        labels = [self.labels[i] for i in chosen]
        return type(self)(self.content, labels, self.part, self.numbers[chosen])

    def digest(self) -> str:
        """Return a hash of numbers, labels and, unless they change, some of the images."""
        return _sha256(self.part.encode(), self.numbers, torch.tensor(self.labels), *_some_images(self))


N = TypeVar("N", bound=_NumberedImages)


class TensorImages(_NumberedImages):
    """Images of one size in memory: uint8 [N, 1 or 3, H, W]; grey ones are read as RGB."""

    def _read(self, number: int, index: int) -> Tensor:
        image: Tensor = self.content[number]
        return image.expand(3, -1, -1).contiguous() if image.shape[0] == 1 else image


class DatasetImages(_NumberedImages):
    """Images of a ``Dataset`` whose items are (Pillow image or uint8 tensor [C, H, W], class index).

    It has to be picklable if it is read by worker processes.
    """

    def _read(self, number: int, index: int) -> Tensor:
        try:
            return pixels(self.content[number][0])
        except _UNREADABLE as e:
            raise ImageError(f"{self.name(index)}: {e}") from e


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
    return pixels_of(image if image.mode == "RGB" else to_rgb(image))


def _checked(index: int, length: int) -> int:
    if not 0 <= index < length:
        raise IndexError(f"image {index} of {length}")
    return index


def spread(total: int, most: int) -> list[int]:
    """Return ``most`` places spread evenly over ``total`` (or all, if there are fewer)."""
    return [i * total // min(total, most) for i in range(min(total, most))]


def seeded_read(images: ImageSource, index: int, seed: int) -> Tensor:
    """Read an image after seeding the global random generators, for data sets that augment by themselves.

    It leaves them seeded: call it within :func:`~.utils.random.keep_random_state`.

    Raises:
        ImageError: it cannot be read.
    """
    seed_everything(seed)
    return images.read(index)


def read_twice(images: ImageSource, index: int) -> Tensor | None:
    """Return an image; None if it is another one the next time, as a data set augments it by itself.

    Raises:
        ImageError: it cannot be read.
    """
    image, again = (seeded_read(images, index, seed) for seed in (1, 2))
    return image if torch.equal(image, again) else None


def _some_images(images: ImageSource) -> list[Tensor]:
    """Return some images, spread evenly; one that cannot be read is empty.

    There are none if the same image is another one the next time: a data set with augmentation of its own
    would get another hash in each process, and no run on it could be resumed.
    """
    found = []
    with keep_random_state():
        for index in spread(len(images), _SAMPLE):
            try:
                image = read_twice(images, index)
            except ImageError:
                image = torch.empty(0, dtype=torch.uint8)
            if image is None:
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


# ---- a data set of somebody's own


def is_dataset(source: Any) -> bool:
    """Return whether this could be a data set: whatever has a length and items, as torch does not check."""
    return isinstance(source, IterableDataset) or (
        hasattr(source, "__getitem__") and hasattr(source, "__len__") and not isinstance(source, (str, bytes))
    )


def open_dataset(dataset: Any, part: str, classes: Classes | None) -> Parts:
    """Return the images of a map-style data set; see :class:`DatasetImages`.

    Labels are taken from the data set's ``targets`` or ``labels`` if these agree with its items, else by
    reading all of it once. Without ``classes`` they are the data set's own, else numbers.

    Raises:
        DataError: its items are of another kind.
    """
    name = type(dataset).__name__
    if isinstance(dataset, IterableDataset):
        raise DataError(
            f"{name} is an IterableDataset; images are drawn in random order, which needs a Dataset"
        )
    total = len(dataset)
    if total == 0:
        raise DataError(f"{name}: the data set is empty")
    _check_item(name, _item(name, dataset, 0))
    notes = []
    labels = _own_labels(dataset)
    if labels is None or not _agree(dataset, labels):
        labels = [_label(f"{name}: item {i}", _item(name, dataset, i)[1]) for i in range(total)]
        notes.append(f"{name} has no list of labels (targets): read once to find them")
    if min(labels) < 0:
        raise DataError(f"{name}: class index {min(labels)}; they count from 0")
    if classes is None:
        own = _own_classes(dataset)
        classes = Classes(own if len(own) > max(labels) else tuple(map(str, range(max(labels) + 1))))
    elif max(labels) >= len(classes.names):
        known = counted(len(classes.names), "class", "classes")
        raise DataError(
            f"{name}: class index {max(labels)}, but there are {known} ({some_of(classes.names)}), counted "
            "from 0"
        )
    return Parts(name, DatasetImages(dataset, labels, part), None, classes, notes=notes)


def _item(name: str, dataset: Any, index: int) -> Any:
    try:
        return dataset[index]
    except (*_UNREADABLE, LookupError, TypeError) as e:
        raise DataError(f"{name}: item {index} cannot be read: {type(e).__name__}: {e}") from e


def _check_item(name: str, item: Any) -> None:
    if not isinstance(item, (tuple, list)) or len(item) < 2:
        raise DataError(f"{name}: items are {shown(item)}; (image, class index) is expected")
    try:
        pixels(item[0])
    except ImageError as e:
        raise DataError(f"{name}: item 0 cannot be used: {e}") from e
    _label(f"{name}: item 0", item[1])


def _label(where: str, value: Any) -> int:
    plain = value.tolist() if hasattr(value, "tolist") else value  # of a tensor or numpy's: their own kinds
    while isinstance(plain, list) and len(plain) == 1:
        plain = plain[0]
    if isinstance(plain, bool) or not hasattr(plain, "__index__"):
        raise DataError(
            f"{where} has the label {shown(value)}; a class index is expected, a whole number (of one-hot "
            "labels: label.argmax())"
        )
    return operator.index(plain)


def _own_labels(dataset: Any) -> list[int] | None:
    """Return a data set's list of labels, if it has one; that of a Subset comes from what it is part of."""
    if isinstance(dataset, Subset):
        whole = _own_labels(dataset.dataset)
        return None if whole is None else [whole[i] for i in dataset.indices]
    for attribute in ("targets", "labels"):
        found: Any = getattr(dataset, attribute, None)
        values = found.tolist() if hasattr(found, "tolist") else found  # a tensor or a numpy array
        if isinstance(values, Sequence) and len(values) == len(dataset):
            try:
                return [_label("", value) for value in values]
            except DataError:  # one-hot, names, ...
                continue
    return None


def _own_classes(dataset: Any) -> tuple[str, ...]:
    if isinstance(dataset, Subset):
        return _own_classes(dataset.dataset)
    found = getattr(dataset, "classes", None)
    return tuple(map(str, found)) if isinstance(found, (list, tuple)) else ()


def _agree(dataset: Any, labels: Sequence[int]) -> bool:
    """Return whether a list of labels is that of the items: a target transform may change them."""
    places = {0, len(labels) - 1, *range(0, len(labels), max(1, len(labels) // 8))}
    try:
        return all(labels[i] == _label("", dataset[i][1]) for i in places)
    except _UNREADABLE:  # an item that cannot be read; training counts these
        return True
