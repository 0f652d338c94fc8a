"""Keeps downloaded weights, and makes tensors of them that are known to be the right ones.

A file is called ``<name>-<first 8 digits of its digest>.pth``. After the first load a safetensors copy lies
next to it, with its SHA-256 in ``<copy>.sha256`` (the format of ``sha256sum``), from which later loads read.
Every load hashes the bytes that it turns into tensors. That finds damage; against someone who can write to
the cache only the ``.pth`` helps, whose digest is published. Weights that come with the package, in half
precision, are verified like all others, but read where they are and not copied.
"""

from __future__ import annotations

import contextlib
import hashlib
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
from ..utils import files
from ..utils.files import LockTimeout, locked, unlink_quietly, write_atomically
from ..utils.paths import ASSETS, cache_dir, is_offline
from ..utils.tensor_files import from_safetensors, opening, read_bytes, tensors_from_bytes, to_safetensors
from .download import download
from .file_spec import (
    FileSpec,
    bytes_problem,
    expected_digest,
    file_problem,
    offline_error,
    short_digest,
    ways_without_network,
)

if TYPE_CHECKING:
    from torch import Tensor

_LOG = logging.getLogger("proxylessnas")


def weights_path(spec: FileSpec, directory: Path | None = None) -> Path:
    """Return where the file belongs in the cache (or ``directory``), or where it is in the package."""
    if spec.bundled and directory is None:
        return ASSETS / spec.filename
    return (directory or cache_dir()) / f"{spec.name}-{short_digest(spec)}{Path(spec.filename).suffix}"


def copy_path(spec: FileSpec) -> Path:
    """Return where the safetensors copy belongs in the cache."""
    path = weights_path(spec)
    # A published safetensors file still gets a copy of its own, whose layout and digest are ours.
    return path.with_suffix(".copy.safetensors" if path.suffix == ".safetensors" else ".safetensors")


def fetch(spec: FileSpec, progress: bool = True, directory: Path | None = None) -> Path:
    """Return the verified file, downloading it if need be. See :meth:`Weights.fetch`."""
    path = weights_path(spec, Path(directory).absolute() if directory is not None else None)
    if spec.bundled:
        data = _read_verified(spec)
        return path if directory is None else _write(path, data)
    try:
        with opening(path):
            problem = file_problem(spec, path)
    except WeightsNotFoundError:
        if directory is not None:
            with contextlib.suppress(WeightsNotFoundError, WeightsCorruptError):
                return _write(path, _read_verified(spec))
        if is_offline():
            raise offline_error(spec, path) from None
    else:
        if problem is None:
            return path
        _throw_away(path, problem)
    return download(spec, path, progress)


def _read_verified(spec: FileSpec) -> bytes:
    """Return the content of the file in the package or the cache, whose digest was checked."""
    path = weights_path(spec)
    hint = "; it belongs to the package: install that again" if spec.bundled else ""
    try:
        data = read_bytes(path)
    except WeightsNotFoundError as e:
        raise WeightsNotFoundError(f"{e}{hint}") from e
    problem = bytes_problem(spec, data)
    if problem:
        raise WeightsCorruptError(f"{path}: {problem}{hint}")
    return data


def _write(path: Path, data: bytes) -> Path:
    """Write a file, if it does not hold just that already, and return its path."""
    try:
        if not path.is_file() or files.read_bytes(path) != data:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, data)
    except OSError as e:
        raise WeightsFetchError(f"cannot write {path}: {e.strerror or e}") from e
    return path


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


def verify(spec: FileSpec, path: Path | str | None = None) -> Path:
    """Check a file, by default the cached one and its copy. See :meth:`Weights.verify`."""
    checked = weights_path(spec) if path is None else Path(path)
    if spec.bundled and path is None:
        _read_verified(spec)
        return checked
    copy = copy_path(spec) if path is None else None
    try:
        with opening(checked):
            problem = file_problem(spec, checked)
    except WeightsNotFoundError as e:
        if copy is None or not copy.is_file():
            raise WeightsNotFoundError(f"{e} (expected {expected_digest(spec)})") from e
        checked, problem = copy, None
    if problem:
        raise WeightsCorruptError(f"{checked}: {problem}")
    if copy is not None and copy.is_file():
        wanted, actual = _copy_digest(copy), hashlib.sha256(read_bytes(copy)).hexdigest()
        if actual != wanted:
            wanted = wanted or "a .sha256 file next to it"
            raise WeightsCorruptError(f"{copy}: sha256 is {actual}, expected {wanted}")
    return checked


def cached_state_dict(spec: FileSpec, progress: bool = True) -> dict[str, Tensor]:
    """Return the verified tensors, from the package, the copy, the cached file or a source.

    Raises:
        WeightsNotFoundError: the file belongs to the package, but is not there.
        WeightsFetchError, OfflineError: there is no sound file and none can be fetched.
        WeightsCorruptError: the cached file is damaged and cannot be replaced.
        MissingExtraError: safetensors, or requests, to download, is not installed.
    """
    return VerifiedLoader(spec, progress).result()


class VerifiedLoader:
    """Loads weights while the caller builds the model.

    A thread reads and hashes the cached copy; whatever else is needed happens in :meth:`result`.
    """

    def __init__(self, spec: FileSpec, progress: bool = True) -> None:
        self._spec, self._progress = spec, progress
        self._state: dict[str, Tensor] | None = None
        self._copy = copy_path(spec)  # of bundled weights there is none
        self._data = b""
        self._digest: str | None = None
        self._wanted: str | None = None
        self._error: Exception | None = None
        self._read = threading.Event()
        self._thread: threading.Thread | None = None
        if not spec.bundled and self._copy.is_file():
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
        """Return the tensors by name, on the CPU; raises as :func:`cached_state_dict`."""
        if self._state is None:
            self._state = self._from_copy() or _from_original(self._spec, self._progress)
        return self._state

    def _from_copy(self) -> dict[str, Tensor] | None:
        """Return the copy's tensors if its bytes are the very ones that were written, else throw it away."""
        if self._thread is None:
            return None
        self._read.wait()
        state: dict[str, Tensor] = {}
        problem = ""
        try:
            # Made while the thread still hashes, and handed out only if the digest is right.
            state, metadata = from_safetensors(self._data, str(self._copy))
            if metadata.get("source", expected_digest(self._spec)) != expected_digest(self._spec):
                problem = "it was made from another file"
        except WeightsCorruptError as e:
            problem = str(e)
        except MissingExtraError:
            return None
        self._thread.join()
        self._thread, self._data = None, b""
        if self._error is not None:
            problem = str(self._error)
        elif self._wanted is None:
            problem = "no .sha256 file beside it says what its digest should be"
        elif self._digest != self._wanted:
            problem = f"sha256 is {self._digest}, expected {self._wanted}"
        if not problem:
            return state
        _LOG.warning("%s is not used: %s; making it again", one_line(self._copy), problem)
        # Without the published file beside it, and without a network, it may be all that somebody has.
        if weights_path(self._spec).is_file():
            unlink_quietly(self._copy)
        return None


def _copy_digest(copy: Path) -> str | None:
    """Return the digest written down for a copy, or None if there is none that can be read."""
    try:
        text = files.read_bytes(copy.with_name(copy.name + ".sha256"), 4096).decode("ascii")
    except (OSError, ValueError):
        return None
    found = re.match(r"([0-9a-f]{64})\b", text)
    return found[1] if found else None


def _from_original(spec: FileSpec, progress: bool) -> dict[str, Tensor]:
    """Load the published file, hashing the bytes that are loaded, and leave a copy for the next time."""
    path = weights_path(spec)
    if spec.bundled:
        import torch

        state, _ = from_safetensors(_read_verified(spec), str(path))
        with torch.inference_mode(False):  # float32 holds half precision exactly
            return {name: t.float() if t.dtype == torch.half else t for name, t in state.items()}
    data = b""
    with contextlib.suppress(WeightsNotFoundError, WeightsCorruptError):
        data = _read_verified(spec)
    if not data:  # outside of that error's handling: what a download says is about the download
        fetch(spec, progress)
        data = _read_verified(spec)
    state, _ = tensors_from_bytes(data, str(path))
    _write_copy(spec, state)
    return state


def _write_copy(spec: FileSpec, state: dict[str, Tensor]) -> None:
    """Write the copy and its digest; a cache that cannot be written is no reason to complain."""
    copy = copy_path(spec)
    try:
        with locked(copy.with_name(copy.name + ".lock"), timeout_s=0.0):
            if copy.is_file() and _copy_digest(copy):
                return
            data = to_safetensors(state, spec.copy_metadata())
            # The digest first: whoever sees the copy then also sees its digest.
            line = f"{hashlib.sha256(data).hexdigest()}  {copy.name}\n"
            write_atomically(copy.with_name(copy.name + ".sha256"), line.encode("ascii"))
            write_atomically(copy, data)
    except (OSError, ProxylessError, LockTimeout) as e:
        _LOG.debug("no safetensors copy at %s: %s", copy, e)
