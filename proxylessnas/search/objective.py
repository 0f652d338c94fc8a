"""What an arch step minimises: loss on held-out images and expected cost, with a trade-off that adapts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from ..errors import DataError, shown

KINDS = ("mul_log", "add_linear", "none")


class ObjectiveGradient(NamedTuple):
    """The value of the objective, and its derivatives by cross-entropy and by expected cost."""

    value: float
    by_loss: float
    by_cost: float


@dataclass(frozen=True)
class Objective:
    """A trade-off between cross-entropy CE and expected cost E, with target T (original code, B.8).

    * ``mul_log``: ``scale * CE * (log E / log T) ** strength``; published: scale 0.2, strength 0.3
    * ``add_linear``: ``CE + strength * (E - T) / T``; published: strength 0.1
    * ``none``: ``CE``, the search without a cost

    The paper's own form is ``CE + lambda_2 E`` (section 3.3.1), which is ``add_linear`` but for a constant.

    ``mul_log`` depends on the unit: its logarithms are those of milliseconds (or of millions, for MACs and
    parameters), and E and T must be above 1 of them. Where they might not be, E and T are both multiplied by
    ``unit_scale``.

    Attributes:
        kind, strength, scale: see above.
        target: T, in the unit of E; None only for "none".
        balance: None takes the derivatives as they are. A number is the derivative by the loss, up to
            ``scale``, and the strength, which may be negative then, decides on the proportion of that by the
            cost to it alone. A strength that changes in the course of a search needs this: Adam remembers the
            largest gradients for a thousand steps.
    """

    kind: str = "mul_log"
    target: float | None = None
    strength: float = 0.3
    scale: float = 0.2
    balance: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise DataError(f"the regulariser is {shown(self.kind)}; known are {', '.join(KINDS)}")
        if self.kind != "none" and not (self.target and self.target > 0 and math.isfinite(self.target)):
            raise DataError(f"{self.kind} needs a target above 0, not {shown(self.target)}")
        for name in ("strength", "scale"):
            value = getattr(self, name)
            signed = name == "strength" and self.balance is not None
            if not (0 <= value < math.inf or (signed and -math.inf < value < 0)):
                raise DataError(f"{name} must be a number of at least 0, not {shown(value)}")

    @property
    def unit_scale(self) -> float:
        """Factor on E and T in mul_log, 1 for targets of at least 10 (published: 80 ms).

        It keeps the logarithms well above 0: that of 0.5 ms is negative, and 1 ms would divide by 0.
        """
        assert self.target is not None
        return 1.0 if self.target >= 10 else 10.0 ** math.ceil(math.log10(10.0 / self.target))

    def gradient(self, loss: float, cost: float) -> ObjectiveGradient:
        """Return the objective and its derivatives at a cross-entropy and an expected cost."""
        if self.kind == "none":
            return ObjectiveGradient(loss, 1.0, 0.0)
        assert self.target is not None
        if self.kind == "add_linear":
            excess = (cost - self.target) / self.target
            weight = 1.0 if self.balance is None else self.balance
            return ObjectiveGradient(
                loss + self.strength * excess, weight, weight * self.strength / self.target
            )
        unit = self.unit_scale
        # E below one unit is far below any target: log E would change its sign.
        log_cost, log_target = math.log(max(cost * unit, 1.0 + 1e-6)), math.log(self.target * unit)
        ratio = log_cost / log_target
        # Far from the target and with a huge strength this would leave the range of numbers.
        factor = math.exp(max(-600.0, min(600.0, self.strength * math.log(ratio))))
        value = self.scale * loss * factor
        weight = self.scale * (factor if self.balance is None else self.balance)
        return ObjectiveGradient(
            value, weight, weight * loss * self.strength / (ratio * max(cost, 1e-12) * log_target)
        )


REWARDS = ("published", "absolute")


@dataclass(frozen=True)
class Reward:
    """What REINFORCE rewards a sampled model with: its accuracy, and a cost that suits the target T.

    * ``published``: ``accuracy * (T / cost) ** weight``; published: weight 0.1 (original code, B.9; the paper
      writes ``ACC * [LAT / T] ** w`` with a negative w). A cheaper model is always better.
    * ``absolute``: ``accuracy - weight * |cost / T - 1|`` (TuNAS, Bender et al. 2020, with 0.07). A model
      that leaves some of T unused is as bad as one that exceeds it by as much.

    Attributes:
        kind, weight: see above.
    """

    kind: str = "published"
    weight: float = 0.1

    def __post_init__(self) -> None:
        if self.kind not in REWARDS:
            raise DataError(f"the reward is {shown(self.kind)}; known are {', '.join(REWARDS)}")

    def of(self, accuracy: float, cost: float, target: float) -> float:
        """Return the reward of a model with an accuracy of 0 to 1; cost and target are of one unit."""
        if self.kind == "absolute":
            return accuracy - self.weight * abs(cost / target - 1.0)
        return accuracy * (target / cost) ** self.weight

    def slope(self, accuracy: float) -> float:
        """Return what a cost of one target more takes from the reward, for a weight of 1."""
        return 1.0 if self.kind == "absolute" else accuracy


@dataclass
class Baseline:
    """What rewards are compared with.

    By default each one with the mean of the others of its update (leave-one-out): how hard a batch of images
    is, and how far the weights are trained, is in all of them, and cancels. A moving average of earlier
    updates knows neither, and lags behind while accuracy rises.

    Attributes:
        decay: of the moving average ``decay * average + (1 - decay) * mean``; None compares with the others.
        first: whether the average takes in an update's mean before that update's rewards are compared with
            it. The original code does so, and with its 0.99 as the weight of the new mean (a decay of 0.01):
            that is leave-one-out but for a hundredth.
        average: None before the first update.
    """

    decay: float | None = None
    first: bool = False
    average: float | None = None

    def advantages(self, rewards: Sequence[float]) -> list[float]:
        """Return by how much each reward of an update is above what it is compared with."""
        n, mean = len(rewards), sum(rewards) / len(rewards)
        if self.decay is None:
            return [(reward - mean) * n / (n - 1) for reward in rewards]
        before = mean if self.average is None else self.average
        self.average = self.decay * before + (1.0 - self.decay) * mean
        compared = self.average if self.first else before
        return [reward - compared for reward in rewards]


def expected_cost(probs: Tensor, costs: Tensor, fixed: float) -> Tensor:
    """Return the mean cost of a model drawn from ``probs`` [blocks, candidates]: [], differentiable."""
    return (probs * costs.to(probs)).sum() + fixed


_AIM = 0.97  # of the target: what is derived has to stay below it
_PROPORTIONAL = 60.0  # of the drive, for each 100 % above the aim
_INTEGRAL = 40.0  # the same, for each 100 % and each step, as a multiple of alpha's learning rate
_HARD = 4.0  # proportional part, up or down, from which alpha moves as fast as it can
_SLEW = 0.6  # most change of the drive in a step
_STRONGEST, _DEAREST = 1000.0, 30.0  # multiples of the first strength: for cheaper, and for dearer models
_START = math.asinh(1.0)


@dataclass
class ConstraintController:
    """Adapts the strength of an :class:`Objective`, so that the expected cost arrives at the target.

    With a fixed strength the cost at the end is anybody's guess (users report targets of 25 ms that end at
    72). This is a proportional-integral controller of a drive u, and the strength is ``sinh`` of it, 1 times
    the first one where it starts: exponential far from 0, so that a few steps change it by any factor, and
    smooth through 0, as it goes below: where models are expected to cost less than wanted and accuracy does
    not ask for dearer ones, a negative strength does. It is bounded: accuracy has the last word where it
    wants cheaper models by more than thirty times as much as the first strength does.

    Alpha under Adam moves by about its learning rate a step, however large its gradient: with that as the
    unit of time, alpha is an integrator, and the two gains give a loop that is damped just enough not to
    swing. Where more weight would change nothing, the integral part waits. The drive has a greatest speed,
    so that no step changes the strength by more than a factor of about two, or, around 0, by the first one.

    Both derivatives together keep their size while their proportion changes. Else the weight of the cost at
    the start of a search with a low target would be the measure of all that Adam sees in the next thousand
    steps, and neither the loss nor less weight would move alpha any more. It is ours; the published searches
    have a fixed strength (``adapt = false``).

    Attributes:
        objective: as given; its strength is the first one.
        adapt: False leaves the strength alone.
        rate: alpha's learning rate.
        integral: the integral part of the drive.
        drive: u, 0 at the first strength.
    """

    objective: Objective
    adapt: bool = True
    rate: float = 1e-3
    integral: float = 0.0
    drive: float = 0.0

    @property
    def factor(self) -> float:
        """The present strength as a multiple of the first one."""
        return math.sinh(_START + self.drive)

    @property
    def strength(self) -> float:
        """The present strength."""
        return self.objective.strength * self.factor

    def current(self) -> Objective:
        """Return the objective with the present strength."""
        if not self.adapt or self.objective.kind == "none" or not self.objective.strength:
            return self.objective
        balance = 2.0 / (1.0 + abs(self.factor))  # 1 at first; the cost's share is at most twice that then
        return dataclasses.replace(self.objective, strength=self.strength, balance=balance)

    def update(self, expected: float) -> None:
        """Take note of the mean cost of a model drawn from the probabilities after an arch step."""
        target = self.objective.target
        if not self.adapt or self.objective.kind == "none" or target is None:
            return
        # At most as hard for a model that costs many times the target as for one that costs twice as much.
        error = max(-1.0, min(1.0, expected / (_AIM * target) - 1.0))
        if abs(_PROPORTIONAL * error) <= _HARD:
            self.integral = _within_range(self.integral + _INTEGRAL * self.rate * error)
        wanted = _within_range(self.integral + _PROPORTIONAL * error)
        self.drive += max(-_SLEW, min(_SLEW, wanted - self.drive))

    def state_dict(self) -> dict[str, float]:
        """Return what a search resumes from."""
        return {"integral": self.integral, "drive": self.drive}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Undo :meth:`state_dict`."""
        self.integral, drive = float(state["integral"]), state.get("drive")
        if drive is None:  # earlier versions wrote the logarithm of the factor
            self.integral = drive = math.asinh(math.exp(self.integral)) - _START
        self.drive = float(drive)


def _within_range(drive: float) -> float:
    """Return the nearest drive whose strength is within its bounds."""
    return max(-math.asinh(_DEAREST) - _START, min(math.asinh(_STRONGEST) - _START, drive))
