"""``.safetensors``: weights with the architecture in the header, for whoever has this package."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from ..._version import __version__
from ...errors import ExportError, ProxylessError, missing_extra
from ...models.loading import save_weights
from ..bundle import ModelBundle
from ..settings import ExportOptions
from .base import Program, refuse

#: What :func:`~proxylessnas.save_weights` does not write itself.
_MORE = ("name", "license", "origin")


class SafetensorsFormat:
    """See :class:`~.base.Format`. Its runtime is :func:`~proxylessnas.create_model`."""

    name = "safetensors"
    suffix = ".safetensors"

    def versions(self) -> dict[str, str]:
        """Return the versions of the libraries it is written and run with."""
        try:
            import safetensors
        except ImportError as e:
            raise missing_extra("safetensors", "a .safetensors file") from e
        found = str(getattr(safetensors, "__version__", None) or version("safetensors"))
        return {"proxylessnas": __version__, "torch": str(torch.__version__), "safetensors": found}

    def check(self, bundle: ModelBundle, options: ExportOptions) -> None:
        """Refuse at once what cannot work."""
        refuse(self, options)
        self.versions()

    def write(self, bundle: ModelBundle, path: Path, options: ExportOptions) -> list[Path]:
        """Write the file and return it."""
        known = bundle.metadata()
        return [save_weights(bundle.model, path, {key: known[key] for key in _MORE if key in known})]

    def open(self, path: Path, *, threads: int | None = None) -> Program:
        """Load a file as ``create_model(path)`` does."""
        from ...models.factory import create_model

        try:
            model = create_model(path).eval()
        except ProxylessError as e:
            raise ExportError(f"{path}: cannot be loaded again: {e}") from e

        def run(x: Tensor) -> Tensor:
            with torch.inference_mode():
                return model(x)

        return run


FORMAT = SafetensorsFormat()
