"""The losses of the last steps, read together: each look at one would wait for the device."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import ProxylessError
from .distributed import Processes
from .step import WeightStep
from .stop import StopRequest

#: What helps against a loss that is not finite.
ADVICE = 'Try a lower learning_rate, clip_norm = 1, or amp = "off"'
_SYNC_STEPS = 10  # steps between looks where looking waits for a GPU


class Look(NamedTuple):
    """What a look at the losses found.

    Attributes:
        loss: mean over the steps since the last look and over all processes.
        steps: how many these are.
        stopping: whether a signal came, to any process.
    """

    loss: float
    steps: int
    stopping: bool


class Losses:
    """Keeps the losses of weight steps on the device until they are looked at.

    Args:
        step: says whether one was not finite.
        processes: whose losses are averaged.
        steps_per_epoch: for messages.
        checkpoints: folder, for messages.

    Attributes:
        every: steps between looks.
    """

    def __init__(
        self, step: WeightStep, processes: Processes, steps_per_epoch: int, checkpoints: Path
    ) -> None:
        self.step, self.processes = step, processes
        self.steps_per_epoch, self.checkpoints = steps_per_epoch, checkpoints
        self.every = 1 if processes.device.type == "cpu" else _SYNC_STEPS
        self._pending: list[Tensor] = []

    def add(self, loss: Tensor) -> None:
        """Keep the loss of a step, []."""
        self._pending.append(loss)

    def look(self, stop: StopRequest) -> Look:
        """Read what was kept since the last look, and ask whether to stop; all processes take part.

        Raises:
            ProxylessError: a loss was not finite.
        """
        steps = len(self._pending)
        loss, stopping = (
            float(torch.stack(self._pending).cpu().double().mean()),
            float(stop.signal is not None),
        )
        self._pending.clear()
        bad = float(self.step.broke_down)
        if self.processes.world > 1:
            loss, stopping, bad = self.processes.sum_of(loss, stopping, bad)
            loss /= self.processes.world
        if bad:
            first = min(int(t) for t in self.processes.gather(self.step.first_bad.reshape(1).cpu()))
            raise ProxylessError(
                f"the loss is not finite (NaN or infinite) since step {first} (epoch "
                f"{first // self.steps_per_epoch + 1}); the last good checkpoint is kept in "
                f"{self.checkpoints}. {ADVICE}"
            )
        if stopping and stop.signal is None:  # another process was told
            stop.signal = signal.SIGTERM
        return Look(loss, steps, stopping > 0)
