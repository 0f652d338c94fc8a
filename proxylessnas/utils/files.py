"""Files: atomic writes, locks, bounded reads, folders that appear whole or not at all.

A named pipe, a device or a socket where a file is expected would hang or fill the memory: each is refused
before anything waits for it. A pipe that the caller itself handed over, as in ``<(command)`` of a shell or
``/dev/stdin``, is read up to the same size.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import io
import logging
import os
import platform
import re
import selectors
import shutil
import signal
import stat
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from ..errors import ExportError, ProxylessError, one_line

_LOG = logging.getLogger("proxylessnas")


class LockTimeout(Exception):
    """Another process held a lock for too long."""


@contextlib.contextmanager
def locked(path: Path, timeout_s: float) -> Iterator[None]:
    """Hold an exclusive lock between processes (and threads) on the file ``path`` while the block runs.

    The system releases it when the holder dies. The file is removed at the end, so that a cache holds nothing
    but weights; whoever waited on the removed file notices and locks the new one.

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
        wait_s = min(5.0, max(0.0, deadline - time.monotonic())) if waited else 0.0
        try:
            lock.acquire(timeout=wait_s, poll_interval=0.05)
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
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{os.urandom(4).hex()}.tmp")
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


_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_OWN_PIPES = ("/dev/fd/", "/proc/self/fd/", "/dev/stdin")
_MOST_OF_A_PIPE = 1 << 30  # bytes
_UTF16 = {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a file to read its bytes, without ever waiting for somebody to write them.

    Raises:
        OSError: it cannot be opened, or is no regular file; ``strerror`` says which.
    """
    name = os.fspath(path)
    try:
        _check(name, os.stat(name).st_mode)  # first: opening a device may already do something
        file = open(name, "rb", opener=_without_waiting)  # noqa: SIM115 - closed by the caller
    except ValueError as e:  # a zero byte in the name
        raise OSError(errno.EINVAL, str(e), name) from e
    try:
        mode = os.fstat(file.fileno()).st_mode  # of what was opened, whatever took its place meanwhile
        _check(name, mode)
        if not stat.S_ISFIFO(mode):
            return file
        content = _content_of_pipe(file.fileno(), name)
    except BaseException:
        file.close()
        raise
    file.close()
    return io.BytesIO(content)


def open_to_append(name: str, flags: int) -> int:
    """Open a file as an ``opener`` of :func:`open`, without waiting; refuse what is no regular file."""
    fd = _without_waiting(name, flags)
    try:
        _check(name, os.fstat(fd).st_mode)
    except OSError:
        os.close(fd)
        raise
    return fd


def _without_waiting(name: str, flags: int) -> int:
    return os.open(name, flags | getattr(os, "O_NONBLOCK", 0), 0o666)


def _content_of_pipe(fd: int, name: str) -> bytearray:
    content = bytearray()
    with selectors.DefaultSelector() as ready:
        ready.register(fd, selectors.EVENT_READ)
        while len(content) <= _MOST_OF_A_PIPE:
            if ready.select(0.5):  # not for ever: Python looks for a Ctrl-C in between
                piece = os.read(fd, 1 << 20)
                if not piece:
                    return content
                content += piece
    raise _too_large(name, _MOST_OF_A_PIPE)


def _check(name: str, mode: int) -> None:
    if stat.S_ISREG(mode) or (stat.S_ISFIFO(mode) and str(name).startswith(_OWN_PIPES)):
        return
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)
    raise OSError(errno.EINVAL, f"{_KINDS.get(stat.S_IFMT(mode), 'no file')}, not a regular file", name)


def _too_large(name: str | os.PathLike[str], max_bytes: int) -> OSError:
    return OSError(errno.EFBIG, f"larger than {max_bytes:,} bytes", os.fspath(name))


def read_bytes(path: str | os.PathLike[str], max_bytes: int | None = None) -> bytes:
    """Return the content of a file, as long as it was when it was opened.

    Raises:
        OSError: it cannot be read, is no regular file, exceeds ``max_bytes``, or became shorter meanwhile.
    """
    with open_file(path) as file:
        size = size_of(file)
        if max_bytes is not None and size > max_bytes:
            raise _too_large(path, max_bytes)
        raw = getattr(file, "raw", file)
        try:
            # One read where the system allows it: after each, this thread would have to win Python's lock
            # back from the one that builds the model.
            data: bytes = raw.read(size)
            while len(data) < size:
                more = raw.read(size - len(data))
                if not more:
                    raise OSError(errno.EIO, "the file became shorter while it was read", os.fspath(path))
                data += more
        except MemoryError as e:
            raise OSError(errno.ENOMEM, f"not enough memory for its {size:,} bytes", os.fspath(path)) from e
    return data


def size_of(file: BinaryIO) -> int:
    """Return how many bytes an open file has, and go to its beginning."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    return size


def decode(content: bytes, errors: str = "strict") -> str:
    """Return text: UTF-8, with or without a byte order mark, or UTF-16 with one (as Windows writes it)."""
    return content.decode(_UTF16.get(content[:2], "utf-8-sig"), errors)


def read_text(path: str | os.PathLike[str], what: str, error: type[ProxylessError], max_bytes: int) -> str:
    """Return the text of a file, its line ends as line feeds; ``what`` is "a recipe", say.

    Raises:
        error: it cannot be read, is larger than ``max_bytes``, or holds no text; names the file.
    """
    try:
        return decode(read_bytes(path, max_bytes)).replace("\r\n", "\n")
    except UnicodeDecodeError as e:
        reason = f"not a text file: {e.reason} at byte {e.start:,}; save it as UTF-8"
    except OSError as e:
        reason = e.strerror or str(e)
    raise error(f"{os.fspath(path)}: cannot be read as {what} ({reason})")


#: In the names of folders to work in, which several machines may share.
_HOST = re.sub(r"[^A-Za-z0-9]", "", platform.node()) or "host"
_SPARE_BYTES = 1 << 20  # on the disk, beside what the weights need


def check_place(path: Path, *, force: bool) -> None:
    """Raise ExportError unless a file can be put somewhere, before anything long is done for it."""
    folder = path.parent
    if not folder.is_dir():
        raise ExportError(f"{path}: there is no folder {folder}")
    if path.is_dir():
        raise ExportError(f"{path}: is a folder")
    if path.exists() and not force:
        raise ExportError(f"{path}: exists already: --force (force=True in Python) replaces it")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ExportError(f"{path}: the folder {folder} cannot be written")


def check_space(path: Path, weights_bytes: int) -> None:
    """Raise ExportError if the disk cannot hold a model's file."""
    needed = weights_bytes + _SPARE_BYTES
    with contextlib.suppress(OSError):  # a file system that does not tell
        free = shutil.disk_usage(path.parent).free
        if free < needed:
            raise ExportError(
                f"{path}: the disk has {free / 1e6:.1f} MB left; the file needs about {needed / 1e6:.1f} MB"
            )


@contextlib.contextmanager
def workshop(path: Path) -> Iterator[Path]:
    """Give a folder next to a file to work in; it goes whatever happens, Ctrl-C and SIGTERM included.

    What a killed process left for the same file goes as well.

    Raises:
        ExportError: something cannot be written there or moved.
    """
    try:
        _sweep(path)
        prefix = f".{path.name}-{_HOST}-{os.getpid()}-"
        folder = Path(tempfile.mkdtemp(prefix=prefix, suffix=".tmp", dir=path.parent))
        try:
            with _sigterm_ends_it():
                yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as e:
        raise ExportError(f"{path}: cannot be written ({e.strerror or e}); nothing was kept") from e


def _sweep(path: Path) -> None:
    """Remove the folders of processes of this machine that are no more."""
    if os.name != "posix":  # elsewhere to ask for a process could end it
        return
    pattern = re.compile(re.escape(f".{path.name}-{_HOST}-") + r"(\d+)-[^-]*\.tmp")
    with contextlib.suppress(OSError):  # a folder that can be written but not listed
        for folder in path.parent.iterdir():
            found = pattern.fullmatch(folder.name)
            if found and not _is_alive(int(found[1])):
                shutil.rmtree(folder, ignore_errors=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # somebody else's
        pass
    return True


@contextlib.contextmanager
def _sigterm_ends_it() -> Iterator[None]:
    """Let SIGTERM end the program as an exception does, where nobody else has a use for it."""
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def put_in_place(files: Sequence[Path], folder: Path) -> None:
    """Move files into a folder on the same file system, in place of those that have their names.

    The first is the one that readers open: it comes last, and where others belong to it, an older one goes
    first, so that nobody reads it with the wrong company. If anything fails (OSError), all is as it was.
    """
    main, *others = files
    for file in files:  # they are to survive a power cut
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
    aside = main.parent / "replaced"
    aside.mkdir()
    moved: list[Path] = []
    kept: list[Path] = []
    try:
        for file in [*((main,) if len(files) > 2 else ()), *others]:
            target = folder / file.name
            if target.exists():
                os.replace(target, aside / file.name)
                kept.append(target)
        for file in others:
            os.replace(file, folder / file.name)
            moved.append(folder / file.name)
        os.replace(main, folder / main.name)
    except BaseException:
        for target in moved:
            unlink_quietly(target)
        for target in kept:
            os.replace(aside / target.name, target)
        raise
    sync_folder(folder)
