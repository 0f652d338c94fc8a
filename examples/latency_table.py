"""Measure a latency table of this machine for a small search space, check it, and predict models from it.

    python examples/latency_table.py --out table.json

Use --space imagenet for the paper's space (some minutes), --runtime onnxruntime for another runtime.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

import torch

from proxylessnas import latency
from proxylessnas.arch.spaces import read_space


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Measure, check and use a latency table.")
    parser.add_argument("--space", default="tiny", help="tiny, small, imagenet, or a .toml file")
    parser.add_argument("--runtime", default="torch", help="torch, onnxruntime, openvino, ...")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=0.5, help="about how long to measure")
    parser.add_argument("--nets", type=int, default=30, help="whole models to check the table on")
    parser.add_argument("--out", type=Path, default=Path("table.json"))
    args = parser.parse_args(argv)

    space = read_space(args.space)
    table = latency.build_table(
        space,
        latency.BuildSettings(
            runtime=args.runtime, threads=args.threads, minutes=args.minutes, validation_nets=args.nets
        ),
        path=args.out,
        progress=lambda done, total, what: print(f"\r{done}/{total} {what:40}", end="", file=sys.stderr),
    )
    print(file=sys.stderr)
    have, need, _ = table.coverage()
    print(f"{args.out}: {have} of {need} operations of {space.name}; {table.conditions.describe()}")

    # How wrong is it? Whole models were measured that it was not made from.
    assert table.validation is not None
    print(latency.Validation.from_dict(table.validation).verdict)

    # What can a search ask for?
    fastest, slowest = table.range_ms()
    print(f"models of this space take {fastest:.2f} to {slowest:.2f} ms")

    # Any model of the space, without measuring it.
    model = space.arch(space.random_choices(random.Random(0)), name="random")
    found = table.explain(model)
    key, ms, _ = max(found.parts, key=lambda part: part[1])
    print(f"one of them: {found.total_ms:.2f} ms, of which {ms:.2f} ms are {key}")

    # What a search minimises: the mean latency of a distribution over models, which has a gradient.
    mask = torch.tensor(space.mask)
    logits = torch.zeros(mask.shape, requires_grad=True)
    expected = table.expected(logits.masked_fill(~mask, float("-inf")).softmax(1))
    expected.backward()
    print(f"all choices equally likely: {expected.item():.2f} ms on average")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
