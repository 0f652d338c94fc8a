"""What a verb of the command line is.

A new verb is a new file next to this one, with a class derived from :class:`Verb` and ``VERB = ThatClass()``.
Heavy libraries are imported in ``run``, so that ``proxylessnas --help`` is quick.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence
from typing import Any, ClassVar


class UsageError(Exception):
    """Wrong use that argparse cannot see, such as a standard deviation of zero; exit code 2."""


class Verb:
    """One verb of the command line.

    Attributes:
        name: as typed.
        order: place in the help text, lowest first.
        summary: one line for ``proxylessnas --help``.
        description: a paragraph for ``proxylessnas VERB --help``.
        example: a worked example with what it prints, for the same place.
        rest: name of the list argument that takes words behind options: ``predict MODEL a.jpg --top 1
            b.jpg``.
    """

    name: ClassVar[str]
    order: ClassVar[int] = 100
    summary: ClassVar[str]
    description: ClassVar[str] = ""
    example: ClassVar[str]
    rest: ClassVar[str | None] = None

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the verb's arguments."""
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


def add_verb(sub: argparse._SubParsersAction[Any], verb: Verb, **defaults: object) -> None:
    """Declare a verb with its arguments and its help, and values for what it has no argument for."""
    own: argparse.ArgumentParser = sub.add_parser(
        verb.name,
        help=verb.summary,
        description=textwrap.fill(verb.description or verb.summary, 79),
        epilog=f"example:\n{verb.example.rstrip()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    own.set_defaults(**defaults)
    verb.arguments(own)
    own.set_defaults(parser=own)


class VerbOfActions(Verb):
    """A verb that only passes on to its actions, which are verbs themselves.

    Attributes:
        actions: in the order of the help text.
    """

    actions: ClassVar[Sequence[Verb]]

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the actions with their arguments."""
        sub = parser.add_subparsers(dest="action", metavar="ACTION", title="actions")
        for action in self.actions:
            add_verb(sub, action, **({} if self.rest is None else {self.rest: []}))

    def run(self, args: argparse.Namespace) -> int:
        """Run the action; without one, show which there are."""
        if args.action is None:
            args.parser.print_help(sys.stderr)
            return 2
        return next(action for action in self.actions if action.name == args.action).run(args)
