"""Models in every format that is exported: parity, file size, and latency against eager PyTorch.

    python benchmarks/deploy_formats.py MODEL [MODEL ...] [--batches 1 8] [--threads-list 1 2] [--int8 FOLDER]

A model is a name of the zoo, a file with weights, or the two as ``NAME=FILE``; a name alone has random
weights. Every file is written and proven by ``deploy.export``; one that cannot be written has a row that says
why. For each batch and number of threads the model and all its files are then measured in rounds, each
runtime in a process of its own, in a new order every round: what is compared is the undisturbed latency, a
low quantile over all rounds, and beside it stands the median. ``--int8`` names labelled
images to calibrate with and adds the INT8 files, whatever they agree: for a model with random weights only
their latency means something.

Machine code (``.pt2 --aot``) has its number of threads in it, and is compiled for the first one.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness

from proxylessnas import deploy
from proxylessnas.deploy.bundle import ModelBundle, open_bundle
from proxylessnas.deploy.formats.base import formats
from proxylessnas.deploy.quantization.backends import int8_suffixes
from proxylessnas.errors import ProxylessError, first_line
from proxylessnas.latency.measure_model import pickle_module
from proxylessnas.latency.measurement import Measurement
from proxylessnas.latency.session import Item, MeasurementSession
from proxylessnas.runtimes.base import ModelSpec
from proxylessnas.runtimes.files import file_runtimes
from proxylessnas.runtimes.settings import Settings

EAGER = "eager"
_AOT = "machine code"


@dataclass
class Written:
    """A file, and what its export said."""

    label: str
    path: Path
    row: dict[str, Any]


def main() -> None:
    parser = harness.make_parser(__doc__, "deploy_formats")
    parser.add_argument("nets", nargs="+", metavar="MODEL")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--threads-list", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--formats", nargs="+", default=[*formats(), _AOT], choices=[*formats(), _AOT])
    parser.add_argument("--int8", type=Path, metavar="FOLDER")
    parser.add_argument(
        "--tolerance", type=float, help="of the proof; for very deep models with random weights"
    )
    parser.add_argument("--batch-size", type=int, help="write files for so many images a call")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=0.05, help="of timing, each round")
    args = parser.parse_args()
    args.threads = args.threads_list[0]
    harness.start(args)
    for name in args.nets:
        with tempfile.TemporaryDirectory() as folder:
            harness.write_rows(args, _rows_of(name, Path(folder), args))


def _rows_of(name: str, folder: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    model, _, weights = name.partition("=")
    alone = not weights and not Path(model).suffix
    subject = open_bundle(model, pretrained=not alone, weights=weights or None)
    files = _write(subject, folder, args)
    found = [
        (batch, threads, _measure(subject, files, folder, batch, threads, args))
        for batch in args.batches
        for threads in args.threads_list
    ]
    rows = []
    for label in (EAGER, *(file.label for file in files)):
        row = {"net": subject.name, "weights": "random" if alone else "real", "format": label}
        row |= next((file.row for file in files if file.label == label), _record("", "", "", "", "", ""))
        for batch, threads, measured in found:
            row |= _figures(measured.get(label), measured[EAGER], f"b{batch}_t{threads}")
        rows.append(row)
    return rows


def _write(subject: ModelBundle, folder: Path, args: argparse.Namespace) -> list[Written]:
    """Export a model to every format."""
    jobs: list[tuple[str, str, dict[str, Any]]] = []
    for suffix in args.formats:
        aot = suffix == _AOT
        options: dict[str, Any] = {"aot": True, "threads": args.threads} if aot else {}
        jobs.append((f".pt2 {_AOT}" if aot else suffix, ".pt2" if aot else suffix, options))
    if args.int8:
        for suffix in int8_suffixes():
            options = {"int8": True, "calibrate": args.int8, "min_agreement": 0.0}
            jobs.append((f"{suffix} int8", suffix, options))
    written = []
    for label, suffix, options in jobs:
        path = folder / label.replace(" ", "_").replace(".", "") / f"net{suffix}"
        path.parent.mkdir()
        begin = time.perf_counter()
        try:
            report = deploy.export(
                subject.model,
                path,
                deploy.ExportSettings(
                    measure=False, tolerance=args.tolerance, batch_size=_batch(suffix, args), **options
                ),
            )
        except ProxylessError as e:
            row = _record("", "", "", "", "", first_line(e).removeprefix(f"{subject.name}: "))
        else:
            off = max(part.difference / max(part.largest, 1.0) for part in report.parity)
            fewest = min((r.agreement for r in report.parity if r.agreement is not None), default=1.0)
            row = _record(
                f"{off:.1e}", round(100 * fewest, 1), round(report.largest_difference, 6),
                round(report.size_bytes / 1e6, 3), round(time.perf_counter() - begin, 1), "",
            )  # fmt: skip
        written.append(Written(label, path, row))
        print(subject.name, label, row, flush=True)
    return written


def _batch(suffix: str, args: argparse.Namespace) -> int | None:
    """Return the batch size to write a file for: two formats leave it open anyway."""
    return None if suffix in (".pt", ".safetensors") else args.batch_size


def _record(
    off: object, agreement: object, largest: object, mb: object, s: object, why: str
) -> dict[str, Any]:
    return {
        "relative_difference": off, "agreement_percent": agreement, "largest_difference": largest,
        "file_mb": mb, "export_s": s, "not_written": why,
    }  # fmt: skip


def _measure(
    subject: ModelBundle,
    files: list[Written],
    folder: Path,
    batch: int,
    threads: int,
    args: argparse.Namespace,
) -> dict[str, Measurement]:
    """Return what was measured of the model, and of each file that can be measured."""
    pickled = folder / "net.pickle"
    pickle_module(subject.model, pickled)
    specs = {EAGER: ("torch", ModelSpec("module", str(pickled), subject.input_size))}
    for file in files:
        readers = file_runtimes(file.path) if file.path.exists() else ()
        if readers and (_AOT not in file.label or threads == args.threads):
            specs[file.label] = (readers[0], ModelSpec("file", str(file.path), subject.input_size))
    items = [
        Item(label, spec, Settings(runtime, threads=threads, batch_size=batch), seconds=args.seconds)
        for label, (runtime, spec) in specs.items()
    ]
    session = MeasurementSession(items, keep_going=True)
    session.run(0, processes=1, least_rounds=args.rounds)
    for label, error in session.failed.items():
        print(subject.name, label, f"batch {batch}, {threads} threads:", first_line(error), flush=True)
    return {label: found for label, found in session.measured.items() if label not in session.failed}


def _figures(mine: Measurement | None, eager: Measurement, where: str) -> dict[str, Any]:
    names = (f"ms_{where}", f"median_ms_{where}", f"times_eager_{where}")
    if mine is None:
        return dict.fromkeys(names, "")
    times_eager = round(eager.undisturbed_ms / mine.undisturbed_ms, 2)
    return dict(
        zip(names, (round(mine.undisturbed_ms, 3), round(mine.median_ms, 3), times_eager), strict=True)
    )


if __name__ == "__main__":
    main()
