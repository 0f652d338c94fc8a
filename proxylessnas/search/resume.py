"""What a search goes on from: gathered into a checkpoint, checked and put back."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from ..train import continued
from .candidates import Judged
from .recipe import SearchRecipe

if TYPE_CHECKING:
    from .engine import Searcher


def search_state(searcher: Searcher) -> dict[str, Any]:
    """Return everything a search goes on from; every process takes part."""
    gradient, reinforce = searcher.arch_step, searcher.reinforce
    return {
        **continued.shared_state(searcher, _space(searcher)),
        "kind": "search",
        "alphas": searcher.net.alphas.logits.detach().clone(),
        "arch_optimizer": searcher.arch_optimizer.state_dict(),
        "arch_steps": searcher.arch_steps,
        "arch_scale": gradient.scale.state_dict() if gradient and gradient.scale else None,
        "controller": searcher.controller.state_dict(),
        "baseline": reinforce.baseline if reinforce else None,
        "health": searcher.health.state_dict(),
        "judged": [[list(j.picks), j.top1, list(j.costs)] for j in searcher.judged],
        "paths": searcher.path_generator.get_state(),
        "arch_paths": searcher.arch_generator.get_state(),
        "budgets": _budgets(searcher),
    }


def go_on(searcher: Searcher) -> list[str]:
    """Put a search where its newest checkpoint is, if there is one; return what the user should know.

    Raises:
        CheckpointError: the checkpoint belongs to another search, or none is sound.
    """
    return continued.go_on(
        searcher,
        lambda state: _differences(searcher, state),
        lambda state: restore(searcher, state),
        lambda: searcher.finished,
        "the result can differ from that of a search in one piece",
    )


def restore(searcher: Searcher, state: dict[str, Any]) -> None:
    """Put a search into the state of a checkpoint, whatever it is of."""
    continued.restore_shared(searcher, state)
    with torch.no_grad():
        searcher.net.alphas.logits.copy_(state["alphas"])
    searcher.arch_optimizer.load_state_dict(state["arch_optimizer"])
    searcher.arch_steps = int(state["arch_steps"])
    gradient, scale = searcher.arch_step, state.get("arch_scale")
    if gradient is not None and gradient.scale is not None and scale is not None:
        gradient.scale.load_state_dict(scale)
    searcher.controller.load_state_dict(state["controller"])
    if searcher.reinforce is not None:
        searcher.reinforce.baseline = state["baseline"]
    searcher.health.load_state_dict(state["health"])
    searcher.judged[:] = [Judged(tuple(p), float(a), tuple(c)) for p, a, c in state["judged"]]
    searcher.path_generator.set_state(state["paths"])
    searcher.arch_generator.set_state(state["arch_paths"])


def _differences(searcher: Searcher, state: dict[str, Any]) -> Iterator[str]:
    if state.get("kind") != "search":
        yield ", which is no search"
    before = SearchRecipe.from_dict(state["recipe"], f"the recipe in {searcher.checkpoints}")
    different = searcher.recipe.differences(before)
    if different:
        yield f"; its recipe differs ({'; '.join(different)})"
    if state["arch"] != _space(searcher):
        yield ", in another space"
    yield from continued.other_pictures(searcher, state)
    if state["budgets"] != _budgets(searcher):
        yield ", with other targets or another latency table"


def _space(searcher: Searcher) -> str:
    return json.dumps(searcher.net.space.to_dict(), sort_keys=True)


def _budgets(searcher: Searcher) -> list[list[Any]]:
    """Return the limits, and sums that change with the costs."""
    found: list[list[Any]] = []
    for b in searcher.budgets:
        table = b.costs.table.masked_fill(~b.costs.mask, 0.0)
        # Exactly rounded: the last digits of a dot product depend on the processor.
        weighted = math.fsum(n * v for n, v in enumerate(table.flatten().tolist(), 1))
        found.append([b.costs.name, b.limit, b.costs.fixed, weighted])
    return found
