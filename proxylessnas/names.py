"""What a word means: a net of the zoo, or a file."""

from __future__ import annotations

import os
from pathlib import Path

from .errors import UnknownModelError
from .published import PUBLISHED, normalise_name

WEIGHTS_SUFFIXES = (".pth", ".pt", ".tar", ".bin", ".ckpt", ".safetensors")
_RUN_FILES = ("model", "child")  # every training, and every search, calls its net so
ARCH_SUFFIXES = (".json", ".config", ".txt")


def is_weights_file(path: str | os.PathLike[str]) -> bool:
    """Tell by the suffix whether a path is one of weights."""
    return os.fspath(path).lower().endswith(WEIGHTS_SUFFIXES)


def name_of_file(path: str | os.PathLike[str], arch_name: str = "") -> str:
    """Return the name of the net in a file, which is its own, not that of the published net it came from.

    A file of weights is called like the file; the one that a run leaves, like the run's folder. A file of an
    architecture has the name in it, unless that is one of the zoo's or says nothing.

    Args:
        path: of the file.
        arch_name: the name that its architecture has.
    """
    file = Path(path)
    if is_weights_file(file):
        return (file.resolve().parent.name if file.stem in _RUN_FILES else "") or file.stem
    return file.stem if arch_name in ("", "net", *PUBLISHED) else arch_name


def looks_like_path(word: str | os.PathLike[str]) -> bool:
    """Tell a file's path from a net's name: it has a separator or a known suffix, or there is such a file.

    Names of nets win, so that a file in the working folder never changes what they mean.
    """
    if not isinstance(word, str):
        return True
    if "/" in word or os.sep in word or word.lower().endswith(WEIGHTS_SUFFIXES + ARCH_SUFFIXES):
        return True
    try:
        normalise_name(word)
    except UnknownModelError:
        return os.path.isfile(word)
    return False
