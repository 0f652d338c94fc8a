"""The interface of a file format, and the formats by suffix."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from torch import Tensor

from ...arch.tree import TreeArch
from ...errors import ExportError, shown
from ...utils.lazy_names import declared
from ..bundle import ModelBundle
from ..settings import ExportOptions

#: Runs a file in its own runtime: images as the file takes them, [N, C, H, W], to logits [N, classes] on
#: the CPU in float32. Any N that the file allows.
Program = Callable[[Tensor], Tensor]


class Format(Protocol):
    """One kind of file: how it is written, and how its own runtime runs it."""

    name: str  # for people: "ONNX"
    suffix: str  # ".onnx"

    def versions(self) -> dict[str, str]:
        """Return the versions of the libraries it is written and run with.

        Raises:
            MissingExtraError: one is not installed; the message gives the pip line.
        """

    def check(self, bundle: ModelBundle, options: ExportOptions) -> None:
        """Refuse at once what cannot work.

        Raises:
            ExportError: the format lacks an option that is asked for.
            MissingExtraError: a library is not installed.
        """

    def write(self, bundle: ModelBundle, path: Path, options: ExportOptions) -> list[Path]:
        """Write the file, and return it with the files that belong to it (as an OpenVINO ``.bin``).

        ``path`` lies in a folder of the export's own; whoever calls moves what is proven to its place.

        Raises:
            ExportError: the model has an operation that the format lacks, or the exporter failed.
        """

    def open(self, path: Path, *, threads: int | None = None) -> Program:
        """Load a file in its own runtime, as those who get it will, in float32 where the file says so.

        Raises:
            ExportError: the file cannot be loaded.
        """


def refuse(fmt: Format, options: ExportOptions, *known: str) -> None:
    """Refuse the options that a format does not have.

    Raises:
        ExportError: one that is not among ``known`` is set; the message names all such.
    """
    odd = [
        field.name
        for field in dataclasses.fields(options)
        if field.name not in known and getattr(options, field.name) != field.default
    ]
    if odd:
        words = [f"--{name.replace('_', '-')} ({name} in Python)" for name in odd]
        raise ExportError(f"{fmt.suffix} files have no option {' and no option '.join(words)}")


def refuse_open_trees(fmt: Format, bundle: ModelBundle, options: ExportOptions) -> None:
    """Refuse a tree-structured model of an open batch: its channel shuffles are bound to the example's batch.

    Raises:
        ExportError: it is one.
    """
    if isinstance(bundle.model.arch, TreeArch) and options.batch_size is None:
        raise ExportError(
            f"{bundle.name}: {fmt.suffix} files of tree-structured models take a fixed number of images: "
            "--batch-size 1 (batch_size=1 in Python), say"
        )


@functools.cache
def formats() -> Mapping[str, Format]:
    """Return every format by its suffix: each module of this package that has a ``FORMAT`` adds one.

    The modules import their libraries when they are used.
    """
    found: list[Format] = declared(__name__.rpartition(".")[0], "FORMAT")
    return {fmt.suffix: fmt for fmt in sorted(found, key=lambda fmt: fmt.suffix)}


def format_of(path: Path) -> Format:
    """Return the format that a file's suffix names.

    Raises:
        ExportError: no format has that suffix; the message lists all.
    """
    found = formats().get(path.suffix.lower())
    if found is None:
        raise ExportError(
            f"{path}: the suffix {shown(path.suffix)} is no known format; known are {', '.join(formats())}"
        )
    return found
