"""What a word means: a net of the zoo, or a file."""

from __future__ import annotations

import os
from pathlib import Path

from ..arch.published import normalise_name
from ..errors import UnknownModelError, short_name

WEIGHTS_SUFFIXES = (".pth", ".pt", ".tar", ".bin", ".ckpt", ".safetensors")
_RUN_FILES = ("model.safetensors", "child.safetensors", "arch.txt", "net.config")
ARCH_SUFFIXES = (".json", ".config", ".txt")


def is_weights_file(path: str | os.PathLike[str]) -> bool:
    """Tell by the suffix whether a path is one of weights."""
    return os.fspath(path).lower().endswith(WEIGHTS_SUFFIXES)


def name_of_file(path: str | os.PathLike[str]) -> str:
    """Return the name of the net in a file: its own, not that of the published net it may have come from.

    It is called like the file; the nets that every run leaves under the same name, like the run's folder.
    """
    file = Path(path)
    return short_name((file.resolve().parent.name if file.name in _RUN_FILES else "") or file.stem, "model")


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
