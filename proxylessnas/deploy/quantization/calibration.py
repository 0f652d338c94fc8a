"""The images that 8-bit scales are chosen by."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ...data.folders import LabelledImages
from ...data.sources import ImageSource
from ...errors import ExportError
from ...train.evaluate import read_batches
from ...utils.text import counted
from ..bundle import ModelBundle
from ..verify import image_files, spread

#: Fewer show too little of what a model can meet, and none could be held out to choose by.
LEAST = 8
#: More cost time and memory, and gain nothing that could be measured.
MOST = 256
_BATCH = 16
_HELD_OUT = 3  # one of so many
_ZOOM = 0.875


@dataclass(frozen=True, eq=False)
class Calibration:
    """Images to choose scales by, and others to choose the scheme by.

    Attributes:
        fit, held_out: batches of inputs [N, C, H, W], normalised.
        views: those held out, each also mirrored and enlarged.
        source: where they are from, for people.
    """

    fit: tuple[Tensor, ...]
    held_out: tuple[Tensor, ...]
    views: tuple[Tensor, ...]
    source: str

    @property
    def everything(self) -> tuple[Tensor, ...]:
        """All batches."""
        return self.fit + self.held_out

    @property
    def n(self) -> int:
        """How many images there are in all."""
        return sum(len(x) for x in self.everything)


def read_calibration(
    bundle: ModelBundle,
    given: str | os.PathLike[str] | Iterable[str | os.PathLike[str]] | LabelledImages | ImageSource | None,
) -> Calibration:
    """Read the images to calibrate with; of more than :data:`MOST`, some spread evenly over all.

    Args:
        bundle: the model they are for.
        given: a folder (with any folders in it), files, or labelled images, whose labels are not used. Of a
            run's images those that cannot be read, which it has told of, are passed over.

    Raises:
        ExportError: none are given, too few, one cannot be read, or the model's preprocessing is not known.
        DataError: there is no such folder.
    """
    if given is None:
        raise ExportError(
            "int8 needs images to calibrate with, like those the model will see: --calibrate FOLDER "
            "(calibrate=FOLDER in Python); 50 will do"
        )
    images: Sequence[tuple[str, int]] | ImageSource
    source = "the calibration images"
    if isinstance(given, ImageSource):
        images = given
    else:
        if isinstance(given, LabelledImages):
            given = [path for path, _ in given.samples]
        files, name = image_files(given)
        images, source = [(file, 0) for file in files], name or source
    if len(images) < LEAST:
        raise ExportError(
            f"{source}: {counted(len(images), 'image')} to calibrate int8 with; it takes {LEAST}, better 50"
        )
    if len(images) > MOST:
        source = f"{MOST} images of {source}"
    chosen = spread(range(len(images)), MOST)
    inputs = torch.cat([x for x, _ in labelled_inputs(bundle, images, chosen)])
    held = torch.arange(len(inputs)) % _HELD_OUT == _HELD_OUT - 1
    return Calibration(
        inputs[~held].split(_BATCH), inputs[held].split(_BATCH), _views(inputs[held]).split(_BATCH), source
    )


def _views(x: Tensor) -> Tensor:
    """Return images, enlarged ones and the mirror images of both, [4 N, C, H, W].

    So a dozen images tell schemes apart that differ by one answer in twenty.
    """
    height, width = x.shape[2:]
    high, wide = (max(1, round(_ZOOM * side)) for side in (height, width))
    top, left = (height - high) // 2, (width - wide) // 2
    near = F.interpolate(x[:, :, top : top + high, left : left + wide], (height, width), mode="bilinear")
    both = torch.cat([x, near])
    return torch.cat([both, both.flip(3)])


def labelled_inputs(
    bundle: ModelBundle,
    samples: Sequence[tuple[str, int]] | ImageSource,
    indices: Sequence[int] | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of inputs [N, C, H, W] with their class indices [N].

    Args:
        bundle: the model they are for.
        samples: (path, class index); or a run's images, of which those that can be read count.
        indices: of some of the images; None takes all.

    Raises:
        ExportError: an image cannot be read, which the message names; or the preprocessing is not known.
    """
    if bundle.preprocessing is None:
        raise ExportError(
            f"{bundle.name}: int8 is chosen by images, but the model's preprocessing is not known: in "
            "Python set model.preprocessing, which save_weights keeps"
        )
    if bundle.input_size[0] != 3:
        raise ExportError(
            f"{bundle.name}: int8 is chosen by RGB images; the model takes {bundle.input_size[0]} channels"
        )
    transform = bundle.preprocessing.build()
    for inputs, labels, unreadable in read_batches(samples, transform, _BATCH, 0, indices):
        if unreadable and not isinstance(samples, ImageSource):
            raise ExportError(f"{unreadable[0]}; take it out, or replace it")
        if inputs is not None:
            yield inputs, labels
