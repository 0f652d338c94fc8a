"""Random nets of a search space, on which a latency table is fitted and judged."""

from __future__ import annotations

import math
import random
from collections.abc import Collection

from ..arch.op_key import OpKey, key_macs
from ..arch.ops import ZERO
from ..arch.space import Position, SearchSpace
from ..errors import LatencyError

#: A tilted net prefers the dearest candidate of a block over the cheapest by up to e to this power.
STRONGEST_TILT = 4.0
_TRIES = 200  # to find a new net
_VAIN = 6  # times in a row that these were not enough: there are none left, or hardly any

Picks = tuple[int, ...]


def random_nets(space: SearchSpace, count: int, *, seed: int, avoid: Collection[Picks] = ()) -> list[Picks]:
    """Draw different nets of a space.

    Every second net is uniform: any candidate is as likely as another in each block, and over these nets each
    block has each of its candidates equally often, as far as the numbers go. They say how a table does on
    "random nets". But the latency of a net of twenty uniform blocks is nearly always close to the mean, and a
    search asks for nets far from it. So the others are tilted: each has a preference of its own, drawn once
    for the whole net, for candidates with many or with few multiply-accumulates (skipping a block has none).
    Together they cover the range of latencies from close to the fastest net to close to the slowest.

    Args:
        space: the search space.
        count: how many nets.
        seed: the same seed gives the same nets, on every machine; more nets begin with the same ones.
        avoid: nets that must not come up, for instance those that a table was fitted on.

    Returns:
        ``count`` tuples of column indices as :meth:`SearchSpace.arch` takes them; fewer if the space has
        fewer. Blocks of one stage that are skipped in another order give nets that are alike; they count as
        one.

    Raises:
        LatencyError: there is no net left to draw.
    """
    rng = random.Random(f"{seed} {space.digest}")  # text: seeding with an object's hash would vary
    seen = {_canonical(space, picks) for picks in avoid}
    uniform = _balanced(space, -(-count // 2), seed)
    found: list[Picks] = []
    vain = 0
    for i in range(count):
        if vain == _VAIN:
            break
        for attempt in range(_TRIES):
            if i % 2:
                picks = _tilted(space, rng)
            else:
                picks = uniform[i // 2] if attempt == 0 else space.random_picks(rng)
            if (name := _canonical(space, picks)) not in seen:
                seen.add(name)
                found.append(picks)
                vain = 0
                break
        else:
            vain += 1
    if not found and count > 0:
        raise too_few(space)
    return found


def too_few(space: SearchSpace) -> LatencyError:
    """Return the error for a space that has too few nets for a table."""
    return LatencyError(
        f"the space {space.name!r} has too few nets ({space.count}) to measure a table on some and to judge "
        "it on others"
    )


def _canonical(space: SearchSpace, picks: Picks) -> tuple[tuple[int, ...], ...]:
    """Return what a net does, the same for nets that only skip blocks at other places of a stage."""
    stages: list[list[int]] = [[] for _ in space.stages]
    for position, pick in zip(space.positions, picks, strict=True):
        if space.columns[pick] != ZERO:
            stages[position.stage].append(pick)
    return tuple(map(tuple, stages))


def _balanced(space: SearchSpace, count: int, seed: int) -> list[Picks]:
    """Return ``count`` nets in which each block has each choice equally often, give or take one.

    So do the first few of them, for whoever has no time for all.
    """
    columns = []
    for position in space.positions:
        rng = random.Random(f"{seed} {space.digest} {position.index}")
        choices = list(range(len(position.choices)))
        picks: list[int] = []
        while len(picks) < count:
            rng.shuffle(choices)
            picks += choices
        columns.append(picks[:count])
    return list(zip(*columns, strict=True))


def _tilted(space: SearchSpace, rng: random.Random) -> Picks:
    tilt = rng.uniform(-STRONGEST_TILT, STRONGEST_TILT)
    picks = []
    for position in space.positions:
        weights = [math.exp(tilt * place) for place in _places(position)]
        picks.append(rng.choices(range(len(weights)), weights)[0])
    return tuple(picks)


def _places(position: Position) -> list[float]:
    """Return where each choice of a block lies between the one with fewest MACs (0) and with most (1)."""
    macs = [_macs(position, token) for token in position.choices]
    known = [m for m in macs if m is not None]
    middle = (min(known) + max(known)) / 2 if known else 0.0
    filled = [middle if m is None else m for m in macs]  # nobody knows the MACs of a registered operation
    low, high = min(filled), max(filled)
    return [(m - low) / (high - low) if high > low else 0.5 for m in filled]


def _macs(position: Position, token: str) -> float | None:
    if token == ZERO:
        return 0.0
    p = position
    return key_macs(OpKey(token, p.in_channels, p.out_channels, p.in_size, p.stride, p.shortcut))
