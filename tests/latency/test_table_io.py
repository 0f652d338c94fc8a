"""The file of a latency table."""

from __future__ import annotations

import copy
import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import pytest
from latency_table_tools import little

from proxylessnas.arch.arch import Arch
from proxylessnas.arch.blocks import Stage
from proxylessnas.errors import ArchError, LatencyError
from proxylessnas.latency import Conditions, LatencyTable, OpKey, doubts
from proxylessnas.latency.table import Correction, Entry, ForeignConditions

FIXTURE = Path(__file__).resolve().parents[1] / "fixtures" / "latency_table_v1.json"


def test_a_table_survives_its_file(tmp_path: Path) -> None:
    table = little(offset_ms=-0.1, source="a paper").with_correction(1.01, 0.02)
    table = table.with_validation({"kendall_tau": 0.9, "pairs": [["k3e2 -", 1.0, 1.1]]})
    path = table.save(tmp_path / "table.json")
    again = LatencyTable.load(path)
    assert again == table
    assert again.digest == table.digest
    assert list(again.entries) == list(table.entries)
    assert LatencyTable.load(str(path)) == table
    assert [item.name for item in tmp_path.iterdir()] == ["table.json"]


def test_version_1_files_stay_readable() -> None:
    """This file was written by the first version; never write it anew."""
    table = LatencyTable.load(FIXTURE)
    assert table.space is not None
    assert table.space.name == "two stages"
    assert table.coverage() == (10, 10, ())
    assert table.range_ms() == pytest.approx((0.613526, 0.720524), abs=1e-9)
    assert table.conditions == Conditions(
        runtime="onnxruntime",
        threads=2,
        batch_size=4,
        device_name="AMD EPYC 7B13, 2 processors",
        allocator="pages kept",
        versions={"python": "3.12.1", "torch": "2.9.0", "onnxruntime": "1.31.1"},
        system="Linux 6.1",
    )
    assert table.entries[OpKey("stem", 3, 8, 32, 2)] == Entry(0.0137, 0.0131, 0.015, 40, "fitted")
    assert table.entries[OpKey("classifier", 32, 10, 4)] == Entry(0.25, how="imported", std_ms=0.01)
    assert table.correction == Correction(1.02, -0.01)
    assert (table.offset_ms, table.date, table.source) == (0.07, "2026-11-21", "a test")
    assert table.method["fit"] == {"strength": 0.5}
    assert doubts(table) == ["1 of its operations were guessed, not measured"]


def test_a_file_states_its_unit_and_has_one_line_an_entry() -> None:
    text = FIXTURE.read_text(encoding="utf-8")
    data = json.loads(text)
    assert (data["unit"], data["version"], data["statistic"]) == ("ms", 1, "median")
    assert len(text.splitlines()) == len(data["entries"]) + len(data) + 4 - 1


def _file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "table.json"
    path.write_text(text, encoding="utf-8")
    return path


def _changed(**changes: Any) -> dict[str, Any]:
    data = json.loads(FIXTURE.read_text(encoding="utf-8"))
    for name, value in changes.items():
        if value is None:
            del data[name]
        else:
            data[name] = value
    return data  # type: ignore[no-any-return]


def _entry(**changes: Any) -> dict[str, Any]:
    data = _changed()
    data["entries"][1].update(changes)
    return data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (_changed(format="something"), "no latency table of this package"),
        ([], "no latency table of this package"),
        (_changed(version=2), r"newer version.*pip install --upgrade proxylessnas"),
        (_changed(version=0), "version is 0"),
        (_changed(version="1"), 'version is "1"'),
        (_changed(version=None), "version is null"),
        (_changed(unit=None), "unit is missing"),
        (_changed(unit="s"), r"unit is \"s\"; wanted \"ms\" .*import"),
        (_changed(unit="us"), 'unit is "us"'),
        (_changed(colour="red"), 'unknown key "colour"'),
        (_changed(conditions={"runtime": "torch"}), "conditions: allocator is missing"),
        (_changed(conditions="torch"), 'conditions is "torch"'),
        (_changed(space={"name": "x"}), "space: "),
        (_changed(entries=[]), "entries is"),
        (_changed(entries={}), "entries is"),
        (_changed(entries=[3]), "entry 1 is 3"),
        (_changed(date="2026-13-01"), 'date is "2026-13-01"'),
        (_changed(statistic="mode"), "statistic is"),
        (_changed(correction={"scale": -1, "offset_ms": 0}), "scale is -1"),
        (_changed(validation=3), "validation is 3"),
        (_entry(ms=-1), "entry 2: ms is -1"),
        (_entry(ms=0), "entry 2: ms is 0"),
        (_entry(ms="1.0"), 'entry 2: ms is "1.0"'),
        (_entry(ms=True), "entry 2: ms is true"),
        (_entry(ms=10**400), "entry 2: ms is a huge number"),
        (_entry(ms=1e300), "entry 2: ms is 1e\\+300"),
        (_entry(how="guessed"), 'entry 2: how is "guessed"'),
        (_entry(p10_ms=-1), "entry 2: p10_ms is -1"),
        (_entry(runs=0), "entry 2: runs is 0"),
        (_entry(key="k3e6"), "entry 2: 'k3e6' is no key"),
        (_entry(key="stem in=3x32x32 out=8 stride=2"), "entry 2: stem .* is given twice"),
        (_entry(extra=1), 'entry 2: unknown key "extra"'),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, data: Any, message: str) -> None:
    path = _file(tmp_path, json.dumps(data))
    with pytest.raises(LatencyError, match=message) as caught:
        LatencyTable.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ('{"format": 1, "format": 2}', "given twice"),
        ("[" * 100_000, "nested too deeply|not valid JSON"),
        ("\x00", "not valid JSON"),
    ],
)
def test_texts_that_are_no_json_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(LatencyError, match=message):
        LatencyTable.load(_file(tmp_path, text))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize("place", ['"ms": 0.0137', '"offset_ms": 0.07', '"scale": 1.02', '"strength": 0.5'])
def test_numbers_that_are_none_are_refused(tmp_path: Path, number: str, place: str) -> None:
    text = FIXTURE.read_text(encoding="utf-8")
    assert text.count(place) == 1
    name = place.split(":")[0]
    with pytest.raises(LatencyError):
        LatencyTable.load(_file(tmp_path, text.replace(place, f"{name}: {number}")))


def test_a_file_lists_all_its_problems(tmp_path: Path) -> None:
    data = _entry(ms=-1, runs=0.5)
    data["unit"] = "s"
    del data["date"]
    with pytest.raises(LatencyError, match="4 problems") as caught:
        LatencyTable.load(_file(tmp_path, json.dumps(data)))
    assert len(str(caught.value).splitlines()) == 5


def test_hundreds_of_problems_are_cut_short(tmp_path: Path) -> None:
    data = _changed(entries=[{"key": "?"}] * 300)
    with pytest.raises(LatencyError, match="and 850 more") as caught:
        LatencyTable.load(_file(tmp_path, json.dumps(data)))
    assert len(str(caught.value).splitlines()) < 60


def test_files_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    with pytest.raises(LatencyError, match=r"no latency table at .*pixel2; .* come with the package: pixel1"):
        LatencyTable.load("pixel2")
    with pytest.raises(LatencyError, match="cannot read"):
        LatencyTable.load(tmp_path)
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(LatencyError, match="not UTF-8"):
        LatencyTable.load(tmp_path / "binary.json")
    with pytest.raises(LatencyError, match="cannot write"):
        little().save(tmp_path / "missing" / "table.json")
    with (tmp_path / "huge.json").open("wb") as file:
        file.truncate((64 << 20) + 1)
    with pytest.raises(LatencyError, match="larger than 64 MiB"):
        LatencyTable.load(tmp_path / "huge.json")


def test_a_file_in_the_folder_does_not_change_what_a_name_means(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    little().save("pixel1")
    assert len(LatencyTable.load("pixel1").entries) == 72
    assert len(LatencyTable.load(Path("pixel1")).entries) == 12


def test_any_change_of_a_file_gives_a_table_or_one_clear_error() -> None:
    """A thousand files with one or two values replaced or removed."""
    rng, whole = random.Random(0), _changed()
    values: list[Any] = [None, True, -1, 0, 1.5, "", "x", "ms", [], {}, [1], {"a": 1}, 10**30, "k3e2 in=1"]
    refused, messages = 0, []
    for _ in range(1000):
        data = copy.deepcopy(whole)
        for _ in range(rng.randint(1, 2)):
            place: Any = data
            while True:
                if not place:
                    break
                key = rng.choice(list(place) if isinstance(place, dict) else range(len(place)))
                if isinstance(place[key], (dict, list)) and rng.random() < 0.7:
                    place = place[key]
                elif rng.random() < 0.3:
                    del place[key]
                    break
                else:
                    place[key] = rng.choice(values)
                    break
        try:
            table = LatencyTable.from_dict(data, "a file")
            assert LatencyTable.from_dict(table.to_dict()) == table
        except LatencyError as e:
            refused += 1
            messages.append(str(e))
    assert 500 < refused < 1000
    assert all(message.startswith("a file") for message in messages)


# Conditions of other programs.


def test_foreign_conditions() -> None:
    conditions = ForeignConditions(
        runtime="TensorFlow Lite", device="unknown", threads=0, batch_size=0, dtype="unknown",
        memory_format="unknown", device_name="a phone",
    )  # fmt: skip
    assert conditions.describe() == "TensorFlow Lite on a phone, batch size unknown"
    known = dataclasses.replace(conditions, threads=4, batch_size=1, dtype="int8", versions={"tflite": "2"})
    assert known.describe() == "TensorFlow Lite on a phone, 4 threads, batch 1, int8; tflite 2"
    with pytest.raises(LatencyError, match=r"another program .* cannot be run here"):
        _ = conditions.settings
    for wrong in ({"threads": -1}, {"batch_size": True}, {"device_name": ""}, {"runtime": "a\nb"}):
        with pytest.raises(LatencyError, match=next(iter(wrong))):
            dataclasses.replace(conditions, **wrong)
    table = dataclasses.replace(little(), conditions=known)
    assert LatencyTable.from_dict(table.to_dict()).conditions == known


def test_a_table_of_a_registered_operation_needs_it_only_for_its_space(tmp_path: Path) -> None:
    """A table made elsewhere may hold operations that are not registered here."""
    key = OpKey("no_such_operation", 16, 16, 8, 1, True)
    table = LatencyTable(Conditions(), {**little().entries, key: Entry(1.0)})
    assert LatencyTable.load(table.save(tmp_path / "table.json")).lookup(key) == 1.0
    data = little().to_dict()
    data["space"]["candidates"] = ["no_such_operation"]
    with pytest.raises(LatencyError, match="unknown operation"):
        LatencyTable.from_dict(data)
    with pytest.raises(ArchError):
        Arch("net", 8, 8, 32, (Stage(16, 1, "no_such_operation"),))
