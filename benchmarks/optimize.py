"""``deploy.optimize`` against eager PyTorch and ONNX Runtime: one run, in turns.

    python benchmarks/optimize.py [--threads 1] [--net proxyless_cpu] [--batches 1 8] [--rounds 9]

Weights are random, and bfloat16 is left out: what is compared computes the same. ONNX Runtime has a process
of its own, for its threads would wait for work in the way of PyTorch's. In each round all get a short window,
in a random order; what is compared is the undisturbed latency, a low quantile over all windows, and beside it
stands the median. Aims: at most 1.15 times ONNX Runtime's latency at batch 8, 1.4 times at batch 1.
"""

from __future__ import annotations

import random

import torch
from harness import make_parser, start, write_rows

import proxylessnas
from proxylessnas.deploy import OptimizeSettings, optimize
from proxylessnas.latency.measurement import Measurement
from proxylessnas.latency.worker import Worker
from proxylessnas.runtimes.base import ModelSpec
from proxylessnas.runtimes.settings import Settings, one_thread
from proxylessnas.runtimes.timer import window
from proxylessnas.runtimes.torch_sessions import EagerSession


def main() -> None:
    parser = make_parser(__doc__, "optimize")
    parser.add_argument("--net", default="proxyless_cpu")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=90)
    parser.add_argument("--seconds", type=float, default=0.05, help="of timing, each round")
    parser.add_argument("--compile", default="auto", choices=("auto", "always", "never"))
    args = parser.parse_args()
    start(args)
    model = proxylessnas.create_model(args.net).eval()
    rows = []
    for batch in args.batches:
        fast = optimize(
            model, settings=OptimizeSettings(batch_size=batch, allow_bf16=False, compile=args.compile)
        )
        print(fast.report, flush=True)
        size = fast.report.input_size
        x = torch.randn(batch, *size)
        settings = Settings(runtime="onnxruntime", threads=args.threads, batch_size=batch)
        alone = one_thread(settings)
        runs = {"eager": EagerSession(model, x, []), "optimize": EagerSession(fast, x, [])}
        found = {name: Measurement() for name in (*runs, "onnxruntime")}
        with Worker(settings) as worker:
            worker.load("net", ModelSpec("arch", str(model.arch), (size[0], size[1], size[2])))
            for _ in range(args.rounds):
                for name in random.sample(list(found), len(found)):
                    if name in runs:
                        now = window(runs[name], min_seconds=args.seconds, one_thread=alone)
                    else:
                        now = worker.window("net", min_seconds=args.seconds)
                    found[name].windows.append(now)
        theirs = found["onnxruntime"].undisturbed_ms
        for name, mine in found.items():
            rows.append({
                "net": args.net, "batch": batch, "threads": args.threads, "path": name,
                "chosen": fast.report.chosen if name == "optimize" else "",
                "undisturbed_ms": round(mine.undisturbed_ms, 3), "median_ms": round(mine.median_ms, 3),
                "uncertainty": round(mine.uncertainty, 4),
                "ratio_to_onnxruntime": round(mine.undisturbed_ms / theirs, 3),
            })  # fmt: skip
    write_rows(args, rows)


if __name__ == "__main__":
    main()
