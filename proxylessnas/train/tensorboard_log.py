"""Figures of a run for TensorBoard."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from proxylessnas.errors import missing_extra

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


class TensorBoardLog:
    """Writes scalars; the x axis is the step everywhere, which lets TensorBoard cut off a run's lost end.

    Args:
        folder: for the event files.
        resume_step: steps done before; what older event files hold of later ones is hidden.
        tell: is told in words what went wrong; the run then goes on without TensorBoard.

    Raises:
        MissingExtraError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path, resume_step: int, tell: Callable[[str], None]) -> None:
        self._folder, self._tell = folder, tell
        self._writer: Any = None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it imports modules that Python or setuptools is to drop
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise missing_extra("tensorboard", "a log for TensorBoard", "train") from error
        try:
            old = any(folder.glob("events.out.tfevents.*"))
            # Events of this step and later ones are hidden.
            purge = (resume_step + 1 if resume_step else 0) if old else None
            self._writer = SummaryWriter(str(folder), purge_step=purge)
        except OSError as error:
            self._stop(error)

    def write(self, step: int, values: Mapping[str, Any], only: tuple[str, ...] = tuple(_TAGS)) -> None:
        """Add the values that have a place in TensorBoard."""
        if self._writer is None:
            return
        try:
            for key in only:
                value = values.get(key)
                if isinstance(value, (int, float)) and math.isfinite(value):
                    self._writer.add_scalar(_TAGS[key], value, step)
        except (OSError, RuntimeError, ValueError) as error:
            self._stop(error)

    def close(self) -> None:
        """Write what is waiting."""
        writer, self._writer = self._writer, None
        if writer is not None:
            try:
                writer.close()
            except (OSError, RuntimeError, ValueError) as error:
                self._stop(error)

    def _stop(self, error: Exception) -> None:
        writer, self._writer = self._writer, None
        self._tell(
            f"{self._folder}: TensorBoard's log cannot be written ({error}); the run goes on without it"
        )
        if writer is not None:
            with contextlib.suppress(OSError, RuntimeError, ValueError):
                writer.close()
