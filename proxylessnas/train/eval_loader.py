"""Batches of validation pictures: without augmentation, in order, each picture once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import DataError
from ..transforms import Preprocessing
from .augment import Geometry, normalised
from .ram import Progress, load_into_memory

if TYPE_CHECKING:
    from .data import Pictures


class EvalLoader:
    """Batches ``(inputs, targets)`` of one process's share of the validation pictures.

    Process ``rank`` of ``world`` gets the pictures ``rank, rank + world, ...``, so that none counts twice;
    the shares may differ by one picture, and a share may be empty. Pictures that cannot be read are left out.
    What fits into memory is read and resized once, in the constructor.

    Args:
        pictures: the validation pictures.
        preprocessing: size and normalisation of the net's input.
        batch_size: pictures a batch of this process; the last one may be smaller.
        rank: number of this process.
        world: how many processes share the work.
        workers: processes that read pictures for this one; 0 does it in this one.
        device: where the batches are put.
        progress: called while pictures are decoded into memory, with how many are done and how many there are.

    Attributes:
        unreadable: name to reason of this share's pictures that could not be read so far.

    Raises:
        DataError: none of the pictures of this share can be read.
    """

    def __init__(
        self,
        pictures: Pictures,
        preprocessing: Preprocessing,
        *,
        batch_size: int,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        device: str | torch.device = "cpu",
        progress: Progress | None = None,
    ) -> None:
        self.preprocessing, self.batch_size, self.device = preprocessing, batch_size, torch.device(device)
        self.indices = range(rank, len(pictures), world)
        size = (preprocessing.input_size, preprocessing.input_size)
        kept = load_into_memory(
            pictures, Geometry(preprocessing), size=size, indices=self.indices, progress=progress
        )
        if kept is None:
            raise NotImplementedError
        self.unreadable = kept.unreadable
        self._chosen = kept.readable.nonzero().flatten()
        if not len(self._chosen):
            raise DataError(
                f"none of {len(kept)} validation pictures can be read; {next(iter(kept.unreadable.values()))}"
            )
        self._images = kept.on(self.device)
        self._labels = torch.tensor(kept.labels)

    def __len__(self) -> int:
        """Return the number of batches, had every picture been readable."""
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for chosen in self._chosen.split(self.batch_size):
            images = self._images.index_select(0, chosen.to(self._images.device))
            images = images.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
            yield normalised(images, self.preprocessing), self._labels[chosen].to(self.device)
