"""Figures of a run for TensorBoard.

The event files are written with TensorBoard's own record writer, but without the usual ``SummaryWriter``:
that one writes in a thread (where a full disk is an unhandled error, and with which worker processes would be
forked), imports TensorFlow where it is installed, and takes seconds to import where it is not.
"""

from __future__ import annotations

import io
import math
import os
import socket
import struct
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import missing_extra
from .history import Appended, reason

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


class TensorBoardLog:
    """Writes scalars and pictures; all have the step as x axis, so that TensorBoard can cut off a lost end.

    Args:
        folder: for the event files; it is made if absent.
        resume_step: steps done before; what older event files hold of later ones is hidden.
        tell: is told in words what went wrong; the run goes on.

    Raises:
        MissingExtraError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path, resume_step: int, tell: Callable[[str], None]) -> None:
        self._folder, self._tell, self._told = folder, tell, False
        self._events, self._summaries, self._record_writer = load_tensorboard()
        self._file: Appended | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            older = any(folder.glob("events.out.tfevents.*"))
            # TensorBoard reads the files in the order of their names: the time comes first.
            name = f"events.out.tfevents.{time.time_ns() // 10**9:010d}.{socket.gethostname()}.{os.getpid()}"
            self._file = Appended(folder / name)
        except OSError as error:
            self._trouble(error)
            return
        first = [self._event(file_version="brain.Event:2")]
        if older:  # "started": everything of this step and later ones that was read before is dropped
            start = self._events.SessionLog(status=self._events.SessionLog.START)
            first.append(self._event(step=resume_step + 1 if resume_step else 0, session_log=start))
        self._add(first)

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
        self._add([self._event(step=step, summary=summary)])

    def picture(self, step: int, tag: str, png: bytes) -> None:
        """Add a picture, a PNG file's bytes, by its tag."""
        width, height = struct.unpack(">II", png[16:24])  # every PNG begins with them
        image = self._summaries.Summary.Image(
            height=height, width=width, colorspace=3, encoded_image_string=png
        )
        summary = self._summaries.Summary(value=[self._summaries.Summary.Value(tag=tag, image=image)])
        self._add([self._event(step=step, summary=summary)])

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _event(self, **fields: Any) -> bytes:
        event: bytes = self._events.Event(wall_time=time.time(), **fields).SerializeToString()
        return event

    def _add(self, events: Iterable[bytes]) -> None:
        if self._file is None:
            return
        buffer = io.BytesIO()
        writer = self._record_writer(buffer)
        for event in events:
            writer.write(event)
        try:
            self._file.add(buffer.getvalue())
        except OSError as error:
            self._trouble(error)

    def _trouble(self, error: OSError) -> None:
        if not self._told:
            self._told = True
            self._tell(
                f"the log for TensorBoard cannot be written ({reason(error)}: {self._folder}); "
                "the run goes on without it"
            )
