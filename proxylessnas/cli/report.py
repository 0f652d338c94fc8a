"""``proxylessnas report``: a run as one HTML file."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import one_line
from ._arguments import add_imports, add_output, check_output
from ._command import Command
from ._options import add
from ._output import note


class Report(Command):
    """Write a search or a training as one HTML file.

    Write the report of the run in DIR, a search or a training, finished or not, as one HTML file that needs
    no network: what was asked, what was found, the model as a figure, curves, a slider over the search,
    latency predicted and measured, a comparison with other runs, and commands to do it again. A damaged log
    gives a report of what there is.
    """

    name = "report"
    order = 79
    example = """\
  $ proxylessnas report runs/mine -o mine.html
  $ proxylessnas report runs/mine --compare runs/random runs/reinforce
"""

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        add(parser, "folder DIR", "folder of a search or a training", type=Path)
        add_output(parser, "the HTML file (default: report.html in DIR)")
        add(parser, "--compare DIR", "folders of other runs of the same kind", nargs="+", default=[])
        add_imports(parser)

    def run(self, args: argparse.Namespace) -> int:
        from ..report.report import write_report

        output = args.output if args.output is not None else str(args.folder / "report.html")
        if args.output is not None or args.folder.is_dir():
            check_output(output, "-o", ".html", ".htm")
        for text in write_report(args.folder, output, compare=args.compare):
            note(text)
        print(one_line(output))
        return 0


COMMAND = Report()
