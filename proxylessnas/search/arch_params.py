"""Architecture parameters: probabilities of paths, sampling, and the gradient that gates give them.

Everything here is a function of one matrix [blocks, candidates] with a mask, whatever the candidates are, and
lives on the CPU in 64 bits: it is small, sampling from it must not wait for a GPU, and the probabilities that
an update should leave alone stay what they were to the last digits.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..train.sampler import mix64

_TURNS = 105  # what random numbers are for


class Pairs(NamedTuple):
    """Two candidates a block (the mode "two" of the arch step).

    Attributes:
        indices: long [blocks, 2]: the active one first. Where a block has but one candidate, both are it.
        real: bool [blocks]: whether there are two.
    """

    indices: Tensor
    real: Tensor


class ArchParameters(nn.Module):
    """The architecture parameters of a search (ProxylessNAS, section 3.2).

    Attributes:
        logits: alpha, float64 [blocks, candidates]; those outside the mask stay 0 and have no probability.
        mask: bool [blocks, candidates]: which candidates each block has.
    """

    def __init__(self, mask: Sequence[Sequence[bool]]) -> None:
        super().__init__()
        allowed = torch.tensor([list(row) for row in mask], dtype=torch.bool, device="cpu")
        if allowed.dim() != 2 or not allowed.any(1).all():
            raise ValueError("every block needs at least one candidate")
        self.mask: Tensor
        self.register_buffer("mask", allowed, persistent=False)
        self.logits = nn.Parameter(torch.zeros(allowed.shape, dtype=torch.float64, device="cpu"))

    def _apply(self, fn: object, recurse: bool = True) -> ArchParameters:
        # .to(device), .half() and the like leave it alone: see the top of this file.
        return self

    def init(self, generator: torch.Generator, std: float = 1e-3) -> None:
        """Draw alpha from N(0, std), as published."""
        with torch.no_grad():
            drawn = torch.randn(self.logits.shape, generator=generator, dtype=torch.float64) * std
            self.logits.copy_(drawn.masked_fill(~self.mask, 0.0))

    def log_probs(self) -> Tensor:
        """Return log p, [blocks, candidates]; -inf outside the mask. Differentiable."""
        return self.logits.masked_fill(~self.mask, float("-inf")).log_softmax(1)

    def probs(self) -> Tensor:
        """Return p = softmax(alpha), [blocks, candidates]; 0 outside the mask. Differentiable."""
        return self.logits.masked_fill(~self.mask, float("-inf")).softmax(1)

    @torch.no_grad()
    def sample(self, generator: torch.Generator) -> list[int]:
        """Draw one candidate a block from p."""
        return torch.multinomial(self.probs(), 1, generator=generator)[:, 0].tolist()

    def turn(self, step: int, seed: int) -> list[int]:
        """Return the candidates of a step if all have their turn (strict fairness; FairNAS, Chu et al. 2021).

        In as many steps as a block has candidates each one comes once, in an order that follows from the
        seed, the block and the round alone.
        """
        found = []
        for block, row in enumerate(self.mask.tolist()):
            candidates = [k for k, allowed in enumerate(row) if allowed]
            round_, place = divmod(step, len(candidates))
            order = random.Random(mix64(seed, _TURNS, block, round_)).sample(candidates, len(candidates))
            found.append(order[place])
        return found

    @torch.no_grad()
    def sample_pairs(self, generator: torch.Generator) -> Pairs:
        """Draw two different candidates a block from p, and by their two-way softmax which is active."""
        p = self.probs()
        real = self.mask.sum(1) > 1
        # Alone, a candidate is drawn with itself; a probability that rounds to 0 must not make this fail.
        safe = p.masked_fill(self.mask, 0).add(p.clamp_min(1e-300)).masked_fill(~self.mask, 0)
        drawn = torch.zeros(len(p), 2, dtype=torch.long)
        if real.any():
            drawn[real] = torch.multinomial(safe[real], 2, generator=generator)
        drawn[~real] = self.mask[~real].long().argmax(1, keepdim=True).expand(-1, 2)
        q = self.logits.gather(1, drawn).softmax(1)
        swap = torch.rand(len(p), generator=generator, dtype=torch.float64) >= q[:, 0]
        drawn = torch.where((swap & real)[:, None], drawn.flip(1), drawn)
        return Pairs(drawn, real)

    def pair_probs(self, pairs: Pairs) -> Tensor:
        """Return the two-way softmax over each pair, [blocks, candidates], 0 elsewhere. Differentiable."""
        inside = torch.zeros_like(self.mask).scatter_(1, pairs.indices, True)
        return self.logits.masked_fill(~inside, float("-inf")).softmax(1)

    @torch.no_grad()
    def add_gate_gradient(self, gates: Tensor, pairs: Pairs | None = None) -> None:
        """Add to alpha's gradient what that of the gates, G, gives: ``p_i (G_i - sum_j p_j G_j)``.

        This takes dL/dp for dL/dg (ProxylessNAS, equation 4). With pairs, p is their two-way softmax.
        """
        p = self.probs() if pairs is None else self.pair_probs(pairs)
        gates = gates.to(p).masked_fill(p == 0, 0.0)
        gradient = p * (gates - (p * gates).sum(1, keepdim=True))
        if self.logits.grad is None:
            self.logits.grad = gradient
        else:
            self.logits.grad += gradient

    @torch.no_grad()
    def keep_others(self, before: Tensor, pairs: Pairs) -> None:
        """After an update of pairs, leave every other candidate's probability exactly as it was.

        Both alphas of a pair are shifted alike, so that the pair's probability together is what it was
        (ProxylessNAS, section 3.2.1: "rescale"); all other alphas are put back to what they were ``before``,
        should the optimiser's momentum or weight decay have moved them.
        """
        old, new = before.gather(1, pairs.indices), self.logits.gather(1, pairs.indices)
        shift = old.logsumexp(1, keepdim=True) - new.logsumexp(1, keepdim=True)
        moved = torch.where(pairs.real[:, None], new + shift, old)
        self.logits.copy_(before.scatter(1, pairs.indices, moved))

    @torch.no_grad()
    def entropy(self) -> Tensor:
        """Return the entropy of each block's p in nats, [blocks]."""
        p = self.probs()
        return -(p * p.clamp_min(1e-300).log()).sum(1)

    @torch.no_grad()
    def most_probable(self) -> list[int]:
        """Return each block's most probable candidate (the first one of equals)."""
        return self.logits.masked_fill(~self.mask, float("-inf")).argmax(1).tolist()
