"""Opens torch checkpoints from anywhere in bounded time and memory, without running code from them.

``torch.load(weights_only=True)`` runs nothing, but believes what a file says of itself: the pickle inside is
read here first, instruction by instruction and building nothing, and the tensors are compared with the file's
size.
"""

from __future__ import annotations

import io
import pickletools
import struct
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from typing import Any

_MAX_NAME = 200  # characters of a global; torch searches the message that quotes it in quadratic time
_MAX_OPCODES = 2_000_000
_MAX_DEPTH = 50  # of tuples; hashing a deeper one would end in a stack overflow
_MAX_TUPLE = 100_000  # values in a tuple and all tuples in it, each as often as it is in there
_MAX_SHARING = 16  # tensors may share memory, so that together they are larger than the file
_SLACK_BYTES = 1 << 20
_LEGACY_PICKLES = 5  # magic number, version, system, the object, keys of its storages


class CheckpointRefused(Exception):
    """A checkpoint is not as ``torch.save`` writes them; the message says why, without the file's name."""


def load(data: bytes, *, map_location: str | None = "cpu") -> Any:
    """Return what the content of a checkpoint of ``torch.save`` holds, new or old format.

    Raises:
        CheckpointRefused: it would take unbounded time or memory.
        Exception: torch raises nearly anything on a damaged file, and ``pickle.UnpicklingError`` on one that
            holds other Python objects than tensors, numbers, texts and their containers.
    """
    import torch

    with warnings.catch_warnings(), torch.inference_mode(False):
        warnings.simplefilter("ignore")  # about torch's own old formats: nothing to act on
        if data.startswith(b"PK"):
            _scan_archive(data)
        else:
            end = 0
            for _ in range(_LEGACY_PICKLES):
                if end < len(data):  # torch says that something is missing
                    end = _scan(data, end)
        loaded = torch.load(io.BytesIO(data), map_location=map_location, weights_only=True)
    _check_sizes(loaded, len(data))
    return loaded


def _scan_archive(data: bytes) -> None:
    """Refuse archives that torch.save did not write: compressed ones (of any real size) and programs."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            infos = archive.infolist()
    except Exception as e:  # BadZipFile, but also struct.error, NotImplementedError, ... for crafted ones
        raise CheckpointRefused("truncated or damaged checkpoint (not a complete archive)") from e
    if not _has_one_directory(data):  # else torch might find other files in it than those seen here
        raise CheckpointRefused("an archive that torch.save did not write, or that something was added to")
    packed = any(info.compress_type != zipfile.ZIP_STORED for info in infos)
    if packed or sum(info.file_size for info in infos) > len(data):
        raise CheckpointRefused("a compressed archive, not a torch checkpoint")
    if any(info.filename.endswith("/constants.pkl") for info in infos):
        raise CheckpointRefused("a TorchScript program, not a file of weights")
    for info in infos:
        # Whatever torch could take for the pickle: it does not look at upper and lower case. Not by
        # archive.read(): torch.save can be told to write no check sums.
        if info.filename.lower().endswith("data.pkl"):
            names = data[info.header_offset + 26 : info.header_offset + 30]  # their lengths: name, extra
            start = info.header_offset + 30 + sum(struct.unpack("<HH", names.ljust(4, b"\0")))
            _scan(data[start : start + info.file_size])


def _has_one_directory(data: bytes) -> bool:
    """Tell whether the archive's list of files lies directly before its end record, with nothing behind."""
    end = len(data) - 22
    if end < 0 or data[end : end + 4] != b"PK\5\6" or data[-2:] != b"\0\0":  # its comment is empty
        return False
    size, offset = struct.unpack_from("<II", data, end + 12)
    if data[max(end - 20, 0) : end][:4] == b"PK\6\7":  # the same with 64 bits, and where that begins
        (at,) = struct.unpack_from("<Q", data, end - 12)
        if at + 56 != end - 20 or data[at : at + 4] != b"PK\6\6":
            return False
        small, (size, offset) = (size, offset), struct.unpack_from("<QQ", data, at + 40)
        if any(a not in (b, 0xFFFFFFFF) for a, b in zip(small, (size, offset), strict=True)):
            return False
        end = at
    return int(offset + size) == end


# A value of a pickle: how many values it holds, how deeply they are nested, and whether it is a global.
_Value = tuple[int, int, bool]
_ATOM: _Value = (1, 0, False)  # also what may change later: a list, a dict, what a call returned
_GLOBAL: _Value = (1, 0, True)

# Instructions that torch's reader knows, by what they do to the stack.
_PUSH = """NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINSTRING EMPTY_TUPLE
    EMPTY_LIST EMPTY_DICT EMPTY_SET""".split()
_DROP = {"APPEND": 1, "SETITEM": 2, "BUILD": 1}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_OTHERS = """PROTO STOP MARK BINPUT LONG_BINPUT BINGET LONG_BINGET APPENDS SETITEMS TUPLE GLOBAL REDUCE NEWOBJ
    BINPERSID""".split()
_KNOWN = {
    op.code.encode("latin-1"): op
    for op in pickletools.opcodes
    if op.name in {*_PUSH, *_DROP, *_TUPLES, *_OTHERS}
}


def _scan(data: bytes, start: int = 0) -> int:
    """Walk over the pickle that begins at ``start``, building nothing, and return where it ends."""
    file, scan = io.BytesIO(data), _Scan()
    file.seek(start)
    try:
        for _ in range(_MAX_OPCODES):
            code = file.read(1)
            if code and code not in _KNOWN:
                found = f"damaged, or not written by torch.save (pickle instruction {code[0]})"
                raise CheckpointRefused(f"{found}; nothing in it was run")
            op = _KNOWN[code]
            argument = op.arg.reader(file) if op.arg else None
            if op.name == "STOP":
                return file.tell()
            scan.step(op.name, argument)
    except (IndexError, KeyError, ValueError) as e:
        raise CheckpointRefused("truncated or damaged checkpoint (its pickle is not complete)") from e
    raise CheckpointRefused(f"its pickle has over {_MAX_OPCODES:,} instructions")


class _Scan:
    """The stack that the reader of a pickle would have, but of counts instead of objects."""

    def __init__(self) -> None:
        self.stack: list[_Value] = []
        self.below: list[list[_Value]] = []  # the stacks under each mark
        self.memo: dict[int, _Value] = {}

    def step(self, name: str, argument: Any) -> None:
        """Do what an instruction does."""
        stack = self.stack
        if name in _PUSH:
            stack.append(_ATOM)
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name in _DROP:
            for _ in range(_DROP[name]):
                stack.pop()
        elif name in _TUPLES:
            items = [stack.pop() for _ in range(_TUPLES[name])]
            stack.append(_tuple(items))
        elif name == "MARK":
            self.below.append(stack)
            self.stack = []
        elif name in ("TUPLE", "APPENDS", "SETITEMS"):
            self.stack = self.below.pop()
            if name == "TUPLE":
                self.stack.append(_tuple(stack))
        elif name == "GLOBAL":
            _check_name(argument)
            stack.append(_GLOBAL)
        elif name in ("REDUCE", "NEWOBJ"):
            stack.pop()
            if not stack.pop()[2]:  # torch quotes what is called, however long that may become
                raise CheckpointRefused("damaged, or it calls what is no function")
            stack.append(_ATOM)
        elif name == "BINPERSID":
            stack[-1] = _ATOM


def _tuple(items: Iterable[_Value]) -> _Value:
    count, depth = 1, 0
    for item in items:
        count += item[0]
        depth = max(depth, item[1])
    if count > _MAX_TUPLE or depth >= _MAX_DEPTH:
        raise CheckpointRefused("damaged, or it holds tuples of tuples without end")
    return count, depth + 1, False


def _check_name(name: str) -> None:
    """Refuse globals, given as "module name", that torch cannot deal with."""
    if len(name) > _MAX_NAME:
        raise CheckpointRefused(
            f"damaged, or it names a Python object in over {_MAX_NAME} letters; nothing in it was run"
        )
    if name.endswith(" bytearray"):  # of any length, filled at once
        raise CheckpointRefused("it holds Python objects (bytearray) besides tensors")


def _check_sizes(loaded: object, file_bytes: int) -> None:
    """Refuse tensors that are larger than the file they are from."""
    import torch

    todo, seen, total, storages = [loaded], set[int](), 0, dict[int, int]()
    while todo:
        value = todo.pop()
        if id(value) in seen:
            continue
        if isinstance(value, torch.Tensor):
            total += value.numel() * value.element_size()
            if value.layout == torch.strided and not value.is_meta:
                storage = value.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
        elif isinstance(value, (Mapping, list, tuple, set)):
            seen.add(id(value))
            todo.extend(value)
            if isinstance(value, Mapping):
                todo.extend(value.values())
    most = file_bytes + _SLACK_BYTES
    if sum(storages.values()) > most or total > _MAX_SHARING * most:
        raise CheckpointRefused(
            f"its tensors claim {max(total, sum(storages.values())):,} bytes, the file has {file_bytes:,}"
        )
