"""What a training run goes on from: gathered into a checkpoint, checked and put back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..arch_text import format_arch
from . import continued
from .recipe import Recipe

if TYPE_CHECKING:
    from .engine import Trainer


def run_state(trainer: Trainer) -> dict[str, Any]:
    """Return everything a run goes on from; every process takes part."""
    average = trainer.average
    return {
        **continued.shared_state(trainer, _arch(trainer)),
        "average": average.state_dict() if average else None,
        "start": trainer.start,
        "teacher": _teacher(trainer),
        "preprocessing": _preprocessing(trainer),
    }


def go_on(trainer: Trainer) -> list[str]:
    """Put a run where its newest checkpoint is, if there is one, and return what the user should know.

    Raises:
        CheckpointError: the checkpoint belongs to another run (recipe, data or net differ), or none is sound.
    """
    return continued.go_on(
        trainer,
        lambda state: _differences(trainer, state),
        lambda state: _restore(trainer, state),
        lambda: trainer.position.epoch >= trainer.recipe.epochs,
        "the result can differ in its last digits from a run in one piece",
    )


def _restore(trainer: Trainer, state: dict[str, Any]) -> None:
    continued.restore_shared(trainer, state)
    if trainer.average is not None:
        trainer.average.load_state_dict(state["average"])


def _differences(trainer: Trainer, state: dict[str, Any]) -> Iterator[str]:
    before = Recipe.from_dict(state["recipe"], f"the recipe in {trainer.checkpoints}")
    different = trainer.recipe.differences(before)
    if different:
        yield f"; its recipe differs ({'; '.join(different)})"
    if state["arch"] != _arch(trainer):
        yield f", of another net ({str(state['arch'])[:200]})"
    yield from continued.other_pictures(trainer, state)
    if state.get("teacher") != _teacher(trainer):  # a checkpoint from before there were teachers has none
        yield ", with another teacher or none" if trainer.teacher else ", with a teacher"
    if state["start"] != trainer.start or state["preprocessing"] != _preprocessing(trainer):
        yield ", which began with other weights (--keep-classifier counts) or another preprocessing"


def _preprocessing(trainer: Trainer) -> dict[str, Any] | None:
    known = trainer.net.preprocessing
    return known.to_dict() if known is not None else None


def _teacher(trainer: Trainer) -> str | None:
    return trainer.teacher.digest if trainer.teacher is not None else None


def _arch(trainer: Trainer) -> str:
    net = trainer.net
    return f"{format_arch(net.arch, notes=False)} classes={net.num_classes} channels={net.in_chans}"
