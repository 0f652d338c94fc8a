"""A file of finished measurements, so that a table that takes minutes to build survives being killed.

Next to the table's path there is ``PATH.part``: one JSON object a line, the first of which says what was
asked for. A line that was cut off when the process died is dropped. The same request resumes from there,
another is refused. The file goes when the table is there.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from ..errors import LatencyError, shown
from ..utils.files import LockTimeout, locked, read_bytes, unlink_quietly

VERSION = 1
MAX_BYTES = 256 << 20
_SYNC_EVERY_S = 5.0


class Journal:
    """Named records, appended to a file one by one. Use it as a context manager.

    Args:
        path: of the table; None keeps the records in memory only.
        request: as JSON values; a journal with another request is not continued.

    Raises:
        LatencyError: the file is another request's or no journal, cannot be written, or another process
        writes it.
    """

    def __init__(self, path: str | os.PathLike[str] | None, request: Mapping[str, Any]) -> None:
        self.path = None if path is None else Path(f"{os.fspath(path)}.part")
        self._request = json.loads(json.dumps(request))  # as it will be read back: no tuples
        self._records: dict[str, dict[str, Any]] = {}
        self._file: IO[bytes] | None = None
        self._synced = time.monotonic()
        self._held = contextlib.ExitStack()

    def __enter__(self) -> Journal:
        if self.path is not None:
            try:
                self._open(self.path)
            except OSError as e:
                self._held.close()
                raise LatencyError(f"cannot write {self.path}: {e.strerror or e}") from e
            except BaseException:
                self._held.close()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._file is not None:
                self._file.close()
                self._file = None
        finally:
            self._held.close()

    def __contains__(self, name: str) -> bool:
        return name in self._records

    def __getitem__(self, name: str) -> dict[str, Any]:
        return self._records[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._records)

    def add(self, name: str, record: Mapping[str, Any]) -> None:
        """Keep a record of JSON values; it survives this process's death at once, a power cut within seconds.

        Raises:
            LatencyError: the file cannot be written (a full disk).
        """
        self._records[name] = dict(record)
        if self._file is not None:
            self._write({"name": name, **record})

    def remove(self) -> None:
        """Delete the file: what it was kept for is done."""
        if self._file is not None and self.path is not None:
            self._file.close()
            self._file = None
            unlink_quietly(self.path)

    def _open(self, path: Path) -> None:
        if not path.parent.is_dir():
            raise LatencyError(f"cannot write {path}: there is no folder {path.parent}")
        try:
            self._held.enter_context(locked(path.with_name(f"{path.name}.lock"), 0))
        except LockTimeout as e:
            raise LatencyError(f"another process is building this table: it is writing {path}") from e
        good = self._read(path) if path.exists() else 0
        self._file = path.open("ab")
        self._file.truncate(good)
        if good == 0:
            self._write({"journal": VERSION, "request": self._request})

    def _write(self, line: Mapping[str, Any]) -> None:
        file = self._file
        assert file is not None
        try:
            file.write(json.dumps(line, allow_nan=False).encode() + b"\n")
            file.flush()
            if time.monotonic() - self._synced > _SYNC_EVERY_S:
                os.fsync(file.fileno())
                self._synced = time.monotonic()
        except OSError as e:
            raise LatencyError(f"cannot write {self.path}: {e.strerror or e}") from e

    def _read(self, path: Path) -> int:
        """Take over the records of a file; return how many of its bytes are whole lines."""
        try:
            raw = read_bytes(path, MAX_BYTES)
        except OSError as e:
            raise LatencyError(f"{path} cannot be read as a journal ({e.strerror or e}): delete it") from e
        good = raw.rfind(b"\n") + 1
        lines = raw[:good].splitlines()
        if not lines:
            if raw and not raw.startswith(b'{"journal"'[: len(raw)]):
                raise _no_journal(path)
            return 0
        header = _object(path, lines[0], 1)
        if header.get("journal") != VERSION or not isinstance(header.get("request"), dict):
            raise _no_journal(path)
        self._compare(path, header["request"])
        for number, line in enumerate(lines[1:], 2):
            record = _object(path, line, number)
            name = record.pop("name", None)
            if not isinstance(name, str):
                raise _no_journal(path)
            self._records[name] = record
        return good

    def _compare(self, path: Path, begun: Mapping[str, Any]) -> None:
        asked = self._request
        names = [name for name in dict.fromkeys([*begun, *asked]) if begun.get(name) != asked.get(name)]
        if names:
            raise LatencyError(
                f"{path} holds measurements for other options: "
                + "; ".join(f"{n} was {shown(begun.get(n))}, now {shown(asked.get(n))}" for n in names)
                + ". Ask for the same to resume from there, delete the file to begin anew, or write elsewhere"
            )


def _object(path: Path, line: bytes, number: int) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as e:
        raise LatencyError(f"{path}, line {number} is damaged: delete the file to begin anew") from e
    if not isinstance(found, dict):
        raise _no_journal(path)
    return found


def _no_journal(path: Path) -> LatencyError:
    return LatencyError(f"{path} is no journal of this package: move it away, or write the table elsewhere")
