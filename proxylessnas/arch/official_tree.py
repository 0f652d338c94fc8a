"""``PyramidTreeNet`` JSON of the original code, to and from :class:`~proxylessnas.arch.tree.TreeArch`.

The reader finds the words and the constants, writes the description they stand for, and accepts the file only
if the two are
equal: whatever is different is named by its path.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import ArchError
from .arch import check_int
from .official import check_linear, expect_object, linear_layer, same, short
from .tree import BOTTLENECK, BRANCHES, EDGES_PER_BRANCH, TreeArch

_ORDER = {"dropout_rate": 0, "ops_order": "bn_act_weight"}
_PLAIN = {"use_bn": False, "act_func": None, **_ORDER}
_BN_RELU = {"use_bn": True, "act_func": "relu", **_ORDER}
#: Defaults that later versions of the original code write at the top level; drop rates are settings of a
#: training run.
_OPTIONAL = {"tree_node_config": {}, "cell_drop_rate": 0, "cell_drop_scheme": "linear"}


def _conv(name: str, in_channels: int, out_channels: int, kernel: int, **settings: Any) -> dict[str, Any]:
    return {
        "name": name,
        "kernel_size": kernel,
        "stride": 1,
        "dilation": 1,
        "groups": 1,
        "bias": False,
        "has_shuffle": False,
        "in_channels": in_channels,
        "out_channels": out_channels,
        **_BN_RELU,
        **settings,
    }


def _same_width(name: str, width: int, **settings: Any) -> dict[str, Any]:
    return {"name": name, **settings, "in_channels": width, "out_channels": width, **_PLAIN}


def _pool(kind: str, kernel: int, stride: int, width: int) -> dict[str, Any]:
    return _same_width("PoolingLayer", width, pool_type=kind, kernel_size=kernel, stride=stride)


def _edge(letter: str, width: int) -> dict[str, Any]:
    if letter == "i":
        return _same_width("IdentityLayer", width)
    if letter in "am":
        return _pool("avg" if letter == "a" else "max", 3, 1, width)
    kernel, dilation = (3, 2) if letter == "d" else (int(letter), 1)
    return _conv("DepthConvLayer", width, width, kernel, dilation=dilation)


def _letter(edge: Any, where: str) -> str:
    edge = expect_object(edge, where)
    name = edge.get("name")
    letter = None
    if name == "IdentityLayer":
        letter = "i"
    elif name == "PoolingLayer":
        letter = {"avg": "a", "max": "m"}.get(str(edge.get("pool_type")))
    elif name == "DepthConvLayer":
        kernel, dilation = edge.get("kernel_size"), edge.get("dilation", 1)
        letter = {"3 1": "3", "5 1": "5", "7 1": "7", "3 2": "d"}.get(f"{kernel} {dilation}")
    if letter is None:
        raise ArchError(f"{where}: {short(name)} with these settings is no operation of the tree space")
    return letter


def _node(
    in_channels: int,
    out_channels: int,
    split: str | None,
    merge: str | None,
    edges: list[Any],
    children: list[Any],
    branch_bn: bool = False,
) -> dict[str, Any]:
    return {
        "name": "TreeNode",
        "in_channels": in_channels,
        "out_channels": out_channels,
        "split_type": split,
        "merge_type": merge,
        "has_branch_bn": branch_bn,
        "path_drop_rate": 0,
        "edges": edges,
        "child_nodes": children,
    }


def _branch(letters: str, width: int) -> dict[str, Any]:
    edges = [_edge(letter, width) for letter in letters]
    leaves = [_node(width, width, "copy", "add", edges[i : i + 2], [None, None]) for i in (2, 4)]
    return _node(width, width, "copy", "add", edges[:2], leaves)


def _cell(word: str, width: int, stride: int) -> dict[str, Any]:
    branches = [_branch(word[i : i + EDGES_PER_BRANCH], width) for i in range(0, len(word), EDGES_PER_BRANCH)]
    root = _node(
        BRANCHES * width,
        width,
        "split",
        "add",
        [_same_width("IdentityLayer", width)] * BRANCHES,
        branches,
        True,
    )
    entry = _conv("ConvLayer", width, BRANCHES * width, 3, stride=stride, groups=BRANCHES, has_shuffle=True)
    return _node(width, width, None, None, [entry], [root])


def tree_to_official(arch: TreeArch) -> dict[str, Any]:
    """Return the JSON description of a tree net (see :meth:`TreeArch.to_official`)."""
    stem = _conv("ConvLayer", arch.in_channels, arch.start, 3, use_bn=False, act_func=None)
    blocks: list[dict[str, Any]] = [
        {
            "name": "TransitionBlock",
            "layers": [stem, {**_same_width("IdentityLayer", arch.start), "use_bn": True}],
        }
    ]
    width = arch.start
    for i, (word, inner) in enumerate(zip(arch.words, arch.cell_widths, strict=True)):
        stride = arch.stride(i)
        blocks.append(
            {
                "name": "ResidualTreeBlock",
                "cell_drop_rate": 0.0,
                "final_bn": True,
                "shortcut": _same_width("IdentityLayer", width) if stride == 1 else _pool("avg", 2, 2, width),
                "in_bottle": _conv("ConvLayer", width, inner, 1, act_func=None),
                "out_bottle": _conv("ConvLayer", inner, BOTTLENECK * inner, 1),
                "cell": _cell(word, inner, stride),
            }
        )
        width = BOTTLENECK * inner
    pool = arch.resolution // 2 ** (arch.num_stages - 1)
    blocks.append({"name": "TransitionBlock", "layers": [{**_pool("avg", pool, pool, width), **_BN_RELU}]})
    classifier = linear_layer(width, arch.num_classes, 0, "bn_act_weight")
    return {"name": "PyramidTreeNet", "blocks": blocks, "classifier": classifier}


def _dig(value: Any, where: str, *path: str | int) -> Any:
    """Follow keys and indices into parsed JSON; ``where`` names the start.

    Raises:
        ArchError: naming the first step that is not there.
    """
    for step in path:
        container = list if isinstance(step, int) else Mapping
        try:
            if not isinstance(value, container):
                raise LookupError
            value = value[step]  # type: ignore[index]
        except LookupError as e:
            raise ArchError(f"{where}: {step!r} is missing") from e
        where += f"[{step}]" if isinstance(step, int) else f".{step}"
    return value


def _differences(found: Any, wanted: Any, path: str) -> Iterator[str]:
    if isinstance(wanted, dict) and isinstance(found, Mapping):
        for key in wanted.keys() | found.keys():
            if key not in found or key not in wanted:
                yield f"{path}.{str(key)[:60]} is {'missing' if key not in found else 'not known'}"
            else:
                yield from _differences(found[key], wanted[key], f"{path}.{key}")
    elif isinstance(wanted, list) and isinstance(found, list):
        if len(wanted) != len(found):
            yield f"{path} has {len(found)} items; these nets have {len(wanted)}"
        for i, (a, b) in enumerate(zip(found, wanted, strict=False)):
            yield from _differences(a, b, f"{path}[{i}]")
    elif not same(found, wanted):
        yield f"{path} is {short(found)}; these nets have {short(wanted)}"


def _word(block: Any, where: str) -> str:
    letters = ""
    for b in range(BRANCHES):
        start = ("cell", "child_nodes", 0, "child_nodes", b)
        for node in ((), ("child_nodes", 0), ("child_nodes", 1)):
            for e in range(2):
                edge = _dig(block, where, *start, *node, "edges", e)
                letters += _letter(edge, f"{where}.cell, branch {b}, edge {len(letters) % EDGES_PER_BRANCH}")
    return letters


def read_tree(data: Mapping[str, Any], name: str) -> TreeArch:
    """Read a ``PyramidTreeNet`` description.

    Raises:
        ArchError: it is not the pyramid of two-branch, depth-two trees that the paper searched.
    """
    for key, value in data.items():
        if key not in ("name", "blocks", "classifier") and not (key in _OPTIONAL and value == _OPTIONAL[key]):
            raise ArchError(
                f"{short(key)} is {short(value)}; drop rates are set when a model is built (drop_path_rate)"
            )
    blocks, classifier = data.get("blocks"), check_linear(data.get("classifier"), "bn_act_weight")
    if not isinstance(blocks, list) or len(blocks) < 3:
        raise ArchError("blocks: expected a stem, tree cells and a tail")
    cells = [(f"blocks[{i}]", block) for i, block in enumerate(blocks)][1:-1]
    words = [_word(block, where) for where, block in cells]
    strides = [_dig(block, where, "cell", "edges", 0, "stride") for where, block in cells]
    stem = ("layers", 0)
    start, in_channels = (_dig(blocks[0], "blocks[0]", *stem, key) for key in ("out_channels", "in_channels"))
    inner = _dig(blocks[-2], f"blocks[{len(blocks) - 2}]", "in_bottle", "out_channels")
    pool = _dig(blocks[-1], f"blocks[{len(blocks) - 1}]", "layers", 0, "kernel_size")
    for what, value in (
        ("stem out_channels", start),
        ("last in_bottle out_channels", inner),
        ("tail kernel_size", pool),
    ):
        check_int(what, value, 1, 65_536)
    num_stages = 1 + sum(stride == 2 for stride in strides)
    # The last cell's width is start + alpha rounded to even, so alpha is known up to one: take the value that
    # fits.
    problem = None
    for alpha in (inner - start, inner - start + 1):
        if alpha < 0 or num_stages > 8:
            continue
        arch = TreeArch(
            name,
            " ".join(words),
            start,
            alpha,
            num_stages,
            classifier["out_features"],
            in_channels,
            pool * 2 ** (num_stages - 1),
        )
        wanted = tree_to_official(arch)
        found = {key: data[key] for key in ("name", "blocks", "classifier")}
        difference = next(_differences(found, wanted, "net"), None)
        if difference is None:
            return arch
        problem = problem or difference
    raise ArchError(problem or "blocks: the widths do not grow as a pyramid")
