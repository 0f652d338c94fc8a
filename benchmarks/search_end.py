"""What the end of a search brings: the best of many evaluated models against the most probable one.

    python benchmarks/search_end.py                       # ten searches of `tiny` on digits
    python benchmarks/search_end.py --seeds 0 --targets 2.0

Whatever is chosen on some images looks good on them. So of the held-out images half choose, and the accuracy
is looked at on the other half, for 200 ways to halve them; by accuracy, and by cross-entropy. All with the
weights that a model inherits. Alpha and evolution have seen both halves.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import harness

_HALVES = 200


def looked_at(right: Any, loss: Any, generator: Any) -> dict[str, float]:
    """Return what the choice gains over the first model on images that did not choose, in points.

    Args:
        right: [models, images], 1 where a model is right; the first model is the most probable one.
        loss: the same of the cross-entropy.
        generator: of the halves.
    """
    import torch

    gains: dict[str, list[float]] = {"by_accuracy": [], "by_cross_entropy": []}
    for _ in range(_HALVES):
        order = torch.randperm(right.shape[1], generator=generator)
        choosing, looking = order.chunk(2)
        picked = right[:, choosing].mean(1).argmax(), loss[:, choosing].mean(1).argmin()
        for name, k in zip(gains, picked, strict=True):
            gains[name].append(100 * float(right[k, looking].mean() - right[0, looking].mean()))
    return {name: statistics.fmean(values) for name, values in gains.items()}


def one(args: argparse.Namespace, seed: int, target: float, out: Path) -> dict[str, Any]:
    """Search once, and return the figures of its end."""
    import torch

    from proxylessnas.models.base import evaluation_mode
    from proxylessnas.search import read_search_recipe, search
    from proxylessnas.search.searcher import Searcher
    from proxylessnas.search.setup import SearchSetup
    from proxylessnas.train import Settings
    from proxylessnas.utils.distributed import Processes

    recipe = read_search_recipe("tiny").replace(
        target_macs_m=target, seed=seed, final_candidates=args.candidates, final_evolution=args.candidates
    )
    if args.epochs is not None:
        recipe = recipe.with_epochs(args.epochs, args.epochs)
    settings = Settings(out, device="cpu", console=False, workers=0)
    search("tiny", "digits", recipe, out=settings, limit=args.limit)
    setup = SearchSetup("tiny", "digits", recipe, limit=args.limit)
    searcher = Searcher(setup, settings, Processes(0, 1, torch.device("cpu")))
    searcher.resume()
    rows = []
    for model in searcher.evaluator.evaluated:
        child, _ = searcher.evaluator.inherited(model.choices)
        with evaluation_mode(child), torch.inference_mode():
            found = [(child(x), y) for x, y in searcher.evaluator.images]
        logits, labels = (torch.cat(column) for column in zip(*found, strict=True))
        loss = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
        rows.append(((logits.argmax(1) == labels).double(), loss.double()))
    searcher.close()
    right, loss = (torch.stack(column) for column in zip(*rows, strict=True))
    gains = looked_at(right, loss, torch.Generator().manual_seed(0))
    top1 = 100 * right.mean(1)
    return {
        "seed": seed, "target_macs_m": target, "models": len(rows), "images": right.shape[1],
        "most_probable_top1": round(float(top1[0]), 2), "best_top1": round(float(top1.max()), 2),
        **{name: round(gain, 3) for name, gain in gains.items()},
    }  # fmt: skip


def main() -> int:
    parser = harness.make_parser(__doc__, "search_end")
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--targets", default="1.2,2.0", help="millions of multiply-accumulates")
    parser.add_argument("--candidates", type=int, default=24, help="probable models; as many by evolution")
    parser.add_argument("--epochs", type=int, help="of warm-up and of search; the recipe's by default")
    parser.add_argument("--limit", type=int, help="images a class")
    args = parser.parse_args()
    harness.start(args)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for target in map(float, args.targets.split(",")):
            for seed in map(int, args.seeds.split(",")):
                rows.append(one(args, seed, target, Path(folder) / f"{target}-{seed}"))
                print(rows[-1], flush=True)
    harness.write_rows(args, rows)
    for name in ("by_accuracy", "by_cross_entropy"):
        values = [row[name] for row in rows]
        error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
        print(f"{name}: {statistics.fmean(values):+.2f} points, standard error {error:.2f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
