"""Images in class folders: what is found, which class each folder is, and what was passed over.

To train on, folders are classes in sorted order. To evaluate, they are mapped to a model's outputs by what
they are called, not by their position: a validation set that holds only 50 of ImageNet's 1000 classes, or one
whose folders are numbers, would otherwise score near zero with nothing to tell why.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from ..errors import DataError
from ..utils.text import counted, some_of
from .categories import WNID, Classes, categories, class_places, leading_wnid, wnids
from .images import EXTENSIONS, HEIF_EXTENSIONS, UNREAD_EXTENSIONS, heif_is_read
from .sources import FileImages

# What systems keep beside a user's files: zip files of macOS; Synology's thumbnails; bins; ext4's own folder.
_SYSTEM = {
    "__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found",
    "thumbs.db", "desktop.ini",
}  # fmt: skip
# What a part of a data set is called, also "test1", "val2017", "train_images" or "Test Set".
_PART = re.compile(
    r"(?:(train|training)|val|valid|validation|dev|test|testing|eval|evaluation)"
    r"([-_ ]?(set|data|split|images?|pictures?|photos?))?[-_ ]?\d*",
    re.IGNORECASE,
)
_TRAIN = ("train", "training")
_VAL = ("val", "valid", "validation", "test")  # the first of them is taken
_LOOKED_FOR = "looked for *.jpg, *.png, *.webp, *.gif, *.tif, ..."


def entries(root: str) -> tuple[list[str], list[str]]:
    """Return the sorted folders and files in ``root``, without hidden ones.

    Raises:
        DataError: it is no folder, or cannot be read.
    """
    try:
        with os.scandir(root) as entries:
            kinds = [(e.name, e.is_dir()) for e in entries if not _is_hidden(e.name)]
    except FileNotFoundError as e:
        raise DataError(f"{root}: no such folder") from e
    except NotADirectoryError as e:
        raise DataError(f"{root}: is a file; a folder of images is expected") from e
    except PermissionError as e:
        raise DataError(f"{root}: permission denied") from e
    except (OSError, ValueError) as e:
        raise DataError(f"{root}: cannot be read ({getattr(e, 'strerror', None) or e})") from e
    return sorted(n for n, d in kinds if d), sorted(n for n, d in kinds if not d)


def is_image(name: str) -> bool:
    """Return whether a file is an image by its ending, be it of a kind that is read or not."""
    ending = _ending(name)
    return ending in EXTENSIONS or ending in UNREAD_EXTENSIONS


def images_below(top: str, others: Counter[str] | None = None) -> Iterator[str]:
    """Yield the images below a folder, sorted, as paths relative to it; links are followed, once.

    Args:
        top: the folder.
        others: counts, by ending, the files that are no images.
    """
    seen: set[str] = set()

    def failed(e: OSError) -> None:
        raise DataError(f"{e.filename}: cannot be read ({e.strerror})") from e

    for where, folders, files in os.walk(top, followlinks=True, onerror=failed):
        real = os.path.realpath(where)
        if real in seen:
            folders[:] = []
            continue
        seen.add(real)
        folders[:] = sorted(f for f in folders if not _is_hidden(f))
        inside = "" if where == top else os.path.relpath(where, top)
        for name in sorted(files):
            if _is_hidden(name):
                continue
            if is_image(name):
                yield os.path.join(inside, name)
            elif others is not None:
                others[_ending(name)] += 1


def _is_part(name: str) -> bool:
    """Return whether a folder is called like a part of a data set: train, test1, val2017, ..."""
    return _PART.fullmatch(name) is not None


def _ending(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _SYSTEM


class _ClassFolders:
    """What lies in a folder of class folders.

    Attributes:
        root: the folder.
        images: of each folder in it, sorted: the paths of its images, relative to it.
        full: the folders that hold images.
        strays: images beside the folders.

    Raises:
        DataError: it cannot be read; no folder holds an image; or one holds a training and another part, and
            not images of one kind.
    """

    def __init__(self, root: str) -> None:
        folders, self.files = entries(root)
        self.root, self.strays, self._others = root, list(filter(is_image, self.files)), Counter[str]()
        self.images = {name: self._below(name) for name in folders}
        self.full = [name for name, found in self.images.items() if found]
        if folders and not self.full:
            what = f"{root}: no images in its {counted(len(folders), 'folder')} ({_LOOKED_FOR})"
            only = f"; there are only {_by_ending(self._others)}"
            raise DataError(what + only if self._others else what)

    def _below(self, folder: str) -> list[str]:
        found = list(images_below(os.path.join(self.root, folder), self._others))
        inside = {name.split(os.sep)[0] for name in found if os.sep in name}
        parts = sorted(filter(_is_part, inside))
        training = [part for part in parts if _PART.fullmatch(part)[1]]  # type: ignore[index]
        if training and len(training) < len(parts):
            first, last = training[0], next(part for part in parts if part not in training)
            raise DataError(
                f"{os.path.join(self.root, folder)}: this class holds {some_of(parts)}, and what is in "
                f"{last} is not to be mixed with the rest; parts come first and classes in them: move it to "
                f"{os.path.join(self.root, first, folder)} and {os.path.join(self.root, last, folder)}"
            )
        return found

    def refuse_parts(self) -> None:
        """Refuse class folders all of which are called like parts of a data set."""
        if all(map(_is_part, self.full)):
            raise DataError(
                f"{self.root}: its folders ({some_of(self.full)}) are called like parts of a data set, and "
                "have no class folders in them; one folder of images for each class is expected, as in "
                f"{os.path.join(self.root, self.full[-1], 'cat')}"
            )

    def passed_over(self) -> list[str]:
        """Return notes of what was passed over, and of images of kinds that are not read."""
        notes = []
        empty = [name for name in self.images if name not in self.full]
        if empty:
            notes.append(f"{counted(len(empty), 'folder')} without images passed over: {some_of(empty)}")
        if self.strays:
            what = f"{counted(len(self.strays), 'image')} outside the class folders"
            notes.append(f"{what} passed over: {some_of(self.strays)}")
        if self._others:
            notes.append(f"files that are no images passed over: {_by_ending(self._others)}")
        not_read = UNREAD_EXTENSIONS - HEIF_EXTENSIONS if heif_is_read() else UNREAD_EXTENSIONS
        names = [_ending(name) for found in self.images.values() for name in found]
        unread = Counter(ending for ending in names if ending in not_read)
        if unread:
            remedy = ", or install pillow-heif" if HEIF_EXTENSIONS & set(unread) else ""
            notes.append(
                f"images of a kind that is not read, and so counted as unreadable: {_by_ending(unread)} "
                f"(convert them to JPEG or PNG{remedy})"
            )
        return notes


def _by_ending(counts: Mapping[str, int]) -> str:
    """Return counts by ending, the most first: "12 .txt, 1 without ending"."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return some_of([f"{n:,} {ending or 'without ending'}" for ending, n in ordered])


# ---- to train on


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
    only_parts = bool(folders) and all(map(_is_part, folders))
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
    return bool(classes.places(entries(root)[0]))


def folder_images(root: str, classes: Classes | None) -> tuple[FileImages, Classes, list[str]]:
    """Return the images of a folder of class folders, their classes, and what a user should know.

    Args:
        root: the folder.
        classes: what the folders have to be called; None takes the folders with images, sorted.

    Raises:
        DataError: no class folders, no images in them, or a folder that is none of the classes.
    """
    found = _ClassFolders(root)
    if not found.images:
        what = f"no images ({_LOOKED_FOR})" if found.files else "the folder is empty"
        if found.strays:
            what = f"{counted(len(found.strays), 'image')} but no class folders"
        raise DataError(f"{root}: {what}; one folder of images for each class is expected")
    notes = []
    if classes is None:
        found.refuse_parts()
        odd = list(filter(_is_part, found.full))
        if odd:
            notes.append(f"taken as a class, though called like a part of a data set: {some_of(odd)}")
        classes = Classes.of_folders(found.full)
        label_of = {name: i for i, name in enumerate(found.full)}
    else:
        label_of = classes.places(found.full)
        odd = [name for name in found.full if name not in label_of]
        if odd:
            raise DataError(
                f"{root}: {counted(len(odd), 'folder')} not called like one of the {len(classes.names)} "
                f"classes: {some_of(odd)}; the classes are {some_of(classes.names)}"
            )
    names = [os.path.join(folder, name) for folder in found.full for name in found.images[folder]]
    labels = [label_of[folder] for folder in found.full for _ in found.images[folder]]
    sizes = torch.tensor([_size(os.path.join(root, name)) for name in names])
    notes = [f"{root}: {note}" for note in [*notes, *found.passed_over()]]
    return FileImages(root, names, labels, sizes), classes, notes


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:  # a link to nowhere: reading it will tell
        return -1


# ---- to evaluate a model on


@dataclass(frozen=True)
class LabelledImages:
    """Images with their class index.

    Attributes:
        samples: (path, class index), sorted by folder and file name.
        labels_from: how labels were found: "wnid", "name", "number", "position" or "wnid in file name".
        classes: how many different classes have images.
        notes: what a user should know, one line each (empty folders, labels by position, files passed over).
    """

    samples: tuple[tuple[str, int], ...]
    labels_from: str
    classes: int
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.samples)

    def limit(self, n: int) -> LabelledImages:
        """Return ``n`` images spread evenly over all (or all, if there are fewer); always the same ones."""
        if n < 1:
            raise ValueError(f"limit must be at least 1, not {n}")
        total = len(self.samples)
        if n >= total:
            return self
        samples = tuple(self.samples[i * total // n] for i in range(n))
        return LabelledImages(samples, self.labels_from, len({label for _, label in samples}), self.notes)


def labelled_images(
    folder: str | os.PathLike[str],
    num_classes: int,
    dataset: str | None = None,
    *,
    names: Sequence[str] = (),
    labels: str | None = None,
) -> LabelledImages:
    """Find the images of a folder and their labels.

    Sub-folders are classes. They are matched by wnid (``n01440764``, also with more behind it), else by class
    name (case, underscores and hyphens do not matter), else by number (``10`` is class 10), else, when there
    are as many folders as classes, by sorted position (with a note). Without sub-folders each file name must
    hold a wnid. Hidden files are passed over; files that are not images by their ending are counted in a
    note. Images of a kind that is not read (HEIC, raw, ...) are there, to fail when they are read.

    Args:
        folder: where to look.
        num_classes: number of the model's outputs.
        dataset: "imagenet" or "cifar10", whose classes the outputs are; None if not known.
        names: the classes' own names, in output order, where there is no such data set.
        labels: "number" or "position" settles how the folders are read; None finds out.

    Raises:
        DataError: no such folder, no images in it, or a label cannot be found; names what is odd.
    """
    root = os.fspath(folder)
    found = _ClassFolders(root)
    if not found.images:
        return _flat(found, num_classes, dataset)
    folders = list(found.images)
    try:
        how, label_of = _folder_labels(root, folders, num_classes, dataset, names, labels)
    except DataError:
        if len(found.full) == len(folders):
            raise
        # "lost+found", "logs" and the like hold no images and are no classes.
        how, label_of = _folder_labels(root, found.full, num_classes, dataset, names, labels)
    samples = tuple(
        (os.path.join(root, name, path), label_of[name]) for name in found.full for path in found.images[name]
    )
    notes = []
    if how == "position" and labels is None:
        found.refuse_parts()
        notes.append(
            f"the names of the {len(folders)} folders of {root} are not known to the model: "
            f"taken as classes 0 to {num_classes - 1} in sorted order ({folders[0]} = 0)"
        )
    notes += found.passed_over()
    return LabelledImages(samples, how, len({label for _, label in samples}), tuple(notes))


def _flat(found: _ClassFolders, num_classes: int, dataset: str | None) -> LabelledImages:
    root, images = found.root, found.strays
    if not images:
        files = len(found.files)
        what = f"none of its {counted(files, 'file')} is an image" if files else "the folder is empty"
        raise DataError(f"{root}: {what} ({_LOOKED_FOR})")
    if num_classes != 1000 or dataset not in (None, "imagenet"):
        raise DataError(
            f"{root}: no class folders in it; one folder for each of the {num_classes} classes is expected"
        )
    where = "no class folders, so each file name must hold a wnid such as n01440764"
    wnid_of = {name: WNID.findall(name)[-1:] for name in images}
    odd = [name for name in images if not wnid_of[name]]
    if odd:
        raise DataError(f"{root}: {where}; {counted(len(odd), 'name')} without one: {some_of(odd)}")
    index = {wnid: i for i, wnid in enumerate(wnids("imagenet"))}
    odd = [name for name in images if wnid_of[name][0] not in index]
    if odd:
        raise DataError(f"{root}: {where}; not one of the 1000 ImageNet classes: {some_of(odd)}")
    samples = tuple((os.path.join(root, name), index[wnid_of[name][0]]) for name in images)
    return LabelledImages(samples, "wnid in file name", len({label for _, label in samples}))


def _folder_labels(
    root: str,
    folders: list[str],
    num_classes: int,
    dataset: str | None,
    names: Sequence[str],
    asked: str | None,
) -> tuple[str, dict[str, int]]:
    """Return how labels are found, and the class index of each folder name."""
    by_position = {name: i for i, name in enumerate(folders)}
    if asked == "position":
        if len(folders) != num_classes:
            raise DataError(
                f"{root}: {counted(len(folders), 'folder')}, but the model has {num_classes} classes"
            )
        return "position", by_position
    by_wnid, known_names = _known_classes(num_classes, dataset, names)
    readings = {
        "wnid": {name: by_wnid.get(wnid, -1) for name in folders if by_wnid and (wnid := leading_wnid(name))},
        "name": class_places(folders, known_names),
        "number": {name: int(name) for name in folders if re.fullmatch(r"[0-9]{1,9}", name)},
    }
    how, labels = max(readings.items(), key=lambda item: len(item[1]))
    if asked == "number":
        how, labels = "number", readings["number"]
    odd = [name for name in folders if name not in labels]
    wrong = [name for name, label in labels.items() if not 0 <= label < num_classes]
    known = dataset is not None or bool(names)
    if not odd and not wrong:
        if how == "number" and not (asked or known) and len(folders) == num_classes and labels != by_position:
            first = next(name for name in folders if labels[name] != by_position[name])
            raise DataError(
                f"{root}: folder {first!r} is class {labels[first]} by number, but {by_position[first]} in "
                "sorted order (as ImageFolder has it); say which: --labels number or --labels position"
            )
        return how, labels
    # A folder or two that is understood may be chance, unless it is known what the classes are.
    if len(folders) == num_classes and asked is None and (not known or not labels):
        return "position", by_position
    if not labels:
        raise DataError(_no_labels(root, folders, num_classes, bool(by_wnid), bool(known_names)))
    if odd:
        kind = {"wnid": "a wnid", "name": "a class name", "number": "a number"}[how]
        raise DataError(
            f"{root}: {counted(len(odd), 'folder')} not named by {kind} as the others are: {some_of(odd)}"
        )
    same_name = "two classes have this name, use their wnids as folder names"
    why = {
        "wnid": "wnids that are not among the model's classes",
        "name": same_name if by_wnid else "two classes, or two folders, have this name",
        "number": f"folder names are class numbers, 0 to {num_classes - 1}; too large",
    }[how]
    raise DataError(f"{root}: {why}: {some_of(wrong)}")


def _known_classes(
    num_classes: int, dataset: str | None, names: Sequence[str]
) -> tuple[dict[str, int], Sequence[str]]:
    """Return the class index by wnid, and the classes' names."""
    if names and dataset is None:
        return {}, names
    if dataset is None:  # the usual meaning of so many outputs; used only where all names really match
        dataset = {1000: "imagenet", 10: "cifar10"}.get(num_classes)
    if dataset is None or len(categories(dataset)) != num_classes:
        return {}, ()
    return {wnid: i for i, wnid in enumerate(wnids(dataset))}, categories(dataset)


def _no_labels(root: str, folders: list[str], num_classes: int, by_wnid: bool, by_name: bool) -> str:
    kinds = (
        ["wnids"] * by_wnid + ["class names"] * by_name + ["class numbers", f"exactly {num_classes} folders"]
    )
    splits = [name for name in folders if _is_part(name)]
    hint = f" (give one of the splits, such as {os.path.join(root, splits[-1])}?)" if splits else ""
    return (
        f"{root}: its {counted(len(folders), 'folder')} ({some_of(folders)}) cannot be matched to the "
        f"model's {num_classes} classes; expected are {', '.join(kinds[:-1])} or {kinds[-1]}{hint}"
    )
