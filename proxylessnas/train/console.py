"""What a person sees of a run: a line an epoch, and within it a bar (on a terminal) or a line now and then.

Everything goes to standard error; standard output is for results.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from ..utils import progress
from ..utils.progress import clock, fitted, tell


class Console:
    """Shows a run on standard error.

    Args:
        epochs: in the whole run.
        steps_per_epoch: steps in each.
        enabled: show anything at all but notes.
        first_line_s: seconds until the first line within an epoch, where there is no terminal.
        line_every_s: seconds between such lines.
    """

    def __init__(
        self,
        epochs: int,
        steps_per_epoch: int,
        enabled: bool = True,
        first_line_s: float = 5.0,
        line_every_s: float = 30.0,
    ) -> None:
        self._epochs, self._steps_per_epoch, self._on = epochs, steps_per_epoch, enabled
        self._line_every_s = line_every_s
        self._next_line = time.monotonic() + first_line_s
        self._bar: progress.StepBar | None = None

    def is_due(self) -> bool:
        """Return whether a step would be shown now: making its text costs a little."""
        if not self._on:
            return False
        if progress.is_terminal(sys.stderr):
            return self._bar is None or self._bar.is_due()
        return time.monotonic() >= self._next_line

    def step(self, epoch: int, step: int, values: Mapping[str, Any]) -> None:
        """Show that ``step`` steps of an epoch are done.

        Args:
            epoch: counted from 1.
            step: within the epoch, counted from 1.
            values: loss, rate, images_per_second, waiting, memory_mib, seconds_left; None where unknown.
        """
        if not self._on:
            return
        texts = {key: _text(key, values.get(key)) for key in _FORMATS}
        if progress.is_terminal(sys.stderr):
            self._show(epoch, step, self._steps_per_epoch, texts)
            return
        if time.monotonic() < self._next_line:
            return
        self._next_line = time.monotonic() + self._line_every_s
        head = f"epoch {epoch}/{self._epochs}  step {step}/{self._steps_per_epoch}"
        tell("  ".join([head, *(text for key in _LINE if (text := texts[key]))]))

    def validating(self, epoch: int, done: int, total: int) -> None:
        """Show how far the validation is, on a terminal."""
        if self._on and progress.is_terminal(sys.stderr):
            self._show(epoch, done, total, {"loss": "validation"})

    def epoch(self, record: Mapping[str, Any]) -> None:
        """Show what an epoch came to."""
        if not self._on:
            return
        self.close()
        fields = [(f"epoch {record.get('epoch')}/{self._epochs}", -1)]
        fields += [(text, n) for key, n in _EPOCH.items() if (text := _text(key, record.get(key)))]
        width = progress.columns(sys.stderr) - 1 if progress.is_terminal(sys.stderr) else 10_000
        tell(fitted(fields, width))
        self._next_line = time.monotonic() + self._line_every_s

    def note(self, text: str) -> None:
        """Tell something; the bar makes room for it."""
        tell(f"note: {text}")

    def close(self) -> None:
        """Wipe the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _show(self, epoch: int, done: int, total: int, texts: Mapping[str, str]) -> None:
        if self._bar is None:
            self._bar = progress.StepBar()
        fields = [(text, n) for key, n in _BAR.items() if (text := texts.get(key, ""))]
        self._bar.show(f"epoch {epoch}/{self._epochs}", done, total, fields)


def _loss(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:.3g}"


def _rate(value: float) -> str:
    if value == 0 or value >= 1e-4:
        return f"{value:.{4 if value >= 0.01 or value == 0 else 5}f}"
    return f"{value:.2e}"


def _memory(mib: float) -> str:
    return f"{mib:.0f} MiB" if mib < 1024 else f"{mib / 1024:.1f} GiB"


_FORMATS: dict[str, Callable[[float], str]] = {
    "loss": lambda v: f"loss {_loss(v)}",
    "train_loss": lambda v: f"train loss {_loss(v)}",
    "val_loss": lambda v: f"val loss {_loss(v)}",
    "val_top1": lambda v: f"top-1 {v:.2f} %",
    "rate": lambda v: f"rate {_rate(v)}",
    "images_per_second": lambda v: f"{v:.{0 if v >= 10 else 1}f} images/s",
    "waiting": lambda v: f"waiting {100 * v:.0f} %",
    "memory_mib": _memory,
    "seconds": clock,
    "seconds_left": lambda v: f"left {clock(v)}",
}
_LINE = ("loss", "rate", "images_per_second", "waiting", "memory_mib", "seconds_left")
# In this order; where the terminal is narrow, the highest numbers give way first.
_BAR = {"loss": 0, "rate": 4, "images_per_second": 2, "memory_mib": 3, "seconds_left": 1}
_EPOCH = {
    "train_loss": 1,
    "val_loss": 3,
    "val_top1": 0,
    "images_per_second": 5,
    "seconds": 4,
    "seconds_left": 2,
}


def _text(key: str, value: Any) -> str:
    """Return a value with its name or unit; "" where there is none."""
    try:
        return _FORMATS[key](float(value))
    except (TypeError, ValueError, OverflowError):
        return ""
