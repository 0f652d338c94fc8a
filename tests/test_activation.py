"""ReLU instead of ReLU6: it goes everywhere with an architecture and a space; what had no choice stays."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from deploy_tools import PLAIN, UIB, exact_run, small
from latency_table_tools import little
from search_tools import SPACE, gate_gradient, mixture_gradient, small_model
from torch import nn
from torch.nn import functional as F

from proxylessnas import Arch, ArchError, LatencyError, create_model
from proxylessnas.arch.op_key import OpKey, arch_keys, space_keys
from proxylessnas.arch.space import SearchSpace
from proxylessnas.arch.spaces import SPACES, read_space
from proxylessnas.errors import LatencyKeyError
from proxylessnas.models.base import ImageClassifier
from proxylessnas.models.batchnorm import fold_batchnorm
from proxylessnas.models.fuse import fuse
from proxylessnas.models.layers import ConvLayer, SqueezeExcite
from proxylessnas.runtimes.base import ModelSpec
from proxylessnas.runtimes.modules import build_model
from proxylessnas.runtimes.settings import Settings

RELU = dataclasses.replace(UIB, name="relu", act="relu")
TINY = SPACES["tiny"]


def loud(arch: Arch = RELU) -> ImageClassifier:
    """Return a model whose maps go beyond 6."""
    model = small(arch).eval().requires_grad_(False)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data *= 4
        if isinstance(module, SqueezeExcite):
            nn.init.normal_(module.reduce.bias)
            nn.init.normal_(module.expand.bias)
    nn.init.normal_(model.classifier.linear.bias)
    return model


def same(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))


def test_it_is_written_where_it_is_not_the_usual_one(tmp_path: Path) -> None:
    assert "act" not in str(UIB)
    assert "act='relu'" in str(RELU)
    assert Arch.parse(str(RELU)) == RELU != UIB
    space = TINY.replace(act="relu")
    assert "act" not in TINY.to_dict()
    assert "act" not in TINY.to_toml()
    assert 'act = "relu"' in space.to_toml()
    assert TINY.replace(act="relu6").digest == TINY.digest != space.digest
    (tmp_path / "a.toml").write_text(space.to_toml(), encoding="utf-8")
    assert read_space(tmp_path / "a.toml") == SearchSpace.from_dict(space.to_dict()) == space
    arch = space.arch([0] * 6)
    assert (arch.act, space.choices(arch)) == ("relu", (0,) * 6)
    with pytest.raises(ArchError, match="act is relu, in the space relu6"):
        TINY.choices(arch)
    for make in (TINY.replace, lambda act: dataclasses.replace(UIB, act=act)):
        with pytest.raises(ArchError, match="act must be relu6 or relu, not 'swish'"):
            make(act="swish")


def test_the_original_json_has_it_in_every_layer() -> None:
    description = RELU.to_official()
    assert Arch.from_official(description).to_official() == description
    assert "act_func" not in UIB.to_official()["blocks"][1]["mobile_inverted_conv"]
    mix, block = description["feature_mix_layer"], description["blocks"][1]["mobile_inverted_conv"]
    assert {description["first_conv"]["act_func"], mix["act_func"], block["act_func"]} == {"relu"}
    for layer in (mix, block):
        for wrong in ({**layer, "act_func": "relu6"}, {k: v for k, v in layer.items() if k != "act_func"}):
            kept = dict(layer)
            layer.clear()
            layer.update(wrong)
            with pytest.raises(ArchError, match="act_func"):
                Arch.from_official(description)
            layer.clear()
            layer.update(kept)
    description["first_conv"]["act_func"] = "swish"
    with pytest.raises(ArchError, match="first_conv: act_func is"):
        Arch.from_official(description)


def test_a_table_is_of_one_activation() -> None:
    keys = arch_keys(RELU)
    assert [str(k) for k in keys[:3]] == [
        "stem in=3x32x32 out=8 stride=2 relu",
        "k3e1 in=8x16x16 out=8 stride=1 relu",
        "u3-5e2 in=8x16x16 out=16 stride=2 relu",
    ]
    assert str(keys[3]).endswith(" stride=1 shortcut relu")
    assert [str(k) for k in keys[-2:]] == ["last in=24x4x4 out=32 relu", "classifier in=32x4x4 out=5"]
    assert [OpKey.parse(str(k)) for k in keys] == keys
    assert not {*keys[:-1]} & {*arch_keys(UIB)}
    table = little()
    assert table.space is not None
    space = table.space.replace(act="relu")
    assert space_keys(space)[-1] == space_keys(table.space)[-1]
    with pytest.raises(LatencyKeyError, match=r"no entry for .* relu .*; the nearest it has is"):
        table.costs(space)
    for text in ("classifier in=32x4x4 out=5 relu", "my_op in=8x8x8 out=8 stride=1 relu"):
        with pytest.raises(LatencyError, match="has no activation to choose"):
            OpKey.parse(text)
    for key in keys:
        module, _ = build_model(ModelSpec("op", str(key), (key.in_channels, key.size, key.size)), Settings())
        assert {m.act for m in module.modules() if isinstance(m, ConvLayer)} <= {"relu", ""}


def test_models_compute_with_it_folded_and_fused() -> None:
    model, x = loud(), 3 * torch.randn(2, 3, 32, 32)
    maps = []
    for layer in model.modules():
        if isinstance(layer, ConvLayer) and layer.act:
            layer.register_forward_hook(
                lambda m, i, y: maps.append(torch.equal(y, F.relu(m.bn(m.conv(i[0])))) and float(y.max()))
            )
    wanted = model(x)
    assert all(value is not False for value in maps)
    assert max(maps) > 6
    other = create_model(UIB).eval()
    other.load_state_dict(model.state_dict())
    assert not torch.allclose(other(x), wanted)
    folded = fold_batchnorm(model)
    same(folded(x), wanted)
    if torch.backends.mkldnn.is_available():
        same(fuse(folded, x)(x), wanted)


def test_the_onnx_graph_is_the_one_that_torch_would_export() -> None:
    ort = pytest.importorskip("onnxruntime")
    onnx, _ = pytest.importorskip("onnx"), pytest.importorskip("onnxscript")
    from proxylessnas.runtimes.onnx_graph import model_onnx, module_onnx

    def nodes(proto: object) -> list[object]:
        value = onnx.helper.get_attribute_value
        return [(n.op_type, sorted((a.name, str(value(a))) for a in n.attribute)) for n in proto.graph.node]  # type: ignore[attr-defined]

    model, x = loud(), torch.randn(2, 3, 32, 32)
    own = model_onnx(model, x)
    assert nodes(own) == nodes(module_onnx(model, x))
    session = ort.InferenceSession(own.SerializeToString(), providers=["CPUExecutionProvider"])
    same(torch.from_numpy(session.run(None, {"x": x.numpy()})[0]), model(x))


@pytest.mark.parametrize("scheme", ["minmax", "mse+floatfirst"])
def test_the_int8_file_computes_what_was_simulated(scheme: str, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from proxylessnas.deploy.bundle import open_bundle
    from proxylessnas.deploy.formats.base import format_of
    from proxylessnas.deploy.quantization.backends import backend_of
    from proxylessnas.deploy.quantization.fake_quant import observe, simulated
    from proxylessnas.deploy.quantization.schemes import scheme_of
    from proxylessnas.deploy.settings import ExportOptions

    # Without squeeze-and-excite, inside of which the simulation rounds nothing.
    model = small(dataclasses.replace(PLAIN, act="relu")).eval()
    path, way = tmp_path / "net.onnx", scheme_of(scheme)
    batches = [torch.randn(8, 3, 32, 32)]
    backend_of(format_of(path)).write(open_bundle(model), path, batches, way, ExportOptions())
    found = exact_run(path, batches[0])
    with torch.inference_mode():
        exact = model(batches[0])
        with simulated(model, observe(model, batches, way), way):
            expected = model(batches[0])
    assert 0.75 < float((found - exact).norm() / (expected - exact).norm()) < 1.33
    kinds = [node.op_type for node in onnx.load(str(path)).graph.node]
    assert "Clip" not in kinds
    assert kinds.count("QuantizeLinear") > 10


@pytest.mark.parametrize("store", [False, True])
def test_gates_get_the_gradient_of_the_mixture(store: bool) -> None:
    g = torch.Generator().manual_seed(0)
    space = SPACE.replace(act="relu", candidates=("k3e2", "n4", "u3-5e2", "f3e2"))
    x = 4 * torch.randn(12, 2, 64, 64, generator=g, dtype=torch.float64)
    x, t = x.contiguous(memory_format=torch.channels_last), torch.randint(0, 5, (12,), generator=g)
    model = small_model(0, space).to(memory_format=torch.channels_last)
    path = [0, 1, 2, 0]
    loss, wanted = mixture_gradient(model, path, x, t)
    found_loss, found = gate_gradient(model, path, x, t, store=store)
    torch.testing.assert_close((found_loss, found), (loss, wanted), rtol=1e-9, atol=1e-9)
    child = model.eval().child(path)
    assert child.arch.act == "relu"
    assert torch.equal(child(x), model(x))
