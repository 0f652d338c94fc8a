"""What a model that is derived from a supernet may cost."""

from __future__ import annotations

from dataclasses import dataclass

from ..utils.config import Config, same_option
from .recipe import SearchRecipe


@dataclass(frozen=True)
class DeriveSettings(Config):
    """What :func:`~proxylessnas.search.derive` keeps to; each means what it means in a recipe.

    Raises:
        DataError: a value is wrong.
    """

    what = "settings"

    target_ms: float | None = same_option(SearchRecipe, "target_ms")
    target_macs_m: float | None = same_option(SearchRecipe, "target_macs_m")
    target_params_m: float | None = same_option(SearchRecipe, "target_params_m")
    least_share: float = same_option(SearchRecipe, "least_share")
    min_depth: int = same_option(SearchRecipe, "min_depth")
