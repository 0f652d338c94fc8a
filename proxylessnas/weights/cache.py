"""Where downloaded weights live, and how they become tensors that are known to be the right ones.

A file is called ``<name>-<first 8 digits of its digest>.pth``. After the first load a safetensors copy lies
next to it, with its SHA-256 in ``<copy>.sha256`` (the format of ``sha256sum``), from which later loads read.
Every load hashes the bytes that it turns into tensors, with a thread doing so while the caller builds. That
finds damage; against someone who can write to the cache only the ``.pth`` helps, whose digest is published.
Weights that come with the package are read from there and leave nothing in the cache.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import (
    MissingExtraError,
    ProxylessError,
    WeightsCorruptError,
    WeightsFetchError,
    WeightsNotFoundError,
    one_line,
)
from ..utils import files as user_files
from ..utils.files import LockTimeout, locked, unlink_quietly, write_atomically
from ..utils.paths import ASSETS, cache_dir, is_offline
from ..utils.tensor_files import (
    from_safetensors,
    read_bytes,
    read_metadata,
    safe_load,
    tensors_from_bytes,
    to_safetensors,
    write_safetensors,
)
from .digests import bytes_problem, expected_digest, file_problem, short_digest
from .download import download, offline_error, ways_without_network

if TYPE_CHECKING:
    from torch import Tensor

    from .registry import Weights

# DOC proxylessnas.bundled: """Weights that come with the package: verified like all others, but read where they are.
#
# They need no network, no cache and no settings. They are stored in half precision, to be small.
# """

__all__ = [
    "VerifiedLoader",
    "cache_dir",
    "cached_state_dict",
    "copy_path",
    "fetch",
    "read_metadata",
    "safe_load",
    "verified_loader",
    "verify",
    "weights_path",
    "write_safetensors",
]

_LOG = logging.getLogger("proxylessnas")


def weights_path(weights: Weights, directory: Path | None = None) -> Path:
    """Return where the file of ``weights`` belongs in the cache (or ``directory``), or is in the package."""
    if weights.bundled and directory is None:
        return package_path(weights)
    suffix = Path(weights.filename).suffix
    return (directory or cache_dir()) / f"{weights.name}-{short_digest(weights)}{suffix}"


def copy_path(weights: Weights) -> Path:
    """Return where the safetensors copy belongs in the cache."""
    path = weights_path(weights)
    # A published safetensors file still gets a copy of its own, whose layout and digest are ours.
    return path.with_suffix(".copy.safetensors" if path.suffix == ".safetensors" else ".safetensors")


def fetch(weights: Weights, progress: bool = True, directory: Path | None = None) -> Path:
    """Return the verified file, downloading it if need be. See :meth:`Weights.fetch`."""
    path = weights_path(weights, Path(directory).absolute() if directory is not None else None)
    if weights.bundled:
        return copy_bundled(weights, path)
    try:
        problem = file_problem(weights, path)
    except (FileNotFoundError, NotADirectoryError):
        if directory is not None and _copy_from_cache(weights, path):
            return path
        if is_offline():
            raise offline_error(weights, path) from None
    except OSError as e:
        raise WeightsCorruptError(f"cannot read {path}: {e.strerror or e}") from e
    else:
        if problem is None:
            return path
        _throw_away(path, problem)
    return download(weights, path, progress)


def _copy_from_cache(weights: Weights, path: Path) -> bool:
    """Copy the cached file, if there is a sound one, to ``path``."""
    try:
        data = read_bytes(weights_path(weights))
    except (WeightsNotFoundError, WeightsCorruptError):
        return False
    if bytes_problem(weights, data):
        return False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, data)
    except OSError as e:
        raise WeightsFetchError(f"cannot write {path}: {e.strerror or e}") from e
    return True


def _throw_away(path: Path, problem: str) -> None:
    """Remove a file that is not what it should be, or raise if there will be no other in its place."""
    if is_offline():
        raise WeightsCorruptError(
            f"{path}: {problem}. It was not used, and PROXYLESSNAS_OFFLINE forbids fetching it again.\n"
            f"  {ways_without_network()}.\n  Or replace the file"
        )
    _LOG.warning("%s: %s; fetching it again", one_line(path), problem)
    try:
        path.unlink(missing_ok=True)
    except OSError as e:
        raise WeightsCorruptError(
            f"{path}: {problem}. It was not used and cannot be removed: {e.strerror or e}"
        ) from e


def verify(weights: Weights, path: Path | str | None = None) -> Path:
    """Check a file, by default the cached one and its copy. See :meth:`Weights.verify`."""
    checked = weights_path(weights) if path is None else Path(path)
    if weights.bundled and path is None:
        read_verified(weights)
        return checked
    try:
        problem = file_problem(weights, checked)
    except (FileNotFoundError, NotADirectoryError) as e:
        copy = copy_path(weights)
        if path is None and copy.is_file():
            _verify_copy(copy)
            return copy
        raise WeightsNotFoundError(
            f"no weights file at {checked} (expected {expected_digest(weights)})"
        ) from e
    except OSError as e:
        raise WeightsCorruptError(f"cannot read {checked}: {e.strerror or e}") from e
    if problem:
        raise WeightsCorruptError(f"{checked}: {problem}")
    if path is None and copy_path(weights).is_file():
        _verify_copy(copy_path(weights))
    return checked


def _verify_copy(copy: Path) -> None:
    wanted, actual = _copy_digest(copy), hashlib.sha256(read_bytes(copy)).hexdigest()
    if actual != wanted:
        raise WeightsCorruptError(
            f"{copy}: sha256 is {actual}, expected {wanted or 'a .sha256 file next to it'}"
        )


def cached_state_dict(weights: Weights, progress: bool = True) -> dict[str, Tensor]:
    """Return the verified tensors, from the package, the copy, the cached file or a source.

    Raises:
        WeightsNotFoundError: the file belongs to the package, but is not there.
        WeightsFetchError, OfflineError: there is no sound file and none can be fetched.
        WeightsCorruptError: the cached file is damaged and cannot be replaced.
    """
    return verified_loader(weights, progress).result()


def verified_loader(weights: Weights, progress: bool = True) -> VerifiedLoader:
    """Start loading in the background and return at once.

    loader = verified_loader(weights)
    ...                        # build the net meanwhile
    state = loader.result()    # verified, or an error
    """
    return VerifiedLoader(weights, progress)


class VerifiedLoader:
    """Reads and hashes the cached copy in a thread; whatever else is needed happens in :meth:`result`.

    Args:
        weights: what to load.
        progress: show a progress bar if it has to be downloaded.
    """

    def __init__(self, weights: Weights, progress: bool = True) -> None:
        self._weights, self._progress = weights, progress
        self._state: dict[str, Tensor] | None = None
        self._copy = copy_path(weights)  # of bundled weights there is none
        self._data = b""
        self._digest: str | None = None
        self._wanted: str | None = None
        self._error: Exception | None = None
        self._read = threading.Event()
        self._thread: threading.Thread | None = None
        if not weights.bundled and self._copy.is_file():
            self._thread = threading.Thread(target=self._hash, name="proxylessnas-verify", daemon=True)
            self._thread.start()

    def _hash(self) -> None:
        try:
            self._wanted = _copy_digest(self._copy)
            self._data = read_bytes(self._copy)
            self._read.set()
            self._digest = hashlib.sha256(self._data).hexdigest()  # one call: it runs without Python's lock
        except Exception as e:  # noqa: BLE001 - handed to the caller's thread, which then uses the original
            self._error = e
        finally:
            self._read.set()

    def result(self) -> dict[str, Tensor]:
        """Return the tensors by name, on the CPU; the same dict every time.

        Raises:
            WeightsFetchError, OfflineError, WeightsCorruptError: see :func:`cached_state_dict`.
        """
        if self._state is None and self._weights.bundled:
            self._state = bundled_state_dict(self._weights)
        elif self._state is None:
            self._state = self._from_copy() or _from_original(self._weights, self._progress)
        return self._state

    def _from_copy(self) -> dict[str, Tensor] | None:
        """Return the copy's tensors if its bytes are the very ones that were written, else throw it away."""
        if self._thread is None:
            return None
        self._read.wait()
        state: dict[str, Tensor] = {}
        problem = None
        try:
            # The tensors are made while the thread still hashes; they are handed out only if the digest is
            # right.
            state, metadata = from_safetensors(self._data, str(self._copy))
            if metadata.get("source", expected_digest(self._weights)) != expected_digest(self._weights):
                problem = "it was made from another file"
        except WeightsCorruptError as e:
            problem = str(e)
        except MissingExtraError:
            return None
        self._thread.join()
        self._thread, self._data = None, b""
        if self._error is None and self._digest != self._wanted:
            problem = f"sha256 is {self._digest}, expected {self._wanted}"
            if self._wanted is None:
                problem = "no .sha256 file beside it says what its digest should be"
        if self._error is None and problem is None:
            return state
        _LOG.warning("%s is not used: %s; making it again", one_line(self._copy), self._error or problem)
        # Without the published file beside it, and without a network, it may be all that somebody has.
        if weights_path(self._weights).is_file():
            unlink_quietly(self._copy)
        return None


def _copy_digest(copy: Path) -> str | None:
    """Return the digest written down for a copy, or None if there is none that can be read."""
    try:
        text = user_files.read_bytes(copy.with_name(copy.name + ".sha256"), 4096).decode("ascii")
    except (OSError, ValueError):
        return None
    found = re.match(r"([0-9a-f]{64})\b", text)
    return found[1] if found else None


def _from_original(weights: Weights, progress: bool) -> dict[str, Tensor]:
    """Load the published file, hashing the bytes that are loaded, and leave a copy for the next time."""
    path = weights_path(weights)
    try:
        data = read_bytes(path)
    except WeightsNotFoundError:
        data = b""
    if not data or bytes_problem(weights, data):
        data = read_bytes(fetch(weights, progress))
        problem = bytes_problem(weights, data)
        if problem:
            raise WeightsCorruptError(f"{path}: {problem}. The file changed while it was read")
    state, _ = tensors_from_bytes(data, str(path))
    _write_copy(weights, state)
    return state


def _write_copy(weights: Weights, state: dict[str, Tensor]) -> None:
    """Write the copy and its digest; a cache that cannot be written is no reason to complain."""
    copy = copy_path(weights)
    try:
        with locked(copy.with_name(copy.name + ".lock"), timeout_s=0.0):
            if copy.is_file() and _copy_digest(copy):
                return
            data = to_safetensors(state, _copy_metadata(weights))
            # The digest first: whoever sees the copy then also sees its digest.
            line = f"{hashlib.sha256(data).hexdigest()}  {copy.name}\n"
            write_atomically(copy.with_name(copy.name + ".sha256"), line.encode("ascii"))
            write_atomically(copy, data)
    except (OSError, ProxylessError, LockTimeout) as e:
        _LOG.debug("no safetensors copy at %s: %s", copy, e)


def _copy_metadata(weights: Weights) -> dict[str, str]:
    """Return the text that makes a copy stand on its own: origin, architecture and preprocessing."""
    from ..arch.published import PUBLISHED

    metadata = {"format": "pt", "weights": weights.name, "source": expected_digest(weights)}
    arch = PUBLISHED.get(weights.arch)
    if arch is not None:
        metadata["arch"] = str(arch)
    metadata["num_classes"] = str(weights.num_classes)
    metadata["preprocessing"] = json.dumps(weights.preprocessing.to_dict())
    return metadata


FOLDER = ASSETS


def package_path(weights: Weights) -> Path:
    """Return where the file is."""
    return FOLDER / weights.filename


def read_verified(weights: Weights) -> bytes:
    """Return the content of the file, whose digest was checked.

    Raises:
        WeightsNotFoundError, WeightsCorruptError: the package is not complete or was changed.
    """
    path = package_path(weights)
    try:
        data = read_bytes(path)
    except WeightsNotFoundError as e:
        raise WeightsNotFoundError(
            f"no weights file at {path}; it belongs to the package: install that again"
        ) from e
    problem = bytes_problem(weights, data)
    if problem:
        raise WeightsCorruptError(f"{path}: {problem}; it belongs to the package: install that again")
    return data


def bundled_state_dict(weights: Weights) -> dict[str, Tensor]:
    """Return the verified tensors; those in half precision are made float32, which is exact.

    Raises:
        WeightsNotFoundError, WeightsCorruptError: as :func:`read_verified`.
        MissingExtraError: safetensors is not installed.
    """
    import torch

    state, _ = from_safetensors(read_verified(weights), str(package_path(weights)))
    with torch.inference_mode(False):
        return {name: t.float() if t.dtype == torch.half else t for name, t in state.items()}


def copy_bundled(weights: Weights, path: Path) -> Path:
    """Return ``path``, after putting a copy there if it is not the very file already.

    Raises:
        WeightsNotFoundError, WeightsCorruptError: as :func:`read_verified`.
        WeightsFetchError: it cannot be written.
    """
    data = read_verified(weights)
    try:
        if not path.is_file() or user_files.read_bytes(path) != data:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, data)
    except OSError as e:
        raise WeightsFetchError(f"cannot write {path}: {e.strerror or e}") from e
    return path
