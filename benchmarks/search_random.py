"""Is a searched model better than random ones of the same latency, trained in the same way?

    python benchmarks/search_random.py --data cifar10_jpg --place 0.4 --train-epochs 30

A model is searched for a latency by a table of this machine. Random models are drawn evenly from all choices
of the space whose latency by the table is within 3 % of the searched model's. Then all of them are trained
from random weights with one recipe. The test or validation part of the data, which no search looks into, says
how
good they are, and chooses nothing: the last weights count (data without such a part will not do for more than
a try). The searched model is trained with the seeds 0, 1, ...; the n-th random model with one of these in
turn.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from collections.abc import Sequence
from typing import Any

import harness
import search_runs

_DRAWS, _TRIES = 100_000, 200


def alike(space: Any, table: Any, choices: Sequence[int], share: float, count: int, seed: int) -> list[Any]:
    """Return random models of nearly the latency of one, all different.

    Args:
        space: the models.
        table: of their latencies.
        choices: the model they are to be like.
        share: by which their latencies may differ.
        count: how many.
        seed: of the draws.
    """
    import torch

    costs, fixed = table.costs(space)
    rows = torch.arange(len(costs))
    wanted = fixed + float(costs[rows, torch.tensor(choices)].sum())
    generator = torch.Generator().manual_seed(seed)
    own = [torch.tensor(p.columns) for p in space.search_blocks]
    numbers = torch.tensor([len(columns) for columns in own])
    places = torch.nn.utils.rnn.pad_sequence(own, batch_first=True)
    found: dict[str, Any] = {}
    known = function_of(space.arch(choices))
    for _ in range(_TRIES):
        drawn = (torch.rand(_DRAWS, len(rows), generator=generator, dtype=torch.float64) * numbers).long()
        drawn = places[rows, drawn]
        ms = fixed + costs[rows, drawn].sum(1)
        for some in drawn[(ms / wanted - 1).abs() <= share].tolist():
            arch = space.arch(some, f"random{len(found) + 1}")
            if function_of(arch) != known and len(found) < count:
                found.setdefault(function_of(arch), arch)
        if len(found) == count:
            return list(found.values())
    raise SystemExit(
        f"only {len(found)} models within {share:.0%} of {wanted:.3f} ms were met: ask for fewer"
    )


def function_of(arch: Any) -> str:
    """Return what a model does: the same for models that skip other blocks of a stage."""
    return " | ".join(" ".join(token for token in stage.tokens if token != "-") for stage in arch.stages)


def trained(args: argparse.Namespace, name: str, arch: Any, seed: int, data: Any) -> dict[str, Any]:
    """Return the result of a training, which is carried out if it is not there."""
    from proxylessnas.train import Settings, read_recipe, train

    folder = args.runs / f"{name}_seed{seed}"
    if search_runs.kept(folder) is None:
        recipe = read_recipe(args.train_recipe).replace(seed=seed, keep="last")
        if args.train_epochs is not None:
            recipe = recipe.with_epochs(args.train_epochs)
        if args.image_size is not None:
            recipe = recipe.replace(image_size=args.image_size)
        if args.quick:
            recipe = recipe.with_batch_size(32)
        settings = Settings(folder, device=args.device, threads=args.threads, save_every=200)
        result = train(arch, data, recipe, out=settings)
        if not result.finished:
            raise SystemExit(128 + (result.signal or 2))
    found = search_runs.kept(folder)
    assert found is not None
    return {**found, "file": folder / "model.safetensors"}


def main(argv: Sequence[str] | None = None) -> int:
    parser = search_runs.make_parser(__doc__, "search_random", space="small", data="cifar10")
    parser.add_argument("--place", type=float, default=0.4, help="of the target in the range, 0 to 1")
    parser.add_argument("--algorithm", default="gradient")
    parser.add_argument("--share", type=float, default=0.03, help="by which latencies may differ")
    parser.add_argument("--nets", type=int, default=5, help="random ones")
    parser.add_argument("--seeds", type=int, default=3, help="of trainings of the searched model")
    parser.add_argument("--train-recipe", default="small-images")
    parser.add_argument("--train-epochs", type=int)
    args = search_runs.parsed(parser, argv, nets=2, seeds=1, train_epochs=1)
    from proxylessnas import Arch
    from proxylessnas.train import open_data

    space = search_runs.space_of(args)
    table = search_runs.table_of(args, space)
    target = search_runs.target_at(table, space, args.place)
    recipe = search_runs.recipe_of(args, algorithm=args.algorithm, target_ms=target)
    result = search_runs.searched(args, f"search_{args.algorithm}_{args.place:g}", space, recipe, table)
    data = open_data(args.data, limit=args.limit, seed=recipe.seed)
    best = dataclasses.replace(Arch.parse(result["arch"]), name="searched")
    models = [("searched", best, seed) for seed in range(args.seeds)]
    drawn = alike(space, table, result["picks"], args.share, args.nets, seed=recipe.seed)
    models += [(arch.name, arch, n % args.seeds) for n, arch in enumerate(drawn)]
    runs = []
    for n, (name, arch, seed) in enumerate(models, 1):
        print(f"training {n} of {len(models)}: {name}, seed {seed}", flush=True)
        runs.append(trained(args, name, arch, seed, data))
    files = {name: run["file"] for (name, _, _), run in zip(models, runs, strict=True)}
    times = search_runs.measured(args, [(file, table) for file in files.values()])
    ms = dict(zip(files, (found for found, _ in times), strict=True))
    rows = [
        {
            "space": args.space, "data": data.name, "target_ms": round(target, 4), "net": name, "seed": seed,
            "predicted_ms": round(table.predict(arch), 4), "measured_ms": search_runs.rounded(ms[name], 4),
            "top1": round(run["top1"], 3), "train_recipe": args.train_recipe,
            "epochs": args.train_epochs or "", "hours": round(run["seconds"] / 3600, 3),
            "blocks": function_of(arch),
        }
        for (name, arch, seed), run in zip(models, runs, strict=True)
    ]  # fmt: skip
    harness.write_rows(args, rows)
    ours = [row["top1"] for row in rows if row["net"] == "searched"]
    others = [row["top1"] for row in rows if row["net"] != "searched"]
    for name, values in (("searched", ours), ("random", others)):
        spread = f", standard deviation {statistics.stdev(values):.2f}" if len(values) > 1 else ""
        print(
            f"{name}: mean {statistics.mean(values):.2f} % of {len(values)} trainings{spread}, from "
            f"{min(values):.2f} to {max(values):.2f}"
        )
    below = sum(value < statistics.mean(ours) for value in others)
    hours = sum(row["hours"] for row in rows)
    print(
        f"searched - random: {statistics.mean(ours) - statistics.mean(others):+.2f} points; {below} of "
        f"{len(others)} random models are below the searched model's mean. Search "
        f"{result['seconds'] / 3600:.2f} hours, trainings {hours:.2f} hours"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
