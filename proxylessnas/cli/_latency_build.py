"""``proxylessnas latency build``, ``validate`` and ``kit``: tables in the making."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import LatencyError
from ..latency.metrics import LEAST_JUDGED, NO_ORDER
from ._command import UsageError, Verb
from ._latency import (
    TABLE_HELP,
    Steps,
    add_imports,
    add_quiet,
    add_settings,
    add_space,
    check_graph,
    check_output,
    import_modules,
    read_table,
    the_space,
)
from ._latency_facts import facts, show
from ._latency_table import check_table_output, report_table
from ._options import MOST_IMAGES, MOST_MODELS, above, whole
from ._output import error, note, plural, print_json, printable

if TYPE_CHECKING:
    from ..arch.space import SearchSpace
    from ..latency import LatencyTable, Validation

MOST_MINUTES, MOST_SEED = 1e6, 2**63


class Build(Verb):
    """Measures a table."""

    name = "build"
    summary = "measure a table of this device for a search space"
    description = (
        "Measure what each operation of a search space costs on this device, and check the result on whole "
        "random models that it was not made from. What is measured is the undisturbed latency, a low "
        "quantile over many short interleaved windows, so other programs may run meanwhile; it takes longer "
        "then. Killed at any moment, the same command resumes where it stopped. The exit code is 1 if the "
        "table is not to be trusted."
    )
    example = """\
  $ proxylessnas latency build --space imagenet --runtime onnxruntime --threads 2 -o table.json
"""

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the action's arguments."""
        add_space(parser)
        parser.add_argument(
            "-o", "--output", required=True, metavar="FILE", help="where to write the table (.json)"
        )
        parser.add_argument("--force", action="store_true", help="replace a table that is there")
        group = parser.add_argument_group("effort")
        group.add_argument(
            "--minutes",
            type=above(0, MOST_MINUTES),
            metavar="M",
            help="about as long as this at most (default: 8)",
        )
        group.add_argument(
            "--nets",
            type=whole(1, MOST_MODELS),
            metavar="N",
            help="whole models to fit it on",
            dest="anchors",
        )
        group.add_argument(
            "--validation-nets", type=_none_or_some, default=30, metavar="N",
            help="others to check it on (default: 30)",
        )  # fmt: skip
        group.add_argument(
            "--seed",
            type=whole(0, MOST_SEED),
            default=0,
            metavar="N",
            help="of the random models (default: 0)",
        )
        add_settings(parser)
        add_quiet(parser)

    def run(self, args: argparse.Namespace) -> int:
        """Measure, write and report."""
        check_graph(args, [args.runtime])
        check_table_output(args.output, args.force)
        import_modules(args)
        space = the_space(args)
        assert space is not None
        from ..latency import build_table, doubts

        with Steps(args.quiet, "building") as steps:
            found = build_table(
                space,
                runtime=args.runtime,
                device=args.device,
                threads=args.threads,
                batch_size=args.batch_size,
                dtype=args.dtype,
                memory_format=args.memory_format,
                cuda_graph=args.cuda_graph,
                path=args.output,
                nets=args.anchors,
                validation_nets=args.validation_nets,
                minutes=args.minutes,
                seed=args.seed,
                progress=steps,
                imports=tuple(args.imports),
            )
        report_table(args.output, found, args, doubts=not args.validation_nets)
        problems = doubts(found) if args.validation_nets else []
        if problems:
            error(f"{args.output} is not to be trusted: {'; '.join(problems)}")
            advice = _what_to_do(args, found)
            if advice:
                note(advice)
        return 1 if problems else 0


def _what_to_do(args: argparse.Namespace, found: LatencyTable) -> str:
    """Return what to try where a table was built that is not to be trusted; "" if only another space does."""
    known = found.validation or {}
    if args.validation_nets < LEAST_JUDGED:
        return f"build it again with --force --validation-nets {LEAST_JUDGED}"
    disturbance = known.get("disturbance") or 1.0
    busy = f"the machine is disturbed ({disturbance:.2f} times as slow as undisturbed): try a quieter hour"
    advice = [busy] if disturbance > 1.2 else []
    ceiling = known.get("ceiling_tau")
    if ceiling is None or ceiling >= NO_ORDER:
        advice.insert(0, f"build it again with --force --minutes {2 * (args.minutes or 8):g}")
    return "; ".join(advice)


class Validate(Verb):
    """Compares a table with measured models."""

    name = "validate"
    summary = "compare a table with whole models measured on this device"
    description = (
        "Measure random whole models of a table's space on this device, with the table's own settings, and "
        "compare them with its predictions. The result is stored in the table. The exit code is 1 if the "
        "table is not to be trusted: Kendall tau below 0.8 (or below 80 % of what two runs of the same "
        "models reach here, if that is less), or a mean error above 15 %. A line through the "
        "predictions is fitted on half of the models and judged on the other; --adopt-correction makes it "
        "part of the table if it helps (if not, the exit code is 1), and the result that is stored is then "
        "that of the other half alone, with the corrected predictions."
    )
    example = """\
  $ proxylessnas latency validate table.json --nets 50 --png table.png
  $ proxylessnas latency validate table.json --adopt-correction
"""

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the action's arguments."""
        parser.add_argument("table", metavar="TABLE", help=TABLE_HELP)
        parser.add_argument(
            "-o", "--output", metavar="FILE", help="write the table here (default: TABLE, in place)"
        )
        parser.add_argument(
            "--nets", type=whole(2, MOST_MODELS), metavar="N", dest="count",
            help=f"how many (default: {LEAST_JUDGED}, twice as many with --adopt-correction)",
        )  # fmt: skip
        parser.add_argument(
            "--seed", type=whole(0, MOST_SEED), default=1, metavar="N",
            help="of the random models (default: 1)",
        )  # fmt: skip
        parser.add_argument(
            "--force", action="store_true", help="also where the device or versions are not the table's"
        )
        parser.add_argument(
            "--adopt-correction", action="store_true", help="correct the table by the line found, if it helps"
        )
        parser.add_argument("--png", metavar="FILE", help="draw predicted against measured latencies")
        add_space(parser, required=False)
        add_quiet(parser)
        add_imports(parser)

    def run(self, args: argparse.Namespace) -> int:
        """Measure, store and report."""
        from ..latency.table import BUNDLED

        output = args.output or args.table
        if args.output is None and args.table in BUNDLED:
            raise UsageError(f"{args.table} comes with the package: -o says where to write the result")
        check_output(output, "-o", ".json")
        if args.png is not None:
            check_output(args.png, "--png", ".png")
        import_modules(args)
        found = read_table(args.table)
        space = the_space(args) or found.space
        if space is None:
            raise UsageError(f"{args.table} was made for no space: --space says which")
        from ..latency import Validation, adopt_correction, validate_table

        with Steps(args.quiet, "validating") as steps:
            result = validate_table(
                found,
                space,
                nets=args.count or LEAST_JUDGED * (2 if args.adopt_correction else 1),
                seed=args.seed,
                force=args.force,
                imports=tuple(args.imports),
                progress=steps,
            )
        found, refused = found.with_validation(result), None
        if args.adopt_correction:
            try:
                found = adopt_correction(found)
                result = Validation.from_dict(found.validation or {})
            except LatencyError as e:
                refused = str(e)
        found.save(output)
        known = facts(found, space)
        if args.json:
            print_json({"table": str(output), **known})
        else:
            show(str(output), known, found.conditions.describe())
        drawn = args.png is None or _draw(args.png, found, space, result)
        if refused is not None:
            error(f"the correction is not adopted, only the validation is stored: {refused}")
        for problem in known["trust"]:
            error(f"{output} is not to be trusted: {problem}")
        return 0 if drawn and not known["trust"] and refused is None else 1


class Kit(Verb):
    """Writes what another device needs to measure a space."""

    name = "kit"
    summary = "write a folder with which a device without PyTorch measures a search space"
    description = (
        "Write a folder for a device that has no PyTorch: every operation of a search space and some whole "
        "models as ONNX (or ExecuTorch) files, and a script that measures them with Python and ONNX Runtime. "
        "`proxylessnas latency import results.json --kit DIR` makes a table of what it finds."
    )
    example = """\
  $ proxylessnas latency kit --space imagenet -o kit
  (copy the folder to the device; there:)
  $ python run.py --threads 4
  (copy results.json back; here:)
  $ proxylessnas latency import results.json --kit kit -o phone.json
"""

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the action's arguments."""
        add_space(parser)
        parser.add_argument("-o", "--output", required=True, metavar="DIR", help="folder to write")
        parser.add_argument(
            "--formats", default="onnx", metavar="F,F", help="onnx, executorch, or both (default: onnx)"
        )
        parser.add_argument(
            "--nets", type=whole(0, 10_000), default=48, metavar="N", help="whole models (default: 48)",
            dest="count",
        )  # fmt: skip
        parser.add_argument(
            "--batch", type=whole(1, MOST_IMAGES), default=1, metavar="N",
            help="images a call (default: 1)",
        )  # fmt: skip
        parser.add_argument(
            "--seed", type=whole(0, MOST_SEED), default=0, metavar="N",
            help="of the random models (default: 0)",
        )  # fmt: skip
        add_imports(parser)
        add_quiet(parser)

    def run(self, args: argparse.Namespace) -> int:
        """Write it."""
        import_modules(args)
        space = the_space(args)
        assert space is not None
        from ..latency import write_kit

        formats = tuple(args.formats.replace(",", " ").split())
        with Steps(args.quiet, "writing") as steps:
            folder = write_kit(
                space,
                args.output,
                formats=formats,
                nets=args.count,
                batch_size=args.batch,
                seed=args.seed,
                progress=steps,
            )
        files = [path for path in Path(folder).rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files)
        if args.json:
            print_json({"folder": str(folder), "files": len(files), "size": size, "formats": list(formats)})
            return 0
        print(printable(str(folder)))
        count = plural(len(files), "file")
        note(f"{count}, {size / 1e6:.1f} MB; README.txt in it says what to do on the device")
        return 0


def _none_or_some(text: str) -> int:
    """Read a number of models to check a table on: one alone tells nothing."""
    value = whole(0, MOST_MODELS)(text)
    if value == 1:
        raise argparse.ArgumentTypeError(f"wanted 0 or a whole number from 2 to {MOST_MODELS}, not {text!r}")
    return value


def _draw(file: str, found: LatencyTable, space: SearchSpace, result: Validation) -> bool:
    """Draw the models; the table is written already, so that a full disk loses nothing."""
    from ..latency.benchmark import describe
    from ..latency.plots import prediction_png

    title = f"Models of the space {space.name!r}: {describe(found.conditions)}"
    try:
        prediction_png([pair[1:] for pair in result.pairs], file, title=title, summary=result.verdict)
    except OSError as e:
        error(f"{file}: cannot be written ({e.strerror or e})")
        return False
    return True


BUILD, VALIDATE, KIT = Build(), Validate(), Kit()
