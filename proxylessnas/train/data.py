"""Open whatever pictures a user points at: a folder, a data set by name, or a data set object.

    >>> from proxylessnas.train.data import open_data
    >>> data = open_data("photos")                                    # doctest: +SKIP
    >>> data.categories, len(data.train), len(data.val), data.notes   # doctest: +SKIP
    (('cat', 'dog'), 180, 20, ('no validation part in photos: 10 % of each class held out, ...',))

Pictures are not decoded here, apart from a few to see whether they are all of one size.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..datasets import counted, some_of
from ..errors import DataError, ImageError, shown
from .folders import Classes, folder_pictures, parts_of
from .pictures import Data, Pictures, Source
from .split import few_of_each, hold_out

if TYPE_CHECKING:
    from torch.utils.data import Dataset

__all__ = ["Data", "Pictures", "open_data"]

_SIZE_SAMPLE = 16  # so many pictures of each part are read to see whether they are of one size


@dataclass
class Parts:
    """What a source holds, before anything is split off or left out."""

    name: str
    train: Source
    val: Source | None
    classes: Classes
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    notes: list[str] = field(default_factory=list)


def open_data(
    source: str | os.PathLike[str] | Dataset[Any],
    *,
    val: str | os.PathLike[str] | Dataset[Any] | float | None = None,
    val_fraction: float = 0.1,
    seed: int = 0,
    limit: int | None = None,
    categories: Sequence[str] | None = None,
) -> Data:
    """Return the training and validation pictures of a source.

    A source is

    - a folder with a folder ``train`` and one called ``val``, ``valid``, ``validation`` or ``test``, each
      with one folder of pictures for each class;
    - a folder with one folder of pictures for each class, of which a part is held out for validation;
    - ``"cifar10"``, ``"cifar100"``, ``"fashion-mnist"``, found in or downloaded to ``$PROXYLESSNAS_DATA``
      (else ``datasets`` in the cache folder), or to a folder of one's own: ``"cifar10:/data"``;
    - ``"digits"``, small and bundled with the package;
    - a ``torch.utils.data.Dataset`` whose items are (Pillow picture or uint8 tensor [C, H, W], class index).

    Classes are the sorted names of the folders. Where these are ImageNet's wnids, ``categories`` holds their
    names.

    Args:
        source: see above; a folder that is called like a data set is written ``./cifar10``.
        val: a folder of class folders (or a data set) to validate on, or the share of each training class to
            hold out for it; None takes the source's own validation part, or else holds out ``val_fraction``.
        val_fraction: share of each class that is held out where there is nothing to validate on, above 0 and
            up to 0.9.
        seed: of the choice of what is held out, or kept under a limit.
        limit: train on at most so many pictures a class, and validate on no more if these were held out (a
            validation part of its own is kept whole).
        categories: the class names in the order wanted, for a folder each of which has to be called like one
            of them, or for a data set without names.

    Raises:
        DataError: there is nothing to train on; says where, and what is expected there.
    """
    held_out = _fraction(val_fraction, "val_fraction")
    if isinstance(val, (int, float)):
        held_out = _fraction(val, "val")
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise DataError(f"limit is {shown(limit)}; the number of pictures a class to train on is 1 or more")
    names = _names(categories)
    parts = _open(source, names)
    if isinstance(val, (int, float)):
        if parts.val is not None:
            parts.notes.append(f"the validation part of {parts.name} is not used, as val = {val:g} was given")
        parts.val = None
    elif val is not None:
        parts.val = _validation(val, parts)
    return _finished(parts, held_out, seed, limit)


def _open(source: Any, names: tuple[str, ...] | None) -> Parts:
    if not isinstance(source, (str, os.PathLike)):
        raise DataError(f"{shown(source)} is not a folder, the name of a data set or a data set")
    root = os.fspath(source)
    if not isinstance(root, str):
        root = os.fsdecode(root)
    train_root, val_root = parts_of(root)
    train, classes, notes = folder_pictures(train_root, None if names is None else _classes(names))
    parts = Parts(root, train, None, classes, notes=notes)
    if val_root is not None:
        if os.path.basename(val_root).lower() == "test":
            notes.append(f"{root} has no folder called val: its folder {os.path.basename(val_root)} is used")
        parts.val = _validation(val_root, parts)
    return parts


def _validation(source: Any, parts: Parts) -> Source:
    """Return the pictures of another source with the labels of the training part's classes."""
    root = os.fspath(source)
    val, _, notes = folder_pictures(root, parts.classes)
    parts.notes += notes
    if isinstance(parts.train, type(val)) and os.path.realpath(root) == os.path.realpath(parts.train.root):
        parts.notes.append(f"{root}: validated on the pictures that are trained on")
    return val


def _finished(parts: Parts, held_out: float, seed: int, limit: int | None) -> Data:
    """Hold out a validation part where there is none, apply the limit, and look at what came out."""
    train, val, notes = parts.train, parts.val, parts.notes
    names = parts.classes.names
    _check_classes(parts)
    if val is None:
        total = len(train)
        train_places, val_places = hold_out(train.labels, held_out, seed)
        share = f"{100 * held_out:g} % of each class held out"
        if val_places:
            train, val = train.take(train_places), train.take(val_places)
            how = f"{share}, {len(val):,} of {counted(total, 'picture')}, seed {seed}"
        else:
            how = "none can be held out, as no class has two pictures"
        notes.append(f"no validation part in {parts.name}: {how}")
        single = _classes_with(train.labels, names, exclude=() if val is None else val.labels)
        if val is not None and single:
            notes.append(f"only one picture, which is trained on: {some_of(single)}")
        if limit is not None and val is not None:
            val = val.take(few_of_each(val.labels, limit, seed))
    if limit is not None:
        total = len(train)
        train = train.take(few_of_each(train.labels, limit, seed))
        if len(train) < total:
            notes.append(
                f"limited to {counted(limit, 'picture')} a class: {len(train):,} of "
                f"{counted(total, 'picture')} to train on"
            )
    if val is not None:
        missing = _classes_with(train.labels, names, exclude=val.labels)
        if parts.val is not None and missing:
            notes.append(
                f"no validation pictures for {len(missing)} of {len(names)} classes: {some_of(missing)}"
            )
    data = Data(
        parts.name,
        train,
        val,
        names,
        parts.classes.wnids,
        parts.mean,
        parts.std,
        _common_size([train] if val is None else [train, val]),
        tuple(notes),
    )
    digests = "\n".join([train.digest(), "" if val is None else val.digest(), *names])
    return replace(data, fingerprint=hashlib.sha256(digests.encode("utf-8", "surrogateescape")).hexdigest())


def _check_classes(parts: Parts) -> None:
    names = parts.classes.names
    used = set(parts.train.labels)
    if len(used) < 2:
        raise DataError(
            f"{parts.name}: only one class has pictures ({names[min(used)]}); there is nothing to learn with "
            "fewer than two"
        )
    without = [name for label, name in enumerate(names) if label not in used]
    if without:
        parts.notes.append(
            f"no training pictures for {len(without)} of {len(names)} classes: {some_of(without)}"
        )


def _classes_with(labels: Sequence[int], names: Sequence[str], exclude: Sequence[int]) -> list[str]:
    """Return the names of the classes among ``labels`` that are not among those excluded."""
    return [names[label] for label in sorted(set(labels) - set(exclude))]


def _common_size(parts: Sequence[Pictures]) -> tuple[int, int] | None:
    """Return (height, width) of the pictures if some of them, spread evenly, agree on it."""
    size = None
    for pictures in parts:
        total = len(pictures)
        for i in range(min(total, _SIZE_SAMPLE)):
            try:
                height, width = pictures.read(i * total // min(total, _SIZE_SAMPLE)).shape[1:]
            except ImageError:
                continue
            if size not in (None, (height, width)):
                return None
            size = (height, width)
    return size


def _fraction(value: float, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 0.9:
        raise DataError(
            f"{name} is {shown(value)}; the share of each class to hold out for validation is above 0 and at "
            "most 0.9"
        )
    return float(value)


def _names(categories: Sequence[str] | None) -> tuple[str, ...] | None:
    if categories is None:
        return None
    names = tuple(categories)
    if isinstance(categories, str) or not all(isinstance(name, str) for name in names):
        raise DataError(f"categories is {shown(categories)}; a list of class names is expected")
    return names


def _classes(names: tuple[str, ...]) -> Classes:
    from ..categories import categories, wnids

    return Classes(names, wnids() if names == categories() else ())
