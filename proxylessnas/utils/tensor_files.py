"""Files of named tensors: safetensors and torch checkpoints, read without ever running code from them.

Both are read from bytes in memory, so that the very bytes that were hashed become the tensors.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import pickle
import re
import struct
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import WeightsCorruptError, WeightsNotFoundError, missing_extra
from . import files as user_files
from .files import write_atomically

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger("proxylessnas")

# Averages of the weights, which other loops keep beside them; used where there is nothing else.
_EMA_KEYS = ("state_dict_ema", "model_ema", "model_ema_state_dict", "ema_state_dict", "ema_model", "ema")
_STATE_KEYS = ("state_dict", "model_state_dict", "model", "net", *_EMA_KEYS)
_COMPILED, _PARALLEL = "_orig_mod", "module."  # what torch.compile and DataParallel put into names


def safe_load(path: Path | str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a weights file of either kind, told apart by its content.

    Args:
        path: a ``.safetensors`` file or a torch checkpoint (``.pth``, new or old format): a state dict, alone
            or under ``state_dict``, ``model_state_dict``, ``model`` or ``net`` (averages such as
            ``model_ema`` where there is no other). What torch.compile and DataParallel put into the names is
            taken off.

    Returns:
        The tensors by name, on the CPU, and the text metadata of a safetensors file ({} for a checkpoint).

    Raises:
        WeightsNotFoundError: there is no such file.
        WeightsCorruptError: it is damaged, holds something else than tensors, or is no weights file at all.
    """
    return tensors_from_bytes(read_bytes(Path(path)), str(path))


def read_bytes(path: Path) -> bytes:
    """Return the content of a weights file, or raise WeightsNotFoundError or WeightsCorruptError."""
    with opening(path):
        return user_files.read_bytes(path)


@contextlib.contextmanager
def opening(path: Path) -> Iterator[None]:
    """Turn what the system says of a weights file into WeightsNotFoundError or WeightsCorruptError."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as e:
        raise WeightsNotFoundError(f"no weights file at {path}") from e
    except OSError as e:
        raise WeightsCorruptError(f"cannot read {path}: {e.strerror or e}") from e


def tensors_from_bytes(data: bytes, where: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Do what :func:`safe_load` does with the content of a file; ``where`` names it in errors."""
    # First: the length of a header may begin with the byte 0x80, as a pickle does. The other way round, the
    # first eight bytes of a pickle or an archive are no length that fits into the file.
    if data[8:9] == b"{" and int.from_bytes(data[:8], "little") <= len(data) - 8:
        return from_safetensors(data, where)
    if data.startswith((b"PK\x03\x04", b"\x80")):
        return _from_checkpoint(data, where), {}
    if data[8:9] == b"{":
        return from_safetensors(data, where)  # it says what is wrong with it
    reason = "neither safetensors nor a torch checkpoint" if data else "it is empty"
    if other := what_else(data):
        reason = f"it is {other[0]} ({other[1]})"
    raise WeightsCorruptError(f"{where} is not a weights file: {reason}")


def what_else(data: bytes) -> tuple[str, str] | None:
    """Return what often comes in place of a weights file, and what to do about it, if the data is such."""
    head = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith(b"<"):
        return "a web page", "a failed download?"
    return ("a Git LFS pointer", "run git lfs pull") if head.startswith(b"version https://git-lfs") else None


# --- torch checkpoints --------------------------------------------------------------------------------


def _from_checkpoint(data: bytes, where: str) -> dict[str, Tensor]:
    import torch

    from . import torch_files as torch_file

    try:
        try:
            loaded = torch_file.load(data)
        except pickle.UnpicklingError as e:
            if not any(f"GLOBAL {name} " in str(e) for name in IGNORED):
                raise
            ignored = [(_Ignored, name) for name in IGNORED]
            with _IGNORING, torch.serialization.safe_globals(ignored):  # type: ignore[arg-type]
                loaded = torch_file.load(data)
    except torch_file.CheckpointRefused as e:
        raise WeightsCorruptError(f"{where}: {e}") from e
    except pickle.UnpicklingError as e:
        found = re.search(r"(?:GLOBAL|global|Unsupported class|operand)\s+([\w.]+)", str(e))
        detail = f" ({found[1][:80]})" if found and "." in found[1] else ""
        raise WeightsCorruptError(
            f"{where}: damaged, or it holds Python objects{detail} besides tensors; nothing in it was run. "
            "If it is yours, save its tensors alone, where it was made: torch.save(model.state_dict(), FILE)"
        ) from e
    except Exception as e:  # a damaged file makes torch raise EOFError, KeyError, RuntimeError, ...
        raise WeightsCorruptError(f"{where}: truncated or damaged checkpoint ({type(e).__name__})") from e
    return state_dict_of(loaded, where)


#: What training loops put beside the weights and nobody needs to read them: settings, scores, paths.
IGNORED = (
    "argparse.Namespace",
    "numpy.dtype",
    "numpy.ndarray",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    *(f"pathlib.{part}{name}" for part in ("", "_local.") for name in ("PosixPath", "WindowsPath")),
)
_IGNORING = threading.Lock()  # torch's list of allowed names is one for all threads


class _Ignored:
    """Stands in a checkpoint for an object of another class, of which it keeps nothing and runs nothing."""

    def __new__(cls, *_: object) -> _Ignored:
        return super().__new__(cls)

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def state_dict_of(loaded: object, where: str) -> dict[str, Tensor]:
    """Return the named tensors of a loaded checkpoint, without what wrappers put into their names.

    Averages of the weights that are beside the weights are left aside, which is logged.

    Raises:
        WeightsCorruptError: it is neither a state dict nor holds one under a usual key.
    """
    import torch

    if isinstance(loaded, Mapping):
        found = [key for key in _STATE_KEYS if isinstance(loaded.get(key), Mapping)]
        aside = [key for key in found[1:] if key in _EMA_KEYS]
        if aside:
            log.warning(
                "%s: the weights under %r are used; averaged ones under %r are left aside (to use them, give "
                "torch.load(FILE, weights_only=True)[%r] to load_weights)",
                where, found[0], aside[0], aside[0],
            )  # fmt: skip
        if found:
            loaded = loaded[found[0]]
    if not isinstance(loaded, Mapping) or not loaded:
        raise WeightsCorruptError(
            f"{where}: no state dict in it (found {type(loaded).__name__}; save model.state_dict())"
        )
    out: dict[str, Tensor] = {}
    averaged = "n_averaged" in loaded and len(loaded) > 1  # torch.optim.swa_utils.AveragedModel counts there
    for name, value in loaded.items():
        if averaged and name == "n_averaged":
            continue
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise WeightsCorruptError(
                f"{where}: not a state dict, alone or under {', '.join(_STATE_KEYS)}: "
                f"{str(name)[:60]!r} is a {type(value).__name__}; save model.state_dict()"
            )
        if value.layout != torch.strided or value.is_meta or value.is_quantized or value.is_complex():
            kind = "complex" if value.is_complex() else "sparse, quantised or without data"
            raise WeightsCorruptError(f"{where}: tensor {name[:60]!r} is {kind}, which no model here has")
        out[name] = value.detach()
    return plain_names(out)


def plain_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors under the names that they have without torch.compile and DataParallel around them."""
    out = {".".join(part for part in name.split(".") if part != _COMPILED): t for name, t in state.items()}
    if len(out) < len(state):  # names that differ in nothing else: both are wanted
        out = dict(state)
    while out and all(name.startswith(_PARALLEL) for name in out):
        out = {name.removeprefix(_PARALLEL): value for name, value in out.items()}
    return out


# --- safetensors --------------------------------------------------------------------------------------


def _library() -> Any:
    try:
        import safetensors.torch
    except ImportError as e:
        raise missing_extra("safetensors", "a .safetensors file") from e
    return safetensors


def read_metadata(path: Path | str) -> dict[str, str]:
    """Return the text metadata of a safetensors file without its tensors; raises as :func:`safe_load`."""
    library = _library()
    with opening(Path(path)):
        user_files.open_file(path).close()  # the library opens anything, and waits for a pipe
    try:
        with library.safe_open(path, "pt") as file:
            return dict(file.metadata() or {})
    except (library.SafetensorError, OSError) as e:
        raise WeightsCorruptError(f"{path}: not a sound safetensors file ({e})") from e


def from_safetensors(data: bytes, where: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return tensors and metadata of the bytes of a safetensors file; each tensor has its own memory."""
    import torch

    library = _library()
    try:
        with torch.inference_mode(False):  # ordinary tensors, whatever mode the caller is in
            tensors = library.torch.load(data)
    except (library.SafetensorError, KeyError) as e:  # KeyError: a dtype that torch does not have
        raise WeightsCorruptError(f"{where}: truncated or damaged safetensors file ({e})") from e
    # The library checked the header but returns metadata for files only.
    header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
    return tensors, header.get("__metadata__") or {}


def to_safetensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """Return what :func:`write_safetensors` writes.

    Raises:
        MissingExtraError: safetensors is not installed.
        WeightsCorruptError: a tensor has a dtype that the format does not know.
    """
    library = _library()
    # Clones: tensors that share memory would be refused.
    ready = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    try:
        data: bytes = library.torch.save(ready, dict(metadata) if metadata else None)
    except ImportError as e:
        raise missing_extra("numpy", "writing a .safetensors file") from e
    except (library.SafetensorError, KeyError, ValueError) as e:
        raise WeightsCorruptError(f"these tensors cannot be written as safetensors: {e}") from e
    return _sorted_metadata(data)


def _sorted_metadata(data: bytes) -> bytes:
    """Return a safetensors file with its metadata in order; the library's is another each time."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    if "__metadata__" not in header:
        return data
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # as the format wants it
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def write_safetensors(
    tensors: Mapping[str, Tensor], path: Path | str, metadata: Mapping[str, str] | None = None
) -> str:
    """Write a safetensors file atomically and return its SHA-256 in hexadecimal.

    Raises:
        OSError: the file cannot be written.
        MissingExtraError, WeightsCorruptError: see :func:`to_safetensors`.
    """
    data = to_safetensors(tensors, metadata)
    write_atomically(Path(path), data)
    return hashlib.sha256(data).hexdigest()
