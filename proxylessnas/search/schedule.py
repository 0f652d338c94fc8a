"""When a search does what: warm-up, weight steps, arch steps, learning rates. Pure functions of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """The course of a search (original code, B.7).

    Attributes:
        warmup_epochs: weight steps only, on paths drawn evenly (alpha is as good as zero).
        epochs: of the search itself.
        steps_per_epoch: weight steps in each.
        frozen_epochs: of ``epochs`` the first ones without arch steps.
        every: weight steps to an arch step; 0 if ``per_epoch`` says how many there are.
        per_epoch: arch steps an epoch, spread evenly.
        search_share: learning rate at the start of the search as a share of that of the warm-up.
    """

    warmup_epochs: int
    epochs: int
    steps_per_epoch: int
    frozen_epochs: int = 1
    every: int = 5
    per_epoch: int = 0
    search_share: float = 0.5

    @property
    def total_epochs(self) -> int:
        """Epochs of warm-up and search."""
        return self.warmup_epochs + self.epochs

    @property
    def total_steps(self) -> int:
        """Weight steps of warm-up and search."""
        return self.total_epochs * self.steps_per_epoch

    def searching(self, epoch: int) -> bool:
        """Return whether an epoch (from 0) belongs to the search, not to the warm-up."""
        return epoch >= self.warmup_epochs

    def arch_steps_after(self, epoch: int, step: int) -> int:
        """Return how many arch steps follow a weight step.

        Args:
            epoch: from 0, over the whole run.
            step: within the epoch, from 0.
        """
        if epoch < self.warmup_epochs + min(self.frozen_epochs, max(self.epochs - 1, 0)):
            return 0
        if self.every:
            return int((step + 1) % self.every == 0)
        n, total = self.per_epoch, self.steps_per_epoch
        return (step + 1) * n // total - step * n // total

    def arch_steps(self) -> int:
        """Return how many arch steps there are in all."""
        epochs = self.epochs - min(self.frozen_epochs, max(self.epochs - 1, 0))
        return epochs * (self.steps_per_epoch // self.every if self.every else self.per_epoch)

    def rate_factor(self, step: int) -> float:
        """Return the share of the warm-up's learning rate at a weight step (from 0, over the whole run).

        A cosine to 0 over the warm-up, and another one from ``search_share`` to 0 over the search.
        """
        warmup = self.warmup_epochs * self.steps_per_epoch
        if step < warmup:
            return _cosine(step, warmup)
        return self.search_share * _cosine(step - warmup, self.epochs * self.steps_per_epoch)


def _cosine(step: int, total: int) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * min(step / max(total, 1), 1.0)))
