"""Small file-system tools that hold when processes race, are killed, or meet a full disk."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

from .safe_text import one_line

_LOG = logging.getLogger("proxylessnas")


class LockTimeout(Exception):
    """Another process held a lock for too long."""


@contextlib.contextmanager
def locked(path: Path, timeout_s: float) -> Iterator[None]:
    """Hold an exclusive lock between processes (and threads) on the file ``path`` while the block runs.

    The system releases it when the holder dies, so there are no stale locks. The file is removed at the end,
    so that a cache holds nothing but weights; whoever waited on the removed file notices and locks the new
    one.

    Raises:
        LockTimeout: somebody else held it for ``timeout_s`` seconds.
        OSError: the file cannot be made (a read-only folder).
    """
    import filelock  # comes with torch

    # Older versions of filelock wait for ever in a folder that cannot be written; find that out first.
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise PermissionError(13, "the folder cannot be written", str(path.parent))
    deadline = time.monotonic() + timeout_s
    lock = filelock.FileLock(str(path))
    waited = False
    while True:
        try:
            lock.acquire(
                timeout=0 if not waited else min(5.0, max(0.0, deadline - time.monotonic())),
                poll_interval=0.05,
            )
        except filelock.Timeout as e:
            if time.monotonic() >= deadline:
                raise LockTimeout(f"{path} is locked") from e
            if not waited:
                _LOG.info("waiting for another process that holds %s", one_line(path))
            waited = True
            continue
        if _is_current(lock, path):
            break
        lock.release()
    try:
        yield
    finally:
        if _is_current(lock, path) and _descriptor(lock) is not None:
            unlink_quietly(path)
        lock.release()


def _descriptor(lock: object) -> int | None:
    """Return the descriptor of a POSIX lock; None elsewhere (filelock then sees to the file)."""
    fd = getattr(getattr(lock, "_context", None), "lock_file_fd", None)
    return fd if os.name == "posix" and isinstance(fd, int) else None


def _is_current(lock: object, path: Path) -> bool:
    """Return whether the locked file is still at ``path`` and was not removed by the last holder."""
    fd = _descriptor(lock)
    if fd is None:
        return True
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


def write_atomically(path: Path, *parts: bytes | bytearray | memoryview) -> None:
    """Write a file that readers see either not at all (or in its old form) or complete.

    Raises:
        OSError: it cannot be written; it names ``path``, and nothing is left behind.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:  # the ordinary mode bits, unlike tempfile's: a cache may be shared
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as e:
        unlink_quietly(temporary)
        if isinstance(e, OSError) and str(e.filename) == str(temporary):  # name what was to be written
            raise OSError(e.errno, e.strerror, str(path)) from e
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a renaming in ``folder`` survive a power cut, where the system can."""
    with contextlib.suppress(OSError):
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def unlink_quietly(path: Path) -> None:
    """Remove a file if it is there and can be removed."""
    with contextlib.suppress(OSError):
        path.unlink()
