"""Ship a net: files for the runtimes people deploy on, with proof that they compute the same.

    >>> from proxylessnas import deploy
    >>> report = deploy.export("proxyless_mobile", "mobile.onnx")  # doctest: +SKIP
    >>> report.largest_difference  # doctest: +SKIP
    3.1e-05

The suffix names the format (:data:`.formats.SUFFIXES`). The libraries behind the formats are imported when a
format is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .exporting import export as export
    from .formats import ExportOptions as ExportOptions
    from .hub import from_pretrained as from_pretrained
    from .hub import push_to_hub as push_to_hub
    from .hub import save_pretrained as save_pretrained
    from .optimizing import Optimized as Optimized
    from .optimizing import optimize as optimize
    from .report import ExportReport as ExportReport

_HOME = {
    "export": "exporting",
    "ExportOptions": "formats",
    "from_pretrained": "hub",
    "push_to_hub": "hub",
    "save_pretrained": "hub",
    "Optimized": "optimizing",
    "optimize": "optimizing",
    "ExportReport": "report",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
