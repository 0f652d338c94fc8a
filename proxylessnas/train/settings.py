"""Where and how a run is carried out; none of it changes what comes out."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ..utils.checks import Range
from ..utils.config import Config, option

_COUNT = Range(0, 2**53)


@dataclass(frozen=True)
class Settings(Config):
    """Where and how a run is carried out, beginning with ``out``, its folder.

    The folder gets checkpoints, logs, curves and the trained model. A run that is there is continued.

    Raises:
        DataError: a value is wrong.
    """

    what = "settings of the run"

    # fmt: off
    out: Path
    device: str = option("auto", None, "auto (a GPU if there is one), cpu, cuda, cuda:1, mps",
        group="run")
    workers: int | None = option(None, _COUNT, "processes that read and augment images. Small equal images "
        "that fit into memory need none; None takes what suits")
    threads: int | None = option(None, Range(1, 1024), "of torch on a CPU; None takes torch's own")
    save_every: int = option(0, _COUNT, "steps between checkpoints within an epoch; 0 saves at the end of "
        "each epoch only")
    keep_every: int = option(0, _COUNT, "epochs between checkpoints that are kept for good; 0 keeps the last "
        "and the best only")
    max_unreadable: float = option(0.01, Range(0, 1), "share of damaged images that stops the run",
        metavar="SHARE")
    tensorboard: bool = option(False, None, "write TensorBoard files too")
    console: bool = option(True, None, "show progress on standard error")
    # fmt: on

    def __post_init__(self) -> None:
        vars(self)["out"] = Path(self.out)
        super().__post_init__()

    def worker_count(self, world: int) -> int:
        """Return how many processes read images for each of ``world`` processes of this machine."""
        from .batch_reader import allowed_workers

        if self.workers is not None:
            return allowed_workers(self.workers)
        local = int(os.environ.get("LOCAL_WORLD_SIZE", world))
        return allowed_workers(max(1, min(8, (os.cpu_count() or 1) // max(local, 1))))

    def notes(self) -> list[str]:
        """Return what is not done as it was asked for, one line each."""
        from .batch_reader import NO_WORKERS, allowed_workers

        return [NO_WORKERS] if self.workers != 0 and not allowed_workers(1) else []
