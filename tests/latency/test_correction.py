"""Corrections that a validation found: adopted, judged on models they were not fitted on, or refused."""

from __future__ import annotations

import dataclasses
import math
import random
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from simulated_machine import Machine, simulated

from proxylessnas import cli
from proxylessnas.arch.spaces import read_space
from proxylessnas.errors import LatencyError
from proxylessnas.latency import (
    Conditions,
    LatencyTable,
    Validation,
    adopt_correction,
    doubts,
    space_keys,
    validate_table,
)
from proxylessnas.latency.metrics import evaluate, halves
from proxylessnas.latency.random_models import Picks, random_models
from proxylessnas.latency.table import Correction, Entry, ForeignConditions
from proxylessnas.latency.table_io import conditions_to_dict
from proxylessnas.latency.validate import FITTED_ON, compared, elsewhere, fitted_on, misplaced

SPACE = read_space("imagenet")
SEED = 3


@pytest.fixture(scope="module")
def table() -> LatencyTable:
    rng = random.Random(0)
    entries = {key: Entry(rng.uniform(0.2, 2.0)) for key in space_keys(SPACE)}
    return LatencyTable(Conditions(device_name="a test"), entries, space=SPACE, offset_ms=0.1)


def choices_of(count: int = 60) -> list[Picks]:
    return random_models(SPACE, count, seed=SEED)


def truth(
    table: LatencyTable,
    choices: Sequence[Picks],
    scale: float = 1.3,
    offset: float = 0.8,
    noise: float = 0.01,
) -> list[float]:
    """Return what a device would measure of which the table is off by a line."""
    rng = random.Random(1)
    return [(scale * table.predict(SPACE.arch(p)) + offset) * math.exp(rng.gauss(0, noise)) for p in choices]


def validated(table: LatencyTable, count: int = 60, **truths: float) -> LatencyTable:
    choices = choices_of(count)
    found = evaluate(
        compared(table, SPACE, choices, truth(table, choices, **truths)), seed=SEED, noisy_nets=2
    )
    where = conditions_to_dict(table.conditions)
    return table.with_validation(dataclasses.replace(found, measured_with=where, space=SPACE.digest))


def test_the_corrected_table_is_judged_on_the_half_it_was_not_fitted_on(table: LatencyTable) -> None:
    before = validated(table)
    after = adopt_correction(before)
    choices = choices_of()
    _, evaluated = halves(60, SEED)
    measured = truth(table, choices)
    found = Validation.from_dict(after.validation or {})
    assert found.nets == len(evaluated) == 30
    texts = [" | ".join(stage.ops for stage in SPACE.arch(choices[i]).stages) for i in sorted(evaluated)]
    assert [text for text, _, _ in found.pairs] == texts
    # Each prediction is the corrected table's own, and the figures are those of these predictions.
    for (_, predicted, ms), i in zip(found.pairs, sorted(evaluated), strict=True):
        assert predicted == pytest.approx(after.predict(SPACE.arch(choices[i])))
        assert ms == measured[i]
    errors = [abs(after.predict(SPACE.arch(choices[i])) / measured[i] - 1) for i in evaluated]
    assert found.mape_percent == pytest.approx(100 * statistics.fmean(errors))
    old = Validation.from_dict(before.validation or {})
    assert found.mape_percent == pytest.approx(old.judged_after_percent)
    assert old.mape_percent > 20 > 2 > found.mape_percent
    assert doubts(after) == []
    assert doubts(before) != []
    assert (found.noisy_nets, found.space, found.measured_with) == (2, old.space, old.measured_with)
    said = after.method["correction"]
    assert (said["fitted_on_nets"], said["judged_on_nets"]) == (30, 30)
    assert said["mape_before_percent"] == old.judged_before_percent
    # The rank correlation of the uniform half is that of the uniform models among these.
    alone = evaluate([found.pairs[n] for n, i in enumerate(sorted(evaluated)) if i % 2 == 0])
    assert found.uniform_kendall_tau == alone.kendall_tau


def test_no_later_validation_draws_a_model_that_the_correction_was_fitted_on(table: LatencyTable) -> None:
    after = adopt_correction(validated(table))
    choices = choices_of()
    assert set(fitted_on(after, SPACE)) == {choices[i] for i in halves(60, SEED)[0]}
    later = random_models(SPACE, 60, seed=SEED, avoid=fitted_on(after, SPACE))
    assert not {*later} & {*fitted_on(after, SPACE)}
    assert fitted_on(after, SPACE.replace(resolution=160)) == []
    own = dataclasses.replace(after, method={**after.method, "nets": 5, "seed": 11})
    assert {*fitted_on(own, SPACE)} == {*fitted_on(after, SPACE), *random_models(SPACE, 5, seed=11)}
    with pytest.raises(LatencyError, match="the table's method is damaged"):
        fitted_on(dataclasses.replace(after, method={FITTED_ON: [[99] * 21]}), SPACE)


def test_a_correction_upon_a_correction(table: LatencyTable) -> None:
    first = table.with_correction(1.1, 0.2)
    after = adopt_correction(validated(first))
    plain, both = first.predict(SPACE.arch(choices_of()[0])), after.predict(SPACE.arch(choices_of()[0]))
    found = evaluate(compared(first, SPACE, choices_of(), truth(first, choices_of())), seed=SEED)
    assert both == pytest.approx(found.scale * plain + found.offset_ms)
    again = adopt_correction(validated(after, scale=0.7))
    assert len(again.method[FITTED_ON]) == 60
    assert again.with_correction(1.0, 0.0).method.get("correction") is None


def test_an_adopted_correction_survives_its_file(table: LatencyTable, tmp_path: Path) -> None:
    after = adopt_correction(validated(table))
    again = LatencyTable.load(after.save(tmp_path / "table.json"))
    assert again == after
    assert again.correction != Correction()


def changed(table: LatencyTable, **changes: Any) -> LatencyTable:
    return table.with_validation({**(validated(table).validation or {}), **changes})


def unknown_models(table: LatencyTable) -> LatencyTable:
    pairs = (validated(table).validation or {})["pairs"]
    return changed(table, pairs=[["k3e9", *pair[1:]] for pair in pairs])


def test_what_is_no_correction_is_refused_with_the_reason(table: LatencyTable) -> None:
    other = conditions_to_dict(Conditions(device_name="another machine"))
    cases: list[tuple[LatencyTable, str]] = [
        (table, "was never validated"),
        (
            validated(table, scale=1.0, offset=0.0, noise=0.05),
            r"not help: on the models .* [\d.]+ % with it and",
        ),
        (changed(table, measured_with=other), "other conditions: device_name was a test, is another machine"),
        (changed(table, space="0" * 64), "another space than its own, 'imagenet'"),
        (changed(table, reference_ratio=1.3), "took 1.30 times as long as when the table was made"),
        (changed(table, seed=4), "does not say on which of its models"),
        (changed(table, pairs=[["k3e9", 1, 1]] * 60), "does not say on which of its models"),
        (unknown_models(table), "names a model that is not one of the table's space: k3e9"),
        (table.with_validation({"kendall_tau": 1.0}), "cannot be read"),
    ]
    for bad, text in cases:
        with pytest.raises(LatencyError, match=text):
            adopt_correction(bad)


# ---- validations that say nothing about this table


def test_a_validation_of_another_machine_or_space_is_no_reason_to_trust(table: LatencyTable) -> None:
    good = {"kendall_tau": 0.99, "mape_percent": 1.0, "nets": 30}
    here = conditions_to_dict(dataclasses.replace(table.conditions, allocator="jemalloc", system="other"))
    assert doubts(table.with_validation(good)) == []  # an older table, which does not say
    assert doubts(table.with_validation({**good, "measured_with": here, "space": SPACE.digest})) == []
    cases = [
        ({"measured_with": {**here, "device_name": "x"}}, "other conditions: device_name was a test, is x"),
        ({"measured_with": {**here, "versions": {"torch": "9"}}}, "torch was None, is 9"),
        ({"measured_with": {"threads": 1}}, "is missing"),
        ({"measured_with": [1]}, "wanted an object"),
        ({"space": "0" * 64}, "with models of another space than its own, 'imagenet'"),
    ]
    for extra, text in cases:
        (problem,) = doubts(table.with_validation({**good, **extra}))
        assert text in problem
    foreign = dataclasses.replace(table, conditions=ForeignConditions(runtime="TF-Lite", device_name="phone"))
    where = conditions_to_dict(foreign.conditions)
    assert doubts(foreign.with_validation({**good, "measured_with": where})) == []


def test_versions_that_the_runtime_does_not_use_may_differ(table: LatencyTable) -> None:
    before = Conditions(runtime="onnxruntime", versions={"Python": "3.8", "onnxruntime": "1.31"})
    own = dataclasses.replace(table, conditions=before)
    now = dataclasses.replace(before, versions={"Python": "3.12", "torch": "2.9", "onnxruntime": "1.31"})
    assert elsewhere(own, now) == []
    newer = dataclasses.replace(now, versions={**now.versions, "onnxruntime": "1.32"})
    assert elsewhere(own, newer) == ["onnxruntime was 1.31, is 1.32"]
    assert misplaced(table) == []


# ---- what a validation keeps


def test_a_forced_validation_elsewhere_is_marked(machine: Machine, tmp_path: Path) -> None:
    table = on_this_machine(1.0)
    good = table.with_validation(validate_table(table))
    assert doubts(good) == []
    machine.name = "another machine"
    forced = table.with_validation(validate_table(table, force=True))
    (problem,) = doubts(LatencyTable.load(forced.save(tmp_path / "t.json")))
    assert problem.endswith("other conditions: device_name was a test, is another machine")
    machine.name = "a test"
    smaller = SPACE.replace(candidates=SPACE.candidates[:3])
    (problem,) = doubts(table.with_validation(validate_table(table, smaller)))
    assert "another space than its own" in problem


def test_a_validation_after_a_correction_is_of_other_models(machine: Machine) -> None:
    """With the seed of the one that found it."""
    off = on_this_machine(0.7)
    found = validate_table(off, nets=60)
    after = adopt_correction(off, found)
    drawn = {pair[0] for pair in validate_table(after, nets=60).pairs}
    fitted = {found.pairs[i][0] for i in halves(60, found.seed)[0]}
    assert len(fitted) == 30
    assert not drawn & fitted


def test_a_kits_table_can_be_validated_on_its_device(machine: Machine) -> None:
    """Whatever its user called it, and although no kit has torch."""
    table = on_this_machine(1.0)
    where = dataclasses.replace(table.conditions, device_name="Phone 1", runtime="onnxruntime", versions={})
    kits = dataclasses.replace(table, conditions=where, method={"device_calls_itself": "a test"})
    assert doubts(kits.with_validation(validate_table(kits, nets=30))) == []


# ---- the command


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return simulated(monkeypatch, name="a test", placement=0.0, speeds=0.0)


def on_this_machine(scale: float) -> LatencyTable:
    """Return a table whose predictions are off by a factor."""
    from simulated_machine import OFFSET_MS, true_ms

    entries = {key: Entry(scale * true_ms(key)) for key in space_keys(SPACE)}
    where = Conditions(device_name="a test", versions={"torch": "9"}, allocator="unknown")
    return LatencyTable(where, entries, space=SPACE, offset_ms=scale * OFFSET_MS)


def test_the_command_adopts_a_correction_that_helps(
    machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = on_this_machine(0.7).save(tmp_path / "t.json")
    words = ["latency", "validate", str(file), "--quiet"]
    assert cli.main(words) == 1  # off by 30 %, and the validation alone changes nothing
    shown = " ".join(capsys.readouterr().out.split())
    assert "correction none; one would help: mean error from" in shown
    assert LatencyTable.load(file).correction == Correction()
    assert cli.main([*words, "--adopt-correction"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert (
        "fitted on 30 models; validated is the corrected table on 30 others; another would not help" in shown
    )
    assert "on 30 random" in shown
    found = LatencyTable.load(file)
    assert found.correction.scale == pytest.approx(1 / 0.7, rel=0.05)
    assert doubts(found) == []
    assert not list(tmp_path.glob("*.tmp"))


def test_the_command_refuses_one_that_does_not_help(
    machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = on_this_machine(1.0).save(tmp_path / "t.json")
    assert cli.main(["latency", "validate", str(file), "--quiet", "--adopt-correction", "--nets", "40"]) == 1
    err = capsys.readouterr().err
    assert (
        "error: the correction is not adopted, only the validation is stored: the correction does not" in err
    )
    found = LatencyTable.load(file)
    assert found.correction == Correction()
    assert (found.validation or {})["nets"] == 40
    assert cli.main(["latency", "show", str(file)]) == 0
    assert "none; one would not help (mean error from" in " ".join(capsys.readouterr().out.split())
