"""Figures that say how wrong a table is."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import random
from pathlib import Path

import pytest

from proxylessnas import cli
from proxylessnas.arch.op_key import space_keys
from proxylessnas.arch.spaces import read_space
from proxylessnas.errors import LatencyError
from proxylessnas.latency import Conditions, LatencyTable, Validation, doubts, require_trust, validate_table
from proxylessnas.latency.metrics import evaluate, fit_line, kendall_tau
from proxylessnas.latency.table import Entry, ForeignConditions
from proxylessnas.latency.validate import reference_of

#: Fields of a validation that older tables lack.
_LATER = (
    "reference_ratio", "measured_with", "space", "ceiling_tau", "ceiling_percent", "disturbance",
)  # fmt: skip


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
    found = evaluate([("a", 11.0, 10.0), ("b", 20.0, 20.0), ("c", 28.8, 30.0), ("d", 40.8, 40.0)])
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
    found = evaluate([("", (ms - 1) / 1.25, ms) for ms in truth], seed=3)
    assert (found.scale, found.offset_ms) == pytest.approx((1.25, 1.0))
    assert found.judged_before_percent > 20
    assert found.judged_after_percent == pytest.approx(0, abs=1e-9)
    assert found.correction_helps
    # A line that fits one half by chance does not pass for an improvement.
    noise = evaluate([("", ms * math.exp(rng.gauss(0, 0.02)), ms) for ms in truth], seed=3)
    assert not noise.correction_helps
    # Only the first half is used: what the judged half says must not change the line.
    order = list(range(40))
    random.Random(3).shuffle(order)
    pairs = [("", (ms - 1) / 1.25, ms) for ms in truth]
    for i in order[20:]:
        pairs[i] = ("", pairs[i][1] * 2, pairs[i][2])
    assert evaluate(pairs, seed=3).scale == pytest.approx(1.25)


def test_line_of_too_little() -> None:
    assert fit_line([1, 1, 1], [1, 2, 3]) == (1.0, 0.0)
    assert fit_line([1, 2, 3], [3, 2, 1]) == (1.0, 0.0)
    assert fit_line([1, 2, 3], [3, 5, 7]) == pytest.approx((2, 1))


def test_verdicts_and_trust() -> None:
    def found(noise: float) -> Validation:
        rng = random.Random(1)
        return evaluate([("", ms * math.exp(rng.gauss(0, noise)), ms) for ms in map(float, range(10, 60))])

    assert found(0.01).verdict.startswith("good")
    assert found(0.08).verdict.startswith("fair")
    assert found(0.5).verdict.startswith("not to be trusted")
    space = read_space("tiny")
    table = LatencyTable(Conditions(), {key: Entry(1.0) for key in space_keys(space)}, space=space)
    assert doubts(table.with_validation(found(0.01).to_dict())) == []
    assert len(doubts(table.with_validation(found(0.5)))) == 2
    with pytest.raises(LatencyError):
        require_trust(table)


def test_through_json_and_back() -> None:
    found = evaluate([("a | b", 1.0, 1.1), ("c | d", 2.0, 2.1), ("e", 3.0, 2.9)], seed=5, conditions="here")
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert Validation.from_dict(data) == found
    assert Validation.from_dict({**data, "of a later version": 1}) == found
    for name in data.keys() - set(_LATER):  # which older tables lack
        with pytest.raises(LatencyError, match="cannot be read"):
            Validation.from_dict({key: value for key, value in data.items() if key != name})
    with pytest.raises(LatencyError, match="cannot be read"):
        Validation.from_dict({**data, "pairs": [1]})


def spread(noise: float, seed: int = 1, low: int = 10) -> list[float]:
    """Return 50 latencies with noise."""
    rng = random.Random(seed)
    return [ms * math.exp(rng.gauss(0, noise)) for ms in map(float, range(low, low + 50))]


def of_ceiling(tau: float, ceiling: float | None) -> LatencyTable:
    space = read_space("tiny")
    found = evaluate([("", ms, ms) for ms in spread(0.0)])
    known = dataclasses.replace(
        found, kendall_tau=tau, ceiling_tau=ceiling, ceiling_percent=None if ceiling is None else 2.0
    )
    table = LatencyTable(Conditions(), {key: Entry(1.0) for key in space_keys(space)}, space=space)
    return table.with_validation(known)


def test_the_ceiling_is_what_two_runs_agree_in() -> None:
    a, b = spread(0.05, 1), spread(0.05, 2)
    found = evaluate([("", ms, ms) for ms in a], two_runs=list(zip(a, b, strict=True)), disturbance=1.5)
    assert found.ceiling_tau == kendall_tau(a, b) < 1
    assert found.ceiling_percent == pytest.approx(
        100 * sum(2 * abs(x - y) / (x + y) for x, y in zip(a, b, strict=True)) / 50
    )
    assert f"tau {found.ceiling_tau:.3f}, which is what this machine allows" in found.verdict
    assert Validation.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    assert evaluate([("", ms, ms) for ms in a]).ceiling_tau is None


@pytest.mark.parametrize(
    ("tau", "ceiling", "word"),
    [
        (0.7, 0.78, "fair"),  # 90 % of what two runs reach
        (0.71, 0.78, "good"),
        (0.62, 0.78, "not to be trusted"),
        (0.7, 0.99, "not to be trusted"),
        (0.7, None, "not to be trusted"),
        (0.81, 1.0, "fair"),
        (0.95, 0.99, "good"),
    ],
)
def test_a_table_is_asked_for_what_the_machine_allows(tau: float, ceiling: float | None, word: str) -> None:
    table = of_ceiling(tau, ceiling)
    assert Validation.from_dict(table.validation or {}).verdict.startswith(word)
    problems = doubts(table)
    assert bool(problems) == (word == "not to be trusted")
    if problems:
        limited = "" if ceiling is None else f" (two runs of the same models: {ceiling})"
        wanted = "0.62" if ceiling == 0.78 else f"{min(0.8, 0.8 * (ceiling or 1)):.2g}"
        assert (
            problems == [f"it orders models badly: Kendall's tau is {tau}, wanted {wanted} or more{limited}"]
            or ceiling == 0.78
        )


def test_a_space_that_two_runs_order_differently_has_no_latency_to_choose_by() -> None:
    (problem,) = doubts(of_ceiling(0.9, 0.3))
    assert (
        "differ by less than two runs of one of them, which put them in unlike orders (Kendall's tau 0.30)"
        in problem
    )
    assert problem.endswith("--space small")


def test_another_speed_of_the_reference_is_told() -> None:
    pairs = [("", ms, ms) for ms in spread(0.0)]
    assert "1.50 times as long as when the table was made" in evaluate(pairs, reference_ratio=1.5).verdict
    assert "0.80 times as long" in evaluate(pairs, reference_ratio=0.8).verdict
    assert "times as long" not in evaluate(pairs, reference_ratio=1.04).verdict


def test_validations_of_older_tables_are_read() -> None:
    """With a pace, and without what later versions found out."""
    data = evaluate([("", ms, ms) for ms in spread(0.0)]).to_dict()
    old = {name: value for name, value in data.items() if name not in _LATER}
    found = Validation.from_dict({**old, "pace": 1.3, "noisy_nets": 4})
    assert (found.reference_ratio, found.noisy_nets) == (1.3, 4)
    assert (found.ceiling_tau, found.ceiling_percent, found.disturbance) == (None, None, None)
    assert "what this machine allows" not in found.verdict
    assert Validation.from_dict(old).reference_ratio == 1.0
    for name in ("pace", "reference_ratio"):
        for bad in (0, -1, math.inf, math.nan, "fast"):
            with pytest.raises(LatencyError, match="validation cannot be read"):
                Validation.from_dict({**old, name: bad})


def test_an_old_table_says_that_it_is_of_medians(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = of_ceiling(0.95, None)
    known = {k: v for k, v in (table.validation or {}).items() if k not in _LATER}
    method = {
        "nets": 40,
        "seed": 0,
        "nets_without_a_quiet_visit": 3,
        "pace": {"reference_ms": 1.0, "net": "x"},
    }
    old = dataclasses.replace(table, statistic="median", method=method, validation={**known, "pace": 1.0})
    found = LatencyTable.load(old.save(tmp_path / "old.json"))
    assert found.statistic == "median"
    assert doubts(found) == []
    assert reference_of(found) is None  # a median is nothing to compare a low quantile with
    assert cli.main(["latency", "show", str(tmp_path / "old.json")]) == 0
    assert "median of the runs" in " ".join(capsys.readouterr().out.split())


def test_bad_input() -> None:
    with pytest.raises(LatencyError, match="at least 2 models"):
        evaluate([("", 1.0, 1.0)])
    for bad in (math.nan, math.inf, 0.0, -1.0):
        with pytest.raises(LatencyError, match="finite"):
            evaluate([("", 1.0, 1.0), ("", 1.0, bad)])


def test_what_cannot_be_validated() -> None:
    space = read_space("tiny")
    entries = {key: Entry(1.0) for key in space_keys(space)}
    with pytest.raises(LatencyError, match="made for no search space"):
        validate_table(LatencyTable(Conditions(), entries))
    with pytest.raises(LatencyError):
        validate_table(LatencyTable(ForeignConditions(runtime="TF-Lite"), entries, space=space))
    with pytest.raises(KeyError, match="has no entry"):
        validate_table(LatencyTable(Conditions(), entries, space=space), read_space("small"))
