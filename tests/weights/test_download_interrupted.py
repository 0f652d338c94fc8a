"""Downloads that are killed, raced, or meet a disk that is full or cannot be written."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import faulty_server as faults
import pytest
from faulty_server import FaultyServer
from fetch_tools import CONTENT, HALF, NAME, QUICK, child, note, nothing_left, record

from proxylessnas.errors import WeightsFetchError
from proxylessnas.utils.files import LockTimeout, locked
from proxylessnas.weights.download import Policy, download


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    with faults.faulty_server({NAME: CONTENT}) as running:
        yield running


def test_killed_download_is_resumed(server: FaultyServer, tmp_path: Path) -> None:
    weights = record(server.plan(NAME, faults.part(HALF, then=faults.hang), faults.good))
    dest, part = tmp_path / "w.pth", tmp_path / "w.pth.part"
    process = child(weights, dest)
    server.wait_until(lambda: bool(server.seen) and server.seen[0].sent == HALF)
    server.wait_until(lambda: part.exists() and part.stat().st_size > 0)
    process.send_signal(signal.SIGKILL)
    assert process.wait(300) == -signal.SIGKILL
    process.communicate()
    assert not dest.exists()
    left = part.stat().st_size
    assert 0 < left <= HALF

    download(weights, dest, policy=QUICK)
    assert dest.read_bytes() == CONTENT
    assert server.seen[1].headers["range"] == f"bytes={left}-"
    assert nothing_left(tmp_path, "w.pth")
    note("kill -9 in the middle", "no file under the final name; the next call resumes, its lock is free")


def test_many_threads_one_request(server: FaultyServer, tmp_path: Path) -> None:
    weights, dest = record(server.plan(NAME, faults.good)), tmp_path / "w.pth"
    threads = [threading.Thread(target=download, args=(weights, dest)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.seen) == 1
    assert nothing_left(tmp_path, "w.pth")


def test_lock_excludes_and_cleans_up(tmp_path: Path) -> None:
    """Removing the lock's file must never let two holders in at once."""
    path, inside, most, rounds = tmp_path / "a.lock", 0, 0, 0
    guard = threading.Lock()

    def work() -> None:
        nonlocal inside, most, rounds
        for _ in range(20):
            with locked(path, 300):
                with guard:
                    inside += 1
                    most = max(most, inside)
                time.sleep(0.001)
                with guard:
                    inside -= 1
                    rounds += 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, rounds) == (1, 120)
    assert nothing_left(tmp_path)


def test_lock_that_is_held_too_long(server: FaultyServer, tmp_path: Path) -> None:
    with locked(tmp_path / "w.pth.lock", 1):
        with pytest.raises(LockTimeout), locked(tmp_path / "w.pth.lock", 0):
            pass
        with pytest.raises(WeightsFetchError, match="stuck"):
            download(record(server.url), tmp_path / "w.pth", policy=Policy(lock_wait_s=0.2))


def test_file_size_limit_as_full_disk(server: FaultyServer, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    weights, dest = record(server.plan(NAME, faults.good)), tmp_path / "w.pth"
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({HALF}, {resource.RLIM_INFINITY}))"
    process = child(weights, dest, limit)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 1
    assert said.startswith("WeightsFetchError: cannot write")
    for part in (str(dest), "too large", "PROXYLESSNAS_CACHE"):
        assert part in said
    assert nothing_left(tmp_path)
    note(
        "file size limit", f"`{said.partition(': ')[2][:14]}...: File too large`; the partial file is removed"
    )


def test_really_full_disk(server: FaultyServer, small_disk: Path) -> None:
    weights, dest = record(server.plan(NAME, faults.good)), small_disk / "w.pth"
    with pytest.raises(WeightsFetchError, match=r"No space left on device.*PROXYLESSNAS_CACHE"):
        download(weights, dest, policy=QUICK)
    assert nothing_left(small_disk)
    note(
        "full disk",
        "`cannot write ...: No space left on device`; the partial file is removed, ways out named",
    )


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a real file system of 64 KiB, where this user may."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = sys.platform == "linux" and not subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True, check=False
    ).returncode  # fmt: skip
    if not mounted:
        pytest.skip("only root can mount a small disk; the file size limit is tested instead")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_folder_that_cannot_be_made(tmp_path: Path, server: FaultyServer) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(WeightsFetchError, match="PROXYLESSNAS_CACHE, or TORCH_HOME"):
        download(record(server.url), tmp_path / "file" / "sub" / "w.pth", policy=QUICK)
    assert not server.seen
    note(
        "cache path goes through a file", "error naming PROXYLESSNAS_CACHE and TORCH_HOME, before any request"
    )
