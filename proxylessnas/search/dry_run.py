"""Time a few real steps of a search, and say what the whole would take; nothing is written or kept."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..train.batch_reader import dead_workers_as_data_error
from ..train.logger import memory_mib
from ..train.settings import Settings
from ..utils.distributed import processes
from .searcher import Searcher
from .setup import SearchSetup

_STEPS = 5


@dataclass(frozen=True)
class DryRun:
    """What a search would take.

    Attributes:
        weight_step_s, arch_step_s, judging_s: medians of a few real ones, seconds; None where the algorithm
            has none.
        weight_steps, arch_steps, judgings: how many there would be.
        total_s: all of them together.
        memory_mib: peak of the process so far, weights of the supernet and images in memory included.
        images: to train weights on, and held out for alpha.
        coverage: operations in the table, and operations needed; None without a table.
        notes: what can be reached and what is asked for, in words.
    """

    weight_step_s: float
    arch_step_s: float | None
    judging_s: float | None
    weight_steps: int
    arch_steps: int
    judgings: int
    total_s: float
    memory_mib: float | None
    images: tuple[int, int]
    coverage: tuple[int, int] | None
    notes: tuple[str, ...]


def dry_run(
    space: Any,
    data: Any,
    recipe: Any,
    *,
    table: Any = None,
    settings: Settings | None = None,
    force: bool = False,
    limit: int | None = None,
) -> DryRun:
    """Time a few steps of a search and train nothing.

    Args: as of :func:`~.run.search`; of ``settings`` the folder is not touched.

    Raises:
        The same as a search, before its first step.
    """
    settings = settings or Settings(Path("."), console=False)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    setup = SearchSetup(space, data, recipe, table, force, limit)
    with processes(settings.device) as group, dead_workers_as_data_error():
        searcher = setup.searcher(settings, group)
        try:
            return _timed(setup, searcher)
        finally:
            searcher.release()


def _timed(setup: SearchSetup, searcher: Searcher) -> DryRun:
    model, schedule, recipe = searcher.model, searcher.schedule, searcher.recipe
    model.train()
    batches = searcher.loader.epoch(0)
    weight: list[float] = []
    for number, batch in zip(range(_STEPS), batches, strict=False):
        model.set_path(model.alphas.sample(searcher.path_generator))
        weight.append(
            _seconds(lambda batch=batch, number=number: searcher.weight_step(batch, number, 0.0))  # type: ignore[misc]
        )
    arch: list[float] = []
    if searcher.learns:
        for number in range(_STEPS):
            arch.append(_seconds(lambda number=number: searcher.arch_update(number)))  # type: ignore[misc]
    judgings = 0 if searcher.learns else recipe.evaluations
    epochs_judged = recipe.epochs + 1 if searcher.learns else 1
    evaluator = _seconds(lambda: searcher.evaluator.inherited(model.path, amp=True))
    arch_s = statistics.median(arch) if arch else None
    weight_s = statistics.median(weight)
    arch_steps = schedule.arch_steps() if searcher.learns else 0
    total = weight_s * schedule.total_steps + (arch_s or 0.0) * arch_steps
    total += evaluator * (judgings + epochs_judged)
    coverage = None
    if setup.table is not None:
        have, need, _ = setup.table.coverage(setup.space)
        coverage = (have, need)
    return DryRun(
        weight_s, arch_s, evaluator, schedule.total_steps, arch_steps, judgings, total,
        memory_mib(searcher.device), (len(setup.data.weights.train), len(setup.data.arch)), coverage,
        (*setup.data.notes, *setup.notes, *setup.reach()),
    )  # fmt: skip


def _seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start
