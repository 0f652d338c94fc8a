"""``proxylessnas search show``: how far a search is, and what it found."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..utils.progress import clock
from ._arguments import add_imports, add_json
from ._command import Command
from ._front import front_text
from ._options import add
from ._output import bar, pairs, print_json, printable, table
from ._search import UNITS, number

_WORDS = {"latency": "latency", "macs": "multiply-accumulates", "params": "parameters"}


class Show(Command):
    """Show how far a search is, and what it found.

    Show a search, running or finished: its targets, how far it is, the model that it found or would derive
    now, and how sure it is of each block.
    """

    name = "show"
    example = """\
  $ proxylessnas search show runs/a
"""

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        add(parser, "folder DIR", "folder of the search", type=Path)
        add_imports(parser)
        add_json(parser)

    def run(self, args: argparse.Namespace) -> int:
        from ..search.run import describe

        found = describe(args.folder)
        if args.json:
            print_json(found)
            return 0
        print(pairs(_rows(found)))
        blocks = _blocks(args.folder, found)
        if blocks:
            print("\n" + printable(blocks))
        result = found.get("result") or {}
        if result.get("arch"):
            print("\n" + printable(result["arch"]))
        if result.get("front"):
            print("\n" + printable(front_text(result["front"])))
        return 0


def _rows(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the search in words."""
    epoch = found.get("last_epoch") or {}
    arch = found.get("last_arch") or {}
    evaluated = found.get("last_judged") or {}
    result = found.get("result") or {}
    rows = [("search", f"{found['algorithm']} in the space {found['space']}"), ("state", _state(found))]
    if not found.get("targets"):
        rows.append(("target", "none"))
    for name, value in found.get("targets", {}).items():
        kind = name.rpartition("_")[0]
        rows.append(("target", f"{_WORDS.get(kind, kind)} of at most {number(value)} {UNITS.get(kind, '')}"))
    figures = {**arch, **epoch}
    if "entropy" in figures:
        share = figures.get("skip_share")  # None where the space has no Zero
        skipped = "" if share is None else f", {100 * share:.0f} % of the skippable blocks skipped"
        rows.append(("probabilities", f"entropy {figures['entropy']:.3f} nats{skipped}"))
    if figures.get("expected") is not None and found.get("targets"):
        kind = next(iter(found["targets"])).rpartition("_")[0]
        rows.append(("expected", f"{number(figures['expected'])} {UNITS.get(kind, '')} of a model drawn now"))
    if evaluated:
        learns = found["algorithm"] in ("gradient", "reinforce")
        best = f"the best{' by cross-entropy' if learns else ''} with {evaluated['best']:.2f} %"
        rows.append(("evaluated", f"{evaluated['number']:,} models, {best}"))
    costs = result.get("costs") or epoch.get("costs") or {}
    for name, value in costs.items():
        rows.append((_WORDS.get(name, name), f"{number(value)} {UNITS.get(name, '')}"))
    if result:
        rows += _measured(result)
    top1 = result.get("top1_held_out", epoch.get("top1"))
    if top1 is not None:
        rows.append(("top-1", f"{top1:.2f} % on the images that chose it, with inherited weights"))
    if result.get("seconds"):
        rows.append(("time", clock(result["seconds"])))
    return rows


def _state(found: Mapping[str, Any]) -> str:
    if found.get("finished"):
        return "finished"
    newest = max(
        (
            (row.get("step", 0), row.get("epoch", 0))
            for row in map(found.get, ("last_arch", "last_epoch"))
            if row
        ),
        default=None,
    )
    if newest is None:
        return f"not finished; within the {found['warmup_epochs']} epochs of warm-up, or stopped there"
    return f"not finished; in epoch {newest[1]} of {found['epochs']} (step {newest[0]:,})"


def _measured(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    from ..search.logger import describe_latency
    from ..search.ship import describe_int8

    rows = [("measured" if not i else "", text) for i, text in enumerate(describe_latency(result))]
    return rows + [("INT8" if not i else "", text) for i, text in enumerate(describe_int8(result))]


def _blocks(folder: Path, found: Mapping[str, Any]) -> str:
    """Return a table of the blocks: what the model has there, and how probable that is."""
    from ..arch.spaces import read_space
    from ..search.run import SPACE_FILE

    epoch = found.get("last_epoch") or {}
    choices: Sequence[int] = (found.get("result") or {}).get("picks") or epoch.get("picks") or ()
    probs = epoch.get("probs")
    if not choices:
        return ""
    space = read_space(folder / SPACE_FILE)
    rows = [["stage", "block", "pick", "p", "most probable"]]
    for i, (search_block, choice) in enumerate(zip(space.search_blocks, choices, strict=True)):
        row = probs[i] if probs else None
        best = "" if row is None else space.candidate_ops[max(range(len(row)), key=row.__getitem__)]
        shown = "-" if row is None else f"{row[choice]:.2f} {bar(row[choice], 10)}".rstrip()
        choice_name = space.candidate_ops[choice]
        rows.append(
            [
                str(search_block.stage + 1),
                str(search_block.block + 1),
                choice_name,
                shown,
                "" if best == choice_name else best,
            ]
        )
    return table(rows, ">><<<")
