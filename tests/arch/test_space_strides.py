"""Spaces with an operation that cannot shrink a map: blocks that do go without it."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

from proxylessnas import Arch, ArchError, Stage
from proxylessnas.arch.spaces import SPACES, read_space
from proxylessnas.latency.random_models import random_models

TINY = SPACES["tiny"]


def test_striding_blocks_lack_what_has_no_stride() -> None:
    space = TINY.replace(candidates=("n2", "k3e2", "n4s", "k5e2"))
    every = (0, 1, 2, 3, 4)
    assert [p.columns for p in space.search_blocks] == [every[:4], every, (1, 3), every, (1, 3), every]
    assert [[c for c, ok in zip(space.candidate_ops, row, strict=True) if ok] for row in space.mask] == [
        list(p.candidate_ops) for p in space.search_blocks
    ]
    assert space.count == 4 * 5 * (2 * 5) ** 2
    assert space.first_choices == (0, 0, 1, 0, 1, 0)
    rng = random.Random(0)
    drawn = [space.random_choices(rng) for _ in range(300)]
    drawn += [space.random_choices(rng, [2.0, 1.0, 0.0, 0.5, 1.0]) for _ in range(300)]
    for search_block in space.search_blocks:
        assert {choices[search_block.index] for choices in drawn} == set(search_block.columns)
    assert all(space.choices(space.arch(choices)) == choices for choices in drawn)
    with pytest.raises(ArchError, match="stage 2, block 1: n2 does not exist at its stride of 2"):
        space.arch([0] * 6)
    with pytest.raises(ArchError, match="stage 2, block 1: the weights of all its choices are 0"):
        space.random_choices(rng, [1, 0, 1, 0, 1])
    with pytest.raises(ArchError, match="stage 2, block 1 has stride 2, at which none of the candidates"):
        TINY.replace(candidates=("n2", "n4"))
    with pytest.raises(ArchError, match="stage 1, block 1: 'n2' exists at stride 1 alone, but this"):
        Arch("net", 8, 8, 16, (Stage(16, 2, "n2"),))


def test_random_models_have_what_their_blocks_have() -> None:
    space = TINY.replace(candidates=("n2", "k3e2", "n4s", "k5e2"))
    models = random_models(space, 60, seed=0)
    assert len(models) == 60
    for search_block in space.search_blocks:
        assert {choices[search_block.index] for choices in models} == set(search_block.columns)


def test_the_space_file_of_the_documentation(tmp_path: Path) -> None:
    docs = Path(__file__).resolve().parents[2] / "docs" / "search.md"
    (text,) = re.findall(r"```toml\n(.*?)```", docs.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "mine.toml").write_text(text, encoding="utf-8")
    space = read_space(tmp_path / "mine.toml")
    assert (space.resolution, space.num_classes, space.act, len(space.search_blocks)) == (64, 1000, "relu", 7)
    assert [len(block.columns) for block in space.search_blocks] == [3, 5, 5, 3, 5, 5, 5]
