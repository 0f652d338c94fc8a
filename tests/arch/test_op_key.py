"""Keys of latency tables: those of a model, those of a space, their text, work and nearest neighbours."""

from __future__ import annotations

import itertools
import random
import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from proxylessnas import Arch, LatencyError, Stage, create_model, profile, register_op
from proxylessnas.arch.op_key import OpKey, arch_keys, key_bytes, key_macs, nearest_key, space_keys
from proxylessnas.arch.published import CIFAR, CIFAR10_DEMO, CPU, MOBILE, PUBLISHED, W025_R112
from proxylessnas.arch.space import SearchSpace, SpaceStage
from proxylessnas.arch.spaces import SPACES

CHAINS = [arch for arch in PUBLISHED.values() if isinstance(arch, Arch)]
STEM = OpKey("stem", 3, 32, 224, 2)
BLOCK = OpKey("k3e6", 24, 40, 56, 2)


@st.composite
def keys(draw: st.DrawFn) -> OpKey:
    op = draw(
        st.sampled_from(["stem", "last", "classifier", "k3e1", "k5e6", "k7e2.5", "k3e10", "mine", "kernel_9"])
    )
    channels, out, size = (
        draw(st.integers(1, 65_536)),
        draw(st.integers(1, 65_536)),
        draw(st.integers(1, 4096)),
    )
    stride = 1 if op in ("last", "classifier") else draw(st.sampled_from([1, 2]))
    shortcut = op not in ("stem", "last", "classifier") and stride == 1 and draw(st.booleans())
    return OpKey(op, channels, channels if shortcut else out, size, stride, shortcut)


@st.composite
def models(draw: st.DrawFn) -> Arch:
    tokens = ["k3e1", "k3e2", "k5e3!", "k3e2.5", "k7e3"]
    stages, width, first = [], None, draw(st.sampled_from([0, 5, 8]))
    for _ in range(draw(st.integers(1, 3))):
        new, stride = draw(st.sampled_from([8, 8, 12])), draw(st.sampled_from([1, 2]))
        ops = draw(st.lists(st.sampled_from([*tokens, "-"]), min_size=1, max_size=3))
        if ops[0] == "-" and (stride, new) != (1, width):
            ops[0] = "k3e2"
        stages.append(Stage(new, stride, " ".join(ops)))
        width = new
    return Arch(
        "n",
        draw(st.sampled_from([4, 8])),
        first,
        16,
        tuple(stages),
        stem_stride=draw(st.sampled_from([1, 2])),
    )


@pytest.mark.parametrize(
    ("key", "text"),
    [
        (STEM, "stem in=3x224x224 out=32 stride=2"),
        (BLOCK, "k3e6 in=24x56x56 out=40 stride=2"),
        (OpKey("k5e3", 24, 24, 56, 1, True), "k5e3 in=24x56x56 out=24 stride=1 shortcut"),
        (OpKey("u3-5e4s", 24, 40, 56, 2), "u3-5e4s in=24x56x56 out=40 stride=2"),
        (OpKey("last", 320, 1280, 7), "last in=320x7x7 out=1280"),
        (OpKey("classifier", 1280, 1000, 7), "classifier in=1280x7x7 out=1000"),
    ],
)
def test_text(key: OpKey, text: str) -> None:
    assert str(key) == text
    assert OpKey.parse(text) == key


@given(keys())
def test_every_key_survives_its_text(key: OpKey) -> None:
    assert OpKey.parse(str(key)) == key


def test_one_operation_has_one_key() -> None:
    assert OpKey.parse("k3e6.0 in=24x56x56 out=40 stride=2") == BLOCK
    assert str(OpKey.parse("k03e06.00 in=024x56x56 out=40 stride=2")) == str(BLOCK)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no key of a latency table, such as 'k3e6 in="),
        ("k3e6", "is no key"),
        ("k3e6 in=24x56x56 out=40", "'k3e6' takes a stride="),
        ("last in=320x7x7 out=1280 stride=1", "'last' takes no stride="),
        ("k3e6 in=24x56x56 out=40 stride=3", "is no key"),
        ("k3e6 in=24x56x56 out=40 stride=2 ", "is no key"),
        ("k3e6 in=24x56x56 out=40 stride=2\n", "is no key"),
        ("k3e6  in=24x56x56 out=40 stride=2", "is no key"),
        ("k3e6 in=24x56x55 out=40 stride=2", "the input must be square"),
        ("k3e6 in=0x56x56 out=40 stride=2", "must be from 1 to"),
        ("k3e6 in=24x56x56 out=0 stride=2", "must be from 1 to"),
        ("k3e6 in=99999999x56x56 out=40 stride=2", "must be from 1 to"),
        ("k3e6 in=24x56x56 out=99999999 stride=2", "must be from 1 to"),
        ("k3e6 in=²4x56x56 out=40 stride=2", "is no key"),
        ("k3e6 in=24x56x56 out=24 stride=2 shortcut", "a shortcut needs"),
        ("k3e6 in=24x56x56 out=40 stride=1 shortcut", "a shortcut needs"),
        ("stem in=3x56x56 out=3 stride=1 shortcut", "a shortcut needs"),
        ("k4e6 in=24x56x56 out=40 stride=2", "the kernel size must be odd"),
        ("k3e0 in=24x56x56 out=40 stride=2", "must be at least 1"),
        ("k3e6! in=24x56x56 out=40 stride=2", "'k3e6!' is no operation such as"),
        ("n4 in=24x56x56 out=24 stride=2", "n4 exists at stride 1 alone"),
        ("- in=24x56x56 out=24 stride=1", "'-' is no operation such as"),
        ("conv-input in=24x56x56 out=24 stride=1", "is no operation"),
        (7, "7 is no key"),
        ("x" * 10_000, "is no key"),
    ],
)
def test_nonsense_is_no_key(text: Any, message: str) -> None:
    with pytest.raises(LatencyError) as caught:
        OpKey.parse(text)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 300


@given(st.text())
def test_any_text_is_a_key_or_one_error(text: str) -> None:
    try:
        key = OpKey.parse(text)
    except LatencyError:
        return
    assert OpKey.parse(str(key)) == key


def test_parts_of_a_key() -> None:
    assert [(k.kind, k.kernel, k.expand, k.out_size) for k in arch_keys(W025_R112)[:3]] == [
        ("stem", 0, 0, 56), ("mbconv", 3, 1, 56), ("mbconv", 5, 3, 28),
    ]  # fmt: skip
    assert OpKey("k3e2.5", 8, 8, 7, 2).expand == 2.5
    assert OpKey("k3e2.5", 8, 8, 7, 2).out_size == 4
    assert OpKey("classifier", 8, 8, 7).out_size == 1
    assert OpKey("mine", 8, 8, 7).kind == "custom"


def test_keys_of_the_cpu_model() -> None:
    found = [str(key) for key in arch_keys(CPU)]
    assert len(found) == 1 + 20 + 2  # two of its 22 blocks are skipped
    assert found[:4] == [
        "stem in=3x224x224 out=40 stride=2",
        "k3e1 in=40x112x112 out=24 stride=1",
        "k3e6 in=24x112x112 out=32 stride=2",
        "k3e3 in=32x56x56 out=32 stride=1 shortcut",
    ]
    assert found[-2:] == ["last in=360x7x7 out=1432", "classifier in=1432x7x7 out=1000"]


def test_input_and_classes_can_be_given() -> None:
    demo = arch_keys(CIFAR10_DEMO)
    assert str(demo[0]) == "stem in=3x32x32 out=16 stride=1"
    assert str(demo[-1]) == "classifier in=640x8x8 out=10"
    other = arch_keys(CIFAR10_DEMO, resolution=29, num_classes=7, in_channels=1)
    assert str(other[0]) == "stem in=1x29x29 out=16 stride=1"
    assert str(other[-1]) == "classifier in=640x8x8 out=7"
    assert arch_keys(MOBILE) == arch_keys(MOBILE, resolution=224)


@pytest.mark.parametrize(
    "bad",
    [
        {"resolution": 0},
        {"resolution": True},
        {"num_classes": 0},
        {"in_channels": 1.5},
        {"resolution": 10**6},
    ],
)
def test_impossible_inputs(bad: dict[str, Any]) -> None:
    with pytest.raises(LatencyError, match=f"{next(iter(bad))} must be a whole number from 1 to"):
        arch_keys(CIFAR10_DEMO, **bad)


def test_a_tree_has_no_keys() -> None:
    with pytest.raises(LatencyError, match=r"a TreeArch is not made of MBConv blocks.*measure it as a whole"):
        arch_keys(CIFAR)  # type: ignore[arg-type]


@settings(max_examples=25)
@given(models(), st.integers(5, 40))
def test_keys_are_what_really_runs(arch: Arch, size: int) -> None:
    """Shapes of every layer's input and output in a real model, its parameters and multiply-accumulates."""
    model = create_model(arch).eval()
    seen: list[tuple[Any, ...]] = []

    def note(module: nn.Module, given: tuple[torch.Tensor], out: torch.Tensor) -> None:
        seen.append((*given[0].shape[1:], out.shape[1], out.shape[-1]))

    layers = [model.first_conv, *model.blocks, model.feature_mix_layer]  # type: ignore[union-attr]
    for layer in layers:
        if getattr(layer, "mobile_inverted_conv", layer) is not None:
            layer.register_forward_hook(note)
    with torch.inference_mode():
        model(torch.zeros(1, 3, size, size))
    found = arch_keys(arch, resolution=size)
    assert [(k.in_channels, k.size, k.size, k.out_channels, k.out_size) for k in found[:-1]] == seen
    assert found[-1] == OpKey("classifier", 16, 1000, seen[-1][-1])
    counted = profile(model, size)
    assert sum(key_macs(k) or 0 for k in found) == counted.macs
    assert sum((key_bytes(k, 1) or (0, 0))[0] for k in found) == counted.params


@pytest.mark.parametrize("arch", CHAINS, ids=lambda arch: arch.name)
def test_work_and_weights_of_the_published_models(arch: Arch) -> None:
    found = arch_keys(arch)
    counted = profile(create_model(arch), arch.resolution or 224)
    assert sum(key_macs(k) or 0 for k in found) == counted.macs
    assert sum((key_bytes(k) or (0, 0))[0] for k in found) == 4 * counted.params


def test_the_published_space_has_its_known_keys() -> None:
    found = space_keys(SPACES["imagenet"])
    assert len(found) == len(set(found)) == 70
    assert [k.kind for k in found] == ["stem", *["mbconv"] * 67, "last", "classifier"]
    assert [str(k) for k in found[:2]] == [
        "stem in=3x224x224 out=32 stride=2",
        "k3e1 in=32x112x112 out=16 stride=1",
    ]
    assert len(space_keys(SPACES["small"])) == 4 + 6 * 8
    assert len(space_keys(SPACES["tiny"])) == 4 + 6 * 4


def test_keys_of_the_published_phone_table(shared_data: Any) -> None:
    """The authors' table holds exactly the space's keys, and two first blocks nobody can choose."""
    text = (shared_data / "official_configs" / "pixel1_mobile_trim.yaml").read_text()
    mb = re.findall(
        r"^expanded_conv-input:(\d+)x\1x(\d+)-output:\d+x\d+x(\d+)-expand:(\d)-kernel:(\d)-stride:(\d)-idskip:(\d):",
        text,
        re.MULTILINE,
    )
    theirs = {OpKey(f"k{k}e{e}", int(i), int(o), int(s), int(t), z == "1") for s, i, o, e, k, t, z in mb}
    ours = {k for k in space_keys(SPACES["imagenet"]) if k.kind == "mbconv"}
    assert len(theirs) == len(mb) == 69
    assert ours < theirs
    assert {str(k) for k in theirs - ours} == {
        "k5e1 in=32x112x112 out=16 stride=1",
        "k7e1 in=32x112x112 out=16 stride=1",
    }


@pytest.mark.parametrize("zero", [True, False])
@pytest.mark.parametrize("first", [0, 8])
def test_space_keys_are_those_of_all_its_models(zero: bool, first: int) -> None:
    space = SearchSpace(
        "s", 8, first, 16, (SpaceStage(8, 1, 2), SpaceStage(12, 2, 1)), ("k3e1", "k5e2"), zero, 17, 5, 1
    )
    every = itertools.product(*(range(len(p.candidate_ops)) for p in space.search_blocks))
    used = {key for choices in every for key in arch_keys(space.arch(choices))}
    assert set(space_keys(space)) == used
    assert len(space_keys(space)) == len(used)


def test_random_models_are_covered() -> None:
    rng = random.Random(0)
    for space in (space for space in SPACES.values() if isinstance(space, SearchSpace)):
        known = set(space_keys(space))
        for _ in range(50):
            assert set(arch_keys(space.arch(space.random_choices(rng)))) <= known


def test_nearest_key() -> None:
    known = space_keys(SPACES["imagenet"])
    for key in known:
        assert nearest_key(key, known) == key
    near = {
        "stem in=3x192x192 out=32 stride=2": "stem in=3x224x224 out=32 stride=2",
        "classifier in=1280x7x7 out=10": "classifier in=1280x7x7 out=1000",
        "k3e6 in=16x112x112 out=32 stride=2": "k3e6 in=16x112x112 out=24 stride=2",
        "k5e6 in=84x14x14 out=84 stride=1 shortcut": "k5e6 in=80x14x14 out=80 stride=1 shortcut",
        "k9e6 in=80x14x14 out=80 stride=1 shortcut": "k7e6 in=80x14x14 out=80 stride=1 shortcut",
        "mine in=80x14x14 out=80 stride=1 shortcut": "k3e3 in=80x14x14 out=80 stride=1 shortcut",
    }
    for text, nearest in near.items():
        assert str(nearest_key(OpKey.parse(text), known)) == nearest
    assert nearest_key(BLOCK, []) is None
    assert nearest_key(BLOCK, iter([STEM])) == STEM, "another kind is better than nothing"
    own = [OpKey.parse(f"{op} in=80x14x14 out=80 stride=1") for op in ("other", "k3e3")]
    assert nearest_key(OpKey("mine", 80, 80, 14), own) == own[0]


@pytest.mark.parametrize(
    ("key", "farther", "nearer"),
    [
        ("k3e6 in=80x14x14 out=80 stride=1", "mine in=80x14x14 out=80 stride=1",
         "k3e6 in=8x224x224 out=8 stride=1"),
        ("mine in=320x7x7 out=1280 stride=1", "last in=320x7x7 out=1280", "k3e6 in=8x224x224 out=8 stride=1"),
        ("k3e6 in=80x15x15 out=80 stride=1 shortcut", "k3e6 in=80x14x14 out=80 stride=1",
         "k3e6 in=80x14x14 out=80 stride=1 shortcut"),
    ],
)  # fmt: skip
def test_a_key_of_the_same_kind_is_nearer(key: str, farther: str, nearer: str) -> None:
    assert str(nearest_key(OpKey.parse(key), [OpKey.parse(farther), OpKey.parse(nearer)])) == nearer


def test_bytes_by_hand() -> None:
    # 1x1 8 -> 16, depthwise 3x3 with stride 2, 1x1 16 -> 12; maps of 4x4, then 2x2
    key = OpKey("k3e2", 8, 12, 4, 2)
    weights = 8 * 16 + 2 * 16 + 9 * 16 + 2 * 16 + 16 * 12 + 2 * 12
    activations = (8 + 16) * 16 + 16 * 16 + 16 * 4 + (16 + 12) * 4
    assert key_bytes(key, 1) == (weights, activations)
    assert key_bytes(key) == (4 * weights, 4 * activations)
    assert key_macs(key) == 8 * 16 * 16 + 9 * 16 * 4 + 16 * 12 * 4
    assert key_bytes(OpKey("k3e1", 8, 8, 4, 1, True), 1) == (9 * 8 + 16 + 64 + 16, (8 + 8 + 8 + 8 + 8) * 16)
    assert key_bytes(OpKey("classifier", 8, 3, 4), 1) == (9 * 3, 8 * 16 + 8 + 8 + 3)


def test_single_channel_layers_are_not_taken_for_depthwise_ones() -> None:
    assert key_bytes(OpKey("k1e2", 1, 1, 2), 1) == (2 + 4 + 2 + 4 + 2 + 2, (1 + 2 + 2 + 2 + 2 + 1) * 4)
    assert key_bytes(OpKey("stem", 1, 8, 4, 2), 1) == (9 * 8 + 16, 16 + 8 * 4)


def _build(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1)


def test_registered_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxylessnas.arch.ops._custom_ops", {})
    register_op("mine", _build)
    register_op("last", _build)
    space = SPACES["tiny"].replace(candidates=("k3e2", "mine"))
    found = space_keys(space)
    custom = OpKey("mine", 16, 16, 16, 1, True)
    assert custom in found
    assert (custom.kind, key_macs(custom), key_bytes(custom)) == ("custom", None, None)
    assert custom.block.kind == "custom"
    confusing = space.replace(candidates=("last",))
    for make in (lambda: space_keys(confusing), lambda: arch_keys(confusing.arch([0] * 6))):
        with pytest.raises(
            LatencyError, match="the registered operation 'last' has the name of a fixed layer"
        ):
            make()
    monkeypatch.setattr("proxylessnas.arch.ops._custom_ops", {})
    assert OpKey.parse(str(custom)) == custom, "a table from elsewhere can hold it"
    with pytest.raises(
        LatencyError, match="mine in=16x16x16 out=16 stride=1 shortcut: unknown operation 'mine'"
    ):
        _ = custom.block


@pytest.mark.parametrize("arch", CHAINS, ids=lambda arch: arch.name)
def test_blocks_of_keys_are_those_of_the_model(arch: Arch) -> None:
    blocks = [block for block in arch.blocks if block.kind != "zero"]
    for key, block in zip(arch_keys(arch)[1:-2], blocks, strict=True):
        made = key.block
        for what in (
            "kind",
            "op",
            "layers",
            "kernel",
            "in_channels",
            "out_channels",
            "stride",
            "shortcut",
            "mid_channels",
        ):
            assert getattr(made, what) == getattr(block, what)
        again = Arch("one", key.in_channels, 0, 8, (Stage(key.out_channels, key.stride, made.token),))
        assert again.blocks[0] == made
    with pytest.raises(LatencyError, match=r"stem in=.* is no block"):
        _ = STEM.block
