"""Does a supernet order its subnets as training each of them alone does, and does a fair warm-up help?

    python benchmarks/search_ranking.py --warmup-epochs 20 --epochs 1 --limit 100 --image-size 16

Some subnets are drawn evenly and trained alone, each as the only path of a supernet. Then supernets are
trained on all paths, with independent draws and in turns (``fair_warmup``), and the subnets are evaluated
with the weights they inherit. Kendall's tau of both accuracies, on held-out images, is 1 where the order is
the same, and 0 on average where the supernet knows nothing.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import harness
import search_runs


def searcher_of(args: argparse.Namespace, recipe: Any, path: list[int] | None = None) -> Any:
    """Return a search whose weights were trained, on one path alone if there is one."""
    import torch

    from proxylessnas.search.logger import SearchLog
    from proxylessnas.search.searcher import Searcher
    from proxylessnas.search.setup import SearchSetup
    from proxylessnas.train import Settings
    from proxylessnas.train.logger import RunLog
    from proxylessnas.utils.distributed import Processes
    from proxylessnas.utils.signals import StopRequest

    setup = SearchSetup(args.space, args.data, recipe, limit=args.limit)
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(Path(folder), device=args.device, workers=0, console=False)
        found = Searcher(setup, settings, Processes(0, 1, torch.device(args.device)))
        if path is not None:
            found.next_path = lambda: path  # type: ignore[method-assign]
        found.fit(StopRequest(), SearchLog(RunLog.silent(), None))
    return found


def top1(searcher: Any, path: list[int]) -> float:
    """Return the accuracy of a subnet with the weights it inherits, percent."""
    return float(searcher.evaluator.inherited(path, amp=True)[1].top1)


def main(argv: Sequence[str] | None = None) -> int:
    from proxylessnas.latency.metrics import kendall_tau

    parser = search_runs.make_parser(__doc__, "search_ranking", space="tiny", data="digits")
    parser.add_argument("--subnets", type=int, default=10)
    parser.add_argument("--alone-epochs", type=int, default=7, help="of each subnet")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of the supernets")
    args = search_runs.parsed(parser, argv, subnets=3, alone_epochs=2, seeds=[0])
    base = search_runs.recipe_of(args, algorithm="random", evaluations=1)
    space, rng = search_runs.space_of(args), random.Random(1)
    subnets = [list(space.random_choices(rng)) for _ in range(args.subnets)]
    alone = [top1(searcher_of(args, base.with_epochs(args.alone_epochs - 1, 1), p), p) for p in subnets]
    rows = []
    for seed in args.seeds:
        for fair in (False, True):
            searcher = searcher_of(args, base.replace(seed=seed, fair_warmup=fair))
            inherited = [top1(searcher, path) for path in subnets]
            rows.append(
                {
                    "space": args.space, "data": args.data, "seed": seed, "fair_warmup": fair,
                    "epochs": base.weights.epochs, "alone_epochs": args.alone_epochs, "subnets": len(subnets),
                    "tau": round(kendall_tau(inherited, alone), 3),
                    "inherited_top1": round(statistics.fmean(inherited), 2),
                    "alone_top1": round(statistics.fmean(alone), 2),
                }
            )  # fmt: skip
            print(rows[-1], flush=True)
    harness.write_rows(args, rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
