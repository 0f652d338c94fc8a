"""``PyramidTreeNet`` JSON of the original code, to and from :class:`~proxylessnas.arch.tree.TreeArch`.

The reader finds the words and the constants, writes the description they stand for, and accepts the file only
if the two are equal: whatever is different is named by its path.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from ..errors import ArchError
from ..utils.config import show
from .blocks import BOTTLENECK, BRANCHES, EDGE_LETTERS, EDGES_PER_BRANCH, MAX_WIDTH, check_int
from .official import check_linear, conv_layer, expect_object, linear_layer, plain_layer, same

if TYPE_CHECKING:
    from .tree import TreeArch

#: Defaults that later versions of the original code write at the top level; drop rates are settings of a
#: training run.
_OPTIONAL = {"tree_node_config": {}, "cell_drop_rate": 0, "cell_drop_scheme": "linear"}


_conv = partial(conv_layer, act_func="relu", ops_order="bn_act_weight")
_plain = partial(plain_layer, ops_order="bn_act_weight")


def _pool(kind: str, kernel: int, stride: int, width: int, **settings: Any) -> dict[str, Any]:
    return _plain("PoolingLayer", width, pool_type=kind, kernel_size=kernel, stride=stride, **settings)


def _edge(letter: str, width: int) -> dict[str, Any]:
    if letter == "i":
        return _plain("IdentityLayer", width)
    if letter in "am":
        return _pool("avg" if letter == "a" else "max", 3, 1, width)
    kernel, dilation = (3, 2) if letter == "d" else (int(letter), 1)
    return _conv(width, width, kernel, name="DepthConvLayer", dilation=dilation)


def _letter(edge: Any, where: str) -> str:
    edge = expect_object(edge, where)
    for letter in EDGE_LETTERS:
        wanted = _edge(letter, 0)
        keys = wanted.keys() & {"name", "pool_type", "kernel_size", "dilation"}
        if all(edge.get(key) == wanted[key] for key in keys):
            return letter
    name = show(edge.get("name"))
    raise ArchError(f"{where}: {name} with these settings is no operation of the tree space")


def _node(width: int, edges: list[Any], children: list[Any], **settings: Any) -> dict[str, Any]:
    return {
        "name": "TreeNode", "in_channels": width, "out_channels": width, "split_type": "copy",
        "merge_type": "add", "has_branch_bn": False, "path_drop_rate": 0, "edges": edges,
        "child_nodes": children, **settings,
    }  # fmt: skip


def _branch(letters: str, width: int) -> dict[str, Any]:
    edges = [_edge(letter, width) for letter in letters]
    return _node(width, edges[:2], [_node(width, edges[i : i + 2], [None, None]) for i in (2, 4)])


def _cell(word: str, width: int, stride: int) -> dict[str, Any]:
    branches = [_branch(word[i : i + EDGES_PER_BRANCH], width) for i in range(0, len(word), EDGES_PER_BRANCH)]
    root = _node(
        width, [_plain("IdentityLayer", width)] * BRANCHES, branches,
        in_channels=BRANCHES * width, split_type="split", has_branch_bn=True,
    )  # fmt: skip
    entry = _conv(width, BRANCHES * width, 3, stride, groups=BRANCHES, has_shuffle=True)
    return _node(width, [entry], [root], split_type=None, merge_type=None)


def tree_to_official(arch: TreeArch) -> dict[str, Any]:
    """Return the JSON description of a tree model (see :meth:`TreeArch.to_official`)."""
    stem = _conv(arch.in_channels, arch.start, 3, use_bn=False, act_func=None)
    blocks: list[dict[str, Any]] = [
        {
            "name": "TransitionBlock",
            "layers": [stem, _plain("IdentityLayer", arch.start, use_bn=True)],
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
                "shortcut": _plain("IdentityLayer", width) if stride == 1 else _pool("avg", 2, 2, width),
                "in_bottle": _conv(width, inner, 1, act_func=None),
                "out_bottle": _conv(inner, BOTTLENECK * inner, 1),
                "cell": _cell(word, inner, stride),
            }
        )
        width = BOTTLENECK * inner
    pool = arch.resolution // 2 ** (arch.num_stages - 1)
    tail = _pool("avg", pool, pool, width, use_bn=True, act_func="relu")
    blocks.append({"name": "TransitionBlock", "layers": [tail]})
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
        for key in {**wanted, **found}:
            if key not in found or key not in wanted:
                yield f"{path}.{str(key)[:60]} is {'missing' if key not in found else 'not known'}"
            else:
                yield from _differences(found[key], wanted[key], f"{path}.{key}")
    elif isinstance(wanted, list) and isinstance(found, list):
        if len(wanted) != len(found):
            yield f"{path} has {len(found)} items; these models have {len(wanted)}"
        for i, (a, b) in enumerate(zip(found, wanted, strict=False)):
            yield from _differences(a, b, f"{path}[{i}]")
    elif not same(found, wanted):
        yield f"{path} is {show(found)}; these models have {show(wanted)}"


def _word(block: Any, where: str) -> str:
    letters = ""
    for b in range(BRANCHES):
        start = ("cell", "child_nodes", 0, "child_nodes", b)
        for node in ((), ("child_nodes", 0), ("child_nodes", 1)):
            for e in range(2):
                edge = _dig(block, where, *start, *node, "edges", e)
                letters += _letter(edge, f"{where}.cell, branch {b}, edge {len(letters) % EDGES_PER_BRANCH}")
    return letters


def read_tree(build: type[TreeArch], data: Mapping[str, Any], name: str) -> TreeArch:
    """Build the architecture that a ``PyramidTreeNet`` description stands for.

    Raises:
        ArchError: it is not the pyramid of two-branch, depth-two trees that the paper searched.
    """
    for key, value in data.items():
        if key not in ("name", "blocks", "classifier") and not (key in _OPTIONAL and value == _OPTIONAL[key]):
            raise ArchError(
                f"{show(key)} is {show(value)}; drop rates are set when a model is built (drop_path_rate)"
            )
    blocks, classifier = data.get("blocks"), check_linear(data.get("classifier"), "bn_act_weight")
    if not isinstance(blocks, list) or len(blocks) < 3:
        raise ArchError("blocks: expected a stem, tree cells and a tail")
    cells = [(f"blocks[{i}]", block) for i, block in enumerate(blocks)][1:-1]
    words = [_word(block, where) for where, block in cells]
    strides = [_dig(block, where, "cell", "edges", 0, "stride") for where, block in cells]
    start = _dig(blocks[0], "blocks[0]", "layers", 0, "out_channels")
    in_channels = _dig(blocks[0], "blocks[0]", "layers", 0, "in_channels")
    inner = _dig(blocks[-2], cells[-1][0], "in_bottle", "out_channels")
    pool = _dig(blocks[-1], f"blocks[{len(blocks) - 1}]", "layers", 0, "kernel_size")
    check_int("stem out_channels", start, 1, MAX_WIDTH)
    check_int("last in_bottle out_channels", inner, 1, MAX_WIDTH)
    check_int("tail kernel_size", pool, 1, MAX_WIDTH)
    num_stages = 1 + sum(stride == 2 for stride in strides)
    # The last cell's width is start + alpha rounded to even, so alpha is known up to one: take the value that
    # fits.
    problem = None
    for alpha in (inner - start, inner - start + 1):
        if alpha < 0 or num_stages > 8:
            continue
        resolution = pool * 2 ** (num_stages - 1)
        classes = classifier["out_features"]
        arch = build(name, " ".join(words), start, alpha, num_stages, classes, in_channels, resolution)
        found = {key: data[key] for key in ("name", "blocks", "classifier")}
        difference = next(_differences(found, tree_to_official(arch), "net"), None)
        if difference is None:
            return arch
        problem = problem or difference
    raise ArchError(problem or "blocks: the widths do not grow as a pyramid")
