"""The pictures that a run held out for validation, and which of them an earlier run trained on."""

from __future__ import annotations

import os
from pathlib import Path, PurePath

from ..user_files import read_bytes
from .pictures import Data

VALIDATION_FILE = "validation.txt"  # of a run: the names of the pictures it validated on


def validation_names(data: Data) -> list[str]:
    """Return the names of the validation pictures, [] without any."""
    return [] if data.val is None else [data.val.name(i) for i in range(len(data.val))]


def not_held_out_before(source: str | os.PathLike[str], data: Data) -> int | None:
    """Return how many of the pictures held out here the run of a trained file did not hold out.

    It may have trained on these, if it had them. More pictures, or another seed, hold out others.

    Args:
        source: the file, in the folder of its run.
        data: with a part that is held out.

    Returns:
        None where no record lies beside the file.
    """
    path = Path(source)
    if not path.is_file():  # the name of a net
        return None
    try:
        earlier = read_bytes(path.with_name(VALIDATION_FILE)).decode().splitlines()
    except (OSError, ValueError):
        return None
    return len({_short(name) for name in validation_names(data)}.difference(map(_short, earlier)))


def _short(name: str) -> tuple[str, ...]:
    """Return a picture's class folder and file: the same folder of pictures can be written in many ways."""
    return PurePath(name).parts[-2:]
