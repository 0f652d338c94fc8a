"""Search for a net: from a space, pictures and a target to a net that meets it."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from .._version import __version__
from ..arch import Arch
from ..errors import DataError, LatencyError, ProxylessError
from ..filesystem import write_atomically
from ..space import SearchSpace
from ..spaces import read_space
from ..train.distributed import Processes, processes
from ..train.history import LineLog
from ..train.named_data import parse_name
from ..train.preprocess import preprocessing_of
from ..train.reading import dead_workers_as_data_error
from ..train.run import held_folder
from ..train.runlog import RunLog
from ..train.sampler import mix64
from ..train.settings import Settings
from ..train.stop import StopRequest
from ..train.tensorboard_log import load_tensorboard
from .budgets import Budget, Costs, check_reachable, latency_costs, size_costs
from .data import SearchData, open_search_data
from .derive import most_probable_within
from .engine import Searcher
from .recipe import SearchRecipe, read_search_recipe
from .result import CHILD_FILE, RESULT_FILE, SearchResult, top1_text, write_child, write_result
from .resume import go_on
from .start import align
from .supernet import SuperNet, seeded

if TYPE_CHECKING:
    from ..latency.table import LatencyTable
    from ..latency.timing import Timing

RECIPE_FILE, SPACE_FILE, TABLE_FILE, LOG_FILE = "search.toml", "space.toml", "table.json", "search.jsonl"
SOURCE_FILE = "source.json"
_START = 104  # what a generator is for


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
    result is bitwise that of a search in one piece. Under ``torchrun`` all processes search together.

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


class Job:
    """What is asked for, read and checked before anything is trained."""

    def __init__(
        self, space: Any, data: Any, recipe: Any, table: Any, force: bool, limit: int | None
    ) -> None:
        from ..latency.table import LatencyTable

        # What `resume` and `derive` open again; a data set object cannot be written down.
        self.source = None
        if isinstance(data, (str, Path)):
            named = isinstance(data, str) and parse_name(data) is not None
            self.source = {"data": str(data if named else Path(data).resolve()), "limit": limit}
        self.recipe = recipe if isinstance(recipe, SearchRecipe) else read_search_recipe(recipe)
        self.data: SearchData = (
            data
            if isinstance(data, SearchData)
            else open_search_data(
                data, arch_fraction=self.recipe.arch_fraction, seed=self.recipe.seed, limit=limit
            )
        )
        self.space = adapted(
            space if isinstance(space, SearchSpace) else read_space(space), self.data, self.recipe
        )
        self.table = table if table is None or isinstance(table, LatencyTable) else LatencyTable.load(table)
        if self.table is None and self.recipe.target_ms is not None:
            raise DataError(
                "a target in milliseconds needs a latency table of the device: name one, or make one with "
                "`proxylessnas latency build`"
            )
        self.notes: list[str] = []
        if self.table is not None:
            self.notes += self._checked(self.table, force)

    def _checked(self, table: LatencyTable, force: bool) -> list[str]:
        doubts = table.trust()
        if doubts and not force:
            raise LatencyError(
                f"this latency table is not to be trusted: {'; '.join(doubts)}. Run `proxylessnas latency "
                "validate` on its device, or search with it all the same (force)"
            )
        return [f"WARNING: the latency table is not to be trusted: {doubt}" for doubt in doubts]

    def searcher(self, settings: Settings, group: Processes) -> Searcher:
        """Return the search, ready to begin or to go on."""
        supernet = seeded(self.space, self.recipe.seed)
        weights = self.recipe.weights
        recipe = weights if weights.image_size else weights.replace(image_size=self.space.resolution)
        supernet.preprocessing = preprocessing_of(recipe, supernet, self.data.weights)  # type: ignore[arg-type]
        if self.recipe.aligned_start:
            align(supernet, torch.Generator().manual_seed(mix64(self.recipe.seed, _START)))
        supernet.alphas.init(torch.Generator().manual_seed(self.recipe.seed), self.recipe.arch_init)
        self.costs = all_costs(supernet, self.table)
        self.budgets = budgets_of(self.recipe, self.costs)
        check_reachable(self.budgets)
        self._check_together(supernet)
        return Searcher(supernet, self.data, self.recipe, settings, group, self.budgets)

    def _check_together(self, supernet: SuperNet) -> None:
        """Find out now, not after hours of training, whether the budgets can be met together."""
        columns = self.space.columns
        most_probable_within(
            supernet.alphas.log_probs(),
            self.budgets,
            stages=[p.stage for p in self.space.positions],
            zero_column=columns.index("-") if "-" in columns else None,
            least_depth=self.recipe.min_depth,
        )

    def reach(self) -> list[str]:
        """Return in words what can be reached, and what is asked for."""
        found = []
        for budget in self.budgets:
            low, high = budget.costs.range()
            show = budget.costs.show
            found.append(
                f"target: {budget.costs.name} of at most {show(budget.limit)}; nets of this space go from "
                f"{show(low)} to {show(high)}"
            )
        return found


def adapted(space: SearchSpace, data: SearchData, recipe: SearchRecipe) -> SearchSpace:
    """Return a space with the outputs that the data needs, at the size the recipe trains at."""
    changes: dict[str, Any] = {"num_classes": len(data.categories), "in_channels": 3}
    if recipe.weights.image_size is not None:
        changes["resolution"] = recipe.weights.image_size
    changes = {k: v for k, v in changes.items() if getattr(space, k) != v}
    return space.replace(**changes) if changes else space


def all_costs(supernet: SuperNet, table: LatencyTable | None) -> dict[str, Costs]:
    """Return every kind of cost that is known of a space, by name."""
    found = {} if table is None else {"latency": latency_costs(table, supernet.space)}
    return {**found, **size_costs(supernet)}


def budgets_of(recipe: SearchRecipe, costs: dict[str, Costs]) -> list[Budget]:
    """Return the recipe's targets, latency first."""
    wanted = {
        "latency": recipe.target_ms, "macs": recipe.target_macs_m, "params": recipe.target_params_m,
    }  # fmt: skip
    return [Budget(costs[name], limit) for name, limit in wanted.items() if limit is not None]


def _carry_out(job: Job, searcher: Searcher) -> SearchResult:
    settings, recipe, group = searcher.settings, searcher.recipe, searcher.processes
    notes = [*job.data.notes, *job.notes, *go_on(searcher)]
    p = searcher.position
    with _logs(searcher) as (run, lines), StopRequest() as stop, dead_workers_as_data_error():
        if group.main:
            write_atomically(settings.out / RECIPE_FILE, recipe.to_toml().encode())
            write_atomically(settings.out / SPACE_FILE, job.space.to_toml().encode())
            if job.table is not None:
                job.table.save(settings.out / TABLE_FILE)
            if job.source is not None:
                write_atomically(settings.out / SOURCE_FILE, (json.dumps(job.source) + "\n").encode())
        for text in [*notes, *job.reach()]:
            run.note(text)
        if lines is not None and not (settings.out / LOG_FILE).stat().st_size:
            lines.write("begin", {"step": 0, "epoch": 0, **_origin(job)})
        if searcher.fit(stop, run, lines):
            return _finish(job, searcher, run, lines)
        run.note(f"stopped and saved at step {p.global_step:,}; the same command goes on from there")
        return SearchResult(False, settings.out, seconds=p.total_seconds, signal=stop.signal)


@contextmanager
def _logs(searcher: Searcher) -> Iterator[tuple[RunLog, LineLog | None]]:
    """Open the log of the run and, in the first process, that of the search."""
    settings, p = searcher.settings, searcher.position
    if not searcher.processes.main:
        yield RunLog.silent(), None
        return
    schedule = searcher.schedule
    with RunLog(
        settings.out, epochs=schedule.total_epochs, steps_per_epoch=schedule.steps_per_epoch,
        batch_size=searcher.recipe.weights.batch_size, tensorboard=settings.tensorboard,
        console=settings.console, resume_step=p.global_step, resume_epoch=p.epoch,
    ) as run:  # fmt: skip
        judged = len(searcher.judged)
        lines = LineLog(settings.out / LOG_FILE, p.global_step + judged, p.epoch, run.note)
        try:
            yield run, lines
        finally:
            lines.close()


def _origin(job: Job) -> dict[str, Any]:
    """Return what a reader of the log needs to know about the search."""
    return {
        "space": job.space.to_dict(),
        "columns": list(job.space.columns),
        "blocks": [
            {"stage": p.stage, "block": p.block, "choices": list(p.choices)} for p in job.space.positions
        ],
        "algorithm": job.recipe.algorithm,
        "targets": {b.costs.name: b.limit for b in job.budgets},
        "units": {b.costs.name: b.costs.unit for b in job.budgets},
        "range": {b.costs.name: list(b.costs.range()) for b in job.budgets},
        "table": None if job.table is None else job.table.digest,
        "table_conditions": None if job.table is None else job.table.conditions.describe(),
        "data": job.data.name,
        "pictures": {"weights": len(job.data.weights.train), "arch": len(job.data.arch)},
        "versions": {"proxylessnas": __version__, "torch": str(torch.__version__)},
        "seed": job.recipe.seed,
    }


def _finish(job: Job, searcher: Searcher, run: RunLog, lines: LineLog | None) -> SearchResult:
    """Derive the net, judge it, measure it, and write it down."""
    from ..train.batchnorm import recalibrate

    out, group = searcher.settings.out, searcher.processes
    picks = searcher.derived()
    child = searcher.net.child(picks, name=out.resolve().name or "searched")
    if searcher.recipe.recalibrate_batches:
        recalibrate(child, searcher.calibration(), searcher.recipe.recalibrate_batches, processes=group)
    metrics = searcher.judge(picks)
    costs = {name: c.of(picks) for name, c in job.costs.items()}
    result = SearchResult(
        True, out, cast(Arch, child.arch), tuple(picks), out / CHILD_FILE, metrics.top1, costs,
        {b.costs.name: b.limit for b in job.budgets}, costs.get("latency"),
        seconds=searcher.position.total_seconds,
    )  # fmt: skip
    if group.main:
        metadata = {"searched": _summary(job, searcher, costs)}
        write_child(child, out, metadata, job.data.categories, job.data.wnids)
        if job.table is not None:
            timing, why = measured_like(out / CHILD_FILE, job.table)
            result = dataclasses.replace(result, measured=timing, measured_note=why)
        origin = {"origin": _origin(job), "date": time.strftime("%Y-%m-%d")}
        write_result(result, origin, out / RESULT_FILE)
        if lines is not None:
            p = searcher.position
            # A step later than any checkpoint's, so that a repeated end cuts it off first.
            lines.write("done", {"step": p.global_step + 10**9, "epoch": p.epoch, **result.to_dict()})
        for text in describe_result(result, job.budgets, top1_text(metrics)):
            run.note(text)
        run.event("done", top1=result.top1, seconds=result.seconds)
    group.wait()
    return result


def _summary(job: Job, searcher: Searcher, costs: dict[str, float]) -> str:
    parts = [f"{job.recipe.algorithm} search on {job.data.name}, seed {job.recipe.seed}"]
    parts += [f"{name} {job.costs[name].show(value)}" for name, value in costs.items()]
    if job.table is not None:
        parts.append(f"table {job.table.digest}")
    return ", ".join(parts)


def measured_like(model: Path, table: LatencyTable) -> tuple[Timing | None, str]:
    """Measure a net under a table's conditions, if this is its machine; else say why not."""
    from ..latency.machine import conditions
    from ..latency.measuring import measure
    from ..latency.runtimes.registry import get_runtime

    c = table.conditions
    try:
        here = conditions(c.settings, get_runtime(c.runtime)).device_name
    except ProxylessError:
        here = "another device"
    if here != c.device_name:
        return None, f"not measured: the table is of {c.device_name}, this is {here}"
    try:
        timing = measure(
            model, batch_size=c.batch_size, device=c.device, threads=c.threads, runtime=c.runtime,
            dtype=c.dtype, memory_format=c.memory_format, cuda_graph=c.cuda_graph,
        )  # fmt: skip
    except Exception as e:  # noqa: BLE001 - hours of search are not lost to a failed measurement
        return None, f"not measured: {e}"
    return timing, ""


def describe_result(result: SearchResult, budgets: Sequence[Budget], accuracy: str) -> list[str]:
    """Return in words what was found."""
    found = [f"done: {result.model}, {accuracy} (inherited weights; train it on for its own)"]
    for budget in budgets:
        cost = result.costs[budget.costs.name]
        show = budget.costs.show
        found.append(
            f"{budget.costs.name}: {show(cost)} of at most {show(budget.limit)} ({cost / budget.limit:.0%})"
        )
    if result.measured is not None and result.predicted_ms:
        off = result.measured.median_ms / result.predicted_ms - 1.0
        noise = f"; noisy: {'; '.join(result.measured.noise)}" if result.measured.noise else ""
        found.append(
            f"latency: predicted {result.predicted_ms:.3f} ms, measured {result.measured.median_ms:.3f} ms "
            f"({off:+.1%}; p10-p90 {result.measured.p10_ms:.3f}-{result.measured.p90_ms:.3f}{noise})"
        )
    elif result.measured_note:
        found.append(f"latency: predicted {result.predicted_ms:.3f} ms, {result.measured_note}")
    return found
