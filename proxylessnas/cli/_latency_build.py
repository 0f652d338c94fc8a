"""``proxylessnas latency build``, ``validate`` and ``kit``: tables in the making."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import LatencyError
from ..utils.progress import Steps
from ._arguments import (
    TABLE_HELP,
    add_imports,
    add_int8,
    add_output,
    add_quiet,
    add_space,
    check_output,
    the_space,
    written,
)
from ._command import Command, UsageError
from ._latency_facts import check_table_output, print_table_facts, show
from ._options import add, add_options, settings_from, whole
from ._output import error, note, plural, print_json, printable

if TYPE_CHECKING:
    from ..latency import BuildSettings, LatencyTable

MOST_SEED = 2**63
_SEED_HELP = "of the random models (default: %(default)s)"


class Build(Command):
    """Measure a table of this device for a search space.

    Measure what each operation of a search space costs on this device, and check the result on whole random
    models that it was not made from. What is measured is the undisturbed latency, a low quantile over many
    short interleaved windows, so other programs may run meanwhile; it takes longer then. Killed at any
    moment, the same command resumes where it stopped. The exit code is 1 if the table is not to be trusted.
    """

    name = "build"
    example = """\
  $ proxylessnas latency build --space imagenet --runtime onnxruntime --threads 2 -o table.json
  $ proxylessnas latency build --space imagenet --runtime onnxruntime --int8 -o int8.json
"""

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        from ..latency.settings import BuildSettings

        add_space(parser)
        add_output(parser, "where to write the table (.json)", required=True)
        add(parser, "--force", "replace a table that is there")
        add_options(parser, BuildSettings, without=("imports",), names={"batch_size": "--batch"})
        add_int8(parser)
        add_imports(parser)
        add_quiet(parser)

    def run(self, args: argparse.Namespace) -> int:
        from ..latency.settings import BuildSettings

        settings = settings_from(args, BuildSettings)
        check_table_output(args.output, args.force)
        space = the_space(args)
        assert space is not None
        from ..latency import build_table, doubts

        with Steps(args.quiet, "building") as steps:
            found = build_table(space, settings, path=args.output, progress=steps)
        print_table_facts(args.output, found, args, doubts=not settings.validation_nets)
        problems = doubts(found) if settings.validation_nets else []
        if problems:
            error(f"{args.output} is not to be trusted: {'; '.join(problems)}")
            advice = _what_to_do(settings, found)
            if advice:
                note(advice)
        return 1 if problems else 0


def _what_to_do(settings: BuildSettings, found: LatencyTable) -> str:
    """Return what to try where a table was built that is not to be trusted; "" if only another space does."""
    from ..latency.metrics import LEAST_JUDGED, NO_ORDER
    from ..latency.settings import DEFAULT_MINUTES

    known = found.validation or {}
    if settings.validation_nets < LEAST_JUDGED:
        return f"build it again with --force --validation-nets {LEAST_JUDGED}"
    disturbance = known.get("disturbance") or 1.0
    busy = f"the machine is disturbed ({disturbance:.2f} times as slow as undisturbed): try a quieter hour"
    advice = [busy] if disturbance > 1.2 else []
    ceiling = known.get("ceiling_tau")
    if ceiling is None or ceiling >= NO_ORDER:
        advice.insert(
            0, f"build it again with --force --minutes {2 * (settings.minutes or DEFAULT_MINUTES):g}"
        )
    return "; ".join(advice)


class Validate(Command):
    """Compare a table with whole models measured on this device.

    Measure random whole models of a table's space on this device, with the table's own settings, and compare
    them with its predictions. The result is stored in the table. The exit code is 1 if the table is not to be
    trusted: Kendall tau below 0.8 (or below 80 % of what two runs of the same models reach here, if that is
    less), or a mean error above 15 %. A line through the predictions is fitted on half of the models and
    judged on the other; --adopt-correction makes it part of the table if it helps (if not, the exit code is
    1), and the result that is stored is then that of the other half alone, with the corrected predictions.
    """

    name = "validate"
    example = """\
  $ proxylessnas latency validate table.json --nets 50 --png table.png
  $ proxylessnas latency validate table.json --adopt-correction
"""

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        add(parser, "table TABLE", TABLE_HELP)
        add_output(parser, "write the table here (default: TABLE, in place)")
        add(
            parser,
            "--nets N",
            "how many (default: 30, twice as many with --adopt-correction)",
            type=whole(2, 100_000),
        )
        add(parser, "--seed N", _SEED_HELP, type=whole(0, MOST_SEED), default=1)
        add(parser, "--force", "also where the device or versions are not the table's")
        add(parser, "--adopt-correction", "correct the table by the line found, if it helps")
        add(parser, "--png FILE", "draw predicted against measured latencies")
        add_space(parser, required=False)
        add_quiet(parser)
        add_imports(parser)

    def run(self, args: argparse.Namespace) -> int:
        from ..latency import LatencyTable, Validation, adopt_correction, validate_table
        from ..latency.metrics import LEAST_JUDGED
        from ..latency.plots import describe, prediction_png
        from ..latency.table import BUNDLED
        from ..latency.table_facts import facts_of

        output = args.output or args.table
        if args.output is None and args.table in BUNDLED:
            raise UsageError(f"{args.table} comes with the package: -o says where to write the result")
        check_output(output, "-o", ".json")
        if args.png is not None:
            check_output(args.png, "--png", ".png")
        found = LatencyTable.load(args.table)
        space = the_space(args) or found.space
        if space is None:
            raise UsageError(f"{args.table} was made for no space: --space says which")
        with Steps(args.quiet, "validating") as steps:
            result = validate_table(
                found, space, nets=args.nets or LEAST_JUDGED * (2 if args.adopt_correction else 1),
                seed=args.seed, force=args.force, imports=tuple(args.imports), progress=steps,
            )  # fmt: skip
        found, refused = found.with_validation(result), None
        if args.adopt_correction:
            try:
                found = adopt_correction(found)
                result = Validation.from_dict(found.validation or {})
            except LatencyError as e:
                refused = str(e)
        found.save(output)
        known = facts_of(found, space)
        if args.json:
            print_json({"table": str(output), **known})
        else:
            show(str(output), known, found.conditions.describe())
        title = f"Models of the space {space.name!r}: {describe(found.conditions)}"
        drawn = written(
            args.png,
            lambda file: prediction_png(
                [p[1:] for p in result.pairs], file, title=title, summary=result.verdict
            ),
        )
        if refused is not None:
            error(f"the correction is not adopted, only the validation is stored: {refused}")
        for problem in known["trust"]:
            error(f"{output} is not to be trusted: {problem}")
        return 0 if drawn and not known["trust"] and refused is None else 1


class Kit(Command):
    """Write a folder with which a device without PyTorch measures a search space.

    Write a folder for a device that has no PyTorch: every operation of a search space and some whole models
    as ONNX (or ExecuTorch) files, and a script that measures them with Python and ONNX Runtime. `proxylessnas
    latency import results.json --kit DIR` makes a table of what it finds.
    """

    name = "kit"
    example = """\
  $ proxylessnas latency kit --space imagenet -o kit
  (copy the folder to the device; there:)
  $ python run.py --threads 4
  (copy results.json back; here:)
  $ proxylessnas latency import results.json --kit kit -o phone.json
"""

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        add_space(parser)
        add_output(parser, "folder to write", "DIR", required=True)
        for name, default, low, high, help in (
            ("nets", 48, 0, 10_000, "whole models (default: 48)"),
            ("batch", 1, 1, 65_536, "images a call (default: 1)"),
            ("seed", 0, 0, MOST_SEED, _SEED_HELP),
        ):
            parser.add_argument(f"--{name}", type=whole(low, high), default=default, metavar="N", help=help)
        add(parser, "--formats F,F", "onnx, executorch, or both (default: onnx)", default="onnx")
        add(parser, "--int8", "models with 8-bit weights and activations (onnx)")
        add_imports(parser)
        add_quiet(parser)

    def run(self, args: argparse.Namespace) -> int:
        space = the_space(args)
        assert space is not None
        from ..latency import write_kit

        formats = tuple(args.formats.replace(",", " ").split())
        with Steps(args.quiet, "writing") as steps:
            folder = write_kit(
                space, args.output, formats=formats, nets=args.nets, batch_size=args.batch, seed=args.seed,
                dtype="int8" if args.int8 else "float32", progress=steps,
            )  # fmt: skip
        files = [path for path in Path(folder).rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files)
        if args.json:
            print_json({"folder": str(folder), "files": len(files), "size": size, "formats": list(formats)})
            return 0
        print(printable(str(folder)))
        count = plural(len(files), "file")
        note(f"{count}, {size / 1e6:.1f} MB; README.txt in it says what to do on the device")
        return 0
