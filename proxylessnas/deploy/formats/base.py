"""The interface of a file format, and the formats by suffix."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...arch.tree import TreeArch
from ...errors import ExportError, ProxylessError, first_line, shown
from ...utils.lazy_names import declared
from ..bundle import ModelBundle
from ..settings import ExportOptions

#: Runs a file in its own runtime: images as the file takes them, [N, C, H, W], to logits [N, classes] on
#: the CPU in float32. Any N that the file allows.
Program = Callable[[Tensor], Tensor]


class Format:
    """One kind of file: how it is written, and how its own runtime runs it.

    Attributes:
        name: for people: "ONNX".
        suffix: ".onnx".
        options: the fields of :class:`ExportOptions` that it has.
        fixed_trees: whether tree-structured models need a ``batch_size``, as their channel shuffles are bound
            to the example's batch.
    """

    name: str
    suffix: str
    options: tuple[str, ...] = ()
    fixed_trees = False

    def versions(self) -> dict[str, str]:
        """Return the versions of the libraries it is written and run with.

        Raises:
            MissingExtraError: one is not installed; the message gives the pip line.
        """
        raise NotImplementedError

    def check(self, bundle: ModelBundle, options: ExportOptions) -> None:
        """Refuse at once what cannot work.

        Raises:
            ExportError: the format lacks an option that is asked for; the message names all such.
            MissingExtraError: a library is not installed.
        """
        odd = [
            f"--{field.name.replace('_', '-')} ({field.name} in Python)"
            for field in dataclasses.fields(options)
            if field.name not in self.options and getattr(options, field.name) != field.default
        ]
        if odd:
            raise ExportError(f"{self.suffix} files have no option {' and no option '.join(odd)}")
        if self.fixed_trees and isinstance(bundle.model.arch, TreeArch) and options.batch_size is None:
            raise ExportError(
                f"{bundle.name}: {self.suffix} files of tree-structured models take a fixed number of "
                "images: --batch-size 1 (batch_size=1 in Python), say"
            )
        self.versions()

    def write(self, bundle: ModelBundle, path: Path, options: ExportOptions) -> list[Path]:
        """Write the file, and return it with the files that belong to it (as an OpenVINO ``.bin``).

        ``path`` lies in a folder of the export's own; whoever calls moves what is proven to its place.

        Raises:
            ExportError: the model has an operation that the format lacks, or the exporter failed.
        """
        raise NotImplementedError

    def open(self, path: Path, *, threads: int | None = None) -> Program:
        """Load a file in its own runtime, as those who get it will, in float32 where the file says so.

        Raises:
            ExportError: the file cannot be loaded.
        """
        raise NotImplementedError


@contextlib.contextmanager
def export_errors(what: str, reason: Callable[[Exception], str] = first_line) -> Iterator[None]:
    """Turn whatever a library raises, whose errors share no base class, into one line of ours.

    Args:
        what: failed: "net.onnx: ONNX Runtime cannot load it".
        reason: takes it from an error.

    Raises:
        ExportError: something else than our own errors and the system's (a full disk) was raised.
    """
    try:
        yield
    except (ProxylessError, OSError):
        raise
    except Exception as e:
        raise ExportError(f"{what} ({reason(e)})") from e


@contextlib.contextmanager
def exporting(what: str, reason: Callable[[Exception], str] = first_line) -> Iterator[None]:
    """As :func:`export_errors`; what a library says of its own insides does not reach the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            export_errors(what, reason),
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            torch.no_grad(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def guarded(
    call: Callable[[Tensor], Any], path: Path, runtime: str, reason: Callable[[Exception], str] = first_line
) -> Program:
    """Return a program whose failures name the file, the runtime and the shape of the input."""

    def run(x: Tensor) -> Tensor:
        with export_errors(f"{path}: {runtime} cannot run {list(x.shape)}", reason):
            found: Tensor = call(x)
            return found

    return run


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
