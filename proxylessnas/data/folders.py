"""Find images in folders, labelled or not, and say how each label was found and what was passed over.

Class folders are mapped to a model's outputs by what they are called, not by their position: a validation set
that holds only 50 of ImageNet's 1000 classes, or one whose folders are numbers, would otherwise score near
zero with nothing to tell why.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import DataError, ImageError
from .categories import categories, class_places, wnids
from .images import EXTENSIONS, HEIF_EXTENSIONS, UNREAD_EXTENSIONS, heif_is_read, load_image

# What systems keep beside a user's files: zip files of macOS; Synology's thumbnails; bins; ext4's own folder.
_SYSTEM = {
    "__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found",
    "thumbs.db", "desktop.ini",
}  # fmt: skip
# What a part of a data set is called, also "test1", "val2017", "train_images" or "Test Set".
_PART = re.compile(
    r"(?:(train|training)|val|valid|validation|dev|test|testing|eval|evaluation)"
    r"([-_ ]?(set|data|split|images?|images?|photos?))?[-_ ]?\d*",
    re.IGNORECASE,
)
_SHOWN = 5  # at most so many odd names in a message


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


def is_part(name: str) -> bool:
    """Return whether a folder is called like a part of a data set: train, test1, val2017, ..."""
    return _PART.fullmatch(name) is not None


def _ending(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _SYSTEM


def refuse_parts(root: str, classes: Sequence[str]) -> None:
    """Refuse class folders all of which are called like parts of a data set.

    Raises:
        DataError: they are.
    """
    if classes and all(map(is_part, classes)):
        raise DataError(
            f"{root}: its folders ({some_of(classes)}) are called like parts of a data set, and have no "
            f"class folders in them; one folder of images for each class is expected, as in "
            f"{os.path.join(root, classes[-1], 'cat')}"
        )


def below(root: str, folders: Sequence[str], others: Counter[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield each class folder with the images below it; files that are none are counted in ``others``.

    Raises:
        DataError: a class folder holds a training and another part, and not images of one kind.
    """
    for folder in folders:
        found = list(images_below(os.path.join(root, folder), others))
        inside = {name.split(os.sep)[0] for name in found if os.sep in name}
        parts = sorted(filter(is_part, inside))
        training = [part for part in parts if _PART.fullmatch(part)[1]]  # type: ignore[index]
        if training and len(training) < len(parts):
            first, last = training[0], next(part for part in parts if part not in training)
            raise DataError(
                f"{os.path.join(root, folder)}: this class holds {some_of(parts)}, and what is in "
                f"{last} is not to be mixed with the rest; parts come first and classes in them: move it to "
                f"{os.path.join(root, first, folder)} and {os.path.join(root, last, folder)}"
            )
        yield folder, found


def no_images(root: str, folders: Sequence[str], others: Mapping[str, int]) -> str:
    """Return that there are none, for an error."""
    what = f"{root}: no images in its {counted(len(folders), 'folder')} (looked for {endings()})"
    return f"{what}; there are only {_by_ending(others)}" if others else what


def kind_notes(images: Iterable[str], others: Mapping[str, int]) -> list[str]:
    """Return notes of what cannot be read: images of kinds that are not, and files that are no images."""
    unread = Counter(ending for ending in map(_ending, images) if ending in UNREAD_EXTENSIONS)
    notes = [f"files that are no images passed over: {_by_ending(others)}"] if others else []
    if heif_is_read():
        unread = Counter({ending: n for ending, n in unread.items() if ending not in HEIF_EXTENSIONS})
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


def endings() -> str:
    """Return what images are looked for, for a message."""
    return "*.jpg, *.png, *.webp, *.gif, *.tif, ..."


def counted(n: int, noun: str, plural: str | None = None) -> str:
    """Return "1 folder", "2 folders", "1,000 folders"."""
    return f"{n} {noun}" if n == 1 else f"{n:,} {plural or noun + 's'}"


def some_of(names: Sequence[str]) -> str:
    """Return the first few names, for a message."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


# A wnid alone ("n01440764"), or with more around it ("n01440764-tench", "0000_n01440764_tench.jpg").
_WNID = re.compile(r"(?<![0-9A-Za-z])n\d{8}(?!\d)")


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


class ImageDataset:
    """A map-style dataset (``torch.utils.data.DataLoader`` takes it) that survives damaged files.

    Args:
        samples: (path, class index).
        transform: called with the RGB image.
    """

    def __init__(self, samples: Sequence[tuple[str, int]], transform: Callable[[Any], Any]) -> None:
        self.samples = samples
        self.transform = transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, int, str]:
        """Return (input, class index, ""), or (None, class index, reason) for a file that cannot be read."""
        path, label = self.samples[index]
        try:
            return self.transform(load_image(path)), label, ""
        except ImageError as e:
            return None, label, str(e)


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
    folders, files = entries(root)
    images = [f for f in files if is_image(f)]
    if not folders:
        return _flat(root, images, num_classes, dataset, len(files))

    others: Counter[str] = Counter()
    inside = below(root, folders, others)
    found = {name: [os.path.join(root, name, file) for file in files] for name, files in inside}
    if not any(found.values()):
        raise DataError(no_images(root, folders, others))
    full, empty = ([name for name in folders if bool(found[name]) is there] for there in (True, False))
    try:
        how, label_of = _folder_labels(root, folders, num_classes, dataset, names, labels)
    except DataError:
        if not empty:
            raise
        # "lost+found", "logs" and the like hold no images and are no classes.
        how, label_of = _folder_labels(root, full, num_classes, dataset, names, labels)
    samples = tuple((path, label_of[name]) for name in folders for path in found[name] if name in label_of)
    notes = []
    if how == "position" and labels is None:
        refuse_parts(root, full)
        notes.append(
            f"the names of the {len(folders)} folders of {root} are not known to the model: "
            f"taken as classes 0 to {num_classes - 1} in sorted order ({folders[0]} = 0)"
        )
    if empty:
        notes.append(f"{counted(len(empty), 'class folder')} without images: {some_of(empty)}")
    if images:
        what = counted(len(images), "image")
        notes.append(f"{what} outside the class folders passed over: {some_of(images)}")
    notes += kind_notes((path for path, _ in samples), others)
    return LabelledImages(samples, how, len({label for _, label in samples}), tuple(notes))


def _flat(root: str, images: list[str], num_classes: int, dataset: str | None, files: int) -> LabelledImages:
    if not images:
        what = f"none of its {counted(files, 'file')} is an image" if files else "the folder is empty"
        raise DataError(f"{root}: {what} (looked for {endings()})")
    where = "no class folders, so each file name must hold a wnid such as n01440764"
    if num_classes != 1000 or dataset not in (None, "imagenet"):
        raise DataError(
            f"{root}: no class folders in it; one folder for each of the {num_classes} classes is expected"
        )
    odd = [name for name in images if not _WNID.search(name)]
    if odd:
        raise DataError(f"{root}: {where}; {counted(len(odd), 'name')} without one: {some_of(odd)}")
    index = {wnid: i for i, wnid in enumerate(wnids("imagenet"))}
    wnid_of = {name: _WNID.findall(name)[-1] for name in images}
    odd = [name for name in images if wnid_of[name] not in index]
    if odd:
        raise DataError(f"{root}: {where}; not one of the 1000 ImageNet classes: {some_of(odd)}")
    samples = tuple((os.path.join(root, name), index[wnid_of[name]]) for name in images)
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
    if how == "number":
        why = f"folder names are class numbers, 0 to {num_classes - 1}; too large"
    elif how == "name":
        why = "two classes have this name, use their wnids as folder names"
        why = why if by_wnid else "two classes, or two folders, have this name"
    else:
        why = "wnids that are not among the model's classes"
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


def leading_wnid(name: str) -> str | None:
    """Return the wnid that a folder's name begins with, as in ``n01440764-tench``."""
    found = _WNID.match(name)
    return found.group() if found else None


def _no_labels(root: str, folders: list[str], num_classes: int, by_wnid: bool, by_name: bool) -> str:
    kinds = (
        ["wnids"] * by_wnid + ["class names"] * by_name + ["class numbers", f"exactly {num_classes} folders"]
    )
    splits = [name for name in folders if is_part(name)]
    hint = f" (give one of the splits, such as {os.path.join(root, splits[-1])}?)" if splits else ""
    return (
        f"{root}: its {counted(len(folders), 'folder')} ({some_of(folders)}) cannot be matched to the "
        f"model's {num_classes} classes; expected are {', '.join(kinds[:-1])} or {kinds[-1]}{hint}"
    )
