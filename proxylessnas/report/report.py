"""A run as one HTML file that needs nothing else: to read on a phone, to print, to keep for years."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from ..errors import DataError, short_name
from ..utils.plotting import require_matplotlib
from .draw_search import slider
from .page import RunPage, write_page
from .resolve import is_search
from .runs import LOG, LOG_FILE, TABLE, SearchRun, TrainRun, read_run, read_train_run
from .search_page import search_page, search_title
from .train_page import train_page

Run = TypeVar("Run", SearchRun, TrainRun)


def write_report(
    folder: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    compare: Sequence[str | os.PathLike[str]] = (),
) -> list[str]:
    """Write the report of a search or a training run, and return what is missing in it, in words.

    A log that is damaged or cut off gives a report of what there is, with a note.

    Args:
        folder: of the run, finished or not.
        path: of the HTML file; it is replaced as a whole, or not at all.
        compare: folders of other runs of the same kind.

    Raises:
        DataError: a folder holds no run, or one of another kind; or its log says nothing.
        MissingExtraError: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    require_matplotlib()
    folder = Path(folder)
    words = ["proxylessnas", "report", folder, *(["--compare", *compare] if compare else []), "-o", path]
    command = shlex.join([os.fspath(word) for word in words])
    notes: list[str] = []
    if _is_search(folder):
        page = search_page(_read(read_run, folder, compare, notes), folder, notes, command)
    else:
        page = train_page(_read(read_train_run, folder, compare, notes), folder, notes, command)
    write_page(page, path)
    return notes


def write_movie_page(run: SearchRun, path: str | os.PathLike[str], *, name: str = "search") -> None:
    """Write the search as a page with a slider, and nothing else.

    Args:
        run: of :func:`~proxylessnas.report.runs.read_run`.
        path: of the HTML file; it is replaced as a whole, or not at all.
        name: of the search.

    Raises:
        DataError: the log has no probabilities.
        MissingExtraError: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    require_matplotlib()
    title, about = search_title(run)
    write_page(RunPage(title=f"{title}: {name}", about=about, notes=run.notes, slider=slider(run)), path)


def _is_search(folder: Path) -> bool:
    """Return whether the folder is that of a search.

    Raises:
        DataError: it is neither that of a search nor that of a training.
    """
    if not folder.is_dir():
        raise DataError(
            f"{folder}: is no folder of a run" if folder.exists() else f"{folder}: no such folder"
        )
    if is_search(folder):
        return True
    if not (folder / TABLE).is_file() and not (folder / LOG).is_file():
        raise DataError(
            f"{folder}: holds no run; expected is {LOG_FILE} of a search, or {TABLE} or {LOG} of a training"
        )
    return False


def _read(
    read: Callable[[Path], Run], folder: Path, compare: Sequence[str | os.PathLike[str]], notes: list[str]
) -> dict[str, Run]:
    """Return runs by names that are all different; what is missing in them is added to the notes."""
    runs: dict[str, Run] = {}
    search = _is_search(folder)
    kinds = ("a training", "a search")
    for path in (folder, *map(Path, compare)):
        if _is_search(path) is not search:
            raise DataError(f"{path}: is {kinds[not search]}, which cannot be compared with {kinds[search]}")
        run = read(path)
        notes += [f"{path}: {text}" if runs else text for text in run.notes]
        name = unique = short_name(path.resolve().name, "run")
        while unique in runs:
            unique = f"{name} ({len(runs) + 1})"
        runs[unique] = run
    return runs
