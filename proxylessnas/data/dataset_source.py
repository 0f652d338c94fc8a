"""Train on a ``torch.utils.data.Dataset`` of somebody's own."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import IterableDataset, Subset

from ..errors import DataError, ImageError, shown
from .folders import counted, some_of
from .sources import UNREADABLE, Classes, DatasetImages, Parts, pixels


def is_dataset(source: Any) -> bool:
    """Return whether this could be a data set: whatever has a length and items, as torch does not check."""
    return isinstance(source, IterableDataset) or (
        hasattr(source, "__getitem__") and hasattr(source, "__len__") and not isinstance(source, (str, bytes))
    )


def open_dataset(dataset: Any, part: str, classes: Classes | None) -> Parts:
    """Return the images of a data set whose items are (Pillow image or uint8 tensor, class index).

    Labels are taken from the data set's ``targets`` or ``labels`` if these agree with its items, else by
    reading all of it once.

    Args:
        dataset: map-style.
        part: what its images are called in messages.
        classes: None takes the data set's own ``classes``, else numbers.

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
        labels = []
        for i in range(total):
            labels.append(_label(f"{name}: item {i}", _item(name, dataset, i)[1]))
        notes.append(f"{name} has no list of labels (targets): read once to find them")
    if min(labels) < 0:
        raise DataError(f"{name}: class index {min(labels)}; they count from 0")
    if classes is None:
        own = _own_classes(dataset)
        classes = Classes(own if own and len(own) > max(labels) else tuple(map(str, range(max(labels) + 1))))
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
    except (*UNREADABLE, LookupError, TypeError) as e:
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


def _own_classes(dataset: Any) -> tuple[str, ...] | None:
    if isinstance(dataset, Subset):
        return _own_classes(dataset.dataset)
    found = getattr(dataset, "classes", None)
    if isinstance(found, (list, tuple)) and found:
        return tuple(map(str, found))
    return None


def _agree(dataset: Any, labels: Sequence[int]) -> bool:
    """Return whether a list of labels is that of the items: a target transform may change them."""
    places = {0, len(labels) - 1, *torch.arange(0, len(labels), max(1, len(labels) // 8)).tolist()}
    try:
        return all(labels[i] == _label("", dataset[i][1]) for i in places)
    except UNREADABLE:  # an item that cannot be read; training counts these
        return True
