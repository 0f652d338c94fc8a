"""Files of named tensors: safetensors and torch checkpoints, read without ever running code from them.

The safetensors format is a length, a JSON header and raw numbers, so it is read and written here directly: a
machine with torch and nothing else can use it, and the very bytes that were hashed become the tensors.
"""

from __future__ import annotations

import ctypes
import hashlib
import io
import json
import pickle
import re
import struct
import sys
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from .errors import WeightsCorruptError, WeightsNotFoundError
from .filesystem import write_atomically

if TYPE_CHECKING:
    from torch import Tensor

_MAX_HEADER = 16 << 20
_MAX_DIMENSIONS = 64
_ALIGN = 64
_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip
_STATE_KEYS = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")  # left by DataParallel and torch.compile


def safe_load(path: Path | str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a weights file of either kind, told apart by its content.

    Args:
        path: a ``.safetensors`` file or a torch checkpoint (``.pth``, new or old format): a state dict, alone
            or under ``state_dict``, ``model_state_dict`` or ``model``. A ``module.`` prefix is taken off.

    Returns:
        The tensors by name, on the CPU, and the text metadata of a safetensors file ({} for a checkpoint).

    Raises:
        WeightsNotFoundError: there is no such file.
        WeightsCorruptError: it is damaged, holds something else than tensors, or is no weights file at all.
    """
    return tensors_from_bytes(read_bytes(Path(path)), str(path))


def read_bytes(path: Path) -> bytearray:
    """Return the content of a file in one writable piece of memory.

    Raises:
        WeightsNotFoundError, WeightsCorruptError: there is no such file, or it cannot be read (a folder,
        say).
    """
    try:
        with path.open("rb", buffering=0) as file:
            data = bytearray(file.seek(0, io.SEEK_END))
            file.seek(0)
            # One read where the system allows it: each call would have to win Python's lock from the thread
            # that builds.
            view, done = memoryview(data), 0
            while done < len(data):
                count = file.readinto(view[done:])
                if not count:
                    raise WeightsCorruptError(f"{path}: the file became shorter while it was read")
                done += count
    except (FileNotFoundError, NotADirectoryError) as e:
        raise WeightsNotFoundError(f"no weights file at {path}") from e
    except OSError as e:
        raise WeightsCorruptError(f"cannot read {path}: {e.strerror or e}") from e
    return data


def tensors_from_bytes(data: bytearray, where: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Do what :func:`safe_load` does with the content of a file; ``where`` names it in errors."""
    if data.startswith((b"PK\x03\x04", b"\x80")):
        return _from_checkpoint(data, where), {}
    if len(data) > 8 and data[8:9] == b"{":
        return from_safetensors(data, where)
    raise WeightsCorruptError(f"{where} is not a weights file: {_what_it_is(bytes(data[:512]))}")


def _what_it_is(head: bytes) -> str:
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        return "it is empty"
    if text.startswith(b"<"):
        return "it is a web page (a failed download?)"
    if text.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer (run git lfs pull)"
    return "neither safetensors nor a torch checkpoint"


# --- torch checkpoints
# -----------------------------------------------------------------------------------------------


def _from_checkpoint(data: bytearray, where: str) -> dict[str, Tensor]:
    import torch

    if data.startswith(b"PK"):
        _check_archive(data, where)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # old formats make torch warn about itself, not about anything to act on
            with torch.inference_mode(False):
                loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as e:
        found = re.search(r"(?:GLOBAL|global|Unsupported class|operand)\s+([\w.]+)", str(e))
        detail = f" ({found[1]})" if found and "." in found[1] else ""
        raise WeightsCorruptError(
            f"{where}: damaged, or it holds Python objects{detail} besides tensors; nothing in it was run"
        ) from e
    except (
        Exception
    ) as e:  # a damaged file makes torch raise almost anything: EOFError, KeyError, RuntimeError, ...
        raise WeightsCorruptError(f"{where}: truncated or damaged checkpoint ({type(e).__name__})") from e
    return _state_dict(loaded, where)


def _check_archive(data: bytearray, where: str) -> None:
    """Refuse archives that torch.save did not write: compressed ones (of any real size) and programs."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            infos = archive.infolist()
    except Exception as e:  # BadZipFile, but also struct.error, NotImplementedError, ... for crafted ones
        raise WeightsCorruptError(f"{where}: truncated or damaged checkpoint (not a complete archive)") from e
    if sum(info.file_size for info in infos) > len(data):
        raise WeightsCorruptError(f"{where}: a compressed archive, not a torch checkpoint")
    if any(info.filename.endswith("/constants.pkl") for info in infos):
        raise WeightsCorruptError(f"{where}: a TorchScript program, not a file of weights")


def _state_dict(loaded: object, where: str) -> dict[str, Tensor]:
    import torch

    for key in _STATE_KEYS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
            break
    if not isinstance(loaded, Mapping) or not loaded:
        raise WeightsCorruptError(f"{where}: no state dict in it (found {type(loaded).__name__})")
    out: dict[str, Tensor] = {}
    for name, value in loaded.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise WeightsCorruptError(
                f"{where}: not a state dict: {str(name)[:60]!r} is a {type(value).__name__}"
            )
        out[name] = value.detach()
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in out):
            out = {name.removeprefix(prefix): value for name, value in out.items()}
    return out


# --- safetensors
# -----------------------------------------------------------------------------------------------------


def read_metadata(path: Path | str) -> dict[str, str]:
    """Return the text metadata of a safetensors file without reading its tensors.

    Raises:
        WeightsNotFoundError, WeightsCorruptError: as :func:`safe_load`.
    """
    try:
        with Path(path).open("rb") as file:
            head = file.read(8)
            size = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
            head += file.read(min(size, _MAX_HEADER))
    except (FileNotFoundError, NotADirectoryError) as e:
        raise WeightsNotFoundError(f"no weights file at {path}") from e
    except OSError as e:
        raise WeightsCorruptError(f"cannot read {path}: {e.strerror or e}") from e
    return _metadata(_header(head, str(path))[0], str(path))


def from_safetensors(data: bytearray, where: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and metadata in the bytes of a safetensors file.

    Each tensor gets memory of its own, so that it is as ordinary as a fresh one: writable, aligned, and
    saving or keeping one of them does not save or keep all (as views of one buffer would; the copy costs 1 ms
    for 18 MB).

    Raises:
        WeightsCorruptError: the bytes are not a sound safetensors file.
    """
    import torch

    if sys.byteorder != "little":
        raise WeightsCorruptError(f"{where}: safetensors files are little-endian and this machine is not")
    header, start = _header(data, where)
    metadata = _metadata(header, where)
    entries = {name: _entry(entry, name, where) for name, entry in header.items() if name != "__metadata__"}
    spans = sorted((begin, end) for _, _, begin, end in entries.values() if end > begin)
    position = 0
    for begin, end in spans:
        if begin != position:
            raise WeightsCorruptError(f"{where}: the tensors overlap or leave a gap")
        position = end
    if start + position != len(data):
        raise WeightsCorruptError(
            f"{where}: {len(data):,} bytes, but its header speaks of {start + position:,} (truncated?)"
        )
    out: dict[str, Tensor] = {}
    source = ctypes.addressof(ctypes.c_char.from_buffer(data)) + start
    # Ordinary CPU tensors whatever device or mode the caller is in.
    with torch.inference_mode(False):
        for name, (code, shape, begin, end) in entries.items():
            out[name] = torch.empty(shape, dtype=getattr(torch, _DTYPES[code]), device="cpu")
            # Not clone(): it wakes torch's threads for each tensor, 100 ms in all on a busy machine against 3
            # ms.
            ctypes.memmove(out[name].data_ptr(), source + begin, end - begin)
    return out, metadata


def _header(data: bytes | bytearray, where: str) -> tuple[dict[str, Any], int]:
    """Return the decoded header and where the tensors begin."""
    if len(data) < 8:
        raise WeightsCorruptError(f"{where}: not a safetensors file (too short)")
    size = struct.unpack("<Q", bytes(data[:8]))[0]
    if not 2 <= size <= _MAX_HEADER or size > len(data) - 8:
        raise WeightsCorruptError(f"{where}: truncated, or not a safetensors file")
    try:
        header = json.loads(bytes(data[8 : 8 + size]).decode("utf-8"))
    except (ValueError, RecursionError) as e:
        raise WeightsCorruptError(f"{where}: not a safetensors file (its header is not JSON)") from e
    if not isinstance(header, dict):
        raise WeightsCorruptError(f"{where}: not a safetensors file (its header is no object)")
    return header, 8 + size


def _metadata(header: dict[str, Any], where: str) -> dict[str, str]:
    metadata = header.get("__metadata__") or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise WeightsCorruptError(f"{where}: the metadata of a safetensors file must be texts")
    return metadata


def _entry(entry: object, name: str, where: str) -> tuple[str, list[int], int, int]:
    """Return (dtype code, shape, begin, end) of one tensor after checking that they agree."""
    if isinstance(entry, dict):
        code, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
        if not isinstance(code, str) or code not in _DTYPES:
            raise WeightsCorruptError(
                f"{where}: tensor {name[:60]!r} has the dtype {str(code)[:20]!r}, which is not read"
            )
        if (
            _are_counts(shape)
            and len(shape) <= _MAX_DIMENSIONS
            and _are_counts(offsets)
            and len(offsets) == 2
        ):
            size = _width(code)
            for side in shape:
                size *= side
            if offsets[1] - offsets[0] == size:
                return code, shape, offsets[0], offsets[1]
    raise WeightsCorruptError(f"{where}: the entry of tensor {name[:60]!r} is wrong")


def _are_counts(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 48 for item in value)


def _width(code: str) -> int:
    return {"BOOL": 1, "BF16": 2}.get(code) or int(code[1:]) // 8


def write_safetensors(
    tensors: Mapping[str, Tensor], path: Path | str, metadata: Mapping[str, str] | None = None
) -> str:
    """Write a safetensors file atomically and return its SHA-256 in hexadecimal.

    The same tensors and metadata always give the same bytes; the names keep their order. Numbers begin at a
    multiple of 64 bytes and wide dtypes come first, so that every tensor is aligned.

    Raises:
        OSError: the file cannot be written.
        WeightsCorruptError: a tensor has a dtype that the format does not know.
    """
    head, parts = to_safetensors(tensors, metadata)
    digest = hashlib.sha256(head)
    for part in parts:
        digest.update(part)
    write_atomically(Path(path), head, *parts)
    return digest.hexdigest()


def to_safetensors(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> tuple[bytes, list[bytes]]:
    """Return the header and the tensors' bytes, in order, of what :func:`write_safetensors` writes."""
    codes = {name: code for code, name in _DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    ready: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        code = codes.get(str(tensor.dtype).removeprefix("torch."))
        if code is None or sys.byteorder != "little":
            raise WeightsCorruptError(
                f"tensor {name!r} ({tensor.dtype}) cannot be written as safetensors on this machine"
            )
        ready[name] = tensor.detach().cpu().contiguous()
        header[name] = {"dtype": code, "shape": list(tensor.shape)}
    order = sorted(ready, key=lambda name: (-ready[name].element_size(), name))
    parts, position = [], 0
    for name in order:
        tensor = ready[name]
        parts.append(ctypes.string_at(tensor.data_ptr(), tensor.nbytes) if tensor.nbytes else b"")
        header[name]["data_offsets"] = [position, position + tensor.nbytes]
        position += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-(len(text) + 8) % _ALIGN)
    return struct.pack("<Q", len(text)) + text, parts
