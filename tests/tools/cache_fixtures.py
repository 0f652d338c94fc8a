"""A small checkpoint, a server that has it, and a cache: what the tests of the cache share."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import faulty_server as faults
import pytest
import torch
from faulty_server import FaultyServer
from fetch_tools import NAME, record

from proxylessnas.weights.record import Weights

STATE = {
    "a.weight": torch.arange(3000.0).view(60, 50),
    "a.num_batches_tracked": torch.tensor(3),
    "b.bias": torch.ones(7),
}


def checkpoint() -> bytes:
    file = io.BytesIO()
    torch.save({"state_dict": STATE}, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


CONTENT = checkpoint()


def same(state: dict[str, torch.Tensor]) -> bool:
    return state.keys() == STATE.keys() and all(torch.equal(state[name], STATE[name]) for name in STATE)


def flip(path: Path, at: int = -5) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    with faults.faulty_server({NAME: CONTENT}) as running:
        yield running


@pytest.fixture
def weights(server: FaultyServer) -> Weights:
    return record(f"{server.url}/{NAME}", content=CONTENT)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PROXYLESSNAS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PROXYLESSNAS_RETRIES", "0")
    return tmp_path / "cache"
