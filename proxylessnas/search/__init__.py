"""Search: from pictures, a device and a budget to a net of its own.

from proxylessnas.search import search
result = search("small", "photos/", "small", table="laptop.json", out="runs/photos")

The method is that of ProxylessNAS (Cai, Zhu, Han, ICLR 2019): an over-parameterised net with binary gates is
trained on the task itself, one path at a time; its architecture parameters learn from accuracy and latency.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy_names import lazy_names

if TYPE_CHECKING:
    from ..space import SearchSpace as SearchSpace
    from .deriving import derive as derive
    from .recipe import SearchRecipe as SearchRecipe
    from .recipe import read_search_recipe as read_search_recipe
    from .result import SearchResult as SearchResult
    from .run import search as search
    from .supernet import SuperNet as SuperNet

# No module here may be called like a name: importing it would put it in the name's place.
_HOME = {
    "SearchSpace": ".space",
    "derive": "deriving",
    "SearchRecipe": "recipe",
    "read_search_recipe": "recipe",
    "SearchResult": "result",
    "search": "run",
    "SuperNet": "supernet",
}
__all__ = list(_HOME)
__getattr__, __dir__ = lazy_names(__name__, _HOME)
