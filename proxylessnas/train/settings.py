"""Where and how a run is carried out; none of it changes what comes out."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ..utils.checks import is_int
from .batch_reader import NO_WORKERS, allowed_workers


@dataclass(frozen=True)
class Settings:
    """Where and how a run is carried out.

    Attributes:
        out: folder of the run: checkpoints, logs, curves, the trained model. A run that is there resumes.
        device: "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1", "mps".
        workers: processes that read and augment images; None chooses. Small equal images that fit into
            memory need none.
        threads: of torch on the CPU; None leaves the number as it is.
        save_every: steps between checkpoints within an epoch; 0 saves at the end of each epoch only.
        keep_every: epochs between checkpoints that are kept for good; 0 keeps the last and the best only.
        max_unreadable: share of images that may be unreadable before the run stops.
        tensorboard: write TensorBoard files too.
        console: show progress on standard error.
    """

    out: Path
    device: str = "auto"
    workers: int | None = None
    threads: int | None = None
    save_every: int = 0
    keep_every: int = 0
    max_unreadable: float = 0.01
    tensorboard: bool = False
    console: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "out", Path(self.out))
        for name, low in (("workers", 0), ("threads", 1), ("save_every", 0), ("keep_every", 0)):
            value = getattr(self, name)
            if value is not None and not is_int(value, low):
                raise ValueError(f"{name} must be a whole number of at least {low}, not {value!r}")
        if self.threads is not None and self.threads > 1024:
            raise ValueError(f"threads must be at most 1024, not {self.threads}")
        if not 0 <= self.max_unreadable <= 1:
            raise ValueError(f"max_unreadable is a share, 0 to 1, not {self.max_unreadable!r}")

    def worker_count(self, world: int) -> int:
        """Return how many processes read images for each of ``world`` processes of this machine."""
        if self.workers is not None:
            return allowed_workers(self.workers)
        local = int(os.environ.get("LOCAL_WORLD_SIZE", world))
        return allowed_workers(max(1, min(8, (os.cpu_count() or 1) // max(local, 1))))

    def notes(self) -> list[str]:
        """Return what is not done as it was asked for, one line each."""
        return [NO_WORKERS] if self.workers != 0 and not allowed_workers(1) else []
