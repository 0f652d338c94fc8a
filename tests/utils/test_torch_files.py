"""Checkpoints that would take unbounded time or memory are refused before torch reads them."""

from __future__ import annotations

import ast
import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from proxylessnas.errors import CheckpointError, WeightsCorruptError
from proxylessnas.train import checkpoint
from proxylessnas.utils.tensor_files import safe_load
from proxylessnas.utils.torch_files import CheckpointRefused, load

PACKAGE = Path(checkpoint.__file__).resolve().parent.parent


def saved(value: object, *, old: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=not old)
    return buffer.getvalue()


def with_pickle(content: bytes, *, old: bool) -> bytes:
    """Return a checkpoint of either format whose pickle is this one."""
    if old:
        return b"".join(pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001, {})) + content
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/DATA.pkl" if len(content) % 2 else "archive/data.pkl", content)
        archive.writestr("archive/version", "3\n")
    return buffer.getvalue()


def doubled(times: int) -> bytes:
    """Return instructions for a tuple of two tuples of two tuples ..., all of them one object."""
    return b")" + b"".join(b"q\x00h\x00h\x00\x86" for _ in range(times))


@pytest.mark.parametrize("old", [False, True], ids=["zip", "old format"])
@pytest.mark.parametrize(
    "value",
    [
        {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(True)},
        OrderedDict(a=torch.ones(3, dtype=torch.bfloat16), b=torch.nn.Parameter(torch.zeros(2))),
        {"epoch": 3, "best": 0.5, "none": None, "list": [1, (2, "x", ()), {3: 2**80}], "set": {1}},
        {"shared": [torch.zeros(1000)] * 8, "size": torch.Size([2, 3]), "dtype": torch.float16},
        {f"layer{i}.weight": torch.full((2,), float(i)) for i in range(400)},
    ],
)
def test_what_torch_saves_is_read(value: object, old: bool) -> None:
    found = load(saved(value, old=old))
    assert saved(found) == saved(value)


def test_without_check_sums() -> None:
    data = bytearray(saved({"a": torch.ones(3)}))
    with zipfile.ZipFile(io.BytesIO(bytes(data))) as archive:
        directory = archive.start_dir
    data[directory + 16 : directory + 20] = bytes(4)  # that of data.pkl
    assert load(bytes(data))["a"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("old", [False, True], ids=["zip", "old format"])
@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"\x80\x02ctorch\n" + b"9" * 500 + b"\n.", "names a Python object in over 200"),
        (b"\x80\x02c" + b"9" * 100_000 + b"\nx\n.", "names a Python object in over 200"),
        (b"\x80\x02X" + struct.pack("<I", 5000) + b"9" * 5000 + b")R.", "calls what is no function"),
        (b"\x80\x02X" + struct.pack("<I", 5000) + b"9" * 5000 + b")\x81.", "calls what is no function"),
        (b"\x80\x02" + doubled(40) + b".", "tuples of tuples"),
        (b"\x80\x02)" + b"\x85" * 100 + b".", "tuples of tuples"),
        (b"\x80\x02c__builtin__\nbytearray\nJ\xff\xff\xff\x7f\x85R.", r"Python objects \(bytearray\)"),
        (b"\x80\x02(lp0\n.", "pickle instruction 108"),
        (b"\x80\x02X\xff\xff\xff\xff", "not complete"),
        (b"\x80\x02h\x07.", "not complete"),
        (b"\x80\x02t.", "not complete"),
    ],
)
def test_pickles_that_are_refused(
    content: bytes, why: str, old: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = with_pickle(content, old=old)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch must not see it"))
    with pytest.raises(CheckpointRefused, match=why):
        load(data)
    (tmp_path / "x.pth").write_bytes(data)
    with pytest.raises(WeightsCorruptError, match=rf"x\.pth: .*{why}"):
        safe_load(tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=rf"x\.pth: .*{why}"):
        checkpoint.load(tmp_path / "x.pth")


def test_too_many_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxylessnas.utils.torch_files._MAX_OPCODES", 50)
    assert load(saved(1)) == 1
    with pytest.raises(CheckpointRefused, match="over 50 instructions"):
        load(saved(list(range(100))))


def test_forbidden_objects_are_named_as_before(tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_bytes(with_pickle(b"\x80\x02cposix\nsystem\n.", old=False))
    with pytest.raises(WeightsCorruptError, match=r"Python objects \(posix\.system\) besides tensors"):
        safe_load(tmp_path / "x.pth")


def test_a_compressed_checkpoint(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(saved({"a": torch.zeros(1 << 20)}))) as source,
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for info in source.infolist():
            packed.writestr(info.filename, source.read(info))
    (tmp_path / "last.pt").write_bytes(buffer.getvalue())  # 4 MB in a few KB
    with pytest.raises(WeightsCorruptError, match="a compressed archive"):
        safe_load(tmp_path / "last.pt")
    with pytest.raises(CheckpointError, match="a compressed archive"):
        checkpoint.load(tmp_path / "last.pt")


def with_another_directory() -> bytes:
    """Return an archive in which Python's reader finds one pickle, and torch's another one."""

    def archive(content: bytes) -> bytes:
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as files:
            files.writestr("a/data.pkl", content)
            files.writestr("a/byteorder", "little")
            files.writestr("a/version", "3")
        return out.getvalue()

    hidden, seen = archive(b"\x80\x02ctorch\n" + b"9" * 20_000 + b"\n."), archive(b"\x80\x02}.")
    end = hidden.rindex(b"PK\5\6")
    size, offset = struct.unpack_from("<II", hidden, end + 12)
    data = bytearray(hidden[:end] + seen[:-22] + seen[-22:])
    struct.pack_into("<I", data, len(data) - 6, offset)  # of the hidden one's directory
    shift = len(data) - 22 - size - offset  # by which Python's reader corrects every place
    at = len(data) - 22 - size
    while at < len(data) - 22:
        place = struct.unpack_from("<I", data, at + 42)[0] + end - shift
        struct.pack_into("<i", data, at + 42, place)
        at += 46 + sum(struct.unpack_from("<HHH", data, at + 28))
    return bytes(data)


def test_an_archive_with_two_directories_is_refused() -> None:
    data = with_another_directory()
    with zipfile.ZipFile(io.BytesIO(data)) as files:  # what a scan by Python's reader alone would see
        assert files.read("a/data.pkl") == b"\x80\x02}."
    with pytest.raises(CheckpointRefused, match=r"torch\.save did not write"):
        load(data)


@pytest.mark.parametrize("more", [b"\0", b"PK\5\6" + bytes(18)])
def test_nothing_may_follow_an_archive(more: bytes) -> None:
    with pytest.raises(CheckpointRefused):
        load(saved({"x": torch.zeros(2)}) + more)


@pytest.mark.parametrize("old", [False, True], ids=["zip", "old format"])
def test_tensors_larger_than_the_file(old: bool) -> None:
    with pytest.raises(CheckpointRefused, match="claim 4,000,000,000,000 bytes"):
        load(saved({"a": torch.zeros(1).expand(10**6, 10**6)}, old=old))
    with pytest.raises(CheckpointRefused, match="claim"):
        load(saved([{"a": [torch.zeros(1000).expand(1000, 1000)[i:] for i in range(20)]}], old=old))
    assert load(saved(torch.zeros(1).expand(100, 100), old=old)).shape == (100, 100)  # no harm in it


def test_nothing_else_reads_checkpoints() -> None:
    found = [
        path.name
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"
    ]
    assert found == ["torch_files.py"]
