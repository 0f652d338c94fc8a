"""Weights that come with the package: verified like all others, but read where they are.

They need no network, no cache and no settings. They are stored in half precision, to be small.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from . import user_files
from .digests import bytes_problem
from .errors import WeightsCorruptError, WeightsFetchError, WeightsNotFoundError
from .filesystem import write_atomically
from .tensorfile import from_safetensors, read_bytes

if TYPE_CHECKING:
    from torch import Tensor

    from .weights import Weights

FOLDER = Path(__file__).resolve().parent / "data"


def package_path(weights: Weights) -> Path:
    """Return where the file is."""
    return FOLDER / weights.filename


def read_verified(weights: Weights) -> bytes:
    """Return the content of the file, whose digest was checked.

    Raises:
        WeightsNotFoundError, WeightsCorruptError: the package is not complete or was changed.
    """
    path = package_path(weights)
    try:
        data = read_bytes(path)
    except WeightsNotFoundError as e:
        raise WeightsNotFoundError(
            f"no weights file at {path}; it belongs to the package: install that again"
        ) from e
    problem = bytes_problem(weights, data)
    if problem:
        raise WeightsCorruptError(f"{path}: {problem}; it belongs to the package: install that again")
    return data


def bundled_state_dict(weights: Weights) -> dict[str, Tensor]:
    """Return the verified tensors; those in half precision are made float32, which is exact.

    Raises:
        WeightsNotFoundError, WeightsCorruptError: as :func:`read_verified`.
        MissingExtraError: safetensors is not installed.
    """
    import torch

    state, _ = from_safetensors(read_verified(weights), str(package_path(weights)))
    with torch.inference_mode(False):
        return {name: t.float() if t.dtype == torch.half else t for name, t in state.items()}


def copy_bundled(weights: Weights, path: Path) -> Path:
    """Return ``path``, after putting a copy there if it is not the very file already.

    Raises:
        WeightsNotFoundError, WeightsCorruptError: as :func:`read_verified`.
        WeightsFetchError: it cannot be written.
    """
    data = read_verified(weights)
    try:
        if not path.is_file() or user_files.read_bytes(path) != data:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, data)
    except OSError as e:
        raise WeightsFetchError(f"cannot write {path}: {e.strerror or e}") from e
    return path
