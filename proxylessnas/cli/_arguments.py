"""Arguments that several commands have, and what they mean."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from ..errors import DataError, ProxylessError
from ._command import UsageError
from ._options import add, whole

_BLOCKS = "imagenet, small, tiny, cpu26, cpu26-small (imagenet@1.4: widths times 1.4)"
SPACE_HELP = f"{_BLOCKS}, or a .toml file"
ANY_SPACE_HELP = f"{_BLOCKS}, cifar-tree, cifar-tree-small, or a .toml file"
MODEL_HELP = "a model of the zoo, or a file with an architecture (.txt, .json, .safetensors)"
TABLE_HELP = "a latency table (.json), or pixel1, which comes with the package"
MOST_PIXELS, MOST_CLASSES = 65_536, 10_000_000


def add_json(parser: Any, what: str = "one JSON document") -> None:
    """Declare ``--json``."""
    add(parser, "--json", f"print {what}")


def add_quiet(parser: Any) -> None:
    """Declare ``--quiet`` and ``--json``."""
    add(parser, "--quiet", "no progress")
    add_json(parser)


def add_output(parser: Any, what: str, metavar: str = "FILE", *, required: bool = False) -> None:
    """Declare ``-o``."""
    parser.add_argument("-o", "--output", required=required, metavar=metavar, help=what)


def add_imports(parser: Any) -> None:
    """Declare ``--import``, which :func:`import_modules` obeys before the command runs."""
    parser.add_argument(
        "--import", action="append", default=[], metavar="MODULE", dest="imports",
        help="import this first: a module that registers operations; may be repeated",
    )  # fmt: skip


def imports_given(args: argparse.Namespace) -> str:
    """Return the options ``--import`` as they were given, for a command to be shown."""
    return "".join(f" --import {name}" for name in getattr(args, "imports", ()))


def import_modules(args: argparse.Namespace) -> None:
    """Import what ``--import`` names: a model with its operations cannot be read otherwise.

    Raises:
        UsageError: there is no such module, or it fails.
    """
    import importlib

    if args.imports and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # last: its files must not stand in for those of libraries
    for name in args.imports:
        try:
            importlib.import_module(name)
        except Exception as e:  # whatever the user's module raises
            raise UsageError(f"--import {name}: {type(e).__name__}: {e}") from e


def add_int8(parser: Any) -> None:
    """Declare ``--int8``, short for a value of ``--dtype``, which is declared before."""
    parser.add_argument(
        "--int8", dest="dtype", action="store_const", const="int8", default=argparse.SUPPRESS,
        help="the same as --dtype int8",
    )  # fmt: skip


def add_space(parser: Any, *, required: bool = True) -> None:
    """Declare a search space and what may differ from its defaults."""
    default = "" if required else " (default: the table's)"
    add(parser, "--space S", SPACE_HELP + default, required=required)
    add_sizes(parser)


def add_sizes(parser: Any, of: str = "") -> None:
    """Declare the sizes of input and output."""
    pixels, classes = whole(1, MOST_PIXELS), whole(1, MOST_CLASSES)
    add(parser, "--image-size N", f"side of the input{of}, px", type=pixels)
    add(parser, "--classes N", f"outputs of the classifier{of}", type=classes)


def the_space(args: argparse.Namespace, read: Any = None) -> Any:
    """Return the space that the options name; None where they name none.

    ``read`` is what reads it; by default only spaces of blocks will do, which is what latency tables hold.

    Raises:
        ArchError: there is none, or it is malformed.
        UsageError: sizes without a space.
    """
    from ..arch.spaces import read_chain

    given = {"resolution": args.image_size, "num_classes": args.classes}
    changes = {name: value for name, value in given.items() if value is not None}
    if args.space is None:
        if changes:
            raise UsageError("--image-size and --classes change a space: name it with --space")
        return None
    space = (read or read_chain)(args.space)
    return space.replace(**changes) if changes else space


def check_output(file: str | os.PathLike[str], option: str, *endings: str) -> None:
    """Check that a file can be written, before anything long is done for it.

    Raises:
        UsageError: it has another ending.
        DataError: it cannot be written there.
        MissingExtraError: it is an image, and what draws it is not installed.
    """
    path = Path(file)
    if endings and path.suffix.lower() not in endings:
        raise UsageError(f"{option} writes a {' or '.join(endings)} file, not {str(file)!r}")
    folder = path.parent
    if not folder.is_dir():
        raise DataError(f"{option} {file}: there is no folder {folder}")
    if path.is_dir():
        raise DataError(f"{option} {file}: is a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise DataError(f"{option} {file}: the folder {folder} cannot be written")
    if path.suffix.lower() == ".png":
        from ..utils.plotting import require_matplotlib

        require_matplotlib()


def written(file: str | os.PathLike[str] | None, write: Any) -> bool:
    """Write a file when the results are out, so that what goes wrong here loses none; tell whether it did.

    Args:
        file: where to; None for nowhere.
        write: called with it.
    """
    from ._output import error

    try:
        if file is not None:
            write(file)
    except OSError as e:
        error(f"{file}: cannot be written ({e.strerror or e})")
        return False
    except ProxylessError as e:
        error(f"{file} is not written: {e}")
        return False
    return True
