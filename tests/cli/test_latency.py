"""`proxylessnas latency` as typed: what each action does, prints and exits with, for good input and bad."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cli_tools import Run, runner
from latency_table_tools import SPACE, little
from simulated_machine import simulated, true_model_ms, true_ms

from proxylessnas.arch.spaces import read_space
from proxylessnas.cli._options import spelled
from proxylessnas.cli.bench import COMMAND as BENCH
from proxylessnas.cli.latency import COMMAND as LATENCY
from proxylessnas.errors import LatencyError
from proxylessnas.latency import LatencyTable, OpKey, doubts
from proxylessnas.utils.progress import Steps

ACTIONS = ["measure", "build", "validate", "show", "predict", "import", "kit", "ops"]
TOML = """name = "micro"
stem = 4
first = 4
last = 8
resolution = 16
num_classes = 3
candidates = ["k3e2", "k5e2"]
stages = [{ width = 8, stride = 2, blocks = 2 }, { width = 16, stride = 2, blocks = 1 }]
"""
ONE_TO_1024 = "--threads: wanted a whole number from 1 to 1024, not '0'"
NONE_OR_SOME = "--validation-nets: wanted 0 or a whole number from 2"
MODEL = """Arch("mine", stem=8, first=8, last=32, resolution=32, stages=(
    Stage(16, 2, "k3e2 -"), Stage(24, 1, "k5e2 k3e2")))"""
GOOD = {
    "nets": 30, "date": "2026-11-21", "mape_percent": 2.4, "bias_percent": -0.3, "kendall_tau": 0.961,
    "within_5_percent": 93.3, "within_10_percent": 100.0, "noisy_nets": 0,
}  # fmt: skip


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return runner(capsys, "latency")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Return the file of a table that was validated."""
    return little().with_validation(GOOD).save(tmp_path / "table.json")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "mine.txt"
    path.write_text(MODEL)
    return path


def is_narrow(text: str) -> bool:
    return all(len(line) <= 100 for line in text.splitlines())


# ---- the command as a whole


def test_the_actions_explain_themselves(run: Run) -> None:
    assert list(_actions()) == ACTIONS
    for name, parser in _actions().items():
        assert run(name, "--help").code == 0
        assert is_narrow(run(name, "--help").out)
        assert f"$ proxylessnas latency {name}" in str(parser.epilog)
        assert len(parser._actions) < 30
    ran = run()
    assert (ran.code, ran.out) == (2, "")
    assert all(re.search(rf"^    {name} ", ran.err, re.MULTILINE) for name in ACTIONS)


def _actions() -> dict[str, argparse.ArgumentParser]:
    parser = argparse.ArgumentParser()
    LATENCY.arguments(parser)
    (sub,) = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    for own in sub.choices.values():
        own.format_help()  # which declares the arguments
    return dict(sub.choices)


def test_help_imports_no_torch(repo: Path) -> None:
    """The heavy libraries are imported once it is known what to do."""
    code = "import sys; from proxylessnas.cli import main; main({words!r}); assert 'torch' not in sys.modules"
    for words in (["latency", "build", "--help"], ["bench", "--help"]):
        done = subprocess.run(
            [sys.executable, "-c", code.format(words=words)], cwd=repo, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr


def test_there_are_not_too_many_options() -> None:
    parser = argparse.ArgumentParser()
    BENCH.arguments(parser)
    assert len(parser._actions) < 30


# ---- show


def test_show_the_published_table(run: Run) -> None:
    """Bounds of the space as in the paper's own code: 29.61 and 191.03 ms."""
    ran = run("show", "pixel1")
    assert ran.code == 0
    assert is_narrow(ran.out)
    text = re.sub(r"\s+", " ", ran.out)
    assert "fastest model 29.61 ms k3e3 - - - | k3e3" in text
    assert "slowest model 191.03 ms k7e6 k7e6 k7e6 k7e6 | k7e6" in text
    assert "coverage 70 of 70 operations (100 %)" in text
    assert "not re-measured" in text
    assert "24x56 24x56 + 6.273 11.095 7.902 14.131 10.215 18.541" in text
    assert "never compared with measured models" in ran.err


def test_show_a_table(run: Run, table: Path) -> None:
    ran = run("show", table)
    text = re.sub(r"\s+", " ", ran.out)
    assert "on 30 random models that it was not made from, 2026-11-21: mean error 2.4 %, bias -0.3 %" in text
    assert "Kendall tau 0.961" in text
    assert "coverage 12 of 12 operations (100 %)" in text
    assert ran.err == ""


def test_show_says_what_became_of_disturbed_visits(run: Run, tmp_path: Path) -> None:
    """An entry is no median where a visit was disturbed."""
    here = dataclasses.replace(little(), method={"noisy_nets": 3, "nets": 50})
    ran = run("show", here.save(tmp_path / "a.json"))
    assert is_narrow(ran.out)
    text = re.sub(r"\s+", " ", ran.out)
    assert (
        "median of the runs disturbed of disturbed measurements the 10 % quantile of the runs; 3 of 50"
        in text
    )
    noise = {
        "visits": 50, "disturbed": 4, "nets": 1, "load_known": False,
        "most": "half of the runs lie 33% of the median apart",
    }  # fmt: skip
    method = {"noise": noise, "disturbed": "left out where others were not"}
    kit = dataclasses.replace(little(), method=method).save(tmp_path / "b.json")
    text = re.sub(r"\s+", " ", run("show", kit).out)
    assert (
        "disturbed 4 of 50 measurements, left out where others were not; at worst half of the runs lie 33%"
        in text
    )
    assert "what other programs used is not known" in text
    assert run("show", kit, "--json").json["disturbed"].startswith("4 of 50 measurements")
    assert run("show", little().save(tmp_path / "c.json"), "--json").json["disturbed"] is None


def test_show_says_what_is_undisturbed(run: Run, tmp_path: Path) -> None:
    method = {"uncertainty_percent": 0.31, "disturbance": 1.24, "nets": 50}
    here = dataclasses.replace(little(), statistic="undisturbed", method=method)
    ran = run("show", here.save(tmp_path / "a.json"))
    assert is_narrow(ran.out)
    text = re.sub(r"\s+", " ", ran.out)
    assert "statistic undisturbed: the 2 % quantile of the runs disturbed then 1.24 times as slow" in text
    assert "latencies are uncertain by 0.31 %" in text


def test_show_says_what_the_machine_allows(run: Run, tmp_path: Path) -> None:
    known = {**GOOD, "ceiling_percent": 1.2, "ceiling_tau": 0.97}
    text = re.sub(r"\s+", " ", run("show", little().with_validation(known).save(tmp_path / "a.json")).out)
    assert "two runs of the same models differ by 1.2 %" in text
    assert "Kendall tau 0.970 is what this machine allows" in text


def test_show_says_whether_a_correction_would_help(run: Run, table: Path, tmp_path: Path) -> None:
    found = run("show", table, "--json").json["correction"]
    assert (found["scale"], found["another_would_help"], found["adopted"]) == (1.0, None, None)
    assert "correction" not in run("show", table).out
    corrected = little().with_correction(1.25, -0.5).save(tmp_path / "corrected.json")
    assert re.search(r"correction +1\.25 x prediction -0\.500 ms\n", run("show", corrected).out)


def test_show_as_json(run: Run, table: Path) -> None:
    found = run("show", table, "--json").json
    loaded = LatencyTable.load(table)
    assert found["digest"] == loaded.digest
    assert found["trust"] == []
    assert (found["space"]["fastest"]["ms"], found["space"]["slowest"]["ms"]) == loaded.range_ms()
    from proxylessnas import Arch

    for name in ("fastest", "slowest"):
        arch = Arch.parse(found["space"][name]["arch"])
        assert loaded.predict(arch) == pytest.approx(found["space"][name]["ms"])  # type: ignore[arg-type]
    assert len(found["operations"]) == len(loaded.entries)


def test_show_a_model(run: Run, table: Path, model: Path) -> None:
    from proxylessnas import Arch

    total = LatencyTable.load(table).predict(Arch.parse(MODEL))  # type: ignore[arg-type]
    ran = run("show", table, model)
    assert ran.code == 0
    lines = ran.out.splitlines()
    operations = ["stem", "k3e1", "k3e2", "k5e2", "k3e2", "last", "classifier"]
    assert [line.split()[0] for line in lines[2:-3]] == operations
    assert lines[-3].split() == ["total", f"{total:.3f}"]
    shares = [float(match) for match in re.findall(r"([\d.]+) %", ran.out)]
    assert sum(shares) == pytest.approx(100, abs=0.5)
    assert run("show", table, model, "--json").json["predicted_ms"] == pytest.approx(total)


def test_another_space_is_covered_or_not(run: Run, table: Path, tmp_path: Path) -> None:
    (tmp_path / "space.toml").write_text(TOML)
    ran = run("show", table, "--space", tmp_path / "space.toml")
    assert ran.code == 0
    assert re.search(r"coverage +0 of \d+ operations \(0 %\)", ran.out)
    assert re.search(r"and \d+ more", ran.out)
    assert "fastest" not in ran.out
    (tmp_path / "own.toml").write_text(SPACE.to_toml())
    assert "(100 %)" in run("show", table, "--space", tmp_path / "own.toml").out
    other = run("show", table, "--space", tmp_path / "own.toml", "--image-size", 64, "--predict-missing")
    assert "(100 %)" in other.out
    assert "~" in other.out
    assert "guessed operations are off by" in other.err


# ---- predict


def test_predict(run: Run, table: Path, model: Path) -> None:
    ran = run("predict", table, model)
    assert re.match(rf"model +predicted\n{model} +[\d.]+\n\nmilliseconds a call; torch on a test", ran.out)
    assert ran.err == ""
    found = run("predict", table, model, "--json").json
    assert found["nets"][0]["guessed_operations"] == 0


def test_operations_that_were_not_measured(run: Run, table: Path, model: Path) -> None:
    """An error that names the nearest, unless guesses are allowed, which are marked and judged."""
    model.write_text(MODEL.replace("Stage(24", "Stage(40"))
    ran = run("predict", table, model)
    assert (ran.code, ran.out) == (1, "")
    assert f"{model}: the latency table has no entry for k5e2 in=16x8x8 out=40 stride=1" in ran.err
    assert "the nearest it has is k5e2 in=16x8x8 out=24" in ran.err
    assert "KeyError" in run("predict", table, model, "--json").json["error"]["type"]
    ran = run("predict", table, model, "--predict-missing")
    assert re.search(r"guessed operations\n.* 3 of 7", ran.out)
    assert re.search(r"guessed operations are off by [\d.]+ %", ran.err)
    shown = run("show", table, model, "--predict-missing")
    assert shown.out.count("~") == 4  # three operations and the legend


def test_words_behind_options(run: Run, table: Path, model: Path) -> None:
    assert run("predict", table, model, "--json", model).code == 0
    ran = run("show", table, model, "--json", "more")
    assert ran.code == 2
    assert "unrecognised arguments: more" in ran.err


# ---- import


def test_import_a_csv_file(run: Run, tmp_path: Path) -> None:
    lines = [f"{key},{1000 * entry.ms}" for key, entry in little().entries.items()]
    (tmp_path / "a.csv").write_text("\n".join(["key,us", *lines]))
    (tmp_path / "s.toml").write_text(SPACE.to_toml())
    words = ["import", tmp_path / "a.csv", "-o", tmp_path / "t.json", "--device", "A Phone"]
    ran = run(*words, "--space", tmp_path / "s.toml", "--threads", 4)
    assert ran.code == 0, ran.err
    assert "A Phone, 4 threads" in ran.out
    found = LatencyTable.load(tmp_path / "t.json")
    assert {key: round(entry.ms, 6) for key, entry in found.entries.items()} == {
        key: round(entry.ms, 6) for key, entry in little().entries.items()
    }
    again = run(*words)
    assert (again.code, "--force replaces it" in again.err) == (1, True)
    assert run(*words, "--force", "--json").json["space"] is None


def test_import_doubts_a_unit(run: Run, tmp_path: Path) -> None:
    """A fast computer's microseconds called milliseconds."""
    phone = LatencyTable.load("pixel1").entries
    (tmp_path / "a.csv").write_text("\n".join(["key,ms", *(f"{k},{50 * e.ms}" for k, e in phone.items())]))
    ran = run("import", tmp_path / "a.csv", "-o", tmp_path / "t.json", "--device", "x")
    assert ran.code == 0
    assert "a search would refuse this table: together its operations do" in ran.err
    assert "is the unit 'ms' right; in us they would be ordinary?" in ran.err
    assert "UserWarning" not in ran.err
    (tmp_path / "b.csv").write_text("\n".join(["key,ms", *(f"{k},{1000 * e.ms}" for k, e in phone.items())]))
    ran = run("import", tmp_path / "b.csv", "-o", tmp_path / "u.json", "--device", "x")
    assert (ran.code, "beyond the slowest device" in ran.err) == (1, True)


def test_import_says_what_is_missing(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"stem in=3x32x32 out=8 stride=2": 1.5}')
    ran = run("import", tmp_path / "a.json", "-o", tmp_path / "t.json")
    assert ran.code == 1
    assert "unit" in ran.err
    ran = run("import", tmp_path / "a.json", "-o", tmp_path / "t.json", "--kit", tmp_path, "--device", "x")
    assert ran.code == 2
    assert "--device does not go with --kit" in ran.err
    assert not (tmp_path / "t.json").exists()


def test_a_kit_there_and_back(run: Run, tmp_path: Path) -> None:
    """Written here, run as on a device without PyTorch, and imported as a table that can be used."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    (tmp_path / "space.toml").write_text(TOML)
    kit = tmp_path / "kit"
    ran = run("kit", "--space", tmp_path / "space.toml", "-o", kit, "--nets", 12, "--json")
    assert ran.code == 0, ran.err
    assert ran.json["folder"] == str(kit)
    assert ran.json["files"] == len([path for path in kit.rglob("*") if path.is_file()])
    words = [sys.executable, "run.py", "--rounds", "1", "--seconds", "0.001"]
    done = subprocess.run(words, cwd=kit, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    true_device(kit)
    ran = run("import", kit / "results.json", "--kit", kit, "-o", tmp_path / "t.json")
    assert ran.code == 0, ran.err
    found = LatencyTable.load(tmp_path / "t.json")
    space = read_space(tmp_path / "space.toml")
    assert found.space == space
    have, need, _ = found.coverage()
    assert have == need
    assert {entry.how for entry in found.entries.values()} == {"fitted"}
    assert found.method["nets"] == 12
    assert found.validation is None  # too few models to judge it
    assert "never compared with measured models" in ran.err
    assert run("kit", "--space", tmp_path / "space.toml", "-o", kit).code == 1


def true_device(kit: Path) -> None:
    """Put a steady device's times in place of those measured while other tests ran beside it."""
    space = read_space(kit.parent / "space.toml")
    manifest = {item["id"]: item for item in json.loads((kit / "manifest.json").read_text())["items"]}
    results = json.loads((kit / "results.json").read_text())
    for item in results["items"]:
        what = manifest[item["id"]]
        ms = true_ms(OpKey.parse(what["key"])) if "key" in what else true_model_ms(space.arch(what["picks"]))
        item["ms"] = [[ms] * len(visit) for visit in item["ms"]]
        item["median_ms"] = ms
    (kit / "results.json").write_text(json.dumps(results))


# ---- what measures


def test_measure(run: Run, model: Path) -> None:
    ran = run("measure", model, "--seconds", "0.01", "--image-size", 16, "--batch", 2, "--json")
    assert ran.code == 0, ran.err
    (found,) = ran.json["nets"]
    assert 0 < found["undisturbed_ms"] <= found["p10_ms"] <= found["median_ms"] <= found["p90_ms"]
    assert found["disturbance"] == pytest.approx(found["median_ms"] / found["undisturbed_ms"])
    assert found["uncertainty"] >= 0
    assert found["images_per_second"] == pytest.approx(2000 / found["undisturbed_ms"])
    assert (found["input_size"], found["conditions"]["batch_size"]) == ([3, 16, 16], 2)
    assert found["runs"] >= 20
    ran = run("measure", model, "--seconds", "0.01")
    head, line, _, legend, conditions = ran.out.splitlines()
    words = ["model", "undisturbed", "median", "p10", "p90", "disturbance", "runs", "images/s"]
    assert head.split() == words
    assert line.split()[0] == str(model)
    assert legend.startswith("milliseconds a call of 1 image; undisturbed: to compare by; median, p10, p90")
    assert "memory allocator: " in conditions


def test_build_and_show(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    simulated(monkeypatch)
    (tmp_path / "space.toml").write_text(TOML)
    file = tmp_path / "t.json"
    words = ["build", "--space", tmp_path / "space.toml", "-o", file, "--minutes", "0.01"]
    ran = run(*words, "--validation-nets", 0)
    assert ran.code == 0, ran.err
    assert "(100 %)" in ran.out
    assert "a search would refuse this table: it was never compared" in ran.err
    assert [path.name for path in tmp_path.glob("t.json*")] == ["t.json"]
    assert "micro" in run("show", file).out
    ran = run(*words)
    assert (ran.code, f"error: {file} is there already" in ran.err) == (1, True)


BUILD = ["build", "--space", "tiny", "--image-size", "16", "--nets", "60", "--minutes", "1"]


def test_a_table_that_is_trusted(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though a neighbour is busy half of the time."""
    simulated(monkeypatch, disturbed=0.5)
    ran = run(*BUILD, "-o", tmp_path / "t.json")
    assert (ran.code, "error" in ran.err) == (0, False), ran.err
    table = LatencyTable.load(tmp_path / "t.json")
    assert (table.statistic, doubts(table)) == ("undisturbed", [])
    assert table.validation is not None
    assert table.validation["mape_percent"] < 5
    assert table.validation["ceiling_tau"] > 0.8
    assert "what this machine allows" in ran.out


@pytest.mark.parametrize("busy", [False, True])
def test_a_table_of_models_that_no_run_puts_in_order_names_a_larger_space(
    busy: bool, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here each loading of a model is by 50 % faster or slower than another."""
    simulated(monkeypatch, placement=0.5, disturbed=0.7 if busy else 0.0)
    ran = run(*BUILD, "-o", tmp_path / "t.json")
    assert ran.code == 1
    problems = doubts(LatencyTable.load(tmp_path / "t.json"))
    assert "a larger one: --space small" in problems[0]
    assert f"error: {tmp_path / 't.json'} is not to be trusted: {'; '.join(problems)}" in ran.err
    assert "--minutes" not in ran.err
    assert ("note: the machine is disturbed" in ran.err) == busy


def test_a_table_that_was_compared_with_few_models_says_how_many_it_takes(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulated(monkeypatch)
    ran = run(*BUILD, "--validation-nets", 10, "-o", tmp_path / "t.json")
    assert ran.code == 1
    assert "it was compared with 10 models only, wanted 30" in ran.err
    assert "note: build it again with --force --validation-nets 30\n" in ran.err


def test_a_table_that_is_far_off_wants_more_time(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its models are no sums of their operations."""
    simulated(monkeypatch, own=0.3)
    ran = run(*BUILD, "-o", tmp_path / "t.json")
    assert (ran.code, "note: build it again with --force --minutes 2\n" in ran.err) == (1, True), ran.err


@pytest.mark.slow
def test_validate(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "space.toml").write_text(TOML)
    file, png = tmp_path / "t.json", tmp_path / "t.png"
    words = ["build", "--space", tmp_path / "space.toml", "-o", file, "--minutes", "0.01"]
    assert run(*words, "--validation-nets", 0).code == 0
    ran = run("validate", file, "--nets", 4, "--png", png, "--json")
    assert png.read_bytes().startswith(b"\x89PNG")
    assert ran.json["validation"]["nets"] == 4
    assert ran.code == (1 if ran.json["trust"] else 0)
    assert LatencyTable.load(file).digest == ran.json["digest"]


# ---- wrong use


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["show", "nowhere.json"], 1, "no latency table at nowhere.json"),
        (["show", "pixel1", "no_such_net"], 1, "unknown model 'no_such_net'"),
        (["show", "pixel1", "proxyless_cifar"], 1, "proxyless_cifar is no chain of blocks"),
        (["show", "pixel1", "proxyless_cpu", "--space", "tiny"], 2, "--space is for"),
        (["show", "pixel1", "--image-size", "32"], 2, "name it with --space"),
        (["predict", "pixel1"], 2, "MODEL"),
        (["predict", "pixel1", "proxyless_cpu", "--image-size", "0"], 2, "--image-size: wanted a whole"),
        (["build", "--space", "imagnet", "-o", "t.json"], 1, "did you mean imagenet?"),
        (["build", "--space", "tiny", "-o", "t.txt"], 2, "-o writes a .json file"),
        (["build", "--space", "tiny", "-o", "nowhere/t.json"], 1, "there is no folder nowhere"),
        (["build", "--space", "tiny", "-o", "t.json", "--runtime", "tflite"], 2, "--runtime: 'tflite' is"),
        (["build", "--space", "tiny", "-o", "t.json", "--threads", "0"], 2, ONE_TO_1024),
        (["measure", "proxyless_cpu", "--threads", "0"], 2, ONE_TO_1024),
        (["import", "a.csv", "-o", "t.json", "--threads", "0"], 2, ONE_TO_1024),
        (["measure", "proxyless_cpu", "--batch", "0"], 2, "--batch: wanted a whole number from 1 to 65536"),
        (["measure", "proxyless_cpu", "--dtype", "int4"], 2, "--dtype: 'int4' is none of float32"),
        (["measure", "proxyless_cpu", "--memory-format", "rows"], 2, "--memory-format: 'rows' is none of"),
        (["build", "--space", "tiny", "-o", "t.json", "--validation-nets", "1"], 2, NONE_OR_SOME),
        (["build", "--space", "tiny", "-o", "t.json", "--minutes", "nan"], 2, "--minutes: wanted a number"),
        (["build", "--space", "tiny", "-o", "t.json", "--nets", "1"], 1, "nets must be"),
        (["validate", "pixel1", "-o", "t.json", "--nets", "1"], 2, "--nets: wanted a whole number from 2"),
        (["build", "--space", "tiny", "-o", "t.json", "--image-size", "4"], 1, "tiny"),
        (["build", "--space", "tiny", "-o", "t.json", "--cuda-graph"], 2, "--cuda-graph needs --device cuda"),
        (["validate", "pixel1"], 2, "-o says where to write"),
        (["validate", "pixel1", "-o", "t.json"], 1, "measured by another program"),
        (["validate", "nowhere.json"], 1, "no latency table at nowhere.json"),
        (["import", "a.csv"], 2, "-o"),
        (["import", "nowhere.csv", "-o", "t.json", "--unit", "ms", "--device", "x"], 1, "nowhere.csv"),
        (["import", "a.csv", "-o", "t.json", "--unit", "minutes"], 2, "--unit"),
        (["kit", "--space", "tiny", "-o", "k", "--formats", "tflite"], 1, "formats are onnx"),
        (["kit", "--space", "tiny", "-o", "k", "--nets", "-1"], 2, "--nets: wanted a whole number from 0"),
        (["kit", "--space", "tiny", "-o", "k", "--batch", "0"], 2, "--batch: wanted a whole number from 1"),
        (["import", "a.json", "-o", "t.json"], 1, "cannot read a.json"),
        (["measure"], 2, "MODEL"),
        (["measure", "no_such_net"], 1, "no_such_net"),
        (["measure", "proxyless_cpu", "--seconds", "nan"], 2, "--seconds: wanted a number above 0"),
        (["measure", "proxyless_cpu", "--import", "no_such_module"], 2, "--import no_such_module"),
        (["weigh"], 2, "weigh"),
    ],
)
def test_one_clear_error(
    words: list[str], code: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = run(*words)
    assert message in ran.err
    assert ran.code == code
    assert len(ran.err.splitlines()) <= 2
    assert list(tmp_path.iterdir()) == []


def test_errors_of_the_library_name_the_options_of_the_command(run: Run, tmp_path: Path) -> None:
    """Wherever Python's name of an option differs from the command line's."""
    for text, said in (
        ("validation_nets must be 0 or at least 2", "--validation-nets must be 0 or at least 2"),
        ("`cuda_graph` needs `device=cuda`", "--cuda-graph needs --device cuda"),
        ("batch_size must be 1", "--batch must be 1"),
        ("a.part: validation_nets was 3, now 4", "a.part: --validation-nets was 3, now 4"),
        ("cuda_graph needs device 'cuda'", "--cuda-graph needs device 'cuda'"),
        ("the table: batch_size is 0", "the table: batch_size is 0"),  # a file's, not an option
    ):
        assert spelled(text, _actions()["build"]) == said
    (tmp_path / "a.json").write_text('{"stem in=3x32x32 out=8 stride=2": 1.5}')
    words = ["import", tmp_path / "a.json", "-o", tmp_path / "t.json"]
    assert "--unit" in run(*words).err
    assert "--device" in run(*words, "--unit", "ms").err


def test_a_table_in_place_that_cannot_be_written(run: Run, table: Path) -> None:
    ran = run("validate", table, "-o", table.parent)
    assert ran.code == 2
    ran = run("validate", table, "-o", table.parent / "none" / "t.json")
    assert (ran.code, "there is no folder" in ran.err) == (1, True)


# ---- progress


def test_progress_is_silent_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    with Steps(False, "building") as steps:
        for i in range(100):
            steps(i, 100, "nets")
    assert capsys.readouterr().err == ""


def test_a_long_measurement_logs_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where standard error is a file: at most one in 15 seconds, with the time left."""
    now = 0.0
    monkeypatch.setattr("proxylessnas.utils.progress.time.monotonic", lambda: now)
    with Steps(False, "building") as steps, contextlib.suppress(LatencyError):
        for i in range(100):
            steps(i, 100, "measuring")
            now += 5.0
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "note: building: 3 %, 8:05 left, measuring"
    assert len(lines) == 33
    with Steps(True, "building") as steps:
        for i in range(100):
            steps(i, 100)
            now += 50.0
    assert capsys.readouterr().err == ""
