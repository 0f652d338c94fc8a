"""The mathematics of :mod:`~.predictor`: what work an operation is, and how alike two operations are."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from .keys import CLASSIFIER, OpKey

WORK_COLUMNS = 6
PLACE_COLUMNS = 6

# The shape of the kernel; flat optima, held-out on the Pixel-1 table. They belong to the file's version.
CONSTANT, LINEAR, WIDTHS = 1.0, 0.3, (1.0, 2.0)


def kind_of(key: OpKey) -> str:
    """Return what shares nothing but the line with other kinds."""
    return f"custom {key.op}" if key.kind == "custom" else key.kind


def work(keys: Iterable[OpKey]) -> Tensor:
    """Return the work of each operation, float64 [keys, 6].

    Columns: millions of multiply-accumulates in dense and in depthwise convolutions, millions of values that
    dense and depthwise ones read and write, millions of dense weights, and 1. A registered operation counts
    as one 1x1 convolution; what is wrong with that, the left-over part of its own kind learns.
    """
    rows = []
    for key in keys:
        before, after = key.size * key.size, key.out_size * key.out_size
        dense = depthwise = moved = moved_depthwise = weights = 0.0
        if key.kind == CLASSIFIER:
            dense = weights = key.in_channels * key.out_channels
            moved = key.in_channels * before
        elif key.kind == "mbconv":
            mid = round(key.in_channels * key.expand)
            if key.expand > 1:
                dense += key.in_channels * mid * before
                moved += (key.in_channels + mid) * before
                weights += key.in_channels * mid
            depthwise = key.kernel * key.kernel * mid * after
            moved_depthwise = mid * (before + after)
            dense += mid * key.out_channels * after
            moved += (mid + key.out_channels) * after
            weights += mid * key.out_channels
        else:
            weights = (9 if key.kind == "stem" else 1) * key.in_channels * key.out_channels
            dense = weights * after
            moved = key.in_channels * before + key.out_channels * after
        rows.append([dense, depthwise, moved, moved_depthwise, weights, 1e6])
    return torch.tensor(rows, dtype=torch.float64, device="cpu") / 1e6


def place(keys: Iterable[OpKey]) -> Tensor:
    """Return where operations lie among shapes, float64 [keys, 6], all on a log scale."""
    rows = [(k.in_channels, k.out_channels, k.size, k.out_size, k.kernel or 1, k.expand or 1) for k in keys]
    return torch.tensor(rows, dtype=torch.float64, device="cpu").log()


def similarity(a: Sequence[OpKey], b: Sequence[OpKey], center: Tensor) -> Tensor:
    """Return the kernel between operations, float64 [len(a), len(b)]; 0 between kinds."""
    at, bt = place(a), place(b)
    numbers: dict[str, int] = {}
    kinds = [
        torch.tensor([numbers.setdefault(kind_of(key), len(numbers)) for key in keys], device="cpu")
        for keys in (a, b)
    ]
    distance = (at[:, None] - bt[None]).pow(2).sum(-1)
    bumps = sum((-0.5 * distance / width**2).exp() for width in WIDTHS) / len(WIDTHS)
    return (kinds[0][:, None] == kinds[1][None]) * (
        CONSTANT + bumps + LINEAR * (at - center) @ (bt - center).T
    )


def non_negative(matrix: Tensor, target: Tensor) -> Tensor:
    """Return the least-squares solution with no negative entry (active-set method of Lawson and Hanson)."""
    scale = matrix.norm(dim=0).clamp_min(1e-300)
    matrix = matrix / scale
    x, free = torch.zeros_like(scale), torch.zeros(len(scale), dtype=torch.bool, device="cpu")
    for _ in range(10 * len(scale)):
        gain = (matrix.T @ (target - matrix @ x)).masked_fill(free, -math.inf)
        if gain.max() <= 1e-10 * target.norm():
            break
        free[int(gain.argmax())] = True
        while True:
            wanted = torch.zeros_like(x)
            wanted[free] = torch.linalg.lstsq(matrix[:, free], target[:, None], driver="gelsd").solution[:, 0]
            negative = free & (wanted <= 0)
            if not negative.any():
                x = wanted
                break
            # As far towards it as no entry turns negative; whichever is 0 then stays so.
            step = (x[negative] / (x[negative] - wanted[negative])).min()
            x = x + step * (wanted - x)
            free &= ~(negative & (x <= 1e-12))
            x[~free] = 0
    return x / scale
