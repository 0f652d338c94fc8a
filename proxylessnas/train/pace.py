"""How fast a run goes, and how long the rest of it takes."""

from __future__ import annotations

import math


class Pace:
    """Estimates the time left from the steps that this process has done, and the pauses between epochs.

    What came before a continuation may have run on another machine and does not count. The pause of an epoch
    is its validation and whatever else lies between its last step and the next epoch's first. Recent steps
    count more: the mean is over about the last 500.

    Args:
        epochs: in the whole run.
        steps_per_epoch: steps in each.
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

    def left(self) -> float | None:
        """Return the seconds to the end of the run; None before the second step."""
        if self._last is None or self.seconds_per_step is None:
            return None
        step = max(self._last[0], self._ended * self._steps_per_epoch)
        pauses = self._pauses if self._pause_now is None else [*self._pauses, self._pause_now]
        pause = sum(pauses) / len(pauses) if pauses else 0.0
        steps_left = max(0, self._epochs * self._steps_per_epoch - step)
        return steps_left * self.seconds_per_step + max(0, self._epochs - self._ended) * pause


class Recent:
    """A mean in which recent values count more, for figures that would flicker.

    Args:
        window: about how many values it is over.
    """

    def __init__(self, window: int = 30) -> None:
        self._window, self._count, self._mean = window, 0, 0.0

    def add(self, value: float) -> float:
        """Return the mean with one more value; the value itself if it is not finite."""
        if not math.isfinite(value):
            return value
        self._count = min(self._count + 1, self._window)
        self._mean += (value - self._mean) / self._count
        return self._mean
