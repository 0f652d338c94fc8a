"""Exported files that can be measured: which runtimes read them, and what is known about their nets."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import LatencyError
from ..utils.files import read_bytes

#: Suffix -> runtimes that read such files, the usual one first.
RUNTIMES_OF = {
    ".onnx": ("onnxruntime", "openvino"),
    ".xml": ("openvino",),
    ".pte": ("executorch",),
    ".tflite": ("litert",),
    ".pt2": ("torch",),
    ".pt": ("torch",),
}
_MOST_BYTES = 10_000_000  # of a report


def file_runtimes(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Return the runtimes that read a file; none for what is no exported file.

    A ``.pt`` file counts if it holds a TorchScript program, not if it holds weights.
    """
    runtimes = RUNTIMES_OF.get(Path(path).suffix.lower(), ())
    return () if Path(path).suffix.lower() == ".pt" and not is_torchscript(path) else runtimes


def check_runtime(path: str, runtime: str) -> None:
    """Check that a file is there and that a runtime reads such files.

    Raises:
        LatencyError: it does not; the message names those that do.
    """
    if not os.path.isfile(path):
        raise LatencyError(f"{path}: no such file")
    reading = file_runtimes(path)
    if runtime not in reading:
        others = " or ".join(map(repr, reading))
        raise LatencyError(
            f"runtime {runtime!r} cannot read {path}"
            + (f": use runtime {others}" if others else ", which is no exported file that is known here")
        )


def is_torchscript(path: str | os.PathLike[str]) -> bool:
    """Tell a TorchScript program from other files of the same suffix."""
    return any(name.endswith("/constants.pkl") for name in zip_names(path))


def zip_names(path: str | os.PathLike[str]) -> list[str]:
    """Return the names of what is in a zip archive; nothing for what is none or cannot be read."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return []


def report_of(path: str | os.PathLike[str]) -> Mapping[str, Any]:
    """Return the report that an export left beside a file; empty where there is none that can be read."""
    report = Path(f"{os.fspath(path)}.json")
    try:
        found = json.loads(read_bytes(report, _MOST_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def input_size_of(path: str | os.PathLike[str]) -> tuple[int, int, int] | None:
    """Return (channels, height, width) of one picture as the report beside a file has it, if it has."""
    size = report_of(path).get("input_size")
    if isinstance(size, list) and len(size) == 3 and all(type(n) is int and 1 <= n <= 65_536 for n in size):
        return size[0], size[1], size[2]
    return None
