"""Cold start through torch.hub, and building time with random and with cached weights.

    python benchmarks/cold_start.py [--processes 9] [--rounds 40]

Cold: fresh processes, in random order, wall time from the start of the interpreter to a model that is ready.
Building: one process, the variants in random order in every round. Cached weights are those of
``proxyless_cpu`` in the cache; if there are none, random ones under the same names are stored in a temporary
cache (the same bytes to read, hash and place).
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from harness import HERE, make_parser, start, write_rows

REPO = str(HERE.parent)
LOAD = f"import torch; torch.hub.load({REPO!r}, 'proxyless_cpu', source='local')"
COLD = {"import torch": "import torch", "hub.load proxyless_cpu, random weights": LOAD}
CHECK = "; import sys; assert not {'torchvision', 'torch._dynamo', 'numpy.testing'} & set(sys.modules)"


def cold(processes: int) -> list[dict[str, Any]]:
    """Time fresh processes."""
    times: dict[str, list[float]] = {name: [] for name in COLD}
    for i in range(processes + 1):
        for name in random.sample(list(COLD), len(COLD)):
            begin = time.perf_counter()
            subprocess.run([sys.executable, "-I", "-c", COLD[name] + CHECK], check=True)
            if i:  # the first round fills the file cache
                times[name].append((time.perf_counter() - begin) * 1e3)
    return [row("cold process", name, values, times["import torch"]) for name, values in times.items()]


def row(part: str, name: str, values: list[float], base: list[float]) -> dict[str, Any]:
    """Return one line of results; the ratio and the difference are to ``base``."""
    q = statistics.quantiles(values, n=10)
    median, reference = statistics.median(values), statistics.median(base)
    return {
        "part": part,
        "variant": name,
        "median_ms": round(median, 2),
        "p10_ms": round(q[0], 2),
        "p90_ms": round(q[-1], 2),
        "minus_first_ms": round(median - reference, 2),
        "ratio_to_first": round(median / reference, 3),
    }


def stand_in_weights() -> Any:
    """Put random weights of ``proxyless_cpu`` into a temporary cache and return their record."""
    import torch

    from proxylessnas import get_weights, proxyless_cpu
    from proxylessnas.weights import cache

    os.environ["PROXYLESSNAS_CACHE"] = tempfile.mkdtemp()
    file = Path(os.environ["PROXYLESSNAS_CACHE"]) / "w.pth"
    torch.save({"state_dict": proxyless_cpu().state_dict()}, file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    record = dataclasses.replace(
        get_weights("proxyless_cpu"), sha256=digest, git_blob=None, size=file.stat().st_size
    )
    file.rename(cache.weights_path(record))
    record.state_dict()  # writes the safetensors copy
    return record


def build(rounds: int) -> list[dict[str, Any]]:
    """Time building in this process."""
    import torchvision

    from proxylessnas import proxyless_cpu

    record = stand_in_weights()
    variants = {
        "torchvision mobilenet_v2()": torchvision.models.mobilenet_v2,
        "proxyless_cpu()": proxyless_cpu,
        "proxyless_cpu(weights=cached)": lambda: proxyless_cpu(weights=record),
    }
    times: dict[str, list[float]] = {name: [] for name in variants}
    for i in range(rounds + 3):
        for name in random.sample(list(variants), len(variants)):
            begin = time.perf_counter()
            model = variants[name]()
            if i >= 3:
                times[name].append((time.perf_counter() - begin) * 1e3)
            del model
    return [
        row("building", name, values, times["torchvision mobilenet_v2()"]) for name, values in times.items()
    ]


def main() -> None:
    parser = make_parser(__doc__, "cold_start")
    parser.add_argument("--processes", type=int, default=9)
    parser.add_argument("--rounds", type=int, default=40)
    args = parser.parse_args()
    start(args)
    write_rows(args, cold(args.processes) + build(args.rounds))


if __name__ == "__main__":
    main()
