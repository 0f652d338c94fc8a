"""The model that a training starts from, and its preprocessing."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from ..data.open import not_held_out_before
from ..data.sources import Data
from ..data.transforms import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from ..errors import DataError
from ..models.base import ImageClassifier, unwrapped
from ..models.factory import create_model
from ..models.layers import zero_last_scale
from ..models.resolve import resolve
from ..utils.config import problems_error
from ..utils.files import open_file
from .checkpoint import weights_digest
from .recipe import Recipe

_USUAL_SIZE = 224  # px
_USUAL_RESIZE = 256  # px
_NO_MARGIN_BELOW = 64  # px: small images are shown whole


def preprocessing_of(recipe: Recipe, model: ImageClassifier, data: Data) -> Preprocessing:
    """Return the preprocessing of a model that is trained by a recipe on some data.

    Sizes: the recipe's, else those of the model's weights, else the architecture's input size (224 px if it
    has none). A short side that the recipe leaves open is the weights' own at their own size, otherwise
    256/224 of the size, or the size itself below 64 px. Mean and standard deviation: the recipe's, else those
    of the model's weights, else the data set's, else ImageNet's.

    Raises:
        DataError: a value is out of range, or the recipe's augmentation does not go with the images' size.
    """
    own = model.preprocessing
    size = recipe.image_size
    if size is None:
        size = own.input_size if own is not None else (model.arch.resolution or _USUAL_SIZE)
    resize = recipe.resize
    if resize is None and own is not None and own.input_size == size:
        resize = own.resize
    if resize is None:
        resize = size if size < _NO_MARGIN_BELOW else round(size * _USUAL_RESIZE / _USUAL_SIZE)
    if resize < size:
        raise DataError(
            f"resize {resize} is smaller than the model's input of {size} px: set resize to at least {size}, "
            f"or image_size to at most {resize}"
        )
    found = recipe.size_problems(size)  # the recipe could only look at a size of its own
    if found:
        raise problems_error("the recipe does not go with this model's input", found)
    mean = recipe.mean or (own.mean if own else data.mean) or IMAGENET_MEAN
    std = recipe.std or (own.std if own else data.std) or IMAGENET_STD
    return Preprocessing(size, resize, mean, std, recipe.interpolation)


@dataclass(frozen=True)
class Start:
    """Which weights a model starts from.

    Attributes:
        source: the name or file of the model; None for one that is there already, or an architecture.
        pretrained: with its published weights, or those of the file that it is.
        weights: with those of this file, instead.
        keep_classifier: those of the classifier too; otherwise that starts anew. None keeps it where it knows
            the very classes of the data, in their order (:func:`started` returns which it was).
        thaw: leave the recipe's frozen epochs out where the classifier is kept: a preset's are there for one
            that knows nothing yet.
    """

    source: str | None = None
    pretrained: bool = False
    weights: str | os.PathLike[str] | None = None
    keep_classifier: bool | None = False
    thaw: bool = False

    @property
    def trained(self) -> bool:
        """Whether the weights are trained ones."""
        return self.pretrained or self.weights is not None

    def digest(self, model: ImageClassifier) -> str:
        """Return the digest of the trained weights in a model that has not been trained on yet, else ""."""
        if not self.trained:
            return ""
        return weights_digest(model, without=None if self.keep_classifier else "classifier.")

    def log_fields(self) -> dict[str, Any]:
        """Return what the log of a run says of it."""
        named = self.source is not None
        return {
            "source": self.source,
            "weights": str(self.weights) if named and self.weights is not None else None,
            "kept_classifier": named and bool(self.keep_classifier),
        }

    def begun_with(self, model: ImageClassifier, data: Data) -> list[str]:
        """Return in one line which classifier a model starts with; [] if from scratch."""
        if not self.trained or self.source is None:
            return []
        if self.keep_classifier:
            same = "its classes are those of" if model.categories else "it is to know the classes of"
            return [
                f"the classifier of {self.source} is kept: {same} {data.name} (--new-classifier: a new one)"
            ]
        return [f"the classifier is new, for the {len(data.categories):,} classes of {data.name}"]

    def notes(self, model: ImageClassifier, data: Data) -> list[str]:
        """Return what a user who keeps a classifier should know, one line each."""
        if not self.keep_classifier:
            return []
        found = []
        if not model.categories:
            found.append("the model does not name its classes: that they are these, in this order, is on you")
        if self.source is None or not data.held_out or data.val is None:
            return found
        trained = self.source if self.weights is None else os.fspath(self.weights)
        new = not_held_out_before(trained, data)
        seen = f"whether {trained} was trained on the images held out here is not known"
        if new is not None:
            held = f"{new:,} of the {len(data.val):,} images held out here"
            seen = f"{held} were not held out for {trained}" if new else ""
        if seen:
            found.append(f"{seen}: its accuracy on them may be too good (--val: images it has not seen)")
        return found


def kept_before(out: Path) -> bool | None:
    """Return whether the run in a folder began with the classifier of its weights; None without a run."""
    if not any((out / "checkpoints").glob("*.pt")):
        return None
    try:
        with open_file(out / "log.jsonl") as file:
            rows: Iterator[dict[str, object]] = (json.loads(line) for line in file if b'"begin"' in line)
            return any(bool(row.get("kept_classifier")) for row in itertools.islice(rows, 1))
    except (OSError, ValueError, AttributeError):
        return False  # what runs did before there was a choice


def started(model: Any, data: Data, recipe: Recipe, start: Start) -> tuple[ImageClassifier, Start]:
    """Return the model with as many outputs as there are classes, and how it started, the classifier decided.

    Args:
        model: a model, which is returned itself; or the name, file or architecture of one.
        data: what it is trained on.
        recipe: how; its dropout and depth are built in.
        start: the weights of a model that is not there yet.

    Raises:
        DataError: it does not fit the data.
    """
    classes = len(data.categories)
    if classes < 2:
        raise DataError(f"{data.name}: {classes} class; a classifier needs at least two")
    model = unwrapped(model)
    if isinstance(model, nn.Module):
        built, start = _given(model, data, recipe, start)
    else:
        built, start = _built(model, data, recipe, start)
    if built.in_chans != 3:
        raise DataError(f"{built.name} takes images of {built.in_chans} channels, but they are read as RGB")
    return built, start


def _given(model: nn.Module, data: Data, recipe: Recipe, start: Start) -> tuple[ImageClassifier, Start]:
    classes = len(data.categories)
    if not isinstance(model, ImageClassifier):
        raise TypeError(f"a model of this package is trained, not a {type(model).__name__}")
    if model.num_classes != classes:
        raise DataError(f"the model has {model.num_classes} outputs, but {data.name} has {classes} classes")
    if start.weights is not None:
        raise DataError("a model is trained with the weights it has: load others first, or name the model")
    if recipe.drop_path:
        raise DataError(
            "drop_path is built into a model: make it with create_model(..., drop_path_rate=...) and set "
            "drop_path to 0 in the recipe"
        )
    if start.keep_classifier:
        _check_classifier(model, data)
    model.drop_rate = model.drop_rate if recipe.dropout is None else recipe.dropout
    return model, replace(start, keep_classifier=bool(start.keep_classifier))


def _built(model: Any, data: Data, recipe: Recipe, start: Start) -> tuple[ImageClassifier, Start]:
    classes = len(data.categories)
    if not start.trained and (found := resolve(model)).kind == "weights file":
        model = found.arch  # from scratch: the architecture alone
    built = create_model(
        model,
        start.pretrained,
        weights=start.weights,
        num_classes=None if start.trained else classes,
        drop_path_rate=recipe.drop_path,
    )
    if start.keep_classifier is None:
        start = replace(start, keep_classifier=start.trained and tuple(built.categories) == data.categories)
    if start.trained and start.keep_classifier:
        _check_classifier(built, data)
    elif start.trained:
        built.reset_classifier(classes)  # a new one also where the number of classes is the same
    built.drop_rate = getattr(built.arch, "dropout", 0.0) if recipe.dropout is None else recipe.dropout
    if recipe.zero_init_residual and not start.trained:
        for block in getattr(built, "blocks", ()):
            if getattr(block, "shortcut", False):
                zero_last_scale(block.mobile_inverted_conv)
    return built, start


def _check_classifier(model: ImageClassifier, data: Data) -> None:
    """Refuse to keep a classifier of other classes."""
    known, wanted = model.categories, data.categories
    if model.num_classes != len(wanted):
        what = f"has {model.num_classes:,} classes, but {data.name} has {len(wanted):,}"
    elif known and tuple(known) != tuple(wanted):
        at = next(i for i in range(len(wanted)) if known[i] != wanted[i])
        what = f"knows class {at} as {known[at]!r}, but {data.name} has {wanted[at]!r} there"
    else:
        return
    raise DataError(
        f"the classifier of {model.name} {what}: start with a new one (--new-classifier, and no "
        "--keep-classifier)"
    )
