"""``proxylessnas search``: from pictures, a device and a budget to a net of its own."""

from __future__ import annotations

import argparse
import sys
import textwrap

from ._search import DERIVE, RESUME, RUN
from ._search_show import SHOW
from ._verb import Verb

_ACTIONS = {action.name: action for action in (RUN, RESUME, DERIVE, SHOW)}


class Search(Verb):
    """Passes on to its actions."""

    name = "search"
    order = 78
    summary = "search a net for your pictures, your device and a latency"
    description = (
        "Search a space of nets for one that is accurate on your pictures and meets a target: latency on "
        "your device (with a table of `proxylessnas latency build`), multiply-accumulates, parameters, or "
        "several. The net that comes out is a plain one with weights, which every other verb takes as NET."
    )
    example = """\
  $ proxylessnas search run --space small --data photos/ --table laptop.json --target-ms 5 --out runs/a
  $ proxylessnas search show runs/a
  $ proxylessnas finetune runs/a/child.safetensors photos/
"""

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the actions with their arguments."""
        sub = parser.add_subparsers(dest="action", metavar="ACTION", title="actions")
        for action in _ACTIONS.values():
            own = sub.add_parser(
                action.name,
                help=action.summary,
                description=textwrap.fill(action.description or action.summary, 79),
                epilog=f"example:\n{action.example.rstrip()}",
                formatter_class=argparse.RawDescriptionHelpFormatter,
                allow_abbrev=False,
            )
            action.arguments(own)
            own.set_defaults(parser=own)

    def run(self, args: argparse.Namespace) -> int:
        """Run the action."""
        if args.action is None:
            args.parser.print_help(sys.stderr)
            return 2
        return _ACTIONS[args.action].run(args)


VERB = Search()
