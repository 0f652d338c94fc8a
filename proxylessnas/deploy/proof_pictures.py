"""The pictures that a file is proven with: the caller's, or those that come with this package."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..digits import load_digits
from ..errors import DataError
from ..image_folders import pictures_below
from ..images import load_image
from ..transforms import Preprocessing
from .subject import Subject

#: So many pictures prove a file: two calls of the largest batch.
MOST = 14
#: Of a checkout; a wheel has none.
_EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "photos"


@dataclass(frozen=True, eq=False)
class ProofPictures:
    """Pictures, and where they are from.

    Attributes:
        pixels: uint8 [3, H, W] each, of different sizes.
        source: in words, for the report.
        preprocessing: the net's; where that is not known, its input size with the usual numbers.
    """

    pixels: tuple[Tensor, ...]
    source: str
    preprocessing: Preprocessing

    def inputs(self, channels: int) -> Tensor:
        """Return what the net takes, [N, channels, side, side]; of other channels than three, grey."""
        transform = self.preprocessing.build()
        x = torch.stack([transform(picture) for picture in self.pixels])
        return x if channels == 3 else x.mean(1, keepdim=True).repeat(1, channels, 1, 1)


def proof_pictures(
    subject: Subject, images: str | os.PathLike[str] | Iterable[str | os.PathLike[str]] | None = None
) -> ProofPictures:
    """Return pictures to prove a file with.

    Args:
        subject: the net.
        images: a folder (searched below, too), or files; at most :data:`MOST` are taken, spread evenly. None
            takes the photos among this project's examples, or else the digits that come with the package.

    Raises:
        DataError: no pictures are there.
        ImageError: a picture cannot be read; the message names it.
    """
    known = subject.preprocessing
    side = subject.input_size[1]
    preprocessing = known if known is not None else Preprocessing(side, side)
    transform = preprocessing.build()
    files, source = _files(images)
    if files:
        pixels = [transform._from_pil(load_image(file)) for file in files]
        return ProofPictures(tuple(pixels), source, preprocessing)
    digits = load_digits()[0][:MOST, None].expand(-1, 3, -1, -1)
    return ProofPictures(tuple(digits), "handwritten digits of this package", preprocessing)


def _files(
    images: str | os.PathLike[str] | Iterable[str | os.PathLike[str]] | None,
) -> tuple[list[str], str]:
    """Return picture files, and where they are from; none where there is nothing but the digits."""
    if images is None:
        if not _EXAMPLES.is_dir():
            return [], ""
        found = [os.path.join(_EXAMPLES, name) for name in pictures_below(os.fspath(_EXAMPLES))]
        return _spread(found), "photos of examples/photos"
    if isinstance(images, (str, os.PathLike)):
        folder = os.fspath(images)
        if os.path.isfile(folder):
            return [folder], f"the picture {folder}"
        found = [os.path.join(folder, name) for name in pictures_below(folder)]
        if not found:
            raise DataError(f"{folder}: no pictures in it")
        return _spread(found), f"pictures of {folder}"
    found = [os.fspath(file) for file in images]
    if not found:
        raise DataError("the list of pictures to prove the file with is empty")
    return _spread(found), "the pictures given"


def _spread(files: Sequence[str]) -> list[str]:
    count = min(len(files), MOST)
    return [files[i * len(files) // count] for i in range(count)]
