"""The one door to files that a user names: regular files, of a bounded size, text as any editor writes it.

A named pipe, a device or a socket where a file is expected would hang or fill the memory: each is refused
before anything waits for it. A pipe that the caller itself handed over, as in ``<(command)`` of a shell or
``/dev/stdin``, is read up to the same size.
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import selectors
import stat
from typing import BinaryIO

from .errors import ProxylessError

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
        file = open(name, "rb", opener=_open_without_waiting)  # noqa: SIM115 - closed by the caller
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


def _open_without_waiting(name: str, flags: int) -> int:
    return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))


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

    Args:
        path: of the file.
        max_bytes: it may have; None: any number.

    Raises:
        OSError: it cannot be read, is no regular file, is too large, or became shorter meanwhile.
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
    """Return text: UTF-8, with or without a byte order mark, or UTF-16 with one (as Windows writes it).

    Args:
        content: of a file.
        errors: as of ``bytes.decode``.

    Raises:
        UnicodeDecodeError: it is none of them.
    """
    return content.decode(_UTF16.get(content[:2], "utf-8-sig"), errors)


def read_text(path: str | os.PathLike[str], what: str, error: type[ProxylessError], max_bytes: int) -> str:
    r"""Return the text of a file, its line ends as ``\n``.

    Args:
        path: of the file.
        what: it is to be, in messages: "a recipe".
        error: class of the errors.
        max_bytes: it may have.

    Raises:
        error: it cannot be read, is larger than such a file can be, or holds no text; names the file.
    """
    try:
        return decode(read_bytes(path, max_bytes)).replace("\r\n", "\n")
    except UnicodeDecodeError as e:
        reason = f"not a text file: {e.reason} at byte {e.start:,}; save it as UTF-8"
    except OSError as e:
        reason = e.strerror or str(e)
    raise error(f"{os.fspath(path)}: cannot be read as {what} ({reason})")
