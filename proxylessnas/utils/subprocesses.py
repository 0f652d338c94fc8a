"""Starts other programs so that files of the working folder are neither run nor imported by them."""

from __future__ import annotations

import contextlib
import os
import shutil
import site
import sys
from collections.abc import Iterator
from pathlib import Path

# With -I no folder but Python's own is searched at first. This very package comes from its place, whatever
# else is on the path under its name; packages of the user's own site may need what its .pth files do.
_START = """\
import importlib.util, site, sys
for folder in {user_sites!r}:
    site.addsitedir(folder)
sys.path[:] = {path!r}
spec = importlib.util.spec_from_file_location("proxylessnas", {package!r})
sys.modules["proxylessnas"] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
del importlib, site, sys, spec, module
"""
COMMAND_LINE = (
    "import sys; from proxylessnas.cli import main; sys.exit(main())"  # as `python -m proxylessnas`
)


def python_command(code: str, *arguments: object, working_folder: bool = False) -> list[str]:
    """Return the command of a new Python that runs some code with this very package and this search path.

    It is isolated: "" and "." are left out of the path, and variables called ``PYTHON...`` count for nothing.

    Args:
        code: what ``python -c`` takes.
        arguments: its ``sys.argv[1:]``.
        working_folder: search the working folder too, last, if it is on this one's path: for modules of the
            user's.

    Raises:
        OSError: there is no Python interpreter (``sys.executable``).
    """
    if not sys.executable:
        raise FileNotFoundError("there is no Python interpreter (sys.executable)")
    start = _START.format(
        user_sites=[site.getusersitepackages()] if site.ENABLE_USER_SITE else [],
        path=_search_path(working_folder),
        package=str(Path(__file__).resolve().parents[1] / "__init__.py"),
    )
    return [sys.executable, "-I", "-c", start + code, *map(str, arguments)]


def _search_path(working_folder: bool) -> list[str]:
    entries = [str(entry) for entry in sys.path]
    others = [os.path.abspath(entry) for entry in entries if entry not in ("", ".")]
    return [*others, os.getcwd()] if working_folder and len(others) < len(entries) else others


@contextlib.contextmanager
def safe_path() -> Iterator[None]:
    """Keep the working folder off the first path of Pythons that a library starts inside the block.

    It sets ``PYTHONSAFEPATH``, which Python 3.11 and later know; older ones fork their processes on Linux.
    """
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("PYTHONSAFEPATH", None)
        else:
            os.environ["PYTHONSAFEPATH"] = before


def find_program(name: str) -> str | None:
    """Return the full path of a program in the folders of ``PATH``, never the working folder's; else None.

    A name with a folder in it is taken as it is.
    """
    if os.path.dirname(name):
        return shutil.which(name)
    folders = filter(os.path.isabs, os.get_exec_path())
    return next(filter(None, (shutil.which(os.path.join(folder, name)) for folder in folders)), None)
