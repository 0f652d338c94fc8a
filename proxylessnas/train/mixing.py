"""Mix the pictures of a batch with each other, and their targets: mixup and cutmix."""

from __future__ import annotations

import random

import torch
from torch import Tensor

from .recipe import Recipe
from .sampler import MIXING, mix64


class Mixing:
    """Mixup (Zhang et al. 2018) and cutmix (Yun et al. 2019): each picture is mixed with the one before it.

    A batch is in random order already, so its neighbour is a random picture. Share, kind and box are the same
    for a whole batch and follow from (seed, epoch, step, rank) alone.
    """

    def __init__(self, recipe: Recipe, num_classes: int, rank: int = 0) -> None:
        self.mixup, self.cutmix = recipe.mixup_alpha, recipe.cutmix_alpha
        self.seed, self.num_classes, self.rank = recipe.seed, num_classes, rank

    def __bool__(self) -> bool:
        """Whether the recipe asks for any."""
        return self.mixup > 0 or self.cutmix > 0

    def __call__(self, inputs: Tensor, targets: Tensor, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        """Mix a batch.

        Args:
            inputs: float [B, 3, S, S]; changed in place.
            targets: long [B].
            epoch: number of the epoch.
            step: number of the step in the epoch.

        Returns:
            The inputs and the targets as shares of the classes, float [B, classes]; each row sums to 1.
        """
        dice = random.Random(mix64(self.seed, MIXING, epoch, step, self.rank))
        cut = self.cutmix > 0 and (not self.mixup > 0 or dice.random() < 0.5)
        alpha = self.cutmix if cut else self.mixup
        share = dice.betavariate(alpha, alpha)  # that each picture keeps of itself
        others = torch.cat([inputs[-1:], inputs[:-1]])
        if cut:
            share = _paste(inputs, others, share, dice)
        else:
            inputs.lerp_(others, 1 - share)
        own = torch.nn.functional.one_hot(targets, self.num_classes).to(inputs.dtype)
        return inputs, own.lerp(own.roll(1, 0), 1 - share)


def _paste(inputs: Tensor, others: Tensor, share: float, dice: random.Random) -> float:
    """Paste a box of the other pictures; return the share of its own pixels that each picture keeps."""
    height, width = inputs.shape[-2:]
    half = 0.5 * (1 - share) ** 0.5
    y, x = dice.randrange(height), dice.randrange(width)
    top, bottom = max(0, int(y - half * height)), min(height, int(y + half * height))
    left, right = max(0, int(x - half * width)), min(width, int(x + half * width))
    inputs[..., top:bottom, left:right] = others[..., top:bottom, left:right]
    return 1 - (bottom - top) * (right - left) / (height * width)
