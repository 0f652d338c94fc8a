"""Latencies that another program measured."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from proxylessnas.errors import LatencyError
from proxylessnas.latency import ImportSettings, LatencyTable, OpKey, doubts, import_table
from proxylessnas.latency.import_files import parse_original_key
from proxylessnas.latency.table import Entry, ForeignConditions

STEM = OpKey("stem", 3, 32, 224, 2)
BLOCK = OpKey("k3e6", 24, 40, 56, 2)
YAML = """\
Conv-input:224x224x3-output:112x112x32:
  count: 982
  mean: 4.0
  var: 0.25
expanded_conv-input:56x56x24-output:28x28x40-expand:6-kernel:3-stride:2-idskip:0:
  count: 164
  mean: 6.5
  var: 0.09
"""
CSV = """\
key,ms,p10,p90,runs
stem in=3x224x224 out=32 stride=2,4.0,3.5,4.5,20
k3e6 in=24x56x56 out=40 stride=2,6.5,,,
"""
PLAIN = {str(STEM): 4.0, str(BLOCK): 6.5}


def write(tmp_path: Path, name: str, content: Any) -> Path:
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def read(tmp_path: Path, name: str, content: Any, **options: Any) -> LatencyTable:
    space = options.pop("space", None)
    settings = ImportSettings(**{"unit": "ms", "device_name": "a phone", **options})
    return import_table(write(tmp_path, name, content), settings, space=space)


# Three kinds of file.


def test_yaml_of_the_original_code(tmp_path: Path) -> None:
    table = read(tmp_path, "a.yaml", YAML, runtime="TensorFlow Lite", batch_size=1, space="imagenet")
    assert dict(table.entries) == {
        STEM: Entry(4.0, std_ms=0.5, runs=982, how="imported"),
        BLOCK: Entry(6.5, std_ms=0.3, runs=164, how="imported"),
    }
    assert table.statistic == "mean"
    assert isinstance(table.conditions, ForeignConditions)
    assert table.conditions.describe() == "TensorFlow Lite on a phone, batch 1"
    assert table.coverage()[:2] == (2, 70)
    assert table.validation is None
    assert table.date == "unknown"  # that of the import would say nothing
    again = LatencyTable.load(table.save(tmp_path / "table.json"))
    assert again == table


def test_csv(tmp_path: Path) -> None:
    table = read(tmp_path, "a.csv", CSV, unit=None, threads=4, source="my phone")
    assert dict(table.entries) == {
        STEM: Entry(4.0, 3.5, 4.5, 20, "imported"),
        BLOCK: Entry(6.5, how="imported"),
    }
    assert table.statistic == "unknown"
    assert table.source == "my phone"
    assert table.conditions.describe() == "unknown on a phone, 4 threads, batch size unknown"
    for separator in (";", "\t"):
        assert read(tmp_path, "b.csv", CSV.replace(",", separator)).entries == table.entries
    assert read(tmp_path, "c.csv", "\ufeff" + CSV.replace("\n", "\r\n") + "\n\n").entries == table.entries


def test_json(tmp_path: Path) -> None:
    table = read(tmp_path, "a.json", PLAIN)
    assert {key: entry.ms for key, entry in table.entries.items()} == {STEM: 4.0, BLOCK: 6.5}
    whole = {
        "unit": "us", "device_name": "my phone", "runtime": "ncnn", "threads": 2, "batch_size": 1,
        "statistic": "median", "source": "me",
        "entries": {str(STEM): 4000, str(BLOCK): {"us": 6500, "runs": 3}},
    }  # fmt: skip
    table = import_table(write(tmp_path, "b.json", whole))
    assert table.entries == {STEM: Entry(4.0, how="imported"), BLOCK: Entry(6.5, runs=3, how="imported")}
    assert table.conditions.describe() == "ncnn on my phone, 2 threads, batch 1"
    assert (table.statistic, table.source) == ("median", "me")


def test_json_with_the_original_fields(tmp_path: Path) -> None:
    key = "Conv-input:224x224x3-output:112x112x32"
    table = read(tmp_path, "a.json", {key: {"mean": 4.0, "var": 0.25, "count": 7}})
    assert table.entries == {STEM: Entry(4.0, std_ms=0.5, runs=7, how="imported")}
    again = read(tmp_path, "b.json", {key: {"mean": 4.0, "std": 0.5, "count": 7}})
    assert again.entries == table.entries
    text = YAML.replace("var: 0.25", "std: 0.5").replace("var: 0.09", "std: 0.3")
    assert read(tmp_path, "c.yaml", text).entries == read(tmp_path, "d.yaml", YAML).entries


@pytest.mark.parametrize(("unit", "value"), [("s", 0.004), ("ms", 4), ("us", 4000.0)])
def test_units_are_converted(tmp_path: Path, unit: str, value: float) -> None:
    spread = {"p10": value / 2, "p90": value * 2, "std": value / 4}
    content = {str(STEM): {unit: value, **spread}}
    table = read(tmp_path, "a.json", content, unit=None)
    entry = table.entries[STEM]
    assert entry.ms == pytest.approx(4.0)
    assert (entry.p10_ms, entry.p90_ms, entry.std_ms) == pytest.approx((2.0, 8.0, 1.0))
    text = f"key,{unit},p10,p90,std\n{STEM},{value},{value / 2},{value * 2},{value / 4}\n"
    assert read(tmp_path, "a.csv", text, unit=None).entries[STEM].to_dict() == pytest.approx(entry.to_dict())
    text = f"Conv-input:224x224x3-output:112x112x32:\n  mean: {value}\n  var: {(value / 4) ** 2}\n"
    entry = read(tmp_path, "a.yaml", text, unit=unit).entries[STEM]
    assert (entry.ms, entry.std_ms) == pytest.approx((4.0, 1.0))
    assert table.method["unit"] == unit


# What is refused.


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("a.yaml", YAML, {"unit": None}, "does not say in which unit"),
        ("a.json", PLAIN, {"unit": None}, "does not say in which unit"),
        ("a.yaml", YAML, {"unit": "sec"}, "unit must be .ms., .s. or .us., not 'sec'"),
        ("a.json", {"unit": "ns", "entries": PLAIN}, {"unit": None}, 'unit is "ns"; wanted one of s, ms, us'),
        ("a.json", {"unit": "us", "entries": PLAIN}, {}, "its unit is \"us\", not 'ms'"),
        ("a.csv", CSV, {"unit": "s"}, "its unit is \"ms\", not 's'"),
        ("a.json", {str(STEM): {"ms": 1}, str(BLOCK): {"s": 1}}, {}, "unit differs between entries: ms, s"),
        ("a.json", {"unit": "s", "entries": {str(STEM): {"ms": 1}}}, {"unit": None}, "entries are in ms"),
        ("a.yaml", YAML, {"device_name": None}, "does not say on which device"),
        ("a.json", {"device_name": "x", "entries": PLAIN}, {}, "device_name is \"x\", not 'a phone'"),
        ("a.yaml", YAML, {"device_name": ""}, "device_name is"),
        ("a.yaml", YAML, {"threads": -1}, "threads must be a whole number from 1 to 1024, not -1"),
        ("a.yaml", YAML, {"statistic": "median"}, "its statistic is \"mean\", not 'median'"),
        ("a.csv", CSV, {"statistic": "best"}, "statistic must be .median. or .mean., not 'best'"),
        ("a.txt", YAML, {}, "yaml, .csv or .json, not '.txt'"),
        ("a.json", [1], {}, "holds \\[1\\]"),
        ("a.json", {"entries": [1]}, {}, "entries is \\[1\\]"),
        ("a.json", {}, {}, "0 entries"),
        ("a.yaml", "", {}, "0 entries"),
        ("a.csv", "", {}, "line 1"),
        ("a.json", {"colour": "red", "entries": PLAIN}, {}, 'unknown key "colour"'),
        ("a.json", {"threads": 0, "entries": PLAIN}, {}, "threads is 0"),
        ("a.json", '{"a": 1, "a": 2}', {}, "given twice"),
        ("a.json", {str(STEM): {"ms": 1, "extra": 2}}, {}, "stem.*: it has 'ms, extra'"),
        ("a.json", {str(STEM): {"p10": 1}}, {}, "it has 'p10'; wanted one of"),
        ("a.json", {str(STEM): None}, {}, "its time is null"),
        ("a.json", {str(STEM): "4.0"}, {}, 'its time is "4.0"'),
        ("a.json", {str(STEM): True}, {}, "its time is true"),
        ("a.json", {str(STEM): 0}, {}, "its time is 0"),
        ("a.json", {str(STEM): -4}, {}, "its time is -4"),
        ("a.json", f'{{"{STEM}": NaN}}', {}, "its time is NaN"),
        ("a.json", f'{{"{STEM}": 1e999}}', {}, "its time is Infinity"),
        ("a.json", {str(STEM): {"ms": 1, "runs": 0}}, {}, "runs is 0"),
        ("a.json", {str(STEM): {"ms": 1, "p10": -1}}, {}, "p10 is -1"),
        ("a.json", {"conv": 1}, {}, "'conv' is no key"),
        ("a.csv", "key,ms,colour\n", {}, "line 1: the columns are 'key, ms, colour'"),
        ("a.csv", "key,ms,s\n", {}, "line 1"),
        ("a.csv", "key,ms,ms\n", {}, "line 1"),
        ("a.csv", "key,p10\n", {}, "line 1"),
        ("a.csv", f"key,ms\n{STEM},4,5\n", {}, "line 2: it has 3 cells, the first line 2"),
        ("a.csv", f"key;ms\n{STEM};4,5\n", {}, 'line 2: its time is "4,5"'),
        ("a.csv", f"key,ms\n{STEM},nan\n", {}, 'line 2: its time is "nan"'),
        ("a.csv", f"key,ms\n{STEM},1_000\n", {}, 'line 2: its time is "1_000"'),
        ("a.csv", f"key,ms\n{STEM},4\n{STEM},5\n", {}, "line 3: stem .* is given twice"),
        ("a.csv", 'key,ms\n"a,4\n', {}, "line 2: "),
        ("a.yaml", YAML + YAML, {}, "line 9: stem .* is given twice"),
        ("a.yaml", "mean: 4\n", {}, "neither a key nor"),
        ("a.yaml", "  mean: 4\n", {}, "line 1: '  mean: 4' is neither a key"),
        ("a.yaml", YAML + "  mean: 4\n", {}, "line 9: mean is given twice"),
        ("a.yaml", YAML.replace("mean", "median"), {}, "wanted mean"),
        ("a.yaml", YAML + "  std: 1\n", {}, "either var or std"),
        ("a.yaml", YAML.replace("6.5", ".nan"), {}, 'line 5: its time is ".nan"'),
        ("a.yaml", YAML.replace("6.5", "!!python/object"), {}, "line 5: its time is"),
        ("a.yaml", YAML.replace("0.09", "-1"), {}, "line 5: std is -1"),
        ("a.yaml", YAML.replace("kernel:3", "kernel:4"), {}, "kernel size must be odd"),
    ],
)
def test_bad_files_are_refused(
    tmp_path: Path, name: str, content: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(LatencyError, match=message):
        read(tmp_path, name, content, **options)


def test_all_problems_are_listed_at_once(tmp_path: Path) -> None:
    text = f"key,ms,p10,runs\n{STEM},0,-1,1.5\nconv,1,,\n{BLOCK},x,,\n"
    with pytest.raises(LatencyError, match="5 problems") as caught:
        read(tmp_path, "a.csv", text)
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0].strip() for line in lines[1:]] == ["line 2"] * 3 + ["line 3", "line 4"]


@pytest.mark.parametrize(("factor", "unit"), [(1e-5, "ms"), (1e5, "ms"), (1.0, "us"), (1e4, "s")])
def test_an_implausible_unit_is_asked_about(tmp_path: Path, factor: float, unit: str) -> None:
    content = {str(STEM): 0.8 * factor, str(BLOCK): 0.9 * factor}
    with pytest.raises(LatencyError, match=rf"median operation takes .* ms; is the unit '{unit}' right\?"):
        read(tmp_path, "a.json", content, unit=unit)


@pytest.fixture(scope="module")
def phone() -> dict[str, float]:
    """Return a slow phone's operations in milliseconds."""
    return {str(key): entry.ms for key, entry in LatencyTable.load("pixel1").entries.items()}


def test_the_unit_of_ordinary_devices_is_not_doubted(tmp_path: Path, phone: dict[str, float]) -> None:
    """From a phone five times slower than that one to a GPU four hundred times faster."""
    for factor in (5.0, 1.0, 0.1, 0.0025):
        table = read(tmp_path, "a.json", {key: ms * factor for key, ms in phone.items()})
        assert "doubt" not in table.method
    # A GPU that takes 0.1 ms for whatever it does, in a little model: hardly any work, but an ordinary
    # device.
    little_model = {f"k3e3 in={n}x8x8 out={n} stride=1 shortcut": 0.1 for n in range(8, 24)}
    assert "doubt" not in read(tmp_path, "a.json", little_model).method


def test_microseconds_called_milliseconds(tmp_path: Path, phone: dict[str, float]) -> None:
    """A phone's are refused: nothing is that slow. A fast computer's are those of a microcontroller."""
    text = r"beyond the slowest device: is the unit 'ms' right; in us they would be ordinary\?"
    with pytest.raises(LatencyError, match=text):
        read(tmp_path, "a.json", {key: 1000 * ms for key, ms in phone.items()})
    fast = {key: 1000 * ms / 20 for key, ms in phone.items()}
    with pytest.warns(UserWarning, match="as slow as a microcontroller: is the unit 'ms' right; in us they"):
        table = read(tmp_path, "a.json", fast)
    assert any("as slow as a microcontroller" in problem for problem in doubts(table))
    again = LatencyTable.load(table.save(tmp_path / "table.json"))
    assert doubts(again) == doubts(table)
    assert "doubt" not in read(tmp_path, "a.json", fast, unit="us").method


def test_seconds_called_milliseconds(tmp_path: Path, phone: dict[str, float]) -> None:
    """A computer's are refused. A phone's are those of the fastest devices; of a large batch, of none."""
    with pytest.raises(LatencyError, match=r"median operation takes .* ms; is the unit 'ms' right\?"):
        read(tmp_path, "a.json", {key: ms / 20 / 1000 for key, ms in phone.items()})
    seconds = {key: ms / 1000 for key, ms in phone.items()}
    with pytest.warns(UserWarning, match="as fast as the very fastest devices: is the unit 'ms' right; in s"):
        table = read(tmp_path, "a.json", seconds, batch_size=1)
    assert "as fast as the very fastest" in doubts(table)[1]
    assert "doubt" not in read(tmp_path, "a.json", seconds, unit="s").method
    with pytest.raises(LatencyError, match="beyond the fastest device"):
        read(tmp_path, "a.json", seconds, batch_size=1024)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(LatencyError, match="cannot read"):
        import_table(tmp_path / "a.yaml", ImportSettings(unit="ms", device_name="a phone"))


# Keys of the original code.


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("Conv-input:224x224x3-output:112x112x32", "stem in=3x224x224 out=32 stride=2"),
        ("Conv-input:225x225x3-output:113x113x32", "stem in=3x225x225 out=32 stride=2"),
        ("Conv-input:32x32x3-output:32x32x16", "stem in=3x32x32 out=16 stride=1"),
        ("Conv_1-input:7x7x320-output:7x7x1280", "last in=320x7x7 out=1280"),
        ("Logits-input:7x7x1280-output:1000", "classifier in=1280x7x7 out=1000"),
        (
            "expanded_conv-input:14x14x80-output:14x14x80-expand:3-kernel:5-stride:1-idskip:1",
            "k5e3 in=80x14x14 out=80 stride=1 shortcut",
        ),
        (
            "expanded_conv-input:14x14x80-output:14x14x80-expand:3-kernel:5-stride:1-idskip:0",
            "k5e3 in=80x14x14 out=80 stride=1",
        ),
        (
            "expanded_conv-input:112x112x32-output:112x112x16-expand:1-kernel:3-stride:1-idskip:0",
            "k3e1 in=32x112x112 out=16 stride=1",
        ),
    ],
)
def test_original_keys(text: str, key: str) -> None:
    assert str(parse_original_key(text)) == key


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Conv",
        "Conv_2-input:7x7x320-output:7x7x1280",
        "Conv-input:0x0x3-output:0x0x32",
        "Conv-input:224x224x3-output:0x0x32",
        "Conv-input:224x112x3-output:112x112x32",
        "Conv-input:224x224x3-output:56x56x32",
        "Conv-input:224x224x3-output:1000",
        "Conv_1-input:7x7x320-output:4x4x1280",
        "expanded_conv-input:14x14x80-output:14x14x80",
        "expanded_conv-input:14x14x80-output:7x7x80-expand:3-kernel:5-stride:1-idskip:0",
        "expanded_conv-input:14x14x80-output:14x14x96-expand:3-kernel:5-stride:1-idskip:1",
        "expanded_conv-input:14x14x80-output:14x14x80-expand:0-kernel:5-stride:1-idskip:1",
        "expanded_conv-input:14x14x0-output:14x14x80-expand:3-kernel:5-stride:1-idskip:0",
        "Conv-input:224x224x3-output:112x112x32-expand:3-kernel:5-stride:2-idskip:0",
        "Conv-input:٣x٣x3-output:2x2x32",
    ],
)
def test_texts_that_are_no_original_keys(text: str) -> None:
    with pytest.raises(LatencyError):
        parse_original_key(text)


# Tables of this package.


def _native(tmp_path: Path, unit: str, factor: float) -> Path:
    data = LatencyTable.load("pixel1").to_dict()
    data["unit"], data["offset_ms"] = unit, 0.5 * factor
    data["correction"] = {"scale": 1.1, "offset_ms": 0.2 * factor}
    for entry in data["entries"]:
        entry["ms"] *= factor
        entry["std_ms"] *= factor
    return write(tmp_path, "native.json", data)


@pytest.mark.parametrize(("unit", "factor"), [("s", 1e-3), ("us", 1e3), ("ms", 1.0)])
def test_tables_in_another_unit_are_converted(tmp_path: Path, unit: str, factor: float) -> None:
    path = _native(tmp_path, unit, factor)
    if unit != "ms":
        with pytest.raises(LatencyError, match="unit is"):
            LatencyTable.load(path)
    table, original = import_table(path), LatencyTable.load("pixel1")
    assert table.offset_ms == pytest.approx(0.5)
    assert table.correction.scale == 1.1
    assert table.correction.offset_ms == pytest.approx(0.2)
    for key, entry in original.entries.items():
        assert table.entries[key].ms == pytest.approx(entry.ms)
        assert table.entries[key].std_ms == pytest.approx(entry.std_ms)
    assert table.conditions == original.conditions


def test_a_table_states_everything_itself(tmp_path: Path) -> None:
    path = _native(tmp_path, "s", 1e-3)
    with pytest.raises(LatencyError, match="states its own device_name, threads, space: leave that out"):
        import_table(path, ImportSettings(device_name="x", threads=1), space="imagenet")
    with pytest.raises(LatencyError, match="its unit is \"s\", not 'ms'"):
        import_table(path, ImportSettings(unit="ms"))
    with pytest.raises(LatencyError, match="is the unit 's' right"):
        import_table(_native(tmp_path, "s", 1e3))
    path = _native(tmp_path, "parsec", 1.0)
    with pytest.raises(LatencyError, match="unit is 'parsec'"):
        import_table(path)
    data = json.loads(_native(tmp_path, "s", 1e-3).read_text(encoding="utf-8"))
    del data["unit"]
    with pytest.raises(LatencyError, match="unit is None"):
        import_table(write(tmp_path, "native.json", data))
    data["unit"], data["entries"][3]["ms"] = "s", "slow"
    with pytest.raises(LatencyError, match='entry 4: ms is "slow"'):
        import_table(write(tmp_path, "native.json", data))


@pytest.mark.filterwarnings("ignore:.*is the unit:UserWarning")
def test_any_text_gives_a_table_or_one_clear_error(tmp_path: Path) -> None:
    """Hundreds of damaged files of each kind."""
    rng, refused, done = random.Random(0), 0, 0
    pieces = ["", "\n", ",", ":", '"', "{", "nan", "-", "0", "1e999", "  mean: 1\n", "\x00", "\u2028", "key"]
    for name, content in (("a.yaml", YAML), ("a.csv", CSV), ("a.json", json.dumps(PLAIN))):
        for _ in range(150):
            text = content
            for _ in range(rng.randint(1, 3)):
                start = rng.randrange(len(text) + 1)
                text = text[:start] + rng.choice(pieces) + text[start + rng.randrange(4) :]
            try:
                read(tmp_path, name, text)
                done += 1
            except LatencyError:
                refused += 1
    assert refused > 300
    assert done > 2


@pytest.mark.parametrize(
    ("name", "line"), [("t.csv", "x"), ("t.csv", "x,1"), ("t.csv", ""), ("t.yaml", "k:")]
)
def test_a_file_of_too_many_lines_is_not_looked_at(
    name: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "proxylessnas.latency.table_import.parse_key", lambda _: pytest.fail("no row is read")
    )
    (tmp_path / name).write_text("key,ms\n" + (line + "\n") * 900_000)
    with pytest.raises(LatencyError, match=r"it has 900,001 lines; wanted at most 200,000 entries"):
        import_table(tmp_path / name, ImportSettings(unit="ms", device_name="x"))
