"""What every run goes on from, be it the training of a net or a search."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch

from .._version import __version__
from ..errors import CheckpointError, ProxylessError
from . import checkpoint
from .distributed import Processes
from .position import Position
from .sampler import mix64
from .settings import Settings
from .step import WeightStep

State = dict[str, Any]


class Run(Protocol):
    """What a run has to have for this: see :class:`~.engine.Trainer`.

    ``net`` is a module, ``recipe`` has a ``seed`` and ``to_dict``, ``data`` a ``name`` and a ``fingerprint``.
    """

    settings: Settings
    processes: Processes
    device: torch.device
    checkpoints: Any
    position: Position
    step: WeightStep
    optimizer: torch.optim.Optimizer
    net: Any
    recipe: Any
    data: Any


def shared_state(run: Run, arch: str) -> State:
    """Return the part of a checkpoint that all runs have; all processes take part, each with its generators.

    Args:
        run: the run.
        arch: says what ``run.net`` is.
    """
    own = checkpoint.pack(checkpoint.generator_states(run.device))
    generators = [checkpoint.unpack(part) for part in run.processes.gather(own)]
    return {
        "position": dataclasses.asdict(run.position),
        "model": run.net.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "scaler": run.step.scaler.state_dict() if run.step.scaler else None,
        "rng": generators,
        "recipe": run.recipe.to_dict(),
        "arch": arch,
        "data": run.data.fingerprint,
        "run": circumstances(run),
    }


def restore_shared(run: Run, state: State) -> None:
    """Undo :func:`shared_state`."""
    processes, position = run.processes, state["position"]
    run.net.load_state_dict(state["model"])
    run.optimizer.load_state_dict(state["optimizer"])
    if run.step.scaler is not None:
        run.step.scaler.load_state_dict(state["scaler"])
    if processes.rank < len(state["rng"]):
        checkpoint.set_generator_states(state["rng"][processes.rank], run.device)
    else:
        torch.manual_seed(mix64(run.recipe.seed, processes.rank, position["global_step"]))
    run.position = type(run.position)(**position)


def go_on(
    run: Run,
    differences: Callable[[State], Iterable[str]],
    restore: Callable[[State], None],
    finished: Callable[[], bool],
    consequence: str,
) -> list[str]:
    """Put a run where its newest checkpoint is, if there is one, and return what the user should know.

    Only the first process reads files; the others get what it read.

    Args:
        run: the run.
        differences: says what makes a checkpoint one of another run, such as ", of another net".
        restore: puts the run into the state of a checkpoint.
        finished: says, after that, whether there is nothing left to do but the end.
        consequence: of going on under other circumstances.

    Raises:
        CheckpointError: the checkpoint belongs to another run, or none is sound.
    """
    processes = run.processes
    state, problems = checkpoint.newest(run.checkpoints) if processes.main else (None, [])
    packed = processes.broadcast(checkpoint.pack({"state": state}) if processes.main else None)
    state = checkpoint.unpack(packed)["state"]
    if state is None:
        torch.manual_seed(mix64(run.recipe.seed, processes.rank))
        return []
    try:
        different = next(iter(differences(state)), None)
        if different is not None:
            raise CheckpointError(
                f"{run.settings.out} holds another run{different}: use another --out, or --restart, which "
                "keeps that folder under another name"
            )
        restore(state)
    except ProxylessError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as e:
        reason = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        raise CheckpointError(f"{run.checkpoints}: the checkpoint is malformed ({reason[:200]})") from e
    notes = [f"{problem}; the checkpoint before it is used" for problem in problems]
    if finished():
        return [*notes, "this run is finished: only its end is repeated"]
    notes.append(f"continued from step {run.position.global_step:,} (epoch {run.position.epoch + 1})")
    before, now = state.get("run") or {}, circumstances(run)
    changed = [f"{key}: {now[key]}, was {before.get(key)}" for key in now if before.get(key) != now[key]]
    return [*notes, f"{consequence}: {'; '.join(changed)}"] if changed else notes


def other_pictures(run: Run, state: State) -> list[str]:
    """Return what makes a checkpoint one of another run, if it is the pictures."""
    same = state["data"] == run.data.fingerprint
    return [] if same else [f", on other pictures than those of {run.data.name} now"]


def circumstances(run: Run) -> dict[str, Any]:
    """Return what may change between two parts of a run, at the price of the last digits."""
    return {
        "processes": run.processes.world,
        "device": run.device.type,
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "proxylessnas": __version__,
    }
