"""The class names and wnids that ship with the package."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from proxylessnas.data.categories import DATASETS, categories, simplify, unique, wnids


def test_imagenet() -> None:
    names, ids = categories("imagenet"), wnids("imagenet")
    assert len(names) == len(ids) == len(set(ids)) == 1000
    assert list(ids) == sorted(ids)  # the order of the model's outputs is that of the sorted wnids
    assert all(re.fullmatch(r"n\d{8}", wnid) for wnid in ids)
    assert all(name and "_" not in name and name == name.strip() for name in names)
    known = {
        0: ("n01440764", "tench"),
        2: ("n01484850", "great white shark"),
        999: ("n15075141", "toilet tissue"),
    }
    assert {i: (ids[i], names[i]) for i in known} == known


def test_names_that_two_classes_share_are_told_apart() -> None:
    shown = unique(categories("imagenet"), wnids("imagenet"))
    assert len(set(shown)) == 1000
    assert len({label.lower() for label in shown}) == 1000
    assert shown[134] == "crane (n02012849)"
    assert shown[517] == "crane (n03126707)"
    assert sum(label.startswith("maillot (n") for label in shown) == 2
    assert shown[0] == "tench"


def test_cifar10() -> None:
    expected = "airplane automobile bird cat deer dog frog horse ship truck"
    assert categories("cifar10") == unique(categories("cifar10"), wnids("cifar10")) == tuple(expected.split())
    assert wnids("cifar10") == ()


def test_unknown_data_set() -> None:
    for function in (categories, wnids):
        with pytest.raises(ValueError, match="imagenet, cifar10"):
            function("imagenet21k")
    assert DATASETS == ("imagenet", "cifar10")


def test_simplify() -> None:
    assert simplify(" Black-and-tan__Coonhound") == "black and tan coonhound"


def test_same_as_the_published_list(shared_data: Path) -> None:
    rows = [line.split("\t") for line in (shared_data / "imagenet_classes.tsv").read_text().splitlines()]
    assert [(int(i), w, n.replace("_", " ")) for i, w, n in rows] == list(
        zip(range(1000), wnids(), categories(), strict=True)
    )
