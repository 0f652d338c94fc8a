"""Search: from images, a device and a budget to a model of its own.

from proxylessnas.search import search
result = search("small", "photos/", "small", table="laptop.json", out="runs/photos")

The method is that of ProxylessNAS (Cai, Zhu, Han, ICLR 2019): an over-parameterised model with binary gates
is trained on the task itself, one path at a time; its architecture parameters learn from accuracy and
latency.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..utils.lazy_names import lazy_names

if TYPE_CHECKING:
    from ..arch.space import SearchSpace as SearchSpace
    from .derivation import derive as derive
    from .logger import SearchResult as SearchResult
    from .recipe import SearchRecipe as SearchRecipe
    from .recipe import read_search_recipe as read_search_recipe
    from .run import search as search
    from .seeds import SeedResults as SeedResults
    from .seeds import search_seeds as search_seeds
    from .settings import DeriveSettings as DeriveSettings
    from .supernet import SuperNet as SuperNet

# No module here may be called like a name: importing it would put it in the name's place.
_NAMES = {
    "..arch.space": "SearchSpace",
    ".derivation": "derive",
    ".logger": "SearchResult",
    ".recipe": "SearchRecipe read_search_recipe",
    ".run": "search",
    ".seeds": "SeedResults search_seeds",
    ".settings": "DeriveSettings",
    ".supernet": "SuperNet",
}
__all__, __getattr__, __dir__ = lazy_names(__name__, _NAMES)
