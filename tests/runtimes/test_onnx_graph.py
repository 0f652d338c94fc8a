"""Models as ONNX models: what the exporter would write, with the outputs of the eager model."""

from __future__ import annotations

import pickle
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from deploy_tools import Decides, Gate, give_statistics
from torch import Tensor, nn

from proxylessnas import create_model
from proxylessnas.arch.arch import Arch
from proxylessnas.arch.blocks import Stage
from proxylessnas.arch.op_key import space_keys
from proxylessnas.arch.ops import register_op
from proxylessnas.arch.spaces import read_space
from proxylessnas.arch.tree import TreeArch
from proxylessnas.errors import LatencyError, MissingExtraError
from proxylessnas.runtimes.base import ModelSpec
from proxylessnas.runtimes.modules import build_model
from proxylessnas.runtimes.settings import Settings

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

from proxylessnas.runtimes import onnx_graph as onnx_model  # noqa: E402

SMALL = Arch(
    "small", stem=8, first=8, last=32, resolution=32, num_classes=10,
    stages=(Stage(16, 2, "k3e3 - k5e2 k3e1.5!"), Stage(24, 2, "k7e2 k3e2")),
)  # fmt: skip


register_op("onnx_gate", Gate)
register_op("onnx_unexportable", Decides)
CUSTOM = Arch("custom", 8, 0, 32, (Stage(16, 2, "k3e2 onnx_gate k3e2 onnx_gate onnx_gate!"),), num_classes=10)


def run(model: bytes, x: Tensor) -> Tensor:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"x": x.numpy()})[0])


def trained(model: nn.Module) -> nn.Module:
    give_statistics(model)
    return model.eval().requires_grad_(False)


def same_outputs(model: nn.Module, x: Tensor) -> None:
    logits = model(x)
    close = 1e-4 * max(1.0, logits.abs().max().item())
    torch.testing.assert_close(
        run(onnx_model.model_onnx(model, x).SerializeToString(), x), logits, rtol=0, atol=close
    )


@pytest.mark.parametrize(
    ("name", "size", "batch"), [("proxyless_mobile", 224, 1), ("proxyless_w025_r112", 112, 2)]
)
def test_logits_are_those_of_the_eager_model(name: str, size: int, batch: int) -> None:
    same_outputs(trained(create_model(name)), torch.randn(batch, 3, size, size))


@pytest.mark.parametrize("size", [(32, 32), (33, 47)])
def test_logits_of_any_layout_and_size(size: tuple[int, int]) -> None:
    same_outputs(trained(create_model(SMALL)), torch.randn(3, 3, *size))


def shape_of(model: Any) -> tuple[Any, ...]:
    """Return nodes with their attributes, and the shapes of the constants that they take, in order."""
    sizes = {t.name: (t.data_type, tuple(t.dims)) for t in model.graph.initializer}
    nodes = [
        (
            node.op_type,
            sorted((a.name, str(onnx.helper.get_attribute_value(a))) for a in node.attribute),
            [sizes.get(name) for name in node.input],
        )
        for node in model.graph.node
    ]
    ends = [
        (v.name, v.type.tensor_type.elem_type, [d.dim_value for d in v.type.tensor_type.shape.dim])
        for v in (*model.graph.input, *model.graph.output)
    ]
    return nodes, ends, [(o.domain, o.version) for o in model.opset_import]


def test_the_model_is_the_one_that_torch_would_export() -> None:
    pytest.importorskip("onnxscript")
    tiny = Arch("tiny", 8, 8, 16, (Stage(16, 2, "k3e2 - k5e3 k3e2!"),), num_classes=5)
    model, x = trained(create_model(tiny)), torch.randn(2, 3, 32, 32)
    nn.init.normal_(model.classifier.linear.bias)  # one of zeros only would be left out
    ours, theirs = shape_of(onnx_model.model_onnx(model, x)), shape_of(onnx_model.module_onnx(model, x))
    assert ours == theirs


def test_every_operation_of_a_space_alone() -> None:
    space = read_space("tiny")
    for key in space_keys(space):
        spec = ModelSpec("op", str(key), (key.in_channels, key.size, key.size))
        model, x = build_model(spec, Settings(batch_size=2, memory_format="contiguous"))
        torch.testing.assert_close(run(onnx_model.op_onnx(key, 2), x), model(x), rtol=1e-3, atol=1e-4)
    assert onnx_model.op_onnx(str(key)) == onnx_model.op_onnx(key)


def test_a_whole_model_from_its_text_is_checked_complete_and_the_same_every_time() -> None:
    spec = ModelSpec("arch", str(SMALL), (3, 32, 32), num_classes=7)
    content = onnx_model.whole_model_onnx(spec, 4)
    model = onnx.load_model_from_string(content)
    onnx.checker.check_model(model, full_check=True)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", onnx_model.OPSET)]
    assert all(t.data_location == onnx.TensorProto.DEFAULT for t in model.graph.initializer)
    assert run(content, torch.randn(4, 3, 32, 32)).shape == (4, 7)
    assert content == onnx_model.whole_model_onnx(spec, 4)


def test_random_weights_neither_vanish_nor_explode() -> None:
    """Denormal numbers are slow to compute with, constants could be folded away."""
    space = read_space("imagenet").replace(resolution=64)
    spec = ModelSpec("arch", str(space.arch(space.random_choices(random.Random(0)))), (3, 64, 64))
    logits = run(onnx_model.whole_model_onnx(spec, 2), torch.randn(2, 3, 64, 64))
    assert logits.isfinite().all()
    assert 1e-3 < (logits[0] - logits[1]).abs().max() < 1e3


def test_half_precision() -> None:
    spec = ModelSpec("arch", str(SMALL), (3, 32, 32))
    model = onnx.load_model_from_string(onnx_model.whole_model_onnx(spec, 1, "float16"))
    kinds = {t.data_type for t in model.graph.initializer if t.name != "axes"}
    assert kinds == {onnx.TensorProto.FLOAT16}
    with pytest.raises(LatencyError, match="bfloat16"):
        onnx_model.whole_model_onnx(spec, 1, "bfloat16")


def test_registered_operations_are_exported_and_joined() -> None:
    pytest.importorskip("onnxscript")
    arch = Arch("custom", 8, 0, 32, (Stage(16, 2, "onnx_gate k3e2 onnx_gate"),), num_classes=10)
    same_outputs(trained(create_model(arch)), torch.randn(2, 3, 16, 16))


def test_a_registered_operation_is_exported_once_a_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxscript")
    exported: Counter[str] = Counter()
    original = onnx_model.module_onnx

    def counted(model: nn.Module, x: Tensor) -> Any:
        exported[f"{type(model).__name__} {list(x.shape)}"] += 1
        return original(model, x)

    monkeypatch.setattr(onnx_model, "module_onnx", counted)
    monkeypatch.setattr(onnx_model, "_exported", {})
    spec = ModelSpec("arch", str(CUSTOM), (3, 32, 32))
    first, second = (onnx_model.whole_model_onnx(spec) for _ in range(2))
    assert exported == {"Gate [1, 16, 8, 8]": 1}  # the "!" only leaves out the shortcut around it
    assert first == second
    assert run(first, torch.randn(1, 3, 32, 32)).isfinite().all()


@pytest.mark.slow
def test_tree_models_go_through_the_exporter_whole() -> None:
    pytest.importorskip("onnxscript")
    tree = TreeArch("t", "aiaa3im7didd 7i3a5a3d3ad5", start=8, alpha=8, num_stages=2)
    spec = ModelSpec("arch", str(tree), (3, 16, 16))
    model, x = build_model(spec, Settings(memory_format="contiguous"))
    torch.testing.assert_close(run(onnx_model.whole_model_onnx(spec), x), model(x), rtol=1e-3, atol=1e-4)


def test_a_changed_model_is_exported_as_it_is(tmp_path: Path) -> None:
    """Not as its architecture says."""
    pytest.importorskip("onnxscript")
    model = trained(create_model(SMALL))
    model.classifier.linear = nn.Sequential(nn.Linear(32, 6), nn.ReLU(), nn.Linear(6, 5))
    path, x = tmp_path / "model.pkl", torch.randn(1, 3, 32, 32)
    path.write_bytes(pickle.dumps(model))
    content = onnx_model.whole_model_onnx(ModelSpec("module", str(path), (3, 32, 32)))
    torch.testing.assert_close(run(content, x), model(x), rtol=1e-3, atol=1e-4)


def test_what_cannot_be_exported_is_said_in_one_line() -> None:
    pytest.importorskip("onnxscript")
    spec = ModelSpec("op", "onnx_unexportable in=8x8x8 out=8 stride=1", (8, 8, 8))
    with pytest.raises(LatencyError, match=r"cannot export Decides .* 'torch'") as caught:
        onnx_model.whole_model_onnx(spec)
    assert "\n" not in str(caught.value)


def test_missing_libraries_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingExtraError, match=r"proxylessnas\[onnx\]"):
        onnx_model.whole_model_onnx(ModelSpec("arch", str(SMALL), (3, 32, 32)))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(LatencyError, match=r"none\.onnx: No such file"):
        onnx_model.whole_model_onnx(ModelSpec("file", str(tmp_path / "none.onnx"), (3, 32, 32)))
