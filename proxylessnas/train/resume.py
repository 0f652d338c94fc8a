"""Gathers the state of a run into a checkpoint, checks a checkpoint against the run, and puts it back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

import torch

from .._version import __version__
from ..errors import CheckpointError, ProxylessError
from ..utils.distributed import Processes
from . import checkpoint
from .recipe import Recipe
from .sampler import Position, mix64
from .settings import Settings
from .step import WeightStep

if TYPE_CHECKING:
    from .trainer import Trainer


State = dict[str, Any]


class Run(Protocol):
    """What a run has to have for this: see :class:`~.engine.Trainer`.

    ``model`` is a module, ``recipe`` has a ``seed`` and ``to_dict``, ``data`` a ``name`` and a
    ``fingerprint``.
    """

    settings: Settings
    processes: Processes
    device: torch.device
    checkpoints: Any
    position: Position
    step: WeightStep
    optimizer: torch.optim.Optimizer
    model: Any
    recipe: Any
    data: Any


def shared_state(run: Run, arch: str) -> State:
    """Return the part of a checkpoint that all runs have; all processes take part, each with its generators.

    Args:
        run: the run.
        arch: says what ``run.model`` is.
    """
    own = checkpoint.pack(checkpoint.generator_states(run.device))
    generators = [checkpoint.unpack(part) for part in run.processes.gather(own)]
    return {
        "position": dataclasses.asdict(run.position),
        "model": run.model.state_dict(),
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
    run.model.load_state_dict(state["model"])
    run.optimizer.load_state_dict(state["optimizer"])
    if run.step.scaler is not None:
        run.step.scaler.load_state_dict(state["scaler"])
    if processes.rank < len(state["rng"]):
        checkpoint.set_generator_states(state["rng"][processes.rank], run.device)
    else:
        torch.manual_seed(mix64(run.recipe.seed, processes.rank, position["global_step"]))
    run.position = type(run.position)(**position)


def resume_run(
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
        differences: says what makes a checkpoint one of another run, such as ", of another model".
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


def other_images(run: Run, state: State) -> list[str]:
    """Return what makes a checkpoint one of another run, if it is the images."""
    same = state["data"] == run.data.fingerprint
    return [] if same else [f", on other images than those of {run.data.name} now"]


def circumstances(run: Run) -> dict[str, Any]:
    """Return what may change between two parts of a run, at the price of the last digits."""
    return {
        "processes": run.processes.world,
        "device": run.device.type,
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "proxylessnas": __version__,
    }


def run_state(trainer: Trainer) -> dict[str, Any]:
    """Return everything a run goes on from; every process takes part."""
    average = trainer.average
    return {
        **shared_state(trainer, _arch(trainer)),
        "average": average.state_dict() if average else None,
        "start": trainer.start,
        "teacher": _teacher(trainer),
        "preprocessing": _preprocessing(trainer),
    }


def resume_training(trainer: Trainer) -> list[str]:
    """Put a run where its newest checkpoint is, if there is one, and return what the user should know.

    Raises:
        CheckpointError: the checkpoint belongs to another run (recipe, data or model differ), or none is
            sound.
    """
    return resume_run(
        trainer,
        lambda state: _differences(trainer, state),
        lambda state: _restore(trainer, state),
        lambda: trainer.position.epoch >= trainer.recipe.epochs,
        "the result can differ in its last digits from a run in one piece",
    )


def _restore(trainer: Trainer, state: dict[str, Any]) -> None:
    restore_shared(trainer, state)
    if trainer.average is not None:
        trainer.average.load_state_dict(state["average"])


def _differences(trainer: Trainer, state: dict[str, Any]) -> Iterator[str]:
    before = Recipe.from_dict(state["recipe"], f"the recipe in {trainer.checkpoints}")
    different = trainer.recipe.differences(before)
    if different:
        yield f"; its recipe differs ({'; '.join(different)})"
    if state["arch"] != _arch(trainer):
        yield f", of another model ({str(state['arch'])[:200]})"
    yield from other_images(trainer, state)
    if state.get("teacher") != _teacher(trainer):  # a checkpoint from before there were teachers has none
        yield ", with another teacher or none" if trainer.teacher else ", with a teacher"
    if state["start"] != trainer.start or state["preprocessing"] != _preprocessing(trainer):
        yield ", which began with other weights (--keep-classifier counts) or another preprocessing"


def _preprocessing(trainer: Trainer) -> dict[str, Any] | None:
    known = trainer.model.preprocessing
    return known.to_dict() if known is not None else None


def _teacher(trainer: Trainer) -> str | None:
    return trainer.teacher.digest if trainer.teacher is not None else None


def _arch(trainer: Trainer) -> str:
    model = trainer.model
    text = str(model.arch).partition("\n#")[0]  # without the comments that name modules
    return f"{text} classes={model.num_classes} channels={model.in_chans}"
