"""The record of a run on disk: ``log.jsonl``, one JSON object a line, and ``epochs.csv``, one row an epoch.

Both survive a run that is killed and continued: what lies behind the point of continuation is cut off first,
so that they tell one history. Neither may stop a run: whatever goes wrong here is told, once, to ``tell``.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, BinaryIO

from proxylessnas.filesystem import write_atomically

Row = dict[str, "float | int | None"]
Tell = Callable[[str], None]

COLUMNS = (
    "epoch",
    "step",
    "train_loss",
    "val_loss",
    "val_top1",
    "val_top5",
    "rate",
    "images_per_second",
    "waiting",
    "seconds",
    "seconds_left",
    "memory_mib",
)
# What is measured with a clock needs no 17 digits; losses and rates keep all that float32 has.
_DECIMALS = {"images_per_second": 1, "waiting": 4, "seconds": 2, "seconds_left": 0, "memory_mib": 1}


def plain(value: Any, key: str = "") -> Any:
    """Return a value as JSON knows it: NaN and infinity as None, whatever is unknown as text."""
    if value is None or isinstance(value, (bool, str, int)):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return round(value, _DECIMALS[key]) if key in _DECIMALS else float(f"{value:.9g}")
    if isinstance(value, Mapping):
        return {str(k): plain(v, str(k)) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(v) for v in value]
    with contextlib.suppress(AttributeError, TypeError, ValueError, RuntimeError):
        return plain(value.item(), key)  # a number of numpy or torch
    return str(value)


def reason(error: OSError) -> str:
    """Return what the system says about an error, without the path that messages here name themselves."""
    return error.strerror or str(error) or type(error).__name__


class LineLog:
    """A file of JSON lines, each written at once.

    A line that could not be written in full (a full disk) is taken back, and the next one is tried again; the
    first line after such a gap says how many are missing.

    Args:
        path: of the file; what it holds already is kept up to the point of continuation.
        resume_step: lines of later steps are cut off.
        resume_epoch: ends of later epochs are cut off.
        tell: is told in words what went wrong.
    """

    def __init__(self, path: Path, resume_step: int, resume_epoch: int, tell: Tell) -> None:
        self._path, self._tell = path, tell
        self._file: BinaryIO | None = None
        self._told, self._lost = False, 0
        try:
            self._cut(resume_step, resume_epoch)
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            self._trouble(error)

    def write(self, event: str, fields: Mapping[str, Any]) -> None:
        """Add a line with the time, the kind of event and its fields."""
        if self._file is None:
            return
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        line = {"time": now, "event": event, **plain(fields)}
        if self._lost:
            line["lines_lost_before"] = self._lost
        if self._append(json.dumps(line, allow_nan=False).encode() + b"\n"):
            self._lost = 0
        else:
            self._lost += 1

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None

    def _append(self, line: bytes) -> bool:
        assert self._file is not None
        size = None
        try:
            size = self._file.seek(0, io.SEEK_END)
            rest = memoryview(line)
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            if size is not None:
                with contextlib.suppress(OSError):
                    self._file.truncate(size)
            self._trouble(error)
            return False
        return True

    def _trouble(self, error: OSError) -> None:
        if not self._told:
            self._told = True
            self._tell(
                f"the log cannot be written ({reason(error)}: {self._path}); the run goes on without it"
            )

    def _cut(self, resume_step: int, resume_epoch: int) -> None:
        """Drop what is behind the point of continuation, and set lines aside that are none of ours."""
        if not self._path.exists():
            return
        old = self._path.read_bytes()
        lines = old.split(b"\n")
        half = lines.pop()  # empty unless the last line was cut short by a crash: then it never was a line
        kept, damaged = [], []
        for line in lines:
            record = _parsed(line)
            if record is None:
                damaged.append(line)
            elif not _is_later(record, resume_step, resume_epoch):
                kept.append(line)
        damaged = [line for line in damaged if line.strip()]
        if damaged:
            aside = self._path.with_name(self._path.stem + ".damaged.txt")
            with aside.open("ab") as file:
                file.write(b"".join(line + b"\n" for line in damaged))
            self._tell(f"{self._path}: {len(damaged)} damaged line(s) moved to {aside.name}")
        if half or len(kept) < len(lines):
            write_atomically(self._path, b"".join(line + b"\n" for line in kept))


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _is_later(record: Mapping[str, Any], resume_step: int, resume_epoch: int) -> bool:
    step, epoch = record.get("step"), record.get("epoch")
    if isinstance(step, (int, float)) and step > resume_step:
        return True
    # The validation of an epoch is behind a checkpoint of its last step.
    return record.get("event") == "epoch" and isinstance(epoch, (int, float)) and epoch > resume_epoch


class EpochTable:
    """The file with a row for each epoch, written anew (atomically) whenever a row is added.

    Args:
        path: of the CSV file; rows it holds already are kept up to the point of continuation.
        resume_epoch: later rows are cut off.
        tell: is told in words what went wrong.

    Attributes:
        rows: by column; None where there is no value.
    """

    def __init__(self, path: Path, resume_epoch: int, tell: Tell) -> None:
        self._path, self._tell, self._told = path, tell, False
        self.rows: list[Row] = []
        if not path.exists():
            return
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            self._trouble(error)
            return
        found = {int(row["epoch"] or 0): row for row in self._read(text)}
        self.rows = [found[epoch] for epoch in sorted(found) if epoch <= resume_epoch]
        if text != self._text():
            self._write()

    def add(self, record: Mapping[str, Any]) -> None:
        """Add the row of an epoch, in place of an older one of the same epoch."""
        row = {key: plain(record.get(key), key) for key in COLUMNS}
        self.rows = [r for r in self.rows if r["epoch"] != row["epoch"]] + [row]
        self._write()

    def _read(self, text: str) -> Iterable[Row]:
        bad = 0
        # splitlines: a half-written file may hold anything, and csv refuses zero bytes in some versions
        lines = text.replace("\0", "").splitlines()
        for cells in csv.DictReader(lines):
            try:
                row = {key: _number(cells.get(key)) for key in COLUMNS}
                if not row["epoch"]:
                    raise ValueError
            except ValueError:
                bad += 1
            else:
                yield row
        if bad:
            self._tell(f"{self._path}: {bad} damaged row(s) dropped")

    def _text(self) -> str:
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: "" if v is None else v for key, v in row.items()} for row in self.rows)
        return buffer.getvalue()

    def _write(self) -> None:
        try:
            write_atomically(self._path, self._text().encode())
        except OSError as error:
            self._trouble(error)

    def _trouble(self, error: OSError) -> None:
        if not self._told:
            self._told = True
            self._tell(
                f"the table of epochs cannot be written ({reason(error)}: {self._path}); "
                "the run goes on, and each epoch tries again"
            )


def _number(text: str | None) -> float | int | None:
    if not text:
        return None
    try:
        return int(text)
    except ValueError:
        value = float(text)
        return value if math.isfinite(value) else None
