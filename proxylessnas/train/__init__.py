"""Train, fine-tune and watch models; the same loop trains the weights of a search.

from proxylessnas.train import finetune
finetune("proxyless_mobile", "photos/", out="runs/photos")
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..utils.lazy_names import lazy_names

if TYPE_CHECKING:
    from ..data.open import open_data as open_data
    from ..data.sources import Data as Data
    from .recipe import Recipe as Recipe
    from .recipe import read_recipe as read_recipe
    from .run import Result as Result
    from .run import finetune as finetune
    from .run import train as train
    from .settings import Settings as Settings
    from .trainer import Trainer as Trainer

_NAMES = {
    "..data.open": "open_data",
    "..data.sources": "Data",
    ".recipe": "Recipe read_recipe",
    ".run": "Result finetune train",
    ".settings": "Settings",
    ".trainer": "Trainer",
}
__all__, __getattr__, __dir__ = lazy_names(__name__, _NAMES)
