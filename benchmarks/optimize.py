"""``deploy.optimize`` against eager PyTorch and ONNX Runtime: one run, in turns.

    python benchmarks/optimize.py [--threads 1] [--net proxyless_cpu] [--batches 1 8] [--rounds 9]

Weights are random, and bfloat16 is left out: what is compared computes the same. ONNX Runtime has a process
of its own, for its threads would wait for work in the way of PyTorch's. In each round all are timed, in a
random order; a ratio is the median of those of the rounds. Aims: at most 1.15 times ONNX Runtime's latency at
batch 8, 1.4 times at batch 1.
"""

from __future__ import annotations

import random
import statistics

import torch
from harness import make_parser, start, write_rows

import proxylessnas
from proxylessnas.deploy import optimize
from proxylessnas.latency.process import Worker
from proxylessnas.latency.runtimes.torch_eager import EagerSession
from proxylessnas.latency.sampling import sample_session
from proxylessnas.latency.settings import Settings
from proxylessnas.latency.spec import NetSpec


def main() -> None:
    parser = make_parser(__doc__, "optimize")
    parser.add_argument("--net", default="proxyless_cpu")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.5, help="of timing, each round")
    parser.add_argument("--compile", default="auto", choices=("auto", "always", "never"))
    args = parser.parse_args()
    start(args)
    net = proxylessnas.create_model(args.net).eval()
    rows = []
    for batch in args.batches:
        fast = optimize(net, batch_size=batch, allow_bf16=False, compile=args.compile)
        print(fast.report, flush=True)
        size = fast.report.input_size
        x = torch.randn(batch, *size)
        limits = {"min_runs": 5, "min_seconds": args.seconds, "max_seconds": 10 * args.seconds}
        runs = {"eager": EagerSession(net, x, []), "optimize": EagerSession(fast, x, [])}
        times: dict[str, list[float]] = {name: [] for name in (*runs, "onnxruntime")}
        with Worker(Settings(runtime="onnxruntime", threads=args.threads, batch_size=batch)) as worker:
            worker.load("net", NetSpec("arch", str(net.arch), (size[0], size[1], size[2])))
            for _ in range(args.rounds):
                for name in random.sample(list(times), len(times)):
                    timed = sample_session(runs[name], **limits) if name in runs else None
                    found = timed or worker.sample("net", **limits)
                    times[name].append(found.median_ms)
        for name, medians in times.items():
            ratios = [a / b for a, b in zip(medians, times["onnxruntime"], strict=True)]
            rows.append({
                "net": args.net, "batch": batch, "threads": args.threads, "path": name,
                "chosen": fast.report.chosen if name == "optimize" else "",
                "median_ms": round(statistics.median(medians), 3), "lowest_ms": round(min(medians), 3),
                "ratio_to_onnxruntime": round(statistics.median(ratios), 3),
                "lowest_ratio": round(min(ratios), 3), "highest_ratio": round(max(ratios), 3),
            })  # fmt: skip
    write_rows(args, rows)


if __name__ == "__main__":
    main()
