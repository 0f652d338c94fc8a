"""``proxylessnas search``: from pictures, a device and a budget to a net of its own."""

from __future__ import annotations

from ._command import CommandGroup
from ._search import Derive, Resume, Run
from ._search_show import Show


class Search(CommandGroup):
    """Search a net for your pictures, your device and a latency.

    Search a space of nets for one that is accurate on your pictures and meets a target: latency on your
    device (with a table of `proxylessnas latency build`), multiply-accumulates, parameters, or several. The
    net that comes out is a plain one with weights, which every other command takes as NET.
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
