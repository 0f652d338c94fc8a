"""What the words on the command line mean: a net of the zoo, or a file."""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UnknownModelError, WeightsNotFoundError
from ..user_files import open_file

if TYPE_CHECKING:
    from ..weights import Weights


def existing_file(word: str) -> Path:
    """Return the path of a file that is there.

    Raises:
        WeightsNotFoundError: there is none; the message names it.
    """
    path = Path(word)
    try:
        if path.is_dir():
            raise WeightsNotFoundError(f"{word}: is a folder, not a file")
        if not path.exists():
            raise WeightsNotFoundError(f"{word}: no such file")
    except (OSError, ValueError) as e:  # a name too long, or with a zero byte
        if isinstance(e, WeightsNotFoundError):
            raise
        raise WeightsNotFoundError(f"{word}: not a file name ({getattr(e, 'strerror', None) or e})") from e
    return path


def imports_given(args: argparse.Namespace) -> str:
    """Return the options ``--import`` as they were given, for a command to be shown."""
    return "".join(f" --import {name}" for name in getattr(args, "imports", ()))


def sha256_of(path: Path) -> str:
    """Return a file's SHA-256.

    Raises:
        WeightsNotFoundError: it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with open_file(path) as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except OSError as e:
        raise WeightsNotFoundError(f"{path}: cannot be read ({e.strerror or e})") from e
    return digest.hexdigest()


def published(word: str) -> Weights:
    """Return the published weights of a net, by name.

    Raises:
        UnknownModelError: no net or file is called so; the message lists the nearest.
    """
    from ..weights import get_weights

    try:
        return get_weights(word)
    except UnknownModelError as e:
        raise UnknownModelError(f"{e} (and no file is called so)") from e
