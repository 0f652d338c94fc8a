"""One optimiser step of the weights: forward, loss, backward, clip, update, average; losses are read late.

Plain training and the weight step of a search are this same step; a search only chooses the path before it.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from ..errors import ProxylessError
from ..models.batchnorm import single_values_as_data_error
from ..utils.distributed import Processes
from ..utils.signals import StopRequest
from .checkpoint import ADVICE
from .distillation import distillation_loss
from .ema import WeightAverage
from .optim import set_rates
from .recipe import Recipe

_AMP = {"bf16": torch.bfloat16, "fp16": torch.float16}
_NEVER = 2**62


class WeightStep:
    """Trains a model one batch at a time.

    Args:
        model: maps inputs to logits; may be wrapped (DistributedDataParallel, torch.compile).
        optimizer: over its parameters.
        recipe: label smoothing, distillation, accumulation, clipping and precision are taken from it.
        device: of the model.
        average: moving average to be updated after each step, or None.
        exchange: called with the parameters between the backward pass and the update, to exchange their
            gradients with other processes where the model does not do so itself.

    Attributes:
        scaler: of fp16 gradients, None for other precisions.
        first_bad: [] number of the first step whose loss was not finite (a tensor on the device: reading it
            waits for the device).
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        recipe: Recipe,
        device: torch.device,
        average: WeightAverage | None = None,
        exchange: Callable[[list[Tensor]], None] | None = None,
    ) -> None:
        self.model, self.optimizer, self.recipe = model, optimizer, recipe
        self.device, self.average, self.exchange = device, average, exchange
        self.scaler = torch.amp.GradScaler(device.type) if recipe.amp == "fp16" else None
        self.first_bad = torch.tensor(_NEVER, device=device)

    def __call__(
        self, inputs: Tensor, targets: Tensor, number: int, factor: float, taught: Tensor | None = None
    ) -> Tensor:
        """Train on one batch.

        Args:
            inputs: [B, channels, H, W].
            targets: [B] class indices, or [B, classes] shares.
            number: of this step, from 0, for messages.
            factor: of the learning rates, see :func:`~.optim.rate_factor`.
            taught: [B, classes], a teacher's logits, or None without one.

        Returns:
            The mean loss of this process's images, [] and without a graph.
        """
        set_rates(self.optimizer, factor)
        self.optimizer.zero_grad(set_to_none=True)
        n = self.recipe.accumulate
        images, labels = inputs.chunk(n), targets.chunk(n)
        answers = [None] * len(images) if taught is None else taught.chunk(n)
        losses = []
        for i, (x, y, answer) in enumerate(zip(images, labels, answers, strict=True), 1):
            with self._last(i == len(images)):
                loss = self.loss(x, y, answer)
                share = loss * (x.shape[0] / inputs.shape[0]) if len(images) > 1 else loss
                (self.scaler.scale(share) if self.scaler else share).backward()
            losses.append(share.detach())
        total = sum(losses[1:], losses[0])
        # Numbers as such, not as tensors: to send one to a GPU is to wait for it.
        self.first_bad = torch.where(total.isfinite(), self.first_bad, self.first_bad.clamp(max=number))
        self._update()
        if self.average is not None:
            self.average.update(number)
        return total

    def loss(self, inputs: Tensor, targets: Tensor, taught: Tensor | None = None) -> Tensor:
        """Return the mean loss of a batch, []: cross-entropy with label smoothing, and a teacher's part."""
        advice = "use a larger batch_size or image_size, or accumulate less"
        with single_values_as_data_error(inputs, advice), self.autocast():
            logits = self.model(inputs)
        smoothing = self.recipe.label_smoothing
        if taught is None:
            return F.cross_entropy(logits.float(), targets, label_smoothing=smoothing)
        return distillation_loss(
            logits.float(), targets, taught, share=self.recipe.teacher_share,
            temperature=self.recipe.teacher_temperature, smoothing=smoothing,
        )  # fmt: skip

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Return the context in which the model computes in the recipe's precision."""
        if self.recipe.amp == "off":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, _AMP[self.recipe.amp])

    def _last(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Return the context of one part of a step; processes exchange gradients in the last one only."""
        if not last and isinstance(self.model, DistributedDataParallel):
            return self.model.no_sync()
        return contextlib.nullcontext()

    def _update(self) -> None:
        # Asked for each time: a search trains other parameters in each step.
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        if self.exchange is not None:
            self.exchange(parameters)
        if self.recipe.clip_norm:
            if self.scaler:
                self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(parameters, self.recipe.clip_norm)
        if self.scaler:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.step()


_SYNC_STEPS = 10  # steps between looks where looking waits for a GPU


class Look(NamedTuple):
    """What a look at the losses found."""

    loss: float
    """Mean over the steps since the last look and over all processes."""

    steps: int
    """How many these are."""

    stopping: bool
    """Whether a signal came, to any process."""


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
        loss = float(torch.stack(self._pending).cpu().double().mean())
        stopping = float(stop.signal is not None)
        self._pending.clear()
        bad = float(int(self.step.first_bad) != _NEVER)
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
