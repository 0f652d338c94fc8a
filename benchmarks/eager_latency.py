"""Eager latency of ``proxyless_cpu`` against a hand-inlined module of the same layers and MobileNetV2.

    python benchmarks/eager_latency.py [--threads 1] [--rounds 60] [--processes 7]

Several fresh processes, because where a process happens to put its memory moves a model by a few percent. In
each, all variants are timed in random order in every round; a process's ratio is of its medians, and the
median of these counts.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import statistics
import subprocess
import sys
import time
from typing import Any

import torch
from harness import make_parser, start, write_rows
from torch import Tensor, nn
from torch.nn import functional as F

from proxylessnas import ProxylessNAS, proxyless_cpu


class Inlined(nn.Module):
    """The layers of a model as one would write them out by hand: no blocks, one line a layer."""

    def __init__(self, model: ProxylessNAS) -> None:
        super().__init__()
        lines = ["def forward(self, x):"]
        for b, block in enumerate([model.first_conv, *model.blocks, model.feature_mix_layer]):
            op = getattr(block, "mobile_inverted_conv", block)
            if op is None:
                continue
            shortcut = getattr(block, "shortcut", False)
            if shortcut:
                lines.append("kept = x")
            for p, part in enumerate(m for m in op.modules() if hasattr(m, "conv")):
                self.add_module(f"conv{b}_{p}", part.conv)
                self.add_module(f"bn{b}_{p}", part.bn)
                lines += [f"x = self.conv{b}_{p}(x)", f"x = self.bn{b}_{p}(x)"]
                if part.act:
                    lines.append("x = F.relu6(x, inplace=True)")
            if shortcut:
                lines.append("x = kept + x")
        self.linear = model.classifier.linear
        lines.append("return self.linear(x.mean((2, 3)))")
        scope: dict[str, Any] = {"F": F}
        exec("\n    ".join(lines), scope)
        self.inlined = scope["forward"].__get__(self)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return self.inlined(x)


def measure(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Return the median latency of every model in both layouts, in ms, in this process."""
    import torchvision

    model = proxyless_cpu().eval()
    candidates = {
        "ours": model,
        "inlined": Inlined(copy.deepcopy(model)).eval(),
        "mobilenet_v2": torchvision.models.mobilenet_v2().eval(),
    }
    medians: dict[str, dict[str, float]] = {}
    for layout in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(1, 3, 224, 224).to(memory_format=layout)
        models = {name: m.to(memory_format=layout) for name, m in candidates.items()}
        times: dict[str, list[float]] = {name: [] for name in models}
        with torch.inference_mode():
            difference = (models["ours"](x) - models["inlined"](x)).abs().max().item()
            assert difference == 0.0, f"the two modules differ by {difference}"
            for i in range(args.rounds + 10):
                for name in random.sample(list(models), len(models)):
                    begin = time.perf_counter()
                    models[name](x)
                    if i >= 10:
                        times[name].append((time.perf_counter() - begin) * 1e3)
        medians[str(layout).removeprefix("torch.")] = {n: statistics.median(v) for n, v in times.items()}
    return medians


def main() -> None:
    parser = make_parser(__doc__, "eager_latency")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--processes", type=int, default=7)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    start(args)
    if args.one:
        print(json.dumps(measure(args)))
        return
    command = [
        sys.executable,
        __file__,
        "--one",
        "--threads",
        str(args.threads),
        "--rounds",
        str(args.rounds),
    ]
    runs = [
        json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        for _ in range(args.processes)
    ]
    rows = []
    for layout in runs[0]:
        for name in runs[0][layout]:
            values = [run[layout][name] for run in runs]
            ratios = [run[layout][name] / run[layout]["inlined"] for run in runs]
            rows.append(
                {
                    "net": name,
                    "layout": layout,
                    "threads": args.threads,
                    "processes": args.processes,
                    "median_ms": round(statistics.median(values), 3),
                    "lowest_ms": round(min(values), 3),
                    "highest_ms": round(max(values), 3),
                    "ratio_to_inlined": round(statistics.median(ratios), 4),
                    "lowest_ratio": round(min(ratios), 4),
                    "highest_ratio": round(max(ratios), 4),
                }
            )
    write_rows(args, rows)


if __name__ == "__main__":
    main()
