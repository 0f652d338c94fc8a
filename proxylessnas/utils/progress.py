"""A progress bar on standard error: tqdm's where tqdm is there, else a plain percentage."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Sequence
from typing import IO, Any

from ..errors import one_line, shown_message


class Bar:
    """Shows how much of a file has arrived; silent unless standard error is a terminal.

    Args:
        name: what is being fetched.
        total: bytes in all, or None if unknown.
        start: bytes that were there already.
        enabled: show it at all.
    """

    def __init__(self, name: str, total: int | None, start: int = 0, enabled: bool = True) -> None:
        self._name, self._total, self._done = name, total, start
        self._tqdm: Any = None
        self._shown = 0.0
        self._on = enabled and sys.stderr is not None and sys.stderr.isatty()
        if self._on:
            try:
                from tqdm import tqdm
            except Exception:  # noqa: BLE001 - absent or broken: a bar is a nicety
                return
            self._tqdm = tqdm(
                desc=name, total=total, initial=start, unit="B", unit_scale=True, unit_divisor=1000
            )

    def update(self, count: int) -> None:
        """Add ``count`` bytes."""
        self._done += count
        if self._tqdm is not None:
            self._tqdm.update(count)
        elif self._on and time.monotonic() - self._shown > 0.1:
            self._shown = time.monotonic()
            self._print()

    def close(self) -> None:
        """Leave the last state on the screen and end the line."""
        if self._tqdm is not None:
            self._tqdm.close()
        elif self._on:
            self._print()
            sys.stderr.write("\n")
            sys.stderr.flush()

    def _print(self) -> None:
        part = f"{100 * self._done // self._total:3d} % of {self._total / 1e6:.1f} MB" if self._total else ""
        sys.stderr.write(f"\r{self._name}: {part or f'{self._done / 1e6:.1f} MB'}")
        sys.stderr.flush()


def is_terminal(stream: IO[str] | None) -> bool:
    """Return whether lines of a stream can be rewritten in place."""
    try:
        return stream is not None and stream.isatty() and os.environ.get("TERM") != "dumb"
    except ValueError:  # closed
        return False


def columns(stream: IO[str] | None) -> int:
    """Return the width of a terminal; 80 if it does not tell."""
    try:
        width = os.get_terminal_size(stream.fileno()).columns if stream is not None else 0
    except (OSError, ValueError, AttributeError):
        width = 0
    return width or 80


def clock(seconds: float) -> str:
    """Return a duration as in "3:14" or "1:27:18"."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def fitted(fields: Sequence[tuple[str, int]], width: int) -> str:
    """Return texts in a line of at most ``width`` columns; the highest numbers give way first."""
    kept = list(fields)
    while len(kept) > 1 and len("  ".join(text for text, _ in kept)) > width:
        kept.remove(max(kept, key=lambda field: field[1]))
    return "  ".join(text for text, _ in kept)[:width]


_on_screen: StepBar | None = None


def make_room() -> None:
    """Wipe the bar that is on the screen, if there is one, so that something can be printed there."""
    if _on_screen is not None:
        _on_screen.clear()


def tell(text: str) -> None:
    """Print a message (see :func:`.safe_text.shown_message`) on standard error; a bar makes room for it."""
    if sys.stderr is None:  # closed by the caller; print() would take standard output instead
        return
    make_room()
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stdout.flush()  # keeps the order where both streams are the same terminal
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(shown_message(text) + "\n")
        sys.stderr.flush()


class StepBar:
    """A bar with figures behind it, in the last line of a terminal: tqdm's where tqdm is there, else our own.

    It never wraps, whatever the width. Only for a standard error that is a terminal (:func:`is_terminal`).
    """

    _EVERY_S = 0.1
    _WIDTHS = (8, 24)  # of the bar itself: figures give way below the first, the second is its largest

    def __init__(self) -> None:
        self._shown = float("-inf")
        self._length = 0
        self._tqdm: Any = None
        try:
            from tqdm import tqdm
        except Exception:  # noqa: BLE001 - absent or broken: a bar is a nicety
            return

        class Line(tqdm):
            monitor_interval = 0  # no thread, which worker processes would be forked with

        # A delay for ever: nothing is shown before the first show(). Rows without end: a terminal that does
        # not know how many it has would show nothing.
        self._tqdm = Line(total=1, file=sys.stderr, leave=False, delay=1e9, nrows=10**6)

    def is_due(self) -> bool:
        """Return whether enough time went by to show something new."""
        return time.monotonic() - self._shown >= self._EVERY_S

    def show(self, head: str, done: int, total: int, fields: Sequence[tuple[str, int]]) -> None:
        """Show ``done`` of ``total``, with fields as of :func:`fitted`."""
        global _on_screen
        _on_screen = self
        self._shown = time.monotonic()
        width = max(1, columns(sys.stderr) - 1)  # some terminals wrap when the last column is written
        done, total = min(done, total), max(total, 1)
        left, right = f"{head} {100 * done // total:3d} % |", f"| {done:{len(str(total))}}/{total}"
        room = width - len(left) - len(right)
        text = fitted(fields, room - self._WIDTHS[0] - 2) if room > self._WIDTHS[0] + 2 else ""
        right += f"  {text}" if text else ""
        bar = min(self._WIDTHS[1], width - len(left) - len(right))
        if self._tqdm is not None:
            self._tqdm.n, self._tqdm.total, self._tqdm.ncols = done, total, width
            braced = [part.replace("{", "{{").replace("}", "}}") for part in (left, right)]
            self._tqdm.bar_format = f"{{bar:{max(bar, 1)}}}".join(braced)
            with contextlib.suppress(OSError, ValueError):
                self._tqdm.refresh()
            return
        line = f"{left}{('#' * (max(bar, 0) * done // total)).ljust(max(bar, 0))}{right}"[:width]
        self._write("\r" + line.ljust(self._length))
        self._length = len(line)

    def clear(self) -> None:
        """Wipe the line until the next :meth:`show`."""
        global _on_screen
        _on_screen = None
        if self._tqdm is not None:
            with contextlib.suppress(OSError, ValueError):
                self._tqdm.clear()
        elif self._length:
            self._write("\r" + " " * self._length + "\r")
            self._length = 0

    def close(self) -> None:
        """Wipe the line for good."""
        self.clear()
        if self._tqdm is not None:
            with contextlib.suppress(OSError, ValueError):
                self._tqdm.close()

    @staticmethod
    def _write(text: str) -> None:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            sys.stderr.write(text)
            sys.stderr.flush()


class Steps:
    """Progress of a long measurement: a bar on a terminal, a line now and then elsewhere.

    It is called with the steps (or seconds) done, those in all, and what is going on.

    Args:
        quiet: show nothing.
        head: what is done, in a word.
    """

    _LOG_EVERY_S = 15.0

    def __init__(self, quiet: bool, head: str) -> None:
        self._head, self._quiet = head, quiet
        self._bar = StepBar() if not quiet and is_terminal(sys.stderr) else None
        self._start: tuple[float, int] | None = None  # time and steps done when it began, or went on
        self._logged = time.monotonic()
        self._what = ""

    def __call__(self, done: int, total: int, what: str = "") -> None:
        """Take note of how far it is, and show it if it is time to."""
        now = time.monotonic()
        if self._start is None:
            self._start = (now, done)
        self._what = one_line(what) if what else self._what
        left = self._left(now, done, total)
        if self._bar is not None:
            if done >= total:
                self._bar.close()
            elif self._bar.is_due():
                fields = [(f"{clock(left)} left", 0)] if left is not None else []
                self._bar.show(self._head, done, total, [*fields, (self._what, 1)])
        elif not self._quiet and now - self._logged >= self._LOG_EVERY_S:
            self._logged = now
            rest = f", {clock(left)} left" if left is not None else ""
            what = f", {self._what}" if self._what else ""
            tell(f"note: {self._head}: {100 * done // max(total, 1)} %{rest}{what}")

    def _left(self, now: float, done: int, total: int) -> float | None:
        assert self._start is not None
        begin, before = self._start
        return (now - begin) * (total - done) / (done - before) if done > before else None

    def close(self) -> None:
        """Wipe the bar."""
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> Steps:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
