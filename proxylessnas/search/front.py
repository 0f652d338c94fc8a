"""Several targets of one search: a model for each, and the front that they make.

Alpha learns for one target, and the weights with it; for each of the others the end of the search starts from
what is probable within it, which says the more the nearer that target is to the one that was learnt for. So
that is the one in the middle.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ProxylessError
from ..train.metrics import Metrics
from ..utils.files import read_bytes, write_atomically
from ..utils.text import csv_text
from .constraints import Constraint
from .evaluate import CONFIG_FILE, PRECISION, SubnetEvaluator, settle
from .logger import ARCH_FILE, CHILD_FILE, SearchResult
from .ship import INT8_FILES

FRONT_FILE, FRONT_TABLE = "front.json", "front.csv"


def folder_name(target: Constraint) -> str:
    """Return the name of the folder of a target's model: "3ms", "1.5M-macs"."""
    kind = "" if target.costs.name == "latency" else f"-{target.costs.name}"
    return f"{target.limit:.10g}{target.costs.unit}{kind}"


def front_rows(results: Sequence[Mapping[str, Any]], kind: str) -> list[dict[str, Any]]:
    """Return a row a model, in order of the targets.

    Args:
        results: what :meth:`.SearchResult.to_dict` says of each, and its ``folder``.
        kind: of the cost that the targets limit.
    """
    rows = []
    for r in results:
        costs = {f"{name}_{'ms' if name == 'latency' else 'm'}": v for name, v in r["costs"].items()}
        rows.append(
            {
                "target": r["limits"][kind], "top1_held_out": r["top1_held_out"],
                "predicted": r["costs"][kind], "measured_ms": r["measured_ms"], **costs,
                "folder": r["folder"], "arch": r["arch"],
            }
        )  # fmt: skip
    return sorted(rows, key=lambda row: row["target"])


def settle_targets(
    evaluator: SubnetEvaluator,
    out: Path,
    extra: Mapping[str, Any],
    *,
    searched: str = "",
    seconds: float = 0.0,
) -> tuple[SearchResult, Metrics]:
    """Derive, evaluate, measure and save a model for each target; every process takes part.

    A single one is :func:`~.evaluate.settle`. Of several, each has a folder in ``out``; the model for the
    target that alpha learnt for is in ``out`` as well, and ``front.json`` and ``front.csv`` list all of them.

    Args: as of :func:`~.evaluate.settle`.

    Raises:
        DataError: no model meets the constraints.
        ProxylessError: one cannot be written.
    """
    targets, main = evaluator.setup.targets, evaluator.setup.constraints
    if len(targets) == 1:
        return settle(evaluator, out, extra, searched=searched, seconds=seconds)
    found: dict[float, tuple[SearchResult, Metrics]] = {}
    for constraints in targets:
        found[constraints[0].limit] = settle(
            evaluator, out / folder_name(constraints[0]), extra, constraints=constraints, searched=searched,
            seconds=seconds,
        )  # fmt: skip
    chosen, metrics = found[main[0].limit]
    results = tuple(result for result, _ in found.values())
    result = dataclasses.replace(chosen, folder=out, model=out / CHILD_FILE, front=results)
    if evaluator.processes.main:
        _write_front(result, chosen.folder, main[0], extra)
    return result, metrics


def _write_front(result: SearchResult, chosen: Path, target: Constraint, extra: Mapping[str, Any]) -> None:
    """Write what all models are, and that in the folder ``chosen`` once more; ``result.json`` comes last."""
    kind = target.costs.name
    rows = front_rows([{**r.to_dict(), "folder": r.folder.name} for r in result.front], kind)
    document: dict[str, Any] = {"kind": kind, "unit": target.costs.unit, "models": rows}
    if "derived_from" not in extra:  # else alpha learnt for targets of its own
        document["learnt_for"] = target.limit
    try:
        write_atomically(result.folder / FRONT_FILE, (json.dumps(document, indent=2) + "\n").encode())
        text = csv_text(list(rows[0]), [list(row.values()) for row in rows])
        write_atomically(result.folder / FRONT_TABLE, text.encode())
        files = [chosen / name for name in (ARCH_FILE, CONFIG_FILE, CHILD_FILE)] + [*chosen.glob(INT8_FILES)]
        for file in files:
            if file.exists():
                write_atomically(result.folder / file.name, read_bytes(file))
        result.write({"judged_in": PRECISION, **extra})
    except OSError as e:
        raise ProxylessError(
            f"{result.folder}: the models cannot be written ({e.strerror or e}); free space, run again"
        ) from e
