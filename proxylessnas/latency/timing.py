"""The result of measuring one thing."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from .machine_load import disturbances
from .settings import Conditions


@dataclass(frozen=True)
class Samples:
    """What a timing loop returns.

    Attributes:
        ms: duration of each run in milliseconds, in order, without the warm-up.
        warmup_runs: runs before, which are not in ``ms``.
        stable: whether the warm-up settled; False if it ran into its limit.
        other_load: share of all processors that other programs (and other virtual machines on the same
            host) used meanwhile, 0 to 1; None where the system does not tell.
    """

    ms: tuple[float, ...]
    warmup_runs: int
    stable: bool
    other_load: float | None

    @property
    def median_ms(self) -> float:
        """The median run."""
        return statistics.median(self.ms)

    @property
    def spread(self) -> float:
        """Interquartile range as a share of the median."""
        return (quantile(self.ms, 0.75) - quantile(self.ms, 0.25)) / self.median_ms

    @property
    def noise(self) -> tuple[str, ...]:
        """Reasons to distrust the figures, in words; empty if there are none."""
        found = disturbances(self.spread, self.other_load)
        if not self.stable:
            found.append("the warm-up did not settle")
        return tuple(found)


@dataclass(frozen=True)
class Timing:
    """The latency of a net: one forward pass of a whole batch, in milliseconds.

    Attributes:
        median_ms, p10_ms, p90_ms: over the runs.
        runs: timed runs; warmup_runs came before and do not count.
        noise: reasons to distrust the figures; empty if there are none.
        conditions: runtime, device, threads, batch and versions.
        input_size: (channels, height, width) of one picture.
        date: ISO day of the measurement.
    """

    median_ms: float
    p10_ms: float
    p90_ms: float
    runs: int
    warmup_runs: int
    noise: tuple[str, ...]
    conditions: Conditions
    input_size: tuple[int, int, int]
    date: str

    @property
    def noisy(self) -> bool:
        """Whether something disturbed the measurement."""
        return bool(self.noise)

    @property
    def images_per_second(self) -> float:
        """Pictures a second at the median."""
        return 1000.0 * self.conditions.batch_size / self.median_ms


def pool(rounds: Sequence[Samples]) -> Samples:
    """Return the runs of several rounds or visits as if they had been measured at once."""
    loads = [samples.other_load for samples in rounds if samples.other_load is not None]
    return Samples(
        tuple(ms for samples in rounds for ms in samples.ms),
        sum(samples.warmup_runs for samples in rounds),
        all(samples.stable for samples in rounds),
        statistics.fmean(loads) if loads else None,
    )


def quantile(values: Sequence[float], share: float) -> float:
    """Return the ``share`` quantile (0 to 1) of values, interpolated linearly.

    Raises:
        ValueError: there are no values.
    """
    ordered = sorted(values)
    if not ordered:
        raise ValueError("no values")
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])
