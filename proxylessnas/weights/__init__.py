"""Published weights: their records, the cache that keeps the files, and the download.

>>> from proxylessnas.weights import get_weights
>>> get_weights("proxyless_mobile").params
4080512
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..utils.lazy_names import lazy_names

if TYPE_CHECKING:
    from .file_spec import FileSpec as FileSpec
    from .record import Weights as Weights
    from .registry import find_by_digest as find_by_digest
    from .registry import get_weights as get_weights
    from .registry import list_weights as list_weights

_NAMES = {
    ".file_spec": "FileSpec",
    ".record": "Weights",
    ".registry": "find_by_digest get_weights list_weights",
}
__all__, __getattr__, __dir__ = lazy_names(__name__, _NAMES)
