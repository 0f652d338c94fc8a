"""INT8 by every scheme, in every runtime: agreement with float32, accuracy, and what the file costs.

Calibrates on every fourth image of a folder of labelled ones (or on those of --calibrate) and evaluates on
the others, which `quantise` itself never does before the end: this is the table its lists of schemes were
made from, and shows what its choice is worth.

    python benchmarks/int8_schemes.py FOLDER [--net NAME] [--weights FILE] [--formats onnx xml pte]
    python benchmarks/int8_schemes.py FOLDER --calibrate OTHER --formats onnx --no-latency

Each step that prepares a model is taken alone, with the others, and left out. Latency is measured by turns in
this process, one image a call; read ratios. On a processor without VNNI, ONNX files of 8-bit weights are run
with kernels that cut no sum off.
"""

from __future__ import annotations

import dataclasses
import itertools
import tempfile
import time
from pathlib import Path
from typing import Any

import harness
import torch

from proxylessnas.data.folders import labelled_images
from proxylessnas.deploy.bundle import ModelBundle, open_bundle
from proxylessnas.deploy.formats.base import Format, Program, format_of
from proxylessnas.deploy.quantization.backends import backend_of
from proxylessnas.deploy.quantization.calibration import labelled_inputs, read_calibration
from proxylessnas.deploy.quantization.quantize import Prepared, by_turns, divergence
from proxylessnas.deploy.quantization.schemes import Scheme, scheme_of, this_machine_saturates
from proxylessnas.deploy.settings import ExportOptions
from proxylessnas.errors import ExportError

_STEPS = ("compensate", "correct", "floatfirst")
_ALL = [
    "+".join([rule, *steps, *bits])
    for bits in (["7bit"], [])
    for rule in ("minmax", "mse")
    for n in range(len(_STEPS) + 1)
    for steps in itertools.combinations(_STEPS, n)
]


def main() -> None:
    parser = harness.make_parser(__doc__, "int8_schemes")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--net", default="proxyless_w03_r176")
    parser.add_argument("--weights")
    parser.add_argument("--formats", nargs="+", default=["onnx", "xml", "pte"])
    parser.add_argument("--schemes", nargs="+", default=_ALL)
    parser.add_argument("--calibrate", type=Path, help="folder of other images to calibrate on")
    parser.add_argument("--images", type=int, default=10_000, help="evaluate on at most so many")
    parser.add_argument("--no-latency", action="store_true")
    args = parser.parse_args()
    harness.start(args)
    bundle = open_bundle(args.net, weights=args.weights)
    weights = bundle.model.weights
    dataset = weights.dataset if weights is not None else None
    found = labelled_images(args.folder, bundle.model.num_classes, dataset, names=bundle.categories)
    others, evaluated = found.samples[::4], [s for i, s in enumerate(found.samples) if i % 4]
    if args.calibrate:
        calibration = read_calibration(bundle, args.calibrate).everything
        evaluated = list(found.samples)
    else:
        calibration = torch.cat([x for x, _ in labelled_inputs(bundle, others)]).split(16)
    evaluated = evaluated[:: max(1, len(evaluated) // args.images)]
    x, labels = (torch.cat(parts) for parts in zip(*labelled_inputs(bundle, evaluated), strict=True))
    rows: list[dict[str, Any]] = []
    prepared = Prepared(bundle.model, calibration)
    for suffix in args.formats:
        rows += _table(bundle, suffix, prepared, x, labels, args)
    harness.write_rows(args, rows)


def _open(path: Path, fmt: Format, scheme: Scheme, threads: int) -> Program:
    """Load an int8 file, with kernels that cut no sum off where this processor's own would."""
    if path.suffix != ".onnx" or scheme.weight_bits == 7 or not this_machine_saturates():
        return fmt.open(path, threads=threads)
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {"images": x.numpy()})[0])


def _table(
    bundle: ModelBundle, suffix: str, prepared: Prepared, x: torch.Tensor, labels: torch.Tensor, args: Any
) -> list[dict[str, Any]]:
    fmt, options = format_of(Path(f"net.{suffix}")), ExportOptions()
    backend = backend_of(fmt)
    with torch.inference_mode():
        expected = torch.cat([bundle.model(part) for part in x.split(16)])
    right = float((expected.argmax(1) == labels).double().mean())
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        exact = Path(folder) / f"float.{suffix}"
        fmt.write(bundle, exact, options)
        float_program = fmt.open(exact, threads=args.threads)
        for name in args.schemes:
            scheme = scheme_of(name)
            path = Path(folder) / f"{name}.{suffix}"
            begin = time.perf_counter()
            try:
                changed = dataclasses.replace(bundle, model=prepared.for_scheme(scheme))
                backend.write(changed, path, prepared.batches, scheme, options)
            except ExportError as e:
                print(f"{suffix} {name}: {e}", flush=True)
                continue
            seconds = time.perf_counter() - begin
            program = _open(path, fmt, scheme, args.threads)
            logits = torch.cat([program(part) for part in x.split(16)])
            one = one8 = eight = eight8 = float("nan")
            if not args.no_latency:
                one, one8 = by_turns([float_program, program], x, 1)
                eight, eight8 = by_turns([float_program, program], x, 8)
            rows.append({
                "net": bundle.name, "runtime": fmt.name, "scheme": name,
                "agreement": round(100 * float((logits.argmax(1) == expected.argmax(1)).double().mean()), 1),
                "top1": round(100 * float((logits.argmax(1) == labels).double().mean()), 1),
                "top1_float": round(100 * right, 1),
                "divergence": round(divergence(expected, logits), 4),
                "difference": round(float((logits - expected).abs().max()), 2),
                "error": round(float((logits - expected).norm() / expected.norm()), 4),
                "speedup_b1": round(one / one8, 2), "speedup_b8": round(eight / eight8, 2),
                "ms_b1": round(one8, 2), "ms_b8": round(eight8, 2),
                "seconds": round(seconds, 1), "judged": len(x), "threads": args.threads,
            })  # fmt: skip
            print(rows[-1], flush=True)
    return rows


if __name__ == "__main__":
    main()
