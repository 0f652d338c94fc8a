"""What the benchmark scripts share: settings, and results that carry machine, versions, commit and date."""

from __future__ import annotations

import argparse
import datetime
import platform
import random
import subprocess
from pathlib import Path
from typing import Any

from proxylessnas.utils.files import write_atomically
from proxylessnas.utils.text import csv_rows, csv_text

HERE = Path(__file__).resolve().parent


def make_parser(description: str | None, name: str) -> argparse.ArgumentParser:
    """Return a parser with the options that every benchmark has; ``name`` is that of its result file."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--csv", type=Path, default=HERE / "results" / f"{name}.csv", help="where to append the rows"
    )
    parser.add_argument("--no-csv", action="store_true", help="print only")
    return parser


def start(args: argparse.Namespace) -> None:
    """Fix threads, seeds and the memory allocator."""
    import torch

    from proxylessnas import keep_freed_pages

    keep_freed_pages()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    random.seed(0)


def cpu_name() -> str:
    """Return the processor's name with the number of cores this process may use."""
    import os

    name = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {count} cores"


def context() -> dict[str, str]:
    """Return machine, versions, commit and date."""
    import torch

    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=HERE, check=False
    )
    return {
        "machine": cpu_name(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": commit.stdout.strip(),
        "date": datetime.date.today().isoformat(),
    }


def write_rows(args: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """Print the rows as a table and append them to the CSV file."""
    widths = {key: max(len(key), *(len(str(row[key])) for row in rows)) for key in rows[0]}
    print("  ".join(key.ljust(width) for key, width in widths.items()))
    for row in rows:
        print("  ".join(str(row[key]).ljust(width) for key, width in widths.items()))
    where = context()
    print(", ".join(f"{key} {value}" for key, value in where.items()))
    if args.no_csv:
        return
    args.csv.parent.mkdir(parents=True, exist_ok=True)
    kept = list(csv_rows(args.csv.read_text())) if args.csv.exists() else []
    every: list[dict[str, Any]] = [*kept, *({**row, **where} for row in rows)]
    columns = list(dict.fromkeys(name for row in every for name in row))  # what a row lacks stays empty
    text = csv_text(columns, [[row.get(name) for name in columns] for row in every])
    write_atomically(args.csv, text.encode())
