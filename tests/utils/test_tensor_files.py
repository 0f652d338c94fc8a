"""Files of tensors: what is written is read back, what is damaged or hostile is refused and never run."""

from __future__ import annotations

import ast
import hashlib
import io
import json
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from proxylessnas.errors import WeightsCorruptError, WeightsNotFoundError
from proxylessnas.utils.tensor_files import (
    from_safetensors,
    read_metadata,
    safe_load,
    tensors_from_bytes,
    to_safetensors,
    write_safetensors,
)

STATE: dict[str, Tensor] = {
    "stem.weight": torch.randn(8, 3, 3, 3),
    "bn.num_batches_tracked": torch.tensor(7),
    "head.bias": torch.randn(5),
    "none": torch.empty(0, 4),
    "half": torch.randn(3).half(),
    "brain": torch.randn(3).bfloat16(),
    "flags": torch.tensor([True, False, True]),
    "bytes": torch.arange(5, dtype=torch.uint8),
    "double": torch.randn(2).double(),
    "transposed": torch.randn(4, 6).t(),
}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype and torch.equal(first[name], second[name]) for name in first
    )


def packed(state: dict[str, Tensor] = STATE, metadata: dict[str, str] | None = None) -> bytes:
    return to_safetensors(state, metadata)


def saved(value: object, *, old: bool = False) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, _use_new_zipfile_serialization=not old)
    return file.getvalue()


# --- safetensors ---------------------------------------------------------------------------------------


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    digest = write_safetensors(STATE, path, {"arch": "a model", "note": "é"})
    state, metadata = safe_load(path)
    assert same(state, STATE)
    assert metadata == read_metadata(path) == {"arch": "a model", "note": "é"}
    assert hashlib.sha256(path.read_bytes()).hexdigest() == digest
    assert [file.name for file in tmp_path.iterdir()] == ["x.safetensors"]


def test_a_header_of_any_length_is_no_pickle() -> None:
    """The length comes first; its lowest byte may be the one that pickles begin with (0x80), or a "P"."""
    first = set()
    for n in range(600):
        data = to_safetensors({"a": torch.zeros(2)}, {"note": "x" * n})
        first.add(bytes(data)[0])
        tensors, metadata = tensors_from_bytes(bytes(data), "file")
        assert torch.equal(tensors["a"], torch.zeros(2))
        assert metadata["note"] == "x" * n
    assert {0x80, 0x50} <= first


def test_tensors_are_ordinary() -> None:
    """Each has memory of its own, so that one can be trained, saved or kept without the others."""
    state, _ = from_safetensors(packed(), "x")
    weight = nn.Parameter(state["stem.weight"])
    weight.sum().backward()
    with torch.no_grad():
        weight.add_(1)
    storages = {value.untyped_storage().data_ptr() for value in state.values() if value.numel()}
    assert len(storages) == sum(value.numel() > 0 for value in state.values())
    assert all(value.is_contiguous() and not value.requires_grad for value in state.values())
    assert state["head.bias"].untyped_storage().nbytes() == 20


def test_files_of_other_writers_need_not_be_aligned() -> None:
    values = torch.randn(6)
    header = json.dumps({"x": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}).encode()
    header += b" " * (3 - len(header) % 4)  # the numbers begin at an odd place
    data = struct.pack("<Q", len(header)) + header + values.numpy().tobytes()
    state, _ = from_safetensors(data, "x")
    assert torch.equal(state["x"], values.view(2, 3))


def with_header(header: Any, size: int = 4) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(size)


def entry(**changes: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **changes}


HOSTILE_HEADERS = [
    [],
    {},
    {"x": None},
    {"x": entry(dtype="F31")},
    {"x": entry(dtype=["F32"])},
    {"x": entry(shape=[2])},
    {"x": entry(shape=1)},
    {"x": entry(shape=[-1, -1])},
    {"x": entry(shape=[True])},
    {"x": entry(shape=[2**40, 2**40])},
    {"x": entry(shape=[1.0])},
    {"x": entry(data_offsets=[4, 8])},
    {"x": entry(data_offsets=[0])},
    {"x": entry(data_offsets=[4, 0])},
    {"x": entry(data_offsets=[-4, 0])},
    {"x": entry(), "y": entry()},
    {"x": entry(shape=[0], data_offsets=[0, 0])},
    {"x": entry(), "__metadata__": {"a": 1}},
    {"x": entry(), "__metadata__": []},
    {"x": entry(), "__metadata__": 3},
    b"{",
    b"{\xff}",
    b"{" * 1000,
    b'{"x":' * 5000,
]


@pytest.mark.parametrize("header", HOSTILE_HEADERS, ids=range(len(HOSTILE_HEADERS)))
def test_hostile_headers_are_refused(header: Any, tmp_path: Path) -> None:
    with pytest.raises(WeightsCorruptError, match=r"^x"):
        from_safetensors(with_header(header), "x")


def test_sizes_that_lie_are_refused() -> None:
    good = with_header({"x": entry()})
    assert torch.equal(from_safetensors(good, "x")[0]["x"], torch.zeros(1))
    for data in (good[:-1], good + b"x", good[:7], good[:20], struct.pack("<Q", 2**63) + good[8:]):
        with pytest.raises(WeightsCorruptError):
            from_safetensors(data, "x")


GOOD = [packed(), saved(STATE), saved(STATE, old=True)]


@given(st.data())
def test_damaged_files_never_raise_anything_else(draw: st.DataObject) -> None:
    data = bytearray(draw.draw(st.sampled_from(GOOD)))
    for _ in range(draw.draw(st.integers(0, 3))):
        data[draw.draw(st.integers(0, min(len(data), 2000) - 1))] = draw.draw(st.integers(0, 255))
    data = data[: draw.draw(st.sampled_from([len(data), len(data) // 2, 300, 10]))]
    try:
        state, metadata = tensors_from_bytes(bytes(data), "x")
    except WeightsCorruptError:
        return
    assert all(isinstance(value, Tensor) for value in state.values())
    assert isinstance(metadata, dict)


def test_unknown_dtypes_are_not_written() -> None:
    with pytest.raises(WeightsCorruptError, match="complex128"):
        to_safetensors({"x": torch.zeros(2, dtype=torch.complex128)})


def test_an_unwritable_folder_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "taken.safetensors").mkdir()
    with pytest.raises(OSError, match="taken"):
        write_safetensors(STATE, tmp_path / "taken.safetensors")
    assert [file.name for file in tmp_path.iterdir()] == ["taken.safetensors"]


# --- checkpoints ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("old", [False, True], ids=["zip", "old format"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state},
        lambda state: {"state_dict": OrderedDict(state), "epoch": 3, "best": 75.0},
        lambda state: {"model_state_dict": state, "optimizer": {"lr": 0.1}},
        lambda state: {"model": state},
        lambda state: {"state_dict": {f"module.{name}": value for name, value in state.items()}},
        lambda state: {f"_orig_mod.{name}": value for name, value in state.items()},
        lambda state: {name: nn.Parameter(value, value.is_floating_point()) for name, value in state.items()},
    ],
    ids=["plain", "wrapped", "training", "other key", "model", "parallel", "compiled", "parameters"],
)
def test_checkpoints_of_many_kinds(wrap: Any, old: bool, tmp_path: Path) -> None:
    (tmp_path / "x.anything").write_bytes(saved(wrap(STATE), old=old))
    state, metadata = safe_load(tmp_path / "x.anything")
    assert same(state, STATE)
    assert metadata == {}
    assert not any(value.requires_grad for value in state.values())


class Evil:
    """Unpickled without care, this makes a folder."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("kind", ["zip", "old format", "bare pickle", "protocol 0"])
def test_code_in_a_file_is_never_run(kind: str, tmp_path: Path) -> None:
    mark = tmp_path / "it was run"
    evil = {"state_dict": {"x": torch.zeros(2), "y": Evil(mark)}}
    if kind in ("zip", "old format"):
        data = bytes(saved(evil, old=kind == "old format"))
    else:
        data = pickle.dumps(Evil(mark), protocol=0 if kind == "protocol 0" else 2)
    path = tmp_path / "evil.pth"
    path.write_bytes(data)
    with pytest.raises(WeightsCorruptError, match=r"evil\.pth"):
        safe_load(path)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Evil(mark)))
    assert mark.exists()  # the trap works


def test_no_loader_in_the_package_may_run_code() -> None:
    package = Path(__file__).resolve().parents[2] / "proxylessnas"
    loads = 0
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            # A module to be measured goes to a process of the same user as a pickle, in a folder of its own.
            # An exported .pt file is a program, which whoever names it wants to be run.
            if (name, path.name) not in {("pickle.load", "modules.py"), ("torch.jit.load", "files.py")}:
                assert name not in ("pickle.load", "pickle.loads", "torch.jit.load", "eval", "exec"), path
            if isinstance(node, ast.Call) and name == "torch.load":
                assert "weights_only=True" in ast.unparse(node), path
                loads += 1
    assert loads >= 1


def compressed(data: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return out.getvalue()


def program() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py", "version"):
            archive.writestr(f"net/{name}", b"x")
    return out.getvalue()


ZEROS = {"x": torch.zeros(100_000)}
NOT_WEIGHTS = {
    "empty": (b"", "it is empty"),
    "web page": (b"\n<!DOCTYPE html><html></html>", "it is a web page"),
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    "text": (b"hello, world", "neither safetensors nor a torch checkpoint"),
    "short": (b"\x10", "neither"),
    "zip cut short": (bytes(saved(STATE)[:-100]), "truncated or damaged"),
    "old format cut short": (bytes(saved(STATE, old=True)[:-100]), "truncated or damaged"),
    "old format, only its head": (bytes(saved(STATE, old=True)[:50]), "truncated or damaged|damaged"),
    "safetensors cut short": (bytes(packed()[:-1]), "truncated"),
    "compressed archive": (compressed(saved(ZEROS)), "compressed"),
    "TorchScript": (program(), "TorchScript"),
    "other zip": (compressed(saved(ZEROS))[:4] + bytes(100), "truncated or damaged"),
    "a tensor": (bytes(saved(torch.zeros(3))), "no state dict"),
    "a list": (bytes(saved([torch.zeros(3)])), "no state dict"),
    "nothing": (bytes(saved({})), "no state dict"),
    "numbers": (bytes(saved({"lr": 0.1})), "'lr' is a float"),
    "unnamed": (bytes(saved({3: torch.zeros(3)})), "not a state dict"),
    "nested": (bytes(saved({"a": {"b": torch.zeros(3)}})), "'a' is a dict"),
    "a whole module": (bytes(saved(nn.Linear(2, 2))), "Python objects"),
}


@pytest.mark.parametrize("kind", NOT_WEIGHTS)
def test_what_is_no_weights_file(kind: str, tmp_path: Path) -> None:
    data, message = NOT_WEIGHTS[kind]
    path = tmp_path / "x.pth"
    path.write_bytes(data)
    with pytest.raises(WeightsCorruptError, match=message) as caught:
        safe_load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for load in (safe_load, read_metadata):
        for path in (tmp_path / "none.pth", tmp_path / "file" / "x.pth"):
            with pytest.raises(WeightsNotFoundError, match=path.name):
                load(path)
        with pytest.raises(WeightsCorruptError, match="directory"):
            load(tmp_path)


def test_metadata_of_other_files(tmp_path: Path) -> None:
    for data in (b"", b"PK\x03\x04", bytes(saved(STATE, old=True)), b"<html></html>"):
        (tmp_path / "x").write_bytes(data)
        with pytest.raises(WeightsCorruptError):
            read_metadata(tmp_path / "x")


@pytest.mark.parametrize("name", ["proxyless-w0.25-r112_imagenet.pth", "proxyless-w0.3-r176_imagenet.pth"])
def test_the_real_files_load(name: str, shared_data: Path) -> None:
    state, _ = safe_load(shared_data / "weights" / name)
    assert len(state) == 368
    assert "first_conv.conv.weight" in state


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs POSIX")
def test_devices_and_pipes_are_refused_at_once(tmp_path: Path) -> None:
    from proxylessnas.weights.registry import find_by_digest

    for path in (Path("/dev/zero"), tmp_path / "pipe"):
        if path.name == "pipe":
            os.mkfifo(path)
            assert find_by_digest(path) is None
            continue
        assert find_by_digest(path) is None
        with pytest.raises(WeightsCorruptError, match="regular file"):
            safe_load(path)


def test_the_same_tensors_and_metadata_are_the_same_bytes() -> None:
    state = {"b": torch.arange(3.0), "a": torch.ones(2, 2)}
    notes = {f"key{i}": "é" * i for i in range(20)}
    found = {to_safetensors(state, dict(sorted(notes.items(), reverse=i % 2 == 0))) for i in range(6)}
    (data,) = found
    tensors, metadata = from_safetensors(data, "x.safetensors")
    assert metadata == notes
    assert all(torch.equal(tensors[name], value) for name, value in state.items())
    assert struct.unpack("<Q", data[:8])[0] % 8 == 0
