"""Latency tables of INT8 models beside those of float32, and how the float32 table orders INT8 models.

    python benchmarks/int8_tables.py [--spaces tiny small] [--runtimes onnxruntime openvino] [--minutes 3]

For each space and runtime both tables are built, one after the other, each judged on random models of its own
precision that it was not made from. The same INT8 models are then ordered by the float32 table: what a search
for float32 latency that ships INT8 goes by. Tables that are in --tables already are taken as they are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness import HERE, make_parser, write_rows

from proxylessnas.latency import BuildSettings, LatencyTable, Validation, build_table
from proxylessnas.latency.metrics import kendall_tau


def table_of(path: Path, space: str, runtime: str, dtype: str, args: Any) -> LatencyTable:
    """Return a table that is there, or a new one."""
    if path.is_file():
        return LatencyTable.load(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    asked = BuildSettings(
        runtime=runtime, dtype=dtype, threads=args.threads, minutes=args.minutes, validation_nets=args.nets
    )
    return build_table(space, asked, path=path)


def figures(table: LatencyTable, dtype: str) -> dict[str, Any]:
    """Return how well a table predicts models of its own precision."""
    found = Validation.from_dict(table.validation or {})
    names = {"mape_percent": 2, "kendall_tau": 3, "ceiling_tau": 3, "ceiling_percent": 2, "disturbance": 2}
    own = {f"{dtype}_{name}": round(getattr(found, name), digits) for name, digits in names.items()}
    return {f"{dtype}_minutes": table.method["minutes"], **own}


def tau_of_other(table: LatencyTable, int8: LatencyTable) -> float:
    """Return the Kendall tau of a table's predictions and the latencies of the other's INT8 models."""
    space, pairs = int8.space, Validation.from_dict(int8.validation or {}).pairs
    assert space is not None
    columns = [
        [space.candidate_ops.index(token) for token in text.replace("|", " ").split()] for text, *_ in pairs
    ]
    return kendall_tau([table.predict(space.arch(c)) for c in columns], [ms for *_, ms in pairs])


def main() -> None:
    parser = make_parser(__doc__, "int8_tables")
    parser.add_argument("--spaces", nargs="+", default=["tiny", "small"])
    parser.add_argument("--runtimes", nargs="+", default=["onnxruntime", "openvino"])
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--nets", type=int, default=30, help="models to judge a table with")
    parser.add_argument("--tables", type=Path, default=HERE / "tables")
    args = parser.parse_args()
    rows = []
    for space in args.spaces:
        for runtime in args.runtimes:
            name = f"{space}-{runtime}"
            tables = {
                dtype: table_of(args.tables / f"{name}-{dtype}.json", space, runtime, dtype, args)
                for dtype in ("float32", "int8")
            }
            row = {"space": space, "runtime": runtime, "threads": args.threads}
            for dtype, table in tables.items():
                row |= figures(table, dtype)
            row["tau_of_float32_table_on_int8"] = round(tau_of_other(tables["float32"], tables["int8"]), 3)
            rows.append(row)
    write_rows(args, rows)


if __name__ == "__main__":
    main()
