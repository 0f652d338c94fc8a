"""What a command is, and its place in the command line.

A new command is a new file next to this one, with a class derived from :class:`Command` and
``COMMAND = ThatClass()``. Its imports are in its methods, so that ``proxylessnas --help`` is quick.
"""

from __future__ import annotations

import argparse
import inspect
import sys
import textwrap
from collections.abc import Sequence
from typing import Any, ClassVar

from ..errors import shown_message


class UsageError(Exception):
    """Wrong use that argparse cannot see, such as a standard deviation of zero; exit code 2."""


class Command:
    """One command; the first line of its docstring says in ``--help`` what it does, the rest in its own.

    Attributes:
        name: as typed.
        order: place in the help text, lowest first.
        example: a worked example with what it prints, for the same place.
        rest: name of the list argument that takes words behind options: ``predict MODEL a.jpg --top 1
            b.jpg``.
    """

    name: ClassVar[str]
    order: ClassVar[int] = 100
    example: ClassVar[str]
    rest: ClassVar[str | None] = None

    def about(self) -> tuple[str, str]:
        """Return what it does, in a line and in a paragraph."""
        first, _, rest = inspect.cleandoc(self.__doc__ or "").partition("\n\n")
        return first[:1].lower() + first[1:].rstrip("."), rest

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        raise NotImplementedError

    def run(self, args: argparse.Namespace) -> int:
        """Do it.

        Returns:
            The exit code: 0, or 1 if something failed that has been reported.

        Raises:
            ProxylessError: reported as one ``error:`` line, exit code 1.
            UsageError: reported likewise, exit code 2.
        """
        raise NotImplementedError


class CommandGroup(Command):
    """A command that only passes on to its actions, which are commands themselves.

    Attributes:
        actions: in the order of the help text.
    """

    actions: ClassVar[Sequence[Command]]

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the actions."""
        sub = parser.add_subparsers(dest="action", metavar="ACTION", title="actions", parser_class=Parser)
        for action in self.actions:
            add_command(sub, action)

    def run(self, args: argparse.Namespace) -> int:
        """Show which actions there are: none was named."""
        args.parser.print_help(sys.stderr)
        return 2


class Parser(argparse.ArgumentParser):
    """A parser that declares its command's arguments only when they are needed."""

    command: Command | None = None

    def _complete(self) -> None:
        command, self.command = self.command, None
        if command is not None:
            self.set_defaults(parser=self, command=command)
            command.arguments(self)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self._complete()
        return super().parse_known_args(args, namespace)

    def format_help(self) -> str:
        self._complete()
        return super().format_help()

    def error(self, message: str) -> None:  # type: ignore[override]
        self.exit(2, shown_message(f"error: {message}\n  see: {self.prog} --help") + "\n")


def add_command(sub: argparse._SubParsersAction[Any], command: Command) -> None:
    """Add a command, whose arguments are declared when they are needed."""
    summary, description = command.about()
    own = sub.add_parser(
        command.name,
        help=summary.replace("%", "%%"),
        description=textwrap.fill(description or summary, 79),
        epilog=f"example:\n{command.example.rstrip()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    own.command = command
