"""Open whatever images a user points at: a folder, a data set by name, or a data set object.

    >>> from proxylessnas.data.open import open_data
    >>> data = open_data("photos")                                    # doctest: +SKIP
    >>> data.categories, len(data.train), len(data.val), data.notes   # doctest: +SKIP
    (('cat', 'dog'), 180, 20, ('no validation part in photos: 10 % of each class held out, ...',))

Images are not decoded here, apart from a few to see whether they are all of one size. What is held out
depends on the labels in their order and on the seed, so that sorted file names give the same choice on every
machine.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import DataError, ImageError, shown
from ..utils.checks import Range, is_int
from ..utils.files import read_bytes
from ..utils.random import keep_random_state
from ..utils.text import counted, some_of
from .categories import Classes
from .folders import folder_images, has_classes, parts_of
from .named import NAMES, open_named, parse_name
from .sources import (
    Data,
    FileImages,
    ImageSource,
    Parts,
    Source,
    is_dataset,
    open_dataset,
    seeded_read,
    spread,
)  # fmt: skip

if TYPE_CHECKING:
    from torch.utils.data import Dataset

_SHOWN_CLASSES = 10  # at most so many are named with their counts
_SIZE_SAMPLE = 16  # so many images of each part are read to see whether they are of one size
_SHARE = Range(0, 0.9, open_low=True)


def open_data(
    source: str | os.PathLike[str] | Dataset[Any],
    *,
    val: str | os.PathLike[str] | Dataset[Any] | float | None = None,
    val_fraction: float = 0.1,
    seed: int = 0,
    limit: int | None = None,
    categories: Sequence[str] | None = None,
) -> Data:
    """Return the training and validation images of a source.

    A source is

    - a folder with a folder ``train`` and one called ``val``, ``valid``, ``validation`` or ``test``, each
      with one folder of images for each class;
    - a folder with one folder of images for each class, of which a part is held out for validation;
    - ``"cifar10"``, ``"cifar100"``, ``"fashion-mnist"``, found in or downloaded to ``$PROXYLESSNAS_DATA``
      (else ``datasets`` in the cache folder), or to a folder of one's own: ``"cifar10:/data"``;
    - ``"digits"``, small and bundled with the package;
    - a ``torch.utils.data.Dataset`` whose items are (Pillow image or uint8 tensor [C, H, W], class index).

    Classes are the sorted names of the folders. Where these are ImageNet's wnids, ``categories`` holds their
    names.

    Args:
        source: see above; a folder that is called like a data set is written ``./cifar10``.
        val: a folder of class folders (or a data set) to validate on, or the share of each training class to
            hold out for it; None takes the source's own validation part, or else holds out ``val_fraction``.
        val_fraction: share of each class that is held out where there is nothing to validate on, up to 0.9; 0
            holds out nothing, and does without validation.
        seed: of the choice of what is held out, or kept under a limit.
        limit: train on at most so many images a class, and validate on no more if these were held out (a
            validation part of its own is kept whole).
        categories: the class names in the order wanted, for a folder each of which has to be called like one
            of them, or for a data set without names.

    Raises:
        DataError: there is nothing to train on; says where, and what is expected there.
    """
    nothing = val_fraction == 0 and not isinstance(val_fraction, bool)
    held_out = 0.0 if nothing else _fraction(val_fraction, "val_fraction")
    if isinstance(val, (int, float)):
        held_out = _fraction(val, "val")
    if limit is not None and not is_int(limit, 1):
        raise DataError(f"limit is {shown(limit)}; the number of images a class to train on is 1 or more")
    parts = _open(source, None if categories is None else Classes.listed(categories), own_val=val is None)
    if val is not None and not isinstance(val, (int, float)):
        _add_validation(parts, val)
    why = "no validation part in" if val is None else "validation part taken from"
    return _finished(parts, f"{why} {parts.name}", held_out, seed, limit)


def class_counts(data: Data, other: ImageSource | None = None, part: str = "validation") -> str:
    """Return the classes with their counts, for the first line of a run: "2 classes, ...: cat 90 + 10, ...".

    Args:
        data: the classes, and the images to train on.
        other: those of another part; None takes the validation part.
        part: what these are for.
    """
    other = data.val if other is None else other
    train, held = Counter(data.train.labels), Counter(() if other is None else other.labels)
    what = "training images" if other is None else f"training + {part} images"
    shown = [
        f"{name} {train[i]:,}" + ("" if other is None else f" + {held[i]:,}")
        for i, name in enumerate(data.categories[:_SHOWN_CLASSES])
    ]
    classes = len(data.categories)
    if classes > _SHOWN_CLASSES:
        counts = [train[i] for i in range(classes)]
        shown.append(f"... ({min(counts):,} to {max(counts):,} training images a class)")
    return f"{classes:,} classes, {what}: {', '.join(shown)}"


def _open(source: Any, classes: Classes | None, own_val: bool) -> Parts:
    """Return what a source holds; its own validation part only if that is wanted."""
    if not isinstance(source, (str, os.PathLike)):
        if not is_dataset(source):
            raise DataError(
                f"{shown(source)} is neither a folder, nor the name of a data set, nor a data set"
            )
        return open_dataset(source, "train", classes)
    named = parse_name(source) if isinstance(source, str) else None
    if named is not None:
        name, root = named
        parts = open_named(name, root, None if classes is None else classes.names, test=own_val)
        if root is None and os.path.isdir(source):
            parts.notes.append(f"{source} is the data set of this name; the folder is ./{source}")
        if parts.val is not None:
            parts.notes.append(f"validated on the {len(parts.val):,} test images of {name}")
        return parts
    root = os.fsdecode(source)
    if not os.path.lexists(root):
        raise DataError(f"{root}: no such folder; data sets known by name are {', '.join(NAMES)}")
    train_root, val_root = parts_of(root)
    train, classes, notes = folder_images(train_root, classes)
    parts = Parts(root, train, None, classes, notes=notes)
    if val_root is None or not own_val:
        return parts
    if not has_classes(val_root, classes):
        notes.append(
            f"{val_root}: passed over, as no folder in it is called like a class (--val: other images to "
            "validate on, or the share of the training images to hold out)"
        )
        return parts
    if os.path.basename(val_root).lower() == "test":
        notes.append(f"{root} has no folder called val: validated on {os.path.basename(val_root)}")
    _add_validation(parts, val_root)
    return parts


def _add_validation(parts: Parts, source: Any) -> None:
    """Read the validation part from another source; its classes have to be the training part's."""
    if not isinstance(source, (str, os.PathLike)):
        if not is_dataset(source):
            raise DataError(f"val is {shown(source)}; a folder, a data set or a share is expected")
        other = open_dataset(source, "val", parts.classes)
        parts.val, notes = other.train, other.notes
    else:
        root = os.fsdecode(source)
        parts.val, _, notes = folder_images(root, parts.classes)
        train = parts.train
        if isinstance(train, FileImages) and os.path.realpath(root) == os.path.realpath(train.root):
            notes.append(f"{root}: validated on the images that are trained on")
    parts.notes += notes


def _finished(parts: Parts, why: str, held_out: float, seed: int, limit: int | None) -> Data:
    """Hold out a validation part where there is none, apply the limit, and look at what came out."""
    train, val, notes = parts.train, parts.val, parts.notes
    names = parts.classes.names
    _check_classes(parts)
    if val is None and not held_out:
        notes.append(f"{why}, and none held out (val_fraction is 0): there are no validation figures")
    elif val is None:
        train, val = _split(parts, why, held_out, seed)
        if limit is not None and val is not None:
            val = val.take(few_of_each(val.labels, limit, seed))
    if limit is not None:
        total = len(train)
        train = train.take(few_of_each(train.labels, limit, seed))
        if len(train) < total:
            notes.append(
                f"limited to {counted(limit, 'image')} a class: {len(train):,} of "
                f"{counted(total, 'image')} to train on"
            )
    if parts.val is not None:
        missing = _classes_with(train.labels, names, exclude=parts.val.labels)
        if missing:
            notes.append(
                f"no validation images for {len(missing)} of {len(names)} classes: {some_of(missing)}"
            )
    with keep_random_state():
        size = _common_size([train] if val is None else [train, val])
    data = Data(
        parts.name, train, val, names, parts.classes.wnids, parts.mean, parts.std, size, tuple(notes),
        held_out=parts.val is None and val is not None,
    )  # fmt: skip
    digests = "\n".join([train.digest(), "" if val is None else val.digest(), *names])
    return replace(data, fingerprint=hashlib.sha256(digests.encode("utf-8", "surrogateescape")).hexdigest())


def _split(parts: Parts, why: str, fraction: float, seed: int) -> tuple[Source, Source | None]:
    """Hold out a validation part, and note how."""
    whole, names = parts.train, parts.classes.names
    train_places, val_places = hold_out(whole.labels, fraction, seed)
    if not val_places:
        parts.notes.append(f"{why}: none can be held out, as no class has two images")
        return whole, None
    train, val = whole.take(train_places), whole.take(val_places)
    parts.notes.append(
        f"{why}: {100 * fraction:g} % of each class held out, {len(val):,} of {len(whole):,} images, "
        f"seed {seed}"
    )
    single = _classes_with(train.labels, names, exclude=val.labels)
    if single:
        parts.notes.append(
            f"{counted(len(single), 'class', 'classes')} with a single image, which is trained on: "
            f"{some_of(single)}"
        )
    return train, val


def hold_out(labels: Sequence[int], fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Return the places of the images to train on and of those to validate on, both in ascending order.

    Of each class the nearest whole number to ``fraction`` is held out, but at least one, and never the last
    one: a class with a single image is only trained on.
    """
    train, val = [], []
    for places in _shuffled_classes(labels, seed):
        n = min(max(1, round(fraction * len(places))), len(places) - 1)
        val += places[:n]
        train += places[n:]
    return sorted(train), sorted(val)


def few_of_each(labels: Sequence[int], limit: int, seed: int) -> list[int]:
    """Return the places of at most ``limit`` images of each class, in ascending order.

    A smaller limit gives some of the images that a larger one gives.
    """
    return sorted(i for places in _shuffled_classes(labels, seed) for i in places[:limit])


VALIDATION_FILE = "validation.txt"  # of a run: the names of the images it validated on


def validation_names(data: Data) -> list[str]:
    """Return the names of the validation images, [] without any."""
    return [] if data.val is None else [data.val.name(i) for i in range(len(data.val))]


def not_held_out_before(source: str | os.PathLike[str], data: Data) -> int | None:
    """Return how many of the images held out here the run of a trained file did not hold out.

    It may have trained on these, if it had them. More images, or another seed, hold out others.

    Args:
        source: the file, in the folder of its run.
        data: with a part that is held out.

    Returns:
        None where no record lies beside the file.
    """
    path = Path(source)
    if not path.is_file():  # the name of a model
        return None
    try:
        earlier = read_bytes(path.with_name(VALIDATION_FILE)).decode().splitlines()
    except (OSError, ValueError):
        return None
    # By class folder and file: the same folder of images can be written in many ways.
    parts = [{PurePath(name).parts[-2:] for name in names} for names in (validation_names(data), earlier)]
    return len(parts[0] - parts[1])


def _shuffled_classes(labels: Sequence[int], seed: int) -> list[list[int]]:
    """Return the places of each class that has any, in an order drawn from the seed."""
    generator = torch.Generator().manual_seed(seed)
    all_labels = torch.as_tensor(labels, dtype=torch.long)

    def shuffled(places: Tensor) -> list[int]:
        found: list[int] = places[torch.randperm(len(places), generator=generator)].tolist()
        return found

    # A stable sort keeps each class's images in their own order.
    classes = all_labels.argsort(stable=True).split(torch.bincount(all_labels).tolist())
    return [shuffled(places) for places in classes if len(places)]


def _check_classes(parts: Parts) -> None:
    names = parts.classes.names
    odd = [name for name in names if not _is_text(name)]
    if odd:
        # Weights files and logs hold them as UTF-8. Better now than at the end of the training.
        raise DataError(
            f"{parts.name}: the name of the class (folder) {odd[0]!r} is not valid UTF-8, and cannot be "
            "written to a weights file: rename it (convmv does so for many files of another encoding)"
        )
    used = set(parts.train.labels)
    if len(used) < 2:
        raise DataError(
            f"{parts.name}: only one class has images ({names[min(used)]}); there is nothing to learn with "
            "fewer than two"
        )
    without = _classes_with(range(len(names)), names, exclude=parts.train.labels)
    if without:
        parts.notes.append(
            f"no training images for {len(without)} of {len(names)} classes: {some_of(without)}"
        )


def _classes_with(labels: Sequence[int], names: Sequence[str], exclude: Sequence[int]) -> list[str]:
    """Return the names of the classes among ``labels`` that are not among those excluded."""
    return [names[label] for label in sorted(set(labels) - set(exclude))]


def _common_size(parts: Sequence[ImageSource]) -> tuple[int, int] | None:
    """Return (height, width) of the images if some of them, spread evenly, agree on it."""
    size = None
    for images in parts:
        for seed, index in enumerate(spread(len(images), _SIZE_SAMPLE)):
            try:
                height, width = seeded_read(images, index, seed).shape[1:]
            except ImageError:
                continue
            if size not in (None, (height, width)):
                return None
            size = (height, width)
    return size


def _is_text(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:  # bytes of a file name that Python could only wrap
        return False
    return True


def _fraction(value: float, name: str) -> float:
    if value not in _SHARE:
        raise DataError(
            f"{name} is {shown(value)}; the share of each class to hold out for validation is above 0 and at "
            "most 0.9"
        )
    return float(value)
