"""Random models of a search space, on which a latency table is fitted and evaluated."""

from __future__ import annotations

import math
import random
from collections.abc import Collection

from ..arch.op_key import candidate_key, key_macs
from ..arch.ops import ZERO
from ..arch.space import SearchBlock, SearchSpace
from ..errors import LatencyError

#: A tilted model prefers the most expensive candidate of a block over the cheapest by up to e to this power.
STRONGEST_TILT = 4.0
_TRIES = 200  # to find a new model
_VAIN = 6  # times in a row that these were not enough: there are none left, or hardly any

Picks = tuple[int, ...]


def random_models(space: SearchSpace, count: int, *, seed: int, avoid: Collection[Picks] = ()) -> list[Picks]:
    """Draw different models of a space.

    Every second model is uniform: any candidate is as likely as another in each block, and over these models
    each block has each of its candidates equally often. Their latencies nearly all lie close to the mean, and
    a search asks for models far from it. So the others are tilted: each has a preference, drawn once for the
    whole model, for candidates with many or with few multiply-accumulates (skipping a block has none), and
    together they cover the range from close to the fastest model to close to the slowest.

    Args:
        space: the search space.
        count: how many models.
        seed: the same seed gives the same models, on every machine; more models begin with the same ones.
        avoid: models that must not come up, for instance those that a table was fitted on.

    Returns:
        ``count`` tuples of column indices as :meth:`SearchSpace.arch` takes them; fewer if the space has
        fewer. Models that only skip blocks of one stage in another order are alike, and count as one.

    Raises:
        LatencyError: there is no model left to draw.
    """
    rng = random.Random(f"{seed} {space.digest}")  # text: seeding with an object's hash would vary
    seen = {_canonical(space, choices) for choices in avoid}
    uniform = _balanced(space, -(-count // 2), seed)
    found: list[Picks] = []
    vain = 0
    for i in range(count):
        if vain == _VAIN:
            break
        for attempt in range(_TRIES):
            if i % 2:
                choices = _tilted(space, rng)
            else:
                choices = uniform[i // 2] if attempt == 0 else space.random_choices(rng)
            if (name := _canonical(space, choices)) not in seen:
                seen.add(name)
                found.append(choices)
                vain = 0
                break
        else:
            vain += 1
    if not found and count > 0:
        raise too_few(space)
    return found


def too_few(space: SearchSpace) -> LatencyError:
    """Return the error for a space that has too few models for a table."""
    return LatencyError(
        f"the space {space.name!r} has too few models ({space.count}) to measure a table on some and to "
        "evaluate it with others"
    )


def _canonical(space: SearchSpace, choices: Picks) -> tuple[tuple[int, ...], ...]:
    """Return what a model does, the same for models that only skip blocks at other places of a stage."""
    stages: list[list[int]] = [[] for _ in space.stages]
    for search_block, choice in zip(space.search_blocks, choices, strict=True):
        if space.candidate_ops[choice] != ZERO:
            stages[search_block.stage].append(choice)
    return tuple(map(tuple, stages))


def _balanced(space: SearchSpace, count: int, seed: int) -> list[Picks]:
    """Return ``count`` models in which each block has each choice equally often, give or take one.

    So do the first few of them, for whoever has no time for all.
    """
    columns = []
    for search_block in space.search_blocks:
        rng = random.Random(f"{seed} {space.digest} {search_block.index}")
        own = list(search_block.columns)
        choices: list[int] = []
        while len(choices) < count:
            rng.shuffle(own)
            choices += own
        columns.append(choices[:count])
    return list(zip(*columns, strict=True))


def _tilted(space: SearchSpace, rng: random.Random) -> Picks:
    tilt = rng.uniform(-STRONGEST_TILT, STRONGEST_TILT)
    choices = []
    for search_block in space.search_blocks:
        weights = [math.exp(tilt * place) for place in _places(search_block)]
        choices.append(rng.choices(search_block.columns, weights)[0])
    return tuple(choices)


def _places(search_block: SearchBlock) -> list[float]:
    """Return where each choice of a block lies between the one with fewest MACs (0) and with most (1)."""
    macs = [_macs(search_block, token) for token in search_block.candidate_ops]
    known = [m for m in macs if m is not None]
    middle = (min(known) + max(known)) / 2 if known else 0.0
    filled = [middle if m is None else m for m in macs]  # nobody knows the MACs of a registered operation
    low, high = min(filled), max(filled)
    return [(m - low) / (high - low) if high > low else 0.5 for m in filled]


def _macs(search_block: SearchBlock, token: str) -> float | None:
    if token == ZERO:
        return 0.0
    return key_macs(candidate_key(search_block, token))
