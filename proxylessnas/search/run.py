"""Search for a net: from a space, pictures and a target to a net that meets it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..filesystem import write_atomically
from ..space import SearchSpace
from ..train.data import class_counts
from ..train.distributed import processes
from ..train.held_out import VALIDATION_FILE
from ..train.reading import dead_workers_as_data_error
from ..train.run import held_folder
from ..train.settings import Settings
from ..train.stop import StopRequest
from ..train.tensorboard_log import load_tensorboard
from .ending import finish
from .engine import Searcher
from .job import Job as Job
from .log import LOG_FILE as LOG_FILE
from .log import open_logs
from .recipe import SearchRecipe
from .result import SearchResult
from .resume import go_on

if TYPE_CHECKING:
    from ..latency.table import LatencyTable

RECIPE_FILE, SPACE_FILE, TABLE_FILE, SOURCE_FILE = "search.toml", "space.toml", "table.json", "source.json"


def search(
    space: SearchSpace | str | Path,
    data: Any,
    recipe: SearchRecipe | str | Path = "small",
    *,
    out: str | Path | Settings,
    table: LatencyTable | str | Path | None = None,
    force: bool = False,
    limit: int | None = None,
) -> SearchResult:
    """Search a space for a net that is accurate on these pictures within the recipe's targets.

    The folder ``out`` gets ``search.toml``, ``space.toml``, ``table.json``, ``checkpoints/``, ``log.jsonl``,
    ``search.jsonl`` and, at the end, ``arch.txt``, ``net.config``, ``child.safetensors`` and
    ``result.json``. Killed at any moment, the same call goes on from the last checkpoint; on a CPU the
    result is bitwise that of a search in one piece. Under ``torchrun`` all processes search together; with
    ``sync_bn`` in the recipe, they give what one process with the whole batch would.

    The net that is found is judged as users will run it: from its file's weights, in 32 bits, whatever the
    search computed in.

    Args:
        space: a space, the name of one ("imagenet", "small", "tiny"), or a TOML file. Its number of classes
            becomes that of the pictures.
        data: see :func:`~proxylessnas.train.open_data`; only the training part is opened.
        recipe: a recipe, the name of one, or a TOML file; it holds the targets.
        out: the folder of the run, or all settings.
        table: latencies of the space on the target device; needed for ``target_ms``.
        force: search with a table that was not validated, or that predicts badly, all the same.
        limit: search on at most so many pictures a class.

    Raises:
        DataError: the pictures or the recipe are not usable, or no net of the space meets the targets.
        ArchError: the space is malformed.
        LatencyError, LatencyKeyError: the table is not to be trusted, or does not cover the space.
        CheckpointError: ``out`` holds another run, or no sound checkpoint of this one.
        ProxylessError: the loss became infinite or NaN, or alpha does not move.
    """
    settings = out if isinstance(out, Settings) else Settings(Path(out))
    job = Job(space, data, recipe, table, force, limit)
    if settings.tensorboard:
        load_tensorboard()
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    with processes(settings.device) as group, held_folder(settings.out, group):
        searcher = job.searcher(settings, group)
        try:
            return _carry_out(job, searcher)
        finally:
            searcher.release()


def _carry_out(job: Job, searcher: Searcher) -> SearchResult:
    settings = searcher.settings
    counts = class_counts(job.data.weights, job.data.arch, "held-out")
    notes = [counts, *settings.notes(), *job.data.notes, *job.notes, *go_on(searcher)]
    with open_logs(searcher) as log, StopRequest() as stop, dead_workers_as_data_error():
        if searcher.processes.main:
            _write_down(job, searcher)
        for text in [*notes, *job.reach()]:
            log.run.note(text)
        if searcher.processes.main and not (settings.out / LOG_FILE).stat().st_size:
            log.begin(job.origin())
        if searcher.fit(stop, log):
            return finish(job, searcher, log)
        p = searcher.position
        log.run.note(f"stopped and saved at step {p.global_step:,}; the same command goes on from there")
        return SearchResult(False, settings.out, seconds=p.total_seconds, signal=stop.signal)


def _write_down(job: Job, searcher: Searcher) -> None:
    """Write what another call needs to go on with the search from its folder alone."""
    out = searcher.settings.out
    write_atomically(out / RECIPE_FILE, searcher.recipe.to_toml().encode())
    write_atomically(out / SPACE_FILE, job.space.to_toml().encode())
    # What trains the derived net on asks for it: the architecture's pictures have trained no weights.
    held = "".join(f"{job.data.arch.name(i)}\n" for i in range(len(job.data.arch)))
    write_atomically(out / VALIDATION_FILE, held.encode())
    if job.table is not None:
        job.table.save(out / TABLE_FILE)
    if job.source is not None:
        write_atomically(out / SOURCE_FILE, (json.dumps(job.source) + "\n").encode())
