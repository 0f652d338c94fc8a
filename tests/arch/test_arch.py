"""The architecture as data: tables, text, official JSON."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxylessnas import Arch, ArchError, Stage, TreeArch, UnknownModelError, register_op
from proxylessnas.arch.blocks import Block
from proxylessnas.arch.ops.mbconv import MBConv
from proxylessnas.arch.published import CIFAR, MOBILE, MODEL_NAMES, PUBLISHED, W025_R112, normalise_name

OFFICIAL = {
    "proxyless_gpu": "official_configs/proxyless_gpu.config",
    "proxyless_cpu": "official_configs/proxyless_cpu.config",
    "proxyless_mobile": "official_configs/proxyless_mobile.config",
    "proxyless_mobile_14": "official_configs/proxyless_mobile_14.config",
    "proxyless_cifar": "official_configs/proxyless_cifar.config",
    "proxyless_w025_r112": "weights/proxyless-w0.25-r112_imagenet.json",
    "proxyless_w03_r176": "weights/proxyless-w0.3-r176_imagenet.json",
}

# Digests of the seven official files, as sorted compact JSON: the exact check where the files themselves are
# absent.
OFFICIAL_SHA256: dict[str, str] = json.loads("""{
  "proxyless_gpu": "342d8ea88ad0386aeefced99bba724e951d194812dee65092971dd3dde17bb18",
  "proxyless_cpu": "6405de410a95ab42ddc0548683e966dbdb1512b259dd7edbdd81094d40b7a7cf",
  "proxyless_mobile": "55b4e8729dac4a77a68b1107780cecf5c7dbfe7d55ae33fd7d5c0e5f8ac7817e",
  "proxyless_mobile_14": "f311814c83a6a095eae9b622c351d505e661571bd907d36c43f25f43915d4b23",
  "proxyless_cifar": "906b9d74fba0989996fa926bee4fa69044d2805817773bc3629acb9f0854015a",
  "proxyless_w025_r112": "5ead845353049f2eb52f0e960d815bf077e64e5d8989f6226b6184c8ae544cb5",
  "proxyless_w03_r176": "1bef4ce0ca892e8bb955256dc612e1aeaf82c66914f1a1cb55ccfeaf11233dd6"
}""")


def canonical(description: dict) -> str:
    return hashlib.sha256(json.dumps(description, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@pytest.mark.parametrize("name", OFFICIAL)
def test_table_regenerates_the_official_description(name):
    assert canonical(PUBLISHED[name].to_official()) == OFFICIAL_SHA256[name]


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_file_round_trip(name, shared_data):
    path = shared_data / OFFICIAL[name]
    description = json.loads(path.read_text())
    before = copy.deepcopy(description)
    arch = Arch.from_official(description)
    assert description == before, "reading must not change its input"
    assert arch.to_official() == description
    assert Arch.from_official(path) == arch.__class__(**{**vars(arch), "name": path.stem})
    assert PUBLISHED[name] == arch.__class__(**{**vars(arch), "name": name})


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_text_and_official_round_trips_without_the_files(name):
    arch = PUBLISHED[name]
    assert Arch.parse(str(arch)) == arch
    assert Arch.from_official(arch.to_official()).to_official() == arch.to_official()
    assert str(Arch.parse(str(arch))) == str(arch)


def test_text_is_the_python_expression():
    assert eval(str(MOBILE), {"Arch": Arch, "Stage": Stage}) == MOBILE  # noqa: S307
    assert eval(str(CIFAR), {"TreeArch": TreeArch}) == CIFAR  # noqa: S307


def test_blocks_of_the_mobile_model():
    blocks = MOBILE.blocks
    assert len(blocks) == 22
    assert blocks[0] == Block(MBConv(3, 1), "k3e1!", -1, 32, 16, 1, False)
    assert blocks[1] == Block(MBConv(5, 3), "k5e3", 0, 16, 32, 2, False)
    assert [b.kind for b in blocks].count("zero") == 2
    assert blocks[21].mid_channels == 192 * 6
    assert all(b.shortcut == (b.stride == 1 and b.in_channels == b.out_channels) for b in blocks)


def test_tiny_model_has_a_block_without_the_shortcut_its_shape_would_allow():
    block = W025_R112.blocks[13]
    assert (block.in_channels, block.out_channels, block.stride, block.shortcut) == (24, 24, 1, False)


def test_cifar_words_and_widths():
    assert hashlib.sha256(" ".join(CIFAR.words).encode()).hexdigest() == (
        "8fae0d859ea3cc3b7d4970240b3c5fd325d35e0b700f9837f03157783306c1dc"
    )
    assert Counter("".join(CIFAR.words)) == {"7": 116, "i": 96, "d": 90, "m": 89, "a": 89, "5": 85, "3": 83}
    assert CIFAR.cell_widths[:7] == (18, 18, 20, 22, 24, 24, 26)
    assert CIFAR.final_width == 400


@pytest.mark.parametrize(
    ("text", "line", "column", "says"),
    [
        ('Arch("x", stem=8, first=8, last=8, stages=(Stage(8, 2, "k5e3 k9x3"),))', 1, 62, "k9x3"),
        ('Arch("x", stem=8, first=8, last=8,\n  stages=(Stage(8, 2, "k4e3"),))', 2, 24, "odd"),
        ('Arch("x", stem=8, first=8, last=8, stages=(Stage(8, 3, "k5e3"),))', 1, 44, "stride"),
        ('Arch("x", stem=8, first=8, last=8, stages=(Stage(8, 2, ""),))', 1, 44, "at least one block"),
        ('Arch("x", stem=8, first=8, last=8, stages=(Stage(9, 1, "-"),))', 1, 1, "skipped block"),
        ('Arch("x", stem=8, first=8, stages=())', 1, 1, "lacks last"),
        ('Arch("x", stem=8, stem=8)', 1, 19, "given twice"),
        ('Arch("x", width=8)', 1, 11, "no field 'width'"),
        ("Arch(stem=8, 'x')", 1, 14, "positional"),
        ("Net()", 1, 1, "expected Arch or TreeArch"),
        ("", 1, 1, "the end"),
        ("Arch('x'", 1, 9, "expected ')'"),
        ("Arch('x', stem=$)", 1, 16, "unexpected '$)'"),
        ('TreeArch("t", cells="aiaa3im7dide", num_stages=1)', 1, 22, "'e'"),
        ('TreeArch("t", cells="aiaa", num_stages=1)', 1, 22, "4 letters"),
        (f"{MOBILE}\nArch()", 9, 1, "after the architecture"),
    ],
)
def test_a_bad_text_is_placed(text, line, column, says):
    with pytest.raises(ArchError, match=re.escape(says)) as caught:
        Arch.parse(text)
    assert (caught.value.line, caught.value.column) == (line, column)
    assert str(caught.value).startswith(f"line {line}, column {column}: ")


def _change(description: dict, path: str, value: object) -> dict:
    description = copy.deepcopy(description)
    at = description
    *steps, last = [int(s) if s.isdigit() else s for s in path.split(".")]
    for step in steps:
        at = at[step]
    if value is KeyError:
        del at[last]
    else:
        at[last] = value
    return description


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("name", "ResNet", "expected ProxylessNASNets or PyramidTreeNet"),
        ("blocks", KeyError, "'blocks' is missing"),
        ("blocks", [], "expected a list of blocks"),
        ("extra", 1, 'unknown key "extra"'),
        ("bn.ws_eps", 1e-5, "ws_eps"),
        ("bn.eps", -1, "bn_eps"),
        ("first_conv.kernel_size", 5, "first_conv: kernel_size is 5"),
        ("first_conv.act_func", "h_swish", "first_conv: act_func"),
        ("first_conv.bias", 0, "first_conv: bias is 0"),
        ("feature_mix_layer.in_channels", 321, "320 channels arrive"),
        ("classifier.in_features", 1, "1280 features arrive"),
        ("classifier.out_features", "many", "num_classes"),
        ("blocks.1.mobile_inverted_conv.use_se", True, "blocks[1].mobile_inverted_conv: use_se is true"),
        ("blocks.1.mobile_inverted_conv.in_channels", 17, "16 channels arrive"),
        ("blocks.1.mobile_inverted_conv.kernel_size", 4, "odd"),
        ("blocks.1.mobile_inverted_conv.expand_ratio", 0.5, "expand_ratio"),
        ("blocks.1.mobile_inverted_conv.name", "Swin", '"Swin" is not a known layer'),
        ("blocks.3.mobile_inverted_conv.stride", 2, "ZeroLayer has stride 1"),
        (
            "blocks.1.shortcut",
            {"name": "IdentityLayer", "in_channels": 16, "out_channels": 16},
            "cannot join",
        ),
        ("blocks.2.shortcut.in_channels", 31, "cannot join"),
        ("resolution", "large", "resolution"),
    ],
)
def test_a_bad_official_description_is_placed(path, value, says):
    with pytest.raises(ArchError, match=re.escape(says)):
        Arch.from_official(_change(MOBILE.to_official(), path, value))


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (
            "blocks.3.cell.child_nodes.0.child_nodes.1.edges.0.kernel_size",
            9,
            "no operation of the tree space",
        ),
        ("blocks.3.cell.child_nodes.0.child_nodes.1.edges.0", KeyError, "child_nodes[1].edges: 1 is missing"),
        ("blocks.3.cell.child_nodes.0.split_type", "copy", "split_type"),
        ("blocks.3.cell_drop_rate", 0.2, "cell_drop_rate"),
        ("blocks.3.out_bottle.out_channels", 81, "out_channels"),
        ("blocks.0.layers.0.out_channels", None, "stem out_channels"),
        ("cell_drop_rate", 0.3, "drop rates are set when a model is built"),
        ("classifier.in_features", 399, "in_features"),
    ],
)
def test_a_bad_tree_description_is_placed(path, value, says):
    with pytest.raises(ArchError, match=re.escape(says)):
        Arch.from_official(_change(CIFAR.to_official(), path, value))


def test_an_official_block_may_have_any_kernel_ratio_and_first_block():
    arch = Arch(
        "x",
        stem=8,
        first=0,
        last=16,
        stages=(Stage(8, 1, "k5e1! k9e2.5 -! -"), Stage(8, 2, "k3e4 -")),
        stem_stride=1,
    )
    again = Arch.from_official(arch.to_official())
    assert again.to_official() == arch.to_official()
    assert [b.token for b in again.blocks] == [b.token for b in arch.blocks]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[1, 2]", b"[" * 100_000, b'{"name": NaN}'])
def test_a_file_that_is_no_description(tmp_path, content):
    path = tmp_path / "net.config"
    path.write_bytes(content)
    with pytest.raises(ArchError, match=r"net\.config"):
        Arch.from_official(path)
    with pytest.raises(ArchError, match="No such file"):
        Arch.from_official(tmp_path / "absent.json")


# --- any input gives a value or an ArchError
# -------------------------------------------------------------------------

_TEXT_PARTS = st.sampled_from(
    [
        "Arch",
        "TreeArch",
        "Stage",
        "(",
        ")",
        ",",
        "=",
        "[",
        "]",
        '"k3e6"',
        '"k3e6 -"',
        "'x'",
        "stem",
        "first",
        "last",
        "stages",
        "cells",
        "name",
        "num_classes",
        "0",
        "1",
        "2",
        "8",
        "-3",
        "1e-3",
        "1e999",
        "None",
        " ",
        "\n",
        "#",
        "\\",
        "'",
        '"',
        "\x00",
        "é",
        "_" * 70,
        "9" * 40,
        "official_keys",
        "resolution",
    ]
)


@given(st.lists(_TEXT_PARTS, max_size=40).map("".join) | st.text())
def test_parse_any_text(text):
    try:
        Arch.parse(text)
    except ArchError as e:
        assert e.line is None or (e.line >= 1 and e.column >= 1)  # noqa: PT017


_MUTANTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=8,
)


@given(_MUTANTS)
def test_from_official_any_json(value):
    with pytest.raises(ArchError):
        Arch.from_official(value if isinstance(value, dict) else {"name": value})


def _paths(value: object, prefix: tuple = ()) -> list[tuple]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [prefix, *(p for key, inner in items for p in _paths(inner, (*prefix, key)))]


_SMALL_TREE = TreeArch("t", "aiaa3im7didd 7i3a5a3d3ad5", num_stages=2)
_SOURCES = [(source.to_official(), _paths(source.to_official())) for source in (MOBILE, _SMALL_TREE)]


@given(st.data())
def test_from_official_with_anything_in_any_place(data):
    description, paths = data.draw(st.sampled_from(_SOURCES))
    path = data.draw(st.sampled_from([p for p in paths if p]))
    description = copy.deepcopy(description)
    at = description
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = data.draw(_MUTANTS)
    try:
        arch = Arch.from_official(description)
    except ArchError:
        return
    Arch.from_official(arch.to_official())


_TOKENS = st.builds(
    "k{}e{}{}".format,
    st.sampled_from([1, 3, 5, 7, 9]),
    st.sampled_from([1, 2, 3, 6, 2.5]),
    st.sampled_from(["", "!"]),
)


@st.composite
def _archs(draw):
    stages = []
    for _ in range(draw(st.integers(1, 4))):
        tokens = [draw(_TOKENS), *draw(st.lists(_TOKENS | st.sampled_from(["-", "-!"]), max_size=4))]
        stages.append(Stage(draw(st.integers(1, 64)), draw(st.sampled_from([1, 2])), " ".join(tokens)))
    return Arch(
        draw(st.text(st.characters(categories=["L", "N", "P", "S"]), max_size=12)),
        stem=draw(st.integers(1, 64)),
        first=draw(st.integers(0, 64)),
        last=draw(st.integers(1, 64)),
        stages=tuple(stages),
        num_classes=draw(st.integers(1, 2000)),
        in_channels=draw(st.integers(1, 4)),
        stem_stride=draw(st.sampled_from([1, 2])),
        bn_eps=draw(st.floats(1e-6, 0.1)),
        dropout=draw(st.floats(0, 1)),
        resolution=draw(st.none() | st.integers(8, 512)),
    )


@given(_archs())
def test_any_architecture_survives_text_and_json(arch):
    assert Arch.parse(str(arch)) == arch
    description = json.loads(json.dumps(arch.to_official()))
    again = Arch.from_official(description)
    assert again.to_official() == description
    assert [(b.token.rstrip("!"), b.shortcut) for b in again.blocks] == [
        (b.token.rstrip("!"), b.shortcut) for b in arch.blocks
    ]


# --- names and registered operations
# ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_name", "name"),
    [
        ("proxyless_mobile14", "proxyless_mobile_14"),
        ("Proxyless-Mobile-14", "proxyless_mobile_14"),
        ("proxyless-w0.25-r112", "proxyless_w025_r112"),
        ("cpu", "proxyless_cpu"),
        ("PROXYLESS GPU", "proxyless_gpu"),
    ],
)
def test_names_are_normalised(given_name, name):
    assert normalise_name(given_name) == name


@pytest.mark.parametrize(
    ("name", "says"), [("proxyles_cpu", "proxyless_cpu"), ("resnet50", "known are"), ("", "known are")]
)
def test_an_unknown_name_is_answered_with_near_ones(name, says):
    with pytest.raises(UnknownModelError, match=says):
        normalise_name(name)


@pytest.mark.parametrize("number", [10**5000, 1e308, -1, True, "8", None], ids=range(6))
def test_numbers_out_of_bounds_give_short_messages(number):
    for build in (lambda: Stage(number, 1, "k3e1"), lambda: Arch.from_official({"name": number})):
        with pytest.raises(ArchError) as caught:
            build()
        assert len(str(caught.value)) < 300
    with pytest.raises(ArchError) as caught:
        Arch.parse("Arch" + "x" * 900_000)
    assert len(str(caught.value)) < 300


def test_an_expansion_ratio_that_has_no_token_is_refused():
    for ratio in (1.0000001, 2.12345):
        with pytest.raises(ArchError, match="more than three decimals"):
            Arch.from_official(
                _change(MOBILE.to_official(), "blocks.1.mobile_inverted_conv.expand_ratio", ratio)
            )
    with pytest.raises(ArchError, match="dropout"):
        Arch.from_official(_change(MOBILE.to_official(), "classifier.dropout_rate", ""))


def test_register_op_refuses_what_it_must():
    for token, build in ((3, str), ("fine", None), ("ZeroLayer", str)):
        with pytest.raises(ArchError, match="cannot register"):
            register_op(token, build)
    with pytest.raises(ArchError, match="identifier"):
        register_op("k3e6", lambda i, o, s: None)
    with pytest.raises(ArchError, match="identifier"):
        register_op("a b", lambda i, o, s: None)
    with pytest.raises(ArchError, match="unknown operation 'ghost'"):
        Stage(8, 1, "ghost")


def test_what_follows_an_error_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    from proxylessnas.arch import text as arch_text

    class Counting:
        calls = 0

        def match(self, text: str, offset: int) -> object:
            Counting.calls += 1
            return token.match(text, offset)

    token = arch_text._TOKEN
    monkeypatch.setattr(arch_text, "_TOKEN", Counting())
    for text in ("(" * 900_000, "Arch(" * 150_000, 'Arch("x", stages=((' + "[" * 500_000):
        with pytest.raises(ArchError, match="line 1"):
            Arch.parse(text)
    assert Counting.calls < 50
