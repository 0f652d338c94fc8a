"""Search: from pictures, a device and a budget to a net of its own.

from proxylessnas.search import search
result = search("small", "photos/", "small", table="laptop.json", out="runs/photos")

The method is that of ProxylessNAS (Cai, Zhu, Han, ICLR 2019): an over-parameterised net with binary gates is
trained on the task itself, one path at a time; its architecture parameters learn from accuracy and latency.
"""

from .recipe import SearchRecipe as SearchRecipe
from .recipe import read_search_recipe as read_search_recipe
from .result import SearchResult as SearchResult
from .run import search as search
from .supernet import SuperNet as SuperNet

__all__ = ["SearchRecipe", "SearchResult", "SuperNet", "read_search_recipe", "search"]
