"""``proxylessnas latency``: measure models and devices, and predict models of a search space."""

from __future__ import annotations

import argparse

from ..errors import LatencyError
from ._command import UsageError, VerbOfActions
from ._latency_build import BUILD, KIT, VALIDATE
from ._latency_measure import MEASURE
from ._latency_table import IMPORT, PREDICT, SHOW
from ._options import in_options


class Latency(VerbOfActions):
    """Passes on to its actions."""

    name = "latency"
    order = 75
    summary = "measure models on this device, and make tables that predict them"
    description = (
        "Measure how long models take on this device, or make a table of what each operation of a search "
        "space costs here, from which any model of the space is predicted. A search needs such a table for the "
        "device that its model is meant for."
    )
    example = """\
  $ proxylessnas latency measure proxyless_cpu proxyless_mobile
  $ proxylessnas latency build --space imagenet --runtime onnxruntime --threads 2 -o table.json
  $ proxylessnas latency show table.json
  $ proxylessnas latency predict table.json mine.txt
"""
    rest = "nets"
    actions = (MEASURE, BUILD, VALIDATE, SHOW, PREDICT, IMPORT, KIT)

    def run(self, args: argparse.Namespace) -> int:
        """Run the action."""
        takes_models = {action.name for action in self.actions if action.rest is not None}
        if args.action is not None and args.nets and args.action not in takes_models:
            raise UsageError(f"unrecognised arguments: {' '.join(args.nets)}")
        try:
            return super().run(args)
        except LatencyError as e:
            found = in_options(e)
            if found is e:
                raise
            raise found from e


VERB = Latency()
