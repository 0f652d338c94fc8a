"""How far a run is."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Position:
    """How far a run is: whole epochs, steps in the present one, and sums over those steps."""

    epoch: int = 0
    step: int = 0
    global_step: int = 0
    loss_sum: float = 0.0
    seconds: float = 0.0
    waited: float = 0.0
    total_seconds: float = 0.0
    best: dict[str, float] = field(default_factory=dict)

    def next_epoch(self) -> None:
        """Go to the start of the next epoch."""
        self.epoch, self.step = self.epoch + 1, 0
        self.loss_sum = self.seconds = self.waited = 0.0
