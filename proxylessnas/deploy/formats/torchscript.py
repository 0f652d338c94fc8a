"""``.pt``: TorchScript, traced and frozen, for runtimes that know nothing newer."""

from __future__ import annotations

import io
import json
import warnings
from pathlib import Path
from typing import Any

import torch

from ...errors import ExportError, first_line
from ...runtimes.files import METADATA_FILE
from ..bundle import ModelBundle
from ..settings import ExportOptions
from .base import Program, refuse
from .torch_export import opened


class TorchScriptFormat:
    """See :class:`~proxylessnas.deploy.formats.base.Format`. The batch stays open."""

    name = "TorchScript"
    suffix = ".pt"

    def versions(self) -> dict[str, str]:
        """Return the version of torch."""
        return {"torch": str(torch.__version__)}

    def check(self, bundle: ModelBundle, options: ExportOptions) -> None:
        """Refuse at once what cannot work."""
        refuse(self, options)

    def write(self, bundle: ModelBundle, path: Path, options: ExportOptions) -> list[Path]:
        """Write the file and return it."""
        example = torch.zeros(1, *bundle.input_size)
        try:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")  # that TorchScript is deprecated is known
                traced: Any = torch.jit.trace(bundle.model, (example,), check_trace=False)
                frozen: Any = torch.jit.freeze(traced)
                buffer = io.BytesIO()
                extra = {METADATA_FILE: json.dumps(bundle.metadata())}
                torch.jit.save(frozen, buffer, _extra_files=extra)
        except Exception as e:  # tracing runs the module's code
            raise ExportError(f"{bundle.name}: TorchScript cannot take the model ({first_line(e)})") from e
        path.write_bytes(buffer.getbuffer())
        return [path]

    def open(self, path: Path, *, threads: int | None = None) -> Program:
        """Load a file in PyTorch."""
        return opened(path)


FORMAT = TorchScriptFormat()
