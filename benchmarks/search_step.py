"""Steps of a search against a plain training step of the same sampled model.

    python benchmarks/search_step.py                      # 224 px, batch 8, six candidates a block
    python benchmarks/search_step.py --pixels 32 --batch 64 --candidates 12 --paths 3
    python benchmarks/search_step.py --pixels 32 --space cifar-tree-small --variants weight,two,full_v2

"plain" is the sampled model on its own, with an optimiser of its own, in a loop with nothing else in it. Of
the search, everything that a step of it does is timed: drawing the path, choosing its parameters, the step.
In a round all variants use the same path (the drawing still runs) and take turns in alternating order. Of
each path the fastest repetition counts; the ratios to plain are geometric means over the paths.

Variants: weight (a weight step of the search), two, full, full_v2 (arch steps, see search.arch_step), and
all_paths (every candidate of every block mixed by its probability, with gradients for everything: what the
gates save). From these follow the rows "run" (the default schedule: 40 epochs of warm-up, 120 of search, of
which 119 have an arch step every 5 weight steps) and "search" (an arch step every 5 weight steps).
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import harness

CANDIDATES = {
    2: ("k3e3", "k3e6"),
    6: ("k3e3", "k3e6", "k5e3", "k5e6", "k7e3", "k7e6"),
    12: tuple(f"k{kernel}e{ratio}" for kernel in (3, 5, 7) for ratio in (3, 6, 4, 5)),
}
IMAGENET = "imagenet"
VARIANTS = ("weight", "two", "full", "full_v2")
ARCH = ("two", "full", "full_v2")
RATES = {"lr": 0.01, "momentum": 0.9, "weight_decay": 4e-5, "nesterov": True, "fused": True}


def optimizer_of(model: Any) -> Any:
    """Return SGD as in the published searches, in the form that the training engine uses."""
    import torch

    return torch.optim.SGD([{"params": list(model.parameters()), "base": RATES["lr"]}], **RATES)


class Bench:
    """A supernet with its steps, and the plain models of its paths.

    Args:
        args: pixels, batch, candidates, device, amp, layout.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        import torch

        from proxylessnas.arch.spaces import read_space
        from proxylessnas.search.path_optimizer import PathParameters
        from proxylessnas.search.supernet import seeded
        from proxylessnas.train import Recipe
        from proxylessnas.train.step import WeightStep

        self.torch, self.args = torch, args
        self.device = torch.device(args.device)
        # The model itself takes images of any size; the space is the published one at all of them.
        self.space: Any = read_space(args.space)
        if args.space == IMAGENET:
            self.space = self.space.replace(
                candidates=CANDIDATES[args.candidates], num_classes=1000 if args.pixels >= 224 else 10
            )
        self.layout = torch.channels_last if args.layout == "channels-last" else torch.contiguous_format
        self.model = seeded(self.space, 0, self.device).train().to(memory_format=self.layout)
        self.optimizer = optimizer_of(self.model)
        self.paths = PathParameters(self.model, self.optimizer)
        self.weight_step = WeightStep(
            self.model, self.optimizer, Recipe(label_smoothing=0.1, amp=args.amp), self.device
        )
        self.generator = torch.Generator().manual_seed(0)
        size = (args.batch, 3, args.pixels, args.pixels)
        self.inputs = torch.randn(size, device=self.device).contiguous(memory_format=self.layout)
        self.targets = torch.randint(0, self.space.num_classes, (args.batch,), device=self.device)
        self.child: Any = None
        self._fix_sampling()
        self.arch_steps = {mode: self._arch_step(mode) for mode in ARCH}

    def _fix_sampling(self) -> None:
        """Draw paths as always, but give back the one that is being measured."""
        alphas = self.model.alphas
        sample, sample_pairs = alphas.sample, alphas.sample_pairs

        def fixed(generator: Any) -> list[int]:
            sample(generator)
            return self.choices

        def fixed_pairs(generator: Any) -> Any:
            drawn = sample_pairs(generator)
            active = self.torch.tensor(self.choices)
            first, second = drawn.indices.unbind(1)
            return drawn._replace(
                indices=self.torch.stack([active, self.torch.where(second == active, first, second)], 1)
            )

        alphas.sample, alphas.sample_pairs = fixed, fixed_pairs

    def _arch_step(self, mode: str) -> Callable[[], object]:
        from proxylessnas.search.arch_optimizers import ArchStep
        from proxylessnas.search.constraints import Costs
        from proxylessnas.search.objective import Objective

        torch, alphas = self.torch, self.model.alphas
        optimizer = torch.optim.Adam(
            [alphas.logits], 1e-6, betas=(0.0, 0.999)
        )  # the paths are to stay likely
        costs = torch.rand(alphas.mask.shape, dtype=torch.float64).masked_fill(~alphas.mask, 0.0)
        objective = Objective("mul_log", 80.0)
        step = ArchStep(
            self.paths, optimizer, Costs("latency", "ms", costs, 20.0, alphas.mask), mode=mode,
            generator=self.generator, autocast=self.weight_step.autocast,
        )  # fmt: skip
        return lambda: step(self.inputs, self.targets, objective)

    def use(self, choices: list[int]) -> None:
        """Measure this path from now on."""
        self.choices = choices
        self.child = self.model.child(choices).train().to(memory_format=self.layout)
        self.child_optimizer = optimizer_of(self.child)

    def plain(self) -> None:
        """Train the sampled model on its own."""
        self.child_optimizer.zero_grad(set_to_none=True)
        with self.weight_step.autocast():
            logits = self.child(self.inputs)
        loss = self.torch.nn.functional.cross_entropy(logits.float(), self.targets, label_smoothing=0.1)
        loss.backward()
        self.child_optimizer.step()

    def weight(self) -> None:
        """Do a weight step of the search."""
        self.model.set_path(self.model.alphas.sample(self.generator))
        with self.paths.selected():
            self.weight_step(self.inputs, self.targets, 0, 1.0)

    def all_paths(self) -> None:
        """Mix every candidate of every block: what a search without gates costs (DARTS, first order)."""
        probs = self.model.alphas.probs().to(self.inputs)
        self.optimizer.zero_grad(set_to_none=True)
        with self.weight_step.autocast():
            x = self.model.first_conv(self.inputs)
            for block in self.model.blocks[: len(self.model.blocks) - len(self.model.mixed_ops)]:
                x = block(x)
            for row, mixed_op in zip(probs, self.model.mixed_ops, strict=True):
                found = [(p, mixed_op.op(k)) for k, p in enumerate(row) if mixed_op.allowed[k]]
                y = sum(p * op(x) for p, op in found if op is not None)
                x = x + y if mixed_op.shortcut else y
            logits = self.model.classifier(self.model.feature_mix_layer(x).mean((2, 3)))
        loss = self.torch.nn.functional.cross_entropy(logits.float(), self.targets)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def step(self, variant: str) -> Callable[[], object]:
        """Return the step of a variant."""
        return self.arch_steps[variant] if variant in ARCH else getattr(self, variant)

    def seconds(self, step: Callable[[], object]) -> float:
        """Return how long a step takes, with all its work on the device done."""
        clock = time.process_time if self.args.clock == "cpu" else time.perf_counter
        gpu = self.device.type == "cuda"
        if gpu:
            self.torch.cuda.synchronize(self.device)
        start = clock()
        step()
        if gpu:
            self.torch.cuda.synchronize(self.device)
        return clock() - start


def draw(bench: Bench, count: int, seed: int, *, same: bool = False) -> list[list[int]]:
    """Return paths.

    Args:
        bench: whose.
        count: how many.
        seed: of the draw.
        same: draw small models that are the same for any number of candidates; for 2 and 12 always so.
    """
    rng = random.Random(seed)
    if bench.args.space != IMAGENET or (bench.args.candidates == 6 and not same):
        return [list(bench.space.random_choices(rng)) for _ in range(count)]
    small = [float(token in ("k3e3", "k3e6", "-")) for token in bench.space.candidate_ops]
    return [list(bench.space.random_choices(rng, small)) for _ in range(count)]


def times(bench: Bench, variants: list[str], paths: list[list[int]], repeats: int) -> list[dict[str, float]]:
    """Return the fastest time of each variant in seconds, for each path."""
    found = []
    for choices in paths:
        bench.use(choices)
        best = dict.fromkeys(variants, math.inf)
        for r in range(repeats + 1):
            for variant in variants if r % 2 else reversed(variants):
                taken = bench.seconds(bench.step(variant))
                if r:  # the first one warms up
                    best[variant] = min(best[variant], taken)
        found.append(best)
        print({v: round(s / best["plain"], 3) for v, s in best.items()}, flush=True)
    return found


def rows_of(args: argparse.Namespace, found: list[dict[str, float]]) -> list[dict[str, Any]]:
    """Return one row a variant, and those that follow from them."""
    setting = {
        "pixels": args.pixels, "batch": args.batch, "device": args.device,
        "threads": args.threads, "amp": args.amp, "layout": args.layout,
        "candidates": args.candidates if args.space == IMAGENET else args.space,
        "paths": len(found), "repeats": args.repeats, "clock": args.clock,
    }  # fmt: skip
    plain_ms = 1e3 * statistics.geometric_mean(best["plain"] for best in found)
    rows, ratio = [], {}
    for variant in found[0]:
        all_ratios = [best[variant] / best["plain"] for best in found]
        ratio[variant] = statistics.geometric_mean(all_ratios)
        rows.append(
            {
                **setting, "step": variant, "ratio": round(ratio[variant], 3),
                "least": round(min(all_ratios), 3), "most": round(max(all_ratios), 3),
                "ms": round(ratio[variant] * plain_ms, 2),
                "images_per_second": round(args.batch / (ratio[variant] * plain_ms) * 1e3, 1),
            }
        )  # fmt: skip
    for mode in ARCH:
        if mode in ratio and "weight" in ratio:
            whole = {"search": 1 / 5, "run": 119 / 160 / 5}
            for name, share in whole.items():
                value = round(ratio["weight"] + share * ratio[mode], 3)
                blank = dict.fromkeys(("least", "most", "ms", "images_per_second"), "")
                rows.append({**setting, "step": f"{name}, {mode}", "ratio": value, **blank})
    return rows


def make_parser(description: str | None, name: str) -> argparse.ArgumentParser:
    """Return the parser of this script and of search_memory.py."""
    parser = harness.make_parser(description, name)
    parser.add_argument("--pixels", type=int, default=224)
    parser.add_argument("--space", default=IMAGENET, help="another one is taken as it is, such as cifar-tree")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--paths", type=int, default=5, help="sampled models")
    parser.add_argument("--seed", type=int, default=0, help="of the sampled models")
    parser.add_argument("--variants", default=",".join(VARIANTS), help="may also hold all_paths")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--amp", default="off", choices=("off", "bf16"))
    parser.add_argument("--layout", default="channels-last", choices=("channels-last", "default"))
    return parser


def variants_of(args: argparse.Namespace) -> list[str]:
    """Return the wanted variants, with plain first."""
    wanted = [v for v in args.variants.split(",") if v]
    unknown = set(wanted) - {*VARIANTS, "all_paths"}
    if unknown:
        raise SystemExit(f"unknown variants {sorted(unknown)}; known are {VARIANTS} and all_paths")
    return ["plain", *wanted]


def main() -> int:
    parser = make_parser(__doc__, "search_step")
    parser.add_argument("--candidates", type=int, default=6, choices=CANDIDATES)
    parser.add_argument("--repeats", type=int, default=5, help="of each step on each path")
    parser.add_argument(
        "--clock",
        default="wall",
        choices=("wall", "cpu"),
        help="cpu: seconds of this process, for busy machines",
    )
    args = parser.parse_args()
    harness.start(args)
    bench = Bench(args)
    found = times(bench, variants_of(args), draw(bench, args.paths, args.seed), args.repeats)
    harness.write_rows(args, rows_of(args, found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
