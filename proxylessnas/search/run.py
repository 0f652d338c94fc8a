"""Search, resume, derive again: from a space, images and a target to a model that meets it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..arch.space import SearchSpace
from ..arch.spaces import read_space
from ..data.open import VALIDATION_FILE, class_counts
from ..errors import CheckpointError, DataError
from ..train import checkpoint
from ..train.batch_reader import dead_workers_as_data_error
from ..train.log_files import load_tensorboard
from ..train.run import held_folder
from ..train.settings import Settings
from ..utils.distributed import processes
from ..utils.files import open_file, read_bytes, write_atomically
from ..utils.signals import StopRequest
from .logger import LOG_FILE as LOG_FILE
from .logger import open_logs
from .recipe import SearchRecipe, read_search_recipe
from .result import RESULT_FILE, SearchResult, finish, settle
from .searcher import Searcher, restore, resume_search
from .setup import SearchSetup as SearchSetup

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
    """Search a space for a model that is accurate on these images within the recipe's targets.

    The folder ``out`` gets ``search.toml``, ``space.toml``, ``table.json``, ``checkpoints/``, ``log.jsonl``,
    ``search.jsonl`` and, at the end, ``arch.txt``, ``net.config``, ``child.safetensors`` and
    ``result.json``. Killed at any moment, the same call goes on from the last checkpoint; on a CPU the
    result is bitwise that of a search in one piece. Under ``torchrun`` all processes search together; with
    ``sync_bn`` in the recipe, they give what one process with the whole batch would.

    The model that is found is judged as users will run it: from its file's weights, in 32 bits, whatever the
    search computed in.

    Args:
        space: a space, the name of one ("imagenet", "small", "tiny"), or a TOML file. Its number of classes
            becomes that of the images.
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
    setup = SearchSetup(space, data, recipe, table, force, limit)
    if settings.tensorboard:
        load_tensorboard()
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    with processes(settings.device) as group, held_folder(settings.out, group):
        searcher = setup.searcher(settings, group)
        try:
            return _carry_out(setup, searcher)
        finally:
            searcher.release()


def _carry_out(setup: SearchSetup, searcher: Searcher) -> SearchResult:
    settings = searcher.settings
    counts = class_counts(setup.data.weights, setup.data.arch, "held-out")
    notes = [counts, *settings.notes(), *setup.data.notes, *setup.notes, *resume_search(searcher)]
    with open_logs(searcher) as log, StopRequest() as stop, dead_workers_as_data_error():
        if searcher.processes.main:
            _write_down(setup, searcher)
        for text in [*notes, *setup.reach()]:
            log.run.note(text)
        if searcher.processes.main and not (settings.out / LOG_FILE).stat().st_size:
            log.begin(setup.origin())
        if searcher.fit(stop, log):
            stop.at_once = searcher.processes.world == 1  # else the others would wait for this one
            try:
                if not (stop.at_once and stop.signal is not None):
                    return finish(setup, searcher, log)
            except KeyboardInterrupt:
                if stop.signal is None:
                    raise
            finally:
                stop.at_once = False
        p = searcher.position
        log.run.note(f"stopped and saved at step {p.global_step:,}; the same command goes on from there")
        return SearchResult(False, settings.out, seconds=p.total_seconds, signal=stop.signal)


def _write_down(setup: SearchSetup, searcher: Searcher) -> None:
    """Write what another call needs to go on with the search from its folder alone."""
    out = searcher.settings.out
    write_atomically(out / RECIPE_FILE, searcher.recipe.to_toml().encode())
    write_atomically(out / SPACE_FILE, setup.space.to_toml().encode())
    # What trains the derived model on asks for it: the architecture's images have trained no weights.
    held = "".join(f"{setup.data.arch.name(i)}\n" for i in range(len(setup.data.arch)))
    write_atomically(out / VALIDATION_FILE, held.encode())
    if setup.table is not None:
        setup.table.save(out / TABLE_FILE)
    if setup.source is not None:
        write_atomically(out / SOURCE_FILE, (json.dumps(setup.source) + "\n").encode())


def resume(folder: str | Path, settings: Settings | None = None, *, data: Any = None) -> SearchResult:
    """Go on with a search from its folder alone.

    Args:
        folder: of the search.
        settings: where and how; its ``out`` has to be that folder. None takes the defaults.
        data: the images, where they are not where they were, or were an object.

    Raises:
        CheckpointError: there is no search in the folder.
        DataError and others: see :func:`~.run.search`.
    """
    recipe, space, source = _parts(Path(folder))
    table = Path(folder) / TABLE_FILE
    return search(
        space,
        data if data is not None else _data_of(folder, source),
        recipe,
        out=settings or Settings(Path(folder)),
        table=table if table.exists() else None,
        force=True,  # whether to trust the table was decided when the search began
        limit=source.get("limit"),
    )


def derive(
    folder: str | Path,
    out: str | Path,
    *,
    target_ms: float | None = None,
    target_macs_m: float | None = None,
    target_params_m: float | None = None,
    data: Any = None,
    device: str = "auto",
) -> SearchResult:
    """Derive another model from a search, finished or not, for other targets.

    Under ``torchrun`` the processes share the images, and the first one writes. (For a supernet in memory
    there is :func:`proxylessnas.search.derive`.)

    The alphas were learnt for the search's own target: a model for one far from it is a compromise.

    Args:
        folder: of the search.
        out: folder for the model's files.
        target_ms: most latency by the search's table. Where all targets are None, those of the search hold.
        target_macs_m: most multiply-accumulates, in millions.
        target_params_m: most parameters, in millions.
        data: as in :func:`resume`.
        device: see :class:`~proxylessnas.train.Settings`.

    Raises:
        CheckpointError: there is no search in the folder, or it has no sound checkpoint.
        DataError: no model meets the targets; or ``out`` holds something else.
    """
    folder, out = Path(folder), Path(out)
    recipe, space, source = _parts(folder)
    targets = (target_ms, target_macs_m, target_params_m)
    if any(t is not None for t in targets):
        recipe = recipe.replace(
            target_ms=target_ms, target_macs_m=target_macs_m, target_params_m=target_params_m
        )
    state, problems = checkpoint.newest(folder / "checkpoints")
    if state is None:
        raise CheckpointError(f"{folder}: has no checkpoint yet")
    table_path = folder / TABLE_FILE
    given = data if data is not None else _data_of(folder, source)
    setup = SearchSetup(
        space, given, recipe, table_path if table_path.exists() else None, True, source.get("limit")
    )
    with processes(device) as group:
        if group.main and out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise DataError(f"{out}: is there already, and not an empty folder; choose another one")
        group.wait()  # nobody goes on where the first process does not
        searcher = setup.searcher(Settings(folder, device=device), group)
        try:
            restore(searcher, state)
            step = state["position"]["global_step"]
            extra = {"derived_from": str(folder), "step": step, "problems": problems}
            result, _ = settle(setup, searcher, out, extra, searched=f"derived from {folder}")
        finally:
            searcher.release()
        group.wait()
    return result


def describe(folder: str | Path) -> dict[str, Any]:
    """Return how far a search is, and what it found: figures for people and programs.

    Raises:
        CheckpointError: there is no search in the folder.
    """
    folder = Path(folder)
    recipe, space, _ = _parts(folder)
    found: dict[str, Any] = {
        "folder": str(folder),
        "algorithm": recipe.algorithm,
        "space": space.name,
        "targets": {
            name: value
            for name, value in (
                ("latency_ms", recipe.target_ms),
                ("macs_m", recipe.target_macs_m),
                ("params_m", recipe.target_params_m),
            )
            if value is not None
        },
        "epochs": recipe.warmup_epochs + recipe.epochs,
        "warmup_epochs": recipe.warmup_epochs,
    }
    last: dict[str, dict[str, Any]] = {}
    for row in _rows(folder / LOG_FILE):
        last[str(row.get("event"))] = row
    for name in ("arch", "epoch", "judged"):
        if name in last:
            found[f"last_{name}"] = last[name]
    result = folder / RESULT_FILE
    found["result"] = None
    if result.exists():
        try:
            found["result"] = json.loads(read_bytes(result))
        except (OSError, ValueError) as e:
            raise CheckpointError(f"{result}: cannot be read ({e})") from e
    found["finished"] = found["result"] is not None
    return found


def _rows(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a log; one that was cut short ends it."""
    rows = []
    try:
        with open_file(path) as file:
            for line in file:
                try:
                    row = json.loads(line)
                except ValueError:
                    break
                if isinstance(row, dict):
                    rows.append(row)
    except OSError:
        pass
    return rows


def _parts(folder: str | Path) -> tuple[SearchRecipe, SearchSpace, dict[str, Any]]:
    folder = Path(folder)
    if not (folder / RECIPE_FILE).is_file() or not (folder / SPACE_FILE).is_file():
        raise CheckpointError(
            f"{folder}: holds no search ({RECIPE_FILE} and {SPACE_FILE} are expected in it)"
        )
    source: dict[str, Any] = {}
    try:
        source = json.loads(read_bytes(folder / SOURCE_FILE))
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as e:
        raise CheckpointError(f"{folder / SOURCE_FILE}: cannot be read ({e})") from e
    if not isinstance(source, dict):
        raise CheckpointError(f"{folder / SOURCE_FILE}: is no JSON object")
    return read_search_recipe(folder / RECIPE_FILE), read_space(folder / SPACE_FILE), source


def _data_of(folder: str | Path, source: dict[str, Any]) -> str:
    data = source.get("data")
    if not isinstance(data, str):
        raise DataError(f"{folder}: the search's images were no folder and no data set by name: give them")
    return data
