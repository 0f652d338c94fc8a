"""The pictures that ``proxylessnas eval`` is given: a folder, or a data set known by name."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from ._command import UsageError
from ._model import Net, class_labels

if TYPE_CHECKING:
    from ..data.folders import LabelledImages
    from ..train.evaluate import Batch


@dataclass(frozen=True)
class EvalData:
    """Labelled pictures for a net.

    Attributes:
        n: how many.
        classes: how many classes have pictures.
        labels_from: how the labels were found, see :class:`~.data.folders.LabelledImages`; "data set"
            for one known by name.
        names: of the net's classes in output order, each only once.
        notes: what a user should know, one line each.
        batches: called with the pictures a batch and the number of worker processes.
    """

    n: int
    classes: int
    labels_from: str
    names: tuple[str, ...]
    notes: tuple[str, ...]
    batches: Callable[[int, int], Iterator[Batch]]


def check_source(source: str, labels: str | None) -> None:
    """Check that there is such a folder or data set, before anything is downloaded.

    Args:
        source: a folder, which wins, or the name of a data set.
        labels: how folder names are to be read, if that was asked for.

    Raises:
        DataError: there is not.
        UsageError: a data set has no folder names.
    """
    if os.path.isdir(source):
        return
    if os.path.exists(source):
        raise DataError(f"{source}: is a file; a folder of pictures is expected")
    from ..data.named import NAMES, parse_name

    if parse_name(source) is None:
        raise DataError(f"{source}: no such folder; data sets known by name are {', '.join(NAMES)}")
    if labels is not None:
        raise UsageError(f"--labels is about the names of folders, but {source} is a data set")


def open_source(source: str, net: Net, *, labels: str | None, limit: int | None) -> EvalData:
    """Return the pictures of a folder, or the test part of a data set known by name.

    Args:
        source: see :func:`check_source`.
        net: whose classes the pictures get.
        labels: "number" or "position" settles how folder names are read.
        limit: at most so many pictures, spread evenly.

    Raises:
        DataError: there are no pictures, or their classes are not the net's.
    """
    if os.path.isdir(source):
        return _folder(source, net, labels, limit)
    return _named(source, net, limit)


def _folder(folder: str, net: Net, labels: str | None, limit: int | None) -> EvalData:
    from ..data.folders import labelled_images
    from ..train.evaluate import read_batches

    pictures = labelled_images(
        folder, net.model.num_classes, net.dataset, names=net.model.categories, labels=labels
    )
    names = _names_by_folder(folder, net, pictures)
    if limit is not None:
        pictures = pictures.limit(limit)
    transform = net.preprocessing.build()
    return EvalData(
        len(pictures),
        pictures.classes,
        pictures.labels_from,
        names,
        pictures.notes,
        lambda batch_size, workers: read_batches(pictures.samples, transform, batch_size, workers),
    )


def _names_by_folder(folder: str, net: Net, pictures: LabelledImages) -> tuple[str, ...]:
    """Return what to call the net's classes; where it has no names, what the folders made of them."""
    from ..data.categories import DATASETS, categories, unique, wnids

    _, names, _ = class_labels(net)
    if net.model.categories or net.dataset is not None:
        return names
    if pictures.labels_from == "position":
        own = {label: os.path.relpath(path, folder).split(os.sep)[0] for path, label in pictures.samples}
        return unique([own.get(i, name) for i, name in enumerate(names)])
    if pictures.labels_from != "number":  # by wnids or names of the data set with so many classes
        known = [dataset for dataset in DATASETS if len(categories(dataset)) == len(names)]
        return unique(categories(known[0]), wnids(known[0])) if known else names
    return names


def _named(source: str, net: Net, limit: int | None) -> EvalData:
    from ..data.categories import class_places
    from ..data.open import open_data
    from ..train.loader import EvalLoader

    data = open_data(source)
    pictures: Any = data.val
    if pictures is None:
        raise DataError(f"{source}: there are no pictures to evaluate on")
    names, unique_names, _ = class_labels(net)
    notes = list(data.notes)
    if data.name == "digits":  # it has no test part
        notes.append("a net trained with another seed or share held out has seen some of these pictures")
    if not net.model.categories and net.dataset is None:
        if len(data.categories) != net.model.num_classes:
            raise DataError(
                f"{source} has {len(data.categories)} classes, but the net has {net.model.num_classes}"
            )
        unique_names = data.categories
        notes.append(f"the net's classes have no names: taken as those of {data.name}, in its order")
    else:
        place = {name: i for name, i in class_places(data.categories, names).items() if i >= 0}
        missing = [name for name in data.categories if name not in place]
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise DataError(
                f"{source}: its classes are not those of the net, whose {len(names)} classes "
                f"({', '.join(names[:3])}, ...) have no {', '.join(missing[:3])}{more}"
            )
        pictures = copy.copy(pictures)
        pictures.labels = [place[data.categories[label]] for label in pictures.labels]
    if limit is not None and limit < len(pictures):
        pictures = pictures.take([i * len(pictures) // limit for i in range(limit)])

    def batches(batch_size: int, workers: int) -> Iterator[Batch]:
        loader = EvalLoader(pictures, net.preprocessing, batch_size=batch_size, workers=workers)
        told: set[str] = set()
        for inputs, targets in loader:
            new = [reason for name, reason in loader.unreadable.items() if name not in told]
            told.update(loader.unreadable)
            yield inputs, targets, new

    return EvalData(len(pictures), len(set(pictures.labels)), "data set", unique_names, tuple(notes), batches)
