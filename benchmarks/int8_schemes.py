"""INT8 by every scheme, in every runtime: agreement with float32, accuracy, and what the file costs.

Calibrates on every fourth image of a folder of labelled ones and judges on the others, which `quantise`
itself never does before the end: this is the table its lists of schemes were made from, and shows what its
choice is worth.

    python benchmarks/int8_schemes.py FOLDER [--net NAME] [--weights FILE] [--formats onnx xml pte]

Latency is measured by turns in this process, one image a call; read ratios.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

import harness
import torch

from proxylessnas.data.folders import labelled_images
from proxylessnas.deploy.bundle import ModelBundle, open_bundle
from proxylessnas.deploy.formats.base import format_of
from proxylessnas.deploy.quantization.backends import backend_of
from proxylessnas.deploy.quantization.calibration import labelled_inputs
from proxylessnas.deploy.quantization.quantize import Prepared, by_turns, divergence
from proxylessnas.deploy.quantization.schemes import scheme_of
from proxylessnas.deploy.settings import ExportOptions
from proxylessnas.errors import ExportError

_MADE = [
    f"{rule}{made}"
    for rule in ("minmax", "percentile", "mse")
    for made in ("", "+correct", "+correct+floatfirst", "+correct+floatadds+floatfirst")
]
_MORE = [
    "entropy", "minmax+floatadds", "minmax+floatfirst", "minmax+floatlast", "minmax+equalise0.5",
    "mse+equalise0.5+correct", "mse+equalise0.5+correct+floatfirst", "minmax+compensate+correct",
    "mse+compensate+correct", "mse+compensate+correct+floatfirst", "minmax+7bit",
    "mse+correct+floatfirst+7bit", "mse+compensate+correct+floatfirst+7bit",
]  # fmt: skip


def main() -> None:
    parser = harness.make_parser(__doc__, "int8_schemes")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--net", default="proxyless_w03_r176")
    parser.add_argument("--weights")
    parser.add_argument("--formats", nargs="+", default=["onnx", "xml", "pte"])
    parser.add_argument("--schemes", nargs="+", default=[*_MADE, *_MORE])
    args = parser.parse_args()
    harness.start(args)
    subject = open_bundle(args.net, weights=args.weights)
    found = labelled_images(args.folder, subject.model.num_classes, names=subject.categories)
    batches = list(labelled_inputs(subject, found.samples))
    x, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    mine = torch.arange(len(x)) % 4 == 0
    rows: list[dict[str, Any]] = []
    prepared = Prepared(subject.model, x[mine].split(16))
    for suffix in args.formats:
        rows += _table(subject, suffix, prepared, x[~mine], labels[~mine], args)
    harness.write_rows(args, rows)


def _table(
    subject: ModelBundle, suffix: str, prepared: Prepared, x: torch.Tensor, labels: torch.Tensor, args: Any
) -> list[dict[str, Any]]:
    fmt, options = format_of(Path(f"net.{suffix}")), ExportOptions()
    backend = backend_of(fmt)
    with torch.inference_mode():
        expected = torch.cat([subject.model(part) for part in x.split(16)])
    right = float((expected.argmax(1) == labels).double().mean())
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        exact = Path(folder) / f"float.{suffix}"
        fmt.write(subject, exact, options)
        float_program = fmt.open(exact, threads=args.threads)
        for name in args.schemes:
            scheme = scheme_of(name)
            path = Path(folder) / f"{name}.{suffix}"
            begin = time.perf_counter()
            try:
                changed = dataclasses.replace(subject, model=prepared.model(scheme))
                backend.write(changed, path, prepared.batches, scheme, options)
            except ExportError as e:
                print(f"{suffix} {name}: {e}", flush=True)
                continue
            seconds = time.perf_counter() - begin
            program = fmt.open(path, threads=args.threads)
            logits = torch.cat([program(part) for part in x.split(16)])
            one, one8 = by_turns([float_program, program], x, 1)
            eight, eight8 = by_turns([float_program, program], x, 8)
            rows.append({
                "net": subject.name, "runtime": fmt.name, "scheme": name,
                "agreement": round(100 * float((logits.argmax(1) == expected.argmax(1)).double().mean()), 1),
                "top1": round(100 * float((logits.argmax(1) == labels).double().mean()), 1),
                "top1_float": round(100 * right, 1),
                "divergence": round(divergence(expected, logits), 4),
                "difference": round(float((logits - expected).abs().max()), 2),
                "speedup_b1": round(one / one8, 2), "speedup_b8": round(eight / eight8, 2),
                "ms_b1": round(one8, 2), "ms_b8": round(eight8, 2),
                "seconds": round(seconds, 1), "judged": len(x), "threads": args.threads,
            })  # fmt: skip
            print(rows[-1], flush=True)
    return rows


if __name__ == "__main__":
    main()
