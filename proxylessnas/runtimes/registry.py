"""The runtimes by name: each module of this package that has a ``RUNTIME`` adds one.

A runtime is found without importing its library or torch; they are imported when it is used.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from ..errors import LatencyError, shown
from ..utils.lazy_names import declared

if TYPE_CHECKING:
    from .base import Runtime

#: Modules of this package that are no runtimes, and are not imported to look for one.
_HELPERS = frozenset(
    "base environment files machine modules onnx_graph onnx_int8 registry settings timer "
    "torch_sessions".split()
)


@functools.cache
def runtimes() -> Mapping[str, Runtime]:
    """Return every runtime by its name, those of torch first."""
    found: list[Runtime] = declared(__name__.rpartition(".")[0], "RUNTIME", but=_HELPERS)
    return {runtime.name: runtime for runtime in sorted(found, key=lambda r: (r.module is not None, r.name))}


def get_runtime(name: str) -> Runtime:
    """Return a runtime; its library is imported when it is used.

    Raises:
        LatencyError: there is none of that name.
    """
    if not isinstance(name, str) or name not in runtimes():
        raise LatencyError(f"runtime is {shown(name)}; known are {', '.join(runtimes())}")
    return runtimes()[name]


def available(names: Iterable[str] | None = None) -> dict[str, str | None]:
    """Tell which runtimes can be used, without importing any library.

    Returns:
        Name to None if its libraries are installed, else to what to do about it, the pip line mostly.

    Raises:
        LatencyError: there is no runtime of that name.
    """
    return {name: get_runtime(name).missing() for name in (runtimes() if names is None else names)}
