"""The cache offline, on a read-only disk, under many processes, and with the real files."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import faulty_server as faults
import pytest
import torch
from cache_fixtures import CONTENT, same
from faulty_server import FaultyServer
from fetch_tools import as_json, note, nothing_left

from proxylessnas.errors import OfflineError, WeightsCorruptError, WeightsFetchError
from proxylessnas.weights.cache import cached_state_dict, fetch, weights_path
from proxylessnas.weights.record import Weights
from proxylessnas.weights.registry import get_weights

# --- offline and read-only -----------------------------------------------------------------------------


def test_offline(
    weights: Weights, cache: Path, server: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROXYLESSNAS_OFFLINE", "1")
    for load in (fetch, cached_state_dict):
        with pytest.raises(OfflineError) as caught:
            load(weights)
        for part in (weights.sources[0], weights.sha256, str(weights_path(weights))):
            assert str(part) in str(caught.value)
    assert not server.seen
    assert not cache.exists()
    cache.mkdir()
    weights_path(weights).write_bytes(CONTENT)  # as the message says
    assert same(cached_state_dict(weights))
    assert not server.seen
    note("PROXYLESSNAS_OFFLINE=1, cached", "loads")


@pytest.fixture
def read_only(cache: Path) -> Iterator[Path]:
    """Return a cache folder on a file system that is made read-only by ``touch``-ing nothing more to it.

    Permission bits do not bind root, so for root a real read-only mount is used.
    """
    cache.mkdir()
    if os.geteuid() != 0:
        yield cache
        cache.chmod(0o755)
        return
    made = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(cache)], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("root here may not mount a read-only file system")
    try:
        yield cache
    finally:
        subprocess.run(["umount", "-l", str(cache)], check=True)


def seal(folder: Path) -> None:
    if os.geteuid() != 0:
        folder.chmod(0o555)
    else:
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    with pytest.raises(OSError, match="probe"):
        (folder / "probe").touch()


def test_read_only_cache_that_has_the_file(weights: Weights, read_only: Path, server: FaultyServer) -> None:
    (read_only / weights_path(weights).name).write_bytes(CONTENT)
    seal(read_only)
    assert same(cached_state_dict(weights))
    assert fetch(weights) == weights.verify() == weights_path(weights)
    assert nothing_left(read_only, weights_path(weights).name)
    assert not server.seen
    note("read-only cache with the file", "loads, every time from the verified .pth")


def test_read_only_cache_that_has_the_copy(weights: Weights, read_only: Path, server: FaultyServer) -> None:
    cached_state_dict(weights)
    seal(read_only)
    assert same(cached_state_dict(weights))
    assert len(server.seen) == 1


def test_read_only_cache_without_the_file(weights: Weights, read_only: Path, server: FaultyServer) -> None:
    seal(read_only)
    with pytest.raises(WeightsFetchError) as caught:
        cached_state_dict(weights)
    for part in (str(weights_path(weights)), "PROXYLESSNAS_CACHE", "TORCH_HOME"):
        assert part in str(caught.value)
    assert not server.seen
    note("read-only cache without the file", f"`...{str(caught.value).partition(': ')[2]}`")


def test_read_only_cache_with_a_damaged_file(weights: Weights, read_only: Path) -> None:
    (read_only / weights_path(weights).name).write_bytes(CONTENT[:-1] + bytes([CONTENT[-1] ^ 1]))
    seal(read_only)
    with pytest.raises(WeightsCorruptError, match="not used and cannot be removed"):
        cached_state_dict(weights)
    note("read-only cache with a damaged file", "WeightsCorruptError with both digests")


# --- many processes ------------------------------------------------------------------------------------

# One process imports torch, then becomes eight: quick, and they start at the same moment.
EIGHT = """
import hashlib, json, os, sys, time
import torch
from proxylessnas.weights.cache import (cached_state_dict)
from proxylessnas.weights.record import Weights
weights = Weights(**json.loads(sys.argv[1]))
start = time.time() + 0.3
children = []
for i in range(8):
    pid = os.fork()
    if pid == 0:
        time.sleep(max(0, start - time.time()))
        state = cached_state_dict(weights)
        digest = hashlib.sha256()
        for name, value in state.items():
            digest.update(name.encode() + value.numpy().tobytes())
        os.write(1, (digest.hexdigest() + "\\n").encode())
        os._exit(0)
    children.append(pid)
sys.exit(any(os.waitpid(pid, 0)[1] for pid in children))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_eight_processes_one_request(weights: Weights, cache: Path, server: FaultyServer) -> None:
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", EIGHT, as_json(weights)],
        cwd=root, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    digests = done.stdout.split()
    assert len(digests) == 8
    assert len(set(digests)) == 1
    assert [(seen.status, seen.sent) for seen in server.seen] == [(200, len(CONTENT))]
    assert sorted(path.suffix for path in cache.iterdir()) == [".pth", ".safetensors", ".sha256"]
    note("8 processes, empty cache", "1 complete GET, 8 equal state dicts, no lock or part left")


# --- the real files ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["proxyless_w025_r112", "proxyless_w03_r176"])
def test_the_real_files(name: str, shared_data: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = get_weights(name)
    content = (shared_data / "weights" / weights.filename).read_bytes()
    with faults.faulty_server({weights.filename: content}) as server:
        monkeypatch.setenv("PROXYLESSNAS_WEIGHTS_URL", server.url)
        first = weights.state_dict()
        second = weights.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    trained = [key for key in first if not re.search(r"running_|num_batches", key)]
    assert sum(first[key].numel() for key in trained) == weights.params
    assert len(server.seen) == 1
