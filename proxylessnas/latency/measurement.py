"""The latency of a model: a low quantile over the runs of many short windows, spread out in time.

Other programs, and other virtual machines on the same core, add to the time of some runs; nothing takes from
it. The median says how disturbed the machine is.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ..runtimes.settings import Conditions
from ..runtimes.timer import Window

#: The undisturbed latency is this quantile of the runs.
UNDISTURBED = 0.02
#: A latency is measured until it is certain to this share of it, or its time is over.
LIMIT = 0.01


@dataclass
class Measurement:
    """All windows of one model or operation; times in milliseconds, a run of the whole batch."""

    windows: list[Window] = field(default_factory=list)

    @property
    def undisturbed_ms(self) -> float:
        """The 2 % quantile of all runs, without the time that others had the processor.

        Of several processes, which differ by a percent, the quickest counts most.
        """
        return _low(self.windows)

    @property
    def runs_ms(self) -> list[float]:
        """Wall time of every run."""
        return [ms for window in self.windows for ms in window.ms]

    @property
    def median_ms(self) -> float:
        """The median run by wall time: what one gets on this machine now."""
        return statistics.median(self.runs_ms)

    @property
    def uncertainty(self) -> float:
        """How uncertain the undisturbed latency is, as a share of it: half of the windows against the rest.

        Half the difference of two halves is the standard error of the whole. A single process is halved in
        two ways, of which the larger difference counts. Infinite for a single window.
        """
        if len(self.windows) < 2:
            return math.inf
        halves = [self.two_runs()]
        if len({window.process for window in self.windows}) == 1:
            middle = len(self.windows) // 2
            halves.append((_low(self.windows[:middle]), _low(self.windows[middle:])))
        return max(abs(a - b) / (a + b) for a, b in halves)

    def two_runs(self) -> tuple[float, float]:
        """Return the latency as two runs would have found it: by every other process, or every other window.

        Raises:
            ValueError: there are fewer than two windows.
        """
        processes = sorted({window.process for window in self.windows})
        if len(processes) > 1:
            first = set(processes[::2])
            parts = [[w for w in self.windows if (w.process in first) == side] for side in (True, False)]
        else:
            parts = [self.windows[::2], self.windows[1::2]]
        return _low(parts[0]), _low(parts[1])


def uncertainty(measured: Iterable[Measurement]) -> float:
    """Return the root mean square of the uncertainties of several measurements; 0 of none."""
    found = [m.uncertainty for m in measured]
    return math.sqrt(statistics.fmean(u * u for u in found)) if found else 0.0


def _low(windows: Sequence[Window]) -> float:
    return quantile([ms for window in windows for ms in window.own_ms], UNDISTURBED)


@dataclass(frozen=True)
class Timing:
    """The latency of a model: one forward pass of a whole batch, in milliseconds.

    Attributes:
        undisturbed_ms: the figure to compare: the 2 % quantile of the runs (:class:`Measurement`).
        median_ms, p10_ms, p90_ms: over all runs: what one gets on this machine now.
        uncertainty: of the undisturbed latency, as a share of it.
        runs: timed runs.
        noise: reasons to distrust the figures; empty if there are none.
        conditions: runtime, device, threads, batch and versions.
        input_size: (channels, height, width) of one image.
        date: ISO day of the measurement.
    """

    undisturbed_ms: float
    median_ms: float
    p10_ms: float
    p90_ms: float
    uncertainty: float
    runs: int
    noise: tuple[str, ...]
    conditions: Conditions
    input_size: tuple[int, int, int]
    date: str

    @staticmethod
    def of(
        found: Measurement,
        conditions: Conditions,
        input_size: tuple[int, int, int],
        date: str,
        doubts: Sequence[str] = (),
    ) -> Timing:
        """Summarise a measurement; ``doubts`` are reasons to distrust it that the runs do not show."""
        runs, uncertain = found.runs_ms, found.uncertainty
        noise = list(doubts)
        if uncertain > 2 * LIMIT:
            many = f"{uncertain:.1%}" if math.isfinite(uncertain) else "an unknown share (one window only)"
            noise.insert(0, f"uncertain by {many}, wanted {LIMIT:.0%}: measure for longer")
        return Timing(
            found.undisturbed_ms, found.median_ms, quantile(runs, 0.1), quantile(runs, 0.9), uncertain,
            len(runs), tuple(noise), conditions, input_size, date,
        )  # fmt: skip

    @property
    def noisy(self) -> bool:
        """Whether there is a reason to distrust the figures."""
        return bool(self.noise)

    @property
    def disturbance(self) -> float:
        """How many times longer a run takes here now than undisturbed: the median over the low quantile."""
        return self.median_ms / self.undisturbed_ms

    @property
    def images_per_second(self) -> float:
        """Images a second, undisturbed."""
        return 1000.0 * self.conditions.batch_size / self.undisturbed_ms


def quantile(values: Sequence[float], share: float) -> float:
    """Return the ``share`` quantile (0 to 1) of values, interpolated linearly; ValueError of none."""
    ordered = sorted(values)
    if not ordered:
        raise ValueError("no values")
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])
