"""What a search space holds, and what its models cost: multiply-accumulates, parameters, ms by a table."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

from ..arch.op_key import OpKey, arch_keys, candidate_key, key_bytes, key_macs
from ..arch.ops import ZERO, parse_token
from ..arch.ops.spec import OpSpec
from ..arch.space import SearchSpace
from ..arch.space_base import SearchBlock, Space
from ..arch.spaces import as_chain
from ..arch.tree_space import EDGE_OPS, TreeSpace
from .table import LatencyTable

SIZES = ("macs", "params")


def space_facts(space: Space, table: LatencyTable | None = None) -> dict[str, Any]:
    """Return what a space holds and how far its models reach, as JSON values.

    Args:
        space: the space.
        table: latencies of its operations; None leaves the milliseconds out.

    Returns:
        Among others ``macs``, ``params`` and ``ms``: of the model with fewest, and of that with most, which
        are other models for each of the three; the same for the searched blocks of each stage.

    Raises:
        LatencyKeyError: the table does not cover the space.
        ArchError: the space is one of tree cells, and a table is given.
    """
    costs = {kind: _blocks(space, place) for place, kind in enumerate(SIZES)}
    fixed = _fixed(space, costs)
    totals: dict[str, list[Any]] = {
        kind: [fixed[place] + ends for ends in _range(costs[kind])] for place, kind in enumerate(SIZES)
    }
    if table is not None:
        space = as_chain(space)
        rows = zip(space.search_blocks, table.costs(space)[0].tolist(), strict=True)
        costs["ms"] = [[row[k] for k in block.columns] for block, row in rows]
        totals["ms"] = [*table.range_ms(space)]
    stages = []
    for s, stage in enumerate(space.stages):
        own = [block for block in space.search_blocks if block.stage == s]
        found: dict[str, Any] = {"width": stage.width, "stride": stage.stride, "blocks": stage.blocks}
        found |= {"in_channels": own[0].in_channels, "in_size": own[0].in_size, "out_size": own[0].out_size}
        found["choices"] = [len(block.columns) for block in own]
        for kind, every in costs.items():
            found[kind] = [*_range([every[block.index] for block in own])]
        stages.append(found)
    return {
        "name": space.name,
        "kind": space.kind,
        **{name: getattr(space, name) for name in _SHAPE[space.kind]},
        "models": space.count,
        **totals,
        "stages": stages,
        "candidates": [_candidate(space, token) for token in space.candidate_ops],
        "digest": space.digest,
    }


_SHAPE = {
    "chain": "act resolution in_channels num_classes stem stem_stride first last".split(),
    "tree": "resolution in_channels num_classes cells start alpha num_stages".split(),
}


def _fixed(space: Space, costs: dict[str, list[list[float]]]) -> tuple[float, float]:
    """Return multiply-accumulates and parameters of what every model of the space has."""
    if isinstance(space, SearchSpace):
        keys = arch_keys(space.arch(space.first_choices))
        every = [_size(key) for key in keys[: -2 - len(space.search_blocks)] + keys[-2:]]
        return sum(macs for macs, _ in every), sum(params for _, params in every)
    from ..models.factory import create_model
    from ..models.profile import profile

    whole = profile(create_model(space.arch(space.first_choices)), space.resolution)
    macs, params = (sum(row[0] for row in costs[kind]) for kind in SIZES)
    return whole.macs - macs, whole.params - params


def _candidate(space: Space, token: str) -> dict[str, Any]:
    """Return what a candidate is, and how many positions have it."""
    if isinstance(space, TreeSpace):
        return {"op": token, "about": EDGE_OPS[token], "blocks": len(space.search_blocks)}
    op, _ = parse_token(token)
    about = op.about if isinstance(op, OpSpec) else "the block is skipped" if token == ZERO else "registered"
    blocks = sum(token in block.candidate_ops for block in space.search_blocks)
    return {"op": token, "about": about, "blocks": blocks}


def _range(costs: list[list[float]]) -> tuple[float, float]:
    """Return the least and the most that blocks can cost together."""
    low, high = (math.fsum(map(end, costs)) for end in (min, max))
    whole = all(isinstance(value, int) for row in costs for value in row)
    return (int(low), int(high)) if whole else (low, high)


def _blocks(space: Space, place: int) -> list[list[float]]:
    cost = _cost if isinstance(space, SearchSpace) else _edge_cost
    return [[cost(block, token)[place] for token in block.candidate_ops] for block in space.search_blocks]


def _edge_cost(block: SearchBlock, letter: str) -> tuple[int, int]:
    return _edge_size(letter, block.in_channels, block.in_size)


@lru_cache(4096)
def _edge_size(letter: str, width: int, size: int) -> tuple[int, int]:
    from ..models.profile import profile
    from ..models.pyramid import make_edge

    counted = profile(make_edge(letter, width), (width, size, size))
    return counted.macs, counted.params


def _cost(block: SearchBlock, token: str) -> tuple[int, int]:
    return (0, 0) if token == ZERO else _size(candidate_key(block, token))


@lru_cache(4096)
def _size(key: OpKey) -> tuple[int, int]:
    """Return multiply-accumulates and parameters; of a registered operation, those of its module."""
    macs, numbers = key_macs(key), key_bytes(key, 1)
    if macs is not None and numbers is not None:
        return macs, numbers[0]
    from ..models.layers import ResidualBlock
    from ..models.profile import profile

    counted = profile(ResidualBlock(key.block), (key.in_channels, key.size, key.size))
    return counted.macs, counted.params
