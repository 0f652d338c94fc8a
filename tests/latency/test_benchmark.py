"""The bench: models side by side in one interleaved run, with honest accuracies."""

from __future__ import annotations

import csv
import inspect
import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from simulated_machine import SimulatedWorker, simulated, true_model_ms
from torch import nn

from proxylessnas import Arch, cli, get_weights, register_op
from proxylessnas.errors import ArchError, LatencyError, MissingExtraError, UnknownModelError
from proxylessnas.latency import BenchSettings, Settings
from proxylessnas.latency.benchmark import Bench, _thread_counts, bench, describe
from proxylessnas.latency.benchmark_models import PEERS, SPECIALISED, open_models
from proxylessnas.runtimes.timer import Window

TORCHVISION, TIMM = PEERS[:3], PEERS[3:]
LITTLE = """Arch("little", stem=8, first=8, last=16, resolution=16, num_classes=5, stages=(
    Stage(8, 2, "k3e3 -"),))"""
OTHER = LITTLE.replace("little", "other").replace("k3e3 -", "k5e6 k5e6")


@pytest.fixture(scope="module")
def measured() -> tuple[Bench, list[str]]:
    """Return a real bench of two models and two batch sizes, and what it told on the way."""
    told = []
    models = [Arch.parse(LITTLE), Arch.parse(OTHER)]
    settings = BenchSettings(batches=(1, 4), rounds=3, seconds=0.01)
    result = bench(models, settings, peers=(), progress=lambda i, n, what: told.append(f"{i}/{n} {what}"))
    return result, told


# ---- measuring


def test_every_model_under_every_setting(measured: tuple[Bench, list[str]]) -> None:
    result, _ = measured
    assert [(row.model.name, row.setting) for row in result.rows] == [
        ("little", "torch, 1 thread, batch 1"),
        ("other", "torch, 1 thread, batch 1"),
        ("little", "torch, 1 thread, batch 4"),
        ("other", "torch, 1 thread, batch 4"),
    ]
    assert result.notes == ()
    for row in result.rows:
        t = row.timing
        assert 0 < t.undisturbed_ms <= t.p10_ms <= t.median_ms <= t.p90_ms
        assert t.runs >= 12  # four a round
        assert t.input_size == (3, 16, 16)
        assert t.images_per_second == pytest.approx(1000 * t.conditions.batch_size / t.undisturbed_ms)
        assert t.disturbance == pytest.approx(t.median_ms / t.undisturbed_ms)
        assert t.conditions.threads == 1


def test_rounds_are_interleaved_in_fresh_orders(monkeypatch: pytest.MonkeyPatch) -> None:
    simulated(monkeypatch)
    seen: list[str] = []
    taken = SimulatedWorker.window

    def window(self: SimulatedWorker, name: str, **limits: Any) -> Window:
        seen.append(name)
        return taken(self, name, **limits)

    monkeypatch.setattr(SimulatedWorker, "window", window)
    models = [Arch.parse(LITTLE), Arch.parse(OTHER)]
    result = bench(models, BenchSettings(batches=(1, 4), rounds=3, seconds=0.01), peers=())
    orders = [tuple(seen[i : i + 4]) for i in range(0, len(seen), 4)]
    assert len(orders) == result.rounds >= 3
    assert all(Counter(order) == Counter(orders[0]) and len(set(order)) == 4 for order in orders)
    assert len(set(orders)) > 1


def test_a_busy_neighbour_changes_the_medians_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both models take what they take undisturbed, and the disturbance beside it says how busy it was."""
    simulated(monkeypatch, disturbed=0.8, placement=0.0, speeds=0.0)
    models = [Arch.parse(LITTLE), Arch.parse(OTHER)]
    rows = bench(
        [model for model in models if isinstance(model, Arch)],
        BenchSettings(rounds=40, seconds=0.5),
        peers=(),
    ).rows
    for model, row in zip(models, rows, strict=True):
        assert isinstance(model, Arch)
        assert row.timing.undisturbed_ms == pytest.approx(true_model_ms(model), rel=0.01)
        assert row.timing.disturbance > 1.15
        assert row.timing.noise == ()


def test_progress_says_what_is_being_done(measured: tuple[Bench, list[str]]) -> None:
    """In seconds, which never go back, nor reach the total before the end."""
    steps = [tuple(map(int, line.split()[0].split("/"))) for line in measured[1]]
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)
    assert all(done < total for done, total in steps)
    told = [line.split(" ", 1)[1] for line in measured[1]]
    assert list(dict.fromkeys(told)) == ["starting torch", "loading models", "measuring"]


def test_settings_in_words() -> None:
    assert describe(Settings(threads=2, batch_size=8)) == "torch, 2 threads, batch 8"
    assert describe(Settings(device="cuda")) == "torch, GPU, batch 1"


OPS = """
from torch import nn
from proxylessnas import register_op
def build(i, o, s):
    return nn.Conv2d(i, o, 3, s, 1)
register_op("bench_plain", build)
"""


def test_a_model_that_cannot_be_loaded_is_left_out_with_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The measuring process knows an operation only if it imports the module that registers it."""
    (tmp_path / "bench_ops.py").write_text(OPS)
    monkeypatch.syspath_prepend(str(tmp_path))
    import bench_ops  # type: ignore[import-not-found]

    register_op("bench_plain", bench_ops.build)
    models = [Arch.parse(LITTLE), Arch.parse(OTHER.replace("k5e6", "bench_plain"))]
    few = BenchSettings(rounds=1, seconds=0.001)
    result = bench(models, few, peers=())
    assert [row.model.name for row in result.rows] == ["little"]
    assert "other is left out (torch, 1 thread, batch 1): " in result.notes[0]
    assert "bench_plain" in result.notes[0]
    assert len(bench(models, few.replace(imports=("bench_ops",)), peers=()).rows) == 2


@pytest.mark.slow
def test_nothing_could_be_measured() -> None:
    def build(i: int, o: int, s: int) -> nn.Module:
        return nn.Conv2d(i, o, 3, s, 1)

    register_op("bench_unknown_elsewhere", build)
    model = Arch.parse(OTHER.replace("k5e6", "bench_unknown_elsewhere"))
    with pytest.raises(LatencyError, match="nothing could be measured:\n  other is left out"):
        bench([model], BenchSettings(rounds=1, seconds=0.001), peers=())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"nets": ["proxyless_cp"]}, UnknownModelError, "did you mean proxyless_cpu"),
        ({"nets": ["nowhere/a.txt"]}, ArchError, "nowhere"),
        ({"nets": []}, LatencyError, "no model to measure"),
        ({"runtimes": ["tensorflow"]}, LatencyError, "tensorflow"),
        ({"runtimes": []}, LatencyError, "no setting"),
        ({"threads": [0]}, LatencyError, "threads"),
        ({"threads": range(1, 27)}, LatencyError, "24 are the limit"),
        ({"rounds": 0}, LatencyError, "rounds"),
        ({"device": "tpu"}, LatencyError, "tpu"),
    ],
)
def test_what_makes_no_sense(options: dict[str, Any], error: type[Exception], message: str) -> None:
    models = options.get("nets", [Arch.parse(LITTLE)])
    options = {name: value for name, value in options.items() if name != "nets"}
    with pytest.raises(error, match=message):
        bench(models, BenchSettings(**options), peers=())


# ---- models and what is known about them


def test_own_models_have_the_published_figures(tmp_path: Path) -> None:
    models, notes = open_models([*SPECIALISED, "proxyless_w025_r112", "proxyless_cifar10_demo"], tmp_path)
    assert notes == []
    by_name = {model.name: model for model in models}
    cpu = by_name["proxyless_cpu"]
    assert (cpu.params, cpu.macs, cpu.top1, cpu.top1_status) == (4_361_648, 439_243_864, 75.29, "published")
    small = by_name["proxyless_w025_r112"]
    assert (small.spec.input_size, small.top1) == ((3, 112, 112), None)
    demo = by_name["proxyless_cifar10_demo"]
    assert (demo.top1_status, demo.dataset, demo.num_classes) == ("measured here", "cifar10", 10)
    assert not any(model.peer for model in models)


def test_an_accuracy_belongs_to_its_input_size(tmp_path: Path) -> None:
    (model,), _ = open_models(["proxyless_cpu"], tmp_path, image_size=160)
    assert (model.top1, model.top1_status, model.spec.input_size) == (None, None, (3, 160, 160))
    assert model.macs < 439_243_864
    (model,), _ = open_models(["proxyless_cpu"], tmp_path, image_size=224)
    assert model.top1 == 75.29


def test_files_and_repeated_models(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("a.txt", "b.txt", "sub/a.txt"):
        (tmp_path / name).write_text(LITTLE)
    words = [str(tmp_path / name) for name in ("a.txt", "b.txt", "a.txt", "sub/a.txt")]
    models, _ = open_models(words, tmp_path)
    assert [model.name for model in models] == ["a", "b", "a (2)"]


def test_torchvision_models_come_with_imagenet_models_only(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    models, notes = open_models(["proxyless_cpu", PEERS[0]], tmp_path, peers=PEERS[:1])
    assert [model.name for model in models] == ["proxyless_cpu", "torchvision/mobilenet_v2"]
    assert notes == []
    peer = models[1]
    assert (peer.peer, peer.params, peer.macs, peer.num_classes) == (True, 3_504_872, 300_774_272, 1000)
    assert (peer.top1_status, peer.dataset) == ("published", "imagenet")
    assert 70 < float(peer.top1 or 0) < 75
    assert "torchvision, MobileNet_V2_Weights" in str(peer.top1_source)
    models, notes = open_models(["proxyless_cifar10_demo"], tmp_path, peers=PEERS)
    assert len(models) == 1
    assert notes == ["other libraries' models are left out: none of these is an ImageNet model"]
    with pytest.raises(UnknownModelError, match="did you mean torchvision/mobilenet_v2"):
        open_models(["torchvision/mobilenetv2"], tmp_path)


def test_without_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its models are left out with a note, but one that was asked for by name is an error."""
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    models, notes = open_models(["proxyless_cpu"], tmp_path, peers=TORCHVISION)
    assert [model.name for model in models] == ["proxyless_cpu"]
    assert len(notes) == 3
    assert all("install --force-reinstall torchvision" in text for text in notes)
    with pytest.raises(MissingExtraError, match="pip install --force-reinstall torchvision"):
        open_models(PEERS[:1], tmp_path)


def test_without_timm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its models are peers only where it is installed; one that was asked for by name is an error."""
    monkeypatch.setitem(sys.modules, "timm", None)
    models, notes = open_models(["proxyless_cpu"], tmp_path, peers=TIMM)
    assert ([model.name for model in models], notes) == (["proxyless_cpu"], [])
    with pytest.raises(MissingExtraError, match="pip install timm"):
        open_models(["timm/mnasnet_100"], tmp_path)


def test_timm_models_are_peers_without_being_asked_for(tmp_path: Path) -> None:
    """Their accuracies are those that timm publishes for its default weights at 224 px."""
    pytest.importorskip("timm")
    assert inspect.signature(bench).parameters["peers"].default == PEERS
    assert {*TORCHVISION, *TIMM} == {*PEERS}
    models, notes = open_models(["proxyless_cpu"], tmp_path, peers=TIMM)
    assert notes == []
    assert [(model.name, model.top1, model.peer, model.spec.input_size[1]) for model in models[1:]] == [
        ("timm/mobilenetv3_large_100", 75.766, True, 224),
        ("timm/efficientnet_lite0", 75.48, True, 224),
        ("timm/mnasnet_100", 74.65, True, 224),
    ]
    assert {model.top1_status for model in models} == {"published"}
    assert all("results-imagenet.csv" in str(model.top1_source) for model in models[1:])
    smaller, _ = open_models(["proxyless_cpu"], tmp_path, peers=TIMM[2:], image_size=160)
    assert smaller[1].top1 is smaller[1].top1_source is None


def test_a_broken_timm_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "timm.py").write_text("raise RuntimeError('a build for another torch')")
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    models, notes = open_models(["proxyless_cpu"], tmp_path, peers=TIMM[:1])
    assert len(models) == 1
    assert notes[0].startswith("timm/mobilenetv3_large_100 is left out: ")


def test_threads_that_make_no_difference_are_said() -> None:
    assert _thread_counts((1, 2, 1), "cpu") == ([1, 2], [])
    assert _thread_counts((2,), "cuda") == ([2], [])
    assert _thread_counts((1, 2, 4), "cuda") == (
        [1], ["threads are of a CPU: with device cuda nothing is measured for 2, 4 threads"],
    )  # fmt: skip


def test_timm_models(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    (model,), _ = open_models(["timm/mnasnet_small"], tmp_path)
    assert (model.peer, model.num_classes, model.spec.input_size, model.top1) == (
        True,
        1000,
        (3, 224, 224),
        None,
    )
    with pytest.raises(UnknownModelError, match="no model 'mnasnet_smal'; did you mean timm/mnasnet_small"):
        open_models(["timm/mnasnet_smal"], tmp_path)


# ---- files and the command


def test_csv(measured: tuple[Bench, list[str]], tmp_path: Path) -> None:
    measured[0].write_csv(tmp_path / "a.csv")
    with open(tmp_path / "a.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["net"], row["batch"]) for row in rows] == [
        ("little", "1"), ("other", "1"), ("little", "4"), ("other", "4"),
    ]  # fmt: skip
    for row in rows:
        assert 0 < float(row["undisturbed_ms"]) <= float(row["median_ms"]) <= float(row["p90_ms"])
        disturbance = float(row["median_ms"]) / float(row["undisturbed_ms"])
        assert float(row["disturbance"]) == pytest.approx(disturbance, rel=0.01)
        assert float(row["uncertainty"]) >= 0
        assert float(row["images_per_second"]) == pytest.approx(
            1000 * int(row["batch"]) / float(row["undisturbed_ms"]), rel=0.01
        )
        assert "torch" in row["versions"]
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", row["date"])
        assert row["device_name"]


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "little.txt").write_text(LITTLE)
    words = ["bench", "proxyless_cifar10_demo", "--rounds", "1", "--seconds", "0.001", "--quiet"]
    words += [str(tmp_path / "little.txt")]
    words += ["--csv", str(tmp_path / "a.csv"), "--png", str(tmp_path / "a.png")]
    assert cli.main(words) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0] == "torch, 1 thread, batch 1"
    assert lines[1].split() == ["model", "ms", "median", "p90", "images/s", "params", "MACs", "top-1"]
    top1 = get_weights("proxyless_cifar10_demo").metrics["top1"]
    assert re.match(rf"proxyless_cifar10_demo +[\d.]+ .* 0\.82 M +67\.3 M +{top1:.1f}\*", lines[2])
    assert re.match(r"little +[\d.]+ .* -( |$)", lines[3])
    assert "*: measured by this project" in out
    assert "top-1 of proxyless_cifar10_demo: on CIFAR-10, not on ImageNet" in out
    assert all(len(line) <= 100 for line in lines)
    assert "other libraries' models are left out" in err
    assert "little is not in the figure: its accuracy is not known" in err
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert len((tmp_path / "a.csv").read_text().splitlines()) == 3


def test_command_as_json_without_any_accuracy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "little.txt").write_text(LITTLE)
    words = ["bench", str(tmp_path / "little.txt"), "--rounds", "1", "--seconds", "0.001"]
    words += ["--json", "--no-peers"]
    assert cli.main([*words, "--png", str(tmp_path / "a.png")]) == 0
    out, err = capsys.readouterr()
    (row,) = json.loads(out)["rows"]
    assert (row["net"], row["top1"], row["runtime"], row["input_size"]) == ("little", None, "torch", 16)
    assert "error" not in err
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG"), "bars of latency"


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--threads", "one"], 2, "--threads: wanted numbers such as 1,2, each from 1 to 1024"),
        (["--threads", "1,0"], 2, "--threads: wanted numbers such as 1,2, each from 1 to 1024, not '1,0'"),
        (["--batch", "0"], 2, "--batch: wanted numbers such as 1,2, each from 1 to 65536"),
        (["--rounds", "0"], 2, "--rounds: wanted a whole number from 1 to 1000, not '0'"),
        (["--seconds", "nan"], 2, "--seconds: wanted a number above 0 and at most 60"),
        (["--image-size", "0"], 2, "--image-size: wanted a whole number from 1"),
        (["--cuda-graph"], 2, "--cuda-graph needs --device cuda and --runtime torch"),
        (["--csv", "a.txt"], 2, "--csv writes a .csv file"),
        (["--png", "a.png", "--threads", "1,2,3,4,5", "--batch", "1,2,3"], 2, "--png holds 12 settings"),
        (["--png", "nowhere/a.png"], 1, "there is no folder nowhere"),
        (["--runtime", "tensorflow"], 2, "--runtime: 'tensorflow' is none of torch, "),
        (["--import", "no_such_module"], 2, "--import no_such_module: ModuleNotFoundError"),
        (["no_such_net"], 1, "unknown model 'no_such_net'"),
    ],
)
def test_wrong_use_is_one_clear_error(
    words: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if "--png" in words:
        pytest.importorskip("matplotlib")
    assert cli.main(["bench", *words]) == code
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err
