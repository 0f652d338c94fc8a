"""Stop a run between two steps: on SIGTERM (a job scheduler's) and on Ctrl-C."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

_IMPATIENT_S = 2.0  # torchrun hands a Ctrl-C on to processes that the terminal has told already


class Stopped(Exception):
    """A signal came while something was done that can be done again."""


class StopRequest:
    """Notes the first SIGTERM or SIGINT while the block runs; a second Ctrl-C interrupts at once.

    Attributes:
        signal: the number of the signal that came, or None.
        at_once: interrupt at the first one, as a second Ctrl-C does: what is done now can be done again.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self.at_once = False
        self._since = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        # Python lets only the main thread set handlers; elsewhere the program around it decides.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._before.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal, self._since = number, time.monotonic()
            if self.at_once:
                raise KeyboardInterrupt
        elif number == signal.SIGINT and time.monotonic() - self._since > _IMPATIENT_S:
            raise KeyboardInterrupt
