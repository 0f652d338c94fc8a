"""An operation is one file: what it says of itself is enough for the whole package.

``d3e4`` is the example of docs/how-it-is-built.md: its file is written out from there, and passes the tests
that those of the package pass.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from cli_tools import runner
from deploy_tools import give_statistics
from latency_table_tools import little
from search_tools import PATHS, gate_gradient, mixture_gradient, small_model
from torch import Tensor, nn

from proxylessnas import Arch, ArchError, Stage, create_model, profile, register_op, report
from proxylessnas.arch import ops
from proxylessnas.arch.op_key import OpKey, arch_keys, key_bytes, key_macs, space_keys
from proxylessnas.arch.space import SearchSpace, SpaceStage
from proxylessnas.figures.draw_model import timed_layers
from proxylessnas.latency import Predictor
from proxylessnas.models.base import ImageClassifier
from proxylessnas.models.batchnorm import fold_batchnorm
from proxylessnas.models.fuse import fuse
from proxylessnas.models.layers import OpLayers, SqueezeExcite
from proxylessnas.report.model_page import model_text
from proxylessnas.runtimes.base import ModelSpec
from proxylessnas.runtimes.modules import build_model
from proxylessnas.runtimes.settings import Settings
from proxylessnas.search.init import align
from proxylessnas.search.supernet import SuperNet, seeded

DOCS = Path(__file__).resolve().parent.parent / "docs" / "how-it-is-built.md"
TOKENS = ["d3e4", "d5e2.5", "k5e1", "k5e2.5", "k3e1s", "k5e3s", "f3e1", "f3e1s", "f5e1.5", "f3e2s"]
TOKENS += ["u3-5e4", "u5-3e2.5s", "c7e4", "c5e2s", "n4", "n2.5s"]


@pytest.fixture(autouse=True, scope="module")
def _double(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Add the operation of the documentation: its file, and its name in the list."""
    text = DOCS.read_text(encoding="utf-8")
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "OpSpec" in block]
    path = tmp_path_factory.mktemp("ops") / "double.py"
    path.write_text(code, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("documented_double", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "documented_double", module)
        spec.loader.exec_module(module)
        patch.setattr(ops, "SPECS", (*ops.SPECS, module.Double))
        yield


@pytest.fixture(params=TOKENS)
def token(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def arch_of(token: str) -> Arch:
    """Return blocks that change the shape, have a shortcut, have none, and one of another kind."""
    first = token if 2 in ops.parse_token(token)[0].strides else "k5e2"
    stages = (Stage(16, 2, f"{first} {token} k3e2 - {token}!"), Stage(24, 1, f"{token} {token}"))
    return Arch("net", 8, 8, 32, stages, num_classes=5, resolution=32)


def model_of(token: str) -> ImageClassifier:
    torch.manual_seed(0)
    model = create_model(arch_of(token))
    give_statistics(model)
    return model.eval().requires_grad_(False)


def space_of(token: str) -> SearchSpace:
    stages = (SpaceStage(8, 2, 2), SpaceStage(12, 2, 2))
    others = [other for other in ("k3e2", "k5e2s", "f3e2", "search_curve") if other != token][:3]
    return SearchSpace("s", 8, 8, 16, stages, (token, *others), resolution=16, num_classes=5, in_channels=2)


def path_of(space: SearchSpace, path: list[int]) -> list[int]:
    """Return a path with another candidate where a block does not have its own."""
    return [
        k if k in block.columns else block.columns[0]
        for block, k in zip(space.search_blocks, path, strict=True)
    ]


def times(token: str) -> int:
    """Return how often it is in the model of :func:`arch_of`."""
    return [block.op.name for block in arch_of(token).blocks].count(token)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_text_and_original_json(token: str) -> None:
    arch = arch_of(token)
    assert Arch.parse(str(arch)) == arch
    again = Arch.from_official(arch.to_official())
    assert again.to_official() == arch.to_official()
    assert [block.token for block in again.blocks] == [block.token for block in arch.blocks]
    loose = re.sub(r"(\d)(?=s?$)", r"\g<1>0" if "." in token else r"\1.0", token)
    assert ops.op_name(f"{loose}!") == ops.op_name(token) == token
    with pytest.raises(ArchError, match="cannot register"):
        register_op(token, nn.Conv2d)


def test_keys_count_what_is_there(token: str) -> None:
    keys, counted = arch_keys(arch_of(token)), profile(model_of(token), 32)
    assert sum(key_macs(k) or 0 for k in keys) == counted.macs
    assert sum((key_bytes(k, 1) or (0, 0))[0] for k in keys) == counted.params
    assert [OpKey.parse(str(k)) for k in keys] == keys
    assert sum(key.op == token for key in keys) == times(token) >= 4
    assert {k.block.kind for k in keys if k.op == token} == {ops.parse_token(token)[0].kind}


def test_folded_and_fused_it_computes_the_same(token: str) -> None:
    model, x = model_of(token), torch.randn(2, 3, 32, 32)
    folded = fold_batchnorm(model)
    close(folded(x), model(x))
    if torch.backends.mkldnn.is_available():
        close(fuse(folded, x)(x), model(x))


def test_onnx_graphs(token: str) -> None:
    ort = pytest.importorskip("onnxruntime")
    onnx_graph = pytest.importorskip("proxylessnas.runtimes.onnx_graph", exc_type=ImportError)
    for key in dict.fromkeys(arch_keys(arch_of(token))):
        spec = ModelSpec("op", str(key), (key.in_channels, key.size, key.size))
        model, x = build_model(spec, Settings(batch_size=2, memory_format="contiguous"))
        session = ort.InferenceSession(onnx_graph.op_onnx(key, 2), providers=["CPUExecutionProvider"])
        close(torch.from_numpy(session.run(None, {"x": x.numpy()})[0]), model(x))


def test_the_onnx_graph_is_the_one_that_torch_would_export() -> None:
    pytest.importorskip("onnxruntime")
    onnx, _ = pytest.importorskip("onnx"), pytest.importorskip("onnxscript")
    from proxylessnas.runtimes.onnx_graph import model_onnx, module_onnx

    stages = (Stage(16, 2, "f3e2s k3e2s f3e1 n2 u3-5e2s c5e2"), Stage(24, 2, "u5-3e2"), Stage(24, 2, "c3e2s"))
    model = create_model(Arch("net", 8, 8, 16, stages, num_classes=5)).eval()
    nn.init.normal_(model.classifier.linear.bias)  # one of zeros only would be left out
    for module in model.modules():
        if isinstance(module, SqueezeExcite):
            nn.init.normal_(module.reduce.bias)
            nn.init.normal_(module.expand.bias)

    def nodes(proto: object) -> list[object]:
        value = onnx.helper.get_attribute_value
        return [(n.op_type, sorted((a.name, str(value(a))) for a in n.attribute)) for n in proto.graph.node]  # type: ignore[attr-defined]

    x = torch.randn(2, 3, 32, 32)
    assert nodes(model_onnx(model, x)) == nodes(module_onnx(model, x))


@pytest.mark.parametrize("store", [False, True])
def test_gates_get_the_gradient_of_the_mixture(token: str, store: bool) -> None:
    g = torch.Generator().manual_seed(0)
    for size, n in ((16, 6), (64, 12)):  # the larger maps take the quick way
        x = torch.randn(n, 2, size, size, generator=g, dtype=torch.float64)
        x, t = x.contiguous(memory_format=torch.channels_last), torch.randint(0, 5, (n,), generator=g)
        model = small_model(0, space_of(token)).to(memory_format=torch.channels_last)
        for path in (path_of(model.space, choices) for choices in ([0, 0, 0, 0], PATHS[1])):
            loss, wanted = mixture_gradient(model, path, x, t)
            found_loss, found = gate_gradient(model, path, x, t, store=store)
            torch.testing.assert_close((found_loss, found), (loss, wanted), rtol=1e-9, atol=1e-9)


def test_a_child_of_a_supernet_has_its_weights(token: str) -> None:
    model, x = small_model(0, space_of(token), torch.float32).eval(), torch.randn(2, 2, 16, 16)
    path = path_of(model.space, [0, 0, 1, 0])
    model.set_path(path)
    child = model.child()
    assert torch.equal(child(x), model(x))
    assert [b.token for b in child.arch.blocks][1:] == [model.space.candidate_ops[k] for k in path]


def test_candidates_of_a_kind_begin_alike(token: str) -> None:
    first = ops.parse_token(type(ops.parse_token(token)[0]).example)[0]
    sizes = (dataclasses.replace(first, ratio=2.0).name, dataclasses.replace(first, ratio=4.0).name)
    sizes = {"k": ("k3e2", "k5e3s"), "f": ("f3e2", "f5e3s")}.get(first.example[0], sizes)
    space = space_of("k3e1").replace(candidates=(*sizes, "search_curve", "k3e1"))
    model, before = seeded(space, 0), seeded(space, 0)
    align(model, torch.Generator().manual_seed(1))
    for choice, old in zip(model.mixed_ops, before.mixed_ops, strict=True):
        if not choice.allowed[0]:
            continue
        small, large = (choice.op(k) for k in (0, 1))
        assert isinstance(small, OpLayers)
        assert isinstance(large, OpLayers)
        a, b = small[-1].conv.weight, large[-1].conv.weight
        width = min(a.shape[1], b.shape[1])
        assert torch.equal(a[:, :width], b[:, :width])
        assert bool(small[-1].bn.weight.any()) != choice.shortcut
        same = [all(map(torch.equal, choice.op(k).parameters(), old.op(k).parameters())) for k in (1, 2, 3)]
        assert same == [False, True, True]


def test_tables_and_predictions(token: str) -> None:
    space = space_of(token).replace(in_channels=3, candidates=(token, "k3e2", "f3e2", "k7e3s"))
    table = little(0, space)
    arch = space.arch(path_of(space, [0, 0, 0, 4]))
    total = table.predict(arch)
    assert sum(table.entries[key].ms for key in arch_keys(arch)) == pytest.approx(total)
    wide = space.scaled(2)
    predictor = Predictor.fit(table)
    assert all(predictor.predict(key) > 0 for key in space_keys(wide))
    layers, _ = timed_layers(arch, table)
    label = ops.parse_token(token)[0].label
    assert [layer.label for layer in layers].count(label) == sum(b.op.name == token for b in arch.blocks) > 0
    assert label in model_text(layers, "net")


def test_figures(token: str) -> None:
    pytest.importorskip("matplotlib")
    layers = report.layers_of(arch_of(token))
    assert [layer.label for layer in layers].count(ops.parse_token(token)[0].label) == times(token)
    file = io.BytesIO()
    report.model_figure({"net": layers}, file)
    assert b"<svg" in file.getvalue()


@pytest.mark.parametrize(
    ("token", "says"),
    [
        ("d3e4", "d3e4: 3x3 double MBConv, expansion 4"),
        ("u3-5e4", "u3-5e4: 3x3 and 5x5 extra-depthwise bottleneck, expansion 4"),
        ("c7e4", "c7e4: 7x7 ConvNeXt-like bottleneck, expansion 4"),
        ("n4s", "n4s: 1x1 bottleneck, expansion 4, squeeze-and-excite"),
        ("k5e3s", "k5e3s: 5x5 MBConv, expansion 3, squeeze-and-excite"),
        ("f3e2", "f3e4: 3x3 fused MBConv, expansion 4"),
    ],
)
def test_info(token: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "net.txt").write_text(str(arch_of(token)), encoding="utf-8")
    done = runner(capsys)("info", tmp_path / "net.txt")
    assert done.code == 0
    assert f"{says};\n" in done.out
    assert "k5e3: 5x5 MBConv, expansion 3" in done.out


def test_an_unknown_token_is_told_what_there_is() -> None:
    with pytest.raises(ArchError) as caught:
        ops.parse_token("x7")
    known = "k<kernel>e<ratio>[s] such as k5e3, f<kernel>e<ratio>[s] such as f3e4, "
    assert known in str(caught.value)
    assert all(f"{spec.grammar()} such as {spec.example}, " in str(caught.value) for spec in ops.SPECS)
    assert "d<kernel>e<ratio> such as d3e4, - for" in str(caught.value)
    assert "u<start>-<kernel>e<ratio>[s] such as u3-5e4, " in str(caught.value)
    bad_ones = ("f4e2", "odd"), ("f3e0.5", "at least 1"), ("n0", "at least 1"), ("u4-3e2", "odd")
    for bad, problem in bad_ones:
        with pytest.raises(ArchError, match=problem):
            ops.parse_token(bad)


def test_squeeze_and_excite_of_another_width_is_not_read() -> None:
    description = arch_of("k5e3s").to_official()
    op = description["blocks"][1]["mobile_inverted_conv"]
    assert (op["use_se"], op["se_channels"]) == (True, 2)
    for change, problem in (({"se_channels": 6}, "se_channels is 6"), ({"use_se": False}, "se_channels")):
        description["blocks"][1]["mobile_inverted_conv"] = {**op, **change}
        with pytest.raises(ArchError, match=problem):
            Arch.from_official(description)


def test_layers_that_some_lack_are_none() -> None:
    def op(token: str) -> nn.Module:
        model = SuperNet(space_of(token))
        found = model.mixed_ops[0].op(0)
        assert found is not None
        return found

    assert op("k3e1").inverted_bottleneck is None
    assert op("f3e1").point_linear is None
    assert list(dict(op("k3e2s").named_children())) == [
        "inverted_bottleneck", "depth_conv", "squeeze_excite", "point_linear",
    ]  # fmt: skip
