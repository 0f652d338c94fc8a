"""Live memory of the steps of a search against a plain training step of the same sampled model.

    python benchmarks/search_memory.py                                  # 224 px, batch 8: needs 10 GB
    python benchmarks/search_memory.py --candidates 2,6 --variants weight,full_v2

Counted are the bytes of all tensors that a step makes, at the moment when they are the most: activations and
gradients, without weights, BatchNorm statistics and the state of optimisers, and without the scratch memory
inside an operation or what an allocator keeps. On a GPU it is what PyTorch's allocator hands out. Variants
are those of search_step.py; the ratio is the geometric mean over the paths, which are the same models for any
number of candidates. How the ratio grows with that number is drawn beside the CSV file.
"""

from __future__ import annotations

import argparse
import statistics
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import search_step


def live_peak(torch: Any, step: Callable[[], object], known: list[Any]) -> int:
    """Return the most bytes that tensors made by a step hold at the same time.

    Args:
        torch: the module.
        step: what to watch.
        known: tensors that are there before, and not counted.
    """
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves
    from torch.utils.weak import WeakIdKeyDictionary

    seen: Any = WeakIdKeyDictionary()
    now = peak = 0

    def freed(size: int) -> None:
        nonlocal now
        now -= size

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal now, peak
            result = func(*args, **(kwargs or {}))
            for tensor in tree_leaves(result):
                if not isinstance(tensor, torch.Tensor):
                    continue
                storage = tensor.untyped_storage()
                if storage not in seen:
                    seen[storage] = True
                    now += storage.nbytes()
                    weakref.finalize(storage, freed, storage.nbytes())
            peak = max(peak, now)
            return result

    for tensor in known:
        seen[tensor.untyped_storage()] = True
    with Watch():
        step()
    return peak


def tensors_of(torch: Any, bench: search_step.Bench) -> list[Any]:
    """Return the weights, statistics, inputs and optimisers' state."""
    found = [bench.inputs, bench.targets, bench.model.alphas.logits]
    for model in (bench.model, bench.child):
        found += [*model.parameters(), *model.buffers()]
    for optimizer in (bench.optimizer, bench.child_optimizer):
        for state in optimizer.state.values():
            found += [value for value in state.values() if isinstance(value, torch.Tensor)]
    return found


def peak_of(torch: Any, bench: search_step.Bench, variant: str) -> int:
    """Return the peak of one step, after one that makes the optimiser's state."""
    step = bench.step(variant)
    step()
    for model in (bench.model, bench.child):
        model.zero_grad(set_to_none=True)
    if bench.device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - before
    else:
        peak = live_peak(torch, step, tensors_of(torch, bench))
    for model in (bench.model, bench.child):
        model.zero_grad(set_to_none=True)
    return peak


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return one row a variant; ``args.candidates`` is a number."""
    import torch

    bench = search_step.Bench(args)
    variants = search_step.variants_of(args)
    peaks: dict[str, list[int]] = {variant: [] for variant in variants}
    for choices in search_step.draw(bench, args.paths, args.seed, same=True):
        bench.use(choices)
        for variant in variants:
            peaks[variant].append(peak_of(torch, bench, variant))
        print({v: round(found[-1] / peaks["plain"][-1], 4) for v, found in peaks.items()}, flush=True)
    weights = sum(p.numel() * p.element_size() for p in bench.model.parameters())
    rows = []
    for variant, found in peaks.items():
        ratios = [peak / plain for peak, plain in zip(found, peaks["plain"], strict=True)]
        rows.append(
            {
                "pixels": args.pixels, "batch": args.batch, "candidates": args.candidates,
                "device": args.device, "amp": args.amp, "layout": args.layout,
                "paths": len(ratios), "step": variant,
                "ratio": round(statistics.geometric_mean(ratios), 4), "least": round(min(ratios), 4),
                "most": round(max(ratios), 4), "live_mib": round(statistics.fmean(found) / 2**20, 2),
                "weights_mib": round(weights / 2**20, 1),
            }
        )  # fmt: skip
    return rows


#: Name, colour (Okabe and Ito 2008), line and mark of each variant.
LINES = {
    "all_paths": ("every path at once", "#CC79A7", "-.", "D"),
    "full": ("arch step, full", "#E69F00", "--", "v"),
    "full_v2": ("arch step, full_v2", "#009E73", "-", "o"),
    "two": ("arch step, two", "#D55E00", ":", "s"),
    "weight": ("weight step", "#0072B2", "-", "^"),
}


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw the ratio of each variant over the number of candidates."""
    from proxylessnas.utils.plotting import GRID, open_figure, write_above

    with open_figure(path, 7.2, 4.2) as figure:
        axes = figure.subplots()
        for variant, (name, color, style, marker) in LINES.items():
            points = sorted((row["candidates"], row["ratio"]) for row in rows if row["step"] == variant)
            if points:
                x, y = zip(*points, strict=True)
                axes.plot(x, y, style, marker=marker, mfc="none", ms=7, lw=1.8, color=color, label=name)
        axes.set_yscale("log", base=2)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_xticks(sorted({row["candidates"] for row in rows}))
        axes.set_xlabel("candidates a block")
        axes.set_ylabel("live memory, plain step = 1, log scale")
        axes.set_title("Memory of a step of a search", loc="left", fontsize=11)
        first = rows[0]
        write_above(axes, f"{first['pixels']} px, batch {first['batch']}, {first['device']}", right=True)
        axes.grid(color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize=9)


def counts(text: str) -> list[int]:
    """Return the numbers in ``2,6,12``."""
    found = [int(word) for word in text.split(",")]
    if not found or set(found) - set(search_step.CANDIDATES):
        raise ValueError
    return found


def main() -> int:
    parser = search_step.make_parser(__doc__, "search_memory")
    known = ",".join(map(str, search_step.CANDIDATES))
    parser.add_argument("--candidates", type=counts, default=known, help=f"among {known}")
    parser.set_defaults(paths=3, variants=",".join(LINES))
    args = parser.parse_args()
    harness.start(args)
    rows = []
    for count in args.candidates:
        rows += measure(argparse.Namespace(**{**vars(args), "candidates": count}))
    harness.write_rows(args, rows)
    if not args.no_csv and len(args.candidates) > 1:
        draw(rows, args.csv.with_suffix(".png"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
