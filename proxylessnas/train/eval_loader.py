"""Batches of validation images: without augmentation, in order, each image once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..data.transforms import Preprocessing
from ..errors import DataError
from ..utils.devices import sent
from .augment import Geometry, normalised
from .batch_reader import BatchReader, EvalBatches
from .ram_cache import LIMIT_BYTES, Progress, RamImages, images_of, load_into_memory

if TYPE_CHECKING:
    from ..data.sources import ImageSource


class EvalLoader:
    """Batches ``(inputs, targets)`` of one process's share of the validation images.

    Process ``rank`` of ``world`` gets the images ``rank, rank + world, ...``, so that none counts twice;
    the shares may differ by one image, and a share may be empty. Images that cannot be read are left out.
    What fits into memory is read and resized once, in the constructor.

    Args:
        images: the validation images.
        preprocessing: size and normalisation of the model's input.
        batch_size: images a batch of this process; the last one may be smaller.
        rank: number of this process.
        world: how many processes share the work.
        workers: processes that read images for this one; 0 does it in this one.
        device: where the batches are put.
        limit_bytes: most memory for keeping the images.
        progress: called while images are read into memory, with how many are done and how many there are.

    Attributes:
        unreadable: name to reason of this share's images that could not be read so far.
        in_memory: whether the images are kept in memory.

    Raises:
        DataError: none of the images of this share can be read.
    """

    def __init__(
        self,
        images: ImageSource,
        preprocessing: Preprocessing,
        *,
        batch_size: int,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        device: str | torch.device = "cpu",
        limit_bytes: int = LIMIT_BYTES,
        progress: Progress | None = None,
    ) -> None:
        self.preprocessing, self.batch_size, self.device = preprocessing, batch_size, torch.device(device)
        self.indices = range(rank, len(images), world)
        self.unreadable: dict[str, str] = {}
        self._source, self._workers = images, workers
        self._geometry = Geometry(preprocessing)
        size = (preprocessing.input_size, preprocessing.input_size)
        kept = load_into_memory(
            images, self._geometry, size=size, indices=self.indices, limit_bytes=limit_bytes,
            progress=progress,
        )  # fmt: skip
        self.in_memory = kept is not None
        if kept is not None:
            self._keep(kept)

    def __len__(self) -> int:
        """Return the number of batches (fewer come if images cannot be read)."""
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield float32 [B, 3, S, S] in channels-last layout, and long [B].

        Raises:
            DataError: none of the images of this share can be read, or a worker process died.
        """
        found = 0
        for images, targets in self._from_memory() if self.in_memory else self._read():
            found += len(targets)
            yield normalised(sent(images, self.device), self.preprocessing), sent(targets, self.device)
        if self.indices and not found:
            self._fail()

    def _fail(self) -> None:
        raise DataError(
            f"none of {len(self.indices)} validation images can be read; "
            f"{next(iter(self.unreadable.values()))}"
        )

    def _keep(self, kept: RamImages) -> None:
        self.unreadable = kept.unreadable
        self._chosen = kept.readable.nonzero().flatten()
        if self.indices and not len(self._chosen):
            self._fail()
        self._images = kept.on(self.device)
        self._labels = torch.tensor(kept.labels)

    def _from_memory(self) -> Iterator[tuple[Tensor, Tensor]]:
        for chosen in self._chosen.split(self.batch_size):
            images = images_of(self._images, chosen, self.device)
            yield images.permute(0, 3, 1, 2), self._labels[chosen]

    def _read(self) -> Iterator[tuple[Tensor, Tensor]]:
        parts = [self.indices[i : i + self.batch_size] for i in range(0, len(self.indices), self.batch_size)]
        batches = EvalBatches(self._source, self._geometry)
        workers = min(self._workers, len(parts))
        reader = BatchReader(batches, parts, workers=workers, device=self.device)
        for images, targets, unreadable in reader:
            self.unreadable.update(unreadable)
            if images is not None:
                yield images, targets
