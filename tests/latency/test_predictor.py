"""A regression for operations that were not measured."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from proxylessnas.arch.op_key import key_bytes, key_macs
from proxylessnas.arch.ops import register_op
from proxylessnas.arch.spaces import read_space
from proxylessnas.errors import LatencyError, LatencyKeyError
from proxylessnas.latency import Conditions, LatencyTable, OpKey, Predictor, arch_keys, space_keys
from proxylessnas.latency.predictor import non_negative
from proxylessnas.latency.table import Entry


def device(key: OpKey) -> float:
    """Latency on a device of 5 GMAC/s and 8 GB/s that needs 20 us to start an operation, in ms."""
    macs, traffic = key_macs(key), key_bytes(key)
    assert macs is not None
    assert traffic is not None
    return macs / 5e6 + sum(traffic) / 8e6 + 0.02


def measured(space: str, noise: float = 0.0) -> dict[OpKey, float]:
    rng = random.Random(0)
    return {key: device(key) * (1 + rng.gauss(0, noise)) for key in space_keys(read_space(space))}


@functools.cache
def pixel1() -> Predictor:
    return Predictor.fit(LatencyTable.load("pixel1"))


def test_a_device_that_follows_the_rules_is_learned() -> None:
    predictor = Predictor.fit(measured("imagenet", 0.01))
    assert predictor.held_out is not None
    assert predictor.held_out_shapes is not None
    assert predictor.held_out.rmspe_percent < 3
    assert predictor.held_out.within_10_percent > 97
    assert predictor.held_out_shapes.rmspe_percent < 6
    errors = []
    for space in (read_space("imagenet@1.4"), read_space("imagenet").replace(resolution=160)):
        errors += [predictor.predict(key) / device(key) - 1 for key in space_keys(space)]
    assert len(errors) > 130
    assert max(map(abs, errors)) < 0.25
    assert (sum(e * e for e in errors) / len(errors)) ** 0.5 < 0.07


def test_errors_on_the_published_table() -> None:
    """The figures that the docstring and the README give."""
    predictor = pixel1()
    single, shapes = predictor.held_out, predictor.held_out_shapes
    assert single is not None
    assert shapes is not None
    assert single.entries == shapes.entries == 69  # stem, last layer and classifier are one of a kind
    assert single.rmspe_percent == pytest.approx(2.62, abs=0.05)
    assert single.rmse_ms == pytest.approx(0.210, abs=0.005)
    assert single.within_5_percent > 92
    assert single.within_10_percent > 98
    assert shapes.rmspe_percent == pytest.approx(10.06, abs=0.1)
    assert shapes.rmse_ms == pytest.approx(0.696, abs=0.01)
    assert shapes.within_10_percent > 82


def test_what_was_measured_is_reproduced() -> None:
    table = LatencyTable.load("pixel1")
    predictor = pixel1()
    for key, entry in table.entries.items():
        assert predictor.predict(key) == pytest.approx(entry.ms, rel=0.05)


def test_larger_operations_take_longer() -> None:
    predictor = pixel1()
    for sizes in ((28, 56, 112, 224), (7, 9, 14, 20, 28)):
        times = [predictor.predict(OpKey("k5e6", 40, 40, size, 1, True)) for size in sizes]
        assert times == sorted(times)
    times = [predictor.predict(OpKey("k5e6", n, n, 14, 1, True)) for n in (16, 32, 48, 64, 96, 128, 256)]
    assert times == sorted(times)


@pytest.mark.parametrize("size", [1, 7, 10_000])
@pytest.mark.parametrize("channels", [1, 100, 60_000])
@pytest.mark.parametrize("op", ["k3e1", "k31e50", "stem", "last", "classifier"])
def test_predictions_are_positive_and_finite_everywhere(op: str, channels: int, size: int) -> None:
    predictor = pixel1()
    value = predictor.predict(OpKey(op, channels, channels, size))
    assert 0 < value < math.inf


def test_kinds_that_were_not_measured_are_refused() -> None:
    times = measured("tiny")
    blocks = {key: ms for key, ms in times.items() if key.kind == "mbconv"}
    predictor = Predictor.fit(blocks)
    assert predictor.predict(OpKey("k7e6", 16, 16, 8, 1, True)) > 0
    with pytest.raises(
        LatencyKeyError, match=r"no operation like stem in=3x32x32 out=8 .*; the nearest is k"
    ):
        predictor.predict(OpKey("stem", 3, 8, 32, 2))


def test_registered_operations() -> None:
    register_op("latency_predictor_op", lambda i, o, s: torch.nn.Conv2d(i, o, 3, s, 1))
    times, unseen = measured("tiny"), OpKey("latency_predictor_op", 16, 16, 16, 1, True)
    with pytest.raises(LatencyKeyError, match="no operation like latency_predictor_op"):
        Predictor.fit(times).predict(unseen)
    for size, ms in ((32, 4.0), (8, 0.25), (4, 0.07)):
        times[unseen._replace(size=size)] = ms
    assert 0.5 < Predictor.fit(times).predict(unseen) < 2.0
    other = OpKey("another_operation", 16, 16, 16, 1, True)
    with pytest.raises(LatencyKeyError, match="another_operation"):
        Predictor.fit(times).predict(other)


def test_predicted_entries_teach_nothing() -> None:
    times = measured("tiny")
    table = LatencyTable(Conditions(), {key: Entry(ms) for key, ms in times.items()})
    predictor = Predictor.fit(table)
    longer = table.extended(read_space("small"), predictor)
    assert len(longer.entries) > len(table.entries) + 20
    again = Predictor.fit(longer)
    assert again.keys == predictor.keys
    assert again.weights == predictor.weights
    wrong = dataclasses.replace(table, entries={**table.entries, OpKey("k3e3", 8, 8, 8): Entry(1e6)})
    assert Predictor.fit(wrong).weights != predictor.weights


def test_the_sum_over_a_model_is_close() -> None:
    """Models of another width, all of whose operations are predicted."""
    predictor, space = Predictor.fit(measured("imagenet", 0.01)), read_space("imagenet@1.4")
    rng = random.Random(0)
    for _ in range(10):
        keys = arch_keys(space.arch(space.random_choices(rng)))
        assert sum(map(predictor.predict, keys)) == pytest.approx(sum(map(device, keys)), rel=0.1)


def test_few_operations_are_too_few() -> None:
    times = dict(list(measured("tiny").items())[:5])
    with pytest.raises(LatencyError, match="fitted to 6 to 3,000 measured operations, not 5"):
        Predictor.fit(times)


@pytest.mark.parametrize("ms", [0.0, -1.0, math.nan, math.inf])
def test_impossible_times_are_refused(ms: float) -> None:
    times = measured("tiny")
    times[OpKey("stem", 3, 8, 64, 2)] = ms
    with pytest.raises(LatencyError, match=r"stem in=3x64x64 out=8 stride=2: .* is no latency"):
        Predictor.fit(times)


def test_nothing_is_held_out_where_nothing_is_left() -> None:
    keys = [OpKey("stem", 3, 8, size, 2) for size in (32, 64)]
    times = {key: device(key) for key in (*keys, *[OpKey("last", 8, 8, size) for size in (4, 8, 16, 32)])}
    predictor = Predictor.fit(times)
    assert predictor.held_out is not None
    assert predictor.held_out.entries == 6
    times = {OpKey(f"custom_{i}", 8, 8, 8): 1.0 for i in range(6)}
    assert Predictor.fit(times).held_out is None


def test_weights_that_are_not_negative() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        a = torch.randn(20, 5, dtype=torch.float64, generator=generator)
        b = torch.randn(20, dtype=torch.float64, generator=generator)
        x = non_negative(a, b)
        slope = a.T @ (a @ x - b)
        # The conditions of Karush, Kuhn and Tucker, which only the solution meets.
        assert (x >= 0).all()
        assert (slope >= -1e-9).all()
        assert (slope * x).abs().max() < 1e-9


# Files.


def test_a_predictor_survives_its_file(tmp_path: Path) -> None:
    predictor = pixel1()
    again = Predictor.load(predictor.save(tmp_path / "predictor.json"))
    assert again.held_out == predictor.held_out
    assert again.held_out_shapes == predictor.held_out_shapes
    for key in space_keys(read_space("imagenet@1.4")):
        assert again.predict(key) == predictor.predict(key)
    with pytest.raises(LatencyError, match="cannot write"):
        predictor.save(tmp_path / "missing" / "predictor.json")
    with pytest.raises(LatencyError, match="cannot read"):
        Predictor.load(tmp_path / "missing.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "x"}, "no latency predictor of this package"),
        ({"version": 2}, "newer version"),
        ({"version": 0}, "version is 0"),
        ({"unit": "s"}, 'unit is "s"'),
        ({"coefficients": [1.0]}, "coefficients is"),
        ({"coefficients": [-1.0] * 6}, "coefficients is"),
        ({"coefficients": [0] * 6}, "every coefficient is 0"),
        ({"center": None}, "center is null"),
        ({"held_out": {}}, "held_out is"),
        ({"held_out": 3}, "held_out is 3"),
        ({"operations": []}, "operations is"),
        ({"operations": [3]}, "operation 1 is 3"),
        ({"operations": [{"key": "x", "weight": 1}]}, "operation 1: 'x' is no key"),
        ({"operations": [{"key": "stem in=3x8x8 out=8 stride=2", "weight": "1"}]}, "operation 1 is"),
        ({"extra": 1}, "unknown key"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    data = pixel1().to_dict()
    path = tmp_path / "predictor.json"
    path.write_text(json.dumps({**data, **changes}), encoding="utf-8")
    with pytest.raises(LatencyError, match=message):
        Predictor.load(path)
