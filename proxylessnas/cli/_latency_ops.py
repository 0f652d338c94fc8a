"""``proxylessnas latency ops``: what each candidate operation costs here."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ..utils.progress import Steps
from ._arguments import (
    add_imports,
    add_int8,
    add_output,
    add_quiet,
    add_space,
    check_output,
    the_space,
    written,
)
from ._command import Command
from ._options import add, add_options, settings_from
from ._output import ms, note, print_json, print_table, printable

if TYPE_CHECKING:
    from ..latency.op_costs import OpCost, OpCosts

_UNCERTAIN = 0.05


class Ops(Command):
    """Compare what the candidate operations of a search space cost on this device.

    Measure each candidate operation of a search space alone, at the shape of each of its stages, and say what
    it costs relative to one of them: which operations a space for this device, runtime and precision should
    have. All are measured in turns, undisturbed, so other programs may run meanwhile.
    """

    name = "ops"
    example = """\
  $ proxylessnas latency ops --space cpu26 --runtime onnxruntime -o costs.csv --plot costs.png
           32 ch, 56 px     64 ch, 28 px     96 ch, 14 px    128 ch, 14 px     192 ch, 7 px
  k3e6  (0.871 ms) 1.00  (0.780 ms) 1.00  (0.432 ms) 1.00  (0.741 ms) 1.00  (0.412 ms) 1.00
  k3e2             0.36             0.35             0.35             0.35             0.35
  ...
"""

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        from ..latency.settings import OpCostSettings

        add_space(parser)
        add_output(parser, "write what was measured as a table (.csv)")
        add(parser, "--plot FILE", "draw it (.png, .svg)")
        add_options(parser, OpCostSettings, without=("imports",), names={"batch_size": "--batch"})
        add_int8(parser)
        add_imports(parser)
        add_quiet(parser)

    def run(self, args: argparse.Namespace) -> int:
        from ..latency.settings import OpCostSettings

        settings = settings_from(args, OpCostSettings)
        for file, option, endings in (
            (args.output, "-o", (".csv",)), (args.plot, "--plot", (".png", ".svg"))
        ):  # fmt: skip
            if file is not None:
                check_output(file, option, *endings)
        space = the_space(args)
        assert space is not None
        from ..latency import op_costs

        with Steps(args.quiet, "measuring") as steps:
            found = op_costs(space, settings, progress=steps)
        if args.json:
            print_json({"base": found.base, "operations": [row.to_dict() for row in found.rows]})
        else:
            _show(found)
        sound = [written(args.output, found.write_csv), written(args.plot, found.write_png)]
        return 0 if all(sound) else 1


def _show(found: OpCosts) -> None:
    stages = found.stages
    rows = [("", *stages)]
    for op in found.ops:
        rows.append((op, *(_cell(own.get(op), op == found.base) for own in stages.values())))
    print_table(rows, "<" + ">" * len(stages))
    print(f"\nlatency relative to {found.base}, whose ms stand beside it; each operation alone, undisturbed")
    print(printable(found.conditions))
    worst = max(found.rows, key=lambda row: row.uncertainty)
    if worst.uncertainty > _UNCERTAIN:
        note(f"uncertain by up to {worst.uncertainty:.0%} ({worst.key}): measure for longer (--minutes)")


def _cell(row: OpCost | None, base: bool) -> str:
    if row is None:
        return ""
    return f"({ms(row.timing.undisturbed_ms)} ms) 1.00" if base else f"{row.relative:.2f}"
