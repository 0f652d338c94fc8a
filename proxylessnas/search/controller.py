"""Adapts the trade-off during a search, so that the expected cost arrives at the target.

With a fixed strength the cost at the end is anybody's guess (users report targets of 25 ms that end at 72).
This is a proportional-integral controller of the strength's logarithm: a net that is expected to cost more
than wanted is pulled at harder at once, and a little harder for good. Alpha under Adam moves by about its
learning rate a step, however hard it is pulled: with that as the unit of time, alpha adds up the pull as an
integrator, and the two gains give a loop that is damped just enough not to swing. Where the pull is so hard
that more of it would change nothing, the integral part waits.

Both derivatives together keep their size while their proportion changes. Else the hard pull at the start of
a search with a low target would be the measure of all that Adam sees in the next thousand steps, and neither
the loss nor a weaker pull would move alpha any more. It is ours; the published searches have a fixed strength
(``adapt = false``).
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from .objective import Objective

_AIM = 0.97  # of the target: what is derived has to stay below it
_PROPORTIONAL = 30.0  # of the logarithm of the strength, for each 100 % above the aim
_INTEGRAL = 20.0  # the same, for each 100 % and each step, as a multiple of alpha's learning rate
_HARD = 4.0  # proportional part, up or down, from which alpha moves as fast as it can
_RANGE = 1000.0  # the strength stays within this factor of where it started


@dataclass
class Controller:
    """Holds the strength of an :class:`~.objective.Objective`.

    Attributes:
        objective: as given; its strength is the first one.
        adapt: False leaves the strength alone.
        rate: alpha's learning rate.
        integral: the integral part of the logarithm of the strength as a multiple of the first one.
        error: share by which the expected cost was above the aim at last, -1 to 1.
    """

    objective: Objective
    adapt: bool = True
    rate: float = 1e-3
    integral: float = 0.0
    error: float = 0.0

    @property
    def factor(self) -> float:
        """The present strength as a multiple of the first one."""
        limit = math.log(_RANGE)
        return math.exp(max(-limit, min(limit, self.integral + _PROPORTIONAL * self.error)))

    @property
    def strength(self) -> float:
        """The present strength."""
        return self.objective.strength * self.factor

    def current(self) -> Objective:
        """Return the objective with the present strength."""
        if not self.adapt or self.objective.kind == "none" or not self.objective.strength:
            return self.objective
        balance = 2.0 / (1.0 + self.factor)  # 1 at the first strength, the cost's share at most twice that
        return dataclasses.replace(self.objective, strength=self.strength, balance=balance)

    def update(self, expected: float) -> None:
        """Take note of the cost that is expected after an arch step.

        Args:
            expected: mean cost of a net drawn from the probabilities, in the target's unit.
        """
        target = self.objective.target
        if not self.adapt or self.objective.kind == "none" or target is None:
            return
        # At most as hard for a net that costs many times the target as for one that costs twice as much.
        self.error = max(-1.0, min(1.0, expected / (_AIM * target) - 1.0))
        if abs(_PROPORTIONAL * self.error) <= _HARD:
            limit = math.log(_RANGE)
            step = _INTEGRAL * self.rate * self.error
            self.integral = max(-limit, min(limit, self.integral + step))

    def state_dict(self) -> dict[str, float]:
        """Return what a run goes on from."""
        return {"integral": self.integral, "error": self.error}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Undo :meth:`state_dict`."""
        self.integral, self.error = float(state["integral"]), float(state["error"])
