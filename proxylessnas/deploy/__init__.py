"""Ship a net: files for the runtimes people deploy on, with proof that they compute the same.

    >>> from proxylessnas import deploy
    >>> report = deploy.export("proxyless_mobile", "mobile.onnx")  # doctest: +SKIP
    >>> report.largest_difference  # doctest: +SKIP
    3.1e-05

The suffix names the format (:data:`.formats.SUFFIXES`). The libraries behind the formats are imported when a
format is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy_names import lazy_names

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
__getattr__, __dir__ = lazy_names(__name__, _HOME)
