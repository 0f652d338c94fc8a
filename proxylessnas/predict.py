"""From a picture to class names in one call."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from .errors import ProxylessError

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from .classifier import Classifier


class Prediction(NamedTuple):
    """One class of a picture.

    Attributes:
        name: the class's name, or its number as text where no names are known.
        probability: 0 to 1.
        class_index: the class's number.
        wnid: its WordNet id ("n02124075") for ImageNet classes, else None.
    """

    name: str
    probability: float
    class_index: int
    wnid: str | None = None


def predict(
    model: Classifier, image: str | os.PathLike[str] | Image.Image | Tensor, top: int = 5
) -> list[Prediction]:
    """Return the most probable classes of one picture (see :meth:`Classifier.predict`)."""
    from .evaluate import top_classes
    from .images import load_image

    if model.preprocessing is None:
        raise ProxylessError(
            f"the preprocessing of {model.arch.name!r} is not known; set model.preprocessing to a "
            "proxylessnas.Preprocessing with the values it was trained with"
        )
    if not model.num_classes:
        raise ProxylessError(
            f"{model.arch.name!r} has no classifier (num_classes=0): call the net for embeddings"
        )
    if isinstance(image, (str, os.PathLike)):
        image = load_image(image)
    like = next(model.parameters())
    inputs = model.preprocessing.build()(image)[None].to(like.device, like.dtype)
    training = model.training
    model.eval()
    try:
        found = top_classes(model, inputs, top)[0]
    finally:
        model.train(training)
    record = (
        model.weights
        if model.weights is not None and model.weights.num_classes == model.num_classes
        else None
    )
    names = record.categories if record is not None else [str(i) for i in range(model.num_classes)]
    wnids = record.wnids if record is not None else ()
    return [Prediction(names[i], p, i, wnids[i] if wnids else None) for i, p in found]
