"""Models searched for two runtimes of one machine, each measured on both.

    python benchmarks/search_specialised.py
    python benchmarks/search_specialised.py --runtimes torch openvino --place 0.4

A table is measured for each runtime, and a search aims at the same place of the range that models have there.
If a runtime has tastes of its own, the model that was searched for it is the better bargain on it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import harness
import search_runs


def main(argv: Sequence[str] | None = None) -> int:
    parser = search_runs.make_parser(__doc__, "search_specialised", space="tiny", data="digits")
    parser.add_argument("--runtimes", nargs=2, default=["torch", "onnxruntime"])
    parser.add_argument("--place", type=float, default=0.5, help="of the targets in the range, 0 to 1")
    parser.add_argument("--algorithm", default="gradient")
    args = search_runs.parsed(parser, argv)
    space = search_runs.space_of(args)
    tables = {runtime: search_runs.table_of(args, space, runtime) for runtime in args.runtimes}
    found = {}
    for runtime, table in tables.items():
        target = search_runs.target_at(table, space, args.place)
        recipe = search_runs.recipe_of(args, algorithm=args.algorithm, target_ms=target)
        found[runtime] = search_runs.searched(args, f"{runtime}_{args.place:g}", space, recipe, table)
    pairs = list(itertools.product(args.runtimes, repeat=2))
    times = search_runs.measured(args, [(found[model]["file"], tables[on]) for model, on in pairs])
    rows = []
    for (model, on), (ms, noisy) in zip(pairs, times, strict=True):
        result = found[model]
        costs, fixed = tables[on].costs(space)
        predicted = fixed + sum(float(row[k]) for row, k in zip(costs, result["picks"], strict=True))
        rows.append(
            {
                "space": args.space, "data": args.data, "place": args.place, "searched_for": model,
                "target_ms": round(result["limits"]["latency"], 4), "measured_on": on,
                "predicted_ms": round(predicted, 4), "measured_ms": search_runs.rounded(ms, 4),
                "error_percent": search_runs.percent(ms, predicted, off=True),
                "rounds": args.rounds, "noisy_rounds": noisy,
                "held_out_top1": round(result["top1_held_out"], 2),
                "macs_m": round(result["costs"]["macs"], 3),
                "net": "".join(result["arch"].split()),
            }
        )  # fmt: skip
    harness.write_rows(args, rows)
    print("\nms, measured (predicted)" + "".join(f"{'on ' + on:>26}" for on in args.runtimes))
    for model in args.runtimes:
        cells = [f"{r['measured_ms']} ({r['predicted_ms']})" for r in rows if r["searched_for"] == model]
        top1 = f"{found[model]['top1_held_out']:.1f} %"
        print(f"{'for ' + model:24}" + "".join(f"{cell:>26}" for cell in cells) + f"   top-1 {top1}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
