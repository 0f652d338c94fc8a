"""The end of a search: its net is derived, judged, measured and written down."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..arch import Arch
from .budgets import Budget
from .engine import Searcher
from .job import Job
from .log import SearchLog
from .result import (
    CHILD_FILE,
    RESULT_FILE,
    SearchResult,
    describe_latency,
    top1_text,
    write_child,
    write_result,
)
from .winner import choose

if TYPE_CHECKING:
    from ..metrics import Metrics

#: What nets are judged in at the end: the precision of the saved weights, whatever the search computed in.
PRECISION = "float32"


def finish(job: Job, searcher: Searcher, log: SearchLog) -> SearchResult:
    """Derive the net of a search that is at its end, write it down, and say what came out."""
    extra = {"origin": job.origin(), "date": time.strftime("%Y-%m-%d")}
    seconds = searcher.position.total_seconds
    result, metrics = settle(job, searcher, searcher.settings.out, extra, seconds=seconds)
    if searcher.processes.main:
        log.done(searcher, {**result.to_dict(), "judged_in": PRECISION})
        for text in describe_result(result, job.budgets, f"{top1_text(metrics)} in {PRECISION}"):
            log.run.note(text)
        log.run.event("done", top1=result.top1, seconds=result.seconds)
    searcher.processes.wait()
    return result


def settle(
    job: Job,
    searcher: Searcher,
    out: Path,
    extra: Mapping[str, Any],
    *,
    searched: str = "",
    seconds: float = 0.0,
) -> tuple[SearchResult, Metrics]:
    """Derive a net, judge it, measure it, and write it down; every process takes part, the first one writes.

    Args:
        job: what was asked for.
        searcher: where the search is.
        out: folder for the net's files; its name is the net's.
        extra: what ``result.json`` says besides.
        searched: what the weights' file says of its origin; by default a summary of the search.
        seconds: what the search took.
    """
    picks, tried = choose(job, searcher)
    child, metrics = searcher.inherited(picks, out.resolve().name or "searched")
    costs = {name: c.of(picks) for name, c in job.costs.items()}
    result = SearchResult(
        True, out, cast(Arch, child.arch), tuple(picks), out / CHILD_FILE, metrics.top1, costs,
        {b.costs.name: b.limit for b in job.budgets}, costs.get("latency"), seconds=seconds,
    )  # fmt: skip
    if searcher.processes.main:
        metadata = {"searched": searched or _summary(job, searcher, costs)}
        write_child(child, out, metadata, job.data.categories, job.data.wnids)
        if tried:
            winner = tried[-1]
            result = dataclasses.replace(
                result, measured=winner.timing, measured_ms=winner.ms, measured_note=winner.note,
                reference_ratio=winner.reference_ratio,
                too_slow=tuple((t.predicted_ms, t.ms) for t in tried[:-1] if t.ms is not None),
            )  # fmt: skip
        write_result(result, {"judged_in": PRECISION, **extra}, out / RESULT_FILE)
    return result, metrics


def _summary(job: Job, searcher: Searcher, costs: dict[str, float]) -> str:
    parts = [f"{job.recipe.algorithm} search on {job.data.name}, seed {job.recipe.seed}"]
    parts += [f"{name} {job.costs[name].show(value)}" for name, value in costs.items()]
    if job.table is not None:
        parts.append(f"table {job.table.digest}")
    return ", ".join(parts)


def describe_result(result: SearchResult, budgets: Sequence[Budget], accuracy: str) -> list[str]:
    """Return in words what was found."""
    found = [f"done: {result.model}, {accuracy} (inherited weights; train it on for its own)"]
    for budget in budgets:
        if budget.costs.name == "latency" and result.measured_ms is not None:
            continue  # told below, against the target
        cost = result.costs[budget.costs.name]
        show = budget.costs.show
        found.append(
            f"{budget.costs.name}: {show(cost)} of at most {show(budget.limit)} ({cost / budget.limit:.0%})"
        )
    found += describe_latency(result.to_dict())
    return found
