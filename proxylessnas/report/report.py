"""A run as one HTML file that needs nothing else: to read on a phone, to print, to keep for years."""

from __future__ import annotations

import datetime
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from .._version import __version__
from ..errors import DataError
from ..utils.plotting import require_matplotlib
from .compare import compare_section
from .page import Raw, facts, notes, page, section, write_page
from .resolve import is_search
from .runs import LOG, LOG_FILE, TABLE, SearchRun, TrainRun, read_run, read_train_run
from .search_page import again, search_parts, search_title, versions
from .slider import slider
from .train_page import train_again, train_comparison, train_parts, train_title, train_versions


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
    make = _search if _is_search(folder) else _training
    text, said = make(folder, compare, command)
    write_page(text, path)
    return said


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
    if not run.snapshots:
        raise DataError(
            "the search has no arch step or epoch with probabilities yet: there is nothing to show"
        )
    title, about = search_title(run)
    body = section("The search, step by step", slider(run))
    write_page(page(f"{title}: {name}", about, notes(run.notes), body, footer=_footer(), script=True), path)


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


def _search(folder: Path, compare: Sequence[str | os.PathLike[str]], command: str) -> tuple[str, list[str]]:
    run = read_run(folder)
    said = list(run.notes)
    runs = {folder.resolve().name: run}
    for other in map(Path, compare):
        if not _is_search(other):
            raise DataError(f"{other}: is a training, which cannot be compared with a search")
        read = read_run(other)
        said += [f"{other}: {text}" for text in read.notes]
        runs[_free(other.resolve().name, runs)] = read
    parts = search_parts(run, folder, said)
    title, about = search_title(run)
    body = page(
        title, about, notes(said), *parts,
        compare_section(runs, folder),
        section("Do it again", again(run, folder, command)),
        section("Versions", facts([*versions(run), ("report", _written())])),
        footer=_footer(), script=bool(run.snapshots),
    )  # fmt: skip
    return body, said


def _training(folder: Path, compare: Sequence[str | os.PathLike[str]], command: str) -> tuple[str, list[str]]:
    run = read_train_run(folder)
    said = list(run.notes)
    runs: dict[str, TrainRun] = {run.name: run}
    for other in map(Path, compare):
        if _is_search(other):
            raise DataError(f"{other}: is a search, which cannot be compared with a training")
        read = read_train_run(other)
        said += [f"{other}: {text}" for text in read.notes]
        runs[_free(read.name, runs)] = read
    parts = train_parts(run, said)
    title, about = train_title(run)
    body = page(
        title, about, notes(said), *parts,
        train_comparison(runs),
        section("Do it again", train_again(run, folder, command)),
        section("Versions", facts([*train_versions(run), ("report", _written())])),
        footer=_footer(),
    )  # fmt: skip
    return body, said


def _free(name: str, taken: dict[str, SearchRun] | dict[str, TrainRun]) -> str:
    """Return the name, with a number if it is taken."""
    number, found = 2, name
    while found in taken:
        found, number = f"{name} ({number})", number + 1
    return found


def _written() -> str:
    return f"written {datetime.date.today().isoformat()} by proxylessnas {__version__}"


def _footer() -> Raw:
    return Raw(f"proxylessnas {__version__}. This file needs no network and no other file.")
