"""``proxylessnas space``: search spaces, as they are and as far as they reach."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Mapping
from typing import Any

from ..utils.text import large
from ._arguments import ANY_SPACE_HELP, TABLE_HELP, add_imports, add_json, add_sizes, the_space
from ._command import Command, CommandGroup
from ._options import add
from ._output import bold, ms, pairs, print_json, print_table, printable

_WIDTH = 74
_HEAD = {"macs": "M MACs", "params": "M parameters", "ms": "ms"}


class Show(Command):
    """Show a space: its stages and candidates, how many models it has, and what they cost.

    Show a search space stage by stage, what each of its blocks can be, how many models that makes, and how
    far they reach: in millions of multiply-accumulates, of parameters and, with a latency table, in
    milliseconds. A target of a search has to lie in that range.
    """

    name = "show"
    example = """\
  $ proxylessnas space show tiny
  tiny
    input       3 x 32 x 32 px, 10 classes
    models      8,000, of 6 searched blocks
    MACs        0.577 to 2.89 M
    parameters  0.00988 to 0.0478 M
    ...
  $ proxylessnas space show mine.toml --table laptop.json
"""

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        add(parser, "space NAME|FILE", ANY_SPACE_HELP)
        add(parser, "--table T", f"{TABLE_HELP}: what its models take there")
        add_sizes(parser)
        add_imports(parser)
        add_json(parser)

    def run(self, args: argparse.Namespace) -> int:
        from ..arch.spaces import read_space

        space = the_space(args, read_space)
        from ..latency.space_facts import space_facts
        from ..latency.table import LatencyTable

        table = None if args.table is None else LatencyTable.load(args.table)
        found = space_facts(space, table)
        if args.json:
            print_json(found if table is None else {**found, "table": args.table})
            return 0
        about = "" if table is None else textwrap.fill(table.conditions.describe(), _WIDTH)
        _show(found, about and f" by {args.table}\n{about}")
        return 0


def _show(found: Mapping[str, Any], table: str) -> None:
    """Print a space; ``table`` says what its milliseconds are of."""
    side, blocks = found["resolution"], sum(stage["blocks"] for stage in found["stages"])
    tree, what = found["kind"] == "tree", "edges" if found["kind"] == "tree" else "blocks"
    rows = [
        ("input", f"{found['in_channels']} x {side} x {side} px, {found['num_classes']} classes"),
        ("models", f"{large(found['models'])}, of {blocks} searched {what}"),
        ("MACs", _reach(found["macs"], "macs") + " M"),
        ("parameters", _reach(found["params"], "params") + " M"),
    ]
    if found.get("act", "relu6") != "relu6":
        rows.append(("activation", found["act"]))
    if "ms" in found:
        rows.append(("latency", f"{_reach(found['ms'], 'ms')} ms{table}"))
    print(bold(printable(found["name"])))
    print(printable(pairs(rows, "  ")) + "\n")
    kinds = [kind for kind in _HEAD if kind in found]
    head = ("stage", "channels", "px", what, "choices", *(_HEAD[kind] for kind in kinds))
    lines = [head]
    lines += [(*row, "", "", *[""] * len(kinds)) for row in ([] if tree else _before(found))]
    for n, stage in enumerate(found["stages"], 1):
        choices = str(stage["choices"][0]) if tree else " ".join(map(str, stage["choices"]))
        shape = _arrow(stage["in_channels"], stage["width"]), _arrow(stage["in_size"], stage["out_size"])
        costs = [_reach(stage[kind], kind) for kind in kinds]
        lines.append((str(n), *shape, str(stage["blocks"]), choices, *costs))
    last = found["stages"][-1]
    if not tree:
        shape = _arrow(last["width"], found["last"]), str(last["out_size"])
        lines.append(("last", *shape, "", "", *[""] * len(kinds)))
    print_table(lines, "<<<><" + ">" * len(kinds))
    print()
    everywhere = f"all {blocks} {what}"
    ops = [("candidate", "", "in")]
    for one in found["candidates"]:
        where = everywhere if one["blocks"] == blocks else f"{one['blocks']} of {blocks}"
        ops.append((one["op"], one["about"], where))
    print_table(ops, "<<<")


def _before(found: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return name, channels and map of the layers before the first stage."""
    side = found["stages"][0]["in_size"]
    rows = [("stem", _arrow(found["in_channels"], found["stem"]), _arrow(found["resolution"], side))]
    return rows + [("first", _arrow(found["stem"], found["first"]), str(side))] * bool(found["first"])


def _arrow(before: int, after: int) -> str:
    return str(after) if before == after else f"{before} > {after}"


def _reach(ends: list[float], kind: str) -> str:
    low, high = (ms(end) if kind == "ms" else _digits(end / 1e6) for end in ends)
    return low if low == high else f"{low} to {high}"


def _digits(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"


class Space(CommandGroup):
    """Look at search spaces: what a search chooses from.

    Look at a search space: one that comes with the package, or a .toml file of your own.
    """

    name = "space"
    order = 77
    example = """\
  $ proxylessnas space show cpu26
  $ proxylessnas space show mine.toml --table laptop.json
"""
    actions = (Show(),)


COMMAND = Space()
