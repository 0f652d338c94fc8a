"""The models: exact sizes, the original names, equality with an independent interpreter, and the backbone
interface."""

from __future__ import annotations

import copy

import pytest
import torch
from reference_model import run
from torch import nn

import proxylessnas
from proxylessnas import Arch, PyramidTreeNet, Stage, TreeArch, create_model, profile, register_op
from proxylessnas.arch.published import MODEL_NAMES, PUBLISHED

# name: parameters, tensors in the state dict, multiply-accumulates at that input size (the authors' own
# counter)
SIZES = {
    "proxyless_gpu": (7_119_848, 260, 465_260_160, 224),
    "proxyless_cpu": (4_361_648, 368, 439_243_864, 224),
    "proxyless_mobile": (4_080_512, 368, 320_427_584, 224),
    "proxyless_mobile_14": (6_857_568, 368, 580_883_408, 224),
    "proxyless_w025_r112": (569_600, 368, 10_691_008, 112),
    "proxyless_w03_r176": (754_280, 368, 38_282_216, 176),
    "proxyless_cifar": (5_731_530, 4_413, 1_213_155_872, 32),
    "proxyless_cifar10_demo": (823_634, 206, 67_336_448, 32),
}
SMALL = Arch(
    "small",
    stem=8,
    first=8,
    last=24,
    num_classes=5,
    stages=(Stage(8, 2, "k5e3 k3e6 -"), Stage(16, 2, "k7e3! k3e1")),
)
SMALL_TREE = TreeArch(
    "small_tree", "aiaa3im7didd 7i3a5a3d3ad5 a55d3dd773i7 i357damdam75", start=8, alpha=8, num_stages=2
)
BUILD = {"mbconv": SMALL, "tree": SMALL_TREE}


def randomise(model: nn.Module) -> nn.Module:
    """Give BatchNorm statistics and scales values that show up in the output."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    return model.eval()


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_exact_size(name):
    model = create_model(name)
    params, tensors, macs, size = SIZES[name]
    assert len(model.state_dict()) == tensors
    assert profile(model, size).params == params == sum(p.numel() for p in model.parameters())
    assert profile(model, size).macs == macs


@pytest.mark.parametrize(
    "name", ["proxyless_mobile", "proxyless_gpu", "proxyless_w025_r112", "proxyless_w03_r176"]
)
def test_equals_the_interpreted_description(name):
    model = randomise(create_model(name))
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        expected = run(PUBLISHED[name].to_official(), model.state_dict(), x)
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("arch", [SMALL_TREE, PUBLISHED["proxyless_cifar"]], ids=["small", "published"])
def test_tree_model_equals_the_interpreted_description(arch):
    model = randomise(create_model(arch)).double()
    x = torch.randn(2, 3, 32, 32, dtype=torch.double)
    with torch.inference_mode():
        expected = run(arch.to_official(), model.state_dict(), x)
        torch.testing.assert_close(model(x), expected)


def test_parameter_names_are_the_original_ones():
    names = set(create_model("proxyless_mobile").state_dict())
    assert {
        "first_conv.conv.weight",
        "first_conv.bn.running_var",
        "blocks.0.mobile_inverted_conv.depth_conv.conv.weight",
        "blocks.21.mobile_inverted_conv.inverted_bottleneck.bn.num_batches_tracked",
        "blocks.21.mobile_inverted_conv.point_linear.conv.weight",
        "feature_mix_layer.conv.weight",
        "classifier.linear.bias",
    } <= names
    assert not any(
        n.startswith(("blocks.3.", "blocks.4.", "blocks.0.mobile_inverted_conv.inverted")) for n in names
    )
    tree = set(create_model(SMALL_TREE).state_dict())
    assert {
        "blocks.0.layers.0.conv.weight",
        "blocks.0.layers.1.bn.weight",
        "blocks.1.in_bottle.bn.weight",
        "blocks.1.cell.edges.0.conv.weight",
        "blocks.1.cell.child_nodes.0.branch_bns.1.weight",
        "blocks.1.cell.child_nodes.0.child_nodes.0.child_nodes.1.edges.0.depth_conv.weight",
        "blocks.2.cell.child_nodes.0.child_nodes.0.edges.0.point_conv.weight",
        "blocks.4.final_bn.running_mean",
        "blocks.5.layers.0.bn.bias",
        "classifier.linear.weight",
    } <= tree


def test_batchnorm_has_the_published_settings():
    for module in create_model("proxyless_cpu").modules():
        if isinstance(module, nn.BatchNorm2d):
            assert (module.eps, module.momentum) == (1e-3, 0.1)
    for module in create_model(SMALL_TREE).modules():
        if isinstance(module, nn.BatchNorm2d):
            assert (module.eps, module.momentum) == (1e-5, 0.1)


def test_initial_weights_have_the_documented_scale():
    model = create_model("proxyless_mobile")
    conv = model.feature_mix_layer.conv.weight
    assert conv.std().item() == pytest.approx((2 / 1280) ** 0.5, rel=0.02)
    depthwise = model.blocks[21].mobile_inverted_conv.depth_conv.conv.weight
    assert depthwise.std().item() == pytest.approx((2 / 49) ** 0.5, rel=0.02)
    linear = model.classifier.linear
    assert linear.weight.abs().max().item() <= 1280**-0.5
    assert not linear.bias.any()
    layers = {type(m) for m in model.modules() if not list(m.children())}
    assert layers == {nn.Conv2d, nn.BatchNorm2d, nn.Linear, type(model.blocks[3])}, (
        "torch's own, by exact type"
    )


def test_batchnorm_reset_after_to_empty_is_complete():
    model = create_model(SMALL)
    with torch.device("meta"):
        twin = create_model(SMALL)
    assert all(p.is_meta for p in twin.parameters())
    twin.to_empty(device="cpu")
    for module in twin.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    for key, value in model.state_dict().items():
        if ".bn." in key:
            assert torch.equal(twin.state_dict()[key], value), key


@pytest.mark.parametrize("kind", BUILD)
def test_every_parameter_gets_a_gradient(kind):
    model = create_model(BUILD[kind])
    model(torch.randn(4, 3, 32, 32)).square().mean().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_feature_maps_have_the_announced_shapes(name):
    model = create_model(name).eval()
    size = 64
    with torch.inference_mode():
        x = torch.randn(1, 3, size, size)
        maps = model.forward_intermediates(x)
        assert len(maps) == len(model.feature_info)
        for y, info in zip(maps, model.feature_info, strict=True):
            assert y.shape == (1, info["num_chs"], size // info["reduction"], size // info["reduction"])
        assert [i["reduction"] for i in model.feature_info] == (
            [1, 2, 4] if name.startswith("proxyless_cifar") else [2, 4, 8, 16, 32]
        )
        some = model.forward_intermediates(x, [-1, 0])
        # equal_nan: without training, 54 residual tree cells overflow
        torch.testing.assert_close(some, [maps[-1], maps[0]], rtol=0, atol=0, equal_nan=True)
        assert len(model.forward_intermediates(x, 2)) == 2
        assert model.forward_intermediates(x, []) == []
        features = model.forward_features(x)
        assert features.shape[1] == model.num_features
        torch.testing.assert_close(model.forward_head(features), model(x), equal_nan=True)
        for bad in ([9], [-9], 9, 0):
            with pytest.raises(ValueError, match="feature maps"):
                model.forward_intermediates(x, bad)


@pytest.mark.parametrize("kind", BUILD)
def test_heads(kind):
    x = torch.randn(2, 3, 32, 32)
    model = create_model(BUILD[kind], num_classes=0).eval()
    body = {k: v.clone() for k, v in model.state_dict().items()}
    with torch.inference_mode():
        features = model.forward_features(x)
        assert torch.equal(model(x), features.mean((2, 3)))
        model.reset_classifier(0, "max")
        assert torch.equal(model(x), features.amax((2, 3)))
        model.reset_classifier(0, "avgmax")
        torch.testing.assert_close(model(x), (features.mean((2, 3)) + features.amax((2, 3))) / 2)
        model.reset_classifier(0, "")
        assert torch.equal(model(x), features)
        model.double().reset_classifier(7, "avg")
        assert model(x.double()).shape == (2, 7)
        assert model.classifier.linear.weight.dtype == torch.double
    assert model.num_classes == 7
    assert all(
        torch.equal(model.state_dict()[k], v.double() if v.is_floating_point() else v)
        for k, v in body.items()
    )
    model.categories = tuple("abcdefg")
    with pytest.raises(ValueError, match="num_classes"):
        model.reset_classifier(-1)
    assert model.categories == tuple("abcdefg"), "a refused reset changes nothing"
    with pytest.raises(ValueError, match="global_pool"):
        model.reset_classifier(3, "median")
    with pytest.raises(ValueError, match="feature map"):
        model.reset_classifier(3, "")


@pytest.mark.parametrize("kind", BUILD)
@pytest.mark.parametrize("in_chans", [1, 2, 4])
def test_other_inputs(kind, in_chans):
    assert create_model(BUILD[kind], in_chans=in_chans)(torch.randn(2, in_chans, 32, 32)).shape[0] == 2


@pytest.mark.parametrize(
    "options",
    [
        {"in_chans": 0},
        {"in_chans": 1.5},
        {"num_classes": -1},
        {"num_classes": True},
        {"drop_rate": 1.0},
        {"drop_path_rate": -0.1},
        {"global_pool": "sum"},
    ],
)
def test_bad_options_are_named(options):
    for arch in BUILD.values():
        with pytest.raises(ValueError, match=next(iter(options))):
            create_model(arch, **options)
    with pytest.raises(TypeError, match="num_clases"):
        proxylessnas.proxyless_cpu(num_clases=3)


@pytest.mark.parametrize("kind", BUILD)
def test_dropout_and_drop_path_act_in_training_only(kind):
    torch.manual_seed(0)
    plain = create_model(BUILD[kind])
    model = create_model(BUILD[kind], drop_rate=0.5, drop_path_rate=0.5)
    model.load_state_dict(plain.state_dict())
    x = torch.randn(8, 3, 32, 32)
    assert torch.equal(model.eval()(x), plain.eval()(x))
    rates = [m.drop_path_rate for m in model.modules() if hasattr(m, "drop_path_rate")]
    assert rates == sorted(rates)
    if kind == "mbconv":
        assert (rates[0], rates[-1]) == (0.0, 0.5)
    else:
        assert sum(rates) / len(rates) == pytest.approx(0.5)
    model.train()
    model.freeze_bn()
    a, b = model(x), model(x)
    assert not torch.equal(a, b)


def test_drop_path_keeps_the_mean():
    from proxylessnas.models.layers import drop_path

    y = drop_path(torch.ones(20_000, 1, 1, 1), 0.25)
    assert y.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert y.mean().item() == pytest.approx(1.0, abs=0.02)


def test_freeze_bn_survives_train():
    model = create_model(SMALL)
    model.freeze_bn()
    wrapper = nn.Sequential(model).train()
    before = {k: v.clone() for k, v in model.state_dict().items() if "running" in k or "num_batches" in k}
    wrapper(torch.randn(4, 3, 32, 32))
    assert model.training
    assert all(torch.equal(model.state_dict()[k], v) for k, v in before.items())
    assert all(p.requires_grad for p in model.parameters())
    model.freeze_bn(affine=True)
    bn_ids = {id(p) for m in model.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()}
    assert all(p.requires_grad == (id(p) not in bn_ids) for p in model.parameters())
    model.freeze_bn(False)
    assert all(p.requires_grad for p in model.parameters())
    wrapper(torch.randn(4, 3, 32, 32))
    assert any(not torch.equal(model.state_dict()[k], v) for k, v in before.items())


@pytest.mark.parametrize("kind", BUILD)
def test_the_models_copy_and_pickle(kind):
    import pickle

    model = create_model(BUILD[kind]).eval()
    x = torch.randn(1, 3, 32, 32)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x), model(x))
        assert twin.arch == model.arch


class Shift(nn.Module):
    """A toy operation: scale per channel and a strided slice."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(in_channels, out_channels, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.roll(self.project(x), 1, -1)


def test_a_registered_operation_is_built_written_and_read():
    register_op("toy_shift", Shift)
    register_op("toy_shift", Shift)  # the same again is fine
    arch = Arch(
        "toy", stem=8, first=8, last=16, stages=(Stage(8, 2, "toy_shift toy_shift k3e3"),), num_classes=3
    )
    assert Arch.parse(str(arch)) == arch
    again = Arch.from_official(arch.to_official())
    assert again.to_official() == arch.to_official()
    model = create_model(again).eval()
    assert isinstance(model.blocks[1].mobile_inverted_conv, Shift)
    assert model.blocks[2].shortcut
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 3)
    assert profile(model, 32).uncounted["roll"] == 2
    with pytest.raises(proxylessnas.ArchError, match="another builder"):
        register_op("toy_shift", nn.Conv2d)


class Buffered(nn.Module):
    """An operation with a buffer that no checkpoint has."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1, stride)
        self.register_buffer("scale", torch.full((1,), 0.5), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x) * self.scale


def test_a_registered_operation_loads_weights_and_must_be_a_module(tmp_path):
    register_op("toy_buffered", Buffered)
    arch = Arch("toy", stem=8, first=8, last=16, stages=(Stage(8, 2, "toy_buffered"),), num_classes=3)
    model = create_model(arch).eval()
    torch.save(model.state_dict(), tmp_path / "w.pth")
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(create_model(arch, weights=tmp_path / "w.pth").eval()(x), model(x))
    register_op("toy_number", lambda i, o, s: 3)
    with pytest.raises(proxylessnas.ArchError, match="toy_number"):
        create_model(Arch("toy", stem=8, first=8, last=16, stages=(Stage(8, 2, "toy_number"),)))


def test_profile_neither_runs_nor_changes_the_model():
    model = create_model(SMALL).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    calls: list[int] = []
    model.first_conv.register_forward_hook(lambda *a: calls.append(a[1][0].is_meta))
    report = profile(model, (3, 32, 48))
    assert calls == [True]
    assert model.training
    assert all(torch.equal(model.state_dict()[k], v) for k, v in before.items())
    assert profile(model, (3, 64, 96)).macs > 3 * report.macs
    assert profile(model) == profile(model, (3, 224, 224)) == profile(model, 224), (
        "of other modules nothing is known"
    )
    assert report.uncounted["native_batch_norm"] == sum(
        isinstance(m, nn.BatchNorm2d) for m in model.modules()
    )
    with pytest.raises(ValueError, match="input_size"):
        profile(model, (0, 32, 32))


def test_channels_last_and_half_precision_run():
    model = create_model(SMALL).eval()
    x = torch.randn(2, 3, 32, 32)
    expected = model(x)
    lasting = copy.deepcopy(model).to(memory_format=torch.channels_last)
    torch.testing.assert_close(
        lasting(x.to(memory_format=torch.channels_last)), expected, rtol=1e-4, atol=1e-4
    )
    assert copy.deepcopy(model).bfloat16()(x.bfloat16()).dtype == torch.bfloat16


def test_list_models():
    assert proxylessnas.list_models() == sorted(MODEL_NAMES)
    assert proxylessnas.list_models("*mobile*") == ["proxyless_mobile", "proxyless_mobile_14"]
    assert proxylessnas.list_models("nothing*") == []
    assert set(proxylessnas.list_models(pretrained=True)) == set(MODEL_NAMES)


def test_cifar_builder_returns_the_tree_model():
    assert isinstance(proxylessnas.proxyless_cifar(num_classes=3), PyramidTreeNet)
    assert proxylessnas.proxyless_mobile14().arch == PUBLISHED["proxyless_mobile_14"]
