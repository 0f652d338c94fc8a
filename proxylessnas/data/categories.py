"""Names of the classes that the zoo's models tell apart, shipped with the package.

ImageNet classes also have a WordNet id ("wnid", such as ``n01440764``), the only unique name: two classes are
called "crane" and two "maillot".
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Sequence

from ..utils.paths import ASSETS

#: Data sets whose classes are known.
DATASETS = ("imagenet", "cifar10")

_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_IMAGENET_FILE = ASSETS / "imagenet_classes.tsv"


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
    exact = {name: i for i, name in enumerate(names)}
    exact.update({name: -1 for name, count in Counter(names).items() if count > 1})
    forms = [simplify(name) for name in names]
    loose = {form: i for i, form in enumerate(forms)}
    loose.update({form: -1 for form, count in Counter(forms).items() if count > 1})
    found = {name: exact[name] for name in wanted if name in exact}
    taken = Counter(found.values())
    rest = {name: loose[simplify(name)] for name in wanted if name not in found and simplify(name) in loose}
    taken.update(rest.values())
    return found | {name: place if taken[place] == 1 else -1 for name, place in rest.items()}


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
