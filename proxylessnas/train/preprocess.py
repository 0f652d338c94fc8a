"""Which preprocessing a net gets that is trained by a recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import DataError
from ..transforms import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from .recipe import Recipe
from .recipe_rules import problems_error, size_problems

if TYPE_CHECKING:
    from ..classifier import Classifier
    from .data import Data

_USUAL_SIZE = 224  # px
_USUAL_RESIZE = 256  # px
_NO_MARGIN_BELOW = 64  # px: small pictures are shown whole


def preprocessing_of(recipe: Recipe, model: Classifier, data: Data) -> Preprocessing:
    """Return the preprocessing of a net that is trained by a recipe on some data.

    Sizes: the recipe's, else those of the net's weights, else the architecture's input size (224 px if it has
    none). A short side that the recipe leaves open is the weights' own at their own size, otherwise 256/224
    of the size, or the size itself below 64 px. Mean and standard deviation: the recipe's, else those of the
    net's weights, else the data set's, else ImageNet's.

    Raises:
        DataError: a value is out of range, or the recipe's augmentation does not go with the pictures' size.
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
            f"resize {resize} is smaller than the net's input of {size} px: set resize to at least {size}, "
            f"or image_size to at most {resize}"
        )
    found = size_problems(recipe, size)  # the recipe could only look at a size of its own
    if found:
        raise problems_error("the recipe does not go with this net's input", found)
    mean = recipe.mean or (own.mean if own is not None else None) or data.mean or IMAGENET_MEAN
    std = recipe.std or (own.std if own is not None else None) or data.std or IMAGENET_STD
    return Preprocessing(size, resize, mean, std, recipe.interpolation)
