"""Which library writes the 8-bit files of a format, and what it is worth trying with it."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, cast

from torch import Tensor

from ...errors import ExportError
from ..bundle import ModelBundle
from ..formats.base import ExportOptions, Format
from .schemes import Scheme

_MODULES = {
    ".onnx": "onnx",
    ".xml": "openvino",
    ".pte": "executorch",
    ".tflite": "litert",
}
SUFFIXES: tuple[str, ...] = tuple(_MODULES)


class Backend(Protocol):
    """One module of this package."""

    def schemes(self, target_isa: str) -> Sequence[str]:
        """Return the names of the schemes to try for one of :data:`~.saturation.TARGETS`."""

    def paired_weights(self, path: Path) -> dict[str, Tensor] | None:
        """Return the 8-bit weights of the layers of a file whose products a processor may add in pairs.

        Whole numbers [out, ...], by the layers' names; None where it is not known how the runtime adds.
        """

    def write(
        self,
        subject: ModelBundle,
        path: Path,
        batches: Sequence[Tensor],
        scheme: Scheme,
        options: ExportOptions,
    ) -> None:
        """Write an int8 file.

        Args:
            subject: the net, prepared for the scheme.
            path: the file.
            batches: calibration inputs [N, C, H, W].
            scheme: how; what has been done in torch already is left alone.
            options: as for the float file.

        Raises:
            ExportError: the library cannot quantise the net.
            MissingExtraError: it is not installed.
        """


def backend_of(fmt: Format) -> Backend:
    """Return what writes int8 files of a format.

    Raises:
        ExportError: nothing does.
    """
    module = _MODULES.get(fmt.suffix)
    if module is None:
        raise ExportError(f"{fmt.suffix} files are not written in int8; {', '.join(_MODULES)} are")
    found: Any = importlib.import_module(f".{module}", __package__)
    return cast(Backend, found)
