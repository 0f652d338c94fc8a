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
from .runs import LOG_FILE, Story, read_story

if TYPE_CHECKING:
    from ..data.transforms import Preprocessing
    from ..latency.table import LatencyTable
    from ..models.profile import Profile

#: Files of a run that hold its model, the best first.
_NETS = ("child.safetensors", "arch.txt", "model.safetensors")
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
    for file in _NETS:
        if (folder / file).is_file():
            return DrawnModel(name, read_arch(folder / file), folder)
    if not is_search(folder):
        raise DataError(
            f"{folder}: holds no run ({LOG_FILE}, or one of {', '.join(_NETS)}, is expected in it)"
        )
    story = read_story(folder)
    net = net_of(story, name)
    if net is None:
        raise DataError(f"{folder}: the search has no net yet: no epoch of it has ended after its warm-up")
    note = f"{folder}: the search has not ended; shown is the net that it would derive now"
    return DrawnModel(name, net, folder, (note,))


def net_of(story: Story, name: str) -> Arch | None:
    """Return the model that a search found, or would derive now; None before there is one."""
    picks = None
    if story.done is not None and isinstance(story.done.get("arch"), str):
        try:
            found = Arch.parse(story.done["arch"])
        except ArchError:
            found = None
        if isinstance(found, Arch):
            return found
    if story.done is not None and story.done.get("picks"):
        picks = story.done["picks"]
    elif story.epochs and story.epochs[-1].get("picks"):
        picks = story.epochs[-1]["picks"]
    elif story.judged:
        best = max(story.judged, key=lambda row: row.get("top1") or 0.0)
        picks = best.get("picks")
    elif story.moments:
        picks = story.moments[-1].picks
    if not picks:
        return None
    try:
        return story.space.arch([int(k) for k in picks], name)
    except (ArchError, TypeError, ValueError):
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
