"""The cache: where it is, what it trusts (nothing), many processes at once, read-only disks."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import faulty_server as faults
import pytest
import torch
from faulty_server import FaultyServer
from fetch_tools import NAME, as_json, note, nothing_left, record

from proxylessnas.cache import (
    cache_dir,
    cached_state_dict,
    copy_path,
    fetch,
    read_metadata,
    safe_load,
    verified_loader,
    verify,
    weights_path,
)
from proxylessnas.errors import OfflineError, WeightsCorruptError, WeightsFetchError, WeightsNotFoundError
from proxylessnas.weights import Weights, get_weights

STATE = {"a.weight": torch.randn(60, 50), "a.num_batches_tracked": torch.tensor(3), "b.bias": torch.randn(7)}


def checkpoint() -> bytes:
    file = io.BytesIO()
    torch.save({"state_dict": STATE}, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


CONTENT = checkpoint()


def same(state: dict[str, torch.Tensor]) -> bool:
    return list(state) == list(STATE) and all(torch.equal(state[name], STATE[name]) for name in STATE)


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


# --- where ---------------------------------------------------------------------------------------------


def test_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TORCH_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "torch" / "hub" / "proxylessnas"
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    assert cache_dir() == tmp_path / "torch" / "hub" / "proxylessnas"
    torch.hub.set_dir(tmp_path / "set")
    assert cache_dir() == tmp_path / "set" / "proxylessnas"
    monkeypatch.setenv("PROXYLESSNAS_CACHE", "~/here")
    assert cache_dir() == Path.home() / "here"
    monkeypatch.setenv("PROXYLESSNAS_CACHE", "relative")
    assert cache_dir() == tmp_path / "relative"
    assert nothing_left(tmp_path)


def test_without_a_home_nothing_is_written_to_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROXYLESSNAS_CACHE", "~nobody-of-this-name/cache")
    with pytest.raises(WeightsFetchError, match="PROXYLESSNAS_CACHE or TORCH_HOME"):
        cache_dir()


def test_first_load_leaves_the_file_a_copy_and_its_digest(
    weights: Weights, cache: Path, server: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    package = Path(__file__).resolve().parent.parent / "proxylessnas"
    before = sorted(package.rglob("*.pth*")) + sorted(package.rglob("*.safetensors*"))
    assert same(cached_state_dict(weights))
    stem = f"proxyless_w025_r112-{str(weights.sha256)[:8]}"
    assert nothing_left(cache, f"{stem}.pth", f"{stem}.safetensors", f"{stem}.safetensors.sha256")
    copy = cache / f"{stem}.safetensors"
    assert copy == copy_path(weights)
    line = f"{hashlib.sha256(copy.read_bytes()).hexdigest()}  {copy.name}\n"
    assert copy.with_name(copy.name + ".sha256").read_text() == line
    assert nothing_left(tmp_path / "cwd")
    assert before == sorted(package.rglob("*.pth*")) + sorted(package.rglob("*.safetensors*"))

    weights_path(weights).unlink()
    assert same(cached_state_dict(weights))  # the copy is enough
    assert len(server.seen) == 1


def test_the_copy_stands_on_its_own(weights: Weights, cache: Path) -> None:
    import proxylessnas

    cached_state_dict(weights)
    assert same(safe_load(copy_path(weights))[0])
    metadata = read_metadata(copy_path(weights))
    assert metadata["weights"] == weights.name
    assert str(weights.sha256) in metadata["source"]
    assert proxylessnas.Arch.parse(metadata["arch"]) == proxylessnas.create_model(weights.arch).arch


def test_fetch_into_a_folder_seeds_another_machine(
    weights: Weights, server: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = fetch(weights, directory=tmp_path / "stick")
    assert path.read_bytes() == CONTENT
    monkeypatch.setenv("PROXYLESSNAS_CACHE", str(tmp_path / "stick"))
    monkeypatch.setenv("PROXYLESSNAS_OFFLINE", "1")
    assert same(weights.state_dict())
    assert weights.fetch() == path
    assert len(server.seen) == 1


def test_tensors_can_be_trained(weights: Weights, cache: Path) -> None:
    for _ in range(2):  # from the file, then from the copy
        state = cached_state_dict(weights)
        weight = torch.nn.Parameter(state["a.weight"])
        (weight * 2).sum().backward()
        with torch.no_grad():
            weight.sub_(weight.grad if weight.grad is not None else 0)
        assert same(cached_state_dict(weights))  # nobody else sees it


@pytest.mark.parametrize("missing", ["requests", "safetensors", "tqdm", "numpy"])
def test_torch_alone_is_enough(
    missing: str, weights: Weights, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    assert same(cached_state_dict(weights))
    assert same(cached_state_dict(weights))
    assert copy_path(weights).is_file()


# --- what it trusts ------------------------------------------------------------------------------------


def test_flipped_bit_in_the_file_is_fetched_again(
    weights: Weights, cache: Path, server: FaultyServer, caplog: pytest.LogCaptureFixture
) -> None:
    path = fetch(weights)
    flip(path)
    with pytest.raises(WeightsCorruptError, match=r"sha256 is [0-9a-f]{64}, expected " + str(weights.sha256)):
        weights.verify()
    with caplog.at_level(logging.WARNING, "proxylessnas"):
        assert same(cached_state_dict(weights))
    assert "fetching it again" in caplog.text
    assert len(server.seen) == 2
    assert weights.verify() == path
    note("one bit flipped in the cached .pth", "refused, fetched again (a warning says so)")


def test_flipped_bit_offline_is_refused(
    weights: Weights, cache: Path, server: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = fetch(weights)
    flip(path)
    spoiled = path.read_bytes()
    monkeypatch.setenv("PROXYLESSNAS_OFFLINE", "1")
    for load in (fetch, cached_state_dict):
        with pytest.raises(WeightsCorruptError, match="PROXYLESSNAS_OFFLINE") as caught:
            load(weights)
        assert str(weights.sha256) in str(caught.value)
    assert path.read_bytes() == spoiled
    assert len(server.seen) == 1
    note(
        "one bit flipped in the cached .pth, offline", "WeightsCorruptError with both digests; left as it is"
    )


@pytest.mark.parametrize(
    "damage",
    ["first bit", "last bit", "cut short", "emptied", "no digest", "other digest", "odd digest", "folder"],
)
def test_damaged_copy_is_made_again(
    damage: str, weights: Weights, cache: Path, server: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached_state_dict(weights)
    copy, digest = copy_path(weights), copy_path(weights).with_name(copy_path(weights).name + ".sha256")
    good = copy.read_bytes()
    if damage.endswith("bit"):
        flip(copy, 0 if damage == "first bit" else -1)
    elif damage == "cut short":
        os.truncate(copy, len(good) - 1)
    elif damage == "emptied":
        os.truncate(copy, 0)
    elif damage == "folder":
        copy.unlink()
        copy.mkdir()
    elif damage == "no digest":
        digest.unlink()
    else:
        digest.write_bytes(b"0" * 64 if damage == "other digest" else b"\xff\0")
    monkeypatch.setenv("PROXYLESSNAS_OFFLINE", "1")  # the .pth is still there
    assert same(cached_state_dict(weights))
    if damage != "folder":
        assert copy.read_bytes() == good
        assert digest.read_text().startswith(hashlib.sha256(good).hexdigest())
        note(f"safetensors copy: {damage}", "not used, made again from the verified .pth")
    assert len(server.seen) == 1


def test_copy_of_other_weights_is_not_used(weights: Weights, cache: Path) -> None:
    """Eight digits of a digest in a file name prove nothing; the full one inside is compared."""
    from proxylessnas.cache import write_safetensors

    cached_state_dict(weights)
    copy = copy_path(weights)
    digest = write_safetensors({"a": torch.zeros(1)}, copy, {"source": "sha256 " + "0" * 64})
    copy.with_name(copy.name + ".sha256").write_text(digest)
    assert same(cached_state_dict(weights))


def test_damaged_copy_without_the_file(weights: Weights, cache: Path, server: FaultyServer) -> None:
    cached_state_dict(weights)
    weights_path(weights).unlink()
    flip(copy_path(weights))
    with pytest.raises(WeightsCorruptError, match="safetensors: sha256 is"):
        verify(weights)
    assert same(cached_state_dict(weights))
    assert len(server.seen) == 2


def test_a_file_changed_while_it_loads_does_no_harm(weights: Weights, cache: Path) -> None:
    """What was hashed is what is loaded: the bytes are read once, and never mapped."""
    cached_state_dict(weights)
    for _ in range(5):
        loader = verified_loader(weights)
        time.sleep(0.05)  # by now it has been read
        good = copy_path(weights).read_bytes()
        with copy_path(weights).open("r+b") as file:
            file.write(bytes(len(good)))
        assert same(loader.result())
        assert loader.result() is loader.result()
        copy_path(weights).write_bytes(good)


def test_verify_names_the_file(weights: Weights, cache: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsNotFoundError, match=re.escape(str(weights_path(weights)))):
        weights.verify()
    cached_state_dict(weights)
    assert weights.verify() == weights_path(weights)
    mine = tmp_path / "mine.pth"
    mine.write_bytes(CONTENT)
    assert weights.verify(mine) == weights.verify(str(mine)) == mine
    mine.write_bytes(CONTENT[:-1])
    with pytest.raises(
        WeightsCorruptError, match=re.escape(f"{mine}: {len(CONTENT) - 1:,} bytes instead of")
    ):
        weights.verify(mine)
    with pytest.raises(WeightsCorruptError, match="directory"):
        weights.verify(tmp_path)
    weights_path(weights).unlink()
    assert weights.verify() == copy_path(weights)
    flip(copy_path(weights))
    with pytest.raises(WeightsCorruptError, match="safetensors"):
        weights.verify()


def test_right_digest_but_no_checkpoint(server: FaultyServer, cache: Path) -> None:
    page = b"not a checkpoint"
    server.files[NAME] = page
    with pytest.raises(WeightsCorruptError, match="not a weights file"):
        cached_state_dict(record(f"{server.url}/{NAME}", content=page))


# --- offline and read-only -----------------------------------------------------------------------------


def test_offline(
    weights: Weights, cache: Path, server: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROXYLESSNAS_OFFLINE", "1")
    for load in (fetch, cached_state_dict):
        start = time.monotonic()
        with pytest.raises(OfflineError) as caught:
            load(weights)
        assert time.monotonic() - start < 1
        for part in (weights.sources[0], weights.sha256, str(weights_path(weights))):
            assert str(part) in str(caught.value)
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
    (read_only / weights_path(weights).name).write_bytes(CONTENT[:-1] + b"?")
    seal(read_only)
    with pytest.raises(WeightsCorruptError, match="not used and cannot be removed"):
        cached_state_dict(weights)
    note("read-only cache with a damaged file", "WeightsCorruptError with both digests")


# --- many processes ------------------------------------------------------------------------------------

# One process imports torch, then becomes eight: quick, and they start at the same moment.
EIGHT = """
import hashlib, json, os, sys, time
import torch
from proxylessnas.cache import cached_state_dict
from proxylessnas.weights import Weights
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
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(
        [sys.executable, "-c", EIGHT, as_json(weights)],
        cwd=root, capture_output=True, text=True, timeout=60, check=False,
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
    assert list(first) == list(second)
    assert all(torch.equal(first[key], second[key]) for key in first)
    trained = [key for key in first if not re.search(r"running_|num_batches", key)]
    assert sum(first[key].numel() for key in trained) == weights.params
    assert len(server.seen) == 1
