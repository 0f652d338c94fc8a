"""``.pt``: TorchScript, traced and frozen, for runtimes that know nothing newer."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import torch

from ...runtimes.files import METADATA_FILE
from ..bundle import ModelBundle
from ..settings import ExportOptions
from .base import exporting
from .torch_export import TorchFormat


class TorchScriptFormat(TorchFormat):
    """TorchScript; the batch stays open."""

    name = "TorchScript"
    suffix = ".pt"

    def write(self, bundle: ModelBundle, path: Path, options: ExportOptions) -> list[Path]:
        """Write the file and return it."""
        example = torch.zeros(1, *bundle.input_size)
        buffer = io.BytesIO()
        with exporting(f"{bundle.name}: TorchScript cannot take the model"):
            traced: Any = torch.jit.trace(bundle.model, (example,), check_trace=False)
            frozen: Any = torch.jit.freeze(traced)
            torch.jit.save(frozen, buffer, _extra_files={METADATA_FILE: json.dumps(bundle.metadata())})
        path.write_bytes(buffer.getbuffer())
        return [path]


FORMAT = TorchScriptFormat()
