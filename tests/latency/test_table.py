"""Latency tables: what they predict, and what they refuse."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from latency_table_tools import SPACE, every_model, little, uniform

from proxylessnas.arch.space import SpaceStage
from proxylessnas.arch.spaces import read_space
from proxylessnas.errors import LatencyError, LatencyKeyError
from proxylessnas.latency import (
    Conditions,
    ImportSettings,
    LatencyTable,
    OpKey,
    Predictor,
    arch_keys,
    doubts,
    require_trust,
    space_keys,
)
from proxylessnas.latency.table import Correction, Entry

# The published table.


def choices(text: str) -> list[int]:
    return [int(c) for c in text.replace(".", "")]


@pytest.mark.parametrize(
    ("ops", "ms"),
    [
        ("0" * 21, 76.05),
        ("1" * 21, 136.47),
        ("5" * 21, 191.03),
        ("2066.4022.5222.3222.5544.5", 82.52),
        ("1000.1002.1660.3000.3220.3", 95.53),
        ("2666.4660.5662.3602.5553.5", 65.85),
    ],
)
def test_pixel1_predicts_the_known_latencies(ops: str, ms: float) -> None:
    space = read_space("imagenet")
    assert LatencyTable.load("pixel1").predict(space.arch(choices(ops))) == pytest.approx(ms, abs=0.006)


def test_pixel1_covers_the_published_space() -> None:
    table, space = LatencyTable.load("pixel1"), read_space("imagenet")
    assert table.space == space
    assert table.coverage() == (70, 70, ())
    assert len(table.entries) == 72  # two are of first blocks that the space does not have
    assert table.range_ms()[0] == pytest.approx(29.61, abs=0.005)
    assert table.range_ms()[1] == pytest.approx(191.03, abs=0.005)
    assert float(table.expected(uniform(space))) == pytest.approx(113.99, abs=0.005)
    assert table.conditions.device_name == "Google Pixel 1"
    assert table.statistic == "mean"
    assert "not re-measured" in str(table.source)
    assert doubts(table) != []  # nobody compared it with whole models here


def test_pixel1_is_the_original_file(shared_data: Path) -> None:
    from proxylessnas.latency import import_table

    path = shared_data / "official_configs" / "pixel1_mobile_trim.yaml"
    if not path.exists():
        pytest.skip(f"no {path}")
    original = import_table(path, ImportSettings(unit="ms", device_name="Google Pixel 1"))
    assert dict(original.entries) == dict(LatencyTable.load("pixel1").entries)


def test_pixel1_lacks_other_widths() -> None:
    from proxylessnas import create_model

    with pytest.raises(LatencyKeyError) as caught:
        LatencyTable.load("pixel1").predict(create_model("proxyless_mobile").arch)
    message = str(caught.value)
    assert "k5e3 in=16x112x112 out=32 stride=2" in message
    assert "the nearest it has is k5e3 in=16x112x112 out=24 stride=2" in message
    assert "'imagenet' at 224 px" in message


# Models.


def test_a_model_costs_the_sum_of_its_operations() -> None:
    table = little()
    arch = SPACE.arch([0, 2, 1, 2])  # two blocks are skipped
    keys = arch_keys(arch)
    assert len(keys) == 6
    assert table.predict(arch) == pytest.approx(sum(table.entries[key].ms for key in keys))
    parts = table.explain(arch)
    assert [key for key, _, _ in parts.parts] == keys
    assert [how for _, _, how in parts.parts] == ["measured"] * 6
    assert parts.total_ms == pytest.approx(sum(ms for _, ms, _ in parts.parts))
    assert parts.offset_ms == parts.predicted == 0


def test_repeated_operations_count_each_time() -> None:
    space = SPACE.replace(stages=(SpaceStage(16, 1, 4),), zero=False)
    table = little(space=space)
    once = table.lookup(OpKey("k3e2", 16, 16, 16, 1, True))
    other = table.lookup(OpKey("k5e2", 16, 16, 16, 1, True))
    difference = table.predict(space.arch([0, 0, 0, 0])) - table.predict(space.arch([0, 1, 1, 1]))
    assert difference == pytest.approx(3 * (once - other))


def test_offset_and_correction_are_in_every_figure() -> None:
    plain, arch = little(), SPACE.arch([1, 1, 1, 1])
    table = little(offset_ms=0.5).with_correction(2.0, 0.25)
    total = 2 * (plain.predict(arch) + 0.5) + 0.25
    parts = table.explain(arch)
    assert table.predict(arch) == pytest.approx(total)
    assert parts.offset_ms == pytest.approx(1.25)
    assert sum(ms for _, ms, _ in parts.parts) + parts.offset_ms == pytest.approx(total)
    costs, fixed_ms = table.costs()
    assert fixed_ms + float(costs[range(4), [1, 1, 1, 1]].sum()) == pytest.approx(total)
    low, high = plain.range_ms()
    assert table.range_ms() == pytest.approx((2 * (low + 0.5) + 0.25, 2 * (high + 0.5) + 0.25))
    key = arch_keys(arch)[0]
    assert table.lookup(key) == pytest.approx(2 * plain.lookup(key))


def test_a_missing_key_is_an_error_that_names_it() -> None:
    table, key = little(), OpKey("k3e2", 16, 17, 16, 1)
    with pytest.raises(LatencyKeyError, match=r"no entry for k3e2 in=16x16x16 out=17 stride=1; the nearest"):
        table.lookup(key)
    with pytest.raises(KeyError):
        table.lookup(key)
    big = dataclasses.replace(SPACE.arch([0, 0, 0, 0]), resolution=64)
    with pytest.raises(LatencyKeyError, match=r"stem in=3x64x64 out=8 stride=2 \(and 7 more\)"):
        table.predict(big)
    assert table.predict(big, resolution=32) > 0
    with pytest.raises(LatencyKeyError, match="out=7; the nearest it has is classifier"):
        table.predict(big, resolution=32, num_classes=7)
    without = dataclasses.replace(table, space=None)
    with pytest.raises(LatencyKeyError, match="holds 12 operations of models for inputs of 32 px"):
        without.lookup(key)


def test_a_tree_is_not_predicted() -> None:
    from proxylessnas import create_model

    with pytest.raises(LatencyError, match="not made of MBConv blocks"):
        little().predict(create_model("proxyless_cifar").arch)


# A whole space.


def test_costs_add_up_to_every_model() -> None:
    table = little(offset_ms=0.1)
    costs, fixed_ms = table.costs()
    mask = torch.tensor(SPACE.mask)
    assert costs.dtype == torch.float64
    assert costs.shape == mask.shape
    assert (costs[~mask] == 0).all()
    assert (costs[:, 2] == 0).all()
    for model in every_model(SPACE):
        total = fixed_ms + float(costs[range(4), model].sum())
        assert table.predict(SPACE.arch(model)) == pytest.approx(total)
    costs.zero_()  # a copy
    assert float(table.costs()[0].sum()) > 0


def test_range_is_that_of_all_models() -> None:
    table = little(3)
    every = [table.predict(SPACE.arch(model)) for model in every_model(SPACE)]
    assert table.range_ms() == pytest.approx((min(every), max(every)))


def test_coverage_lists_what_is_missing() -> None:
    wider = SPACE.replace(stages=(*SPACE.stages, SpaceStage(32, 1, 1)))
    have, need, missing = little().coverage(wider)
    assert (have, need) == (11, 14)
    assert missing[0] == OpKey("k3e2", 24, 32, 8, 1)
    assert len(missing) == 3
    with pytest.raises(LatencyKeyError, match="and 2 more"):
        little().costs(wider)


def test_a_table_without_a_space_wants_one() -> None:
    table = dataclasses.replace(little(), space=None)
    for ask in (table.costs, table.range_ms, table.coverage, lambda: table.expected(uniform(SPACE))):
        with pytest.raises(LatencyError, match="made for no search space"):
            ask()
    assert table.range_ms(SPACE) == little().range_ms()


# Trust.


def test_trust_asks_for_a_good_validation() -> None:
    table = little()
    assert "never compared" in doubts(table)[0]
    good = table.with_validation({"kendall_tau": 0.95, "mape_percent": 2.0, "nets": 30})
    assert doubts(good) == []
    require_trust(good)
    bad = table.with_validation({"kendall_tau": 0.79, "mape_percent": 16, "nets": 30})
    assert [problem[:11] for problem in doubts(bad)] == ["it orders m", "it is off b"]
    assert len(doubts(table.with_validation({}))) == 3
    evaluated = {"kendall_tau": 1.0, "mape_percent": 0, "nets": 29}
    assert "29 models" in doubts(table.with_validation(evaluated))[0]
    rounded = {"kendall_tau": 1.0000000000000002, "mape_percent": 0, "nets": 50}
    assert doubts(table.with_validation(rounded)) == []
    with pytest.raises(
        LatencyError, match=r"not to be trusted: it orders models badly: Kendall's tau is 0.79"
    ):
        require_trust(bad)
    with pytest.warns(UserWarning, match="not to be trusted"):
        require_trust(bad, force=True)


def test_another_correction_needs_another_validation() -> None:
    good = little().with_validation({"kendall_tau": 0.95, "mape_percent": 2.0, "nets": 30})
    assert good.with_correction(1.1, 0.0).validation is None
    assert good.validation is not None


def test_a_validation_is_kept_as_json(tmp_path: Path) -> None:
    from proxylessnas.latency import Validation
    from proxylessnas.latency.metrics import evaluate

    result = evaluate([(f"net {i}", 1.0 + i, 1.01 + i) for i in range(30)])
    table = little().with_validation(result)
    assert doubts(table) == []
    again = LatencyTable.load(table.save(tmp_path / "table.json"))
    assert again.validation == table.validation
    assert Validation.from_dict(again.validation or {}) == result
    assert table.with_validation(None).validation is None


# Predicted entries.


def test_extended_entries_are_marked() -> None:
    table, wider = little(), SPACE.replace(stages=(*SPACE.stages, SpaceStage(32, 1, 2)))
    longer = table.extended(wider, Predictor.fit(table))
    assert longer.coverage(wider)[2] == ()
    assert [entry.how for entry in longer.entries.values()].count("predicted") == 5
    assert longer.explain(wider.arch([0, 0, 0, 0, 0, 0])).predicted == 3
    assert longer.predict(SPACE.arch([0, 0, 0, 0])) == table.predict(SPACE.arch([0, 0, 0, 0]))
    assert len(table.entries) == 12  # as before


# Itself.


def test_a_table_never_changes() -> None:
    entries = {key: Entry(1.0) for key in space_keys(SPACE)}
    method = {"nets": 3}
    table = LatencyTable(Conditions(), entries, method=method)
    method["nets"] = 4
    entries.clear()
    assert len(table.entries) == 12
    assert table.method == {"nets": 3}
    with pytest.raises(TypeError):
        table.entries[next(iter(table.entries))] = Entry(2.0)  # type: ignore[index]
    with pytest.raises(dataclasses.FrozenInstanceError):
        table.offset_ms = 3.0  # type: ignore[misc]


def test_a_table_can_be_copied_and_pickled() -> None:
    table = little(offset_ms=0.1)
    table.range_ms()
    for other in (copy.deepcopy(table), pickle.loads(pickle.dumps(table))):
        assert other == table
        assert other.digest == table.digest
        assert other.range_ms() == table.range_ms()


def test_the_digest_is_of_everything() -> None:
    table = little()
    others = [
        little(1),
        dataclasses.replace(table, offset_ms=1e-9),
        dataclasses.replace(table, space=None),
        table.with_correction(1.0, 0.1),
        table.with_validation({}),
        dataclasses.replace(table, conditions=Conditions(threads=2)),
    ]
    assert len({table.digest, *(other.digest for other in others)}) == 7
    assert little().digest == table.digest


KEY = OpKey("stem", 3, 8, 32, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"entries": {}}, "at least one entry"),
        ({"entries": {KEY: Entry(0.0)}}, "0.0 ms, 'measured' is no latency"),
        ({"entries": {KEY: Entry(-1.0)}}, "-1.0 ms"),
        ({"entries": {KEY: Entry(math.nan)}}, "nan ms"),
        ({"entries": {KEY: Entry(math.inf)}}, "inf ms"),
        ({"entries": {KEY: Entry(1.0, how="guessed")}}, "'guessed' is no latency"),
        ({"entries": {"stem": 1.0}}, "entries map OpKey to Entry, not 'stem' to 1.0"),
        ({"offset_ms": math.nan}, "offset_ms is nan"),
        ({"correction": Correction(0.0, 0.0)}, "correction is Correction"),
        ({"statistic": "best"}, "statistic is 'best'"),
        ({"date": "yesterday"}, "date is 'yesterday'"),
        ({"method": {"a": math.nan}}, "method cannot be written as JSON"),
        ({"validation": {"a": {1, 2}}}, "validation cannot be written as JSON"),
    ],
)
def test_impossible_tables_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(LatencyError, match=message):
        LatencyTable(**{"conditions": Conditions(), "entries": {KEY: Entry(1.0)}, **changes})


def test_every_problem_is_listed_at_once() -> None:
    with pytest.raises(LatencyError, match=r"3 problems\n.*0.0 ms.*\n.*offset_ms.*\n.*statistic"):
        LatencyTable(Conditions(), {KEY: Entry(0.0)}, offset_ms=math.inf, statistic="?")
