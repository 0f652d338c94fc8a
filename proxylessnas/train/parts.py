"""The classes of some training data, and the parts it comes in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..categories import categories, class_places, wnids
from ..datasets import leading_wnid
from ..errors import DataError, shown
from .pictures import Source


@dataclass(frozen=True)
class Classes:
    """What the classes are called.

    Attributes:
        names: in the order of the labels.
        wnids: WordNet ids in the same order, or ().
    """

    names: tuple[str, ...]
    wnids: tuple[str, ...] = ()

    @classmethod
    def listed(cls, names: Sequence[str]) -> Classes:
        """Return the classes of a list of names given by a user.

        Raises:
            DataError: it is something else.
        """
        if isinstance(names, str) or not all(isinstance(name, str) for name in names):
            raise DataError(f"categories is {shown(names)}; a list of class names is expected")
        return cls(tuple(names), wnids() if tuple(names) == categories() else ())

    @classmethod
    def of_folders(cls, folders: Sequence[str]) -> Classes:
        """Return the classes that folders stand for, in their order; ImageNet's wnids get their names."""
        table = _imagenet()
        ids = tuple(leading_wnid(folder) or "" for folder in folders)
        if len(set(ids)) == len(folders) and all(wnid in table for wnid in ids):
            return cls(tuple(table[wnid] for wnid in ids), ids)
        return cls(tuple(folders))

    def places(self, folders: Sequence[str]) -> dict[str, int]:
        """Return the label of each folder that is called like a class (or its wnid); others are left out."""
        table = _imagenet()
        by_wnid = {wnid: i for i, wnid in enumerate(self.wnids)}
        wnid_of = {folder: leading_wnid(folder) or "" for folder in folders}
        found = {folder: by_wnid[wnid] for folder, wnid in wnid_of.items() if wnid in by_wnid}
        by_name = class_places([folder for folder in folders if folder not in found], self.names)
        if not self.wnids:  # a folder of ImageNet's for a class that goes by its name
            meant = {folder: table[wnid] for folder, wnid in wnid_of.items() if wnid in table}
            places = class_places(list(meant.values()), self.names)
            by_name = {folder: places[name] for folder, name in meant.items() if name in places} | by_name
        found.update({folder: place for folder, place in by_name.items() if place >= 0})
        return found


@dataclass
class Parts:
    """What a source holds, before anything is held out or left out.

    Attributes:
        name: what to call it.
        train: pictures to train on.
        val: pictures to validate on, if it has such a part.
        classes: of both.
        mean, std: per channel on a scale of 0 to 1, where they are known.
        notes: what a user should know, one line each.
    """

    name: str
    train: Source
    val: Source | None
    classes: Classes
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    notes: list[str] = field(default_factory=list)


def _imagenet() -> dict[str, str]:
    """Return the class name of each of ImageNet's wnids."""
    return dict(zip(wnids(), categories(), strict=True))
