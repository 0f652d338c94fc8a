"""From times of single operations and of whole models to entries whose sums are the latencies of models.

An operation's own time is only a good guess of what it adds to a model: a clock between two operations costs
time, an operation alone finds its input in the cache, and a model has costs that belong to no operation. And
each measured model is off by a percent or two of its own (where its memory happens to lie), so a regression
on whole models alone would need far more of them. So both are used: a Bayesian ridge regression

    latency of a model = offset + sum over its operations of [scale * own * (1 + d) + block + bytes * traffic]

with a line through the own times (scale, offset), and where they help, a cost of every block and one of the
maps it reads and writes; ``d`` is each operation's own deviation. The ridge's strength and the terms are
those with the least error on left-out models. Errors are relative, disturbed models count less (Huber's
weights).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..arch.op_key import FIXED, OpKey, arch_keys
from ..arch.space import SearchSpace
from ..errors import LatencyError
from ..runtimes.settings import Conditions
from .table import Entry, LatencyTable

#: Strengths of the ridge that are tried: how many models' worth an operation's own time counts.
STRENGTHS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 20.0, 100.0)
#: Terms of the line that are tried, each with a list of what is added to ``scale`` and ``offset``.
TERMS = ((), ("block",), ("traffic",), ("block", "traffic"))
#: An entry is at least this share of the operation's own time; a fit that wants less is refused.
LEAST_SHARE = 0.1
_CLEARLY = 0.98  # a richer line must lower the error by this factor to be preferred
_HUBER = 1.345
_FLOAT_BYTES = 4


@dataclass(frozen=True)
class Fit:
    """Entries of a table.

    Attributes:
        costs_ms: what each operation adds to a model's latency; positive.
        offset_ms: what belongs to no operation; may be negative.
        loo_percent: root mean square relative error on left-out models, disturbed ones weighted down.
        strength: of the ridge: how many models' worth the own times count.
        terms: of the line, after scale and offset.
        scale: of the own times.
        nets: measured models it was fitted on.
        outliers: models among them that count less than half.
    """

    costs_ms: dict[OpKey, float]
    offset_ms: float
    loo_percent: float
    strength: float
    terms: tuple[str, ...]
    scale: float
    nets: int
    outliers: int


def fitted_table(
    conditions: Conditions,
    space: SearchSpace,
    own: Mapping[OpKey, Entry],
    models: Sequence[tuple[Sequence[int], float]],
    method: Mapping[str, Any],
    **options: Any,
) -> LatencyTable:
    """Return a table whose entries are fitted to whole models.

    Args:
        conditions: that everything was measured under.
        space: that the table is for.
        own: each operation's own time, with its 10 % and 90 % quantiles, which keep their relative distance.
        models: (picks, measured ms) of each model.
        method: how all this was measured; how it was fitted is added.
        options: further fields of :class:`~.table.LatencyTable`.
    """
    fit = fit_entries(
        {key: entry.ms for key, entry in own.items()},
        [(arch_keys(space.arch(choices)), ms) for choices, ms in models],
    )
    entries = {}
    for key, entry in own.items():
        ms = fit.costs_ms[key]
        share = ms / entry.ms
        assert entry.p10_ms is not None
        assert entry.p90_ms is not None
        entries[key] = Entry(ms, share * entry.p10_ms, share * entry.p90_ms, entry.runs, "fitted")
    found = {
        "left_out_rmspe_percent": fit.loo_percent,
        "strength": fit.strength,
        "terms": list(fit.terms),
        "scale": fit.scale,
        "outliers": fit.outliers,
    }
    return LatencyTable(
        conditions, entries, space, offset_ms=fit.offset_ms, method={**method, "fit": found}, **options
    )


def fit_entries(own_ms: Mapping[OpKey, float], nets: Sequence[tuple[Sequence[OpKey], float]]) -> Fit:
    """Fit entries to own times and to measured models.

    Args:
        own_ms: each operation's own time in milliseconds; of all operations that are to have an entry.
        nets: the operations of a model (repeated ones repeated), and its measured latency in milliseconds.

    Raises:
        LatencyError: under five models, a time that is not positive, or an operation without own time.
    """
    keys = list(own_ms)
    _check(own_ms, nets)
    index = {key: i for i, key in enumerate(keys)}
    counts = torch.zeros(len(nets), len(keys), dtype=torch.float64)
    for row, (operations, _) in zip(counts, nets, strict=True):
        for key in operations:
            row[index[key]] += 1
    problem = _Problem(
        counts,
        torch.tensor([own_ms[key] for key in keys], dtype=torch.float64),
        torch.tensor([ms for _, ms in nets], dtype=torch.float64),
        {"block": _is_block(keys), "traffic": _traffic(keys)},
    )
    weights = torch.ones(len(nets), dtype=torch.float64)
    best = problem.solve((), 1.0, weights)
    for _ in range(3):
        weights = _huber(best.left_out)
        best = _choose(problem, weights)
    return Fit(
        costs_ms={key: float(ms) for key, ms in zip(keys, best.costs, strict=True)},
        offset_ms=best.offset,
        loo_percent=100 * best.error,
        strength=best.strength,
        terms=best.terms,
        scale=best.scale,
        nets=len(nets),
        outliers=int((weights < 0.5).sum()),
    )


def _check(own_ms: Mapping[OpKey, float], nets: Sequence[tuple[Sequence[OpKey], float]]) -> None:
    if len(nets) < 5:
        raise LatencyError(f"a table is fitted to at least 5 measured models, not {len(nets)}")
    for what, ms in [(str(key), ms) for key, ms in own_ms.items()] + [("a model", ms) for _, ms in nets]:
        if not (math.isfinite(ms) and ms > 0):
            raise LatencyError(f"{what}: {ms} ms is no latency")
    for operations, _ in nets:
        for key in operations:
            if key not in own_ms:
                raise LatencyError(f"a measured model has the operation {key}, whose own time is not known")


def _is_block(keys: Sequence[OpKey]) -> Tensor:
    return torch.tensor([float(key.op not in FIXED) for key in keys], dtype=torch.float64)


def _traffic(keys: Sequence[OpKey]) -> Tensor:
    """Return the MB of the maps that each operation reads and writes (not those inside it)."""

    def values(k: OpKey) -> int:
        return k.in_channels * k.size**2 * (1 + k.shortcut) + k.out_channels * k.out_size**2

    return torch.tensor([values(key) * _FLOAT_BYTES / 1e6 for key in keys], dtype=torch.float64)


@dataclass(frozen=True)
class _Solution:
    costs: Tensor  # [keys], ms
    offset: float
    scale: float
    left_out: Tensor  # [models], relative error of the model when it is left out
    error: float  # root of their weighted mean square
    strength: float
    terms: tuple[str, ...]
    positive: bool


@dataclass(frozen=True)
class _Problem:
    counts: Tensor  # [models, keys]
    own: Tensor  # [keys], ms
    measured: Tensor  # [models], ms
    extra: Mapping[str, Tensor]  # term -> [keys]

    def solve(self, terms: tuple[str, ...], strength: float, weights: Tensor) -> _Solution:
        """Solve one ridge regression in closed form; left-out errors come from the hat matrix."""
        per_key = torch.stack([self.own, *(self.extra[name] for name in terms)], dim=1)  # [keys, line]
        line = torch.cat([torch.ones(len(self.counts), 1, dtype=torch.float64), self.counts @ per_key], dim=1)
        # Relative errors: each equation is divided by the measured latency.
        design = torch.cat([line, self.counts * self.own], dim=1) / self.measured[:, None]
        columns = design.shape[1]
        # The line is free, but for a trace that keeps the system regular where a space has one depth.
        size = design.square().sum(0).clamp_min(1e-12)
        penalty = torch.where(torch.arange(columns) < line.shape[1], 1e-9 * size, strength)
        weighted = design.T * weights
        inverse = torch.linalg.inv(weighted @ design + torch.diag(penalty))
        solution = inverse @ weighted.sum(1)  # the right-hand side is 1 everywhere
        hat = ((design @ inverse) * design).sum(1) * weights
        left_out = (design @ solution - 1.0) / (1.0 - hat).clamp_min(1e-3)
        error = float(((weights * left_out.square()).sum() / weights.sum()).sqrt())
        offset, scale = float(solution[0]), float(solution[1])
        deviations = solution[line.shape[1] :]
        costs = per_key @ solution[1 : line.shape[1]] + self.own * deviations
        floor = LEAST_SHARE * self.own * max(scale, 0.0)
        positive = scale > 0 and bool((costs > floor).all())
        return _Solution(costs, offset, scale, left_out, error, strength, terms, positive)


def _choose(problem: _Problem, weights: Tensor) -> _Solution:
    """Return the solution with the least left-out error, simple ones first."""
    best: _Solution | None = None
    for terms in TERMS:
        found = [problem.solve(terms, strength, weights) for strength in STRENGTHS]
        usable = [solution for solution in found if solution.positive]
        if not usable:
            continue
        this = min(usable, key=lambda solution: solution.error)
        if best is None or this.error < _CLEARLY * best.error:
            best = this
    if best is not None:
        return best
    raise LatencyError(
        "the measured models do not get slower with their operations: the measurements are too disturbed. "
        "Measure again on a quieter machine"
    )


def _huber(errors: Tensor) -> Tensor:
    """Return Huber's weights: 1 for errors within what most models have, falling beyond."""
    spread = 1.4826 * float((errors - errors.median()).abs().median())
    return (_HUBER * max(spread, 1e-6) / (errors - errors.median()).abs().clamp_min(1e-12)).clamp(max=1.0)
