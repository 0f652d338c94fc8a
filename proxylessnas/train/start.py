"""The net that a training starts from: with random weights, a trained body, or a whole trained net."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from ..builders import create_model, read_arch
from ..classifier import Classifier, unwrapped
from ..errors import DataError
from ..names import is_weights_file
from .checkpoint import weights_digest
from .held_out import not_held_out_before
from .pictures import Data
from .recipe import Recipe


@dataclass(frozen=True)
class Start:
    """Which weights a net starts from.

    Attributes:
        source: the name or file of the net; None for one that is there already, or an architecture.
        pretrained: with its published weights, or those of the file that it is.
        weights: with those of this file, instead.
        keep_classifier: those of the classifier too; otherwise that starts anew. None keeps it where it knows
            the very classes of the data, in their order (:func:`start_net` returns which it was).
    """

    source: str | None = None
    pretrained: bool = False
    weights: str | os.PathLike[str] | None = None
    keep_classifier: bool | None = False

    @property
    def trained(self) -> bool:
        """Whether the weights are trained ones."""
        return self.pretrained or self.weights is not None

    def digest(self, net: Classifier) -> str:
        """Return the digest of the trained weights in a net that has not been trained on yet, else ""."""
        if not self.trained:
            return ""
        return weights_digest(net, without=None if self.keep_classifier else "classifier.")

    def log_fields(self) -> dict[str, Any]:
        """Return what the log of a run says of it."""
        named = self.source is not None
        return {
            "source": self.source,
            "weights": str(self.weights) if named and self.weights is not None else None,
            "kept_classifier": named and bool(self.keep_classifier),
        }

    def begun_with(self, net: Classifier, data: Data) -> list[str]:
        """Return in one line which classifier a net starts with; nothing of one that starts from scratch."""
        if not self.trained or self.source is None:
            return []
        if self.keep_classifier:
            same = "its classes are those of" if net.categories else "it is to know the classes of"
            return [
                f"the classifier of {self.source} is kept: {same} {data.name} (--new-classifier: a new one)"
            ]
        return [f"the classifier is new, for the {len(data.categories):,} classes of {data.name}"]

    def notes(self, net: Classifier, data: Data) -> list[str]:
        """Return what a user who goes on with a classifier should know, one line each."""
        if not self.keep_classifier:
            return []
        found = []
        if not net.categories:
            found.append("the net does not name its classes: that they are these, in this order, is on you")
        if self.source is None or not data.held_out or data.val is None:
            return found
        trained = self.source if self.weights is None else os.fspath(self.weights)
        new = not_held_out_before(trained, data)
        seen = f"whether {trained} was trained on the pictures held out here is not known"
        if new is not None:
            held = f"{new:,} of the {len(data.val):,} pictures held out here"
            seen = f"{held} were not held out for {trained}" if new else ""
        if seen:
            found.append(f"{seen}: its accuracy on them may be too good (--val: pictures it has not seen)")
        return found


def source_name(model: object) -> str | None:
    """Return how a net that is to be built was called; None for one that is there, or an architecture."""
    return os.fspath(model) if isinstance(model, (str, os.PathLike)) else None


def kept_before(out: Path) -> bool | None:
    """Return whether the run in a folder began with the classifier of its weights; None without a run."""
    if not any((out / "checkpoints").glob("*.pt")):
        return None
    try:
        with (out / "log.jsonl").open(encoding="utf-8") as file:
            rows: Iterator[dict[str, object]] = (json.loads(line) for line in file if '"begin"' in line)
            return any(bool(row.get("kept_classifier")) for row in itertools.islice(rows, 1))
    except (OSError, ValueError, AttributeError):
        return False  # what runs did before there was a choice


def start_net(model: Any, data: Data, recipe: Recipe, start: Start) -> Classifier:
    """Return the net with as many outputs as there are classes; see :func:`started`."""
    return started(model, data, recipe, start)[0]


def started(model: Any, data: Data, recipe: Recipe, start: Start) -> tuple[Classifier, Start]:
    """Return the net with as many outputs as there are classes, and how it started, the classifier decided.

    Args:
        model: a net, which is returned itself; or the name, file or architecture of one.
        data: what it is trained on.
        recipe: how; its dropout and depth are built in.
        start: the weights of a net that is not there yet.

    Raises:
        DataError: it does not fit the data.
    """
    classes = len(data.categories)
    if classes < 2:
        raise DataError(f"{data.name}: {classes} class; a classifier needs at least two")
    net, start = _net(model, data, recipe, start)
    if net.in_chans != 3:
        raise DataError(f"{net.name} takes pictures of {net.in_chans} channels, but they are read as RGB")
    return net, start


def _net(model: Any, data: Data, recipe: Recipe, start: Start) -> tuple[Classifier, Start]:
    classes = len(data.categories)
    model = unwrapped(model)
    if isinstance(model, nn.Module):
        if not isinstance(model, Classifier):
            raise TypeError(f"a net of this package is trained, not a {type(model).__name__}")
        if model.num_classes != classes:
            raise DataError(f"the net has {model.num_classes} outputs, but {data.name} has {classes} classes")
        if start.weights is not None:
            raise DataError("a net is trained with the weights it has: load others first, or name the net")
        if recipe.drop_path:
            raise DataError(
                "drop_path is built into a net: make it with create_model(..., drop_path_rate=...) and set "
                "drop_path to 0 in the recipe"
            )
        if start.keep_classifier:
            _check_classifier(model, data)
        model.drop_rate = model.drop_rate if recipe.dropout is None else recipe.dropout
        return model, replace(start, keep_classifier=bool(start.keep_classifier))
    if not start.trained and isinstance(model, (str, os.PathLike)) and is_weights_file(Path(model)):
        model = read_arch(model)  # from scratch: the architecture alone
    net = create_model(
        model,
        start.pretrained,
        weights=start.weights,
        num_classes=None if start.trained else classes,
        drop_path_rate=recipe.drop_path,
    )
    if start.keep_classifier is None:
        start = replace(start, keep_classifier=start.trained and tuple(net.categories) == data.categories)
    if start.trained and start.keep_classifier:
        _check_classifier(net, data)
    elif start.trained:
        net.reset_classifier(classes)  # a new one also where the number of classes is the same
    net.drop_rate = getattr(net.arch, "dropout", 0.0) if recipe.dropout is None else recipe.dropout
    if recipe.zero_init_residual and not start.trained:
        for block in getattr(net, "blocks", ()):
            if getattr(block, "shortcut", False) and hasattr(block.mobile_inverted_conv, "point_linear"):
                nn.init.zeros_(block.mobile_inverted_conv.point_linear.bn.weight)
    return net, start


def _check_classifier(net: Classifier, data: Data) -> None:
    """Refuse to go on with a classifier of other classes."""
    known, wanted = net.categories, data.categories
    if net.num_classes != len(wanted):
        what = f"has {net.num_classes:,} classes, but {data.name} has {len(wanted):,}"
    elif known and tuple(known) != tuple(wanted):
        at = next(i for i in range(len(wanted)) if known[i] != wanted[i])
        what = f"knows class {at} as {known[at]!r}, but {data.name} has {wanted[at]!r} there"
    else:
        return
    raise DataError(
        f"the classifier of {net.name} {what}: start with a new one (--new-classifier, and no "
        "--keep-classifier)"
    )
