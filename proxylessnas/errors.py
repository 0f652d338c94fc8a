"""Every error this package raises on purpose.

One tree, so that ``except ProxylessError`` catches all of them, while each class also derives from the
built-in that callers would guess (``ValueError``, ``OSError``, ``KeyError``, ``ImportError``).
"""

from __future__ import annotations

import contextlib
import importlib.util
import re
import sys
from collections.abc import Iterator, Mapping, Sequence


def shown(value: object, longest: int = 60) -> str:
    """Return a value for a message, never long and never an error of its own."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of over 4,300 digits, say
        text = type(value).__name__
    return text if len(text) <= longest else text[: longest - 3] + "..."


_PYTHON = re.compile(r" \((?:[^()]|\([^()]*\))*\bin Python\)")


def for_command_line(message: str) -> str:
    """Return a message without what only callers in Python want to know.

    A message names options as the command line spells them, and the argument behind it in parentheses:
    ``"--force (force=True in Python) replaces it"``.
    """
    return _PYTHON.sub("", message)


def first_line(error: BaseException, longest: int = 300) -> str:
    """Return the first line of what a library says, for a message; its class's name if it says nothing."""
    lines = (one_line(line).strip() for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)[:longest]


class ProxylessError(Exception):
    """Base class of all errors raised on purpose by this package.

    As a text it is safe to show, whatever the names in it: see :func:`shown_message`.
    """

    def __str__(self) -> str:
        return shown_message(super().__str__())


class UnknownModelError(ProxylessError, ValueError):
    """No model has this name; the message lists the nearest ones."""


class ArchError(ProxylessError, ValueError):
    """An architecture (text, official JSON or table) is malformed; the message says where.

    Attributes:
        line: 1-based line of the bad token in a text, or None.
        column: 1-based column of the bad token in a text, or None.
    """

    def __init__(self, message: str, *, line: int | None = None, column: int | None = None) -> None:
        self.line = line
        self.column = column
        if line is not None:
            message = f"line {line}, column {column}: {message}"
        super().__init__(message)


class ManifestError(ProxylessError, ValueError):
    """The weights manifest is invalid.

    Attributes:
        problems: every problem found, one line each.
    """

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems: list[str] = [problems] if isinstance(problems, str) else list(problems)
        head = "weights manifest: "
        if len(self.problems) == 1:
            super().__init__(head + self.problems[0])
        else:
            super().__init__(f"{head}{len(self.problems)} problems\n  " + "\n  ".join(self.problems))


class WeightsNotFoundError(ProxylessError, FileNotFoundError):
    """A weights file is not where it was said to be, or a model has no published weights."""


class WeightsFetchError(ProxylessError, OSError):
    """No source could deliver the weights; the message gives each source and its reason."""


class OfflineError(WeightsFetchError):
    """Weights are not in the cache and ``PROXYLESSNAS_OFFLINE`` forbids the network."""


class WeightsCorruptError(ProxylessError, ValueError):
    """A weights file is damaged, is not a checkpoint, or is not the file it claims to be."""


class WeightsMismatchError(ProxylessError, ValueError):
    """Weights do not fit the model; the message is one line and names the first few tensors.

    Attributes:
        missing: parameters of the model that the weights lack.
        unexpected: tensors of the weights that the model has no place for.
        shapes: tensors of another shape, name to (shape in the weights, shape in the model).
    """

    def __init__(
        self,
        what: str,
        *,
        missing: Sequence[str] = (),
        unexpected: Sequence[str] = (),
        shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] | None = None,
    ) -> None:
        self.missing, self.unexpected, self.shapes = list(missing), list(unexpected), dict(shapes or {})
        misfits = [f"{name} {list(a)}, not {list(b)}" for name, (a, b) in self.shapes.items()]
        groups = {"of another shape": misfits, "missing": self.missing, "unexpected": self.unexpected}
        found = []
        for kind, names in groups.items():
            if names:
                shown = ", ".join([*names[:2], *(["..."] if len(names) > 2 else [])])
                found.append(f"{len(names)} {kind} ({shown})")
        super().__init__(f"{what}; tensors: {', '.join(found)}" if found else what)


class ImageError(ProxylessError, ValueError):
    """A file is not an image that can be read; the message names the file."""


class DataError(ProxylessError, ValueError):
    """A data folder cannot be used; the message names the folder and what is expected in it."""


class LatencyError(ProxylessError, ValueError):
    """A latency cannot be measured, or a latency table cannot be made, read or used; the message says why."""


class LatencyKeyError(ProxylessError, KeyError):
    """A latency table has no entry for a key; the message names the key and the nearest one."""

    def __str__(self) -> str:  # KeyError would show repr() of the message
        return shown_message(str(self.args[0])) if self.args else ""


class ExportError(ProxylessError, ValueError):
    """A model cannot be exported so, or the file does not compute what the model does; nothing was kept."""


class CheckpointError(ProxylessError, ValueError):
    """A training checkpoint cannot be read or does not belong to this run."""


class MissingExtraError(ProxylessError, ImportError):
    """An optional library is missing; the message gives the pip line."""


def missing_extra(package: str, purpose: str, extra: str | None = None) -> MissingExtraError:
    """Return the error for an optional import that failed; called where its exception is being handled.

    A library that is not there is told apart from one that is installed and broken, whose cause is named: of
    the latter ``pip install`` would say that all is well.

    Args:
        package: what ``pip install`` would be given when no extra of ours covers it.
        purpose: what needs it, as in "reading images".
        extra: the extra of this package that brings it, if any.
    """
    cause = sys.exc_info()[1]
    if cause is not None and _is_installed(package):
        broken = f"{purpose} needs {package}, which is installed but broken ({first_line(cause)})"
        return MissingExtraError(f"{broken}: pip install --force-reinstall {package}")
    pip = f"pip install 'proxylessnas[{extra}]'" if extra else f"pip install {package}"
    return MissingExtraError(f"{purpose} needs {package}, which is not installed: {pip}")


def _is_installed(package: str) -> bool:
    """Return whether a package can be found, without importing it."""
    module = {"pillow": "PIL"}.get(package, package.replace("-", "_"))
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # ValueError: it is in sys.modules half-way, or blocked there
        return False


@contextlib.contextmanager
def needs(package: str, purpose: str, extra: str | None = None) -> Iterator[None]:
    """Turn whatever the imports in a block raise into what :func:`missing_extra` returns.

    A broken library raises anything: OSError for a missing shared library, RuntimeError for a torchvision of
    another torch.

    Raises:
        MissingExtraError: an import failed.
    """
    try:
        yield
    except MissingExtraError:
        raise
    except Exception as e:
        raise missing_extra(package, purpose, extra) from e


_OWN_LINE = "\n  "  # a message goes on in a further line so; any other line end came with a name


def printable(text: str) -> str:
    """Return a text of several lines with its other control characters escaped (also bidirectional marks)."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def one_line(name: object) -> str:
    """Return a name for a cell or a heading: as :func:`printable`, and its line ends are escaped too."""
    return printable(str(name)).replace("\n", "\\n")


def short_name(text: str, other: str) -> str:
    """Return the name of a file or folder as a model may have it: printable and short; ``other`` for none."""
    return one_line(text)[:60] or other


def shown_message(text: str) -> str:
    """Return a message as it may be shown: names in it neither steer a terminal nor begin a line.

    Its own further lines begin with two spaces; every other line end is taken for one of a name.
    """
    return _OWN_LINE.join(map(one_line, text.strip("\n").split(_OWN_LINE)))
