"""``proxylessnas latency``: measure nets and devices, and predict nets of a search space."""

from __future__ import annotations

import argparse
import textwrap

from ..errors import LatencyError
from ._latency_build import BUILD, KIT, VALIDATE
from ._latency_measure import MEASURE
from ._latency_table import IMPORT, PREDICT, SHOW
from ._latency_types import in_options
from ._verb import UsageError, Verb

_ACTIONS = {action.name: action for action in (MEASURE, BUILD, VALIDATE, SHOW, PREDICT, IMPORT, KIT)}


class Latency(Verb):
    """Passes on to its actions."""

    name = "latency"
    order = 75
    summary = "measure nets on this device, and make tables that predict them"
    description = (
        "Measure how long nets take on this device, or make a table of what each operation of a search "
        "space costs here, from which any net of the space is predicted. A search needs such a table for the "
        "device that its net is meant for."
    )
    example = """\
  $ proxylessnas latency measure proxyless_cpu proxyless_mobile
  $ proxylessnas latency build --space imagenet --runtime onnxruntime --threads 2 -o table.json
  $ proxylessnas latency show table.json
  $ proxylessnas latency predict table.json mine.txt
"""
    rest = "nets"

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
            own.set_defaults(nets=[])
            action.arguments(own)
            own.set_defaults(parser=own)

    def run(self, args: argparse.Namespace) -> int:
        """Run the action."""
        if args.action is None:
            import sys

            args.parser.print_help(sys.stderr)
            return 2
        action = _ACTIONS[args.action]
        if args.nets and action.rest is None:
            raise UsageError(f"unrecognised arguments: {' '.join(args.nets)}")
        try:
            return action.run(args)
        except LatencyError as e:
            found = in_options(e)
            if found is e:
                raise
            raise found from e


VERB = Latency()
