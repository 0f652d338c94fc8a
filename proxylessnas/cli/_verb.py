"""What a verb of the command line is.

A new verb is a new file next to this one, with a class derived from :class:`Verb` and ``VERB = ThatClass()``.
Heavy libraries are imported in ``run``, so that ``proxylessnas --help`` is quick.
"""

from __future__ import annotations

import argparse
from typing import ClassVar


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
        rest: name of the list argument that takes words behind options: ``predict NET a.jpg --top 1 b.jpg``.
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
