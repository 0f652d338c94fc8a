"""Every format: the same outputs at any batch, metadata inside, options it lacks refused."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from deploy_tools import COUNTS, DECIDES, OWN_OP, PLAIN, TREE, UIB, small

from proxylessnas import ExportError, create_model, deploy
from proxylessnas.data.transforms import Preprocessing
from proxylessnas.deploy.bundle import open_bundle
from proxylessnas.deploy.formats.base import format_of, formats
from proxylessnas.deploy.settings import ExportOptions


def export(model: Any, path: Path, progress: Any = None, **options: Any) -> Any:
    settings = deploy.ExportSettings(threads=1, measure=False, **options)
    return deploy.export(model, path, settings, progress=progress)


def needs(suffix: str) -> None:
    for library in {".onnx": ("onnx", "onnxruntime"), ".xml": ("onnx", "openvino")}.get(suffix, ()):
        pytest.importorskip(library)


@pytest.mark.parametrize("suffix", [".onnx", ".pt2", ".pt", ".xml", ".safetensors"])
def test_the_file_gives_the_models_outputs_and_knows_what_it_is(suffix: str, tmp_path: Path) -> None:
    needs(suffix)
    model = small()
    report = export(model, tmp_path / f"net{suffix}")
    assert {(row.inputs, row.batch) for row in report.parity} == {
        (inputs, batch) for inputs in ("images", "random numbers") for batch in (1, 2, 7)
    }
    assert report.agreement == 1.0
    assert report.largest_difference < 1e-4
    program = format_of(report.path).open(report.path, threads=1)
    x = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(program(x), model.eval()(x).detach(), rtol=1e-4, atol=1e-4)
    known = metadata(report.path)
    assert known["arch"].startswith("Arch('plain'")
    assert json.loads(known["categories"]) == [f"kind {i}" for i in range(5)]
    assert Preprocessing.from_json(known["preprocessing"]) == model.preprocessing
    assert json.loads((tmp_path / f"net{suffix}.json").read_text(encoding="utf-8")) == report.to_dict()
    assert {p.name for p in tmp_path.iterdir()} == {f.name for f in report.files} | {f"net{suffix}.json"}


def metadata(path: Path) -> dict[str, str]:
    """Read it back with the library of the format."""
    if path.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return dict(session.get_modelmeta().custom_metadata_map)
    if path.suffix == ".xml":
        import openvino

        info = openvino.Core().read_model(path).get_rt_info(["proxylessnas"]).value
        return {key: value if isinstance(value, str) else value.value for key, value in info.items()}
    if path.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            return dict(file.metadata())
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if name.endswith("metadata.json"))
        return dict(json.loads(archive.read(name)))


def test_onnx_is_one_checked_file_with_an_open_batch(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    report = export(small(), tmp_path / "net.onnx")
    model = onnx.load(report.path, load_external_data=False)
    onnx.checker.check_model(model, full_check=True)
    assert [v.name for v in (*model.graph.input, *model.graph.output)] == ["images", "logits"]
    assert [d.dim_param or d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim] == [
        "batch", 3, 32, 32,
    ]  # fmt: skip
    assert model.graph.output[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert model.opset_import[0].version == 18
    assert not any(t.HasField("data_location") and t.data_location for t in model.graph.initializer)
    assert {"Conv", "Clip"} <= {node.op_type for node in model.graph.node}
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}


@pytest.mark.parametrize("opset", [18, 20, 22])
def test_onnx_of_another_opset(opset: int, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    report = export(small(), tmp_path / "net.onnx", opset=opset)
    assert onnx.load(report.path).opset_import[0].version == opset


@pytest.mark.parametrize("opset", [1, 17, 999])
def test_a_wrong_opset_is_one_line(opset: int, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    with pytest.raises(ExportError, match=rf"opset {opset} cannot be written: 18 to \d+ can"):
        export(small(), tmp_path / "net.onnx", opset=opset)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("suffix", [".onnx", ".pt2", ".pt", ".xml"])
def test_operations_of_mobilenetv4(suffix: str, tmp_path: Path) -> None:
    needs(suffix)
    assert export(small(UIB), tmp_path / f"net{suffix}").largest_difference < 1e-4


@pytest.mark.parametrize("arch", [TREE, OWN_OP], ids=["tree", "own operation"])
@pytest.mark.parametrize("suffix", [".onnx", ".pt", ".safetensors"])
def test_models_that_are_not_plain(arch: Any, suffix: str, tmp_path: Path) -> None:
    needs(suffix)
    if suffix == ".onnx":
        pytest.importorskip("onnxscript")
    report = export(small(arch), tmp_path / f"net{suffix}")
    assert report.largest_difference < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("arch", [TREE, OWN_OP], ids=["tree", "own operation"])
@pytest.mark.parametrize("suffix", [".pt2", ".xml"])
def test_models_that_are_not_plain_in_slower_formats(arch: Any, suffix: str, tmp_path: Path) -> None:
    needs(suffix)
    assert export(small(arch), tmp_path / f"net{suffix}").largest_difference < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{"num_classes": 0}, {"in_chans": 1}, {"global_pool": "max"}],
    ids=["embeddings", "grey", "max"],
)
def test_other_heads_and_inputs(options: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    report = export(small(**options), tmp_path / "net.onnx")
    assert report.largest_difference < 1e-4
    assert report.agreement == (None if options.get("num_classes") == 0 else 1.0)


def test_a_fixed_batch(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    report = export(small(), tmp_path / "net.onnx", batch_size=3)
    assert {row.batch for row in report.parity} == {3}
    program = format_of(report.path).open(report.path, threads=1)
    assert program(torch.randn(3, 3, 32, 32)).shape == (3, 5)
    with pytest.raises(ExportError, match=r"ONNX Runtime cannot run \[2, 3, 32, 32\]"):
        program(torch.randn(2, 3, 32, 32))


def test_a_model_with_an_operation_that_the_format_lacks(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    with pytest.raises(ExportError, match=r"^torch\.onnx cannot export ProxylessNAS") as caught:
        export(small(DECIDES), tmp_path / "net.onnx")
    assert "\n" not in str(caught.value)
    assert not [*tmp_path.iterdir()]


def test_tracing_only_half_is_found_by_the_proof(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"net\.pt does not compute .* at batch 2 .*nothing was kept"):
        export(small(COUNTS), tmp_path / "net.pt")
    assert not [*tmp_path.iterdir()]


def test_safetensors_opens_like_any_model(tmp_path: Path) -> None:
    model = small()
    report = export(model, tmp_path / "net.safetensors")
    again = create_model(report.path).eval()
    assert again.categories == model.categories
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(again(x), model.eval()(x))


def test_openvino_keeps_float32_and_leaves_the_batch_open(tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    pytest.importorskip("onnx")
    report = export(small(), tmp_path / "net.xml")
    assert [file.name for file in report.files] == ["net.xml", "net.bin"]
    model = openvino.Core().read_model(report.path)
    assert model.input(0).get_partial_shape().to_string() == "[?,3,32,32]"
    kinds = {op.get_element_type() for op in model.get_ops() if op.get_type_name() == "Constant"}
    assert openvino.Type.f16 not in kinds


@pytest.mark.slow
def test_machine_code(tmp_path: Path) -> None:
    from proxylessnas.runtimes.files import is_machine_code
    from proxylessnas.runtimes.torch_compile import missing_compiler

    if missing_compiler():
        pytest.skip("no C++ compiler")
    report = export(small(), tmp_path / "net.pt2", aot=True)
    assert is_machine_code(report.path)
    assert report.options.threads == 1
    assert report.largest_difference < 1e-4
    known = torch._inductor.aoti_load_package(str(report.path)).get_metadata()
    assert json.loads(known["categories"]) == [f"kind {i}" for i in range(5)]


def test_machine_code_without_a_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", "/no/such/compiler")
    with pytest.raises(ExportError, match=r"needs a C\+\+ compiler: .*without --aot none is needed"):
        export(small(), tmp_path / "net.pt2", aot=True)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pt2"])
@pytest.mark.parametrize("option", ["uint8_input", "opset"])
def test_options_that_a_format_lacks(suffix: str, option: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=rf"{suffix} files have no option --{option.replace('_', '-')} "):
        export(small(), tmp_path / f"net{suffix}", **{option: 20 if option == "opset" else True})


def test_all_odd_options_are_named_at_once() -> None:
    options = ExportOptions(uint8_input=True, opset=20, batch_size=2)
    with pytest.raises(ExportError, match=r"no option --uint8-input \(.*\) and no option --opset \(.*\)$"):
        format_of(Path("x.pt2")).check(open_bundle(small()), options)


@pytest.mark.parametrize("name", ["batch_size", "opset", "threads"])
@pytest.mark.parametrize("value", [0, -1, True, 2.0, "4", 10**9])
def test_numbers_out_of_range(name: str, value: Any) -> None:
    with pytest.raises(ExportError, match=rf"{name} must be a whole number from 1 to"):
        ExportOptions(**{name: value})


def test_the_suffix_is_no_format() -> None:
    with pytest.raises(ExportError, match=r"'\.h5' is no known format; known are \.onnx, \.pt, \.pt2"):
        format_of(Path("net.h5"))
    assert set(formats()) >= {".onnx", ".pt2", ".pt", ".pte", ".tflite", ".xml", ".safetensors"}
    assert format_of(Path("NET.ONNX")).suffix == ".onnx"


def test_another_input_size_changes_the_preprocessing_in_proportion() -> None:
    bundle = open_bundle(small(PLAIN), input_size=64)
    assert bundle.input_size == (3, 64, 64)
    assert (bundle.preprocessing.input_size, bundle.preprocessing.resize) == (64, 72)
    assert bundle.model.preprocessing == bundle.preprocessing


@pytest.mark.parametrize("model", [torch.nn.ReLU(), 3, None])
def test_what_is_no_model(model: Any, tmp_path: Path) -> None:
    with pytest.raises(
        ExportError, match="must be a model of this package, a name, a file or an architecture"
    ):
        export(model, tmp_path / "net.safetensors")
