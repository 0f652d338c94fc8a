"""How far a table's predictions and measured latencies agree."""

from __future__ import annotations

import dataclasses
import datetime
import math
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import LatencyError

#: Where two runs order the models hardly alike (Kendall's tau), there is nothing to choose by.
NO_ORDER = 0.4
LEAST_JUDGED = 30  # models that a validation compares at least
LEAST_MODELS = 2
#: Kendall's tau that is wanted of a table: to be trusted, and to be good.
LEAST, GOOD = 0.8, 0.9
#: Where two runs of the same models agree less, a table is measured by them: it should reach this share.
_OF_CEILING = {LEAST: 0.8, GOOD: 0.9}
GOOD_MAPE_PERCENT = 5.0
MOST_MAPE_PERCENT = 15.0
#: A reference model this much slower or faster than when the table was made: one of the two was disturbed.
OFF = 0.05


@dataclass(frozen=True)
class Validation:
    """Predicted against measured latencies of random models (:func:`.random_models.random_models`).

    Attributes:
        nets: how many.
        mape_percent: mean absolute error, relative to the measured latency.
        rmspe_percent: root mean square of the relative error.
        within_5_percent, within_10_percent: share of the models whose error is at most 5 and 10 %, in
            percent.
        bias_percent: mean relative error; positive if the table predicts too much.
        kendall_tau: Kendall's tau-b of the two orders: 1 if the table orders all models rightly.
        uniform_kendall_tau: that of the uniform models alone, whose latencies lie close together.
        scale, offset_ms: the line from predictions to measured latencies, fitted on half of the models.
        judged_before_percent, judged_after_percent: mean absolute error on the other half, without and with
            that line.
        noisy_nets: models that were disturbed whenever they were measured, of kits and in older tables.
        seed: of the models.
        date: ISO day.
        conditions: what was measured with, in words.
        pairs: (block tokens, predicted ms, measured ms) of each model.
        reference_ratio: how many times longer a reference model took than when the table was made.
        ceiling_tau, ceiling_percent: Kendall's tau and mean difference of two runs of these same models:
            what this machine allows any table to reach. None in older tables.
        disturbance: how many times longer a run took than undisturbed (median over low quantile); None of
            kits and in older tables, whose latencies are medians.
        measured_with: the conditions as JSON values; None in tables that were made before they were kept.
        space: digest of the space that the models are of; empty in such tables.
    """

    nets: int
    mape_percent: float
    rmspe_percent: float
    within_5_percent: float
    within_10_percent: float
    bias_percent: float
    kendall_tau: float
    uniform_kendall_tau: float
    scale: float
    offset_ms: float
    judged_before_percent: float
    judged_after_percent: float
    noisy_nets: int
    seed: int
    date: str
    conditions: str
    pairs: tuple[tuple[str, float, float], ...]
    reference_ratio: float = 1.0
    ceiling_tau: float | None = None
    ceiling_percent: float | None = None
    disturbance: float | None = None
    measured_with: Mapping[str, Any] | None = None
    space: str = ""

    @property
    def verdict(self) -> str:
        """What to make of it, in one line."""
        tau, mape = self.kendall_tau, self.mape_percent
        no_order = self.ceiling_tau is not None and self.ceiling_tau < NO_ORDER
        if no_order or tau < wanted_tau(self.ceiling_tau, LEAST) or mape > MOST_MAPE_PERCENT:
            word = "not to be trusted"
        elif tau < wanted_tau(self.ceiling_tau, GOOD) or mape > GOOD_MAPE_PERCENT:
            word = "fair"
        else:
            word = "good"
        ceiling = ""
        if self.ceiling_tau is not None and self.ceiling_percent is not None:
            ceiling = (
                f"; two runs of these models differ by {self.ceiling_percent:.1f} %, tau "
                f"{self.ceiling_tau:.3f}, which is what this machine allows"
            )
        if abs(math.log(self.reference_ratio)) > math.log(1 + OFF):
            ceiling += (
                f"; the reference model took {self.reference_ratio:.2f} times as long as when the table was "
                "made, so one of the two was disturbed throughout"
            )
        return (
            f"{word}: off by {mape:.1f} % on average (bias {self.bias_percent:+.1f} %), Kendall tau "
            f"{tau:.3f}, on {self.nets} random models from cheap to expensive (tau "
            f"{self.uniform_kendall_tau:.3f} on the half drawn evenly){ceiling}"
        )

    @property
    def correction_helps(self) -> bool:
        """Whether the line made the other half of the models clearly better predicted."""
        return self.judged_after_percent < min(
            0.9 * self.judged_before_percent, self.judged_before_percent - 0.3
        )

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {**dataclasses.asdict(self), "pairs": [list(pair) for pair in self.pairs]}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Validation:
        """Undo :meth:`to_dict`; what a later version added is left out.

        Raises:
            LatencyError: something is missing or of the wrong type.
        """
        ratio = data.get("reference_ratio", data.get("pace", 1.0))  # "pace": of older tables
        given = {**data, "reference_ratio": ratio}
        try:
            found = Validation(
                **{
                    f.name: _READ[str(f.type)](given[f.name])
                    for f in dataclasses.fields(Validation)
                    if f.name in given or f.default is dataclasses.MISSING
                }
            )
            if not 0 < found.reference_ratio < math.inf:
                raise ValueError(f"reference_ratio is {found.reference_ratio}")
        except (KeyError, TypeError, ValueError) as e:
            raise LatencyError(f"a table's validation cannot be read: {type(e).__name__}: {e}") from e
        return found


#: How a field of a :class:`Validation` is read from JSON, by its type.
_READ: dict[str, Callable[[Any], Any]] = {
    "int": int,
    "float": float,
    "str": str,
    "float | None": lambda value: None if value is None else float(value),
    "Mapping[str, Any] | None": lambda value: None if value is None else dict(value),
    "tuple[tuple[str, float, float], ...]": lambda value: tuple(
        (str(text), float(predicted), float(measured)) for text, predicted, measured in value
    ),
}


def wanted_tau(ceiling: float | None, usual: float) -> float:
    """Return the Kendall tau that is wanted: ``usual``, or less where two runs (``ceiling``) allow less."""
    return usual if ceiling is None else min(usual, _OF_CEILING[usual] * ceiling)


def evaluate(
    nets: Sequence[tuple[str, float, float]],
    *,
    seed: int = 0,
    conditions: str = "unknown",
    noisy_nets: int = 0,
    date: str | None = None,
    reference_ratio: float = 1.0,
    two_runs: Sequence[tuple[float, float]] = (),
    disturbance: float | None = None,
) -> Validation:
    """Compare predictions with measurements.

    Args:
        nets: (block tokens, predicted ms, measured ms); of those of :func:`.random_models.random_models`, in
            its order, every second is uniform.
        seed: of the models; it also halves them.
        conditions: what was measured with, in words.
        noisy_nets: models that were disturbed at every measurement, where that is known.
        date: ISO day; by default today.
        reference_ratio: how many times longer a reference model took than when the table was made.
        two_runs: the latency of each model as two runs found it, for the ceiling.
        disturbance: the median over the low quantile.

    Raises:
        LatencyError: there are fewer than two models, or a latency is not positive.
    """
    if len(nets) < LEAST_MODELS:
        raise LatencyError(f"a table is evaluated with at least {LEAST_MODELS} models, not {len(nets)}")
    if not all(math.isfinite(a) and math.isfinite(b) and b > 0 for _, a, b in nets):
        raise LatencyError("a table is evaluated with finite latencies, measured ones above 0")
    predicted, measured = [a for _, a, _ in nets], [b for _, _, b in nets]
    errors = [a / b - 1 for a, b in zip(predicted, measured, strict=True)]
    first, second = halves(len(nets), seed)
    scale, offset = fit_line([predicted[i] for i in first], [measured[i] for i in first])
    after = [(scale * predicted[i] + offset) / measured[i] - 1 for i in second]
    return Validation(
        nets=len(nets),
        mape_percent=_mape(errors),
        rmspe_percent=100 * math.sqrt(statistics.fmean(e * e for e in errors)),
        within_5_percent=_within(errors, 0.05),
        within_10_percent=_within(errors, 0.10),
        bias_percent=100 * statistics.fmean(errors),
        kendall_tau=kendall_tau(predicted, measured),
        uniform_kendall_tau=kendall_tau(predicted[::2], measured[::2]),
        scale=scale,
        offset_ms=offset,
        judged_before_percent=_mape([errors[i] for i in second]),
        judged_after_percent=_mape(after),
        noisy_nets=noisy_nets,
        seed=seed,
        date=date or datetime.date.today().isoformat(),
        conditions=conditions,
        pairs=tuple(nets),
        reference_ratio=reference_ratio,
        ceiling_tau=kendall_tau([a for a, _ in two_runs], [b for _, b in two_runs]) if two_runs else None,
        ceiling_percent=_mape([2 * (a - b) / (a + b) for a, b in two_runs]) if two_runs else None,
        disturbance=disturbance,
    )


def halves(count: int, seed: int) -> tuple[list[int], list[int]]:
    """Return the numbers of the models on which the line is fitted, and of those on which it is evaluated."""
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return order[: (count + 1) // 2], order[(count + 1) // 2 :]


def kendall_tau(a: Sequence[float], b: Sequence[float]) -> float:
    """Return Kendall's tau-b of two lists: how far they put things in the same order, -1 to 1.

    0 where either list is constant or shorter than two.
    """
    agree = ties_a = ties_b = 0
    pairs = len(a) * (len(a) - 1) // 2
    for i in range(len(a)):
        for j in range(i):
            x, y = _sign(a[i] - a[j]), _sign(b[i] - b[j])
            agree += x * y
            ties_a += x == 0
            ties_b += y == 0
    untied = (pairs - ties_a) * (pairs - ties_b)
    return agree / math.sqrt(untied) if untied else 0.0


def fit_line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Return (scale, offset) of the line from x to y that has the least squared relative error.

    The identity where x does not tell: fewer than three different values, or a line that falls.
    """
    if len(set(x)) < 3:
        return 1.0, 0.0
    weights = [1 / (v * v) for v in y]
    total = sum(weights)
    mean_x = sum(w * v for w, v in zip(weights, x, strict=True)) / total
    mean_y = sum(w * v for w, v in zip(weights, y, strict=True)) / total
    spread = sum(w * (v - mean_x) ** 2 for w, v in zip(weights, x, strict=True))
    both = sum(w * (u - mean_x) * (v - mean_y) for w, u, v in zip(weights, x, y, strict=True))
    scale = both / spread
    return (scale, mean_y - scale * mean_x) if scale > 0 else (1.0, 0.0)


def _mape(errors: Sequence[float]) -> float:
    return 100 * statistics.fmean(map(abs, errors)) if errors else 0.0


def _within(errors: Sequence[float], share: float) -> float:
    return 100 * sum(abs(e) <= share for e in errors) / len(errors)


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)
