"""Trains a model from a folder of images: the whole way from names to a trained file."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .._version import __version__
from ..arch.arch import Arch
from ..data.open import VALIDATION_FILE, class_counts, open_data, validation_names
from ..data.sources import Data
from ..errors import CheckpointError, DataError, ProxylessError
from ..models.base import ImageClassifier
from ..models.loading import save_weights
from ..models.resolve import resolve
from ..utils.distributed import Processes, processes
from ..utils.files import LockTimeout, locked, unlink_quietly, write_atomically
from ..utils.signals import StopRequest
from . import checkpoint
from .batch_reader import dead_workers_as_data_error
from .distillation import Teachers, open_teachers, teacher_notes, teacher_sources
from .log_files import load_tensorboard
from .logger import RunLog
from .metrics import Metrics
from .recipe import Recipe, read_recipe
from .settings import Settings
from .setup import Start, kept_before, started
from .trainer import Trainer

if TYPE_CHECKING:
    from torch.utils.data import Dataset

    from ..arch.tree import TreeArch

MODEL_FILE, RECIPE_FILE, RESULT_FILE = "model.safetensors", "recipe.toml", "result.json"
_SIGNS = (RECIPE_FILE, "search.toml", "log.jsonl", "checkpoints", ".running")  # of a folder that is a run's
_FEW = 50  # validation images, below which a user should know what one of them weighs


@dataclass(frozen=True)
class Result:
    """What a run came to.

    Attributes:
        finished: False if a signal stopped it; the same call resumes it.
        model: the trained model's file, which ``create_model`` opens; None before the end.
        top1: validation accuracy of that file's model, percent; None without validation images.
        best_top1: best validation accuracy at the end of an epoch, percent.
        steps: optimiser steps so far.
        seconds: training and validation time so far, over all parts of the run.
        signal: number of the signal that stopped it, or None.
    """

    finished: bool
    model: Path | None
    top1: float | None
    best_top1: float | None
    steps: int
    seconds: float
    signal: int | None = None


def train(
    model: ImageClassifier | str | os.PathLike[str] | Arch | TreeArch,
    data: Data | str | os.PathLike[str] | Dataset[Any],
    recipe: Recipe | str | os.PathLike[str] = "scratch",
    *,
    out: str | os.PathLike[str] | Settings,
    val: str | os.PathLike[str] | None = None,
    teacher: Teachers | None = None,
) -> Result:
    """Train a model from random weights; resume the run if it is there already.

    The folder ``out`` gets ``recipe.toml``, ``checkpoints/``, ``log.jsonl``, ``epochs.csv``, ``curves.png``
    and, at the end, ``model.safetensors`` and ``result.json``. Killed at any moment, the same call resumes
    from the last checkpoint; on a CPU the final weights are bitwise those of a run in one piece. Under
    ``torchrun`` the same call trains on all processes.

    Args:
        model: an architecture, or the name or file of one; or a model of this package with as many outputs as
            there are classes, which is trained in place from the weights it has.
        data: a folder of class folders (also with ``train`` and ``val`` in it), a named data set ("cifar10",
            "digits"), a data set of images and class indices, or what :func:`~.data.open_data` returned.
        recipe: a recipe, the name of one, or a TOML file.
        out: the folder of the run, or all settings.
        val: folder of validation images, where ``data`` does not hold them.
        teacher: a trained model of the same classes to learn from besides the labels (knowledge
            distillation), or several, see :func:`~.distillation.open_teacher`; the recipe says how much they
            count.

    Raises:
        DataError: the images, the recipe or the teacher are not usable.
        CheckpointError: ``out`` holds another run, or no sound checkpoint of this one; or one cannot be
            written.
        ProxylessError: the loss became infinite or NaN.
    """
    recipe = recipe if isinstance(recipe, Recipe) else read_recipe(recipe)
    return run_from(model, data, recipe, out, Start(resolve(model).given), val=val, teacher=teacher)


def finetune(
    model: ImageClassifier | str | os.PathLike[str],
    data: Data | str | os.PathLike[str] | Dataset[Any],
    recipe: Recipe | str | os.PathLike[str] = "finetune",
    *,
    out: str | os.PathLike[str] | Settings,
    val: str | os.PathLike[str] | None = None,
    weights: str | os.PathLike[str] | None = None,
    teacher: Teachers | None = None,
    keep_classifier: bool | None = None,
) -> Result:
    """Train a published or earlier model further; its classifier is kept where it knows the classes.

    Everything else is as in :func:`train`.

    Args:
        model: a model of the zoo with published weights, or a ``.safetensors`` file; or a model, which is
            trained in place with the weights and the classifier it has.
        data: see :func:`train`.
        recipe: see :func:`train`; ``freeze_epochs``, ``layer_decay`` and ``head_rate`` are meant for this.
        out: see :func:`train`.
        val: see :func:`train`.
        weights: a file with the weights of the model that ``model`` names.
        teacher: see :func:`train`.
        keep_classifier: start from the classifier of the weights too, to train on the classes it knows; the
            preset "finetune" then freezes nothing at first. None does so where its classes are those of the
            data, in their order, and in a run that is resumed as it began. A model that is given is only
            checked: its classifier is always kept.

    Raises:
        WeightsNotFoundError, WeightsFetchError, WeightsMismatchError: the body cannot be had.
        DataError: as :func:`train`; or the classifier to keep knows other classes.
    """
    given, recipe = recipe, recipe if isinstance(recipe, Recipe) else read_recipe(recipe)
    thaw = given == "finetune"
    start = Start(resolve(model).given, weights is None, weights, keep_classifier, thaw=thaw)
    return run_from(model, data, recipe, out, start, val=val, teacher=teacher)


def run_from(
    model: Any,
    data: Any,
    recipe: Recipe,
    out: Any,
    start: Start,
    *,
    val: Any = None,
    teacher: Teachers | None = None,
    told: bool = False,
) -> Result:
    """Train from a start: what :func:`train` and :func:`finetune`, which say the rest, have in common.

    With ``told``, the user has been shown the classes.
    """
    settings = out if isinstance(out, Settings) else Settings(Path(out))
    teacher = None if teacher is None else teacher_sources(teacher)
    if isinstance(data, Data) and val is not None:
        raise DataError("these data have their validation part already: leave val out")
    if settings.tensorboard:
        load_tensorboard()  # in every process, and before they join: one that fails leaves the others waiting
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    with processes(settings.device) as group, held_folder(settings.out, group):
        if not isinstance(data, Data):
            data = open_data(data, val=val, val_fraction=recipe.val_fraction, seed=recipe.seed)
        if start.keep_classifier is None:
            found = checkpoint.pack({"kept": kept_before(settings.out)}) if group.main else None
            kept = checkpoint.unpack(group.broadcast(found))["kept"]
            start = dataclasses.replace(start, keep_classifier=kept)
        torch.manual_seed(recipe.seed)
        built, start = started(model, data, recipe, start)
        if start.thaw and start.keep_classifier:
            recipe = recipe.replace(freeze_epochs=0)
        notes = [*start.begun_with(built, data), *start.notes(built, data)]
        notes += teacher_notes(teacher, data, recipe)
        teach = None
        if teacher is not None:
            teach = functools.partial(open_teachers, teacher, data, device=group.device)
        digest = "" if isinstance(model, nn.Module) else start.digest(built)
        trainer = Trainer(built, data, recipe, settings, group, digest, teach)
        with _compile_errors(recipe):
            try:
                return _carry_out(trainer, start, notes, told)
            finally:
                trainer.release()


@contextlib.contextmanager
def _compile_errors(recipe: Recipe) -> Iterator[None]:
    """Turn what torch.compile raises where it does not work into one clear error."""
    try:
        yield
    except Exception as e:
        if recipe.compile and type(e).__module__.startswith(("torch._dynamo", "torch._inductor")):
            reason = str(e).strip().splitlines()[0]
            raise ProxylessError(f"torch.compile does not work here ({reason}); set compile to false") from e
        raise


def _carry_out(trainer: Trainer, start: Start, notes: list[str], told: bool) -> Result:
    """Train from where the run is to its end, or to where a signal stops it."""
    settings, recipe, group = trainer.settings, trainer.recipe, trainer.processes
    notes = [*settings.notes(), *trainer.data.notes, *notes, *trainer.resume()]
    p = trainer.position
    log = RunLog(
        settings.out if group.main else None, epochs=recipe.epochs, steps_per_epoch=trainer.steps_per_epoch,
        batch_size=recipe.batch_size, tensorboard=settings.tensorboard, console=settings.console,
        resume_step=p.global_step, resume_epoch=p.epoch,
    )  # fmt: skip
    val = trainer.data.val
    if val is not None and 0 < len(val) < _FEW:
        notes.append(f"only {len(val)} validation images: one is {100 / len(val):.0f} points of accuracy")
    with log as run, StopRequest() as stop, dead_workers_as_data_error():
        if group.main:
            write_atomically(settings.out / RECIPE_FILE, recipe.to_toml().encode())
            held = "".join(f"{name}\n" for name in validation_names(trainer.data))
            write_atomically(settings.out / VALIDATION_FILE, held.encode())
        if not p.global_step:
            run.event("begin", **_begin_fields(trainer), **start.log_fields())
        run.image("net", p.global_step, lambda: _figure(trainer.model), last=True)
        run.note(class_counts(trainer.data), show=not told)
        for text in notes:
            run.note(text)
        if trainer.fit(stop, run):
            return _finish(trainer, run)
        run.note(f"stopped and saved at step {p.global_step:,}; the same command resumes from there")
        return Result(False, None, None, p.best.get("top1"), p.global_step, p.total_seconds, stop.signal)


def _begin_fields(trainer: Trainer) -> dict[str, Any]:
    """Return what a reader of the log needs to know about the run."""
    model, data = trainer.model, trainer.data
    return {
        "net": model.name,
        "arch": str(dataclasses.replace(model.arch, num_classes=model.num_classes)),
        "given_weights": bool(trainer.start),
        "teachers": trainer.teacher.names if trainer.teacher is not None else [],
        "data": data.name,
        "pictures": {"training": len(data.train), "validation": len(data.val) if data.val is not None else 0},
        "versions": {"proxylessnas": __version__, "torch": str(torch.__version__)},
    }


def _figure(model: ImageClassifier) -> bytes:
    from ..figures.tensorboard import model_png

    return model_png(model.arch)


@contextlib.contextmanager
def held_folder(out: Path, group: Processes) -> Iterator[None]:
    """Keep other runs out of the folder of a run while the block runs; make it if it is not there.

    Raises:
        CheckpointError: another run writes there, or it holds something else.
    """
    if not group.main:
        yield
        return
    fresh = not out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()) and not any((out / name).exists() for name in _SIGNS):
            raise CheckpointError(f"{out}: holds other files and no run; choose another folder with --out")
        with locked(out / ".running", 0.0):
            for path in [*out.glob("*.tmp"), *out.glob("*/*.tmp")]:
                unlink_quietly(path)  # what a killed process was writing
            yield
    except LockTimeout as e:
        raise CheckpointError(
            f"{out}: another run is writing there; wait for it or choose another --out"
        ) from e
    except (FileExistsError, NotADirectoryError, PermissionError) as e:
        if e.filename is None or not str(e.filename).startswith(str(out)):
            raise
        raise CheckpointError(f"{out}: cannot be used as the folder of a run ({e.strerror})") from e
    finally:
        if fresh:  # a run that failed before it wrote anything leaves no folder
            with contextlib.suppress(OSError):
                out.rmdir()


def _finish(trainer: Trainer, run: RunLog) -> Result:
    metrics, group = trainer.finish(run), trainer.processes
    p, out = trainer.position, trainer.settings.out
    top1 = metrics.top1 if metrics else None
    result = Result(True, out / MODEL_FILE, top1, p.best.get("top1"), p.global_step, p.total_seconds)
    if group.main:
        try:
            save_weights(trainer.model, out / MODEL_FILE, metadata=_metadata(trainer, metrics))
            document = {
                **dataclasses.asdict(result),
                "model": MODEL_FILE,
                "val_loss": metrics.loss if metrics and math.isfinite(metrics.loss) else None,
            }
            write_atomically(out / RESULT_FILE, (json.dumps(document, indent=2) + "\n").encode())
        except OSError as e:
            raise ProxylessError(
                f"{out}: the trained model cannot be written ({e.strerror}); free space, run again"
            ) from e
        accuracy = f", top-1 {metrics.top1:.2f} % on {metrics.n:,} validation images" if metrics else ""
        if metrics and trainer.recipe.keep == "last" and p.best.get("top1", 0.0) > metrics.top1:
            accuracy += f'; the best epoch was {p.best["epoch"]} with {p.best["top1"]:.2f} % (keep = "best")'
        run.note(f"done: {out / MODEL_FILE}{accuracy}")
        run.event("done", top1=result.top1, seconds=result.seconds)
    group.wait()
    return result


def _metadata(trainer: Trainer, metrics: Metrics | None) -> dict[str, str]:
    """Return what the trained file says of its origin."""
    data = trainer.data
    return {
        "recipe": trainer.recipe.to_toml(),
        "data": f"{data.name} ({len(data.train)} training images, {data.fingerprint})",
        "val_top1": f"{metrics.top1:.4f}" if metrics else "",
    }
