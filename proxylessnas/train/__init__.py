"""Train, fine-tune and watch nets; the same loop trains the weights of a search.

from proxylessnas.train import finetune
finetune("proxyless_mobile", "photos/", out="runs/photos")
"""

from ..data.open import Data as Data
from ..data.open import open_data as open_data
from .recipe import Recipe as Recipe
from .recipe import read_recipe as read_recipe
from .run import Result as Result
from .run import finetune as finetune
from .run import train as train
from .settings import Settings as Settings
from .trainer import Trainer as Trainer

__all__ = ["Data", "Recipe", "Result", "Settings", "Trainer", "finetune", "open_data", "read_recipe", "train"]
