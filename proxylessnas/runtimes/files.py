"""Exported files: which runtimes read them, what is known about their models, and those of PyTorch opened."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import LatencyError, first_line
from ..utils.files import open_file, read_bytes
from .registry import runtimes

#: The file in a ``.pt2`` or ``.pt`` archive that holds what is known of the model, as JSON.
METADATA_FILE = "metadata.json"
_MOST_BYTES = 10_000_000  # of a report


def file_runtimes(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Return the runtimes that read a file, the usual one first; none for what is no exported file.

    A ``.pt`` file counts if it holds a TorchScript program, not if it holds weights.
    """
    suffix = Path(path).suffix.lower()
    if suffix == ".pt" and not is_torchscript(path):
        return ()
    return tuple(name for name, runtime in runtimes().items() if suffix in runtime.suffixes)


def check_runtime(path: str, runtime: str) -> None:
    """Check that a file is there and that a runtime reads such files.

    Raises:
        LatencyError: it does not; the message names those that do.
    """
    if not os.path.isfile(path):
        raise LatencyError(f"{path}: {'no regular file' if os.path.exists(path) else 'no such file'}")
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
    import zipfile

    try:
        with open_file(path) as file, zipfile.ZipFile(file) as archive:
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
    """Return (channels, height, width) of one image as the report beside a file has it, if it has."""
    size = report_of(path).get("input_size")
    if isinstance(size, list) and len(size) == 3 and all(type(n) is int and 1 <= n <= 65_536 for n in size):
        return size[0], size[1], size[2]
    return None


def is_machine_code(path: str | os.PathLike[str]) -> bool:
    """Tell a package of AOTInductor from an exported graph."""
    return any("/aotinductor/" in name for name in zip_names(path))


def load_program(path: str | os.PathLike[str]) -> Callable[[Any], Any]:
    """Load a ``.pt2`` or ``.pt`` file. It holds a program, which is run: open only files you trust.

    Raises:
        LatencyError: it cannot be loaded.
    """
    import torch

    path = os.fspath(path)
    try:
        with open_file(path), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that TorchScript is deprecated is known
            if Path(path).suffix.lower() == ".pt":
                if not is_torchscript(path):
                    raise LatencyError(f"{path}: is no TorchScript program")
                program: Any = torch.jit.load(path, map_location="cpu")
            elif is_machine_code(path):
                program = torch._inductor.aoti_load_package(path)
            else:
                program = torch.export.load(path).module()
    except OSError as e:
        raise LatencyError(f"{path}: {e.strerror or e}") from e
    except LatencyError:
        raise
    except Exception as e:  # the loaders share no base class
        raise LatencyError(f"{path}: PyTorch cannot load it ({first_line(e)})") from e
    loaded: Callable[[Any], Any] = program
    return loaded
