"""Opens what is drawn: a model of the zoo, a file, or the folder of a run."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..arch.arch import Arch
from ..arch.tree import TreeArch
from ..errors import ArchError, DataError, short_name
from ..models.resolve import read_arch, resolve
from .runs import LOG_FILE, SearchRun, read_run

if TYPE_CHECKING:
    from ..data.transforms import Preprocessing
    from ..latency.table import LatencyTable
    from ..models.profile import Profile

#: Files of a run that hold its model, the best first.
_MODELS = ("child.safetensors", "arch.txt", "model.safetensors")
TABLE_FILE = "table.json"  # a search's, as search.run writes it; importing that would import the trainer


@dataclass(frozen=True)
class DrawnModel:
    """A model to look at.

    Attributes:
        name: of the model, or of the run's folder.
        arch: what is drawn.
        folder: of the run that it is from; None for a model of the zoo or a file.
        notes: what should be said about it.
    """

    name: str
    arch: Arch | TreeArch
    folder: Path | None = None
    notes: tuple[str, ...] = ()


def open_subject(word: str | os.PathLike[str]) -> DrawnModel:
    """Return the model that a word names.

    Args:
        word: a model of the zoo; a file with an architecture or with weights and one; or the folder of a
            search or a training. Of a search that has not ended it is the model that would be derived.

    Raises:
        UnknownModelError, ArchError, DataError: there is none; the message says what was looked for.
    """
    if Path(word).is_dir():
        return _of_folder(Path(word))
    found = resolve(word)
    return DrawnModel(found.name, found.arch)


def is_search(folder: str | os.PathLike[str]) -> bool:
    """Return whether a folder is that of a search."""
    return (Path(folder) / LOG_FILE).is_file()


def _of_folder(folder: Path) -> DrawnModel:
    name = short_name(folder.resolve().name, "run")
    for file in _MODELS:
        if (folder / file).is_file():
            return DrawnModel(name, read_arch(folder / file), folder)
    if not is_search(folder):
        raise DataError(
            f"{folder}: holds no run ({LOG_FILE}, or one of {', '.join(_MODELS)}, is expected in it)"
        )
    run = read_run(folder)
    model = model_of(run, name)
    if model is None:
        raise DataError(f"{folder}: the search has no model yet: no epoch of it has ended after its warm-up")
    note = f"{folder}: the search has not ended; shown is the model that it would derive now"
    return DrawnModel(name, model, folder, (note,))


def model_of(run: SearchRun, name: str) -> Arch | None:
    """Return the model that a search found, or would derive now; None before there is one."""
    done = run.done or {}
    if "arch" in done:
        try:
            found = Arch.parse(done["arch"])
        except ArchError:
            found = None
        if isinstance(found, Arch):
            return found
    best = max(run.evaluated, key=lambda row: row.get("top1") or 0.0, default={})
    rows = [row for row in (done, *run.epochs[-1:], best) if row.get("picks")]
    choices = rows[0]["picks"] if rows else run.snapshots[-1].choices if run.snapshots else []
    try:
        return run.space.arch(choices, name) if choices else None
    except (ArchError, ValueError):
        return None


def table_of(folder: Path) -> LatencyTable | None:
    """Return the latency table of a search; None where it had none.

    Raises:
        LatencyError: it cannot be read.
    """
    from ..latency.table import LatencyTable

    path = folder / TABLE_FILE
    return LatencyTable.load(path) if path.is_file() else None


def profile_of(arch: Arch | TreeArch, preprocessing: Preprocessing | None = None) -> Profile:
    """Return parameters and multiply-accumulates of a model at its own size, without its weights.

    Args:
        arch: the model's.
        preprocessing: of its images, whose size counts then; None takes the architecture's.
    """
    import torch

    from ..models.factory import create_model
    from ..models.profile import profile

    with torch.device("meta"):  # sizes only: a file may ask for any amount of memory
        model = create_model(arch)
    model.preprocessing = preprocessing or model.preprocessing
    return profile(model)
