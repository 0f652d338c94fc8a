"""``proxylessnas export``: a model as a file for another runtime, with proof."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import one_line
from ._command import UsageError, Verb
from ._latency import add_imports, ms
from ._options import MOST_IMAGES, MOST_PIXELS, MOST_THREADS, above, whole
from ._output import bold, error, megabytes, note, pairs, plural, print_json, printable, table

if TYPE_CHECKING:
    from ..deploy.report import ExportReport

_DIGITS = 12  # of a SHA-256 that is shown
_PATIENCE_S = 5.0


class Export(Verb):
    """Writes a model in another runtime's format, proves the file and measures it."""

    name = "export"
    order = 80
    summary = "write a model for another runtime, and prove the file"
    description = (
        "Write MODEL as OUT, whose suffix names the format: .onnx (ONNX), .xml (OpenVINO), .pte (ExecuTorch), "
        ".tflite (LiteRT), .pt2 (torch.export), .pt (TorchScript) or .safetensors. The file is loaded by its "
        "own runtime and compared with the model on real images and random numbers before it gets its name; "
        "OUT.json keeps the report. Architecture, preprocessing, class names and licence are in the file."
    )
    example = """\
  $ proxylessnas export proxyless_cifar10_demo demo.onnx
  demo.onnx
  file    ONNX, 2.4 MB, sha256 fbab26653dbc...
  model     proxyless_cifar10_demo, input 3 x 32 x 32, any batch
  inside  architecture, preprocessing, 10 class names, licence MIT
  report  demo.onnx.json

  compared with PyTorch on photos of examples/photos
  inputs          batch  images   off by    limit  same class
  images            1         4  1.9e-06  6.3e-04       100 %
  random numbers      1         2  4.8e-07  4.3e-04       100 %
  ...

  in INT8, judged by images that are not used for the calibration:
  $ proxylessnas export tuned.safetensors tuned.onnx --int8 --calibrate data/train --data data/test

  It computes the same on x86 processors with and without VNNI; --target-isa vnni is nearer to float32, and
  wrong without. If it is not faster than the float32 file, the first line says so, and the exit code is 1.
"""

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the verb's arguments."""
        parser.add_argument("net", metavar="MODEL", help="a model of the zoo, or a file with an architecture")
        parser.add_argument("out", metavar="OUT", help="the file to write; its suffix names the format")
        group = parser.add_argument_group("net")
        group.add_argument("--weights", metavar="FILE", help="weights: .safetensors or .pth")
        group.add_argument("--untrained", action="store_true", help="random weights, to measure a model")
        group.add_argument(
            "--input-size", type=whole(1, MOST_PIXELS), metavar="N", help="side of the input, px"
        )
        add_imports(group)
        group = parser.add_argument_group("file")
        group.add_argument(
            "--batch-size", type=whole(1, MOST_IMAGES), metavar="N",
            help="images a call (default: open, where the format can)",
        )  # fmt: skip
        group.add_argument(
            "--uint8-input", action="store_true",
            help=".onnx: takes uint8 images of any size; resizes and normalises them itself",
        )  # fmt: skip
        group.add_argument(
            "--opset", type=whole(1, 1000), metavar="N", help=".onnx: version of the operators"
        )
        group.add_argument("--aot", action="store_true", help=".pt2: machine code for this kind of machine")
        group.add_argument(
            "--threads", type=whole(1, MOST_THREADS), metavar="N",
            help="that --aot is made for, and that is measured with (default: torch's)",
        )  # fmt: skip
        group.add_argument(
            "--litert-python", metavar="PATH",
            help=".tflite: the Python that has litert-torch (default: $PROXYLESSNAS_LITERT_PYTHON)",
        )  # fmt: skip
        group.add_argument("--force", action="store_true", help="replace a file that is there")
        group = parser.add_argument_group("INT8")
        group.add_argument("--int8", action="store_true", help="8-bit weights and activations")
        group.add_argument(
            "--calibrate",
            metavar="DIR",
            help="images like those the model will see: 8 at least, 50 or more will do",
        )
        group.add_argument("--data", metavar="DIR", help="labelled images to judge it with, as for eval")
        group.add_argument(
            "--target-isa", choices=("any", "avx2", "vnni"),
            help="x86 processors it must compute the same on: without VNNI, with it, or both (default: any)",
        )  # fmt: skip
        group.add_argument(
            "--allow-slower",
            action="store_true",
            help="exit with 0 also if the INT8 file is not faster than the float32 file (it is kept anyway)",
        )
        group.add_argument(
            "--min-agreement", type=above(0, 1), metavar="P",
            help="share of the images that must keep their class, up to 1 (default: 0.9)",
        )  # fmt: skip
        group.add_argument(
            "--max-drop", type=above(0, 1), metavar="P",
            help="share of --data that may be lost, up to 1 (default: 0.02)",
        )  # fmt: skip
        group.add_argument(
            "--qat-epochs", type=whole(1, 10_000), default=0, metavar="N",
            help="first fine-tune the model with the rounding in it",
        )  # fmt: skip
        group.add_argument("--qat-data", metavar="DIR", help="labelled images for that; not those of --data")
        group = parser.add_argument_group("proof")
        group.add_argument("--images", metavar="DIR", help="images to compare on (default: some are here)")
        group.add_argument(
            "--tolerance", type=above(0, 1), metavar="X",
            help="times the largest output (default: 1e-4; with --uint8-input 0.02)",
        )  # fmt: skip
        group.add_argument(
            "--no-measure",
            action="store_true",
            help="do not measure the latency (INT8 is compared with float32)",
        )
        parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
        parser.add_argument("--json", action="store_true", help="print the report as one JSON document")

    def run(self, args: argparse.Namespace) -> int:
        """Export and report."""
        _check_int8(args)
        if args.untrained and args.weights is not None:
            raise UsageError("--untrained leaves the weights random: it does not go with --weights")
        if args.litert_python is not None and Path(args.out).suffix.lower() != ".tflite":
            raise UsageError("--litert-python is for .tflite files")
        from ..deploy.exporter import export
        from ..utils.malloc import keep_freed_pages

        if args.litert_python is not None:
            os.environ["PROXYLESSNAS_LITERT_PYTHON"] = args.litert_python
        keep_freed_pages()
        given = {name: getattr(args, name) for name in ("target_isa", "min_agreement", "max_drop")}
        limits = {name: value for name, value in given.items() if value is not None}
        report = export(
            args.net,
            args.out,
            precision="int8" if args.int8 else "float32",
            batch_size=args.batch_size,
            uint8_input=args.uint8_input,
            opset=args.opset,
            aot=args.aot,
            threads=args.threads,
            pretrained=not args.untrained,
            weights=args.weights,
            input_size=args.input_size,
            images=args.images,
            tolerance=args.tolerance,
            measure=not args.no_measure,
            force=args.force,
            calibration=args.calibrate,
            data=args.data,
            qat_epochs=args.qat_epochs,
            qat_data=args.qat_data,
            progress=None if args.quiet or args.json else _Stages(),
            **limits,
        )
        headline = report.int8.headline if report.int8 is not None else ""
        if args.json:
            print_json(report.to_dict())
        elif not args.quiet:
            if headline:
                print(bold(headline))
            _show(report)
        for text in report.notes:
            note(text)
        if not headline or args.allow_slower:
            return 0
        error(f"{report.path}: {headline}; it is written all the same (--allow-slower accepts that)")
        return 1


def _check_int8(args: argparse.Namespace) -> None:
    given = [
        f"--{name.replace('_', '-')}"
        for name in (
            "calibrate",
            "data",
            "target_isa",
            "allow_slower",
            "min_agreement",
            "max_drop",
            "qat_epochs",
            "qat_data",
        )
        if getattr(args, name) not in (None, 0)
    ]
    if not args.int8 and given:
        raise UsageError(f"{' and '.join(given)} {'is' if len(given) == 1 else 'are'} for --int8")
    if args.int8 and args.calibrate is None:
        raise UsageError("--int8 needs --calibrate DIR, a folder of images like those the model will see")
    if (args.qat_epochs > 0) != (args.qat_data is not None):
        raise UsageError("--qat-epochs N and --qat-data DIR go together")


class _Stages:
    """Says what is going on where it takes longer than a moment."""

    def __init__(self) -> None:
        self._begin = time.monotonic()

    def __call__(self, what: str) -> None:
        if time.monotonic() - self._begin >= _PATIENCE_S:
            note(what)


def _show(report: ExportReport) -> None:
    main, *others = report.files
    bundle, batch = report.bundle, report.options.batch_size
    size = f"uint8 images [{batch or 'N'}, 3, H, W]" if report.options.uint8_input else "input {}"
    takes = size.format(" x ".join(map(str, bundle.input_size)))
    print(bold(str(report.path)))
    rows = [("file", f"{report.format}, {megabytes(main.bytes)}, sha256 {main.sha256[:_DIGITS]}...")]
    rows += [("with it", f"{file.name}, {megabytes(file.bytes)}") for file in others]
    rows += [
        ("net", f"{bundle.name}, {takes}, {f'batch {batch}' if batch else 'any batch'}"),
        ("inside", _inside(report)),
        ("report", f"{report.path}.json"),
    ]
    print(printable(pairs(rows)))
    print(f"\ncompared with PyTorch on {one_line(report.images)}")
    print(
        table([("inputs", "batch", "pictures", "off by", "limit", "same class"), *_parity(report)], "<>>>>>")
    )
    if report.int8 is not None:
        print("\n" + printable("\n".join(report.int8.lines())))
    if report.latency:
        first = report.latency[0]
        threads = plural(first.threads, "thread")
        machine = one_line(report.machine)
        print(f"\nlatency of a call, {threads}, batch {first.batch}, measured by turns on {machine}")
        print(table([("", "ms", "median", "p90", "speed-up"), *_latency(report)], "<>>>>"))
        if any(row.noise for row in report.latency):
            note("the latencies are uncertain: " + next(row.noise[0] for row in report.latency if row.noise))
    print("\n" + printable(", ".join(f"{name} {version}" for name, version in report.versions.items())))


def _inside(report: ExportReport) -> str:
    bundle = report.bundle
    found = ["preprocessing"] if bundle.preprocessing else []
    found += [f"{len(bundle.categories)} class names"] if bundle.categories else []
    found += [f"licence {bundle.license}"] if bundle.license else []
    return ", ".join(["architecture", *found])


def _parity(report: ExportReport) -> list[tuple[str, ...]]:
    return [
        (
            row.inputs, str(row.batch), str(row.n), f"{row.difference:.1e}",
            f"{report.tolerance * max(1.0, row.largest):.1e}" if report.tolerance else "-",
            "-" if row.agreement is None else f"{100 * row.agreement:.0f} %",
        )
        for row in report.parity
    ]  # fmt: skip


def _latency(report: ExportReport) -> list[tuple[str, ...]]:
    return [
        (row.runtime, ms(row.undisturbed_ms), ms(row.median_ms), ms(row.p90_ms), f"{row.speedup:.2f}x")
        for row in report.latency
    ]


VERB = Export()
