"""The search spaces that come with the package, and reading one of your own."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ArchError, shown
from ..utils.config import read_toml
from ..utils.files import decode, read_bytes
from .ops import noted
from .space import SearchSpace
from .space_base import Space
from .space_values import SpaceStage
from .tree_space import TreeSpace


def _stages(*rows: tuple[int, int, int]) -> tuple[SpaceStage, ...]:
    return tuple(SpaceStage(width, stride, blocks) for width, stride, blocks in rows)


#: The published one (ProxylessNAS, section 4.2): 21 blocks of three kernels and two ratios, 2.2e17 models.
IMAGENET = SearchSpace(
    "imagenet", stem=32, first=16, last=1280,
    stages=_stages((24, 2, 4), (40, 2, 4), (80, 2, 4), (96, 1, 4), (192, 2, 4), (320, 1, 1)),
    candidates=("k3e3", "k3e6", "k5e3", "k5e6", "k7e3", "k7e6"),
)  # fmt: skip

#: For images of 28 to 64 px, whose resolution is kept early; it holds ``proxyless_cifar10_demo``.
SMALL = SearchSpace(
    "small", stem=16, first=16, last=640, stages=_stages((24, 1, 2), (48, 2, 4), (112, 2, 5)),
    candidates=("k3e2", "k3e3", "k3e4", "k3e6", "k5e2", "k5e3", "k5e4", "k5e6"),
    resolution=32, num_classes=10, stem_stride=1,
)  # fmt: skip

#: Searched, measured and trained in minutes on a CPU.
TINY = SearchSpace(
    "tiny", stem=8, first=8, last=64, stages=_stages((16, 1, 2), (24, 2, 2), (40, 2, 2)),
    candidates=("k3e2", "k3e4", "k5e2", "k5e4"), resolution=32, num_classes=10,
)  # fmt: skip

#: For processors of 2026, in float32 and INT8 alike: MBConv, fused MBConv and MobileNetV4's bottlenecks, of
#: ratios 2 and 4 (what larger ones would bring was not measured). Widths are multiples of 16, as vectors are;
#: the activation is ReLU, with which ONNX Runtime takes less time (docs/search.md).
CPU26 = SearchSpace(
    "cpu26", stem=32, first=16, last=1280,
    stages=_stages((32, 2, 3), (64, 2, 4), (96, 2, 4), (128, 1, 4), (192, 2, 4)),
    candidates=("k3e2", "k3e4", "k5e2", "k5e4", "f3e2", "u3-5e2", "u3-5e4", "c7e4", "n4"), act="relu",
)  # fmt: skip

#: The same for images of 32 to 128 px; maps get too small there for a kernel of 7.
CPU26_SMALL = SearchSpace(
    "cpu26-small", stem=16, first=16, last=640, stages=_stages((32, 2, 3), (48, 2, 4), (96, 2, 5)),
    candidates=("k3e2", "k3e4", "k5e2", "k5e4", "f3e2", "u3-5e2", "u3-5e4", "c5e4", "n4"),
    resolution=64, num_classes=10, stem_stride=1, act="relu",
)  # fmt: skip

#: The published one of CIFAR-10 (section 4.1): 54 tree cells, 648 searched edges.
CIFAR_TREE = TreeSpace()

#: The same cells, two a stage and narrower.
CIFAR_TREE_SMALL = TreeSpace("cifar-tree-small", cells=6, alpha=36)

SPACES: dict[str, Space] = {
    space.name: space for space in (IMAGENET, SMALL, TINY, CPU26, CPU26_SMALL, CIFAR_TREE, CIFAR_TREE_SMALL)
}
_KINDS = (SearchSpace.kind, TreeSpace.kind)


def space_from_dict(
    data: Any, where: str = "search space", modules: Mapping[str, object] | None = None
) -> Space:
    """Read a space of any kind from JSON (or TOML) values.

    Args:
        data: the values; ``kind`` is "chain" where it is missing.
        where: what errors call them.
        modules: those that registered its operations, by token, if that is known.

    Raises:
        ArchError: something is wrong with them; the message lists every problem.
    """
    kind = data.get("kind", SearchSpace.kind) if isinstance(data, Mapping) else SearchSpace.kind
    if kind not in _KINDS:
        raise ArchError(f"{where}: kind is {shown(kind)}; there are {' and '.join(_KINDS)}")
    values = {n: v for n, v in data.items() if n != "kind"} if isinstance(data, Mapping) else data
    if kind == TreeSpace.kind:
        return TreeSpace.from_dict(values, where)
    return SearchSpace.from_dict(values, where, modules)


def read_space(name_or_path: str | os.PathLike[str]) -> Space:
    """Return a search space by name, or read it from a file.

    >>> read_space("imagenet@1.4").stem
    48

    Args:
        name_or_path: the name of a space (:data:`SPACES`); that of a chain with "@" and a number stands for
            it with its widths multiplied; or the path of a ``.toml`` file, after which a space without a
            ``name`` is called.

    Raises:
        ArchError: there is no such space (the nearest names are listed), or the file cannot be read, is not
            TOML or holds no space (every problem is listed).
        MissingExtraError: Python is 3.10 and tomli, which reads TOML, is not installed.
    """
    if not isinstance(name_or_path, str):
        return _read_file(os.fspath(name_or_path))
    word = name_or_path.strip()
    if word.lower().endswith(".toml") or "/" in word or os.sep in word:
        return _read_file(word)
    name, at, factor = word.partition("@")
    key = name.strip().lower()
    if key not in SPACES:
        near = difflib.get_close_matches(key, SPACES, n=2, cutoff=0.6)
        hint = f"did you mean {' or '.join(near)}? Known" if near else "known"
        known = f"{', '.join(SPACES)}, and files whose names end in .toml"
        raise ArchError(f"unknown search space {shown(name_or_path)}: {hint} are {known}")
    if not at:
        return SPACES[key]
    try:
        multiplier = float(factor)
    except ValueError:
        raise ArchError(f"{shown(name_or_path)}: wanted a number after @, as in {key}@1.4") from None
    space = SPACES[key]
    if not isinstance(space, SearchSpace):
        raise ArchError(f"{shown(name_or_path)}: the widths of tree cells grow with alpha: write a file")
    return space.scaled(multiplier)


def read_chain(name_or_path: str | os.PathLike[str]) -> SearchSpace:
    """Return a search space of blocks, as :func:`read_space` does: what a latency table can be made of.

    Raises:
        ArchError: also for a space of another kind.
    """
    return as_chain(read_space(name_or_path))


def as_chain(space: Space) -> SearchSpace:
    """Return a space as one of blocks, which it has to be where latencies of operations are needed.

    Raises:
        ArchError: it is one of tree cells.
    """
    if not isinstance(space, SearchSpace):
        raise ArchError(
            f"{shown(space.name)} is a space of tree cells, and latencies are known of blocks alone: leave "
            "out tables, and search it with a target of multiply-accumulates or parameters"
        )
    return space


def _read_file(path: str) -> Space:
    where, data = read_toml(Path(path), "search space", error=ArchError)
    modules = noted(decode(read_bytes(path), "replace"))
    return space_from_dict({"name": Path(path).stem, **data}, where, modules)
