"""Names of classes: those of ImageNet and CIFAR-10, shipped with the package, and those of a data set.

ImageNet classes also have a WordNet id ("wnid", such as ``n01440764``), the only unique name: two classes are
called "crane" and two "maillot".
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import DataError, shown
from ..utils.paths import ASSETS

#: Data sets whose classes are known.
DATASETS = ("imagenet", "cifar10")

_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_IMAGENET_FILE = ASSETS / "imagenet_classes.tsv"
# A wnid alone ("n01440764"), or with more around it ("n01440764-tench", "0000_n01440764_tench.jpg").
WNID = re.compile(r"(?<![0-9A-Za-z])n\d{8}(?!\d)")


def categories(dataset: str = "imagenet") -> tuple[str, ...]:
    """Return the class names of a data set, in the order of a model's outputs.

    Args:
        dataset: ``"imagenet"`` (1000 names) or ``"cifar10"`` (10).

    Raises:
        ValueError: the data set is not one of these.
    """
    return tuple(name for _, name in _table(dataset))


def wnids(dataset: str = "imagenet") -> tuple[str, ...]:
    """Return the WordNet ids of a data set's classes, in output order; empty for ``"cifar10"``.

    Raises:
        ValueError: the data set is not known.
    """
    return tuple(wnid for wnid, _ in _table(dataset) if wnid)


def unique(names: Sequence[str], wnids: Sequence[str] = ()) -> tuple[str, ...]:
    """Return class names made unique: "crane (n02012849)", or with the number where there are no wnids."""
    seen = Counter(name.lower() for name in names)
    marks = wnids or [str(i) for i in range(len(names))]
    return tuple(
        f"{name} ({mark})" if seen[name.lower()] > 1 else name
        for name, mark in zip(names, marks, strict=True)
    )


def simplify(name: str) -> str:
    """Return a class name without case, underscores and hyphens; see :func:`class_places`."""
    return re.sub(r"[\s_\-]+", " ", name).strip().lower()


def class_places(wanted: Sequence[str], names: Sequence[str]) -> dict[str, int]:
    """Return which class each wanted name is: its place among ``names``, or -1 where it may be several.

    A name is looked for as it is written, and only if it is not there in its simplified form, which has to be
    that of one class and of one wanted name: of folders "Cat" and "cat" one is no guess at the other. Names
    that are no class's are left out.
    """
    exact, loose = _places(names), _places([simplify(name) for name in names])
    found = {name: exact[name] for name in wanted if name in exact}
    rest = {name: loose[simplify(name)] for name in wanted if name not in found and simplify(name) in loose}
    taken = Counter([*found.values(), *rest.values()])
    return found | {name: place if taken[place] == 1 else -1 for name, place in rest.items()}


def _places(names: Sequence[str]) -> dict[str, int]:
    """Return the place of each name, -1 for one that is there more than once."""
    counts = Counter(names)
    return {name: i if counts[name] == 1 else -1 for i, name in enumerate(names)}


def leading_wnid(name: str) -> str | None:
    """Return the wnid that a folder's name begins with, as in ``n01440764-tench``."""
    found = WNID.match(name)
    return found.group() if found else None


@dataclass(frozen=True)
class Classes:
    """What the classes of a data set are called.

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
        table = dict(_table("imagenet"))
        ids = tuple(leading_wnid(folder) or "" for folder in folders)
        if len(set(ids)) == len(folders) and all(wnid in table for wnid in ids):
            return cls(tuple(table[wnid] for wnid in ids), ids)
        return cls(tuple(folders))

    def places(self, folders: Sequence[str]) -> dict[str, int]:
        """Return the label of each folder that is called like a class (or its wnid); others are left out."""
        table = dict(_table("imagenet"))
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


@functools.cache
def _table(dataset: str) -> tuple[tuple[str, str], ...]:
    """Return (wnid, name) for each class."""
    if dataset == "cifar10":
        return tuple(("", name) for name in _CIFAR10)
    if dataset != "imagenet":
        raise ValueError(f"no class names are known for data set {dataset!r}; known: {', '.join(DATASETS)}")
    rows: list[tuple[str, str]] = []
    with _IMAGENET_FILE.open(encoding="utf-8") as file:
        for line in file:
            if not line.startswith("#"):
                index, wnid, name = line.rstrip("\n").split("\t")
                if int(index) != len(rows):
                    raise ValueError(f"{_IMAGENET_FILE}: class {index} is out of order")
                rows.append((wnid, name))
    return tuple(rows)
