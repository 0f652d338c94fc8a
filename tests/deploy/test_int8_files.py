"""INT8 files: written by the formats' own libraries, chosen on images, evaluated, and refused in one line."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from deploy_tools import OWN_OP, PLAIN, TREE, UIB, exact_run
from deploy_tools import small as training_model

from proxylessnas.data.folders import LabelledImages, labelled_images
from proxylessnas.data.named import load_digits
from proxylessnas.deploy import ExportSettings, export
from proxylessnas.deploy.bundle import open_bundle
from proxylessnas.deploy.formats.base import format_of
from proxylessnas.deploy.formats.litert import VARIABLE
from proxylessnas.deploy.quantization import Int8Report, doubts, quantise
from proxylessnas.deploy.quantization import onnx as onnx_int8
from proxylessnas.deploy.quantization import report as report_module
from proxylessnas.deploy.quantization.backends import backend_of
from proxylessnas.deploy.quantization.calibration import LEAST, read_calibration
from proxylessnas.deploy.quantization.fake_quant import observe, simulated
from proxylessnas.deploy.quantization.schemes import scheme_of
from proxylessnas.deploy.settings import ExportOptions
from proxylessnas.errors import DataError, ExportError
from proxylessnas.models.base import ImageClassifier

pytest.importorskip("onnxruntime")


def small(*args: Any, **options: Any) -> ImageClassifier:
    """Return a model in evaluation mode."""
    return training_model(*args, **options).eval()


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of 24 images."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("digits")
    for i, pixels in enumerate(load_digits()[0][:24]):
        Image.fromarray(pixels.numpy()).resize((40, 36)).save(folder / f"{i:02}.png")
    return folder


def _quantise(model: ImageClassifier, path: Path, calibration: Any, **options: Any) -> Int8Report:
    how = {name: options.pop(name) for name in ("judge", "schemes", "progress") if name in options}
    settings = ExportSettings(int8=True, calibrate=calibration, threads=1, **options)
    return quantise(open_bundle(model), path, format_of(path), settings, **how)


def test_the_best_scheme_is_kept_with_its_report(digits: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    model, path = small(), tmp_path / "net.onnx"
    told: list[str] = []
    schemes = ["minmax+7bit", "mse+compensate+correct+7bit"]
    report = _quantise(model, path, digits, schemes=schemes, min_agreement=0.5, progress=told.append)
    assert [file.name for file in tmp_path.iterdir()] == ["net.onnx"]
    assert report.scheme == schemes[1]
    assert [tried.scheme for tried in report.tried] == schemes[::-1]
    assert report.tried[0].divergence < report.tried[1].divergence  # type: ignore[operator]
    assert (report.calibration_images, report.n) == (16, 8)
    assert report.top1_float is report.drop is None
    assert report.bytes_int8 == path.stat().st_size
    assert report.ms_float > 0 < report.ms_int8
    assert told[0] == "int8 scheme 1 of 2: minmax+7bit"
    assert "same class for" in " ".join(report.lines())
    proto = onnx.load(str(path))
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    assert metadata["int8"] == schemes[1]
    assert metadata["arch"] == open_bundle(model).metadata()["arch"]
    kinds = [node.op_type for node in proto.graph.node]
    assert "QuantizeLinear" in kinds
    assert "Clip" not in kinds
    program = format_of(path).open(path, threads=1)
    for batch in (1, 3):  # open batch; not all logits on a grid of 255 steps
        assert program(torch.randn(batch, 3, 32, 32)).shape == (batch, 5)


_SIMULATED = [(PLAIN, s) for s in ("minmax", "mse", "minmax+floatfirst", "mse+floatwide", "minmax+7bit")]
_SIMULATED += [(UIB, s) for s in ("minmax", "mse+floatfirst")]


@pytest.mark.parametrize(("arch", "scheme"), _SIMULATED)
def test_the_file_computes_what_was_simulated(arch: Any, scheme: str, tmp_path: Path) -> None:
    model, path, way = small(arch), tmp_path / "net.onnx", scheme_of(scheme)
    batches = [torch.randn(8, 3, 32, 32)]
    options = ExportOptions()
    backend_of(format_of(path)).write(open_bundle(model), path, batches, way, options)
    found = exact_run(path, batches[0])
    with torch.inference_mode():
        exact = model(batches[0])
        with simulated(model, observe(model, batches, way), way):
            expected = model(batches[0])
    # A value between two steps may fall either way, and what follows differs; other scales would show.
    mine, its = float((expected - exact).norm()), float((found - exact).norm())
    assert 0.75 < its / mine < 1.33
    assert float((found - expected).norm()) < 0.85 * mine


def test_the_quantiser_is_silent(digits: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    _quantise(small(), tmp_path / "net.onnx", digits, schemes=["minmax"], min_agreement=0.0)
    assert capfd.readouterr().out == ""


@pytest.mark.slow
@pytest.mark.parametrize("arch", [OWN_OP, TREE])
def test_other_models_go_through_the_exporter(arch: Any, digits: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    report = _quantise(
        small(arch), tmp_path / "net.onnx", digits, schemes=["mse+correct+7bit"], min_agreement=0.0
    )
    assert report.divergence < 0.1


def test_a_fixed_batch_is_filled_up(digits: Path, tmp_path: Path) -> None:
    report = _quantise(
        small(),
        tmp_path / "net.onnx",
        digits,
        schemes=["minmax+7bit"],
        min_agreement=0.5,
        batch_size=3,
    )
    assert report.n == 8


def _labelled(model: ImageClassifier, digits: Path, wrong: bool = False) -> LabelledImages:
    """Return the images with the labels that the float32 model gives them, or with others."""
    bundle = open_bundle(model)
    inputs = torch.cat(read_calibration(bundle, digits).everything)
    files = sorted(digits.iterdir())
    third = torch.arange(len(files)) % 3 == 2
    order = [i for held in (False, True) for i in range(len(files)) if bool(third[i]) is held]
    with torch.inference_mode():
        classes = (model(inputs).argmax(1) + wrong) % 5
    samples = tuple((str(files[i]), int(c)) for i, c in zip(order, classes, strict=True))
    return LabelledImages(samples, "name", 5)


def test_a_judge_with_labels(digits: Path, tmp_path: Path) -> None:
    model = small()
    judge = _labelled(model, digits)
    report = _quantise(
        model,
        tmp_path / "net.onnx",
        digits,
        judge=judge,
        schemes=["minmax+7bit"],
        min_agreement=0.5,
        max_drop=1,
    )
    assert report.top1_float == 100
    assert report.top1_int8 == pytest.approx(100 * report.agreement)
    assert report.drop == pytest.approx(100 - 100 * report.agreement)
    assert (report.n, report.calibration_images) == (24, 24)
    assert report.to_dict()["top1_float"] == 100
    assert report.to_dict()["calibration_pictures"] == 24


def _undecided() -> ImageClassifier:
    """Return a model whose classes hardly differ."""
    model = small()
    weight = model.get_parameter("classifier.linear.weight")
    with torch.no_grad():
        weight.copy_(weight[:1] + 1e-5 * torch.randn_like(weight))
        model.get_parameter("classifier.linear.bias").zero_()
    return model


def test_below_the_limit_nothing_is_kept(digits: Path, tmp_path: Path) -> None:
    model, path = _undecided(), tmp_path / "net.onnx"
    with pytest.raises(
        ExportError, match=r"class to only [\d.]+ % of the 8 images \(held out of.*100 % are asked"
    ):
        _quantise(model, path, digits, schemes=["minmax"], min_agreement=1.0)
    assert list(tmp_path.iterdir()) == []


def test_too_many_answers_lost(digits: Path, tmp_path: Path) -> None:
    model = _undecided()
    judge = _labelled(model, digits)
    with pytest.raises(
        ExportError, match=r"is right on [\d.]+ % of the 24 images .* float32 on 100.0 %: more than 0"
    ):
        _quantise(
            model,
            tmp_path / "net.onnx",
            digits,
            judge=judge,
            schemes=["minmax+7bit"],
            min_agreement=0.0,
            max_drop=0,
        )
    assert list(tmp_path.iterdir()) == []


def test_images_that_cannot_be_used(digits: Path, tmp_path: Path) -> None:
    model, path = small(), tmp_path / "net.onnx"
    files = sorted(map(str, digits.iterdir()))
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"\xff\xd8\xff\xe0 not really")
    with pytest.raises(ExportError, match=r"bad\.jpg: .*; take it out, or replace it"):
        _quantise(model, path, [*files, bad])
    with pytest.raises(ExportError, match="3 images to calibrate int8 with; it takes 8, better 50"):
        _quantise(model, path, files[:3])
    with pytest.raises(ExportError, match="`int8` needs `calibrate=DIR`"):
        _quantise(model, path, None)
    with pytest.raises(DataError, match="no such folder"):
        _quantise(model, path, tmp_path / "nowhere")
    judge = LabelledImages(((str(bad), 0),), "name", 1)
    with pytest.raises(ExportError, match=r"bad\.jpg"):
        _quantise(model, path, digits, judge=judge, schemes=["minmax"])
    model.preprocessing = None
    with pytest.raises(
        ExportError, match=r"the model's preprocessing is not known: in Python set model\.preprocessing"
    ):
        _quantise(model, path, digits)
    assert [file.name for file in tmp_path.iterdir()] == ["bad.jpg"]


def test_formats_and_options_that_are_not_there(digits: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"\.pt files are not written in int8; \.onnx, .*, \.xml are"):
        _quantise(small(), tmp_path / "net.pt", digits)
    for words in ({"qat_epochs": 1}, {"qat_data": digits}):
        with pytest.raises(ExportError, match="`qat_epochs` and `qat_data` go together"):
            _quantise(small(), tmp_path / "net.onnx", digits, **words)
    with pytest.raises(ExportError, match="qat_epochs must be a whole number from 0 to 10000, not True"):
        _quantise(small(), tmp_path / "net.onnx", digits, qat_epochs=True, qat_data=digits)
    with pytest.raises(ExportError, match="are for `int8`"):
        export(small(), tmp_path / "net.onnx", ExportSettings(qat_epochs=1, qat_data=digits))
    assert not list(tmp_path.iterdir())


def test_nothing_stays_in_float32_where_that_is_asked_for(digits: Path, tmp_path: Path) -> None:
    report = _quantise(small(), tmp_path / "net.onnx", digits, all_int8=True, min_agreement=0.0)
    assert [tried.scheme.split("+")[-1] for tried in report.tried] == ["7bit"] * len(report.tried)
    assert not any("float" in tried.scheme for tried in report.tried)
    with pytest.raises(ExportError, match=r"every int8 scheme of \.pte files leaves something in float32"):
        _quantise(small(), tmp_path / "net.pte", digits, all_int8=True)
    with pytest.raises(ExportError, match="`all_int8` is for `int8`"):
        ExportSettings(all_int8=True)


def test_a_runs_images_calibrate_and_judge(digits: Path, tmp_path: Path) -> None:
    """One that cannot be read is passed over: the run has told of it."""
    from proxylessnas.data.sources import FileImages

    names = sorted(file.name for file in digits.iterdir())
    (tmp_path / "broken.png").write_bytes(b"none")
    for name in names:
        shutil.copy(digits / name, tmp_path)
    sizes = torch.ones(len(names) + 1)
    images = FileImages(str(tmp_path), [*names, "broken.png"], [0] * (len(names) + 1), sizes)
    report = _quantise(
        small(),
        tmp_path / "net.onnx",
        images,
        judge=images,
        schemes=["minmax"],
        min_agreement=0.0,
        max_drop=1.0,
    )
    assert (report.n, report.calibration_images) == (len(names), len(names))
    assert report.top1_float is not None
    same = _quantise(small(), tmp_path / "same.onnx", digits, schemes=["minmax"], min_agreement=0.0)
    assert same.agreement > 0
    assert (tmp_path / "net.onnx").stat().st_size == (tmp_path / "same.onnx").stat().st_size


def test_schemes_that_litert_has_not(tmp_path: Path) -> None:
    path = tmp_path / "net.tflite"
    bundle, scheme = open_bundle(small()), scheme_of("mse+correct+7bit")
    with pytest.raises(ExportError, match="LiteRT's quantiser has no scheme"):
        backend_of(format_of(path)).write(bundle, path, [torch.zeros(1, 3, 32, 32)], scheme, ExportOptions())
    assert not list(tmp_path.iterdir())


def test_a_scheme_that_fails_is_named(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are tried all the same; what the library raised is in the report."""
    pytest.importorskip("onnx")
    observe_in_runtime = onnx_int8.observed

    def observed(proto: Any, inputs: Any, rule: str) -> Any:
        if rule == "mse":
            raise KeyError("no such node")
        return observe_in_runtime(proto, inputs, rule)

    monkeypatch.setattr(onnx_int8, "observed", observed)
    report = _quantise(small(), tmp_path / "net.onnx", digits, schemes=["mse", "minmax"], min_agreement=0.0)
    assert [tried.scheme for tried in report.tried] == ["minmax", "mse"]
    assert report.tried[1].problem == "plain: ONNX Runtime cannot quantise the model ('no such node')"
    with pytest.raises(ExportError, match="cannot quantise the model"):
        _quantise(small(), tmp_path / "other.onnx", digits, schemes=["mse"])


def test_bytes_go_into_an_int8_file(digits: Path, tmp_path: Path) -> None:
    """Calibrated and evaluated as without, then the preprocessing is put before it."""
    pytest.importorskip("onnx")
    import onnxruntime as ort

    options: dict[str, Any] = {"int8": True, "calibrate": digits, "min_agreement": 0.0}
    model = small()
    for name, takes_bytes in (("plain", False), ("bytes", True)):
        path = tmp_path / f"{name}.onnx"
        report = export(model, path, ExportSettings(uint8_input=takes_bytes, measure=False, **options))
        assert report.int8.exact_on == ("avx2", "vnni"), "by default"
    plain, inside = (
        ort.InferenceSession(tmp_path / f"{name}.onnx", providers=["CPUExecutionProvider"])
        for name in ("plain", "bytes")
    )
    assert inside.get_inputs()[0].type == "tensor(uint8)"
    assert inside.get_modelmeta().custom_metadata_map == plain.get_modelmeta().custom_metadata_map
    images = torch.randint(0, 256, (2, 3, 50, 40), dtype=torch.uint8)
    assert model.preprocessing is not None
    x = model.preprocessing.build()(images)
    (a,), (b,) = plain.run(None, {"images": x.numpy()}), inside.run(None, {"images": images.numpy()})
    assert abs(a - b).max() < 0.05 * abs(a).max()  # a grey value that is rounded the other way now and then


@pytest.mark.slow
def test_training_with_the_rounding_before_the_file(digits: Path, tmp_path: Path) -> None:
    model, folder = small(), tmp_path / "labelled"
    for i, file in enumerate(sorted(digits.iterdir())):
        place = folder / model.categories[i % 5] / file.name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, place)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = _quantise(
        model,
        tmp_path / "net.onnx",
        digits,
        qat_epochs=1,
        qat_data=folder,
        schemes=["mse"],
        min_agreement=0.0,
    )
    assert "scheme mse after 1 epoch of fine-tuning, the best of 1" in report.lines()[0]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_what_flatters_is_said(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnx")
    monkeypatch.setattr(report_module, "this_machine_saturates", lambda: True)
    report = _quantise(small(), tmp_path / "net.onnx", digits, schemes=["minmax+7bit"], min_agreement=0.0)
    few, chosen = doubts(report, reused=True)
    assert "evaluated on 8 images only: one image is 12 %" in few
    assert "chose its scheme as well" in chosen
    sound = dataclasses.replace(report, n=100, exact_on=("avx2", "vnni"))
    assert doubts(sound, reused=False) == []
    (here,) = doubts(dataclasses.replace(sound, exact_on=("vnni",)), reused=False)
    assert "evaluated on a processor without VNNI" in here


def test_a_third_is_held_out(digits: Path) -> None:
    bundle = open_bundle(small())
    images = read_calibration(bundle, digits)
    assert (images.n, sum(map(len, images.held_out)), sum(map(len, images.views))) == (24, 8, 32)
    assert LEAST <= 24


#: What a format needs, besides the converter's Python for the last.
LIBRARIES = {
    "onnx": ("onnxruntime", "onnx"),
    "xml": ("openvino", "nncf"),
    "pte": ("executorch", "torchao"),
    "tflite": ("ai_edge_litert",),
}


def _needs(suffix: str) -> None:
    for library in LIBRARIES[suffix]:
        pytest.importorskip(library)
    if suffix == "tflite" and not os.environ.get(VARIABLE):
        pytest.skip(f"no {VARIABLE}")


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["xml", "pte", "tflite"])
def test_other_runtimes(suffix: str, digits: Path, tmp_path: Path) -> None:
    _needs(suffix)
    schemes = ["minmax", "mse+correct+floatfirst", "mse"]
    if suffix == "xml":  # others have 8 bits only
        schemes = [f"{name}+7bit" for name in schemes]
    else:
        schemes.append("minmax+7bit")
    report = _quantise(small(), tmp_path / f"net.{suffix}", digits, schemes=schemes, min_agreement=0.5)
    assert report.divergence < 0.05
    assert report.exact_on == (("avx2", "vnni") if suffix == "xml" else None)
    assert {file.name for file in tmp_path.iterdir()} == {
        f"net.{suffix}",
        *(["net.bin"] if suffix == "xml" else []),
    }
    if suffix != "xml":
        assert report.tried[-1].scheme == "minmax+7bit"
        assert "has no scheme 'minmax+7bit'" in report.tried[-1].problem


@pytest.mark.slow
@pytest.mark.parametrize("suffix", list(LIBRARIES))
def test_a_real_model_keeps_its_accuracy(suffix: str, shared_data: Path, tmp_path: Path) -> None:
    """Calibrated on 50 photos, evaluated on 150 others: 90 % of the answers, and two points at most."""
    _needs(suffix)
    photos = labelled_images(shared_data / "imagenet_sample", 1000, "imagenet")
    judge = LabelledImages(
        tuple(s for i, s in enumerate(photos.samples) if i % 4), photos.labels_from, photos.classes
    )
    weights = shared_data / "weights" / "proxyless-w0.3-r176_imagenet.pth"
    path = tmp_path / f"net.{suffix}"
    bundle = open_bundle("proxyless_w03_r176", weights=weights)
    calibration = [file for file, _ in photos.samples[::4]]
    settings = ExportSettings(int8=True, calibrate=calibration, threads=1)
    report = quantise(bundle, path, format_of(path), settings, judge=judge)
    assert (report.n, report.calibration_images) == (150, 50)
    assert report.agreement >= 0.9
    assert report.drop is not None
    assert report.drop <= 2
