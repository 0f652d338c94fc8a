"""What a search goes on from: gathered into a checkpoint, checked and put back."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import TYPE_CHECKING, Any

import torch

from .._version import __version__
from ..errors import CheckpointError, ProxylessError
from ..train import checkpoint
from ..train.sampler import mix64
from .candidates import Judged
from .recipe import SearchRecipe

if TYPE_CHECKING:
    from .engine import Searcher


def search_state(searcher: Searcher) -> dict[str, Any]:
    """Return everything a search goes on from; every process takes part."""
    own = checkpoint.pack(checkpoint.generator_states(searcher.device))
    generators = [checkpoint.unpack(part) for part in searcher.processes.gather(own)]
    scaler = searcher.step.scaler
    reinforce = searcher.reinforce
    return {
        "kind": "search",
        "position": dataclasses.asdict(searcher.position),
        "model": searcher.net.state_dict(),
        "optimizer": searcher.optimizer.state_dict(),
        "scaler": scaler.state_dict() if scaler else None,
        "alphas": searcher.net.alphas.logits.detach().clone(),
        "arch_optimizer": searcher.arch_optimizer.state_dict(),
        "arch_steps": searcher.arch_steps,
        "controller": searcher.controller.state_dict(),
        "baseline": reinforce.baseline if reinforce else None,
        "health": searcher.health.state_dict(),
        "judged": [[list(j.picks), j.top1, list(j.costs)] for j in searcher.judged],
        "paths": searcher.path_generator.get_state(),
        "arch_paths": searcher.arch_generator.get_state(),
        "rng": generators,
        "recipe": searcher.recipe.to_dict(),
        "arch": json.dumps(searcher.net.space.to_dict(), sort_keys=True),
        "data": searcher.data.fingerprint,
        "budgets": _budgets(searcher),
        "run": _circumstances(searcher),
    }


def go_on(searcher: Searcher) -> list[str]:
    """Put a search where its newest checkpoint is, if there is one; return what the user should know.

    Raises:
        CheckpointError: the checkpoint belongs to another search, or none is sound.
    """
    processes = searcher.processes
    state, problems = checkpoint.newest(searcher.checkpoints) if processes.main else (None, [])
    packed = processes.broadcast(checkpoint.pack({"state": state}) if processes.main else None)
    state = checkpoint.unpack(packed)["state"]
    if state is None:
        torch.manual_seed(mix64(searcher.recipe.seed, processes.rank))
        return []
    try:
        _check_same(searcher, state)
        restore(searcher, state)
    except ProxylessError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as e:
        reason = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        raise CheckpointError(f"{searcher.checkpoints}: the checkpoint is malformed ({reason[:200]})") from e
    notes = [f"{problem}; the checkpoint before it is used" for problem in problems]
    p = searcher.position
    notes.append(f"continued from step {p.global_step:,} (epoch {p.epoch + 1})")
    before, now = state.get("run") or {}, _circumstances(searcher)
    changed = [f"{key}: {now[key]}, was {before.get(key)}" for key in now if before.get(key) != now[key]]
    if changed:
        notes.append("the result can differ from that of a search in one piece: " + "; ".join(changed))
    return notes


def restore(searcher: Searcher, state: dict[str, Any]) -> None:
    """Put a search into the state of a checkpoint, whatever it is of."""
    searcher.net.load_state_dict(state["model"])
    searcher.optimizer.load_state_dict(state["optimizer"])
    if searcher.step.scaler is not None:
        searcher.step.scaler.load_state_dict(state["scaler"])
    with torch.no_grad():
        searcher.net.alphas.logits.copy_(state["alphas"])
    searcher.arch_optimizer.load_state_dict(state["arch_optimizer"])
    searcher.arch_steps = int(state["arch_steps"])
    searcher.controller.load_state_dict(state["controller"])
    if searcher.reinforce is not None:
        searcher.reinforce.baseline = state["baseline"]
    searcher.health.load_state_dict(state["health"])
    searcher.judged = [Judged(tuple(p), float(a), tuple(c)) for p, a, c in state["judged"]]
    searcher.path_generator.set_state(state["paths"])
    searcher.arch_generator.set_state(state["arch_paths"])
    rank = searcher.processes.rank
    if rank < len(state["rng"]):
        checkpoint.set_generator_states(state["rng"][rank], searcher.device)
    else:
        torch.manual_seed(mix64(searcher.recipe.seed, rank, state["position"]["global_step"]))
    searcher.position = type(searcher.position)(**state["position"])


def _check_same(searcher: Searcher, state: dict[str, Any]) -> None:
    where = f"{searcher.settings.out} holds another run"
    advice = "use another --out, or --restart, which keeps that folder under another name"
    if state.get("kind") != "search":
        raise CheckpointError(f"{where}, which is no search: {advice}")
    before = SearchRecipe.from_dict(state["recipe"], f"the recipe in {searcher.checkpoints}")
    different = searcher.recipe.differences(before)
    if different:
        raise CheckpointError(f"{where}; its recipe differs ({'; '.join(different)}): {advice}")
    if state["arch"] != json.dumps(searcher.net.space.to_dict(), sort_keys=True):
        raise CheckpointError(f"{where}, in another space: {advice}")
    if state["data"] != searcher.data.fingerprint:
        raise CheckpointError(f"{where}, on other pictures than those of {searcher.data.name} now: {advice}")
    if state["budgets"] != _budgets(searcher):
        raise CheckpointError(f"{where}, with other targets or another latency table: {advice}")


def _budgets(searcher: Searcher) -> list[list[Any]]:
    """Return the limits, and sums that change with the costs."""
    found: list[list[Any]] = []
    for b in searcher.budgets:
        table = b.costs.table.masked_fill(~b.costs.mask, 0.0)
        # Exactly rounded: the last digits of a dot product depend on the processor.
        weighted = math.fsum(n * v for n, v in enumerate(table.flatten().tolist(), 1))
        found.append([b.costs.name, b.limit, b.costs.fixed, weighted])
    return found


def _circumstances(searcher: Searcher) -> dict[str, Any]:
    """Return what may change between two parts of a search, at the price of the last digits."""
    return {
        "processes": searcher.processes.world,
        "device": searcher.device.type,
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "proxylessnas": __version__,
    }
