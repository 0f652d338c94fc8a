"""Images in class folders: classes, training and validation parts, and which images were held out."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path, PurePath

import torch

from ..errors import DataError
from ..utils.files import read_bytes
from .folders import (  # fmt: skip
    below,
    counted,
    endings,
    entries,
    is_image,
    is_part,
    kind_notes,
    no_images,
    refuse_parts,
    some_of,
)
from .sources import Classes, Data, FileImages

_TRAIN = ("train", "training")
_VAL = ("val", "valid", "validation", "test")  # the first of them is taken


def parts_of(root: str) -> tuple[str, str | None]:
    """Return the folder of the training part, and that of the validation part if there is one.

    A folder called "train" is a part if its neighbours are parts too, or if it holds folders and no images;
    otherwise it may be a class (of vehicles, say).

    Raises:
        DataError: no such folder, or parts without a training part.
    """
    folders, _ = entries(root)
    by_name = {name.lower(): name for name in reversed(folders)}
    train = next((by_name[name] for name in _TRAIN if name in by_name), None)
    only_parts = bool(folders) and all(map(is_part, folders))
    if train is None:
        if only_parts:
            raise DataError(
                f"{root}: holds {some_of(folders)}, but no folder called train; for class folders without "
                "parts give the folder that holds them"
            )
        return root, None
    inside, files = entries(os.path.join(root, train))
    if not only_parts and (not inside or any(map(is_image, files))):
        return root, None
    val = next((by_name[name] for name in _VAL if name in by_name), None)
    return os.path.join(root, train), None if val is None else os.path.join(root, val)


def has_classes(root: str, classes: Classes) -> bool:
    """Return whether a part has a folder for any of the classes; a test part may be a pile of files."""
    folders, _ = entries(root)
    return bool(classes.places(folders))


def folder_images(root: str, classes: Classes | None) -> tuple[FileImages, Classes, list[str]]:
    """Return the images of a folder of class folders, their classes, and what a user should know.

    Args:
        root: the folder.
        classes: what the folders have to be called; None takes the folders with images, sorted.

    Raises:
        DataError: no class folders, no images in them, or a folder that is none of the classes.
    """
    folders, files = entries(root)
    strays = [name for name in files if is_image(name)]
    if not folders:
        if strays:
            what = f"{counted(len(strays), 'image')} but no class folders"
        else:
            what = f"no images (looked for {endings()})" if files else "the folder is empty"
        raise DataError(f"{root}: {what}; one folder of images for each class is expected")
    others: Counter[str] = Counter()
    found = dict(below(root, folders, others))
    full = [name for name in folders if found[name]]
    if not full:
        raise DataError(no_images(root, folders, others))

    notes = []
    if classes is None:
        refuse_parts(root, full)
        odd = list(filter(is_part, full))
        if odd:
            notes.append(f"{root}: taken as a class, though called like a part of a data set: {some_of(odd)}")
        classes = Classes.of_folders(full)
        label_of = {name: i for i, name in enumerate(full)}
    else:
        label_of = classes.places(full)
        odd = [name for name in full if name not in label_of]
        if odd:
            raise DataError(
                f"{root}: {counted(len(odd), 'folder')} not called like one of the {len(classes.names)} "
                f"classes: {some_of(odd)}; the classes are {some_of(classes.names)}"
            )
    empty = [name for name in folders if not found[name]]
    if empty:
        what = f"{counted(len(empty), 'folder')} without images"
        notes.append(f"{root}: {what} passed over: {some_of(empty)}")
    if strays:
        what = f"{counted(len(strays), 'image')} outside the class folders"
        notes.append(f"{root}: {what} passed over: {some_of(strays)}")
    names = [os.path.join(folder, name) for folder in full for name in found[folder]]
    notes += [f"{root}: {note}" for note in kind_notes(names, others)]
    labels = [label_of[folder] for folder in full for _ in found[folder]]
    sizes = torch.tensor([_size(os.path.join(root, name)) for name in names])
    return FileImages(root, names, labels, sizes), classes, notes


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:  # a link to nowhere: reading it will tell
        return -1


VALIDATION_FILE = "validation.txt"  # of a run: the names of the images it validated on


def validation_names(data: Data) -> list[str]:
    """Return the names of the validation images, [] without any."""
    return [] if data.val is None else [data.val.name(i) for i in range(len(data.val))]


def not_held_out_before(source: str | os.PathLike[str], data: Data) -> int | None:
    """Return how many of the images held out here the run of a trained file did not hold out.

    It may have trained on these, if it had them. More images, or another seed, hold out others.

    Args:
        source: the file, in the folder of its run.
        data: with a part that is held out.

    Returns:
        None where no record lies beside the file.
    """
    path = Path(source)
    if not path.is_file():  # the name of a model
        return None
    try:
        earlier = read_bytes(path.with_name(VALIDATION_FILE)).decode().splitlines()
    except (OSError, ValueError):
        return None
    return len({_short(name) for name in validation_names(data)}.difference(map(_short, earlier)))


def _short(name: str) -> tuple[str, ...]:
    """Return an image's class folder and file: the same folder of images can be written in many ways."""
    return PurePath(name).parts[-2:]
