"""From a picture to class names in one call."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from .errors import ImageError, ProxylessError

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
    from .evaluate import evaluation_mode, top_classes
    from .images import load_image

    if model.preprocessing is None:
        raise ProxylessError(
            f"the preprocessing of {model.name!r} is not known; set model.preprocessing to a "
            "proxylessnas.Preprocessing with the values it was trained with"
        )
    if not model.num_classes:
        raise ProxylessError(f"{model.name!r} has no classifier (num_classes=0): call the net for embeddings")
    if top < 1:
        raise ValueError(f"top must be at least 1, not {top}")
    if model.in_chans != 3:
        raise ProxylessError(
            f"{model.name!r} takes images of {model.in_chans} channel(s) and photos have 3: "
            "prepare its input yourself and call the net"
        )
    if isinstance(image, (str, os.PathLike)):
        image = load_image(image)
    if getattr(image, "ndim", 3) != 3:
        raise ImageError(
            "predict takes one picture; for a batch call the net on preprocessing.build()(pictures)"
        )
    like = next(model.parameters())
    inputs = model.preprocessing.build()(image)[None].to(like.device, like.dtype)
    with evaluation_mode(model):
        found = top_classes(model, inputs, top)[0]
    names, wnids = (
        known if len(known) == model.num_classes else () for known in (model.categories, model.wnids)
    )
    return [Prediction(names[i] if names else str(i), p, i, wnids[i] if wnids else None) for i, p in found]
