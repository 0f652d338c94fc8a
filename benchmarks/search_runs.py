"""What the benchmarks of whole searches share: a table of this machine, and runs that are kept.

Every table, search and training is a file or a folder below --runs. What is finished is not done again, so
that a benchmark of hours can be killed, and started again with the same command.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import harness

#: Of --quick: every part works, and nothing that comes out means anything.
QUICK = {"warmup_epochs": 1, "epochs": 1, "limit": 10, "image_size": 16, "minutes": 0.01, "rounds": 1}


def make_parser(description: str | None, name: str, *, space: str, data: str) -> argparse.ArgumentParser:
    """Return a parser with the options that every benchmark of searches has."""
    parser = harness.make_parser(description, name)
    parser.add_argument("--space", default=space)
    parser.add_argument("--data", default=data, help=f"folder, or a data set's name (default: {data})")
    parser.add_argument("--recipe", help="of the search (default: the one called like the space)")
    parser.add_argument("--warmup-epochs", type=int)
    parser.add_argument("--epochs", type=int, help="of the search")
    parser.add_argument("--image-size", type=int, help="px")
    parser.add_argument("--limit", type=int, help="images a class")
    parser.add_argument("--device", default="cpu", help="that searches and trains; latencies are of the CPU")
    parser.add_argument("--minutes", type=float, help="for each table")
    parser.add_argument("--rounds", type=int, default=3, help="to measure each model in")
    parser.add_argument("--runs", type=Path, default=harness.HERE.parent / "runs" / name)
    parser.add_argument("--tables", type=Path, help="folder of the tables (default: tables below --runs)")
    parser.add_argument("--quick", action="store_true", help="as small as can be, to see that it works")
    return parser


def parsed(parser: argparse.ArgumentParser, argv: Sequence[str] | None, **quick: Any) -> argparse.Namespace:
    """Return the options, those of --quick in place of their defaults."""
    if parser.parse_args(argv).quick:
        parser.set_defaults(**QUICK, **quick)
    args = parser.parse_args(argv)
    harness.start(args)
    return args


def recipe_of(args: argparse.Namespace, **changes: Any) -> Any:
    """Return the recipe of the searches, with changes."""
    from proxylessnas.search import read_search_recipe

    recipe = read_search_recipe(args.recipe or args.space.partition("@")[0])
    recipe = recipe.with_epochs(args.warmup_epochs, args.epochs)
    size = {} if args.image_size is None else {"image_size": args.image_size}
    quick = {"reinforce_updates": 1, "recalibrate_batches": 1} if args.quick else {}
    return recipe.replace(**size, **quick, **changes)


def space_of(args: argparse.Namespace) -> Any:
    """Return the space as the searches will use it: with the outputs and the size that the images need."""
    from proxylessnas.arch.spaces import read_space
    from proxylessnas.search.data import open_search_data
    from proxylessnas.search.setup import adapted

    recipe = recipe_of(args)
    data = open_search_data(args.data, arch_fraction=recipe.arch_fraction, seed=recipe.seed, limit=args.limit)
    return adapted(read_space(args.space), data, recipe)


def table_of(args: argparse.Namespace, space: Any, runtime: str = "torch") -> Any:
    """Return the table of this machine for a runtime; it is measured if there is none yet."""
    from proxylessnas.latency import BuildSettings, LatencyTable, build_table, doubts

    folder = args.tables or args.runs / "tables"
    path = folder / f"{args.space.replace('@', '_')}_{runtime}_cpu_{args.threads}.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        print(f"measuring {path}", flush=True)
        build_table(
            space, BuildSettings(runtime=runtime, threads=args.threads, minutes=args.minutes), path=path
        )
    table = LatencyTable.load(path)
    for doubt in doubts(table):
        print(f"WARNING: {path}: {doubt}", file=sys.stderr)
    low, high = table.range_ms(space)
    print(f"{runtime}: models of {space.name} take {low:.3f} to {high:.3f} ms", flush=True)
    return table


def target_at(table: Any, space: Any, place: float) -> float:
    """Return the latency at a place of the reachable range, 0 to 1, in ms."""
    low, high = table.range_ms(space)
    return float(low + place * (high - low))


def kept(folder: Path) -> dict[str, Any] | None:
    """Return the result of a run that is finished, or None."""
    try:
        return dict(json.loads((folder / "result.json").read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None


def searched(args: argparse.Namespace, name: str, space: Any, recipe: Any, table: Any) -> dict[str, Any]:
    """Return the result of a search, which is carried out if it is not there."""
    from proxylessnas.search import search
    from proxylessnas.train import Settings

    folder = args.runs / name
    if kept(folder) is None:
        settings = Settings(folder, device=args.device, threads=args.threads, save_every=200)
        result = search(space, args.data, recipe, out=settings, table=table, force=True, limit=args.limit)
        if not result.finished:
            raise SystemExit(128 + (result.signal or 2))
    found = kept(folder)
    assert found is not None
    return {**found, "file": folder / "child.safetensors"}


def measured(args: argparse.Namespace, models: Sequence[tuple[Path, Any]]) -> list[tuple[float | None, int]]:
    """Return for each (weights' file, table) the latency under the table's conditions, in ms.

    Each is measured beside its table's reference, as at the end of a search; the median over the rounds of
    the undisturbed latencies counts. With it comes the number of rounds that were not certain enough. None if
    this is not the table's machine.
    """
    from proxylessnas import create_model
    from proxylessnas.search.evaluate import measure_like

    times: list[list[Any]] = [[] for _ in models]
    for _ in range(args.rounds):
        for found, (file, table) in zip(times, models, strict=True):
            one = measure_like(create_model(file).arch, (), table)
            if one.timing is None:
                print(f"{file}: {one.note}", file=sys.stderr)
            else:
                found.append(one)
    return [
        (statistics.median(m.ms for m in found), sum(m.timing.noisy for m in found)) if found else (None, 0)
        for found in times
    ]


def percent(value: float | None, of: float | None, *, off: bool = False) -> float | str:
    """Return a share, or how far it is from the whole, in percent; "" where one is not known."""
    if value is None or of is None:
        return ""
    return round(100 * (value / of - (1 if off else 0)), 2)


def rounded(value: float | None, digits: int = 3) -> float | str:
    """Return a figure for a table; "" if it is not known."""
    return "" if value is None else round(value, digits)
