"""Tells what a caller named: a model of the zoo, a file, an architecture, or a module that exists."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..arch.arch import Arch
from ..arch.published import PUBLISHED, normalise_name
from ..arch.text import MAX_TEXT
from ..arch.tree import TreeArch
from ..errors import ArchError, UnknownModelError, short_name, shown
from ..utils.files import read_text
from ..weights.record import Weights
from ..weights.registry import find_by_digest, get_weights

if TYPE_CHECKING:
    from torch import nn

WEIGHTS_SUFFIXES = (".pth", ".pt", ".tar", ".bin", ".ckpt", ".safetensors")
ARCH_SUFFIXES = (".json", ".config", ".txt")
_RUN_FILES = ("model.safetensors", "child.safetensors", "arch.txt", "net.config")

Kind = Literal["zoo", "weights file", "arch file", "arch", "module"]


@dataclass(frozen=True, eq=False)
class Resolved:
    """What a caller named. Nothing is read before it is asked for.

    Attributes:
        kind: a name of the "zoo"; a file of weights or of an architecture, told apart by the suffix; an
            architecture; or a module.
        given: the name or path as the caller wrote it; None for what is no text.
        path: of a file, which need not be there; else None.
        module: the module, unchanged; else None.
    """

    kind: Kind
    given: str | None = None
    path: Path | None = None
    module: nn.Module | None = None
    _arch: Arch | TreeArch | None = None

    @functools.cached_property
    def weights(self) -> Weights | None:
        """The published weights of a name, or those that a file is, byte for byte; None for all else."""
        if self.kind == "zoo":
            return get_weights(self.arch.name)
        return find_by_digest(self.path) if self.path is not None and self.kind == "weights file" else None

    @functools.cached_property
    def name(self) -> str:
        """Of the model: that of the zoo or the architecture; a file's own unless it is a published one."""
        if self.path is not None:
            return self.weights.name if self.weights is not None else name_of_file(self.path)
        return str(getattr(self.module, "name", "")) if self._arch is None else self._arch.name

    @functools.cached_property
    def arch(self) -> Arch | TreeArch:
        """The architecture, read from a file or its header, or ArchError, which names file and place."""
        if self._arch is not None:
            return self._arch
        path = self.path
        if path is None:
            raise ArchError(f"a {type(self.module).__name__} does not say its architecture")
        suffix = path.suffix.lower()
        if self.kind == "arch file":
            if suffix in (".json", ".config"):
                return Arch.from_official(path)
            return _parsed(read_text(path, "an architecture", ArchError, 2 * MAX_TEXT), path)
        if suffix == ".safetensors":
            from ..utils.tensor_files import read_metadata

            metadata = read_metadata(path)
            if "arch" in metadata:
                return _parsed(metadata["arch"], path)
        if self.weights is None:
            raise ArchError(
                f"{path}: holds weights but no architecture; name one: NAME_OR_ARCH --weights FILE "
                "(create_model(NAME_OR_ARCH, weights=FILE) in Python)"
            )
        return PUBLISHED[self.weights.arch]


def _parsed(text: str, path: Path) -> Arch | TreeArch:
    try:
        return Arch.parse(text)
    except ArchError as e:
        raise ArchError(f"{path}: {e}") from e


def resolve(what: object) -> Resolved:
    """Tell what a caller named, without loading any weights.

    A text is a path if it has a separator or a known suffix, or if there is such a file and no model of the
    zoo is called so: a file in the working folder never changes what a name means.

    Args:
        what: a name of the zoo, the path of a file, an architecture or a module.

    Raises:
        UnknownModelError: no model of the zoo and no file is called so; the nearest names are listed.
        TypeError: it is something else.
    """
    if isinstance(what, (Arch, TreeArch)):
        return Resolved("arch", _arch=what)
    if isinstance(what, os.PathLike) or (isinstance(what, str) and looks_like_path(what)):
        given = os.fspath(what)
        holds_weights = is_weights_file(given)
        if not (holds_weights or given.lower().endswith(ARCH_SUFFIXES)):
            holds_weights = find_by_digest(given) is not None  # a published file that somebody renamed
        return Resolved("weights file" if holds_weights else "arch file", given, Path(given))
    if isinstance(what, str):
        try:
            return Resolved("zoo", what, _arch=PUBLISHED[normalise_name(what)])
        except UnknownModelError as e:
            other = "file" if os.path.isdir(what) else "file or folder"
            raise UnknownModelError(f"{e} (and no {other} is called so)") from e
    from torch import nn

    if isinstance(what, nn.Module):
        arch = getattr(what, "arch", None)
        return Resolved("module", module=what, _arch=arch if isinstance(arch, (Arch, TreeArch)) else None)
    raise TypeError(f"must be a module, an architecture, a zoo name or a file, not {shown(what)}")


def read_arch(path: str | os.PathLike[str]) -> Arch | TreeArch:
    """Read an architecture from a ``.json``/``.config`` file, a text, or a ``.safetensors`` header.

    A published ``.pth`` file, known by its digest, has the architecture it was published with.

    Raises:
        ArchError: there is none, or it is malformed; the message names the file and the place.
    """
    return resolve(Path(path)).arch


def is_weights_file(path: str | os.PathLike[str]) -> bool:
    """Tell by the suffix whether a path is one of weights."""
    return os.fspath(path).lower().endswith(WEIGHTS_SUFFIXES)


def name_of_file(path: str | os.PathLike[str]) -> str:
    """Return the name of the model in a file: its own, not that of the published one it may have come from.

    It is called like the file; the models that every run leaves under the same name, like the run's folder.
    """
    file = Path(path)
    return short_name((file.resolve().parent.name if file.name in _RUN_FILES else "") or file.stem, "model")


def looks_like_path(word: str) -> bool:
    """Tell a file's path from a model's name, as :func:`resolve` does."""
    if "/" in word or os.sep in word or word.lower().endswith(WEIGHTS_SUFFIXES + ARCH_SUFFIXES):
        return True
    try:
        normalise_name(word)
    except UnknownModelError:
        return os.path.isfile(word)
    return False
