"""``proxylessnas latency``: measure models and devices, and predict models of a search space."""

from __future__ import annotations

from ._command import CommandGroup
from ._latency_build import Build, Kit, Validate
from ._latency_measure import Measure
from ._latency_ops import Ops
from ._latency_table import Import, Predict, Show


class Latency(CommandGroup):
    """Measure models on this device, and make tables that predict them.

    Measure how long models take on this device, or make a table of what each operation of a search space
    costs here, from which any model of the space is predicted. A search needs such a table for the device
    that its model is meant for.
    """

    name = "latency"
    order = 75
    example = """\
  $ proxylessnas latency measure proxyless_cpu proxyless_mobile
  $ proxylessnas latency build --space imagenet --runtime onnxruntime --threads 2 -o table.json
  $ proxylessnas latency show table.json
  $ proxylessnas latency predict table.json mine.txt
"""
    actions = (Measure(), Build(), Validate(), Show(), Predict(), Import(), Kit(), Ops())


COMMAND = Latency()
