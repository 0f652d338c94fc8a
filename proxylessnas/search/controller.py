"""Adapts the trade-off during a search, so that the expected cost arrives at the target.

With a fixed strength the cost at the end is anybody's guess (users report targets of 25 ms that end at 72).
This is an integral controller: while nets are expected to cost more than wanted, each arch step makes the
pull of the cost a little stronger, and weaker while they cost less. It is ours; the published searches have a
fixed strength (``adapt = false``).
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from .objective import Objective

_AIM = 0.97  # of the target: what is derived has to stay below it
_GAIN = 0.05  # of the logarithm of the strength, for each arch step and each 100 % above the aim
_RANGE = 1000.0  # the strength stays within this factor of where it started


@dataclass
class Controller:
    """Holds the strength of an :class:`~.objective.Objective`.

    Attributes:
        objective: as given; its strength is the first one.
        adapt: False leaves the strength alone.
        log_factor: logarithm of the present strength as a multiple of the first one.
    """

    objective: Objective
    adapt: bool = True
    log_factor: float = 0.0

    @property
    def strength(self) -> float:
        """The present strength."""
        return self.objective.strength * math.exp(self.log_factor)

    def current(self) -> Objective:
        """Return the objective with the present strength."""
        if not self.adapt or self.objective.kind == "none":
            return self.objective
        return dataclasses.replace(self.objective, strength=self.strength)

    def update(self, expected: float) -> None:
        """Take note of the cost that is expected after an arch step.

        Args:
            expected: mean cost of a net drawn from the probabilities, in the target's unit.
        """
        target = self.objective.target
        if not self.adapt or self.objective.kind == "none" or target is None:
            return
        error = expected / (_AIM * target) - 1.0
        # At most as fast for a net that costs many times the target as for one that costs twice as much.
        moved = self.log_factor + _GAIN * max(-1.0, min(1.0, error))
        limit = math.log(_RANGE)
        self.log_factor = max(-limit, min(limit, moved))

    def state_dict(self) -> dict[str, float]:
        """Return what a run goes on from."""
        return {"log_factor": self.log_factor}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Undo :meth:`state_dict`."""
        self.log_factor = float(state["log_factor"])
