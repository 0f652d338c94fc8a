"""What the command line prints: notes, errors, tables, bars and JSON."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from collections.abc import Sequence
from typing import Any

from ..errors import one_line, printable
from ..utils.progress import is_terminal, tell

_EIGHTHS = " ▏▎▍▌▋▊▉█"

#: Units of the costs of a model in a search.
UNITS = {"latency": "ms", "macs": "M", "params": "M"}


def prepare_streams() -> None:
    """Make sure that no file name and no character can make printing fail."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def note(text: str) -> None:
    """Tell the user something on standard error."""
    tell(f"note: {text}")


def error(text: str) -> None:
    """Report something that went wrong on standard error."""
    tell(f"error: {text}")


def main_process() -> bool:
    """Return whether this process, of several under torchrun, is the one that speaks."""
    return os.environ.get("RANK", "0") == "0"


def print_json(document: Any) -> None:
    """Print one JSON document."""
    print(json.dumps(document, indent=2, allow_nan=False))


def bold(text: str) -> str:
    """Return a line in bold, on a terminal that wants colours (see https://no-color.org)."""
    text = one_line(text)
    if os.environ.get("NO_COLOR") or not is_terminal(sys.stdout):
        return text
    return f"\x1b[1m{text}\x1b[0m"


def bar(fraction: float, width: int = 20) -> str:
    """Return a bar of ``width`` columns, filled from the left; in ASCII where the output needs that."""
    if "utf" in (getattr(sys.stdout, "encoding", None) or "").lower():
        eighths = round(min(max(fraction, 0.0), 1.0) * width * 8)
        return ("█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()).ljust(width)
    return ("#" * round(min(max(fraction, 0.0), 1.0) * width)).ljust(width)


def table(rows: Sequence[Sequence[str]], align: str) -> str:
    """Return rows as columns two spaces apart.

    Args:
        rows: the first is the head; what is no text of one line is escaped.
        align: one ``<`` or ``>`` a column.
    """
    rows = [[one_line(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(align))]
    lines = [
        "  ".join(f"{cell:{a}{w}}" for cell, a, w in zip(row, align, widths, strict=True)) for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


def print_table(rows: Sequence[Sequence[str]], align: str) -> None:
    """Print such a table, with its head in bold."""
    head, _, body = table(rows, align).partition("\n")
    print(bold(head))
    print(printable(body))


def pairs(rows: Sequence[tuple[str, str]], indent: str = "") -> str:
    """Return (label, text) rows as two columns; further lines of a text are put below its first."""
    rows = [(one_line(label), printable(text)) for label, text in rows]
    width = max(len(label) for label, _ in rows)
    margin = indent + " " * (width + 2)
    return "\n".join(f"{indent}{label:{width}}  " + text.replace("\n", "\n" + margin) for label, text in rows)


def millions(n: int) -> str:
    """Return a count to three digits, as in "7.12 M" or "1.21 G"."""
    value, unit = (n / 1e9, "G") if n >= 999.5e6 else (n / 1e6, "M")
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f} {unit}"


def megabytes(n: int) -> str:
    """Return a number of bytes as in "2.4 MB"."""
    return f"{n / 1e6:.1f} MB"


def ms(value: float) -> str:
    """Return milliseconds to three digits or to the hundredth of a millisecond, whichever is longer."""
    if not math.isfinite(value):
        return "-"
    return f"{value:.{3 if value < 0.995 else 2}f}"


def rate(value: float) -> str:
    """Return how many a second, to the tenth below a hundred."""
    return f"{value:,.{0 if value >= 100 else 1}f}"


def plural(n: int, noun: str) -> str:
    """Return "1 image" or "2 images"."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"
