"""What the verbs that measure or use latencies have in common: options, progress, and how numbers look."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import LatencyError
from ..runtimes.registry import runtimes
from ..runtimes.settings import DEVICES, DTYPES, MEMORY_FORMATS
from ..utils.progress import Steps as Steps
from ._command import UsageError
from ._options import MOST_CLASSES, MOST_IMAGES, MOST_PIXELS, MOST_THREADS, one_of, whole

if TYPE_CHECKING:
    from ..arch.space import SearchSpace
    from ..latency import LatencyTable

SPACE_HELP = "imagenet, small, tiny (imagenet@1.4: widths times 1.4), or a .toml file"
MODEL_HELP = "a model of the zoo, or a file with an architecture (.txt, .json, .safetensors)"
TABLE_HELP = "a latency table (.json), or pixel1, which comes with the package"


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Declare where and how a model is run, one value each."""
    group = parser.add_argument_group("settings", "What the latencies hold for; a table keeps them.")
    group.add_argument(
        "--runtime", type=one_of(tuple(runtimes())), default="torch", metavar="R",
        help=f"{', '.join(runtimes())} (default: torch)",
    )  # fmt: skip
    group.add_argument(
        "--threads", type=whole(1, MOST_THREADS), default=1, metavar="N", help="threads on a CPU (default: 1)"
    )
    group.add_argument(
        "--batch", type=whole(1, MOST_IMAGES), default=1, metavar="N", dest="batch_size",
        help="images a call (default: 1)",
    )  # fmt: skip
    add_where(group)
    group.add_argument("--cuda-graph", action="store_true", help="replay a CUDA graph (with --device cuda)")


def add_where(group: Any) -> None:
    """Declare the settings that have one value even in a bench."""
    group.add_argument(
        "--device", type=one_of(DEVICES), default="cpu", metavar="D",
        help=f"{' or '.join(DEVICES)} (default: cpu)",
    )  # fmt: skip
    group.add_argument(
        "--dtype", type=one_of(DTYPES), default="float32", metavar="T", help=f"{', '.join(DTYPES)}"
    )
    group.add_argument(
        "--memory-format", type=one_of(MEMORY_FORMATS), default="channels_last", metavar="F",
        help=f"{' or '.join(MEMORY_FORMATS)}, for torch (default: channels_last)",
    )  # fmt: skip
    add_imports(group)


def add_imports(parser: argparse._ActionsContainer) -> None:
    """Declare ``--import``, which :func:`import_modules` obeys."""
    parser.add_argument(
        "--import", action="append", default=[], metavar="MODULE", dest="imports",
        help="import this first: a module that registers operations; may be repeated",
    )  # fmt: skip


def add_space(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Declare a search space and what may differ from its defaults."""
    default = "" if required else " (default: the table's)"
    parser.add_argument("--space", required=required, metavar="S", help=SPACE_HELP + default)
    add_sizes(parser)


def add_sizes(parser: argparse._ActionsContainer, of: str = "") -> None:
    """Declare the sizes of input and output."""
    parser.add_argument(
        "--image-size", type=whole(1, MOST_PIXELS), metavar="N", help=f"side of the input{of}, px"
    )
    parser.add_argument(
        "--classes", type=whole(1, MOST_CLASSES), metavar="N", help=f"outputs of the classifier{of}"
    )


def add_quiet(parser: argparse.ArgumentParser) -> None:
    """Declare ``--quiet`` and ``--json``."""
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def check_graph(args: argparse.Namespace, runtimes: Sequence[str]) -> None:
    """Check that ``--cuda-graph`` goes with the other settings.

    Raises:
        UsageError: it does not.
    """
    if args.cuda_graph and (args.device != "cuda" or set(runtimes) != {"torch"}):
        raise UsageError("--cuda-graph needs --device cuda and --runtime torch")


def import_modules(args: argparse.Namespace) -> None:
    """Import what ``--import`` names, here too: a model with its operations cannot be read otherwise.

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


def the_space(args: argparse.Namespace) -> SearchSpace | None:
    """Return the space that the options name; None where they name none.

    Raises:
        ArchError: there is none, or it is malformed.
        UsageError: sizes without a space.
    """
    from ..arch.spaces import read_space

    changes = {
        name: value
        for name, value in (("resolution", args.image_size), ("num_classes", args.classes))
        if value is not None
    }
    if args.space is None:
        if changes:
            raise UsageError("--image-size and --classes change a space: name it with --space")
        return None
    space = read_space(args.space)
    return space.replace(**changes) if changes else space


def read_table(word: str) -> LatencyTable:
    """Return a latency table.

    Raises:
        LatencyError: there is none, or it is malformed.
    """
    from ..latency import LatencyTable

    return LatencyTable.load(word)


def check_output(file: str | os.PathLike[str], option: str, *endings: str) -> None:
    """Check that a file can be written, before anything long is measured for it.

    Raises:
        UsageError: it has another ending.
        LatencyError: it cannot be written there.
        MissingExtraError: it is an image, and what draws it is not installed.
    """
    path = Path(file)
    if endings and path.suffix.lower() not in endings:
        raise UsageError(f"{option} writes a {' or '.join(endings)} file, not {str(file)!r}")
    folder = path.parent
    if not folder.is_dir():
        raise LatencyError(f"{option} {file}: there is no folder {folder}")
    if path.is_dir():
        raise LatencyError(f"{option} {file}: is a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise LatencyError(f"{option} {file}: the folder {folder} cannot be written")
    if path.suffix.lower() == ".png":
        from ..utils.plotting import require_matplotlib

        require_matplotlib()


def ms(value: float) -> str:
    """Return milliseconds to three digits or to the hundredth of a millisecond, whichever is longer."""
    if not math.isfinite(value):
        return "-"
    return f"{value:.{3 if value < 0.995 else 2}f}"


def percent(value: float | None, *, sign: bool = False) -> str:
    """Return a number of percent as in "3.1 %"."""
    return "-" if value is None else f"{value:{'+' if sign else ''}.1f} %"
