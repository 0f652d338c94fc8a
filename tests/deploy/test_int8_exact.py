"""INT8 files on processors without VNNI: what a file says of them, and that it is true; what is faster."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import pytest
import torch
from deploy_tools import exact_run
from deploy_tools import small as training_model

from proxylessnas.deploy import export
from proxylessnas.deploy.bundle import open_bundle
from proxylessnas.deploy.formats.base import ExportOptions, format_of
from proxylessnas.deploy.quantization import Int8Report
from proxylessnas.deploy.quantization.backends import backend_of
from proxylessnas.deploy.quantization.quantize import Prepared
from proxylessnas.deploy.quantization.report import is_faster
from proxylessnas.deploy.quantization.schemes import TARGETS, can_saturate, exact_on, scheme_of
from proxylessnas.errors import ExportError
from proxylessnas.models.base import ImageClassifier

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")


def small() -> ImageClassifier:
    """Return a model in evaluation mode."""
    return training_model().eval()


def _pair_sums(path: Path, x: torch.Tensor) -> tuple[int, int]:
    """Return how many 8-bit layers a file has that add pairs, and in how many a pair leaves 16 bits.

    Every layer gets what enters it when nothing is cut off; pairs are formed as the kernels form them, of
    channels next to each other. If no pair leaves 16 bits, cutting off changes nothing, layer by layer.
    """
    import numpy as np
    import onnx
    import onnxruntime as ort

    proto = onnx.load(str(path))
    constants = {v.name: onnx.numpy_helper.to_array(v) for v in proto.graph.initializer}
    made_by = {output: node for node in proto.graph.node for output in node.output}
    layers = []
    for node in proto.graph.node:
        if node.op_type not in ("Conv", "Gemm"):
            continue
        entering, weight = (made_by[name].input[0] for name in node.input[:2])
        known = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if known.get("group", 1) == 1:
            layers.append((entering, constants[weight].astype(np.int32), known))
    proto.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name, _, _ in layers)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    values = session.run([name for name, _, _ in layers], {"images": x.numpy()})
    cut = 0
    for entered, (_, weight, known) in zip(values, layers, strict=True):
        assert entered.dtype == np.uint8
        columns = torch.from_numpy(entered).float()
        if weight.ndim == 4:
            pads, strides = known.get("pads", [0] * 4)[:2], known.get("strides", [1, 1])
            columns = torch.nn.functional.unfold(columns, weight.shape[2:], 1, pads, strides)
            columns = columns.unflatten(1, (weight.shape[1], -1)).transpose(1, 2).flatten(1, 2)
            weight = weight.transpose(0, 2, 3, 1).reshape(len(weight), -1)
        else:
            columns, weight = columns.unsqueeze(2), weight if known.get("transB") else weight.T
        even = columns.shape[1] // 2 * 2
        a = columns[:, :even].unflatten(1, (-1, 2))  # [N, pairs, 2, places]
        w = torch.from_numpy(weight[:, :even].copy()).float().unflatten(1, (-1, 2))
        sums = torch.einsum("nptl,opt->nopl", a, w)
        cut += bool(((sums > 32767) | (sums < -32768)).any())
    return len(layers), cut


@pytest.mark.parametrize("scheme", ["mse+correct", "minmax+compensate+correct"])
def test_no_sum_of_7_bits_is_cut_off(scheme: str, tmp_path: Path) -> None:
    """A simulated processor without VNNI; where the tests run on a real one, it is asked as well."""
    model, x = small(), torch.randn(8, 3, 32, 32)
    layers = []
    for name in (scheme, f"{scheme}+7bit"):
        path, way = tmp_path / f"{name}.onnx", scheme_of(name)
        backend = backend_of(format_of(path))
        prepared = dataclasses.replace(open_bundle(model), model=Prepared(model, [x]).for_scheme(way))
        backend.write(prepared, path, [x], way, ExportOptions())
        isas, saturating = exact_on(backend.paired_weights(path))
        layers.append((_pair_sums(path, x), isas, len(saturating)))
    (count, cut), isas, named = layers[0]
    assert isas == ("vnni",)
    assert 0 < cut <= named <= count
    assert layers[1] == ((count, 0), ("avx2", "vnni"), 0)
    assert torch.equal(format_of(path).open(path, threads=1)(x), exact_run(path, x))


def test_depthwise_convolutions_keep_8_bits(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    path = tmp_path / "net.onnx"
    backend_of(format_of(path)).write(
        open_bundle(small()), path, [torch.randn(2, 3, 32, 32)], scheme_of("minmax+7bit"), ExportOptions()
    )
    weights = [v for v in onnx.load(str(path)).graph.initializer if v.data_type == onnx.TensorProto.INT8]
    largest = {v.name: int(abs(onnx.numpy_helper.to_array(v).astype(int)).max()) for v in weights}
    assert {n for name, n in largest.items() if "depth.weight_quantized" in name} == {127}
    assert {n for name, n in largest.items() if "depth" not in name and "weight_quantized" in name} == {64}


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
@pytest.mark.parametrize("target", TARGETS)
def test_schemes_are_chosen_for_a_target(target: str, suffix: str) -> None:
    names = backend_of(format_of(Path(f"net{suffix}"))).schemes(target)
    assert {scheme_of(name).weight_bits for name in names} == {8 if target == "vnni" else 7}


def test_a_file_says_where_it_is_exact() -> None:
    empty = Int8Report("minmax", (), "", 1, "", 1, 1.0, None, None, 0.0, 0.0, 1, 1, 1.0, 1.0, 1)

    def said(isas: tuple[str, ...] | None, *layers: str) -> str:
        return dataclasses.replace(empty, exact_on=isas, saturating=layers).lines()[-1]

    assert said(("avx2", "vnni")).startswith("exact on avx2 and vnni: ")
    assert "exact on vnni only: x86 processors without it cut off sums of 4 layers (a, b, c, ...)" in said(
        ("vnni",), *"abcd"
    )
    assert said(None) == "exact on: not known for this runtime (made for any)"


def test_a_target_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="target_isa is 'sse2'; known are avx2, vnni, any"):
        export(small(), tmp_path / "net.onnx", precision="int8", calibration=tmp_path, target_isa="sse2")
    with pytest.raises(ExportError, match="target_isa is for --int8"):
        export(small(), tmp_path / "net.onnx", target_isa="avx2")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("weights", "can"),
    [
        ([64, 64], False),
        ([65, 64], True),
        ([-64, 3, -64], False),
        ([-65, 3, -64], True),
        ([127, -127, 1], False),
        ([127, 2, -127], True),
        ([127], False),
    ],
)
def test_two_products_leave_16_bits_or_do_not(weights: list[int], can: bool) -> None:
    """As all pairs of extreme inputs do, whichever stand next to each other."""
    products = [255 * w for w in weights]
    sums = [p + q for p, q in itertools.combinations([*products, 0, 0], 2)]
    assert can == (max(sums) > 32767 or min(sums) < -32768)
    rows = torch.tensor([[0] * len(weights), weights], dtype=torch.int8)
    assert can_saturate(rows[:, :, None, None]) == can


@pytest.mark.parametrize(
    ("int8_ms", "float_ms", "faster"),
    [(1.0, 2.0, True), (1.0, 1.0, False), (0.98, 1.0, False), (3.0, 2.0, False)],
)
def test_faster_is_more_than_noise(int8_ms: float, float_ms: float, faster: bool) -> None:
    assert is_faster(int8_ms, float_ms) == faster
