"""Entries fitted to own times and whole models, where the truth is known."""

from __future__ import annotations

import math
import random

import pytest
from simulated_machine import OFFSET_MS, maps_mb, true_model_ms, true_ms

from proxylessnas.arch.op_key import OpKey, arch_keys, space_keys
from proxylessnas.arch.spaces import read_space
from proxylessnas.errors import LatencyError
from proxylessnas.latency.fit import Fit, fit_entries
from proxylessnas.latency.metrics import kendall_tau
from proxylessnas.latency.random_models import random_models

SPACE = read_space("imagenet")
KEYS = space_keys(SPACE)


def measured(count: int, noise: float, seed: int = 0) -> list[tuple[list[OpKey], float]]:
    rng = random.Random(seed)
    archs = [SPACE.arch(choices) for choices in random_models(SPACE, count, seed=seed)]
    return [(arch_keys(a), true_model_ms(a) * math.exp(rng.gauss(0, noise))) for a in archs]


def own_times(spread: float, scale: float = 1.0, per_map: float = 0.0, seed: int = 3) -> dict[OpKey, float]:
    rng = random.Random(seed)
    return {k: scale * true_ms(k) * math.exp(rng.gauss(0, spread)) + per_map * maps_mb(k) for k in KEYS}


def errors(fit: Fit) -> tuple[float, float]:
    """Mean relative error against the truth, and Kendall's tau."""
    archs = [SPACE.arch(choices) for choices in random_models(SPACE, 60, seed=77)]
    predicted = [fit.offset_ms + sum(fit.costs_ms[k] for k in arch_keys(a)) for a in archs]
    truth = [true_model_ms(a) for a in archs]
    off = [abs(p / t - 1) for p, t in zip(predicted, truth, strict=True)]
    return sum(off) / len(off), kendall_tau(predicted, truth)


def test_exact_measurements_give_exact_entries() -> None:
    fit = fit_entries(own_times(0.0, scale=1.3), measured(120, 0.0))
    assert fit.scale == pytest.approx(1 / 1.3, rel=1e-3)
    assert fit.offset_ms == pytest.approx(OFFSET_MS, rel=0.05)
    for key in KEYS:
        assert fit.costs_ms[key] == pytest.approx(true_ms(key), rel=0.01)
    assert fit.loo_percent < 0.01


@pytest.mark.parametrize(
    ("spread", "per_map"), [(0.0, 0.0), (0.02, 0.0), (0.1, 0.0), (0.05, 0.1), (0.3, 0.0), (0.05, 0.3)]
)
def test_noise_bad_own_times_and_boundary_costs(spread: float, per_map: float) -> None:
    """Models are off by 1.3 % of their own; own times by as much as 30 %, or by the cost of converting
    maps."""
    fit = fit_entries(own_times(spread, 1.2, per_map), measured(154, 0.013))
    off, tau = errors(fit)
    assert off < (0.012 if spread < 0.2 else 0.016)
    assert tau > (0.95 if spread < 0.2 else 0.93)
    assert fit.nets == 154
    assert all(ms > 0 for ms in fit.costs_ms.values())
    # What it says about itself is about right: the models' own noise is in it.
    assert 1.0 < fit.loo_percent < 3.0


def test_the_strength_follows_the_quality_of_own_times() -> None:
    good = fit_entries(own_times(0.0), measured(154, 0.013))
    bad = fit_entries(own_times(0.4), measured(154, 0.013))
    assert good.strength > bad.strength


def test_sums_of_own_times_are_worse() -> None:
    own = own_times(0.1, 1.2, 0.1)
    fit = fit_entries(own, measured(154, 0.013))
    unfitted = Fit(own, 0.0, 0.0, 0.0, (), 1.0, 0, 0)
    assert errors(unfitted)[0] > 5 * errors(fit)[0]


def test_disturbed_models_do_not_count() -> None:
    nets = measured(154, 0.013)
    rng = random.Random(5)
    disturbed = [
        (keys, ms * (rng.uniform(1.2, 2.5) if i % 9 == 0 else 1.0)) for i, (keys, ms) in enumerate(nets)
    ]
    fit = fit_entries(own_times(0.05), disturbed)
    off, tau = errors(fit)
    assert off < 0.03
    assert tau > 0.93
    assert fit.outliers >= 15


def test_few_models() -> None:
    """As many as there is time for where loading one takes half a minute."""
    off, tau = errors(fit_entries(own_times(0.05, 1.2, 0.05), measured(24, 0.013)))
    assert off < 0.03
    assert tau > 0.9


def test_bad_input() -> None:
    own, nets = own_times(0.0), measured(30, 0.0)
    with pytest.raises(LatencyError, match="at least 5"):
        fit_entries(own, nets[:4])
    with pytest.raises(LatencyError, match="nan ms is no latency"):
        fit_entries(own, [*nets, (nets[0][0], math.nan)])
    with pytest.raises(LatencyError, match=r"-1\.0 ms is no latency"):
        fit_entries({**own, KEYS[0]: -1.0}, nets)
    with pytest.raises(LatencyError, match="whose own time is not known"):
        fit_entries({key: ms for key, ms in own.items() if key != KEYS[5]}, nets)


def test_nonsense_is_an_error_and_no_table() -> None:
    """Models that get faster the more they have to do."""
    nets = [(keys, 1e3 / ms) for keys, ms in measured(60, 0.0)]
    with pytest.raises(LatencyError, match="quieter machine"):
        fit_entries(own_times(0.0), nets)


def test_random_models_cover_the_space_and_its_latencies() -> None:
    nets = random_models(SPACE, 28, seed=1)
    assert len(set(nets)) == 28
    assert {key for choices in nets for key in arch_keys(SPACE.arch(choices))} == set(KEYS)
    for row in zip(*nets[::2], strict=True):  # the uniform ones: 14 models, 6 or 7 choices
        counts = [row.count(choice) for choice in set(row)]
        assert max(counts) - min(counts) <= 1
    assert random_models(SPACE, 10, seed=1) == nets[:10]
    assert not set(random_models(SPACE, 28, seed=2)) & set(nets)
    many = random_models(SPACE, 200, seed=0)
    ms = [true_model_ms(SPACE.arch(choices)) for choices in many]
    uniform, tilted = ms[::2], ms[1::2]
    assert max(tilted) - min(tilted) > 1.5 * (max(uniform) - min(uniform))


def test_random_models_of_a_space_with_few() -> None:
    # Only depth is left to choose.
    few = SPACE.replace(candidates=("k3e3",), stages=SPACE.stages[:3])
    nets = random_models(few, 1000, seed=0)
    depths = {tuple(len(s.ops.replace("-", "").split()) for s in few.arch(p).stages) for p in nets}
    assert len(nets) == len(depths) > 55  # models that skip other blocks of a stage are the same model
    with pytest.raises(LatencyError, match="too few models"):
        random_models(few.replace(zero=False), 2, seed=0, avoid=[(0,) * 12])
