"""Figures that say how wrong a table is."""

from __future__ import annotations

import itertools
import json
import math
import random

import pytest

from proxylessnas.errors import LatencyError
from proxylessnas.latency import Conditions, LatencyTable, Validation, validate_table
from proxylessnas.latency.agreement import fit_line, judge, kendall_tau
from proxylessnas.latency.keys import space_keys
from proxylessnas.latency.table import Entry, ForeignConditions
from proxylessnas.spaces import read_space


def tau_by_the_book(a: list[float], b: list[float]) -> float:
    """(concordant - discordant) / sqrt((pairs - ties in a) (pairs - ties in b))."""
    pairs = list(itertools.combinations(range(len(a)), 2))
    concordant = sum((a[i] < a[j] and b[i] < b[j]) or (a[i] > a[j] and b[i] > b[j]) for i, j in pairs)
    discordant = sum((a[i] < a[j] and b[i] > b[j]) or (a[i] > a[j] and b[i] < b[j]) for i, j in pairs)
    in_a, in_b = sum(a[i] != a[j] for i, j in pairs), sum(b[i] != b[j] for i, j in pairs)
    return (concordant - discordant) / math.sqrt(in_a * in_b)


def test_kendall_tau() -> None:
    assert kendall_tau([1, 2, 3, 4], [10, 20, 30, 40]) == 1
    assert kendall_tau([1, 2, 3, 4], [4, 3, 2, 1]) == -1
    assert kendall_tau([1, 2, 3], [1, 3, 2]) == pytest.approx(1 / 3)
    assert kendall_tau([12, 2, 1, 12, 2], [1, 4, 7, 1, 0]) == pytest.approx(
        -0.47140452079103173
    )  # SciPy's example
    assert kendall_tau([1, 1, 1], [1, 2, 3]) == kendall_tau([1], [2]) == kendall_tau([], []) == 0
    rng = random.Random(0)
    for _ in range(50):
        n = rng.randint(3, 12)
        a, b = ([float(rng.randint(0, 6)) for _ in range(n)] for _ in range(2))
        if len(set(a)) > 1 and len(set(b)) > 1:
            assert kendall_tau(a, b) == pytest.approx(tau_by_the_book(a, b))


def test_figures() -> None:
    found = judge([("a", 11.0, 10.0), ("b", 20.0, 20.0), ("c", 28.8, 30.0), ("d", 40.8, 40.0)])
    assert found.nets == 4
    assert found.mape_percent == pytest.approx((10 + 0 + 4 + 2) / 4)
    assert found.bias_percent == pytest.approx((10 + 0 - 4 + 2) / 4)
    assert found.rmspe_percent == pytest.approx(math.sqrt((100 + 0 + 16 + 4) / 4))
    assert found.within_5_percent == 75
    assert found.within_10_percent in (75, 100)  # 10 % is not a number of the machine's
    assert found.kendall_tau == found.uniform_kendall_tau == 1
    assert found.verdict.startswith(
        "good: off by 4.0 % on average (bias +2.0 %), Kendall tau 1.000, on 4 random"
    )


def test_line_is_fitted_on_one_half_and_judged_on_the_other() -> None:
    rng = random.Random(0)
    truth = [rng.uniform(5, 20) for _ in range(40)]
    found = judge([("", (ms - 1) / 1.25, ms) for ms in truth], seed=3)
    assert (found.scale, found.offset_ms) == pytest.approx((1.25, 1.0))
    assert found.judged_before_percent > 20
    assert found.judged_after_percent == pytest.approx(0, abs=1e-9)
    assert found.correction_helps
    # A line that fits one half by chance does not pass for an improvement.
    noise = judge([("", ms * math.exp(rng.gauss(0, 0.02)), ms) for ms in truth], seed=3)
    assert not noise.correction_helps
    # Only the first half is used: what the judged half says must not change the line.
    order = list(range(40))
    random.Random(3).shuffle(order)
    pairs = [("", (ms - 1) / 1.25, ms) for ms in truth]
    for i in order[20:]:
        pairs[i] = ("", pairs[i][1] * 2, pairs[i][2])
    assert judge(pairs, seed=3).scale == pytest.approx(1.25)


def test_line_of_too_little() -> None:
    assert fit_line([1, 1, 1], [1, 2, 3]) == (1.0, 0.0)
    assert fit_line([1, 2, 3], [3, 2, 1]) == (1.0, 0.0)
    assert fit_line([1, 2, 3], [3, 5, 7]) == pytest.approx((2, 1))


def test_verdicts_and_trust() -> None:
    def found(noise: float) -> Validation:
        rng = random.Random(1)
        return judge([("", ms * math.exp(rng.gauss(0, noise)), ms) for ms in map(float, range(10, 60))])

    assert found(0.01).verdict.startswith("good")
    assert found(0.08).verdict.startswith("fair")
    assert found(0.5).verdict.startswith("not to be trusted")
    space = read_space("tiny")
    table = LatencyTable(Conditions(), {key: Entry(1.0) for key in space_keys(space)}, space=space)
    assert table.with_validation(found(0.01).to_dict()).trust() == []
    assert len(table.with_validation(found(0.5)).trust()) == 2
    with pytest.raises(LatencyError):
        table.require_trust()


def test_through_json_and_back() -> None:
    found = judge([("a | b", 1.0, 1.1), ("c | d", 2.0, 2.1), ("e", 3.0, 2.9)], seed=5, conditions="here")
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert Validation.from_dict(data) == found
    assert Validation.from_dict({**data, "of a later version": 1}) == found
    for name in data.keys() - {"pace", "measured_with", "space"}:  # which older tables lack
        with pytest.raises(LatencyError, match="cannot be read"):
            Validation.from_dict({key: value for key, value in data.items() if key != name})
    with pytest.raises(LatencyError, match="cannot be read"):
        Validation.from_dict({**data, "pairs": [1]})


def test_bad_input() -> None:
    with pytest.raises(LatencyError, match="at least 2 nets"):
        judge([("", 1.0, 1.0)])
    for bad in (math.nan, math.inf, 0.0, -1.0):
        with pytest.raises(LatencyError, match="finite"):
            judge([("", 1.0, 1.0), ("", 1.0, bad)])


def test_what_cannot_be_validated() -> None:
    space = read_space("tiny")
    entries = {key: Entry(1.0) for key in space_keys(space)}
    with pytest.raises(LatencyError, match="made for no search space"):
        validate_table(LatencyTable(Conditions(), entries))
    with pytest.raises(LatencyError):
        validate_table(LatencyTable(ForeignConditions(runtime="TF-Lite"), entries, space=space))
    with pytest.raises(KeyError, match="has no entry"):
        validate_table(LatencyTable(Conditions(), entries, space=space), read_space("small"))
