"""How well latency tables of this machine predict whole models: random ones, and the four published ones.

    python benchmarks/latency_tables.py [--settings torch:1 torch:2 onnxruntime:1 onnxruntime:2] [--nets 50]

For each setting (runtime:threads) a table of a search space is built, judged on random models that it was not
made from, and drawn (results/latency_tables_RUNTIME_DEVICE_THREADS.png). The published models have other
widths than the space, so their operations are measured too; how long they take as whole models is predicted,
and then measured in fresh processes. All latencies are undisturbed ones; the columns ceiling_tau and
ceiling_percent say how far two runs of the same models agree, and disturbance how busy the machine was.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from harness import HERE, make_parser, write_rows

from proxylessnas import Arch
from proxylessnas.arch.published import PUBLISHED
from proxylessnas.latency import BuildSettings, Conditions, LatencyTable, Validation, build_table
from proxylessnas.latency.session import Item, MeasurementSession
from proxylessnas.latency.validate import model_spec
from proxylessnas.runtimes.settings import DEVICES

SECONDS_EACH = 20.0  # at most, to measure a published model in
MODELS = ("proxyless_cpu", "proxyless_gpu", "proxyless_mobile", "proxyless_mobile_14")


def say(done: int, total: int, what: str) -> None:
    if sys.stderr.isatty():
        print(f"\r{done:4d} of {total}: {what:40}", end="", file=sys.stderr, flush=True)


def published() -> list[Arch]:
    found = [PUBLISHED[name] for name in MODELS]
    return [arch for arch in found if isinstance(arch, Arch)]


def measured(conditions: Conditions) -> list[float]:
    """Return the undisturbed latencies of the published models, in ms."""
    items = [Item(arch.name, model_spec(arch), conditions.settings) for arch in published()]
    session = MeasurementSession(items, progress=say)
    session.run(SECONDS_EACH * len(items))
    return [session.measured[item.name].undisturbed_ms for item in items]


def one_setting(
    args: argparse.Namespace, runtime: str, threads: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Build, judge and draw one table; return its row and those of the published models."""
    begin = time.perf_counter()
    path = args.tables / f"{args.space.replace('@', '_')}_{runtime}_{args.device}_{threads}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    table = build_table(
        args.space,
        BuildSettings(
            runtime=runtime,
            threads=threads,
            device=args.device,
            batch_size=args.batch,
            cuda_graph=args.cuda_graph,
            minutes=args.minutes,
            validation_nets=args.nets,
        ),
        path=path,
        extra=published(),
        progress=say,
    )
    minutes = (time.perf_counter() - begin) / 60
    found = Validation.from_dict(table.validation or {})
    setting = {"space": args.space, "runtime": runtime, "device": args.device, "threads": threads}
    setting["batch"] = args.batch
    have, need, _ = table.coverage()
    row = {
        **setting,
        "covered": f"{have}/{need}",
        "minutes": round(minutes, 1),
        "fitted_nets": table.method["nets"],
        "checked_nets": found.nets,
        "mape_percent": round(found.mape_percent, 2),
        "rmspe_percent": round(found.rmspe_percent, 2),
        "within_5_percent": round(found.within_5_percent, 1),
        "within_10_percent": round(found.within_10_percent, 1),
        "bias_percent": round(found.bias_percent, 2),
        "kendall_tau": round(found.kendall_tau, 4),
        "uniform_kendall_tau": round(found.uniform_kendall_tau, 4),
        "ceiling_tau": round(found.ceiling_tau or 0, 4),
        "ceiling_percent": round(found.ceiling_percent or 0, 2),
        "disturbance": round(found.disturbance or 0, 3),
    }
    print(f"{runtime}, threads {threads}: {found.verdict}", flush=True)
    models = []
    for arch, ms in zip(published(), measured(table.conditions), strict=True):
        predicted = table.predict(arch)
        models.append(
            {
                **setting,
                "net": arch.name,
                "predicted_ms": round(predicted, 3),
                "measured_ms": round(ms, 3),
                "error_percent": round(100 * (predicted / ms - 1), 2),
            }
        )
    draw(args, table, found, models, runtime, threads)
    return row, models


def draw(
    args: argparse.Namespace,
    table: LatencyTable,
    found: Validation,
    models: list[dict[str, Any]],
    runtime: str,
    threads: int,
) -> None:
    from proxylessnas.latency.plots import Named, prediction_png

    prediction_png(
        [pair[1:] for pair in found.pairs],
        args.csv.parent / f"{args.csv.stem}_{runtime}_{args.device}_{threads}.png",
        title=f"Random models of the {args.space} space: {runtime}, {threads} thread{'s' * (threads > 1)}",
        summary=f"{found.verdict}\n{table.conditions.describe()}",
        named=[Named(model["net"], model["predicted_ms"], model["measured_ms"]) for model in models],
    )


def main() -> None:
    parser = make_parser(__doc__, "latency_tables")
    parser.add_argument(
        "--settings", nargs="+", default=["torch:1", "torch:2", "onnxruntime:1", "onnxruntime:2"],
        metavar="RUNTIME:THREADS",
    )  # fmt: skip
    parser.add_argument("--space", default="imagenet")
    parser.add_argument("--device", default="cpu", choices=DEVICES)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--cuda-graph", action="store_true")
    parser.add_argument("--nets", type=int, default=50, help="random models to judge each table on")
    parser.add_argument("--minutes", type=float, default=None, help="for each table")
    parser.add_argument(
        "--tables", type=Path, default=HERE / "results" / "tables", help="folder for the tables"
    )
    args = parser.parse_args()
    rows, models = [], []
    for setting in args.settings:
        runtime, _, threads = setting.partition(":")
        row, named = one_setting(args, runtime, int(threads or 1))
        rows.append(row)
        models += named
    write_rows(args, rows)
    args.csv = args.csv.with_name(f"{args.csv.stem}_published.csv")
    write_rows(args, models)


if __name__ == "__main__":
    main()
