"""Logs of a run on disk: ``log.jsonl``, ``epochs.csv``, and figures for TensorBoard.

They survive a run that is killed and resumed: what lies behind the step it resumes from is cut off first, so
that they tell one history. None may stop a run: whatever goes wrong here is told, once, to ``tell``.

The event files are written with TensorBoard's own record writer, but without the usual ``SummaryWriter``:
that one writes in a thread (where a full disk is an unhandled error, and with which worker processes would be
forked), imports TensorFlow where it is installed, and takes seconds to import where it is not.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import os
import socket
import struct
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..errors import missing_extra
from ..utils.files import open_to_append, write_atomically
from ..utils.text import csv_rows, csv_text

Row = dict[str, Any]  # column to number; None where there is none
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


class _OnDisk:
    """Something on the disk that stops no run: what goes wrong with it is told, once."""

    what, then = "the log", "the run goes on without it"

    def __init__(self, path: Path, tell: Tell) -> None:
        self._path, self._tell, self._told = path, tell, False
        self._file: Any = None

    def _open(self, path: Path) -> None:
        self._file = open(path, "ab", buffering=0, opener=open_to_append)  # noqa: SIM115 - closed by close()

    def _add(self, piece: bytes) -> bool:
        """Add a piece to the file, at once (no buffer) and whole; return whether that could be done."""
        try:
            size = self._file.seek(0, io.SEEK_END)
            try:
                rest = memoryview(piece)
                while rest:
                    rest = rest[self._file.write(rest) :]
            except OSError:
                with contextlib.suppress(OSError):  # so that others can follow
                    self._file.truncate(size)
                raise
        except OSError as error:
            self._trouble(error)
            return False
        return True

    def _trouble(self, error: OSError) -> None:
        if not self._told:
            self._told = True
            reason = error.strerror or str(error) or type(error).__name__
            self._tell(f"{self.what} cannot be written ({reason}: {self._path}); {self.then}")

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None


class LineLog(_OnDisk):
    """A file of JSON lines; what it holds of later steps and epochs than where the run resumes is cut off.

    A line that cannot be written (a full disk) is lost, but the next one is tried again; the first one after
    such a gap says how many are missing.

    Attributes:
        notes: texts of the notes that were kept.
        epochs: records of the epochs that were kept.
    """

    def __init__(self, path: Path, resume_step: int, resume_epoch: int, tell: Tell) -> None:
        super().__init__(path, tell)
        self._lost = 0
        self.notes: set[str] = set()
        self.epochs: list[dict[str, Any]] = []
        try:
            self._cut(resume_step, resume_epoch)
            self._open(path)
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
        written = self._add(json.dumps(line, allow_nan=False).encode() + b"\n")
        self._lost = 0 if written else self._lost + 1

    def _cut(self, resume_step: int, resume_epoch: int) -> None:
        """Drop what is behind where the run resumes, and set lines aside that are none of ours."""
        if not self._path.is_file():
            return
        lines = self._path.read_bytes().split(b"\n")
        last = lines.pop()  # empty, unless a crash cut it short: then it never was a line
        if _parsed(last) is not None:
            lines.append(last)
        kept, damaged = [], []
        for line in lines:
            record = _parsed(line)
            if record is None:
                damaged.append(line)
            elif not _is_later(record, resume_step, resume_epoch):
                kept.append(line)
                if record.get("event") == "note":
                    self.notes.add(str(record.get("text")))
                elif record.get("event") == "epoch":
                    self.epochs.append(record)
        if damaged := [line for line in damaged if line.strip()]:
            aside = self._path.with_name(self._path.stem + ".damaged.txt")
            with aside.open("ab") as file:
                file.write(b"".join(line + b"\n" for line in damaged))
            self._tell(f"{self._path}: {len(damaged)} damaged line(s) moved to {aside.name}")
        if last or len(kept) < len(lines):
            write_atomically(self._path, b"".join(line + b"\n" for line in kept))


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _is_later(record: Mapping[str, Any], resume_step: int, resume_epoch: int) -> bool:
    step, epoch = record.get("step"), record.get("epoch")
    # The end is behind the last checkpoint, the beginning before the first: both are come to once more.
    if record.get("event") == "done" or (record.get("event") == "begin" and not resume_step):
        return True
    if isinstance(step, (int, float)) and step > resume_step:
        return True
    # The validation of an epoch is behind a checkpoint of its last step.
    return record.get("event") == "epoch" and isinstance(epoch, (int, float)) and epoch > resume_epoch


class EpochTable(_OnDisk):
    """The file with a row for each epoch, written anew (atomically) whenever a row is added.

    Args:
        path: of the CSV file.
        resume_epoch: what the file holds of later epochs is cut off.
        known: records of epochs from before; they go before what the file holds.
        tell: called with what went wrong, in words.

    Attributes:
        rows: by column; None where there is no value.
    """

    what, then = "the table of epochs", "the run goes on, and each epoch tries again"

    def __init__(self, path: Path, resume_epoch: int, known: Iterable[Mapping[str, Any]], tell: Tell) -> None:
        super().__init__(path, tell)
        self.rows: list[Row] = []
        text = None
        try:
            if path.is_file():
                text = path.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            self._trouble(error)
            return
        rows = [*(self._read(text) if text else []), *filter(_is_row, map(_row, known))]
        found = {row["epoch"]: row for row in rows}
        self.rows = [found[epoch] for epoch in sorted(found) if epoch <= resume_epoch]
        if text != self._text() and (text is not None or self.rows):
            self._write()

    def add(self, record: Mapping[str, Any]) -> None:
        """Add the row of an epoch, in place of an older one of the same epoch."""
        row = _row(record)
        self.rows = [r for r in self.rows if r["epoch"] != row["epoch"]] + [row]
        self._write()

    def _read(self, text: str) -> list[Row]:
        """Return the rows of a file that may have been edited or damaged."""
        good: list[Row] = []
        try:
            rows = [{key: _number(cells.get(key)) for key in COLUMNS} for cells in csv_rows(text)]
            good = [row for row in rows if _is_row(row)]
            bad = len(rows) - len(good)
        except csv.Error:
            bad = max(0, len(text.splitlines()) - 1)
        if bad:
            self._tell(f"{self._path}: {bad} damaged row(s) dropped")
        return good

    def _text(self) -> str:
        return csv_text(COLUMNS, [[row[key] for key in COLUMNS] for row in self.rows])

    def _write(self) -> None:
        try:
            write_atomically(self._path, self._text().encode())
        except OSError as error:
            self._trouble(error)


def _row(record: Mapping[str, Any]) -> Row:
    return {key: plain(record.get(key), key) for key in COLUMNS}


def _is_row(row: Row) -> bool:
    """Return whether a row has the number of an epoch and nothing but numbers."""
    return (
        type(row["epoch"]) is int
        and row["epoch"] > 0
        and all(v is None or isinstance(v, (int, float)) for v in row.values())
    )


def _number(text: str | None) -> Any:
    """Return the number in a cell, None for an empty one, and the text if it is no number."""
    for kind in (int, float):
        with contextlib.suppress(ValueError, TypeError):
            return plain(kind(text))  # type: ignore[arg-type]
    return text or None


_TAGS = {
    "loss": "train/loss",
    "train_loss": "epoch/train_loss",
    "val_loss": "epoch/val_loss",
    "val_top1": "epoch/val_top1",
    "val_top5": "epoch/val_top5",
    "rate": "train/rate",
    "images_per_second": "speed/images_per_second",
    "waiting": "speed/waiting",
    "memory_mib": "speed/memory_mib",
}


def load_tensorboard() -> tuple[Any, Any, Any]:
    """Return TensorBoard's ``event_pb2``, ``summary_pb2`` and ``RecordWriter``.

    Raises:
        MissingExtraError: it is not installed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some versions use what Python or numpy is to drop
        try:
            from tensorboard.compat.proto import event_pb2, summary_pb2
            from tensorboard.summary.writer.record_writer import RecordWriter
        except ImportError as error:
            raise missing_extra("tensorboard", "a log for TensorBoard", "train") from error
    return event_pb2, summary_pb2, RecordWriter


class TensorBoardLog(_OnDisk):
    """Writes scalars and images; all have the step as x axis, so that TensorBoard can cut off a lost end.

    What older event files in the folder hold of later steps than ``resume_step`` is hidden.

    Raises:
        MissingExtraError: TensorBoard is not installed.
    """

    what = "the log for TensorBoard"

    def __init__(self, folder: Path, resume_step: int, tell: Tell) -> None:
        super().__init__(folder, tell)
        self._events, self._summaries, self._record_writer = load_tensorboard()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            older = any(folder.glob("events.out.tfevents.*"))
            # TensorBoard reads the files in the order of their names: the time comes first.
            name = f"events.out.tfevents.{time.time_ns() // 10**9:010d}.{socket.gethostname()}.{os.getpid()}"
            self._open(folder / name)
        except OSError as error:
            self._trouble(error)
            return
        first = [self._event(file_version="brain.Event:2")]
        if older:  # "started": everything of this step and later ones that was read before is dropped
            start = self._events.SessionLog(status=self._events.SessionLog.START)
            first.append(self._event(step=resume_step + 1 if resume_step else 0, session_log=start))
        self._write(first)

    def write(self, step: int, values: Mapping[str, Any], keys: Iterable[str]) -> None:
        """Add the values of ``keys`` that are numbers."""
        self.scalars(step, {_TAGS[key]: values.get(key) for key in keys})

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """Add values by their tags (``group/name``); what is no finite number is left out."""
        summary = self._summaries.Summary(
            value=[
                self._summaries.Summary.Value(tag=tag, simple_value=value)
                for tag, value in values.items()
                if isinstance(value, (int, float)) and math.isfinite(value)
            ]
        )
        self._write([self._event(step=step, summary=summary)])

    def image(self, step: int, tag: str, png: bytes) -> None:
        """Add an image, a PNG file's bytes, by its tag."""
        width, height = struct.unpack(">II", png[16:24])  # every PNG begins with them
        image = self._summaries.Summary.Image(
            height=height, width=width, colorspace=3, encoded_image_string=png
        )
        summary = self._summaries.Summary(value=[self._summaries.Summary.Value(tag=tag, image=image)])
        self._write([self._event(step=step, summary=summary)])

    def _event(self, **fields: Any) -> bytes:
        event: bytes = self._events.Event(wall_time=time.time(), **fields).SerializeToString()
        return event

    def _write(self, events: Iterable[bytes]) -> None:
        if self._file is None:
            return
        buffer = io.BytesIO()
        writer = self._record_writer(buffer)
        for event in events:
            writer.write(event)
        self._add(buffer.getvalue())
