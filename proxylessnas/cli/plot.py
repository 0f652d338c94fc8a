"""``proxylessnas plot``: models, searches and benches as images."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import DataError, one_line
from ..utils.checks import Range
from ._arguments import MODEL_HELP, TABLE_HELP, add_imports, add_output, check_output
from ._command import Command, UsageError
from ._options import add, typed, whole
from ._output import note, printable

if TYPE_CHECKING:
    from ..figures.draw_model import Layer
    from ..latency import LatencyTable
    from ..report.resolve import DrawnModel

_IMAGES, _MOVIES = (".svg", ".png"), (".gif", ".mp4", ".html")


class Plot(Command):
    """Draw models, a search, or accuracy against latency.

    Draw models block by block: on the terminal, or with -o as a figure (.svg, .png). MODEL is a model of the
    zoo, a file with an architecture, or the folder of a search or a training. One search and a .gif, .mp4
    (needs ffmpeg) or .html file make a movie of it: the probabilities of all paths, the model that they
    amount to, expected latency against the target, accuracy. --bench draws accuracy against latency with the
    Pareto front.
    """

    name = "plot"
    order = 82
    example = """\
  $ proxylessnas plot proxyless_gpu proxyless_cpu proxyless_mobile -o nets.svg
  $ proxylessnas plot runs/mine                         # on the terminal
  $ proxylessnas plot runs/mine --by latency -o net.png   # by the search's own table
  $ proxylessnas plot runs/mine -o search.gif
  $ proxylessnas plot proxyless_cifar --cell 1 2 -o cells.svg
  $ proxylessnas plot --bench bench.csv --eval eval.json -o front.png
"""
    rest = "models"

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        add(parser, "models MODEL", f"{MODEL_HELP}; or the folder of a run", nargs="*")
        add_output(parser, ".svg or .png; .gif, .mp4 or .html for a movie of a search")
        add(parser, "--text", "print the models; without -o that is the default")
        add(parser, "--ascii", "print them in ASCII")
        group = parser.add_argument_group("models")
        group.add_argument(
            "--by",
            choices=("channels", "latency"),
            help="what the width shows (default: channels; latency with --table)",
        )
        add(group, "--table T", f"{TABLE_HELP}; a search has one of its own")
        add(group, "--predict-missing", "guess what the table lacks, from what it has")
        add(
            group,
            "--cell N",
            "of a model of tree cells: draw these, in detail up to four",
            type=int,
            nargs="+",
        )
        add_imports(group)
        group = parser.add_argument_group("movie")
        add(group, "--frames N", "at most so many (default: 60)", type=whole(2, 1000), default=60)
        add(
            group,
            "--seconds S",
            "that it takes (default: 8)",
            type=typed(float, Range(0.1, 600)),
            default=8.0,
        )
        group = parser.add_argument_group("accuracy against latency")
        add(group, "--bench FILE", "what `proxylessnas bench` wrote (--csv or --json)", nargs="+", default=[])
        add(group, "--eval FILE", "what `proxylessnas eval --json` printed", nargs="+", default=[])

    def run(self, args: argparse.Namespace) -> int:
        _check(args)
        if args.bench:
            from ..report.pareto import pareto_figure

            for text in pareto_figure(args.bench, args.output, evals=args.eval):
                note(text)
            return _done(args)
        if args.output is not None and Path(args.output).suffix.lower() in _MOVIES:
            return _movie(args)
        return _models(args)


def _check(args: argparse.Namespace) -> None:
    if args.eval and not args.bench:
        raise UsageError("--eval needs --bench: an evaluation alone knows no latency")
    if args.bench and args.models:
        raise UsageError("--bench draws what was measured: leave the models out")
    if not args.bench and not args.models:
        raise UsageError("name a model, a file or a run's folder (or --bench FILE)")
    if args.bench and args.output is None:
        raise UsageError("--bench needs -o FILE.svg or FILE.png")
    if args.by == "channels" and args.table is not None:
        raise UsageError("--table is for --by latency")
    if args.output is not None:
        check_output(args.output, "-o", *(_IMAGES if args.bench else _IMAGES + _MOVIES))


def _done(args: argparse.Namespace) -> int:
    print(one_line(args.output))
    return 0


def _movie(args: argparse.Namespace) -> int:
    from ..report.resolve import is_search
    from ..report.runs import read_run

    if len(args.models) != 1 or not is_search(args.models[0]):
        found = "several" if len(args.models) > 1 else f"{args.models[0]}, which is none"
        raise UsageError(
            f"a movie ({Path(args.output).suffix}) is of the folder of one search, not of {found}"
        )
    run = read_run(args.models[0])
    for text in run.notes:
        note(text)
    if args.output.lower().endswith(".html"):
        from ..report.report import write_movie_page

        write_movie_page(run, args.output, name=Path(args.models[0]).resolve().name)
    else:
        from ..report.draw_search import write_movie

        write_movie(run, args.output, frames=args.frames, seconds=args.seconds)
    return _done(args)


def _models(args: argparse.Namespace) -> int:
    from ..arch.tree import TreeArch
    from ..figures.draw_model import model_figure
    from ..figures.draw_tree import tree_figure
    from ..report.model_page import model_text, tree_text
    from ..report.resolve import open_subject

    subjects = [open_subject(word) for word in args.models]
    for text in dict.fromkeys(text for subject in subjects for text in subject.notes):
        note(text)
    tree = next((s for s in subjects if isinstance(s.arch, TreeArch)), None)
    by = args.by or ("latency" if args.table is not None else "channels")
    if args.cell is not None and (tree is None or args.output is None):
        raise UsageError("--cell is for the figure (-o) of a model of tree cells, such as proxyless_cifar")
    if tree is not None and by == "latency":
        raise DataError(
            f"{tree.name}: a model of tree cells has no latency by operations: leave --by latency out"
        )
    if tree is not None and args.output is not None:
        if len(subjects) > 1:
            raise UsageError(
                f"{tree.name} is a model of tree cells, which is drawn alone: leave the others out"
            )
        assert isinstance(tree.arch, TreeArch)
        tree_figure(tree.arch, args.output, cells=args.cell)
    layers, notes = ({}, {}) if tree is not None and args.output is not None else _layers(subjects, by, args)
    if args.text or args.output is None:
        ascii_only = args.ascii or "utf" not in (getattr(sys.stdout, "encoding", None) or "").lower()
        texts = [
            tree_text(s.arch)
            if isinstance(s.arch, TreeArch)
            else model_text(layers[name], name, note=notes.get(name, ""), ascii_only=ascii_only)
            for name, s in _named(subjects).items()
        ]
        print(printable("\n\n".join(texts)))
    if args.output is None:
        return 0
    if tree is None:
        model_figure(layers, args.output, by=by, notes=notes)
    return _done(args)


def _named(subjects: list[DrawnModel]) -> dict[str, DrawnModel]:
    """Return the models by names that are all different."""
    found: dict[str, DrawnModel] = {}
    for subject in subjects:
        name, number = subject.name, 2
        while name in found:
            name, number = f"{subject.name} ({number})", number + 1
        found[name] = subject
    return found


def _layers(
    subjects: list[DrawnModel], by: str, args: argparse.Namespace
) -> tuple[dict[str, list[Layer]], dict[str, str]]:
    """Return the models' layers, with latencies if these are wanted, and a line below each name."""
    from ..arch.arch import Arch
    from ..figures.draw_model import layers_of, timed_layers

    found: dict[str, list[Layer]] = {}
    notes: dict[str, str] = {}
    for name, subject in _named(subjects).items():
        if not isinstance(subject.arch, Arch):
            continue
        if by == "channels":
            found[name] = layers_of(subject.arch)
            continue
        found[name], notes[name] = timed_layers(subject.arch, _table(subject, args), args.predict_missing)
    return found, notes


def _table(subject: DrawnModel, args: argparse.Namespace) -> LatencyTable:
    from ..latency import LatencyTable
    from ..report.resolve import table_of

    if args.table is not None:
        return LatencyTable.load(args.table)
    own = table_of(subject.folder) if subject.folder is not None else None
    if own is None:
        raise UsageError(f"--by latency needs --table T: {subject.name} comes with none")
    return own


COMMAND = Plot()
