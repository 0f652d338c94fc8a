"""``.safetensors``: weights with the architecture in the header, for whoever has this package."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import torch

from ..._version import __version__
from ...errors import ExportError, ProxylessError, needs
from ...models.loading import save_weights
from ..bundle import ModelBundle
from ..settings import ExportOptions
from .base import Format, Program


class SafetensorsFormat(Format):
    """safetensors; its runtime is :func:`~proxylessnas.create_model`."""

    name = "safetensors"
    suffix = ".safetensors"

    def versions(self) -> dict[str, str]:
        """Return the versions of the libraries it is written and run with."""
        with needs("safetensors", "a .safetensors file"):
            import safetensors
        found = str(getattr(safetensors, "__version__", None) or version("safetensors"))
        return {"proxylessnas": __version__, "torch": str(torch.__version__), "safetensors": found}

    def write(self, bundle: ModelBundle, path: Path, options: ExportOptions) -> list[Path]:
        """Write the file and return it."""
        known = bundle.metadata()
        more = ("name", "license", "origin")  # which save_weights does not write itself
        return [save_weights(bundle.model, path, {key: known[key] for key in known if key in more})]

    def open(self, path: Path, *, threads: int | None = None) -> Program:
        """Load a file as ``create_model(path)`` does."""
        from ...models.factory import create_model

        try:
            model = create_model(path).eval()
        except ProxylessError as e:
            raise ExportError(f"{path}: cannot be loaded again: {e}") from e
        return torch.inference_mode()(model.forward)


FORMAT = SafetensorsFormat()
