"""ONNX models in 8 bits: those of ONNX Runtime's quantiser, to the bit, and operations between neighbours."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from deploy_tools import TREE, Gate, give_statistics
from torch import Tensor, nn

from proxylessnas import create_model
from proxylessnas.arch.arch import Arch
from proxylessnas.arch.blocks import Stage
from proxylessnas.arch.op_key import space_keys
from proxylessnas.arch.ops import register_op
from proxylessnas.arch.spaces import read_space
from proxylessnas.errors import LatencyError, MissingExtraError
from proxylessnas.runtimes.base import ModelSpec
from proxylessnas.runtimes.modules import build_model
from proxylessnas.runtimes.registry import get_runtime
from proxylessnas.runtimes.settings import Settings

onnx = pytest.importorskip("onnx")
np = pytest.importorskip("numpy")
ort = pytest.importorskip("onnxruntime")

from proxylessnas.runtimes import onnx_graph, onnx_int8  # noqa: E402

register_op("int8_gate", Gate)
STAGES = (Stage(16, 2, "k3e3 - k5e2s f3e2 k3e1.5!"), Stage(24, 2, "k7e2 k3e2"))
SMALL = Arch("small", stem=8, first=8, last=32, resolution=32, num_classes=10, stages=STAGES)
CUSTOM = Arch("custom", 8, 0, 32, (Stage(16, 2, "k3e2 int8_gate k3e2 int8_gate!"),), num_classes=10)


class Odd(nn.Module):
    """Layers that no model of ours has: one scale for input and output, constants, a shared weight."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool = nn.Conv2d(3, 4, 3), nn.MaxPool2d(2)
        self.again, self.linear = nn.Conv2d(4, 4, 1), nn.Linear(2, 3)
        self.register_buffer("shift", torch.tensor([0.5, -1.0, 2.0, 0.0])[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.conv(x).relu())
        x = self.again(self.again(x + self.shift))
        a, b = torch.cat([x, x.relu()], 1).transpose(2, 3).split(4, 1)
        return self.linear((a + b).flatten(2).transpose(1, 2)[:, :2, :2])


def theirs(proto: Any, ranges: onnx_int8.Ranges, bits: int, floats: list[str]) -> Any:
    """Return what ONNX Runtime's quantiser makes of a model, called as an export needs it."""
    from onnxruntime import quantization
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    data = quantization.calibrate.TensorsData(
        quantization.CalibrationMethod.MinMax,
        {name: (np.float32(low), np.float32(high)) for name, (low, high) in ranges.items()},
    )
    constants = {value.name: value for value in proto.graph.initializer}
    whole = {"axis": 0, "quant_type": quantization.QuantType.QInt8, "symmetric": True, "reduce_range": False}
    depthwise = [
        node.input[1]
        for node in proto.graph.node
        if node.op_type == "Conv" and onnx_int8.is_depthwise(node, constants[node.input[1]])
    ]
    made = QDQQuantizer(
        proto,
        per_channel=True,
        reduce_range=bits == 7,
        weight_qType=onnx.TensorProto.INT8,
        activation_qType=onnx.TensorProto.UINT8,
        tensors_range=data,
        nodes_to_quantize=[],
        nodes_to_exclude=floats,
        op_types_to_quantize=list(onnx_int8.KINDS),
        extra_options={
            "OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"],
            "TensorQuantOverrides": {name: [whole] for name in depthwise},
        },
    )
    made.quantize_model()
    return made.model.model


def parts(proto: Any) -> tuple[list[Any], dict[str, Any]]:
    """Return the nodes of a model by what they read and make, in no order, and its constants."""
    nodes = [
        (node.op_type, [*node.input], [*node.output], sorted(str(entry) for entry in node.attribute))
        for node in proto.graph.node
    ]
    constants = {value.name: onnx.numpy_helper.to_array(value) for value in proto.graph.initializer}
    return sorted(nodes, key=str), {name: (value.dtype, value.tolist()) for name, value in constants.items()}


def run(proto: Any, x: Tensor) -> Any:
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]


def observed(model: nn.Module, x: Tensor, rule: str) -> tuple[Any, onnx_int8.Ranges]:
    proto = onnx.shape_inference.infer_shapes(onnx_graph.model_onnx(model, x))
    return proto, onnx_int8.observed(proto, [x], rule)


@pytest.mark.parametrize(
    ("rule", "bits", "floats"),
    [("minmax", 7, ()), ("mse", 8, ()), ("minmax", 8, ("stem.conv", "stem.relu6", "block0.depth_conv.conv"))],
)
def test_the_model_is_the_one_onnxruntimes_quantiser_writes(
    rule: str, bits: int, floats: tuple[str, ...]
) -> None:
    model = create_model(SMALL)
    give_statistics(model)
    with torch.no_grad():  # a channel whose weights are tiny beside its bias, and one without any
        model.blocks[1].mobile_inverted_conv.point_linear.conv.weight[:2] *= torch.tensor([1e-9, 0])[
            :, None, None, None
        ]
    x = torch.randn(2, 3, 32, 32)
    proto, ranges = observed(model.eval(), x, rule)
    before = proto.SerializeToString()
    ours = onnx_int8.quantised(proto, ranges, weight_bits=bits, floats=floats)
    assert proto.SerializeToString() == before
    nodes, constants = parts(ours)
    other_nodes, other_constants = parts(theirs(proto, ranges, bits, list(floats)))
    assert nodes == other_nodes
    assert {n for n in constants | other_constants if constants.get(n) != other_constants.get(n)} == set()


@pytest.mark.parametrize("kind", ["odd", "tree", "custom"])
def test_models_of_the_exporter(kind: str) -> None:
    """What no block of ours has may have other names, and constants; the outputs are the same."""
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    model = {"odd": Odd, "tree": lambda: create_model(TREE), "custom": lambda: create_model(CUSTOM)}[kind]()
    x = torch.randn(1, 3, 16, 16)
    proto = onnx.shape_inference.infer_shapes(onnx_graph.module_onnx(model.eval(), x))
    ranges = onnx_int8.observed(proto, [x], "minmax")
    ours, other = onnx_int8.quantised(proto, ranges), theirs(proto, ranges, 7, [])
    whole = [
        sorted(node.op_type for node in made.graph.node if node.op_type != "QuantizeLinear")
        for made in (ours, other)
    ]
    assert whole[0] == whole[1]
    assert np.array_equal(run(ours, x), run(other, x))


def test_every_operation_between_its_neighbours() -> None:
    """Nothing rounds the input or makes floats of the output, but where the model itself does."""
    space = read_space("tiny")
    for key in space_keys(space):
        spec = ModelSpec("op", str(key), (key.in_channels, key.size, key.size))
        made = onnx.load_model_from_string(onnx_graph.whole_model_onnx(spec, 2, "int8"))
        ends = [value.type.tensor_type.elem_type for value in (*made.graph.input, *made.graph.output)]
        byte, real = onnx.TensorProto.UINT8, onnx.TensorProto.FLOAT
        assert ends == {"stem": [real, byte], "classifier": [byte, real]}.get(key.op, [byte, byte])
        constants = {value.name: onnx.numpy_helper.to_array(value) for value in made.graph.initializer}
        model, x = build_model(spec, Settings(batch_size=2, memory_format="contiguous"))
        expected, given = model(x).numpy(), x
        if key.op != "stem":
            given = x / float(constants["x_scale"]) + int(constants["x_zero_point"])
            given = given.round().clamp(0, 255).to(torch.uint8)
        found = run(made, given)
        if key.op != "classifier":
            found = (found.astype(np.float32) - constants["y_zero_point"]) * constants["y_scale"]
        assert np.linalg.norm(found - expected) < 0.06 * np.linalg.norm(expected)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("kind", ["arch", "module"])
def test_a_whole_model_in_a_runtime(name: str, kind: str, tmp_path: Path) -> None:
    pytest.importorskip(name)
    text = str(SMALL)
    if kind == "module":
        pytest.importorskip("onnxscript")
        text = str(tmp_path / "model.pkl")
        (tmp_path / "model.pkl").write_bytes(pickle.dumps(create_model(SMALL)))
    spec = ModelSpec(kind, text, (3, 32, 32))
    session: Any = get_runtime(name).load(spec, Settings(name, batch_size=2, dtype="int8"))
    session.run()
    x = torch.from_numpy(session.input().copy())
    assert x.dtype == torch.float32
    found = torch.from_numpy(session.output().copy())
    expected = build_model(spec, Settings(batch_size=2))[0](x)
    assert 1e-4 < (found - expected).norm() / expected.norm() < 0.2


def test_other_runtimes_and_devices_name_those_that_have_it() -> None:
    spec = ModelSpec("arch", str(SMALL), (3, 32, 32))
    for settings in (Settings(dtype="int8"), Settings("onnxruntime", "cuda", dtype="int8")):
        with pytest.raises(LatencyError, match=r"not int8 on (cpu: use runtime 'onnxruntime' or|cuda: )"):
            get_runtime(settings.runtime).load(spec, settings)


def test_a_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"proxylessnas\[onnx\]"):
        onnx_graph.whole_model_onnx(ModelSpec("arch", str(SMALL), (3, 32, 32)), 1, "int8")


_SHARED = """
from proxylessnas.runtimes.base import ModelSpec
from proxylessnas.runtimes.registry import get_runtime
from proxylessnas.runtimes.settings import Settings
from pathlib import Path
import torch

torch.set_num_threads(1)
spec = ModelSpec("op", "k3e6 in=8x16x16 out=8 stride=1 shortcut", (8, 16, 16))
settings = Settings("onnxruntime", threads=3, dtype="int8")
def count():
    return len([*Path("/proc/self/task").iterdir()])
kept = [get_runtime("onnxruntime").load(spec, settings)]
before = count()
kept += [get_runtime("onnxruntime").load(spec, settings) for _ in range(3)]
print(count() - before)
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts threads in /proc")
def test_models_that_are_calibrated_in_a_process_share_one_pool() -> None:
    done = subprocess.run([sys.executable, "-c", _SHARED], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0"]
