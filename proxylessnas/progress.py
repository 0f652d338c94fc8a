"""A progress bar on standard error: tqdm's where tqdm is there, else a plain percentage."""

from __future__ import annotations

import sys
import time
from typing import Any


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
