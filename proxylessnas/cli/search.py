"""``proxylessnas search``: from images, a device and a budget to a model of its own."""

from __future__ import annotations

from ._command import CommandGroup
from ._search import Derive, Resume, Run
from ._search_show import Show


class Search(CommandGroup):
    """Search a model for your images, your device and a latency.

    Search a space of models for one that is accurate on your images and meets a target: latency on your
    device (with a table of `proxylessnas latency build`), multiply-accumulates, parameters, or several. The
    model that comes out is a plain one with weights, which every other command takes as MODEL.
    """

    name = "search"
    order = 78
    example = """\
  $ proxylessnas search run --space small --data photos/ --table laptop.json --target-ms 5 --out runs/a
  $ proxylessnas search show runs/a
  $ proxylessnas finetune runs/a/child.safetensors photos/
"""
    actions = (Run(), Resume(), Derive(), Show())


COMMAND = Search()
