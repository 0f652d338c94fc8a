"""Which part of a tensor's values an 8-bit scale has to cover: four rules, on a histogram.

A scale that covers everything spends most of its 256 steps on rare outliers; one that cuts them off rounds
the other values more finely. Which of the two costs less differs from tensor to tensor.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

#: "minmax": everything; "percentile": all but one value of 10,000 at each end; "mse": what makes the mean
#: squared rounding and clipping error smallest; "entropy" is ONNX Runtime's own rule.
RULES = ("minmax", "percentile", "mse", "entropy")
STEPS = 255
_BINS = 2048
_SHARE = 1e-4  # cut off at each end by "percentile"
_SHRINKS = torch.linspace(1.0, 0.3, 36, dtype=torch.float64)  # what "mse" tries at each end


@dataclass
class Observed:
    """Values of one tensor: first their extremes, then, in a second pass, their histogram.

    Attributes:
        low, high: extremes so far; zero is always inside, as every 8-bit scale has to hold it exactly.
        counts: [bins] of equal width from ``low`` to ``high``.
    """

    low: float = 0.0
    high: float = 0.0
    counts: Tensor = field(default_factory=lambda: torch.zeros(_BINS, dtype=torch.float64))

    def see(self, values: Tensor) -> None:
        """First pass: widen the extremes."""
        low, high = torch.aminmax(values)
        self.low, self.high = min(self.low, float(low)), max(self.high, float(high))

    def count(self, values: Tensor) -> None:
        """Second pass: count values; all have been seen."""
        if self.high > self.low:
            found = torch.histc(values.float().flatten(), _BINS, self.low, self.high)
            self.counts += found.double()

    def range(self, rule: str) -> tuple[float, float]:
        """Return the least and the greatest value that the scale is to cover; zero lies between."""
        if rule == "minmax" or not float(self.counts.sum()):
            return self.low, self.high
        if rule == "percentile":
            return self._percentile()
        if rule == "mse":
            return self._mse()
        raise ValueError(f"no rule {rule!r} for a histogram")

    def _edges(self) -> Tensor:
        return torch.linspace(self.low, self.high, _BINS + 1, dtype=torch.float64)

    def _percentile(self) -> tuple[float, float]:
        below = self.counts.cumsum(0) / self.counts.sum()
        edges = self._edges()
        first = int((below <= _SHARE).sum())
        last = int((below < 1.0 - _SHARE).sum())
        return min(0.0, float(edges[first])), max(0.0, float(edges[last + 1]))

    def _mse(self) -> tuple[float, float]:
        edges = self._edges()
        centres = (edges[:-1] + edges[1:]) / 2
        one = torch.ones(1, dtype=torch.float64)
        lows = self.low * (_SHRINKS if self.low < 0 else one)
        highs = self.high * (_SHRINKS if self.high > 0 else one)
        low, high = (grid.flatten() for grid in torch.meshgrid(lows, highs, indexing="ij"))
        scale = ((high - low) / STEPS).clamp(min=1e-12)[:, None]
        # The zero point is a whole number, as in the file.
        zero = (-low[:, None] / scale).round()
        rounded = ((centres / scale).round() + zero).clamp(0, STEPS).sub(zero) * scale
        best = int(((rounded - centres).square() * self.counts).sum(1).argmin())
        return float(low[best]), float(high[best])


def scale_and_zero(low: float, high: float) -> tuple[float, int]:
    """Return scale and zero point of unsigned 8-bit numbers that cover a range with zero in it."""
    scale = (high - low) / STEPS
    if scale < 1e-12:
        return 1.0, 0
    return scale, max(0, min(STEPS, round(-low / scale)))
