"""Look through folders of images: what is an image, what is a class or a part, what is passed over."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from .errors import DataError
from .images import EXTENSIONS, HEIF_EXTENSIONS, UNREAD_EXTENSIONS, heif_is_read

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
        raise DataError(f"{root}: is a file; a folder of pictures is expected") from e
    except PermissionError as e:
        raise DataError(f"{root}: permission denied") from e
    except (OSError, ValueError) as e:
        raise DataError(f"{root}: cannot be read ({getattr(e, 'strerror', None) or e})") from e
    return sorted(n for n, d in kinds if d), sorted(n for n, d in kinds if not d)


def is_picture(name: str) -> bool:
    """Return whether a file is a picture by its ending, be it of a kind that is read or not."""
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
            f"class folders in them; one folder of pictures for each class is expected, as in "
            f"{os.path.join(root, classes[-1], 'cat')}"
        )


def below(root: str, folders: Sequence[str], others: Counter[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield each class folder with the pictures below it; files that are none are counted in ``others``.

    Raises:
        DataError: a class folder holds a training and another part, and not pictures of one kind.
    """
    for folder in folders:
        found = list(pictures_below(os.path.join(root, folder), others))
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


def no_pictures(root: str, folders: Sequence[str], others: Mapping[str, int]) -> str:
    """Return that there are none, for an error."""
    what = f"{root}: no pictures in its {counted(len(folders), 'folder')} (looked for {endings()})"
    return f"{what}; there are only {_by_ending(others)}" if others else what


def kind_notes(pictures: Iterable[str], others: Mapping[str, int]) -> list[str]:
    """Return notes of what cannot be read: pictures of kinds that are not, and files that are no pictures."""
    unread = Counter(ending for ending in map(_ending, pictures) if ending in UNREAD_EXTENSIONS)
    notes = [f"files that are no pictures passed over: {_by_ending(others)}"] if others else []
    if heif_is_read():
        unread = Counter({ending: n for ending, n in unread.items() if ending not in HEIF_EXTENSIONS})
    if unread:
        remedy = ", or install pillow-heif" if HEIF_EXTENSIONS & set(unread) else ""
        notes.append(
            f"pictures of a kind that is not read, and so counted as unreadable: {_by_ending(unread)} "
            f"(convert them to JPEG or PNG{remedy})"
        )
    return notes


def _by_ending(counts: Mapping[str, int]) -> str:
    """Return counts by ending, the most first: "12 .txt, 1 without ending"."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return some_of([f"{n:,} {ending or 'without ending'}" for ending, n in ordered])


def pictures_below(top: str, others: Counter[str] | None = None) -> Iterator[str]:
    """Yield the pictures below a folder, sorted, as paths relative to it; links are followed, once.

    Args:
        top: the folder.
        others: counts, by ending, the files that are no pictures.
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
            if is_picture(name):
                yield os.path.join(inside, name)
            elif others is not None:
                others[_ending(name)] += 1


def endings() -> str:
    """Return what pictures are looked for, for a message."""
    return "*.jpg, *.png, *.webp, *.gif, *.tif, ..."


def counted(n: int, noun: str, plural: str | None = None) -> str:
    """Return "1 folder", "2 folders", "1,000 folders"."""
    return f"{n} {noun}" if n == 1 else f"{n:,} {plural or noun + 's'}"


def some_of(names: Sequence[str]) -> str:
    """Return the first few names, for a message."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
