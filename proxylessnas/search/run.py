"""Search, resume, derive again, try out: from a space, images and a target to a model that meets it."""

from __future__ import annotations

import contextlib
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..arch.space_base import Space
from ..arch.spaces import read_space
from ..data.open import VALIDATION_FILE, class_counts
from ..errors import CheckpointError, DataError
from ..train import checkpoint
from ..train.batch_reader import dead_workers_as_data_error
from ..train.log_files import load_tensorboard
from ..train.logger import memory_mib
from ..train.run import held_folder
from ..train.settings import Settings
from ..utils.distributed import processes
from ..utils.files import open_file, read_bytes, write_atomically
from ..utils.progress import tell
from ..utils.signals import StopRequest
from .evaluate import PRECISION
from .front import FRONT_FILE, FRONT_TABLE, settle_targets
from .logger import LOG_FILE, RESULT_FILE, SearchLog, SearchResult, describe_result, open_logs, saved_result
from .recipe import SearchRecipe, read_search_recipe, several_targets
from .searcher import Searcher
from .setup import SearchSetup

if TYPE_CHECKING:
    from ..latency.table import LatencyTable


SEEDS_FILE = "seeds.json"  # in a folder of several searches
RECIPE_FILE, SPACE_FILE, TABLE_FILE, SOURCE_FILE = "search.toml", "space.toml", "table.json", "source.json"
_TRIED_STEPS = 5


def search(
    space: Space | str | Path,
    data: Any,
    recipe: SearchRecipe | str | Path = "small",
    *,
    out: str | Path | Settings,
    table: LatencyTable | str | Path | None = None,
    force: bool = False,
    limit: int | None = None,
) -> SearchResult:
    """Search a space for a model that is accurate on these images within the recipe's targets.

    The folder ``out`` gets ``search.toml``, ``space.toml``, ``table.json``, ``checkpoints/``, ``log.jsonl``,
    ``search.jsonl`` and, at the end, ``arch.txt``, ``net.config``, ``child.safetensors`` and
    ``result.json``. Killed at any moment, the same call resumes from the last checkpoint; on a CPU the
    result is bitwise that of a search in one piece. A finished search keeps its result. Under ``torchrun``
    all processes search together; with ``sync_bn`` in the recipe, they give what one process with the whole
    batch would.

    The model that is found is evaluated as users will run it: from its file's weights, in 32 bits, whatever
    the search computed in.

    Args:
        space: a space, the name of one ("imagenet", "small", "tiny", "cpu26", "cpu26-small"), or a TOML file.
            Its number of classes becomes that of the images.
        data: see :func:`~proxylessnas.train.open_data`; only the training part is opened.
        recipe: a recipe, the name of one, or a TOML file; it holds the targets.
        out: the folder of the run, or all settings.
        table: latencies of the space on the target device; needed for ``target_ms``.
        force: search with a table that was not validated, or that predicts badly, all the same.
        limit: search on at most so many images a class.

    Raises:
        DataError: the images or the recipe are not usable, or no model of the space meets the targets.
        ArchError: the space is malformed.
        LatencyError, LatencyKeyError: the table is not to be trusted, or does not cover the space.
        CheckpointError: ``out`` holds another run, or no sound checkpoint of this one.
        ProxylessError: the loss became infinite or NaN, or alpha does not move.
    """
    settings = out if isinstance(out, Settings) else Settings(Path(out))
    if settings.tensorboard:
        load_tensorboard()
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    setup = SearchSetup(space, data, recipe, table, force, limit)
    with (
        processes(settings.device) as group,
        held_folder(settings.out, group),
        contextlib.closing(Searcher(setup, settings, group)) as searcher,
    ):
        return _carry_out(searcher)


def _carry_out(searcher: Searcher) -> SearchResult:
    setup, settings = searcher.setup, searcher.settings
    counts = class_counts(setup.data, part="held-out")
    notes = [counts, *settings.notes(), *setup.data.notes, *setup.notes, *searcher.resume()]
    kept = _kept_result(searcher)
    if kept is not None:  # and nothing is touched: an opened log is cut off before its end
        if searcher.processes.main:
            more = "; `search derive` evaluates more models" if searcher.evaluator.due else ""
            tell(f"note: this search is finished, and its result is kept: {kept.model}{more}")
        return kept
    with open_logs(searcher) as log, StopRequest() as stop, dead_workers_as_data_error():
        if searcher.processes.main:
            _write_down(setup, settings.out)
        for text in [*notes, *setup.reach()]:
            log.run.note(text)
        if searcher.processes.main and not (settings.out / LOG_FILE).stat().st_size:
            log.begin(setup.origin())
        if searcher.fit(stop, log):
            stop.at_once = searcher.processes.world == 1  # else the others would wait for this one
            try:
                if not (stop.at_once and stop.signal is not None):
                    return _finish(searcher, log)
            except KeyboardInterrupt:
                if stop.signal is None:
                    raise
            finally:
                stop.at_once = False
        p = searcher.position
        log.run.note(f"stopped and saved at step {p.global_step:,}; the same command resumes from there")
        return SearchResult(False, settings.out, seconds=p.total_seconds, signal=stop.signal)


def _kept_result(searcher: Searcher) -> SearchResult | None:
    """Return the result of a finished search; None if there is none, or anything about its end is new."""
    group, out = searcher.processes, searcher.settings.out
    if not searcher.trained:
        return None
    packed = None
    if group.main:  # it alone reads files
        packed = checkpoint.pack({"result": saved_result(out, searcher.setup.origin())})
    saved = checkpoint.unpack(group.broadcast(packed))["result"]
    return None if saved is None else SearchResult.from_dict(saved, out)


def _finish(searcher: Searcher, log: SearchLog) -> SearchResult:
    """Derive the model of a search that is at its end, write it down, and say what came out."""
    setup = searcher.setup
    extra = {"origin": setup.origin(), "date": time.strftime("%Y-%m-%d")}
    seconds = searcher.position.total_seconds
    result, metrics = settle_targets(searcher.evaluator, searcher.settings.out, extra, seconds=seconds)
    if searcher.processes.main:
        log.done(searcher, {**result.to_dict(), "judged_in": PRECISION})
        accuracy = f"top-1 {metrics.top1:.2f} % on {metrics.n:,} held-out images in {PRECISION}"
        for text in describe_result(result, setup.constraints, accuracy):
            log.run.note(text)
        if result.front:
            log.run.note(f"a model each for {len(result.front)} targets: see {FRONT_FILE} and {FRONT_TABLE}")
        log.run.event("done", top1=result.top1, seconds=result.seconds)
    searcher.processes.wait()
    return result


def _write_down(setup: SearchSetup, out: Path) -> None:
    """Write what another call needs to resume the search from its folder alone."""
    write_atomically(out / RECIPE_FILE, setup.recipe.to_toml().encode())
    write_atomically(out / SPACE_FILE, setup.space.to_toml().encode())
    # Whoever trains the derived model further asks for it: the images in it have trained no weights.
    held = "".join(f"{setup.held_out.name(i)}\n" for i in range(len(setup.held_out)))
    write_atomically(out / VALIDATION_FILE, held.encode())
    if setup.table is not None:
        setup.table.save(out / TABLE_FILE)
    if setup.source is not None:
        write_atomically(out / SOURCE_FILE, (json.dumps(setup.source) + "\n").encode())


def resume(folder: str | Path, settings: Settings | None = None, *, data: Any = None) -> SearchResult:
    """Resume a search from its folder alone.

    Args:
        folder: of the search.
        settings: where and how; its ``out`` has to be that folder. None takes the defaults.
        data: the images, where they are not where they were, or were an object.

    Raises:
        CheckpointError: there is no search in the folder.
        DataError and others: see :func:`~.run.search`.
    """
    # Whether to trust the table was decided when the search began.
    return search(**_written(Path(folder), data), out=settings or Settings(Path(folder)), force=True)


def derive(
    folder: str | Path,
    out: str | Path,
    *,
    target_ms: float | Sequence[float] | None = None,
    target_macs_m: float | Sequence[float] | None = None,
    target_params_m: float | Sequence[float] | None = None,
    data: Any = None,
    device: str = "auto",
) -> SearchResult:
    """Derive another model from a search, finished or not, for other targets; or several.

    With ``final_candidates`` in its recipe, models are evaluated for the new targets as at its end.

    Under ``torchrun`` the processes share the images, and the first one writes. (For a supernet in memory
    there is :func:`proxylessnas.search.derive`.)

    The alphas were learnt for the search's own target: a model for one far from it is a compromise.

    Args:
        folder: of the search.
        out: folder for the model's files.
        target_ms: most latency by the search's table. Where all targets are None, those of the search hold.
            Several, of the first target given, make a model each; see :func:`~.front.settle_targets`.
        target_macs_m: most multiply-accumulates, in millions.
        target_params_m: most parameters, in millions.
        data: as in :func:`resume`.
        device: see :class:`~proxylessnas.train.Settings`.

    Raises:
        CheckpointError: there is no search in the folder, or it has no sound checkpoint.
        DataError: no model meets the targets; or ``out`` holds something else.
    """
    folder, out = Path(folder), Path(out)
    given = _written(folder, data)
    targets = {"target_ms": target_ms, "target_macs_m": target_macs_m, "target_params_m": target_params_m}
    before = given["recipe"]
    if target_ms is not None and given["table"] is None:
        raise DataError(
            f"{folder}: the search had no latency table, so a model can be derived for "
            "multiply-accumulates and parameters only; for milliseconds search anew, with a table"
        )
    if any(target is not None for target in targets.values()):
        given["recipe"] = before.replace(**several_targets(targets))
    state, problems = checkpoint.newest(folder / "checkpoints")
    if state is None:
        raise CheckpointError(f"{folder}: has no checkpoint yet")
    setup = SearchSetup(**given, force=True)
    with processes(device) as group:
        if group.main and out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise DataError(f"{out}: is there already, and not an empty folder; choose another one")
        group.wait()  # nobody continues where the first process does not
        with contextlib.closing(Searcher(setup, Settings(folder, device=device), group)) as searcher:
            searcher.load_state_dict(state)
            step = state["position"]["global_step"]
            extra = {"derived_from": str(folder), "step": step, "problems": problems}
            _evaluate_for_targets(searcher, before)
            result, _ = settle_targets(searcher.evaluator, out, extra, searched=f"derived from {folder}")
        group.wait()
    return result


def _evaluate_for_targets(searcher: Searcher, before: SearchRecipe) -> None:
    """Evaluate what the end of the search would, for other targets than those of the recipe ``before``."""
    evaluator, recipe = searcher.evaluator, searcher.recipe
    if (recipe.targets, recipe.front) != (before.targets, before.front):
        evaluator.earlier = len(evaluator.evaluated)
    if recipe.learns and evaluator.due:
        if searcher.processes.main:
            tell(f"note: {evaluator.plan()}")
        evaluator.evaluate_all(StopRequest(), lambda: None, lambda: None)


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
    """Time a few real steps of a search and say what the whole would take; nothing is written or kept.

    Args: as of :func:`search`; of ``settings`` the folder is not touched.

    Raises:
        The same as a search, before its first step.
    """
    settings = settings or Settings(Path("."), console=False)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    setup = SearchSetup(space, data, recipe, table, force, limit)
    with (
        processes(settings.device) as group,
        dead_workers_as_data_error(),
        contextlib.closing(Searcher(setup, settings, group)) as searcher,
    ):
        return _timed(searcher)


def _timed(searcher: Searcher) -> DryRun:
    setup, model, schedule, recipe = searcher.setup, searcher.model, searcher.schedule, searcher.recipe
    model.train()
    weight, arch = [], []
    for number, batch in zip(range(_TRIED_STEPS), searcher.loader.epoch(0), strict=False):
        searcher.position.global_step = number  # candidates that take turns go by it
        model.set_path(searcher.next_path())
        weight.append(_seconds(searcher.weight_step, batch, number, 0.0))
    for number in range(_TRIED_STEPS if recipe.learns else 0):
        arch.append(_seconds(searcher.arch_update, number))
    evaluation_s = _seconds(lambda: searcher.evaluator.inherited(model.path, amp=True))
    weight_s, arch_s = statistics.median(weight), statistics.median(arch) if arch else None
    evaluations, ends = searcher.evaluator.due, recipe.epochs + 1 if recipe.learns else 1
    total = weight_s * schedule.total_steps + (arch_s or 0.0) * schedule.arch_steps()
    total += evaluation_s * (evaluations + ends)
    return DryRun(
        weight_s, arch_s, evaluation_s, schedule.total_steps, schedule.arch_steps(), evaluations, total,
        memory_mib(searcher.device), (len(setup.data.train), len(setup.held_out)),
        None if setup.table is None else setup.table.coverage(setup.space)[:2],
        (*setup.data.notes, *setup.notes, *setup.reach()),
    )  # fmt: skip


def _seconds(work: Callable[..., Any], *args: Any) -> float:
    start = time.perf_counter()
    work(*args)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def describe(folder: str | Path) -> dict[str, Any]:
    """Return how far a search is, and what it found: figures for people and programs.

    Raises:
        CheckpointError: there is no search in the folder.
    """
    folder = Path(folder)
    given = _written(folder, data="")
    recipe = given["recipe"]
    units = {"latency": "latency_ms", "macs": "macs_m", "params": "params_m"}
    found: dict[str, Any] = {
        "folder": str(folder),
        "algorithm": recipe.algorithm,
        "space": given["space"].name,
        "targets": {units[name]: limit for name, limit in recipe.targets.items()},
        **({} if recipe.front is None else {"front": list(recipe.front)}),
        "epochs": recipe.warmup_epochs + recipe.epochs,
        "warmup_epochs": recipe.warmup_epochs,
    }
    last = {str(row.get("event")): row for row in _rows(folder / LOG_FILE)}
    found |= {f"last_{name}": last[name] for name in ("arch", "epoch", "judged") if name in last}
    found["result"] = _read_json(folder / RESULT_FILE)
    found["finished"] = found["result"] is not None
    return found


def _rows(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a log; one that was cut short ends it."""
    rows = []
    with contextlib.suppress(OSError, ValueError), open_file(path) as file:
        for line in file:
            row = json.loads(line)
            if isinstance(row, dict):
                rows.append(row)
    return rows


def _read_json(path: Path) -> Any:
    """Return what a file holds; None if there is none."""
    try:
        return json.loads(read_bytes(path))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as e:
        raise CheckpointError(f"{path}: cannot be read ({e})") from e


def _written(folder: Path, data: Any) -> dict[str, Any]:
    """Return what a search was given, as :func:`search` takes it; images of one's own come first."""
    if not (folder / RECIPE_FILE).is_file() or not (folder / SPACE_FILE).is_file():
        raise CheckpointError(
            f"{folder}: holds no search ({RECIPE_FILE} and {SPACE_FILE} are expected in it)"
            + (": name the folder of one seed, such as seed-0" if (folder / SEEDS_FILE).is_file() else "")
        )
    source = _read_json(folder / SOURCE_FILE) or {}
    if not isinstance(source, dict):
        raise CheckpointError(f"{folder / SOURCE_FILE}: is no JSON object")
    data = source.get("data") if data is None else data
    if data is None:
        raise DataError(f"{folder}: the search's images were no folder and no data set by name: give them")
    table = folder / TABLE_FILE
    return {
        "space": read_space(folder / SPACE_FILE),
        "data": data,
        "recipe": read_search_recipe(folder / RECIPE_FILE),
        "table": table if table.exists() else None,
        "limit": source.get("limit"),
    }
