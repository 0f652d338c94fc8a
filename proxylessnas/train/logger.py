"""The log of a run while it goes: files that any tool reads, lines for people, speed and memory.

    runs/a/log.jsonl      one JSON object a line: steps, epochs, notes, other events
    runs/a/epochs.csv     one row an epoch
    runs/a/curves.png     learning curves (with matplotlib)
    runs/a/tensorboard/   the same figures for TensorBoard, if asked for

Nothing here stops a run: a disk that is full, say, is noted once, and the run goes on.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, SupportsFloat

import torch

from ..errors import MissingExtraError
from ..utils.files import unlink_quietly
from ..utils.plotting import curves_png
from .console import Console, Recent, TimeLeft
from .log_files import EpochTable, LineLog, TensorBoardLog

_LOG = logging.getLogger("proxylessnas")
_STEP_KEYS = ("loss", "rate", "images_per_second", "waiting", "memory_mib")
_EPOCH_KEYS = ("train_loss", "val_loss", "val_top1", "val_top5")
_SHORT_EPOCH_S = 20.0
_WAITING_TOO_LONG = 0.25


def memory_mib(device: torch.device | str = "cpu") -> float | None:
    """Return the peak of memory so far, MiB; None where the system does not tell.

    Args:
        device: on CUDA, what torch's allocator took from the device; else the process's resident set.
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_reserved(device) / 2**20
    try:
        # Better than getrusage, whose peak may be that of the process which started this one.
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    except (OSError, ValueError, IndexError):
        pass
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 1024


class RunLog:
    """Logs a run; one process of it has one, the others :meth:`silent`.

    Steps are counted over the whole run, from 1; epochs too. A run that is resumed keeps its files: what they
    hold of later steps than ``resume_step`` is cut off. Call :meth:`epoch` *before* the checkpoint that
    ends the epoch is written: then no epoch is ever missing after a kill.

    Args:
        folder: of the run; it is made if absent.
        epochs: in the whole run.
        steps_per_epoch: steps in each.
        batch_size: images a step.
        tensorboard: write a log for TensorBoard too.
        console: show the run on standard error; notes are shown even without.
        curves: draw learning curves.
        resume_step: steps done before this process.
        resume_epoch: epochs that were ended (validation included) before it.
        step_lines_every: steps between two lines of ``log.jsonl``; by default about 20 an epoch, and one for
            every 50 steps at least.

    Raises:
        MissingExtraError: TensorBoard is asked for and not installed.
        OSError: the folder cannot be made.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | None,
        *,
        epochs: int,
        steps_per_epoch: int,
        batch_size: int,
        tensorboard: bool = False,
        console: bool = True,
        curves: bool = True,
        resume_step: int = 0,
        resume_epoch: int = 0,
        step_lines_every: int | None = None,
    ) -> None:
        self._steps_per_epoch, self._batch_size = steps_per_epoch, batch_size
        self._every = step_lines_every or max(1, min(50, steps_per_epoch // 20))
        self._silent = folder is None
        self._step, self._epoch_now = resume_step, resume_epoch
        self._console = Console(epochs, steps_per_epoch, console and not self._silent)
        self._time_left = TimeLeft(epochs, steps_per_epoch)
        self._loss, self._image_s, self._waiting = Recent(), Recent(), Recent()
        self._epoch_start = time.monotonic()
        self._waits: list[float] = []
        self._memory_mib: float | None = None
        # When a figure was drawn, and seconds that count for that; curves are first drawn after 40 s.
        self._drawn: dict[str, tuple[float, float]] = {"curves": (time.monotonic(), 2.0)}
        self._curves_wait = False
        self._noted: set[str] = set() if curves else {"curves"}
        self._lines: LineLog | None = None
        self._table: EpochTable | None = None
        self._board: TensorBoardLog | None = None
        if folder is None:
            return
        self._folder = Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        for name in ("log.jsonl", "epochs.csv", "curves.png"):
            for left in self._folder.glob(f"{name}.*.tmp"):  # of a process that was killed while it wrote
                unlink_quietly(left)
        if tensorboard:  # first: it alone may be missing, and then nothing was touched
            self._board = TensorBoardLog(self._folder / "tensorboard", resume_step, self._console.note)
        self._lines = LineLog(self._folder / "log.jsonl", resume_step, resume_epoch, self._console.note)
        self._table = EpochTable(
            self._folder / "epochs.csv", resume_epoch, self._lines.epochs, self._console.note
        )

    @classmethod
    def silent(cls) -> RunLog:
        """Return a log that neither writes nor shows anything."""
        return cls(None, epochs=1, steps_per_epoch=1, batch_size=1)

    @property
    def rows(self) -> list[dict[str, float | int | None]]:
        """The epochs so far, those from before it was resumed included, as in ``epochs.csv``."""
        return list(self._table.rows) if self._table else []

    def note(self, text: str, *, show: bool = True) -> None:
        """Tell the user something, and keep it in the log (once, where each resumed part tells it again)."""
        if self._silent:
            return
        if show:
            self._console.note(text)
        if self._lines is not None and text not in self._lines.notes:
            self.event("note", text=text)

    def event(self, kind: str, **fields: Any) -> None:
        """Add a line to ``log.jsonl``: its time, kind, step and any further fields."""
        if self._lines is not None:
            self._lines.write(kind, {"step": self._step, **fields})

    def step(
        self,
        step: int,
        epoch: int,
        loss: SupportsFloat,
        rate: float,
        images_per_second: float | None = None,
        waiting: float | None = None,
        memory_mib: float | None = None,
    ) -> None:
        """Take note of a step; call it after each one, or after every few.

        Args:
            step: steps done in the whole run, this one included.
            epoch: counted from 1.
            loss: mean over the steps since the last call; shown as a mean over the last few calls.
            rate: learning rate.
            images_per_second: over the last steps; by default from the times of the calls.
            waiting: share of the time that was spent waiting for data, 0 to 1.
            memory_mib: see :func:`memory_mib`.
        """
        if self._silent:
            return
        # A line each time a multiple is reached or passed: the call may be only after every few steps.
        in_epoch = step - (epoch - 1) * self._steps_per_epoch
        written = step // self._every > self._step // self._every or in_epoch == self._steps_per_epoch
        self._step, self._epoch_now, self._memory_mib = step, epoch, memory_mib
        self._time_left.step(step, epoch, time.monotonic())
        speed = self._speed() if images_per_second is None else images_per_second
        values: dict[str, Any] = {
            "epoch": epoch,
            "step": step,
            "loss": float(loss),
            "rate": rate,
            "images_per_second": speed,
            "waiting": waiting,
            "memory_mib": memory_mib,
        }
        shown = {**values, "loss": self._loss.add(values["loss"])}
        if speed:
            shown["images_per_second"] = 1 / self._image_s.add(1 / speed)
        if waiting is not None:
            self._waits.append(waiting)
            shown["waiting"] = self._waiting.add(waiting)
        if self._console.is_due():
            self._console.step(epoch, in_epoch, {**shown, "seconds_left": self._time_left.seconds()})
        if written:
            self.event("step", **values)
            if self._board is not None:
                self._board.write(step, values, _STEP_KEYS)

    def figures(self, group: str, step: int, values: Mapping[str, Any]) -> None:
        """Show further figures, by name, in TensorBoard where it is asked for; tags are ``group/name``."""
        if self._board is not None:
            self._board.scalars(step, {f"{group}/{name}": value for name, value in values.items()})

    def image(self, tag: str, step: int, draw: Callable[[], bytes], *, last: bool = False) -> None:
        """Show an image in TensorBoard, where it is asked for.

        Args:
            tag: its name.
            step: steps done in the whole run.
            draw: returns a PNG; it is called only if the image is wanted, and there is time for it.
            last: draw in any case, as there is no later one.
        """
        board = self._board
        if board is not None and (last or self._may_draw(tag)):
            self._draw(tag, "figures", "figures in TensorBoard", lambda: board.image(step, tag, draw()), 2)

    def validating(self, done: int, total: int) -> None:
        """Show on a terminal that ``done`` of ``total`` validation batches (or images) are through."""
        if not self._silent and self._console.is_due():
            self._console.validating(self._epoch_now, done, total)

    def epoch(self, record: Mapping[str, Any]) -> None:
        """Take note of the end of an epoch, after its validation and before its checkpoint.

        Args:
            record: ``epoch`` (from 1), ``step``, ``train_loss``, ``val_loss``, ``val_top1``, ``val_top5``
                (per cent), ``rate``, ``images_per_second``, ``waiting``, ``seconds``, ``seconds_left``,
                ``memory_mib``. From ``step`` on all may be absent; what the log knows itself it fills in.
                Further keys go to ``log.jsonl`` alone.
        """
        if self._silent or self._table is None:
            return
        now = time.monotonic()
        epoch = int(record["epoch"])
        self._time_left.epoch(epoch, now)
        known = {
            "step": self._step,
            "images_per_second": self._speed(),
            "waiting": sum(self._waits) / len(self._waits) if self._waits else None,
            "seconds": now - self._epoch_start,
            "seconds_left": self._time_left.seconds(),
            "memory_mib": self._memory_mib,
        }
        full = {**record, **{key: value for key, value in known.items() if record.get(key) is None}}
        self._step, self._epoch_now = int(full["step"]), epoch
        self._epoch_start, self._waits = now, []
        self._console.epoch(full)
        self.event("epoch", **full)
        self._table.add(full)
        if self._board is not None:
            self._board.write(self._step, full, _EPOCH_KEYS)
        long_enough = (full["seconds"] or 0.0) > _SHORT_EPOCH_S  # in a short one the start-up is most of it
        if long_enough and (full["waiting"] or 0.0) > _WAITING_TOO_LONG:
            self._note_once(
                f"the loader is the bottleneck: {100 * full['waiting']:.0f} % of epoch {epoch} was spent "
                "waiting for images. More worker processes (--workers), smaller images on disk, or a "
                "faster disk help",
                kind="waiting",
            )
        self._curves_wait = True
        if self._may_draw("curves"):
            self._draw_curves()

    def close(self) -> None:
        """Write what is waiting and leave the terminal tidy."""
        self._console.close()
        self._draw_curves()
        if self._board is not None:
            self._board.close()
        if self._lines is not None:
            self._lines.close()
        self._board = self._lines = None

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _speed(self) -> float | None:
        seconds = self._time_left.seconds_per_step
        return self._batch_size / seconds if seconds else None

    def _note_once(self, text: str, kind: str) -> None:
        if kind not in self._noted:
            self._noted.add(kind)
            self.note(text)

    def _may_draw(self, key: str) -> bool:
        """Return whether it is time: drawing takes a twentieth at most, as epochs may be short."""
        at, cost_s = self._drawn.get(key, (-math.inf, 0.0))
        return time.monotonic() - at > 20 * cost_s

    def _draw(self, key: str, kind: str, what: str, work: Callable[[], object], alike: int = 1) -> None:
        """Draw one of ``alike`` figures; one that cannot be drawn is no reason to lose a run."""
        if kind in self._noted:
            return
        start = time.monotonic()
        try:
            work()
        except MissingExtraError as error:
            self._note_once(f"no {what}: {error}", kind)
        except Exception as error:  # noqa: BLE001
            _LOG.debug("could not draw %s", what, exc_info=True)
            self._note_once(f"{what} could not be drawn: {error}", kind)
        now = time.monotonic()
        self._drawn[key] = now, alike * (now - start)

    def _draw_curves(self) -> None:
        if self._curves_wait:
            self._curves_wait = False
            path = self._folder / "curves.png"
            self._draw("curves", "curves", "curves.png", lambda: curves_png(self.rows, path))
