"""What keeping freed memory in the process is worth for a model in eager PyTorch: fresh processes, by turns.

    python benchmarks/allocator.py [MODEL] [--batches 1 8] [--threads 1] [--rounds 5]

Each process runs the model for some seconds, with `keep_freed_pages()` or with the C library's defaults; a
ratio is the median of those of the rounds.
"""

from __future__ import annotations

import random
import statistics
import subprocess

from harness import make_parser, start, write_rows

from proxylessnas.utils.subprocesses import python_command

_CODE = """
import statistics, sys, time, torch, proxylessnas
name, batch, threads, keep, seconds = sys.argv[1], *map(int, sys.argv[2:])
if keep:
    proxylessnas.keep_freed_pages()
torch.set_num_threads(threads)
model = proxylessnas.create_model(name).eval()
x, took = torch.randn(batch, 3, model.arch.resolution or 224, model.arch.resolution or 224), []
with torch.inference_mode():
    for _ in range(3):
        model(x)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        begin = time.perf_counter()
        model(x)
        took.append(time.perf_counter() - begin)
print(1e3 * statistics.median(took))
"""


def main() -> None:
    parser = make_parser(__doc__, "allocator")
    parser.add_argument("net", nargs="?", default="proxyless_cpu")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3, help="of running, each process")
    args = parser.parse_args()
    start(args)
    rows = []
    for batch in args.batches:
        times: dict[int, list[float]] = {0: [], 1: []}
        for _ in range(args.rounds):
            for keep in random.sample([0, 1], 2):
                words = [args.net, batch, args.threads, keep, args.seconds]
                done = subprocess.run(
                    python_command(_CODE, *words),
                    check=True, stdout=subprocess.PIPE, text=True,
                )  # fmt: skip
                times[keep].append(float(done.stdout.split()[-1]))
        ratios = [plain / kept for plain, kept in zip(times[0], times[1], strict=True)]
        rows.append({
            "net": args.net, "batch": batch, "threads": args.threads,
            "kept_ms": round(statistics.median(times[1]), 2),
            "defaults_ms": round(statistics.median(times[0]), 2),
            "gain": round(statistics.median(ratios), 2),
            "lowest": round(min(ratios), 2), "highest": round(max(ratios), 2),
        })  # fmt: skip
    write_rows(args, rows)


if __name__ == "__main__":
    main()
