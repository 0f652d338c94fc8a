"""Images decoded once and kept in memory, where they fit.

Decoding a 32 x 32 JPEG takes longer than everything else that is done with it. All of CIFAR-10 takes 150 MB.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..data.sources import FileImages, seeded_read
from ..errors import DataError, ImageError
from ..utils.devices import sent
from ..utils.random import keep_random_state
from .evaluate import one_thread

if TYPE_CHECKING:
    from ..data.sources import ImageSource

#: Most memory for the images of one loader.
LIMIT_BYTES = 1 << 30

_PROBES = 16  # images read to see whether all are likely of one size
_CHUNK = 64  # images a thread reads at a time
_MAX_THREADS = 8

Progress = Callable[[int, int], None]


class RamImages:
    """Equally large images in memory, to be read like others; their names are not kept.

    Attributes:
        images: uint8 [n, H, W, 3]: a pixel's bytes lie together, so that crops copy long runs of them.
        labels: class of each image.
        unreadable: name to reason of those that could not be read; their pixels are zeros.
        readable: bool [n].
    """

    def __init__(self, images: Tensor, labels: list[int], reasons: dict[int, tuple[str, str]]) -> None:
        self.images, self.labels = images, labels
        self.unreadable = dict(reasons[i] for i in sorted(reasons))
        self.readable = torch.ones(len(images), dtype=torch.bool)
        self.readable[list(reasons)] = False

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> Tensor:
        """Return an image, uint8 [3, H, W]."""
        return self.images[index].permute(2, 0, 1)

    def name(self, index: int) -> str:
        """Return what to call an image."""
        return f"image {index}"

    def fill_gaps(self) -> None:
        """Put the next readable image, with its label, in the place of each unreadable one.

        Raises:
            DataError: none can be read.
        """
        good = self.readable.nonzero().flatten()
        if not len(good):
            raise DataError(f"none of {len(self)} images can be read; {next(iter(self.unreadable.values()))}")
        for i in (~self.readable).nonzero().flatten().tolist():
            stand_in = int(good[int(torch.searchsorted(good, i)) % len(good)])
            self.images[i], self.labels[i] = self.images[stand_in], self.labels[stand_in]

    def on(self, device: torch.device) -> Tensor:
        """Return the images on a device if they take no more than a quarter of its free memory, else here."""
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            if self.images.nbytes <= free // 4:
                return self.images.to(device)
        return self.images


def images_of(images: Tensor, indices: Tensor, device: torch.device) -> Tensor:
    """Return some of the images, on a device; ``indices`` are on the CPU."""
    return sent(images.index_select(0, sent(indices, images.device)), device)


def load_into_memory(
    source: ImageSource,
    prepare: Callable[[Tensor], Tensor] | None = None,
    *,
    size: tuple[int, int] | None = None,
    indices: Sequence[int] | None = None,
    limit_bytes: int = LIMIT_BYTES,
    progress: Progress | None = None,
) -> RamImages | None:
    """Return images in memory, or None if they differ in size or take more than ``limit_bytes``.

    Args:
        source: the images. Those that are another one each time they are read (a data set with
            augmentation of its own) are not kept.
        prepare: applied to each image once.
        size: (height, width) that ``prepare`` always gives, if so.
        indices: which images; None takes all.
        limit_bytes: of the pixels.
        progress: called now and then with how many are read, and how many there are.
    """
    chosen = range(len(source)) if indices is None else indices
    with keep_random_state(), one_thread():  # threads started in here compute with one thread each
        if size is not None and _bytes(size, len(chosen)) > limit_bytes:
            return None
        size = _common_size(source, chosen, prepare, size)
        if size is None or _bytes(size, len(chosen)) > limit_bytes:
            return None
        images = torch.zeros(len(chosen), *size, 3, dtype=torch.uint8)
        reader = _Reader(source, prepare, chosen, images, progress)
        if not reader.run():
            return None
    reasons = {i: (source.name(chosen[i]), reason) for i, reason in reader.reasons.items()}
    return RamImages(images, [int(source.labels[i]) for i in chosen], reasons)


def _bytes(size: tuple[int, int], n: int) -> int:
    return 3 * size[0] * size[1] * n


def _common_size(
    source: ImageSource,
    chosen: Sequence[int],
    prepare: Callable[[Tensor], Tensor] | None,
    size: tuple[int, int] | None,
) -> tuple[int, int] | None:
    """Return the size of a few images spread over all, if they have the same and do not change."""
    sizes = set() if size is None else {size}
    probes = min(_PROBES, len(chosen))
    for k in range(probes):
        index = chosen[k * len(chosen) // probes]
        try:
            image, again = (seeded_read(source, index, seed) for seed in (1, 2))
        except ImageError:
            continue
        if not torch.equal(image, again):
            return None
        if size is None:
            image = image if prepare is None else prepare(image)
            sizes.add((image.shape[-2], image.shape[-1]))
    return sizes.pop() if len(sizes) == 1 else None


class _Reader:
    """Reads images into one tensor; files with a few threads, as decoders let go of Python's lock."""

    def __init__(
        self,
        source: ImageSource,
        prepare: Callable[[Tensor], Tensor] | None,
        chosen: Sequence[int],
        images: Tensor,
        progress: Progress | None,
    ) -> None:
        self.source, self.prepare, self.chosen, self.images = source, prepare, chosen, images
        self.progress = progress
        self.reasons: dict[int, str] = {}
        self._done = 0
        self._lock = threading.Lock()
        self._give_up = False

    def run(self) -> bool:
        """Read everything; False if an image has another size."""
        n = len(self.images)
        starts = range(0, n, _CHUNK)
        # Somebody's data set need not bear several threads.
        threads = min(_MAX_THREADS, _cores(), len(starts)) if isinstance(self.source, FileImages) else 1
        with ThreadPoolExecutor(threads) if threads > 1 else contextlib.nullcontext() as pool:
            try:
                for _ in map(self._chunk, starts) if pool is None else pool.map(self._chunk, starts):
                    if self._give_up:
                        return False
                    if self.progress is not None:
                        self.progress(self._done, n)
            finally:  # also on an interrupt, or if reading fails in another way: leave the rest unread
                self._give_up = True
        return True

    def _chunk(self, start: int) -> None:
        stop = min(start + _CHUNK, len(self.images))
        reasons = {}
        for i in range(start, stop):
            if self._give_up:
                return
            try:
                image = self.source.read(self.chosen[i])
            except ImageError as e:
                reasons[i] = str(e)
                continue
            image = image if self.prepare is None else self.prepare(image)
            pixels = image.permute(1, 2, 0)
            if pixels.shape != self.images.shape[1:]:
                self._give_up = True
                return
            self.images[i] = pixels
        with self._lock:
            self.reasons.update(reasons)
            self._done += stop - start


def _cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1
