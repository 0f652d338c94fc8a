"""Data sets known by name: found on disk, downloaded by torchvision, or bundled with the package.

"digits" is bundled: enough to watch a run from beginning to end on a machine without any data. Its origin and
licence are in ``assets/README.md``.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import os
import struct
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import DataError, needs
from ..utils.files import LockTimeout, locked, read_bytes
from ..utils.paths import ASSETS, cache_dir, is_offline
from ..utils.tensor_files import from_safetensors
from ..utils.text import shown_reason, some_of
from .categories import Classes
from .sources import Parts, TensorImages

#: Names of the classes, in the order of the labels.
DIGITS = tuple("0123456789")

FILE = ASSETS / "digits.safetensors"
_SHA256 = "8a16248bde4964d591e73c82164f452fedbd69da6429b78a3c2b3f8a63d49a81"
_AGAIN = "it belongs to the package, install that again"


def load_digits() -> tuple[Tensor, Tensor]:
    """Return the images and what is on them.

    >>> images, labels = load_digits()
    >>> images.shape, labels[:5].tolist()
    (torch.Size([1797, 8, 8]), [0, 1, 2, 3, 4])

    The original grey values are sixteenths: ``(images.long() * 16 + 127) // 255`` gives them back exactly.

    Returns:
        Images, uint8 [1797, 8, 8], 0 is paper and 255 ink; labels, uint8 [1797], 0 to 9. They are the
        caller's own.

    Raises:
        DataError: the file is missing or damaged.
        MissingExtraError: safetensors is not installed.
    """
    try:
        data = FILE.read_bytes()
    except OSError as e:
        raise DataError(f"{FILE}: {e.strerror or e}; {_AGAIN}") from e
    digest = hashlib.sha256(data).hexdigest()
    if digest != _SHA256:
        raise DataError(f"{FILE} is damaged (sha256 {digest}, expected {_SHA256}); {_AGAIN}")
    tensors, _ = from_safetensors(data, str(FILE))
    return tensors["images"], tensors["labels"]


#: Data sets known by name.
NAMES = ("cifar10", "cifar100", "fashion-mnist", "digits")

_TORCHVISION = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "fashion-mnist": "FashionMNIST"}
_LOCK_WAIT_S = 3600.0
_MOST_IDX_BYTES = 1 << 30  # MNIST's largest file has 47 million

# Of the training images, per channel.
_STATISTICS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "fashion-mnist": ((0.2860, 0.2860, 0.2860), (0.3530, 0.3530, 0.3530)),
    "digits": ((0.3053, 0.3053, 0.3053), (0.3759, 0.3759, 0.3759)),
}

_FASHION = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"
)  # fmt: skip
# Where the Debian package dataset-fashion-mnist puts its files.
_DEBIAN_FASHION = "/usr/share/datasets/fashion-mnist"


def parse_name(source: str) -> tuple[str, str | None] | None:
    """Return the name and the folder in ``cifar10`` or ``cifar10:/data``, or None if it is something else."""
    name, colon, root = source.partition(":")
    simple = name.lower().replace("-", "").replace("_", "")
    found = next((known for known in NAMES if known.replace("-", "") == simple), None)
    return None if found is None else (found, os.path.expanduser(root) if colon else None)


def open_named(
    name: str, root: str | None, categories: Sequence[str] | None = None, *, test: bool = True
) -> Parts:
    """Return the images of a data set known by name.

    Args:
        name: one of :data:`NAMES`.
        root: where its files are or will be put; None takes ``$PROXYLESSNAS_DATA``, else ``datasets`` in the
            cache folder.
        categories: the classes in another order than the data set's own.
        test: read the test part too, as the validation part; else its images are not looked at.

    Raises:
        DataError: it is not there and cannot be downloaded, or is damaged.
        MissingExtraError: torchvision or numpy is not installed.
    """
    if name == "digits":
        if root is not None:
            raise DataError(f"digits:{root}: digits is bundled with the package; leave out the folder")
        images, labels = load_digits()
        parts = {"digits": (images[:, None], labels.tolist())}
        names: Sequence[str] = DIGITS
    else:
        folder = root or os.environ.get("PROXYLESSNAS_DATA", "").strip() or str(cache_dir() / "datasets")
        folder = os.path.abspath(os.path.expanduser(folder))
        if os.path.exists(folder) and not os.path.isdir(folder):
            raise DataError(f"{folder}: is a file; the folder of {name} is expected")
        parts, names = _fashion(folder, test) if name == "fashion-mnist" else _cifar(name, folder, test)
    place, classes = _order(name, names, categories)
    train, *val = (
        TensorImages(images, [place[label] for label in labels], part)
        for part, (images, labels) in parts.items()
    )
    return Parts(name, train, val[0] if val else None, classes, *_STATISTICS[name])


def _order(name: str, own: Sequence[str], asked: Sequence[str] | None) -> tuple[list[int], Classes]:
    """Return the new label of each of the data set's own, and the classes in their new order."""
    if asked is None:
        return list(range(len(own))), Classes(tuple(own))
    classes = Classes.listed(asked)
    found = classes.places(own)
    odd = [label for label in own if label not in found]
    if odd:
        raise DataError(f"{name} has classes that are not in the list of {len(asked)} given: {some_of(odd)}")
    return [found[label] for label in own], classes


def _cifar(name: str, folder: str, test: bool) -> tuple[dict[str, tuple[Tensor, list[int]]], list[str]]:
    cls = _torchvision_class(name)
    if os.path.basename(folder) == cls.base_folder:
        folder = os.path.dirname(folder)

    def read(train: bool) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy's, about how these old files were pickled
            return cls(folder, train=train)

    try:
        data = {"train": read(True)}
    except (RuntimeError, OSError):  # not there, or not as published
        _download(name, folder, cls, os.path.join(folder, cls.filename), cls.tgz_md5)
        try:
            data = {"train": read(True)}
        except (RuntimeError, OSError) as e:
            raise DataError(f"{name} in {folder} cannot be read after downloading it: {e}") from e
    if test:
        data["test"] = read(False)
    parts = {
        part: (torch.from_numpy(found.data).permute(0, 3, 1, 2).contiguous(), list(found.targets))
        for part, found in data.items()
    }
    return parts, data["train"].classes


def _fashion(folder: str, test: bool) -> tuple[dict[str, tuple[Tensor, list[int]]], Sequence[str]]:
    found = _fashion_folder(folder)
    if found is None:
        _download("fashion-mnist", folder, _torchvision_class("fashion-mnist"))
        found = _fashion_folder(folder)
        if found is None:
            raise DataError(f"fashion-mnist: no files in {folder} after downloading it")
    parts = {}
    for part, prefix in (("train", "train"), ("test", "t10k"))[: 2 if test else 1]:
        images, labels = (read_idx(_idx_file(found, f"{prefix}-{kind}")) for kind in _IDX)
        fits = images.ndim == 3 and labels.shape == images.shape[:1]
        if not fits or not len(labels) or int(labels.max()) >= len(_FASHION):
            raise DataError(
                f"{found}: the {part} part has images {list(images.shape)} and labels "
                f"{list(labels.shape)}; expected are [N, 28, 28] and [N], the labels 0 to 9"
            )
        parts[part] = (images[:, None], labels.tolist())
    return parts, _FASHION


_IDX = ("images-idx3-ubyte", "labels-idx1-ubyte")


def _idx_file(folder: str, name: str) -> str:
    """Return the path of a file, or of its gzipped form."""
    path = os.path.join(folder, name)
    return path if os.path.isfile(path) else path + ".gz"


def _fashion_folder(folder: str) -> str | None:
    """Return where the four files are: in the folder, where torchvision puts them, or in Debian's package."""
    wanted = [f"{part}-{kind}" for part in ("train", "t10k") for kind in _IDX]
    own = [folder, os.path.join(folder, "FashionMNIST", "raw"), os.path.join(folder, "fashion-mnist")]
    for place in [*own, _DEBIAN_FASHION]:
        if all(os.path.isfile(_idx_file(place, name)) for name in wanted):
            return place
    return None


def read_idx(path: str) -> Tensor:
    """Return the uint8 array in an IDX file (MNIST's format), gzipped or not.

    Raises:
        DataError: it cannot be read, or is something else; names it.
    """
    try:
        data = read_bytes(path, _MOST_IDX_BYTES)
        if data[:2] == b"\x1f\x8b":
            with gzip.GzipFile(fileobj=io.BytesIO(data)) as packed:
                data = packed.read(_MOST_IDX_BYTES + 1)
            if len(data) > _MOST_IDX_BYTES:
                raise DataError(f"{path}: unpacks to more than {_MOST_IDX_BYTES:,} bytes")
    except (OSError, EOFError, zlib.error) as e:  # a damaged gzip file raises any of these
        raise DataError(f"{path}: cannot be read ({getattr(e, 'strerror', None) or e})") from e
    # Two zero bytes, 8 for "unsigned bytes", the number of dimensions, and each of them, big-endian.
    dimensions = data[3] if data[:3] == b"\0\0\x08" and len(data) > 3 else 0
    start = 4 + 4 * dimensions
    if not dimensions or len(data) < start:
        raise DataError(f"{path}: is not an IDX file of unsigned bytes")
    shape = struct.unpack(f">{dimensions}I", data[4:start])
    wanted = math.prod(shape)
    if len(data) - start != wanted:
        raise DataError(
            f"{path}: holds {len(data) - start:,} values, but {list(shape)} were announced; damaged?"
        )
    if not wanted:
        return torch.empty(shape, dtype=torch.uint8)
    return torch.frombuffer(bytearray(data), dtype=torch.uint8, offset=start).view(shape)


def _torchvision_class(name: str) -> Any:
    with needs("torchvision", f"the data set {name}"):
        import torchvision.datasets  # type: ignore[import-untyped,unused-ignore]
    return getattr(torchvision.datasets, _TORCHVISION[name])


def _download(name: str, folder: str, cls: Any, archive: str = "", md5: str = "") -> None:
    """Have torchvision download (or only unpack) a data set; one process at a time."""
    from torchvision.datasets.utils import check_integrity  # type: ignore[import-untyped,unused-ignore]

    url = getattr(cls, "url", None) or cls.mirrors[0]
    files = os.path.basename(archive) or "the four *-ubyte.gz files"
    by_hand = (
        f"{name}:FOLDER takes one that you have, and digits comes with the package; by hand, put {files} "
        f"from {url} into {folder}"
    )
    have = bool(archive) and check_integrity(archive, md5)
    if is_offline() and not have:
        raise DataError(
            f"{name} is not in {folder} (or is damaged there), and PROXYLESSNAS_OFFLINE forbids to download "
            f"it; {by_hand}"
        )
    try:
        os.makedirs(folder, exist_ok=True)
        with locked(Path(folder, f".{name}.lock"), _LOCK_WAIT_S):
            cls(folder, download=True)
    except (OSError, RuntimeError, EOFError, LockTimeout) as e:  # urllib's errors are OSErrors
        reason = shown_reason("; ".join(str(e).split("\n"))).strip("; ") or type(e).__name__
        raise DataError(f"{name} could not be downloaded from {url} to {folder}: {reason}; {by_hand}") from e
