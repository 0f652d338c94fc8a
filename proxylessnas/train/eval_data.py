"""The images that a model is evaluated on: a folder, or the test part of a data set known by name."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ..data.categories import DATASETS, categories, class_places, unique, wnids
from ..data.folders import LabelledImages, labelled_images
from ..data.named import NAMES, parse_name
from ..data.open import open_data
from ..data.transforms import Preprocessing
from ..errors import DataError
from ..models.base import ImageClassifier
from .evaluate import Batch, read_batches
from .loader import EvalLoader


@dataclass(frozen=True)
class EvalData:
    """Labelled images for a model.

    Attributes:
        n: how many.
        classes: how many classes have images.
        labels_from: how the labels were found, see :class:`~.data.folders.LabelledImages`; "data set"
            for one known by name.
        names: of the model's classes in output order, each only once.
        notes: what a user should know, one line each.
        batches: called with the images a batch and the number of worker processes.
    """

    n: int
    classes: int
    labels_from: str
    names: tuple[str, ...]
    notes: tuple[str, ...]
    batches: Callable[[int, int], Iterator[Batch]]


def class_labels(
    model: ImageClassifier, dataset: str | None
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Return the names, unique labels and wnids (or none of these) of a model's classes, in output order.

    Args:
        model: may name its classes.
        dataset: whose classes they are, if that is known.
    """
    names, ids = model.categories, model.wnids
    if not names and dataset is not None:
        names, ids = categories(dataset), wnids(dataset)
    if not names:
        names = tuple(f"class {i}" for i in range(model.num_classes))
    return names, unique(names, ids), ids


def check_source(source: str) -> None:
    """Check that there is such a folder, which wins, or data set, before anything is downloaded.

    Raises:
        DataError: there is not.
    """
    if os.path.isdir(source):
        return
    if os.path.exists(source):
        raise DataError(f"{source}: is a file; a folder of images is expected")
    if parse_name(source) is None:
        raise DataError(f"{source}: no such folder; data sets known by name are {', '.join(NAMES)}")


def open_source(
    source: str,
    model: ImageClassifier,
    preprocessing: Preprocessing,
    dataset: str | None = None,
    *,
    labels: str | None = None,
    limit: int | None = None,
) -> EvalData:
    """Return the images of a folder, or the test part of a data set known by name.

    Args:
        source: see :func:`check_source`.
        model: whose classes the images get.
        preprocessing: of its inputs.
        dataset: whose classes they are, if that is known.
        labels: "number" or "position" settles how folder names are read.
        limit: at most so many images, spread evenly.

    Raises:
        DataError: there are no images, or their classes are not the model's.
    """
    if os.path.isdir(source):
        return _folder(source, model, preprocessing, dataset, labels, limit)
    return _named(source, model, preprocessing, dataset, limit)


def _folder(
    folder: str,
    model: ImageClassifier,
    preprocessing: Preprocessing,
    dataset: str | None,
    labels: str | None,
    limit: int | None,
) -> EvalData:
    images = labelled_images(folder, model.num_classes, dataset, names=model.categories, labels=labels)
    names = _names_by_folder(folder, model, dataset, images)
    if limit is not None:
        images = images.limit(limit)
    transform = preprocessing.build()
    return EvalData(
        len(images),
        images.classes,
        images.labels_from,
        names,
        images.notes,
        lambda batch_size, workers: read_batches(images.samples, transform, batch_size, workers),
    )


def _names_by_folder(
    folder: str, model: ImageClassifier, dataset: str | None, images: LabelledImages
) -> tuple[str, ...]:
    """Return what to call the model's classes; where it has no names, what the folders made of them."""
    _, names, _ = class_labels(model, dataset)
    if model.categories or dataset is not None:
        return names
    if images.labels_from == "position":
        own = {label: os.path.relpath(path, folder).split(os.sep)[0] for path, label in images.samples}
        return unique([own.get(i, name) for i, name in enumerate(names)])
    if images.labels_from != "number":  # by wnids or names of the data set with so many classes
        known = [name for name in DATASETS if len(categories(name)) == len(names)]
        return unique(categories(known[0]), wnids(known[0])) if known else names
    return names


def _named(
    source: str,
    model: ImageClassifier,
    preprocessing: Preprocessing,
    dataset: str | None,
    limit: int | None,
) -> EvalData:
    data = open_data(source)
    images: Any = data.val
    if images is None:
        raise DataError(f"{source}: there are no images to evaluate on")
    names, unique_names, _ = class_labels(model, dataset)
    notes = list(data.notes)
    if data.name == "digits":  # it has no test part
        notes.append("a model trained with another seed or share held out has seen some of these images")
    if not model.categories and dataset is None:
        if len(data.categories) != model.num_classes:
            raise DataError(
                f"{source} has {len(data.categories)} classes, but the model has {model.num_classes}"
            )
        unique_names = data.categories
        notes.append(f"the model's classes have no names: taken as those of {data.name}, in its order")
    else:
        place = {name: i for name, i in class_places(data.categories, names).items() if i >= 0}
        missing = [name for name in data.categories if name not in place]
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise DataError(
                f"{source}: its classes are not those of the model, whose {len(names)} classes "
                f"({', '.join(names[:3])}, ...) have no {', '.join(missing[:3])}{more}"
            )
        images = copy.copy(images)
        images.labels = [place[data.categories[label]] for label in images.labels]
    if limit is not None and limit < len(images):
        images = images.take([i * len(images) // limit for i in range(limit)])

    def batches(batch_size: int, workers: int) -> Iterator[Batch]:
        loader = EvalLoader(images, preprocessing, batch_size=batch_size, workers=workers)
        told: set[str] = set()
        for inputs, targets in loader:
            new = [reason for name, reason in loader.unreadable.items() if name not in told]
            told.update(loader.unreadable)
            yield inputs, targets, new

    return EvalData(len(images), len(set(images.labels)), "data set", unique_names, tuple(notes), batches)
