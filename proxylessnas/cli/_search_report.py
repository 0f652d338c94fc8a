"""What the searching verbs print in the end."""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
from typing import TYPE_CHECKING

from ..progress import clock
from ..safe_text import one_line
from ._names import imports_given
from ._output import note, pairs, print_json

if TYPE_CHECKING:
    from ..search import SearchResult
    from ..search.dry_run import DryRun

UNITS = {"latency": "ms", "macs": "M", "params": "M"}


def number(value: float) -> str:
    """Return a cost to three digits."""
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def main_process() -> bool:
    """Return whether this process, of several under torchrun, is the one that speaks."""
    return os.environ.get("RANK", "0") == "0"


def report(args: argparse.Namespace, result: SearchResult) -> int:
    """Print the result; return 0, or what a shell reports for the signal that stopped the search."""
    if args.json and main_process():
        print_json({**result.to_dict(), "folder": str(result.folder), "signal": result.signal})
    elif result.finished and main_process():
        print(one_line(result.model))
        data = shlex.quote(str(getattr(args, "data", None) or "DATA"))
        command = f"proxylessnas finetune {shlex.quote(str(result.model))} {data}{imports_given(args)}"
        note(f"train it further, with the classifier it has: {command}")
    return 0 if result.finished else 128 + (result.signal or 2)


def cost_notes(result: SearchResult) -> list[str]:
    """Return in words what a net costs, and at most may."""
    found = []
    for name, cost in result.costs.items():
        unit = UNITS.get(name, "")
        limit = f" of at most {number(result.limits[name])} {unit}" if name in result.limits else ""
        found.append(f"{name}: {number(cost)} {unit}{limit}")
    if result.measured_ms is not None:
        found.append(f"latency: measured {number(result.measured_ms)} ms")
    elif result.measured_note:
        found.append(f"latency: {result.measured_note}")
    return found


def report_dry_run(args: argparse.Namespace, found: DryRun) -> int:
    """Print what a search would take."""
    if not main_process():
        return 0
    if args.json:
        print_json(dataclasses.asdict(found))
        return 0
    for text in found.notes:
        note(text)
    rows = [
        ("time", f"about {clock(found.total_s)}"),
        ("weight steps", f"{found.weight_steps:,} of {1e3 * found.weight_step_s:.0f} ms"),
    ]
    if found.arch_step_s is not None:
        rows.append(("arch steps", f"{found.arch_steps:,} of {1e3 * found.arch_step_s:.0f} ms"))
    if found.judging_s is not None:
        nets = f"{found.judgings:,} nets" if found.judgings else "a net at the end of each epoch"
        rows.append(("judging", f"{nets}, {found.judging_s:.1f} s each"))
    if found.memory_mib is not None:
        rows.append(("memory", f"{found.memory_mib:,.0f} MiB at most so far"))
    weights, arch = found.pictures
    rows.append(("pictures", f"{weights:,} to train weights on, {arch:,} held out for the architecture"))
    if found.coverage is not None:
        have, need = found.coverage
        rows.append(("table", f"holds {have:,} of the {need:,} operations of the space"))
    print(pairs(rows))
    note("nothing was trained or written")
    return 0
