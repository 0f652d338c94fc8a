"""What a run goes on from: gathered into a checkpoint, checked and put back."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch

from .._version import __version__
from ..errors import CheckpointError, ProxylessError
from . import checkpoint
from .recipe import Recipe, differences
from .sampler import mix64

if TYPE_CHECKING:
    from .engine import Trainer


def run_state(trainer: Trainer) -> dict[str, Any]:
    """Return everything a run goes on from; every process takes part, as each has generators of its own."""
    own = checkpoint.pack(checkpoint.generator_states(trainer.device))
    generators = [checkpoint.unpack(part) for part in trainer.processes.gather(own)]
    scaler, average = trainer.step.scaler, trainer.average
    return {
        "position": dataclasses.asdict(trainer.position),
        "model": trainer.net.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "average": average.state_dict() if average else None,
        "scaler": scaler.state_dict() if scaler else None,
        "rng": generators,
        "recipe": trainer.recipe.to_dict(),
        "arch": _arch(trainer),
        "data": trainer.data.fingerprint,
        "start": trainer.start,
        "preprocessing": _preprocessing(trainer),
        "run": _circumstances(trainer),
    }


def go_on(trainer: Trainer) -> list[str]:
    """Put a run where its newest checkpoint is, if there is one, and return what the user should know.

    Only the first process reads files; the others get what it read.

    Raises:
        CheckpointError: the checkpoint belongs to another run (recipe, data or net differ), or none is sound.
    """
    processes = trainer.processes
    state, problems = checkpoint.newest(trainer.checkpoints) if processes.main else (None, [])
    packed = processes.broadcast(checkpoint.pack({"state": state}) if processes.main else None)
    state = checkpoint.unpack(packed)["state"]
    if state is None:
        torch.manual_seed(mix64(trainer.recipe.seed, processes.rank))
        return []
    try:
        _check_same(trainer, state)
        _restore(trainer, state)
    except ProxylessError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as e:
        reason = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        raise CheckpointError(f"{trainer.checkpoints}: the checkpoint is malformed ({reason[:200]})") from e
    position = trainer.position
    notes = [f"{problem}; the checkpoint before it is used" for problem in problems]
    if position.epoch >= trainer.recipe.epochs:
        return [*notes, "this run is finished: only its end is repeated"]
    notes.append(f"continued from step {position.global_step:,} (epoch {position.epoch + 1})")
    before = state.get("run") or {}
    now = _circumstances(trainer)
    changed = [f"{key}: {now[key]}, was {before.get(key)}" for key in now if before.get(key) != now[key]]
    if changed:
        notes.append(
            "the result can differ in its last digits from a run in one piece: " + "; ".join(changed)
        )
    return notes


def _restore(trainer: Trainer, state: dict[str, Any]) -> None:
    processes, position = trainer.processes, state["position"]
    trainer.net.load_state_dict(state["model"])
    trainer.optimizer.load_state_dict(state["optimizer"])
    if trainer.average is not None:
        trainer.average.load_state_dict(state["average"])
    if trainer.step.scaler is not None:
        trainer.step.scaler.load_state_dict(state["scaler"])
    if processes.rank < len(state["rng"]):
        checkpoint.set_generator_states(state["rng"][processes.rank], trainer.device)
    else:
        torch.manual_seed(mix64(trainer.recipe.seed, processes.rank, position["global_step"]))
    trainer.position = type(trainer.position)(**position)


def _check_same(trainer: Trainer, state: dict[str, Any]) -> None:
    where = f"{trainer.settings.out} holds another run"
    advice = "use another --out, or --restart, which keeps that folder under another name"
    before = Recipe.from_dict(state["recipe"], f"the recipe in {trainer.checkpoints}")
    different = differences(trainer.recipe, before)
    if different:
        raise CheckpointError(f"{where}; its recipe differs ({'; '.join(different)}): {advice}")
    if state["arch"] != _arch(trainer):
        raise CheckpointError(f"{where}, of another net ({str(state['arch'])[:200]}): {advice}")
    if state["data"] != trainer.data.fingerprint:
        raise CheckpointError(f"{where}, on other pictures than those of {trainer.data.name} now: {advice}")
    if state["start"] != trainer.start or state["preprocessing"] != _preprocessing(trainer):
        raise CheckpointError(f"{where}, which began with other weights or another preprocessing: {advice}")


def _preprocessing(trainer: Trainer) -> dict[str, Any] | None:
    known = trainer.net.preprocessing
    return known.to_dict() if known is not None else None


def _arch(trainer: Trainer) -> str:
    net = trainer.net
    return f"{net.arch} classes={net.num_classes} channels={net.in_chans}"


def _circumstances(trainer: Trainer) -> dict[str, Any]:
    """Return what may change between two parts of a run, at the price of the last digits."""
    return {
        "processes": trainer.processes.world,
        "device": trainer.device.type,
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "proxylessnas": __version__,
    }
