"""What the tests of a run's log need: a run, a real terminal, a full disk, and readers of the files."""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import json
import math
import os
import struct
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from proxylessnas.train.logger import RunLog

STEPS, EPOCHS = 10, 3


class Killed(Exception):
    """Stands for the end of a process at any place."""


def train(
    folder: Path, start: int = 0, kill_at: float = math.inf, *, validated: int | None = None, **options: Any
) -> None:
    """Log a run from a step on, as a training loop does; ``kill_at`` 15.5 is between the steps 15 and 16.

    20 is behind the validation of epoch 2, 19.9 between its last step and that.
    """
    ended = start // STEPS if validated is None else validated
    options = {
        "console": False,
        "resume_step": start,
        "resume_epoch": ended,
        "step_lines_every": 4,
        "curves": False,
    } | options
    with contextlib.suppress(Killed), RunLog(folder, **SIZES, **options) as log:
        log.note("the split is seeded")
        for epoch in range(ended + 1, EPOCHS + 1):
            for step in range((epoch - 1) * STEPS + 1, epoch * STEPS + 1):
                if step > start:
                    if step - 0.2 > kill_at:
                        raise Killed
                    log.step(step, epoch, 2.0 / step, 0.048, 231.0, waiting=0.02, memory_mib=1234.5)
            if epoch * STEPS - 0.1 == kill_at:
                raise Killed
            log.epoch(
                {"epoch": epoch, "step": epoch * STEPS, "train_loss": 1.5 / epoch, "val_top1": 50.0 + epoch}
            )
        log.event("done", top1=53.0)


SIZES: dict[str, int] = {"epochs": EPOCHS, "steps_per_epoch": STEPS, "batch_size": 96}


def lines(folder: Path) -> list[dict[str, Any]]:
    def refuse(text: str) -> None:
        raise AssertionError(f"{text} is no JSON")

    text = (folder / "log.jsonl").read_text(encoding="utf-8")
    assert text.endswith("\n")
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "epochs.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def story(folder: Path) -> list[tuple[Any, ...]]:
    """Return what must be the same however often a run was killed: all but times."""
    keys = ("event", "step", "epoch", "loss", "train_loss", "val_top1", "text")
    return [tuple(line.get(key) for key in keys) for line in lines(folder)]


@contextlib.contextmanager
def full_disk(free_bytes: int) -> Iterator[None]:
    """Let no file of this process grow beyond so many bytes; writing fails midway, as on a full disk."""
    resource = pytest.importorskip("resource")
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (free_bytes, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def has_tensorboard() -> bool:
    return importlib.util.find_spec("tensorboard") is not None


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Read event files as TensorBoard does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def images(folder: Path) -> dict[str, list[tuple[int, bytes]]]:
    """Read the images of event files as TensorBoard does: tag to (step, PNG)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()
    found = {tag: events.Images(tag) for tag in events.Tags()["images"]}
    return {tag: [(e.step, e.encoded_image_string) for e in images] for tag, images in found.items()}


@contextlib.contextmanager
def terminal(width: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Make standard error a real terminal; what was written there is the list's one item after the block."""
    pytest.importorskip("fcntl")
    import fcntl
    import termios

    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    read: list[bytes] = []

    def drain() -> None:
        with contextlib.suppress(OSError):  # the other end was closed
            while piece := os.read(master, 4096):
                read.append(piece)

    reader = threading.Thread(target=drain)
    reader.start()
    shown: list[str] = []
    with monkeypatch.context() as patch, os.fdopen(slave, "w", encoding="utf-8") as stream:
        patch.setattr(sys, "stderr", stream)
        patch.setenv("TERM", "xterm")
        yield shown
    reader.join()
    os.close(master)
    shown.append(b"".join(read).decode().replace("\r\n", "\n"))


def lines_left(shown: str) -> list[str]:
    """Return what a terminal shows in the end: a carriage return writes over what is there."""
    lines = []
    for line in shown.split("\n"):
        seen = ""
        for part in line.split("\r"):
            seen = part + seen[len(part) :]
        lines.append(seen.rstrip())
    return lines
