"""Choose images class by class: a validation part, or a few of each for a quick try.

The choice depends on the labels in their order and on the seed, so that sorted file names give the same one
on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def hold_out(labels: Sequence[int], fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Return the places of the images to train on and of those to validate on, both in ascending order.

    Of each class the nearest whole number to ``fraction`` is held out, but at least one, and never the last
    one: a class with a single image is only trained on.
    """
    train, val = [], []
    for places in _shuffled_classes(labels, seed):
        n = min(max(1, round(fraction * len(places))), len(places) - 1)
        val.append(places[:n])
        train.append(places[n:])
    return _ascending(train), _ascending(val)


def few_of_each(labels: Sequence[int], limit: int, seed: int) -> list[int]:
    """Return the places of at most ``limit`` images of each class, in ascending order.

    A smaller limit gives some of the images that a larger one gives.
    """
    return _ascending([places[:limit] for places in _shuffled_classes(labels, seed)])


def _shuffled_classes(labels: Sequence[int], seed: int) -> list[Tensor]:
    """Return the places of each class that has any, in an order drawn from the seed."""
    generator = torch.Generator().manual_seed(seed)
    all_labels = torch.as_tensor(labels, dtype=torch.long)
    found = []
    # A stable sort keeps each class's images in their own order.
    counts = torch.bincount(all_labels).tolist()
    for places in all_labels.argsort(stable=True).split(counts):
        if len(places):
            found.append(places[torch.randperm(len(places), generator=generator)])
    return found


def _ascending(parts: Sequence[Tensor]) -> list[int]:
    chosen: list[int] = torch.cat(list(parts)).sort().values.tolist() if parts else []
    return chosen
