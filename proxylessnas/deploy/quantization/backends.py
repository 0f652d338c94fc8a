"""Which library writes the 8-bit files of a format, and what it is worth trying with it."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, cast

from torch import Tensor

from ...errors import ExportError
from ..bundle import ModelBundle
from ..formats.base import Format, formats
from ..settings import ExportOptions
from .schemes import Scheme


class Backend(Protocol):
    """A module of this package, called like the format's."""

    def schemes(self, target_isa: str) -> Sequence[str]:
        """Return the names of the schemes to try for one of :data:`~.schemes.TARGETS`."""

    def paired_weights(self, path: Path) -> dict[str, Tensor] | None:
        """Return the 8-bit weights of the layers of a file whose products a processor may add in pairs.

        Whole numbers [out, ...], by the layers' names; None where it is not known how the runtime adds.
        """

    def write(
        self,
        bundle: ModelBundle,
        path: Path,
        batches: Sequence[Tensor],
        scheme: Scheme,
        options: ExportOptions,
    ) -> None:
        """Write an int8 file.

        Args:
            bundle: the model, whose weights :func:`~.ptq.corrected` has made ready for the scheme.
            path: the file.
            batches: calibration inputs [N, C, H, W].
            scheme: how.
            options: as for the float file.

        Raises:
            ExportError: the library cannot quantise the model, or has no such scheme.
            MissingExtraError: it is not installed.
        """


def int8_suffixes() -> tuple[str, ...]:
    """Return the suffixes of the formats that have 8-bit files."""
    return tuple(suffix for suffix, fmt in formats().items() if importlib.util.find_spec(_module_of(fmt)))


def backend_of(fmt: Format) -> Backend:
    """Return what writes int8 files of a format.

    Raises:
        ExportError: nothing does.
    """
    if fmt.suffix not in int8_suffixes():
        raise ExportError(f"{fmt.suffix} files are not written in int8; {', '.join(int8_suffixes())} are")
    return cast(Backend, importlib.import_module(_module_of(fmt)))


def _module_of(fmt: Format) -> str:
    return f"{__package__}.{type(fmt).__module__.rpartition('.')[2]}"
