"""What a person sees of a run: a line an epoch, a bar or a line now and then within it, and the time left.

Everything goes to standard error; standard output is for results.
"""

from __future__ import annotations

import math
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
        steps_per_epoch: in each.
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
        """Show that ``step`` steps of an epoch (from 1) are done, and figures; None where unknown."""
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


class TimeLeft:
    """Estimates the time left from the steps that this process has done, and the pauses between epochs.

    What came before the run was resumed may have run on another machine and does not count. The pause of an
    epoch is its validation and whatever else lies between its last step and the next epoch's first. Recent
    steps count more: the mean is over about the last 500.
    """

    _WINDOW = 500

    def __init__(self, epochs: int, steps_per_epoch: int) -> None:
        self._epochs, self._steps_per_epoch = epochs, max(1, steps_per_epoch)
        self._last: tuple[int, int, float] | None = None  # step, epoch, time
        self._seen = 0
        self._pauses: list[float] = []
        self._pause_now: float | None = None
        self._ended = 0
        self.seconds_per_step: float | None = None

    def step(self, step: int, epoch: int, now: float) -> None:
        """Take note that ``step`` steps of the run were done at the time ``now``, the last in ``epoch``."""
        last, self._last = self._last, (step, epoch, now)
        self._ended = max(self._ended, epoch - 1)
        if last is None or step <= last[0]:
            return  # the first step of a process waits for workers, compilers and caches
        steps, seconds = step - last[0], now - last[2]
        if epoch == last[1] or self.seconds_per_step is None:
            share = steps / (min(self._seen, self._WINDOW) + steps)
            old = self.seconds_per_step or 0.0
            self.seconds_per_step = old + share * (seconds / steps - old)
            self._seen += steps
        else:
            self._pauses.append(max(0.0, seconds - steps * self.seconds_per_step) / (epoch - last[1]))
        self._pause_now = None

    def epoch(self, epoch: int, now: float) -> None:
        """Take note that an epoch was ended, validation included."""
        self._ended = epoch
        if self._last is not None and self._last[1] == epoch:
            behind = max(0, epoch * self._steps_per_epoch - self._last[0]) * (self.seconds_per_step or 0.0)
            self._pause_now = max(0.0, now - self._last[2] - behind)

    def seconds(self) -> float | None:
        """Return the seconds to the end of the run; None before the second step."""
        if self._last is None or self.seconds_per_step is None:
            return None
        step = max(self._last[0], self._ended * self._steps_per_epoch)
        pauses = self._pauses if self._pause_now is None else [*self._pauses, self._pause_now]
        pause = sum(pauses) / len(pauses) if pauses else 0.0
        steps_left = max(0, self._epochs * self._steps_per_epoch - step)
        return steps_left * self.seconds_per_step + max(0, self._epochs - self._ended) * pause


class Recent:
    """A mean in which recent values count more, for figures that would flicker; over about ``window``."""

    def __init__(self, window: int = 30) -> None:
        self._window, self._count, self._mean = window, 0, 0.0

    def add(self, value: float) -> float:
        """Return the mean with one more value; the value itself if it is not finite."""
        if not math.isfinite(value):
            return value
        self._count = min(self._count + 1, self._window)
        self._mean += (value - self._mean) / self._count
        return self._mean
