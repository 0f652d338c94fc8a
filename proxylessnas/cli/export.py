"""``proxylessnas export``: a model as a file for another runtime, with proof."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import one_line
from ._arguments import add_imports, add_json
from ._command import Command, UsageError
from ._options import add, add_options, settings_from
from ._output import bold, error, megabytes, ms, note, pairs, plural, print_json, printable, table

if TYPE_CHECKING:
    from ..deploy.report import ExportReport

_DIGITS = 12  # of a SHA-256 that is shown
_PATIENCE_S = 5.0


class Export(Command):
    """Write a model for another runtime, and prove the file.

    Write MODEL as OUT, whose suffix names the format: .onnx (ONNX), .xml (OpenVINO), .pte (ExecuTorch),
    .tflite (LiteRT), .pt2 (torch.export), .pt (TorchScript) or .safetensors. The file is loaded by its own
    runtime and compared with the model on real images and random numbers before it gets its name; OUT.json
    keeps the report. Architecture, preprocessing, class names and licence are in the file.
    """

    name = "export"
    order = 80
    example = """\
  $ proxylessnas export proxyless_cifar10_demo demo.onnx
  demo.onnx
  file    ONNX, 2.4 MB, sha256 fbab26653dbc...
  model   proxyless_cifar10_demo, input 3 x 32 x 32, any batch
  inside  architecture, preprocessing, 10 class names, licence MIT
  report  demo.onnx.json

  compared with PyTorch on photos of examples/photos
  inputs          batch  images   off by    limit  same class
  images              1       4  1.9e-06  6.3e-04       100 %
  random numbers      1       2  4.8e-07  4.3e-04       100 %
  ...

  in INT8, judged by images that are not used for the calibration:
  $ proxylessnas export tuned.safetensors tuned.onnx --int8 --calibrate data/train --data data/test

  It computes the same on x86 processors with and without VNNI; --target-isa vnni is nearer to float32, and
  wrong without. If it is not faster than the float32 file, the first line says so, and the exit code is 1.
"""

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        from ..deploy.settings import ExportSettings

        add(parser, "model MODEL", "a model of the zoo, or a file with an architecture")
        add(parser, "out OUT", "the file to write; its suffix names the format")
        add_options(parser, ExportSettings)
        group = parser.add_argument_group("command")
        add(
            group,
            "--litert-python PATH",
            ".tflite: the Python that has litert-torch (default: $PROXYLESSNAS_LITERT_PYTHON)",
        )
        add(
            group,
            "--allow-slower",
            "exit with 0 also if the INT8 file is not faster than the float32 file (it is kept anyway)",
        )
        add_imports(group)
        add(group, "--quiet", "print nothing but errors")
        add_json(group, "the report as one JSON document")

    def run(self, args: argparse.Namespace) -> int:
        from ..deploy.settings import ExportSettings

        settings = settings_from(args, ExportSettings)
        if args.allow_slower and not args.int8:
            raise UsageError("--allow-slower is for --int8")
        if args.litert_python is not None and Path(args.out).suffix.lower() != ".tflite":
            raise UsageError("--litert-python is for .tflite files")
        from ..deploy.exporter import export
        from ..utils.malloc import keep_freed_pages

        if args.litert_python is not None:
            os.environ["PROXYLESSNAS_LITERT_PYTHON"] = args.litert_python
        keep_freed_pages()
        progress = None if args.quiet or args.json else _Stages()
        report = export(args.model, args.out, settings, progress=progress)
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
        ("model", f"{bundle.name}, {takes}, {f'batch {batch}' if batch else 'any batch'}"),
        ("inside", _inside(report)),
        ("report", f"{report.path}.json"),
    ]
    print(printable(pairs(rows)))
    print(f"\ncompared with PyTorch on {one_line(report.images)}")
    print(table([("inputs", "batch", "images", "off by", "limit", "same class"), *_parity(report)], "<>>>>>"))
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


COMMAND = Export()
