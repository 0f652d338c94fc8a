"""The cache: where it is and what it trusts (nothing)."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import sys
from pathlib import Path

import pytest
import torch
from cache_fixtures import CONTENT, flip, same
from faulty_server import FaultyServer
from fetch_tools import NAME, note, nothing_left, record

from proxylessnas.errors import (
    MissingExtraError,
    WeightsCorruptError,
    WeightsFetchError,
    WeightsNotFoundError,
)
from proxylessnas.utils.paths import cache_dir
from proxylessnas.utils.tensor_files import read_metadata, safe_load
from proxylessnas.weights.cache import (
    VerifiedLoader,
    cached_state_dict,
    copy_path,
    fetch,
    verify,
    weights_path,
)
from proxylessnas.weights.record import Weights

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


@pytest.mark.parametrize("value", ["", "relative/path"])
def test_empty_and_relative_settings_do_not_put_the_cache_into_the_working_folder(
    value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PROXYLESSNAS_CACHE", raising=False)
    for name in ("TORCH_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, value)
    assert tmp_path not in cache_dir().parents


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
    package = Path(__file__).resolve().parents[2] / "proxylessnas"
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


@pytest.mark.parametrize("source", ["file", "copy"])
def test_tensors_are_ordinary_in_any_mode_and_on_any_default_device(
    source: str, weights: Weights, cache: Path
) -> None:
    if source == "copy":
        cached_state_dict(weights)
    with torch.inference_mode(), torch.device("meta"):
        state = cached_state_dict(weights)
    assert {value.device.type for value in state.values()} == {"cpu"}
    assert not any(value.is_inference() for value in state.values())
    assert same(state)


def test_only_a_download_needs_requests(
    weights: Weights, cache: Path, server: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "requests", None)
    for load in (fetch, cached_state_dict):
        with pytest.raises(MissingExtraError, match=r"weights=FILE.*requests.*pip install.* requests"):
            load(weights)
    assert not cache.exists()
    assert not server.seen
    monkeypatch.delitem(sys.modules, "requests")
    fetch(weights)
    monkeypatch.setitem(sys.modules, "requests", None)
    assert same(cached_state_dict(weights))
    copy_path(weights).unlink()
    assert same(cached_state_dict(weights))
    assert len(server.seen) == 1


@pytest.mark.parametrize("missing", ["safetensors", "tqdm", "numpy"])
def test_torch_and_requests_are_enough(
    missing: str, weights: Weights, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    assert same(cached_state_dict(weights))
    assert same(cached_state_dict(weights))
    # Without safetensors (and numpy, which it needs) there is no faster copy, but everything works.
    assert copy_path(weights).is_file() == (missing not in ("safetensors", "numpy"))


def test_a_copy_from_richer_days_is_left_alone(
    weights: Weights, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached_state_dict(weights)
    before = copy_path(weights).read_bytes()
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    assert same(cached_state_dict(weights))
    assert copy_path(weights).read_bytes() == before


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
        assert "--weights FILE" in str(caught.value)
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
        assert same(cached_state_dict(weights))
        assert digest.read_text().startswith(hashlib.sha256(copy.read_bytes()).hexdigest())
        note(f"safetensors copy: {damage}", "not used, made again from the verified .pth")
    assert len(server.seen) == 1


def test_copy_of_other_weights_is_not_used(weights: Weights, cache: Path) -> None:
    """Eight digits of a digest in a file name prove nothing; the full one inside is compared."""
    from proxylessnas.utils.tensor_files import write_safetensors

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
        loader = VerifiedLoader(weights)
        assert loader._read.wait(300)
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


def test_a_folder_is_filled_from_the_cache(
    weights: Weights, cache: Path, server: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch(weights)
    monkeypatch.setenv("PROXYLESSNAS_OFFLINE", "1")
    copied = fetch(weights, directory=tmp_path / "stick")
    assert copied.parent == tmp_path / "stick"
    assert copied.read_bytes() == CONTENT
    assert len(server.seen) == 1
    (tmp_path / "file").touch()
    with pytest.raises(WeightsFetchError, match="cannot write"):
        fetch(weights, directory=tmp_path / "file" / "below")
