"""Open whatever images a user points at: a folder, a data set by name, or a data set object.

    >>> from proxylessnas.data.open import open_data
    >>> data = open_data("photos")                                    # doctest: +SKIP
    >>> data.categories, len(data.train), len(data.val), data.notes   # doctest: +SKIP
    (('cat', 'dog'), 180, 20, ('no validation part in photos: 10 % of each class held out, ...',))

Images are not decoded here, apart from a few to see whether they are all of one size.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..errors import DataError, ImageError, shown
from ..utils.random import keep_random_state
from .class_folders import folder_images, has_classes, parts_of
from .dataset_source import is_dataset, open_dataset
from .folders import counted, some_of
from .named import NAMES, open_named, parse_name
from .sources import Classes, Data, FileImages, ImageSource, Parts, Source, seeded_read
from .split import few_of_each, hold_out

if TYPE_CHECKING:
    from torch.utils.data import Dataset

__all__ = ["Data", "ImageSource", "class_counts", "open_data"]

_SHOWN_CLASSES = 10  # at most so many are named with their counts

_SIZE_SAMPLE = 16  # so many images of each part are read to see whether they are of one size


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
    held_out = 0.0 if _is_zero(val_fraction) else _fraction(val_fraction, "val_fraction")
    if isinstance(val, (int, float)):
        held_out = _fraction(val, "val")
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
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
    counts = [(train[i], held[i]) for i in range(len(data.categories))]
    what = "training images" if other is None else f"training + {part} images"
    shown = [
        f"{name} {a:,}" if other is None else f"{name} {a:,} + {b:,}"
        for name, (a, b) in zip(data.categories, counts[:_SHOWN_CLASSES], strict=False)
    ]
    if len(counts) > _SHOWN_CLASSES:
        a = sorted(n for n, _ in counts)
        shown.append(f"... ({a[0]:,} to {a[-1]:,} training images a class)")
    return f"{len(counts):,} classes, {what}: {', '.join(shown)}"


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
    if val_root is not None and own_val and not has_classes(val_root, classes):
        notes.append(
            f"{val_root}: passed over, as no folder in it is called like a class (--val: other images to "
            "validate on, or the share of the training images to hold out)"
        )
    elif val_root is not None and own_val:
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
    split = val is None
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
    if val is not None:
        missing = _classes_with(train.labels, names, exclude=val.labels)
        if parts.val is not None and missing:
            notes.append(
                f"no validation images for {len(missing)} of {len(names)} classes: {some_of(missing)}"
            )
    with keep_random_state():
        size = _common_size([train] if val is None else [train, val])
    data = Data(
        parts.name,
        train,
        val,
        names,
        parts.classes.wnids,
        parts.mean,
        parts.std,
        size,
        tuple(notes),
        held_out=split and val is not None,
    )
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
    without = [name for label, name in enumerate(names) if label not in used]
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
        total = len(images)
        for i in range(min(total, _SIZE_SAMPLE)):
            try:
                height, width = seeded_read(images, i * total // min(total, _SIZE_SAMPLE), i).shape[1:]
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


def _is_zero(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == 0


def _fraction(value: float, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 0.9:
        raise DataError(
            f"{name} is {shown(value)}; the share of each class to hold out for validation is above 0 and at "
            "most 0.9"
        )
    return float(value)
