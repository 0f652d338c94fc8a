"""Pictures in class folders: which classes there are, and where the training and validation parts lie."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..categories import categories as known_categories
from ..categories import simplify
from ..categories import wnids as known_wnids
from ..datasets import counted, endings, entries, is_picture, leading_wnid, pictures_below, some_of
from ..errors import DataError
from .pictures import FilePictures

_TRAIN = ("train", "training")
_VAL = ("val", "valid", "validation", "test")  # the first of them is taken
_PARTS = {*_TRAIN, *_VAL, "testing"}


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
    def of_folders(cls, folders: Sequence[str]) -> Classes:
        """Return the classes that folders stand for, in their order; ImageNet's wnids get their names."""
        table = dict(zip(known_wnids(), known_categories(), strict=True))
        wnids = tuple(leading_wnid(folder) or "" for folder in folders)
        if len(set(wnids)) == len(folders) and all(wnid in table for wnid in wnids):
            return cls(tuple(table[wnid] for wnid in wnids), wnids)
        return cls(tuple(folders))

    def places(self, folders: Sequence[str]) -> dict[str, int]:
        """Return the label of each folder that is called like a class (or its wnid); others are left out."""
        table = dict(zip(known_wnids(), known_categories(), strict=True))
        by_name: dict[str, int] = {}
        for i, name in enumerate(self.names):
            by_name[simplify(name)] = -1 if simplify(name) in by_name else i  # -1: "crane" is two classes
        by_name.update({name: i for i, name in enumerate(self.names) if self.names.count(name) == 1})
        by_wnid = {wnid: i for i, wnid in enumerate(self.wnids)}
        found = {}
        for folder in folders:
            wnid = leading_wnid(folder) or ""
            label = by_wnid.get(wnid, by_name.get(folder, by_name.get(simplify(folder), -1)))
            if label < 0 and not self.wnids:
                label = by_name.get(simplify(table.get(wnid, "")), -1)
            if label >= 0:
                found[folder] = label
        return found


def parts_of(root: str) -> tuple[str, str | None]:
    """Return the folder of the training part, and that of the validation part if there is one.

    A folder called "train" is a part if its neighbours are parts too, or if it holds folders and no pictures;
    otherwise it may be a class (of vehicles, say).

    Raises:
        DataError: no such folder, or parts without a training part.
    """
    folders, _ = entries(root)
    by_name = {name.lower(): name for name in reversed(folders)}
    train = next((by_name[name] for name in _TRAIN if name in by_name), None)
    only_parts = bool(folders) and set(by_name) <= _PARTS
    if train is None:
        if only_parts:
            raise DataError(
                f"{root}: holds {some_of(folders)}, but no folder called train; for class folders without "
                "parts give the folder that holds them"
            )
        return root, None
    inside, files = entries(os.path.join(root, train))
    if not only_parts and (not inside or any(map(is_picture, files))):
        return root, None
    val = next((by_name[name] for name in _VAL if name in by_name), None)
    return os.path.join(root, train), None if val is None else os.path.join(root, val)


def folder_pictures(root: str, classes: Classes | None) -> tuple[FilePictures, Classes, list[str]]:
    """Return the pictures of a folder of class folders, their classes, and what a user should know.

    Args:
        root: the folder.
        classes: what the folders have to be called; None takes the folders with pictures, sorted.

    Raises:
        DataError: no class folders, no pictures in them, or a folder that is none of the classes.
    """
    folders, files = entries(root)
    strays = [name for name in files if is_picture(name)]
    if not folders:
        if strays:
            what = f"{counted(len(strays), 'picture')} but no class folders"
        else:
            what = f"no pictures (looked for {endings()})" if files else "the folder is empty"
        raise DataError(f"{root}: {what}; one folder of pictures for each class is expected")
    found = {name: list(pictures_below(os.path.join(root, name))) for name in folders}
    full = [name for name in folders if found[name]]
    if not full:
        raise DataError(
            f"{root}: no pictures in its {counted(len(folders), 'folder')} (looked for {endings()})"
        )

    notes = []
    if classes is None:
        classes = Classes.of_folders(full)
        label_of = {name: i for i, name in enumerate(full)}
    else:
        label_of = classes.places(full)
        odd = [name for name in full if name not in label_of]
        if odd:
            known = counted(len(classes.names), "class", "classes")
            raise DataError(
                f"{root}: {counted(len(odd), 'folder')} not among the {known} known: {some_of(odd)}; "
                f"known are {some_of(classes.names)}"
            )
    empty = [name for name in folders if not found[name]]
    if empty:
        notes.append(
            f"{root}: {counted(len(empty), 'folder')} without pictures passed over: {some_of(empty)}"
        )
    if strays:
        notes.append(
            f"{root}: {counted(len(strays), 'picture')} outside the class folders passed over: {some_of(strays)}"
        )
    names = [os.path.join(folder, name) for folder in full for name in found[folder]]
    labels = [label_of[folder] for folder in full for _ in found[folder]]
    sizes = torch.tensor([_size(os.path.join(root, name)) for name in names])
    return FilePictures(root, names, labels, sizes), classes, notes


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:  # a link to nowhere: reading it will tell
        return -1
