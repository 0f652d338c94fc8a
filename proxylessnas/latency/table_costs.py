"""What every candidate of every block of a space costs, and a check of their probabilities."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from ..arch import ZERO
from ..errors import LatencyError, LatencyKeyError, shown
from ..space import Position, SearchSpace
from .keys import STEM, OpKey, arch_keys, nearest_key


def cost_matrix(space: SearchSpace, lookup: Callable[[OpKey], float]) -> tuple[Tensor, float]:
    """Return the milliseconds of each candidate, float64 [blocks, columns], and those of the fixed parts.

    "-" costs nothing; cells where a block does not have the candidate are 0 too.
    """
    rows = [
        [lookup(_key(p, c)) if c in p.choices and c != ZERO else 0.0 for c in space.columns]
        for p in space.positions
    ]
    keys = arch_keys(space.arch([0] * len(rows)))  # the first candidate is never "-"
    fixed_ms = sum(map(lookup, keys[: -2 - len(rows)] + keys[-2:]))
    with torch.inference_mode(False):  # kept, and used again where gradients are wanted
        return torch.tensor(rows, dtype=torch.float64, device="cpu"), fixed_ms


def _key(position: Position, token: str) -> OpKey:
    p = position
    return OpKey(token, p.in_channels, p.out_channels, p.in_size, p.stride, p.shortcut)


def check_probs(probs: Tensor, space: SearchSpace) -> None:
    """Check the probabilities of a space's candidates; on a GPU their shape alone, as looking is waiting.

    Raises:
        LatencyError: not a floating tensor [blocks, columns], a row that is no distribution, or a
            probability where a block does not have the candidate.
    """
    shape = (len(space.positions), len(space.columns))
    if not isinstance(probs, Tensor) or not probs.is_floating_point() or probs.shape != shape:
        given = f"{probs.dtype} {list(probs.shape)}" if isinstance(probs, Tensor) else shown(probs)
        raise LatencyError(f"probs must be a floating tensor {list(shape)}, not {given}")
    if probs.device.type != "cpu":
        return
    close = max(1e-3, 8 * torch.finfo(probs.dtype).eps)
    values = probs.detach().double()
    # NaN is in no range, so both tests are of what is right.
    right = ((values.sum(1) - 1).abs() <= close) & (values >= -close).all(1)
    if not right.all():
        row = int((~right).nonzero()[0])
        raise LatencyError(f"probs: row {row} is no distribution: {shown(values[row].tolist(), 200)}")
    outside = values.masked_fill(torch.tensor(space.mask, device="cpu"), 0).nonzero()
    if len(outside):
        row, column = outside[0].tolist()
        raise LatencyError(
            f"probs: row {row} gives {float(values[row, column]):.3g} to {space.columns[column]!r}, which "
            "that block does not have: it must be 0 (mask the logits with -inf before the softmax)"
        )


def missing_entries(
    keys: Sequence[OpKey], known: Iterable[OpKey], space: SearchSpace | None
) -> LatencyKeyError:
    """Return the error for operations that a table (of ``known`` ones, made for ``space``) lacks."""
    known = list(known)
    nearest = nearest_key(keys[0], known)
    others = f" (and {len(keys) - 1} more)" if len(keys) > 1 else ""
    if space is not None:
        what = f"covers the space {shown(space.name)} at {space.resolution} px, {space.num_classes} classes"
    else:
        sizes = sorted({key.size for key in known if key.op == STEM})
        inputs = f" of nets for inputs of {', '.join(map(str, sizes))} px" if sizes else ""
        what = f"holds {len(known)} operations{inputs}"
    return LatencyKeyError(
        f"the latency table has no entry for {keys[0]}{others}; the nearest it has is {nearest}. It {what}: "
        "build one for your space (`proxylessnas latency build`), or have the missing entries predicted "
        "(LatencyTable.extended)"
    )
