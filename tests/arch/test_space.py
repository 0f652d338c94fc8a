"""Search spaces as data: the built-in ones, picks and models, files, and what is refused."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math
import pickle
import random
import tempfile
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from packaging_tools import run_uninstalled
from torch import nn

from proxylessnas import Arch, ArchError, Stage, create_model, profile, register_op
from proxylessnas.arch.ops import ZERO, op_name
from proxylessnas.arch.published import CIFAR, CIFAR10_DEMO, CPU, GPU, MOBILE
from proxylessnas.arch.space import SearchSpace, SpaceStage, make_divisible
from proxylessnas.arch.space_base import Space
from proxylessnas.arch.spaces import SPACES, read_space

IMAGENET, SMALL, TINY = SPACES["imagenet"], SPACES["small"], SPACES["tiny"]
DIGESTS = {
    "cifar-tree": "08e353778658124ba6e99388bfc17dbf86ff3dfef26f91fe5f35a1209ec721b7",
    "cifar-tree-small": "a667f6eed33c680751d3ea6b34e03c0775fafa9f08a64c494f224d756554d5f7",
    "cpu26": "2d43fd7abf028b280a1385f169887fe680fa47642a64749de12a9be89e8442e8",
    "cpu26-small": "671712aa4d253ea5334ec0274d4c485829da68b46e08c72ab574583d14f5ddb2",
    "imagenet": "9a787a0f9aa1a09c31faf476cd9424efc1271592fbb76e93d8f8c364c722dfc0",
    "small": "4bd0984e03af327f4a0b7a379c5b198646cc3680b18ab43cbf6136bbfcba2aad",
    "tiny": "4bfc6441c553dbd28e368c1a085ddcf04db5dfa5715fe828c0a4ede385728ee5",
}


def everything(space: SearchSpace, op: str) -> Arch:
    return space.arch([space.candidate_ops.index(op)] * len(space.search_blocks))


@st.composite
def spaces(draw: st.DrawFn) -> SearchSpace:
    stages = draw(
        st.lists(
            st.builds(SpaceStage, st.integers(1, 40), st.sampled_from([1, 1, 2]), st.integers(1, 3)),
            min_size=1,
            max_size=4,
        )
    )
    tokens = ["n2", "k3e1", "k3e2", "k5e3", "k7e6", "k3e2.5", "k1e4", "u3-5e2", "c5e4", "n4s"]
    chosen = st.lists(st.sampled_from(tokens), min_size=1, unique=True)
    return SearchSpace(
        draw(st.text("abc é\"\\'#=[]@", min_size=1, max_size=8).filter(str.strip)),
        stem=draw(st.integers(1, 32)),
        first=draw(st.sampled_from([0, 8, 13])),
        last=draw(st.integers(1, 64)),
        stages=tuple(stages),
        candidates=tuple(draw(chosen.filter(lambda found: any(token[0] != "n" for token in found)))),
        zero=draw(st.booleans()),
        resolution=draw(st.integers(40, 70)),
        num_classes=draw(st.integers(1, 20)),
        in_channels=draw(st.sampled_from([1, 3])),
        stem_stride=draw(st.sampled_from([1, 2])),
        bn_eps=draw(st.sampled_from([1e-3, 1e-5, 1e-12, 1])),
        bn_momentum=draw(st.sampled_from([0, 0.1, 1.0])),
    )


def test_the_published_space() -> None:
    assert IMAGENET.count == 6**6 * 7**15 == 221_502_229_807_900_608
    assert IMAGENET.candidate_ops == ("k3e3", "k3e6", "k5e3", "k5e6", "k7e3", "k7e6", "-")
    sizes = [p.in_size for p in IMAGENET.search_blocks]
    assert sizes == [112, 56, 56, 56, 56, *[28] * 4, *[14] * 8, *[7] * 4]
    assert sum(map(sum, IMAGENET.mask)) == 141  # architecture parameters of the original supernet
    skippable = [ZERO in p.candidate_ops for p in IMAGENET.search_blocks]
    assert skippable == [p.shortcut for p in IMAGENET.search_blocks]
    assert [i for i, can in enumerate(skippable) if not can] == [0, 4, 8, 12, 16, 20]
    assert [row[-1] for row in IMAGENET.mask] == skippable
    assert all(all(row[:-1]) for row in IMAGENET.mask)
    assert IMAGENET.search_blocks[12] == dataclasses.replace(
        IMAGENET.search_blocks[12], index=12, stage=3, block=0, in_channels=80, out_channels=96, in_size=14,
        stride=1, shortcut=False, candidate_ops=("k3e3", "k3e6", "k5e3", "k5e6", "k7e3", "k7e6"),
    )  # fmt: skip
    assert IMAGENET.search_blocks[8].out_size == 14


@pytest.mark.parametrize(
    ("op", "params", "macs"), [("k3e3", 3.192, 257.4), ("k3e6", 4.685, 472.6), ("k7e6", 5.103, 606.6)]
)
def test_the_published_space_has_its_known_bounds(op: str, params: float, macs: float) -> None:
    size = profile(create_model(everything(IMAGENET, op)), 224)
    assert round(size.params / 1e6, 3) == params
    assert round(size.macs / 1e6, 1) == macs


def test_its_shallowest_model() -> None:
    arch = IMAGENET.arch([len(p.candidate_ops) - 1 if p.shortcut else 0 for p in IMAGENET.search_blocks])
    size = profile(create_model(arch), 224)
    assert (round(size.params / 1e6, 3), round(size.macs / 1e6, 1)) == (2.155, 102.5)


@pytest.mark.parametrize(("model", "factor"), [(CPU, "1.12"), (GPU, "1.35")])
def test_published_models_are_in_the_space_at_their_width(model: Arch, factor: str) -> None:
    space = read_space(f"imagenet@{factor}")
    assert space.name == f"imagenet@{factor}"
    again = space.arch(space.choices(model), model.name)
    assert dataclasses.replace(again, resolution=None) == model


def test_choices_are_those_of_the_compact_form() -> None:
    space = read_space("imagenet@1.12")
    assert "".join(map(str, space.choices(CPU))) == "100010021660300032203"


def test_the_small_space_holds_the_demo_model() -> None:
    choices = SMALL.choices(CIFAR10_DEMO)
    assert choices == (0, 8, 1, 1, 1, 1, 3, 3, 3, 3, 3)
    model = SMALL.arch(choices, "again")
    assert model.stages[0].ops == "k3e2 -"
    sizes = [profile(create_model(a), 32) for a in (model, CIFAR10_DEMO)]
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("space", SPACES.values(), ids=list(SPACES))
def test_built_in_spaces_make_models_that_run(space: Space) -> None:
    arch = space.arch(space.random_choices(random.Random(1)), "one")
    assert arch.name == "one"
    assert (arch.resolution, arch.num_classes) == (space.resolution, space.num_classes)
    model = create_model(arch).eval()
    if space.resolution < 100:
        with torch.inference_mode():
            out = model(torch.rand(2, space.in_channels, space.resolution, space.resolution))
        assert out.shape == (2, space.num_classes)


@pytest.mark.parametrize("size", [28, 32, 64])
def test_the_small_space_suits_small_images(size: int) -> None:
    space = SMALL.replace(resolution=size, in_channels=1)
    assert space.search_blocks[-1].out_size == math.ceil(size / 4)


@given(spaces(), st.randoms(use_true_random=False))
def test_choices_and_models_round_trip(space: SearchSpace, rng: random.Random) -> None:
    choices = space.random_choices(rng)
    arch = space.arch(choices)
    assert space.choices(arch) == choices
    assert space.choices(Arch.parse(str(arch))) == choices
    blocks = arch.blocks[1:] if space.first else arch.blocks
    for search_block, block, choice in zip(space.search_blocks, blocks, choices, strict=True):
        assert (block.in_channels, block.out_channels, block.stride) == (
            search_block.in_channels, search_block.out_channels, search_block.stride,
        )  # fmt: skip
        assert block.shortcut == search_block.shortcut
        assert space.mask[search_block.index][choice]


@given(spaces())
def test_a_space_survives_dict_json_toml_and_pickle(space: SearchSpace) -> None:
    assert SearchSpace.from_dict(space.to_dict()) == space
    assert SearchSpace.from_dict(json.loads(json.dumps(space.to_dict()))).digest == space.digest
    assert pickle.loads(pickle.dumps(space)) == space
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "any.toml")
        path.write_text(space.to_toml(), encoding="utf-8")
        assert read_space(path) == space


def test_digests_never_change() -> None:
    """They are stored in tables and runs."""
    assert {name: space.digest for name, space in SPACES.items()} == DIGESTS


def test_a_digest_tells_spaces_apart_but_not_names() -> None:
    assert TINY.replace(name="other").digest == TINY.digest
    assert TINY.replace(bn_momentum=1).digest == TINY.replace(bn_momentum=1.0).digest
    assert TINY.replace(candidates=["k3e2.0", "k3e4", "k5e2", "k5e4"]) == TINY
    changed = [TINY.replace(**c) for c in ({"zero": False}, {"last": 72}, {"resolution": 33})]
    assert len({space.digest for space in (TINY, *changed)}) == 4


def test_a_tiny_space_counts_its_models() -> None:
    space = TINY.replace(stages=(SpaceStage(8, 1, 2), SpaceStage(16, 2, 1)), candidates=("k3e2", "k5e2"))
    models = {
        space.arch(choices)
        for choices in itertools.product(*(range(len(p.candidate_ops)) for p in space.search_blocks))
    }
    assert len(models) == space.count == 3 * 3 * 2


def test_a_space_without_zero_has_no_such_column() -> None:
    space = TINY.replace(zero=False)
    assert space.candidate_ops == space.candidates
    assert space.count == 4**6
    assert all(all(row) for row in space.mask)
    with pytest.raises(ArchError, match="stage 1, block 2: '-' is none of k3e2 k3e4 k5e2 k5e4"):
        space.choices(TINY.arch([0, 4, 0, 0, 0, 0]))


def test_random_choices_are_uniform_over_the_choices_of_a_block() -> None:
    rng = random.Random(0)
    drawn = [TINY.random_choices(rng) for _ in range(4000)]
    for search_block in TINY.search_blocks:
        counts = Counter(choices[search_block.index] for choices in drawn)
        assert set(counts) == set(range(len(search_block.candidate_ops)))
        assert max(abs(n / 4000 - 1 / len(search_block.candidate_ops)) for n in counts.values()) < 0.04
    assert TINY.random_choices(random.Random(5)) == TINY.random_choices(random.Random(5))


def test_random_choices_follow_weights() -> None:
    rng = random.Random(0)
    weights = [1.0, 0.0, 0.0, 3.0, 4.0]
    drawn = [TINY.random_choices(rng, weights) for _ in range(2000)]
    first, second = (Counter(choices[i] for choices in drawn) for i in (0, 1))
    assert set(first) == {0, 3}  # the first block cannot be skipped
    assert abs(first[3] / 2000 - 0.75) < 0.04
    assert abs(second[4] / 2000 - 0.5) < 0.04


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1, 1], "wanted 5 weights"),
        ([1, 1, 1, 1, -1], "at least 0"),
        ([1, 1, 1, 1, math.nan], "at least 0"),
        ([0, 0, 0, 0, 1], "stage 1, block 1: the weights of all its choices are 0"),
    ],
)
def test_bad_weights(weights: list[float], message: str) -> None:
    with pytest.raises(ArchError, match=message):
        TINY.random_choices(random.Random(0), weights)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ([0] * 5, "the space has 6 blocks, but 5 are chosen"),
        ([0, 0, 5, 0, 0, 0], "stage 2, block 1: 5 is no candidate; they are 0 to 4"),
        ([0, 0, -1, 0, 0, 0], "stage 2, block 1: -1 is no candidate"),
        ([4, 0, 0, 0, 0, 0], "stage 1, block 1: it cannot be skipped"),
    ],
)
def test_bad_choices(choices: list[int], message: str) -> None:
    with pytest.raises(ArchError, match=message):
        TINY.arch(choices)


def test_choices_may_be_integers_of_other_libraries() -> None:
    assert TINY.arch(torch.tensor([0, 4, 1, 2, 3, 0])) == TINY.arch([0, 4, 1, 2, 3, 0])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stem": 16}, "stem is 16, in the space 8"),
        ({"num_classes": 11}, "num_classes is 11, in the space 10"),
        ({"resolution": 64}, "resolution is 64, in the space 32"),
        ({"stages": (Stage(16, 1, "k3e2"),)}, "the number of stages is 1, in the space 3"),
        ({"stages": (Stage(16, 1, "k3e2"), Stage(24, 2, "k3e2"), Stage(48, 2, "k3e2"))},
         "the width of stage 3 is 48, in the space 40"),
        ({"stages": (Stage(16, 1, "k3e2"), Stage(24, 1, "k3e2"), Stage(40, 2, "k3e2"))},
         "the stride of stage 2 is 1, in the space 2"),
        ({"stages": (Stage(16, 1, "k3e2"), Stage(24, 2, "k3e2 - k3e2"), Stage(40, 2, "k3e2"))},
         "stage 2 has 3 blocks, in the space at most 2"),
        ({"stages": (Stage(16, 1, "k3e2"), Stage(24, 2, "k3e2 k7e2"), Stage(40, 2, "k3e2"))},
         "stage 2, block 2: 'k7e2' is none of k3e2 k3e4 k5e2 k5e4 -"),
        ({"stages": (Stage(16, 1, "k3e2"), Stage(24, 2, "k3e2 k5e2!"), Stage(40, 2, "k3e2"))},
         "stage 2, block 2: k5e2! lacks the shortcut"),
    ],
)  # fmt: skip
def test_a_model_of_another_space_is_refused(changes: dict, message: str) -> None:
    inside = Arch("n", 8, 8, 64, (Stage(16, 1, "k3e2!"), Stage(24, 2, "k3e2.0 -!"), Stage(40, 2, "k3e2")), 10)
    assert TINY.choices(inside) == (0, 4, 0, 4, 0, 4)
    with pytest.raises(ArchError, match=r"'n' is not in the search space 'tiny': ") as caught:
        TINY.choices(dataclasses.replace(inside, **changes))
    assert message in str(caught.value)


def test_a_tree_is_in_no_space() -> None:
    with pytest.raises(ArchError, match="a TreeArch is not in a space"):
        SMALL.choices(CIFAR)  # type: ignore[arg-type]


def test_the_mobile_model_is_not_in_its_own_space() -> None:
    """Its first stage is wider than the space's, as released."""
    with pytest.raises(ArchError, match="the width of stage 1 is 32, in the space 24"):
        IMAGENET.choices(MOBILE)


def test_map_below_two_pixels_names_the_stage() -> None:
    with pytest.raises(
        ArchError, match=r"'imagenet': stage 5 shrinks the map to 1x1 px, below 2x2: use a larger"
    ):
        IMAGENET.replace(resolution=32)
    assert IMAGENET.replace(resolution=33).search_blocks[-1].out_size == 2
    with pytest.raises(ArchError, match="the stem shrinks the map to 1x1"):
        TINY.replace(resolution=2)


def test_all_problems_at_once() -> None:
    with pytest.raises(ArchError) as caught:
        SearchSpace(
            "", stem=0, first=-1, last=True, stages=(SpaceStage(8, 3, 1), SpaceStage(0, 1, 0)),  # type: ignore[arg-type]
            candidates=("k4e3", "k3e3", "k3e3.0", "-", "k5e3!", "nonsense"), zero=1, resolution=10**6,
            num_classes=0, in_channels=2.5, stem_stride=3, bn_eps=math.nan, bn_momentum=2,
        )  # fmt: skip
    message = str(caught.value)
    lines = message.splitlines()
    assert lines[0] == "search space '': 19 problems"
    assert len(lines) == 20
    for part in (
        "name must be", "stem must be", "first must be", "last must be", "zero must be", "resolution must be",
        "num_classes must be", "in_channels must be", "stem_stride must be", "bn_eps must be",
        "bn_momentum must be", "stage 1: stride must be a whole number from 1 to 2, not 3",
        "stage 2: width must be", "stage 2: blocks must be", "'k4e3': the kernel size must be odd",
        "'k3e3.0' is there twice", "'-' is no plain operation", "'k5e3!' is no plain operation",
        "unknown operation 'nonsense'", "one of your own is registered first: --import MODULE",
    ):  # fmt: skip
        assert part in message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages": ()}, "stages must be one SpaceStage or more"),
        ({"stages": ((8, 1, 1),)}, "stage 1 must be a SpaceStage"),
        ({"candidates": "k3e3"}, "candidates must be 1 to 256 block tokens"),
        ({"candidates": ()}, "candidates must be 1 to 256"),
        ({"candidates": (3,)}, "3 is no plain operation"),
        ({"stages": (SpaceStage(8, 1, 4000), SpaceStage(8, 1, 97))}, "it has 4097 blocks; at most 4096"),
        ({"stages": (SpaceStage(65_536, 1, 2),)}, "stage 1, block 2: 'k5e9' expands to"),
        ({"widths": 3}, "a search space has no 'widths'; it has name, stem"),
    ],
)
def test_refused_values(changes: dict, message: str) -> None:
    space = TINY.replace(candidates=("k3e2", "k5e9"))
    with pytest.raises(ArchError, match=message):
        space.replace(**changes)


@pytest.mark.parametrize("factor", [0, -1, "1.4", True, math.nan, math.inf, 1e6])
def test_bad_width_multipliers(factor: object) -> None:
    with pytest.raises(ArchError, match=r"a width multiplier is a number from 0\.01 to 100"):
        IMAGENET.scaled(factor)  # type: ignore[arg-type]


def test_width_multipliers() -> None:
    assert IMAGENET.scaled(1) == IMAGENET.scaled(1.0) == IMAGENET
    narrow = IMAGENET.scaled(0.35)
    assert (narrow.stem, narrow.first, narrow.last) == (16, 8, 1280)  # the last layer never gets narrower
    assert [s.width for s in narrow.stages] == [8, 16, 32, 32, 64, 112]
    assert IMAGENET.scaled(1.4).last == 1792
    assert IMAGENET.replace(first=0).scaled(2).first == 0
    assert [make_divisible(v) for v in (1, 11.9, 12, 18.9, 19, 33.6)] == [8, 16, 16, 24, 24, 32]


def test_op_names_have_one_spelling() -> None:
    assert [op_name(t) for t in ("k3e6", "k3e6.0!", "k05e3", "k3e2.50", "-", "-!")] == [
        "k3e6", "k3e6", "k5e3", "k3e2.5", "-", "-",
    ]  # fmt: skip


def _conv(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)


def test_a_registered_operation_is_a_candidate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("proxylessnas.arch.ops._custom_ops", {})
    path = tmp_path / "mine.toml"
    path.write_text(TINY.to_toml().replace('"k5e4"]', '"plain3"]'), encoding="utf-8")
    with pytest.raises(
        ArchError, match=r"mine.toml: candidates: unknown operation 'plain3'.* registered first"
    ):
        read_space(path)
    register_op("plain3", _conv)
    space = read_space(path)
    assert space.candidate_ops == ("k3e2", "k3e4", "k5e2", "plain3", "-")
    arch = everything(space.replace(zero=False), "plain3")
    assert space.choices(arch) == (3,) * 6
    with torch.inference_mode():
        assert create_model(arch).eval()(torch.rand(1, 3, 32, 32)).shape == (1, 10)


@pytest.mark.parametrize("word", ["Imagenet", " imagenet ", "imagenet@1", "imagenet@1.0"])
def test_names_are_forgiving(word: str) -> None:
    assert read_space(word) == IMAGENET


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("imagnet", "unknown search space 'imagnet': did you mean imagenet?"),
        ("smal@1.4", "did you mean small?"),
        ("xyz", "known are imagenet, small, tiny"),
        ("imagenet@wide", "wanted a number after @, as in imagenet@1.4"),
        ("imagenet@0", "a width multiplier is a number from 0.01 to 100, not 0.0"),
        ("nowhere.toml", "nowhere.toml: cannot be read as a search space (No such file or directory)"),
        (Path("nowhere"), "nowhere: cannot be read"),
    ],
)
def test_spaces_that_do_not_exist(word: str | Path, message: str) -> None:
    with pytest.raises(ArchError) as caught:
        read_space(word)
    assert message in str(caught.value)


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        'stem = 8\nfirst = 0\nlast = 32\ncandidates = ["k3e2"]\n'
        "[[stages]]\nwidth = 8\nstride = 1\nblocks = 2\n",
        encoding="utf-8",
    )
    assert (
        read_space(path)
        == read_space(str(path))
        == SearchSpace("mine", 8, 0, 32, (SpaceStage(8, 1, 2),), ("k3e2",))
    )
    for space in SPACES.values():
        path.write_text(space.to_toml(), encoding="utf-8")
        assert read_space(path) == space
        assert read_space(path).digest == space.digest


def test_all_problems_of_a_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(
        'stem = "wide"\nlast = 64\nclasses = 10\nnum_classess = 4\ncandidates = ["k3e2", "k2e2"]\n'
        "stages = [{ width = 16, strides = 1, blocks = 2 }, 7, { width = 0, stride = 1, blocks = 1 }]\n",
        encoding="utf-8",
    )
    with pytest.raises(ArchError) as caught:
        read_space(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: 9 problems\n")
    for part in (
        "first is missing", "there is no 'classes'", "there is no 'num_classess': did you mean num_classes?",
        "stage 1: stride is missing", "stage 1: there is no 'strides': did you mean stride?",
        "stem must be a whole number from 1 to 65536, not 'wide'", "stage 2 must be a SpaceStage, not 7",
        "stage 3: width must be", "'k2e2': the kernel size must be odd",
    ):  # fmt: skip
        assert part in message, part


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"stem = ", "not valid TOML"),
        (b"\xff\xff", "cannot be read as a search space"),
        (b"#" * 1_000_001, "larger than 1,000,000 bytes"),
        (b"stem = " + b"9" * 5000, "not valid TOML"),
        (b"x = " + b"[" * 5000, "not valid TOML"),
        (b"", "problems"),
    ],
)
def test_files_that_are_no_space(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    with pytest.raises(ArchError, match=message) as caught:
        read_space(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_json_that_is_no_object() -> None:
    with pytest.raises(ArchError, match="search space: wanted an object with name, stem"):
        SearchSpace.from_dict([1])  # type: ignore[arg-type]


FIELDS = ["name", "stem", "first", "last", "stages", "candidates", "width", "stride", "blocks", "zero"]
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner),
    max_leaves=20,
)


@given(ANY_JSON)
def test_whatever_json_gives_a_space_or_one_error(data: object) -> None:
    with contextlib.suppress(ArchError):
        assert isinstance(SearchSpace.from_dict(data), SearchSpace)  # type: ignore[arg-type]


def test_spaces_and_keys_need_no_torch(repo: Path, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom proxylessnas.arch.op_key import space_keys\n"
        "from proxylessnas.arch.spaces import read_space\n"
        "print(len(space_keys(read_space('imagenet'))), 'torch' in sys.modules)"
    )
    assert run_uninstalled(code, cwd=tmp_path, first_on_path=[repo]).stdout.split() == ["70", "False"]
