"""From a folder of the export's own to the final place: all files of a net, or none."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import ExportError
from ..filesystem import sync_folder, unlink_quietly

#: In the names of folders to work in, which several machines may share.
_HOST = re.sub(r"[^A-Za-z0-9]", "", platform.node()) or "host"
_SPARE_BYTES = 1 << 20  # on the disk, beside what the weights need


def check_place(path: Path, *, force: bool) -> None:
    """Check that a file can be put somewhere, before anything long is done for it.

    Raises:
        ExportError: there is no such folder, it cannot be written, or there is such a file already.
    """
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
    """Check that the disk can hold a net's file.

    Raises:
        ExportError: it cannot.
    """
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
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
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
    """Move files into a folder, in place of those that have their names.

    The first is the one that readers open: it comes last, and where others belong to it, an older one goes
    first, so that nobody reads it with the wrong company. If anything fails, all is as it was.

    Args:
        files: in a folder of their own on the same file system.
        folder: where to.

    Raises:
        OSError: one cannot be moved.
    """
    main, *others = files
    for file in files:
        _sync(file)
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


def _sync(file: Path) -> None:
    """Make a file survive a power cut."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
