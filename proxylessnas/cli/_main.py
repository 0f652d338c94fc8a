"""Finds the commands, parses the command line, and turns every outcome into an exit code."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import logging
import os
import pkgutil
import sys
from collections.abc import Sequence

from .._version import __version__
from ..errors import LatencyError, ProxylessError, for_command_line
from ._arguments import import_modules
from ._command import Command, Parser, UsageError, add_command
from ._model import join_numbers
from ._options import spelled
from ._output import error, note, prepare_streams, print_json

_INTERRUPTED, _PIPE_CLOSED = 130, 141  # what a shell reports for SIGINT and SIGPIPE


class _Notes(logging.Handler):
    """Shows what the library logs (a damaged cache file that is fetched again, say) as notes."""

    def emit(self, record: logging.LogRecord) -> None:
        note(for_command_line(record.getMessage()))


def commands() -> dict[str, Command]:
    """Return all commands by name, in the order of the help text."""
    found = []
    package = importlib.import_module(__package__)
    for module in pkgutil.iter_modules(package.__path__):
        if not module.name.startswith("_"):
            found.append(importlib.import_module(f"{package.__name__}.{module.name}").COMMAND)
    return {command.name: command for command in sorted(found, key=lambda command: command.order)}


def build_parser(known: dict[str, Command]) -> argparse.ArgumentParser:
    """Return the parser of the whole command."""
    parser = Parser(
        prog="proxylessnas",
        description="Specialised image models: look at them, get their weights, classify images.",
        epilog="example:\n  proxylessnas predict proxyless_w025_r112 photo.jpg\n\n"
        "exit codes: 0 done, 1 something failed, 2 wrong usage, 128 + n stopped by signal n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"proxylessnas {__version__}")
    sub = parser.add_subparsers(metavar="COMMAND", title="commands")
    for command in known.values():
        add_command(sub, command)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; no exception but a bug gets out.

    Args:
        argv: the words after the command's name; None takes the process's own.
    """
    prepare_streams()
    logger, handler = logging.getLogger("proxylessnas"), _Notes(logging.WARNING)
    logger.addHandler(handler)
    propagated, logger.propagate = logger.propagate, False
    try:
        code = _run(list(sys.argv[1:] if argv is None else argv))
        if sys.stdout is not None:  # it is None where the caller closed it
            sys.stdout.flush()
        return code
    except SystemExit as e:  # argparse, for --help and for wrong usage
        return e.code if isinstance(e.code, int) else 0 if e.code is None else 1
    except KeyboardInterrupt:
        error("interrupted")
        return _INTERRUPTED
    except BrokenPipeError:  # as in `proxylessnas list | head -1`
        _abandon_stdout()
        return _PIPE_CLOSED
    except OSError as e:  # the disk is full, say
        error(f"{e.filename or 'input or output failed'}: {e.strerror or e}")
        _abandon_stdout()
        return 1
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagated


def _run(argv: list[str]) -> int:
    parser = build_parser(commands())
    try:
        argv = join_numbers(argv)
    except UsageError as e:
        parser.error(str(e))
    args, rest = parser.parse_known_args(argv)
    command: Command | None = getattr(args, "command", None)
    own = args.parser if command is not None else parser
    if rest and command is not None and command.rest and not any(word.startswith("-") for word in rest):
        getattr(args, command.rest).extend(rest)
    elif rest:
        own.error(f"unrecognised arguments: {' '.join(rest)}")
    if command is None:
        parser.print_help(sys.stderr)
        return 2
    try:
        if getattr(args, "imports", None):  # before anything reads a model with its operations
            import_modules(args)
        return command.run(args)
    except UsageError as e:
        args.parser.error(str(e))
        return 2
    except ProxylessError as e:
        message = for_command_line(str(e))
        if isinstance(e, LatencyError):
            message = spelled(message, args.parser)
        if getattr(args, "json", False):  # whoever reads JSON gets JSON
            print_json({"error": {"type": type(e).__name__, "message": message}})
        error(message)
        return 1


def _abandon_stdout() -> None:
    """Point standard output at nothing, so that Python's own flush at exit does not complain."""
    with contextlib.suppress(OSError, ValueError):
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, sys.stdout.fileno())
        os.close(nothing)
