"""Files that a user names: what is no file is refused at once, and text is read as any editor writes it."""

from __future__ import annotations

import codecs
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from proxylessnas import Arch, create_model, get_weights
from proxylessnas.arch.spaces import read_space
from proxylessnas.data.images import load_image
from proxylessnas.data.named import read_idx
from proxylessnas.errors import DataError, ProxylessError
from proxylessnas.latency import ImportSettings, LatencyTable, import_table
from proxylessnas.train import read_recipe
from proxylessnas.train.checkpoint import load as load_checkpoint
from proxylessnas.utils.files import open_file, read_bytes, read_text
from proxylessnas.utils.tensor_files import read_metadata, safe_load
from proxylessnas.weights.cache import weights_path

MODEL = 'Arch("mine", stem=16, first=8, last=64, num_classes=3, stages=(\n    Stage(24, 2, "k5e3"),\n))\n'
READERS: dict[str, Callable[[Path], Any]] = {
    "a.txt": create_model,
    "net.config": Arch.from_official,
    "a.safetensors": create_model,
    "a.pth": safe_load,
    "b.safetensors": read_metadata,
    "last.pt": load_checkpoint,
    "recipe.toml": read_recipe,
    "space.toml": read_space,
    "table.json": LatencyTable.load,
    "table.csv": lambda path: import_table(path, ImportSettings(unit="ms", device_name="x")),
    "image.png": load_image,
    "train-images-idx3-ubyte": read_idx,
}
posix = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs POSIX")


@posix
@pytest.mark.parametrize("name", READERS)
def test_a_named_pipe_is_refused_by_every_reader(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(ProxylessError, match="a named pipe, not a regular file"):
        READERS[name](tmp_path / name)  # would wait for ever


@posix
def test_a_named_pipe_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROXYLESSNAS_CACHE", str(tmp_path))
    monkeypatch.setenv("PROXYLESSNAS_OFFLINE", "1")
    weights = get_weights("proxyless_w025_r112")
    os.mkfifo(weights_path(weights))
    with pytest.raises(ProxylessError, match="a named pipe, not a regular file"):
        weights.verify()
    with pytest.raises(ProxylessError, match="a named pipe, not a regular file"):
        create_model("proxyless_w025_r112", pretrained=True)


@posix
def test_devices_sockets_and_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the name of a socket must be short
    with pytest.raises(OSError, match="a device, not a regular file"):
        open_file("/dev/zero")
    with socket.socket(socket.AF_UNIX) as here:
        here.bind("s")
        with pytest.raises(OSError, match="a socket, not a regular file"):
            open_file("s")
    with pytest.raises(IsADirectoryError):
        open_file(tmp_path)
    with pytest.raises(OSError, match="null"):
        open_file("a\0b")


def test_sizes(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"12345")
    assert read_bytes(tmp_path / "x") == read_bytes(tmp_path / "x", 5) == b"12345"
    with pytest.raises(OSError, match="larger than 4 bytes"):
        read_bytes(tmp_path / "x", 4)
    with pytest.raises(DataError, match=r"x: cannot be read as a list \(larger than 4 bytes\)"):
        read_text(tmp_path / "x", "a list", DataError, 4)


@pytest.mark.skipif(not os.path.isdir("/dev/fd"), reason="no pipes by name here")
def test_a_pipe_that_the_caller_hands_over() -> None:
    here, there = os.pipe()
    os.write(there, b"text")
    os.close(there)
    assert read_bytes(f"/dev/fd/{here}", 10) == b"text"
    os.close(here)


@pytest.mark.parametrize(
    ("bom", "encoding"),
    [
        (b"", "utf-8"),
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
    ],
)
def test_text_as_windows_writes_it(bom: bytes, encoding: str, tmp_path: Path) -> None:
    def put(name: str, text: str) -> Path:
        (tmp_path / name).write_bytes(bom + text.replace("\n", "\r\n").encode(encoding))
        return tmp_path / name

    assert read_recipe(put("r.toml", "epochs = 7\n")).epochs == 7
    assert create_model(put("a.txt", MODEL)).arch == Arch.parse(MODEL)
    config = put("net.config", json.dumps(Arch.parse(MODEL).to_official()))
    assert Arch.from_official(config).num_classes == 3
    table = put("t.csv", "key,ms\nk3e6 in=24x56x56 out=40 stride=2,1.5\n")
    assert [e.ms for e in import_table(table, ImportSettings(device_name="x")).entries.values()] == [1.5]
    space = read_space("tiny")
    assert read_space(put("s.toml", space.to_toml())) == space
