"""A small real data set that comes with the package: 1,797 pictures of handwritten digits.

It is enough to watch a training run from beginning to end on a machine without any data. Origin and licence
are in ``data/README.md``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

#: Names of the classes, in the order of the labels.
DIGITS = tuple("0123456789")

FILE = Path(__file__).resolve().parent / "data" / "digits.safetensors"
_SHA256 = "8a16248bde4964d591e73c82164f452fedbd69da6429b78a3c2b3f8a63d49a81"


def load_digits() -> tuple[Tensor, Tensor]:
    """Return the pictures and what is on them.

    >>> images, labels = load_digits()
    >>> images.shape, labels[:5].tolist()
    (torch.Size([1797, 8, 8]), [0, 1, 2, 3, 4])

    The original grey values are sixteenths: ``(images.long() * 16 + 127) // 255`` gives them back exactly.

    Returns:
        Pictures, uint8 [1797, 8, 8], 0 is paper and 255 ink; labels, uint8 [1797], 0 to 9. They are the
        caller's own.

    Raises:
        DataError: the file is missing or damaged.
        MissingExtraError: safetensors is not installed.
    """
    import hashlib

    from .tensorfile import from_safetensors

    try:
        data = FILE.read_bytes()
    except OSError as e:
        raise DataError(f"{FILE}: {e.strerror or e}; it belongs to the package, install that again") from e
    digest = hashlib.sha256(data).hexdigest()
    if digest != _SHA256:
        raise DataError(
            f"{FILE} is damaged (sha256 {digest}, expected {_SHA256}); it belongs to the package, install "
            "that again"
        )
    tensors, _ = from_safetensors(data, str(FILE))
    return tensors["images"], tensors["labels"]
