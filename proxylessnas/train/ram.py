"""Pictures decoded once and kept in memory, where they fit.

Decoding a 32 x 32 JPEG takes longer than everything else that is done with it. All of CIFAR-10 takes 150 MB.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import DataError, ImageError
from ..evaluate import one_thread
from .seeding import keep_random_state

if TYPE_CHECKING:
    from .data import Pictures

#: Most memory for the pictures of one loader.
LIMIT_BYTES = 1 << 30

_PROBES = 16  # pictures read to see whether all are likely of one size
_CHUNK = 64  # pictures a thread reads before it looks whether another one gave up

Progress = Callable[[int, int], None]


class RamPictures:
    """Equally large pictures in memory; has what every set of pictures has (``read``, ``labels``, ``name``).

    Attributes:
        images: uint8 [n, H, W, 3]: rows of pixels, so that a crop copies long runs of bytes.
        labels: class of each picture.
        unreadable: name to reason of those that could not be read; their pixels are zeros.
        readable: bool [n].
    """

    def __init__(
        self, images: Tensor, labels: Sequence[int], names: Callable[[int], str], reasons: dict[int, str]
    ) -> None:
        self.images, self.labels = images, labels
        self._reasons = reasons
        self.unreadable = {names(i): reason for i, reason in sorted(reasons.items())}
        self.readable = torch.ones(len(images), dtype=torch.bool)
        self.readable[list(reasons)] = False

    def __len__(self) -> int:
        return len(self.images)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of every picture, px."""
        return self.images.shape[1], self.images.shape[2]

    def read(self, index: int) -> Tensor:
        """Return a picture, uint8 [3, H, W].

        Raises:
            ImageError: it could not be read.
        """
        if index in self._reasons:
            raise ImageError(self._reasons[index])
        return self.images[index].permute(2, 0, 1)

    def on(self, device: torch.device) -> Tensor:
        """Return the images on a device if they take no more than a quarter of its free memory, else here."""
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            if self.images.nbytes <= free // 4:
                return self.images.to(device)
        return self.images

    def next_readable(self) -> Tensor:
        """Return for each picture the first readable one from it on, going round at the end; long [n].

        Raises:
            DataError: none can be read.
        """
        good = self.readable.nonzero().flatten()
        if not len(good):
            raise DataError(
                f"none of {len(self)} pictures can be read; {next(iter(self.unreadable.values()))}"
            )
        return good[torch.searchsorted(good, torch.arange(len(self))) % len(good)]


def load_into_memory(
    pictures: Pictures,
    prepare: Callable[[Tensor], Tensor] | None = None,
    *,
    size: tuple[int, int] | None = None,
    indices: Sequence[int] | None = None,
    limit_bytes: int = LIMIT_BYTES,
    progress: Progress | None = None,
) -> RamPictures | None:
    """Return pictures in memory, or None if they differ in size or take more than ``limit_bytes``.

    Args:
        pictures: the pictures. A set whose ``repeatable`` is False (it gives another picture each time it is
            asked) is never kept.
        prepare: applied to each picture once.
        size: (height, width) that ``prepare`` always gives, if so.
        indices: which pictures; None takes all.
        limit_bytes: of the pixels.
        progress: called now and then with how many are read, and how many there are.
    """
    chosen = range(len(pictures)) if indices is None else indices
    if not getattr(pictures, "repeatable", True) or not len(chosen):
        return None
    with keep_random_state(), one_thread():  # threads started in here compute with one thread each
        if size is None:
            size = _common_size(pictures, chosen, prepare)
        if size is None or 3 * size[0] * size[1] * len(chosen) > limit_bytes:
            return None
        images = torch.zeros(len(chosen), *size, 3, dtype=torch.uint8)
        reader = _Reader(pictures, prepare, chosen, images, progress)
        if not reader.run():
            return None
    labels = [int(pictures.labels[i]) for i in chosen]
    return RamPictures(images, labels, lambda i: pictures.name(chosen[i]), reader.reasons)


def _common_size(
    pictures: Pictures, chosen: Sequence[int], prepare: Callable[[Tensor], Tensor] | None
) -> tuple[int, int] | None:
    """Return the size of a few pictures spread over all, if they have the same."""
    sizes = set()
    probes = min(_PROBES, len(chosen))
    for k in range(probes):
        try:
            image = pictures.read(chosen[k * len(chosen) // probes])
        except ImageError:
            continue
        image = image if prepare is None else prepare(image)
        sizes.add((image.shape[-2], image.shape[-1]))
    return sizes.pop() if len(sizes) == 1 else None


class _Reader:
    """Reads pictures into one tensor with a few threads (decoders and torch let go of Python's lock)."""

    def __init__(
        self,
        pictures: Pictures,
        prepare: Callable[[Tensor], Tensor] | None,
        chosen: Sequence[int],
        images: Tensor,
        progress: Progress | None,
    ) -> None:
        self.pictures, self.prepare, self.chosen, self.images = pictures, prepare, chosen, images
        self.progress = progress
        self.reasons: dict[int, str] = {}
        self._done = 0
        self._lock = threading.Lock()
        self._give_up = threading.Event()

    def run(self) -> bool:
        """Read everything; False if a picture has another size."""
        n = len(self.images)
        with ThreadPoolExecutor(min(8, _cores(), -(-n // _CHUNK))) as pool:
            try:
                for _ in pool.map(self._chunk, range(0, n, _CHUNK)):
                    if self.progress is not None and not self._give_up.is_set():
                        self.progress(self._done, n)
            except (
                BaseException
            ):  # an interrupt, or a picture that fails in another way: do not read the rest
                self._give_up.set()
                raise
        return not self._give_up.is_set()

    def _chunk(self, start: int) -> None:
        stop = min(start + _CHUNK, len(self.images))
        reasons = {}
        for i in range(start, stop):
            if self._give_up.is_set():
                return
            try:
                image = self.pictures.read(self.chosen[i])
            except ImageError as e:
                reasons[i] = str(e)
                continue
            image = image if self.prepare is None else self.prepare(image)
            pixels = image.permute(1, 2, 0)
            if pixels.shape != self.images.shape[1:]:
                self._give_up.set()
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
