"""An aligned start: the candidates of a block begin as nearly the same function."""

from __future__ import annotations

import torch

from proxylessnas.arch.spaces import read_space
from proxylessnas.search.init import align
from proxylessnas.search.supernet import SuperNet, seeded


def _outputs(model: SuperNet, block: int) -> torch.Tensor:
    """Return what each candidate makes of one input, [candidates, features]."""
    mixed_op, position = model.mixed_ops[block], model.space.search_blocks[block]
    x = torch.randn(
        4,
        position.in_channels,
        position.in_size,
        position.in_size,
        generator=torch.Generator().manual_seed(0),
    )
    ops = [op for k, allowed in enumerate(mixed_op.allowed) if allowed and (op := mixed_op.op(k)) is not None]
    with torch.no_grad(), model.statistics_kept():
        return torch.stack([op(x).flatten() for op in ops])


def _likeness(outputs: torch.Tensor) -> float:
    """Return the mean correlation of the candidates' outputs with the first one's."""
    return float(torch.corrcoef(outputs)[0, 1:].mean())


def test_candidates_begin_alike() -> None:
    space = read_space("tiny")
    before, after = seeded(space, 0).train(), seeded(space, 0).train()
    align(after, torch.Generator().manual_seed(1))
    for block, position in enumerate(space.search_blocks):
        if not position.shortcut:
            assert abs(_likeness(_outputs(before, block))) < 0.2
            assert _likeness(_outputs(after, block)) > 0.4


def test_blocks_with_a_shortcut_begin_as_the_identity() -> None:
    space = read_space("tiny")
    model = seeded(space, 0).train()
    align(model, torch.Generator().manual_seed(1))
    for block, position in enumerate(space.search_blocks):
        if position.shortcut:
            assert not _outputs(model, block).any()


def test_the_same_generator_gives_the_same_weights_of_the_usual_scale() -> None:
    space = read_space("small")
    one, two, other = (seeded(space, 0) for _ in range(3))
    for model, seed in ((one, 1), (two, 1), (other, 2)):
        align(model, torch.Generator().manual_seed(seed))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    plain = seeded(space, 0)
    differs = False
    for (name, a), b, c in zip(one.named_parameters(), plain.parameters(), other.parameters(), strict=True):
        differs |= not torch.equal(a, c)
        if a.dim() == 4 and a.shape[1] > 1:  # the usual rule, for the largest of the candidates
            assert 0.5 < float((a.std() / b.std()).detach()) < 1.4, name
    assert differs
