"""A collapse to skipped blocks is told when it lasts or stands at the end, and not when it passes."""

from __future__ import annotations

import pytest
import torch

from proxylessnas.errors import ProxylessError
from proxylessnas.search.arch_params import ArchParameters
from proxylessnas.search.logger import Health

# Four blocks of two candidates and a skip, and one that cannot be skipped.
MASK = [[True, True, True]] * 4 + [[True, True, False]]
ZERO = 2


def alphas(skipped: int) -> ArchParameters:
    """Return alphas that would skip so many of the four blocks, with a probability of 0.9 each."""
    found = ArchParameters(MASK)
    p = torch.tensor([0.05, 0.05, 0.9], dtype=torch.float64)
    for i in range(4):
        found.logits.data[i] = (p if i < skipped else p.flip(0)).log()
    return found


def told(states: list[int], *, ends: bool = True) -> list[int]:
    """Return the epochs, from 1, after which something is told of a search with these skipped blocks."""
    health = Health(ZERO, 0)
    found = []
    for epoch, skipped in enumerate(states, 1):
        last = ends and epoch == len(states)
        notes = health.end_of_epoch(alphas(skipped), last=last)
        assert all("the search collapses to a shallow model" in note for note in notes)
        found += [epoch] * len(notes)
        health.load_state_dict(health.state_dict())  # as a run that is killed here and goes on
    return found


def test_the_figures() -> None:
    found = Health(ZERO, 0).figures(alphas(3))
    assert found["skip_share"] == pytest.approx((3 * 0.9 + 0.05) / 4)
    assert found["skip_share_now"] == 0.75


@pytest.mark.parametrize(
    ("states", "epochs"),
    [
        ([0, 1, 2, 3], []),  # three of four are no collapse
        ([4, 0, 0], []),  # it passes
        ([4, 4, 0, 4, 4, 0], []),
        ([0, 4, 4, 4, 4, 4], [4]),  # it lasts, and is told once
        ([4, 4, 0, 4, 4, 4, 0, 4], [6]),
        ([0, 0, 4], [3]),  # it stands at the end
        ([4], [1]),
    ],
)
def test_a_collapse_is_told_if_it_lasts_or_stands_at_the_end(states: list[int], epochs: list[int]) -> None:
    assert told(states) == epochs


def test_a_collapse_that_does_not_last_yet_is_not_told() -> None:
    assert told([0, 4, 4], ends=False) == []
    assert told([0, 4, 4, 4], ends=False) == [4]


def test_the_note_says_how_much_and_how_long() -> None:
    health = Health(ZERO, 0)
    for _ in range(2):
        assert health.end_of_epoch(alphas(4)) == []
    (note,) = health.end_of_epoch(alphas(4))
    assert note.startswith("100% of the skippable blocks are skipped, for 3 epochs now:")


def test_a_checkpoint_from_before_the_counting_can_be_read() -> None:
    health = Health(ZERO, 2)
    health.load_state_dict({"still": 1, "zeros": 0, "last": alphas(4).logits.detach(), "warned": True})
    assert (health.collapsed, health.warned) == (0, True)
    with pytest.raises(ProxylessError, match="have not moved for 2 epochs"):
        health.end_of_epoch(alphas(4))
