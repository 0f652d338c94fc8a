"""The kit: written here, run in a clean process as if on a phone, killed, gone on with, and read back."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import importlib.util
import json
import math
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

from proxylessnas.arch.op_key import arch_keys, key_macs, space_keys
from proxylessnas.arch.ops import register_op
from proxylessnas.arch.space import SearchSpace, SpaceStage
from proxylessnas.arch.spaces import read_space
from proxylessnas.errors import LatencyError, MissingExtraError
from proxylessnas.latency.kit.kit import programs, write_kit
from proxylessnas.latency.kit.results import KitNoise, KitResults, Samples, kit_table, read_results
from proxylessnas.latency.random_models import random_models
from proxylessnas.latency.table import ForeignConditions, LatencyTable
from proxylessnas.latency.validate import OWN_NAME, doubts, elsewhere, fitted_on, misplaced
from proxylessnas.runtimes.base import ModelSpec
from proxylessnas.runtimes.environment import conditions
from proxylessnas.runtimes.machine import NOISY_LOAD, device_name, disturbances, read_ticks
from proxylessnas.runtimes.registry import get_runtime

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

SPACE = SearchSpace(
    "kit", stem=8, first=8, last=32, stages=(SpaceStage(16, 2, 2), SpaceStage(24, 2, 1)),
    candidates=("k3e2", "k5e3"), resolution=32, num_classes=10,
)  # fmt: skip
MODELS = 3
QUICK = ("--rounds", "2", "--seconds", "0.01", "--runs", "3")


class Unexportable(nn.Module):
    def __init__(self, *sizes: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return x if float(x.sum()) > 0 else -x


register_op("kit_unexportable", Unexportable)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a kit that nothing changes."""
    return write_kit(SPACE, tmp_path_factory.mktemp("kits") / "kit", nets=MODELS, batch_size=2)


@pytest.fixture
def kit(written: Path, tmp_path: Path) -> Path:
    """Return a copy of it: the phone's."""
    return Path(shutil.copytree(written, tmp_path / "phone" / "kit"))


@pytest.fixture(scope="module")
def measured(written: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of it with results."""
    folder = Path(shutil.copytree(written, tmp_path_factory.mktemp("measured") / "kit"))
    done = run(folder, *QUICK, "--device-name", "Phone 1")
    assert done.returncode == 0, done.stderr
    return folder


def command(folder: Path, *options: str) -> tuple[list[str], dict[str, str]]:
    """Return the runner's command and an environment in which neither torch nor this package exists."""
    bare = folder.parent / "bare"
    bare.mkdir(exist_ok=True)
    for name in ("torch", "proxylessnas", "onnx"):
        (bare / f"{name}.py").write_text(f"raise ImportError('there is no {name} on a phone')\n")
    return [sys.executable, str(folder / "run.py"), *options], {**os.environ, "PYTHONPATH": str(bare)}


def run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    arguments, env = command(folder, *options)
    return subprocess.run(arguments, env=env, capture_output=True, text=True, timeout=300, cwd=folder.parent)


def manifest_of(folder: Path) -> Any:
    return json.loads((folder / "manifest.json").read_text())


def results_of(folder: Path) -> Any:
    return json.loads((folder / "results.json").read_text())


def test_a_kit_holds_every_operation_and_says_what_it_is(written: Path) -> None:
    manifest = manifest_of(written)
    keys = [item["key"] for item in manifest["items"] if "key" in item]
    assert keys == [str(key) for key in space_keys(SPACE)]
    nets = [item["picks"] for item in manifest["items"] if "picks" in item]
    assert len({tuple(choices) for choices in nets}) == MODELS
    for item in manifest["items"]:
        record = item["files"]["onnx"]
        content = (written / record["path"]).read_bytes()
        assert record["sha256"] == hashlib.sha256(content).hexdigest()
        assert len(content) == record["bytes"]
        model = onnx.load_model_from_string(content)
        shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
        assert shape == item["input"]
        assert shape[0] == 2
    assert SearchSpace.from_dict(manifest["space"]) == SPACE
    names = {path.name for path in written.iterdir()}
    assert names == {
        "blocks", "nets", "manifest.json", "README.txt", "run.py", "machine.py", "runtime_onnxruntime.py",
    }  # fmt: skip
    assert 'search space "kit", batch 2' in (written / "README.txt").read_text()


def test_the_imagenet_space_is_a_few_megabytes(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    folder = write_kit(
        read_space("imagenet"), tmp_path / "kit", nets=2, progress=lambda *done: seen.append(done)
    )
    count = len(space_keys(read_space("imagenet")))
    assert seen == [(i, count + 2) for i in range(1, count + 3)]
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 5e6


def test_the_same_seed_gives_the_same_models(written: Path, tmp_path: Path) -> None:
    again = write_kit(SPACE, tmp_path / "kit", nets=MODELS, batch_size=2)
    assert manifest_of(again)["items"] == manifest_of(written)["items"]
    other = write_kit(SPACE, tmp_path / "other", nets=MODELS, batch_size=2, seed=1)
    assert manifest_of(other)["items"] != manifest_of(written)["items"]


def optimised(content: bytes, path: Path) -> Counter[str]:
    """Return what ONNX Runtime really runs."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 3
    ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def test_repeated_weights_are_unrolled_when_the_file_is_loaded(tmp_path: Path) -> None:
    """So that the runtime runs what it would with ordinary weights."""
    from proxylessnas.runtimes.onnx_graph import whole_model_onnx, with_repeated_weights

    space = read_space("small")
    spec = ModelSpec("arch", str(space.arch([3] * len(space.search_blocks))), (3, 32, 32))
    full = whole_model_onnx(spec)
    small = with_repeated_weights(onnx.load_model_from_string(full)).SerializeToString()
    assert len(small) < len(full) / 20
    kinds = optimised(small, tmp_path / "small.onnx")
    assert kinds == optimised(full, tmp_path / "full.onnx")
    assert not {"Tile", "Slice", "Reshape"} & kinds.keys()


@pytest.mark.parametrize(("name", "text"), programs(("onnx", "executorch")).items())
def test_the_runner_is_plain_old_python(name: str, text: str) -> None:
    tree = ast.parse(text, name, feature_version=(3, 8))
    imported = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    imported |= {str(n.module) for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert imported <= {
        "__future__", "argparse", "datetime", "hashlib", "json", "os", "platform", "random", "sys", "time",
        "importlib", "typing", "statistics", "ctypes", "dataclasses", "pathlib", "collections.abc",
    }  # fmt: skip
    newer = {"removeprefix", "removesuffix", "bit_count", "is_relative_to", "pairwise", "strict"}
    used = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
    used |= {str(n.arg) for n in ast.walk(tree) if isinstance(n, ast.keyword)}
    assert not newer & used


def test_there_and_back(measured: Path) -> None:
    results = read_results(measured)
    assert isinstance(results, KitResults)
    assert results.space == SPACE
    assert list(results.ops_ms) == space_keys(SPACE)
    assert len(results.nets) == MODELS
    assert all(SPACE.arch(choices) and ms > 0 for choices, ms in results.nets)
    conditions = results.conditions
    assert (conditions.runtime, conditions.threads, conditions.batch_size) == ("onnxruntime", 1, 2)
    assert conditions.device_name == "Phone 1"
    assert conditions.versions["onnxruntime"] == ort.__version__
    assert not isinstance(conditions, ForeignConditions)
    raw = results_of(measured)
    assert (raw["unit"], raw["version"]) == ("ms", 1)
    for item in raw["items"]:
        assert len(item["ms"]) == 2  # rounds
        assert item["runs"] == sum(map(len, item["ms"])) >= 6
        assert item["median_ms"] == pytest.approx(
            statistics.median([ms for measurement in item["ms"] for ms in measurement])
        )
        assert item["warmup_runs"] >= 6
    assert results.own_name == device_name()
    assert read_results(measured / "manifest.json", measured / "results.json") == results
    assert not (measured / "results.json.part").exists()


def test_figures_are_milliseconds(measured: Path) -> None:
    """A model takes at least as long as its first operation, and not a thousand times longer than all."""
    results = read_results(measured)
    ops = sum(samples.median_ms for samples in results.ops_ms.values())
    assert all(0.01 * ops < ms < 100 * ops for _, ms in results.nets)
    session = ort.InferenceSession(measured / "nets" / "000.onnx", providers=["CPUExecutionProvider"])
    import numpy as np

    x = {"x": np.zeros((2, 3, 32, 32), np.float32)}
    took = []
    for _ in range(20):
        before = time.perf_counter()
        session.run(None, x)
        took.append((time.perf_counter() - before) * 1000)
    assert min(took) / 10 < results.nets[0][1] < max(took) * 10


def test_killed_at_any_moment_it_resumes_and_measures_nothing_twice(kit: Path) -> None:
    options = ("--rounds", "4", "--seconds", "0.03", "--runs", "3")
    journal = kit / "results.json.part"
    total = 4 * len(manifest_of(kit)["items"])
    kept: list[Any] = []
    for kill in range(1, 6):
        arguments, env = command(kit, *options)
        with subprocess.Popen(
            arguments, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        ) as process:
            deadline = time.monotonic() + 300
            while len(lines_of(journal)) < len(kept) + 1 + 2 * kill:
                assert process.poll() is None, process.stderr and process.stderr.read()
                assert time.monotonic() < deadline
                time.sleep(0.003 * kill)
            process.send_signal(signal.SIGKILL)
        now = [json.loads(line) for line in lines_of(journal)]
        assert now[: len(kept)] == kept
        assert len(now) > len(kept)
        kept = now
        if kill == 3:  # as if it had died in the middle of a line
            with journal.open("a") as file:
                file.write('{"round": 3, "id": "bl')
    assert not (kit / "results.json").exists()
    done = run(kit, *options)
    assert done.returncode == 0, done.stderr
    assert f"resumed: {len(kept) - 1} of {total}" in done.stdout
    assert not journal.exists()
    items = {item["id"]: item["ms"] for item in results_of(kit)["items"]}
    assert [len(measurements) for measurements in items.values()] == [4] * len(items)
    for measurement in kept[1:]:
        assert items[measurement["id"]][measurement["round"]] == measurement["ms"]
    measurements = Counter((measurement["round"], measurement["id"]) for measurement in kept[1:])
    assert set(measurements.values()) == {1}
    read_results(kit)


def lines_of(path: Path) -> list[str]:
    """Return the finished lines of a file; none if it is not there."""
    return path.read_text().split("\n")[:-1] if path.exists() else []


def test_another_command_does_not_mix_its_figures_in(kit: Path) -> None:
    arguments, env = command(kit, *QUICK)
    with subprocess.Popen(arguments, env=env, stdout=subprocess.DEVNULL) as process:
        while len(lines_of(kit / "results.json.part")) < 4:
            time.sleep(0.002)
        process.kill()
    refused = run(kit, *QUICK, "--threads", "2")
    assert refused.returncode == 1
    assert "another command (threads differ)" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert run(kit, *QUICK).returncode == 0
    again = run(kit, *QUICK)
    assert again.returncode == 1
    assert "--force" in again.stderr
    before = results_of(kit)["items"]
    assert run(kit, *QUICK, "--force").returncode == 0
    assert results_of(kit)["items"] != before


@pytest.mark.parametrize(
    ("path", "said"), [("blocks/002.onnx", "blocks/002.onnx is damaged"), ("manifest.json", "cannot be read")]
)
def test_damaged_files_are_not_measured(kit: Path, path: str, said: str) -> None:
    content = bytearray((kit / path).read_bytes())
    content[len(content) // 2] ^= 0xFF
    (kit / path).write_bytes(content)
    done = run(kit, *QUICK)
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not (kit / "results.json.part").exists()


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        (("--provider", "NoneSuch"), 1, "has no provider 'NoneSuch'; it has"),
        (("--runtime", "executorch"), 1, "no files for this runtime"),
        (("--threads", "0"), 2, "--threads must be from 1"),
        (("--rounds", "none"), 2, "invalid int value"),
    ],
)
def test_wrong_options_are_refused(kit: Path, options: tuple[str, ...], status: int, said: str) -> None:
    done = run(kit, *options)
    assert done.returncode == status
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def changed(measured: Path, tmp_path: Path, change: Any) -> Path:
    """Return results of which something was changed."""
    data = results_of(measured)
    change(data)
    path = tmp_path / "results.json"
    path.write_text(json.dumps(data))
    return path


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d.update(unit="s"), 'unit is "s"; wanted "ms"'),
        (lambda d: d.pop("unit"), "unit is missing"),
        (lambda d: d.update(version=2), "pip install --upgrade"),
        (lambda d: d.update(format="other"), 'its "format" is not'),
        (lambda d: d.update(kit_sha256="0" * 64), "results of another kit"),
        (lambda d: d.update(batch_size=1), "wanted 2, that of the kit"),
        (lambda d: d.update(threads=0), "threads is 0"),
        (lambda d: d.update(runtime="mine"), "wanted onnxruntime or executorch"),
        (lambda d: d.update(date="soon"), "wanted a day"),
        (lambda d: d.update(extra=1), 'unknown key "extra"'),
        (lambda d: d["items"].pop(0), "block-000 (stem in=3x32x32 out=8 stride=2) was not measured"),
        (
            lambda d: d["items"].append(d["items"][0]),
            'id is "block-000"; wanted one of the kit\'s, each once',
        ),
        (lambda d: d["items"][1]["ms"][0].append(-1.0), "above 0"),
        (lambda d: d["items"][1]["ms"][0].append(float("nan")), "above 0"),
        (lambda d: d["items"][1].update(ms=[[]]), "above 0"),
        (lambda d: d["items"][1].update(median_ms=1e6), "median_ms is not the median"),
        (lambda d: d["items"].append(3), "id is null"),
        (lambda d: d["items"][1].update(other_load=[0.1]), "wanted a share for each measurement"),
        (lambda d: d["items"][1].update(other_load=[0.1, 1.5]), "wanted a share for each measurement"),
        (lambda d: d["items"][1].update(noise=["bad", []]), "wanted reasons for each measurement"),
        (lambda d: d.update(own_name=3), "own_name is 3"),
    ],
)
def test_results_that_are_wrong_are_refused(measured: Path, tmp_path: Path, change: Any, said: str) -> None:
    with pytest.raises(LatencyError) as caught:
        read_results(measured, changed(measured, tmp_path, change))
    assert said in str(caught.value)


# What disturbs


@pytest.fixture
def runner(kit: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a kit's run.py as a module; it leaves no trace in this process."""
    spec = importlib.util.spec_from_file_location("kit_run", kit / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "modules", {**sys.modules})
    spec.loader.exec_module(module)
    return module


BUSY = "import time\nend = time.monotonic() + 600\nwhile time.monotonic() < end: pass"


@pytest.mark.skipif(read_ticks() is None, reason="the system does not tell")
def test_other_programs_are_noticed(runner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a visit of the usual length, while another program computes."""
    with subprocess.Popen([sys.executable, "-c", BUSY]) as busy:
        try:
            watch = runner.Watch()
            watch.start()
            with monkeypatch.context() as patch:
                patch.setattr(watch.module, "_ENOUGH_TICKS", math.inf)  # too early to tell
                assert watch.stop([1.0, 1.0, 1.0]) == {"other_load": None, "noise": []}
            time.sleep(1.0)  # the watch goes on, for all visits it has seen
            watch.start()
            found = watch.stop([1.0, 1.0, 1.0])
        finally:
            busy.kill()
    assert found["other_load"] * (os.cpu_count() or 1) > NOISY_LOAD
    (reason,) = found["noise"]
    assert re.fullmatch(r"other programs used [\d.]+ of \d+ processors", reason)
    assert watch.load is None  # the next visit starts anew


@pytest.mark.parametrize(
    "ms", [[1.0], [1.0, 1.04], [1.0, 1.2, 1.4, 1.6, 1.8], [2.0, 2.2, 1.9, 5.0, 2.1, 2.0]]
)
def test_unsteady_runs_are_noticed_as_here(runner: Any, ms: list[float]) -> None:
    watch = runner.Watch()
    watch.start()
    assert watch.stop(ms)["noise"] == disturbances(ms, None)


def test_every_visit_says_what_disturbed_it(measured: Path) -> None:
    for item in results_of(measured)["items"]:
        assert len(item["noise"]) == len(item["other_load"]) == len(item["ms"]) == 2
        assert all(load is None or 0 <= load <= 1 for load in item["other_load"])
    noise = read_results(measured).noise
    assert noise.visits == 2 * len(manifest_of(measured)["items"])
    noisy = [bool(why) for item in results_of(measured)["items"] for why in item["noise"]]
    assert noise.disturbed == sum(noisy)
    assert bool(noise.most) == any(noisy)


def quiet_but(*noisy: tuple[int, int]) -> Any:
    """Return a change of results: of the named (item, visit) all runs took long, and it was disturbed."""

    def change(data: Any) -> None:
        for i, item in enumerate(data["items"]):
            item["ms"] = [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
            item["other_load"], item["noise"] = [0.0, 0.0], [[], []]
            for which, measurement in noisy:
                if i == which:
                    item["ms"][measurement] = [3.0, 3.0, 3.0]
                    item["other_load"][measurement] = 0.25
                    item["noise"][measurement] = ["other programs used 1 of 4 processors"]
            item["median_ms"] = statistics.median([*item["ms"][0], *item["ms"][1]])

    return change


def test_disturbed_visits_count_only_where_there_are_no_others(measured: Path, tmp_path: Path) -> None:
    items = results_of(measured)["items"]
    model = next(i for i, item in enumerate(items) if item["id"] == "net-001")
    block = next(i for i, item in enumerate(items) if item["id"] == "block-000")
    change = quiet_but((block, 0), (model, 0), (model, 1))
    results = read_results(measured, changed(measured, tmp_path, change))
    assert {samples.median_ms for samples in results.ops_ms.values()} == {1.0}
    assert [ms for _, ms in results.nets] == [1.0, 3.0, 1.0]
    noise = results.noise
    assert (noise.disturbed, noise.nets, noise.load_known) == (3, 1, True)
    assert noise.most == "other programs used 1 of 4 processors"
    table = kit_table(results)
    assert table.method["noise"] == dataclasses.asdict(noise)
    assert table.method["disturbed"] == "left out where others were not"


def test_results_of_the_first_runners_are_read(measured: Path, tmp_path: Path) -> None:
    """They did not look at other programs; how steady the runs were is seen all the same."""

    def change(data: Any) -> None:
        quiet_but()(data)
        del data["own_name"]
        for item in data["items"]:
            del item["noise"], item["other_load"]
        data["items"][0]["ms"][0] = [1.0, 1.5, 2.0]
        data["items"][0]["median_ms"] = 1.0

    results = read_results(measured, changed(measured, tmp_path, change))
    assert (results.noise.disturbed, results.noise.load_known, results.own_name) == (1, False, "")
    assert results.noise.most == "half of the runs lie 33% of the median apart"


def test_a_table_of_a_kit_is_one_of_this_device(measured: Path) -> None:
    """Although its user gave the device a name, and its Python is another."""
    table = kit_table(read_results(measured))
    assert table.conditions.device_name == "Phone 1"
    assert table.method[OWN_NAME] == device_name()
    here = conditions(table.conditions.settings, get_runtime("onnxruntime"))
    assert here.versions["torch"]  # which no kit has
    assert elsewhere(table, here) == []
    other = dataclasses.replace(here, device_name="another", threads=2)
    differences = elsewhere(table, other)
    assert differences == ["threads was 1, is 2", "device_name was Phone 1, is another"]
    assert set(fitted_on(table, SPACE)) == set()  # of so few models, none was used


def test_the_models_of_a_kit_are_not_those_of_a_later_validation(measured: Path) -> None:
    space = read_space("small")
    own = {key: 0.1 + (key_macs(key) or 0) / 1e7 for key in space_keys(space)}
    ops = {key: Samples((ms, ms, ms)) for key, ms in own.items()}
    choices = random_models(space, 40, seed=0)
    nets = [(one, 1.1 * sum(own[key] for key in arch_keys(space.arch(one)))) for one in choices]
    noise = KitNoise(visits=50, disturbed=3, nets=2, load_known=True, most="other programs")
    where = read_results(measured).conditions
    table = kit_table(KitResults(space, ops, nets, where, "2026-11-21", noise, "board"))
    assert set(fitted_on(table, space)) == set(choices)
    validation = table.validation or {}
    assert (validation["noisy_nets"], validation["space"]) == (2, space.digest)
    assert misplaced(table) == doubts(table) == []
    assert table.method[OWN_NAME] == "board"
    again = LatencyTable.from_dict(table.to_dict())
    assert set(fitted_on(again, space)) == set(choices)


def test_results_elsewhere(kit: Path, tmp_path: Path) -> None:
    done = run(kit, *QUICK, "--output", "mine.json")
    assert done.returncode == 0, done.stderr
    assert read_results(kit, kit.parent / "mine.json").space == SPACE
    missing = run(kit, *QUICK, "--output", "none/mine.json")
    assert missing.returncode == 1
    assert "Traceback" not in missing.stderr
    assert "none" in missing.stderr


def test_every_problem_is_listed_at_once(measured: Path, tmp_path: Path) -> None:
    path = changed(measured, tmp_path, lambda d: d.update(unit="us", threads=0, date=""))
    with pytest.raises(LatencyError, match=r"3 problems\n") as caught:
        read_results(measured, path)
    assert str(path) in str(caught.value)


def test_results_before_they_are_there(written: Path) -> None:
    with pytest.raises(LatencyError, match=r"results\.json"):
        read_results(written)


def test_other_processors_of_a_device(measured: Path, tmp_path: Path) -> None:
    """What they measured is no ONNX Runtime on a CPU, which could be measured here again."""
    path = changed(measured, tmp_path, lambda d: d.update(provider="NnapiExecutionProvider"))
    conditions = read_results(measured, path).conditions
    assert isinstance(conditions, ForeignConditions)
    assert conditions.runtime == "onnxruntime (NnapiExecutionProvider)"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"formats": ()}, "formats are onnx and executorch"),
        ({"formats": ("tflite",)}, "not \\('tflite',\\)"),
        ({"nets": -1}, "nets must be"),
        ({"batch_size": 0}, "batch_size must be"),
    ],
)
def test_wrong_arguments(tmp_path: Path, options: Any, said: str) -> None:
    with pytest.raises(LatencyError, match=said):
        write_kit(SPACE, tmp_path / "kit", **options)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    with pytest.raises(LatencyError, match="is there already"):
        write_kit(SPACE, tmp_path / "full")
    (tmp_path / "empty").mkdir()
    write_kit(SPACE, tmp_path / "empty", nets=0)
    with pytest.raises(LatencyError, match="cannot be written"):
        write_kit(SPACE, tmp_path / "none" / "kit")


def test_a_kit_is_there_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxscript")
    space = SPACE.replace(candidates=("k3e2", "kit_unexportable"))
    with pytest.raises(LatencyError, match="cannot export Unexportable"):
        write_kit(space, tmp_path / "kit")
    assert not list(tmp_path.iterdir())
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingExtraError, match=r"proxylessnas\[onnx\]"):
        write_kit(SPACE, tmp_path / "kit")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_executorch_programs(tmp_path: Path) -> None:
    pytest.importorskip("executorch")
    space = SPACE.replace(stages=(SpaceStage(16, 2, 1),), candidates=("k3e2",))
    folder = write_kit(space, tmp_path / "kit", formats=("onnx", "executorch"), nets=1)
    arguments = [sys.executable, str(folder / "run.py"), *QUICK, "--runtime", "executorch"]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    results = read_results(folder)
    assert results.conditions.runtime == "executorch"
    assert results.noise.visits == 2 * len(manifest_of(folder)["items"])
    assert len(results.ops_ms) == len(space_keys(space))
