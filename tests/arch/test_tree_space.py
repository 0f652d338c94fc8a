"""Spaces of tree cells as data: the published one, text, places, and models in and out."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from proxylessnas import Arch, ArchError
from proxylessnas.arch import published
from proxylessnas.arch.spaces import SPACES, read_chain, read_space, space_from_dict
from proxylessnas.arch.tree_space import TreeSpace

SMALL = TreeSpace("s", cells=3, start=8, alpha=12, resolution=16, num_classes=5)


def test_the_published_model_is_648_choices() -> None:
    space = read_space("cifar-tree")
    choices = space.choices(published.CIFAR)
    assert len(choices) == len(space.search_blocks) == 648
    again = space.arch(choices, published.CIFAR.name)
    assert again == published.CIFAR
    assert again.to_official() == published.CIFAR.to_official()
    assert space.count == 7**648


def test_edges_have_the_widths_and_maps_of_their_cells() -> None:
    blocks = read_space("cifar-tree").search_blocks
    assert [blocks[12 * cell].in_channels for cell in (0, 1, 2, 3, 53)] == [18, 18, 20, 22, 100]
    assert [blocks[12 * cell].in_size for cell in (0, 17, 18, 36, 53)] == [32, 32, 16, 8, 8]
    assert {(b.stride, b.shortcut) for b in blocks} == {(1, False)}
    assert [(blocks[i].stage, blocks[i].block) for i in (0, 215, 216, 647)] == [
        (0, 0),
        (0, 215),
        (1, 0),
        (2, 215),
    ]
    assert read_space("cifar-tree").place(blocks[17]) == "cell 2, branch and edge 0.e11"
    assert read_space("cifar-tree").label(blocks[6]) == "1.1.e0"


def test_a_space_comes_back_from_its_file_and_its_json(tmp_path: Path) -> None:
    space = SMALL.replace(candidates="i3m", name="mine")
    (tmp_path / "mine.toml").write_text(space.to_toml())
    assert read_space(tmp_path / "mine.toml") == space == space_from_dict(space.to_dict())
    assert space.digest == space.replace(name="other").digest != SMALL.digest
    (tmp_path / "bare.toml").write_text('kind = "tree"\ncells = 3\nalpha = 12\n')
    assert read_space(tmp_path / "bare.toml") == TreeSpace("bare", cells=3, alpha=12)


@pytest.mark.parametrize("name", ["imagenet", "small", "tiny"])
def test_a_chain_is_written_as_before(name: str) -> None:
    data = SPACES[name].to_dict()
    assert "kind" not in data
    assert space_from_dict({"kind": "chain", **data}) == SPACES[name]


def test_random_models_are_in_the_space_and_come_back() -> None:
    rng = random.Random(0)
    for _ in range(20):
        choices = SMALL.random_choices(rng)
        arch = SMALL.arch(choices, "a")
        assert Arch.parse(str(arch)) == arch
        assert SMALL.choices(arch) == choices
    only = SMALL.random_choices(rng, [0, 1, 0, 0, 0, 0, 0])
    assert SMALL.arch(only).cells == " ".join(["3" * 12] * 3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"candidates": "i9"}, "'9' is none of"),
        ({"candidates": "ii"}, "letters, each once"),
        ({"candidates": ""}, "letters, each once"),
        ({"cells": 4}, "cannot be shared equally"),
        ({"resolution": 30, "num_stages": 3}, "cannot be halved"),
        ({"depth": 3}, "there is no 'depth'"),
        ({"alpha": True}, "alpha"),
        ({"kind": "ring"}, "kind is 'ring'; there are chain and tree"),
    ],
)
def test_what_makes_no_space_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ArchError, match=message):
        space_from_dict({**SMALL.to_dict(), **values})


def test_a_model_of_another_space_is_named() -> None:
    with pytest.raises(ArchError, match="is not in a space of tree cells"):
        SMALL.choices(published.MOBILE)
    with pytest.raises(ArchError, match="it has 54 cells, the space 3"):
        SMALL.choices(published.CIFAR)
    with pytest.raises(ArchError, match="num_classes is 5, in the space 7"):
        SMALL.replace(num_classes=7).choices(SMALL.arch([0] * 36))
    with pytest.raises(ArchError, match=r"cell 1, branch and edge 0\.e0: 'i' is none of 3 m"):
        SMALL.replace(candidates="3m").choices(SMALL.arch([0] * 36))
    with pytest.raises(ArchError, match="36 blocks, but 35 are chosen"):
        SMALL.arch([0] * 35)


def test_a_latency_table_wants_a_chain() -> None:
    assert read_chain("tiny") is SPACES["tiny"]
    with pytest.raises(ArchError, match="latencies are known of blocks alone"):
        read_chain("cifar-tree")
    with pytest.raises(ArchError, match="grow with alpha"):
        read_space("cifar-tree@1.4")
