"""Text for messages and tables: counts, a few names, and what comes from outside made safe to show."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from types import SimpleNamespace

from ..errors import one_line

_SCHEME = re.compile(r"\W*[A-Za-z][A-Za-z0-9+.-]*:/+")
_NO_PORT = re.compile(r"(?<=:)(?!\d{1,5}$).+")
_MAY_HOLD_SECRETS = re.compile(r"@|%40|\?|://")
_LONGEST_URL = 200
_RUN_BY_SPREADSHEETS = re.compile(r"'*\s*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
_SHOWN = 5  # at most so many names in a message


def counted(n: int, noun: str, plural: str | None = None) -> str:
    """Return "1 folder", "2 folders", "1,000 folders"."""
    return f"{n} {noun}" if n == 1 else f"{n:,} {plural or noun + 's'}"


def large(n: int) -> str:
    """Return a whole number of any size: "8,000", "2.2e17", "10^548"."""
    if n < 10**9:
        return f"{n:,}"
    return f"{n:.1e}".replace("e+", "e") if n < 10**300 else f"10^{math.log10(n):.0f}"


def some_of(names: Sequence[str]) -> str:
    """Return the first few names, for a message."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def shown_url(url: str) -> str:
    """Return an address for messages and logs: without user, password and query, whatever is wrong with it.

    A password may hold any character, so of a malformed address all is hidden that could belong to one.
    """
    head, mark, rest = re.match(r"([^?#]*)([?#]?)(.*)", url, re.DOTALL).groups()  # type: ignore[union-attr]
    found = _SCHEME.match(head)
    scheme = found[0] if found else ""
    *secret, place = re.split("@|%40", head[len(scheme) :])
    if re.search("@|%40", rest) and not secret:  # is it in a query, or the end of a password with ? or #
        secret, place = [place], ""
    host, slash, path = place.partition("/")
    if not host.startswith("["):
        host = _NO_PORT.sub("***", host)  # of user:password, with no @
    text = scheme + ("***@" if secret else "") + host + slash + path + (f"{mark}***" if mark else "")
    return one_line(text if len(text) <= _LONGEST_URL else text[: _LONGEST_URL - 3] + "...")


def shown_reason(text: str) -> str:
    """Return what a library says in one line, with every address in it as :func:`shown_url` has it."""
    words = text.split()
    return " ".join(shown_url(word) if _MAY_HOLD_SECRETS.search(word) else one_line(word) for word in words)


def csv_text(columns: Sequence[object], rows: Iterable[Sequence[object]], *, head: bool = True) -> str:
    """Return a table as CSV text, with lines that end with a line feed; None is an empty cell.

    Texts that a spreadsheet would run as a formula get an apostrophe in front, which :func:`csv_rows` takes
    off; numbers stay numbers.

    Raises:
        ValueError: a row has another number of cells than there are columns.
    """
    lines: list[str] = []
    writer = csv.writer(SimpleNamespace(write=lines.append))  # with its \r\n it quotes both in cells
    for row in [columns, *rows] if head else rows:
        if len(row) != len(columns):
            raise ValueError(f"a row of {len(row)} cells in a table of {len(columns)} columns")
        writer.writerow([f"'{cell}" if _is_run(cell) else cell for cell in row])
    return "".join(line.removesuffix("\r\n") + "\n" for line in lines)


def csv_rows(text: str) -> Iterator[dict[str, str]]:
    """Yield the rows of a text of :func:`csv_text` by column, or raise csv.Error; a missing cell is "?"."""
    lines = io.StringIO(text.replace("\0", ""), newline="")  # csv refuses zero bytes in some versions
    table = (
        [cell[1:] if cell[:1] == "'" and _is_run(cell) else cell for cell in row] for row in csv.reader(lines)
    )
    columns = next(filter(None, table), [])
    for row in filter(None, table):
        yield dict(zip(columns, row + ["?"] * (len(columns) - len(row)), strict=False))


def _is_run(cell: object) -> bool:
    return isinstance(cell, str) and bool(_RUN_BY_SPREADSHEETS.match(cell)) and not _NUMBER.fullmatch(cell)
