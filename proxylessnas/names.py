"""What a word means: a net of the zoo, or a file."""

from __future__ import annotations

import os

from .errors import UnknownModelError
from .published import normalise_name

WEIGHTS_SUFFIXES = (".pth", ".pt", ".tar", ".bin", ".ckpt", ".safetensors")
ARCH_SUFFIXES = (".json", ".config", ".txt")


def is_weights_file(path: str | os.PathLike[str]) -> bool:
    """Tell by the suffix whether a path is one of weights."""
    return os.fspath(path).lower().endswith(WEIGHTS_SUFFIXES)


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
