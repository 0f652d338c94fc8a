"""Ship a model: files for the runtimes people deploy on, with proof that they compute the same.

    >>> from proxylessnas import deploy
    >>> report = deploy.export("proxyless_mobile", "mobile.onnx")  # doctest: +SKIP
    >>> report.largest_difference  # doctest: +SKIP
    3.1e-05

The suffix names the format (:func:`.formats.base.formats`). Libraries behind the formats are imported when a
format is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..utils.lazy_names import lazy_names

if TYPE_CHECKING:
    from .exporter import export as export
    from .hub import from_pretrained as from_pretrained
    from .hub import push_to_hub as push_to_hub
    from .hub import save_pretrained as save_pretrained
    from .optimized import Optimized as Optimized
    from .optimized import optimize as optimize
    from .report import ExportReport as ExportReport
    from .settings import ExportOptions as ExportOptions

_NAMES = {
    ".exporter": "export",
    ".hub": "from_pretrained push_to_hub save_pretrained",
    ".optimized": "Optimized optimize",
    ".report": "ExportReport",
    ".settings": "ExportOptions",
}
__all__, __getattr__, __dir__ = lazy_names(__name__, _NAMES)
