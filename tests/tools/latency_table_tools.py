"""A little search space and a table for it."""

from __future__ import annotations

import itertools
import random
from typing import Any

import torch

from proxylessnas.arch.space import SearchSpace, SpaceStage
from proxylessnas.latency import Conditions, LatencyTable, space_keys
from proxylessnas.latency.table import Entry

SPACE = SearchSpace(
    "little", 8, 8, 32, (SpaceStage(16, 2, 2), SpaceStage(24, 1, 2)), ("k3e2", "k5e2"), resolution=32
)


def little(seed: int = 0, space: SearchSpace = SPACE, **changes: Any) -> LatencyTable:
    """Return a table with random entries."""
    rng = random.Random(seed)
    entries = {key: Entry(rng.uniform(0.1, 2.0), runs=20) for key in space_keys(space)}
    return LatencyTable(Conditions(device_name="a test"), entries, **{"space": space, **changes})


def every_model(space: SearchSpace) -> list[tuple[int, ...]]:
    columns = space.candidate_ops
    return list(
        itertools.product(*[[columns.index(c) for c in p.candidate_ops] for p in space.search_blocks])
    )


def uniform(space: SearchSpace) -> torch.Tensor:
    mask = torch.tensor(space.mask, dtype=torch.float64)
    return mask / mask.sum(1, keepdim=True)
