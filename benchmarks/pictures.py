"""How long images and reports of a finished search take, as commands from start to end, and their sizes.

    python benchmarks/pictures.py RUN_DIR [--compare RUN_DIR] [--training RUN_DIR] [--rounds 3]

Each command is run in a process of its own, by turns; a time is the median of the rounds.
"""

from __future__ import annotations

import random
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from harness import make_parser, start, write_rows

from proxylessnas.utils.subprocesses import COMMAND_LINE, find_program, python_command

MODELS = ("proxyless_gpu", "proxyless_cpu", "proxyless_mobile", "proxyless_mobile_14")


def main() -> None:
    parser = make_parser(__doc__, "pictures")
    parser.add_argument("run", type=Path)
    parser.add_argument("--compare", type=Path)
    parser.add_argument("--training", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    start(args)
    compare = ["--compare", args.compare] if args.compare else []
    jobs = [
        ("four models", ["plot", *MODELS, "-o"], ".svg"),
        ("four models", ["plot", *MODELS, "-o"], ".png"),
        ("a cell of the CIFAR model", ["plot", "proxyless_cifar", "--cell", "1", "-o"], ".svg"),
        ("movie", ["plot", args.run, "-o"], ".gif"),
        *([("movie", ["plot", args.run, "-o"], ".mp4")] if find_program("ffmpeg") else []),
        ("movie with a slider", ["plot", args.run, "-o"], ".html"),
        ("report of a search", ["report", args.run, *compare, "-o"], ".html"),
    ]
    if args.training:
        jobs.append(("report of a training", ["report", args.training, "-o"], ".html"))
    took: dict[int, list[float]] = {i: [] for i in range(len(jobs))}
    sizes: dict[int, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(args.rounds):
            for i in random.sample(range(len(jobs)), len(jobs)):
                _, words, suffix = jobs[i]
                out = Path(folder) / f"{turn}_{i}{suffix}"
                begin = time.perf_counter()
                subprocess.run(
                    python_command(COMMAND_LINE, *words, out),
                    check=True, stdout=subprocess.DEVNULL,
                )  # fmt: skip
                took[i].append(time.perf_counter() - begin)
                sizes[i] = out.stat().st_size
    rows = [
        {
            "picture": name, "format": suffix, "seconds": round(statistics.median(took[i]), 2),
            "lowest": round(min(took[i]), 2), "highest": round(max(took[i]), 2), "kb": round(sizes[i] / 1e3),
        }
        for i, (name, _, suffix) in enumerate(jobs)
    ]  # fmt: skip
    write_rows(args, rows)


if __name__ == "__main__":
    main()
