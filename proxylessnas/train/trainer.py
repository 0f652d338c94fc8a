"""Trains and evaluates a model: epochs of steps, validation, checkpoints; it stops and resumes at any step.

On a CPU the same run gives the same bits, whether it was interrupted or not, with as many threads and the
same versions: the images, their order and their augmentation are functions of the seed, the epoch and the
step, and a checkpoint holds the rest.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..data.sources import Data
from ..data.transforms import Preprocessing
from ..errors import ProxylessError
from ..models.base import ImageClassifier
from ..models.batchnorm import convert_sync_bn, recalibrate, revert_sync_bn
from ..utils.distributed import Processes
from ..utils.signals import Stopped, StopRequest
from . import checkpoint
from .augment import shrunk
from .checkpoint import State, check_finite, other_images, restore_shared, resume_run, shared_state
from .distillation import Ensemble
from .ema import WeightAverage
from .evaluate import accuracy_on
from .loader import EvalLoader, TrainLoader, UnreadableNotes
from .logger import RunLog, memory_mib
from .metrics import Metrics
from .optim import make_optimizer, parameter_groups, rate_factor, set_train_mode
from .recipe import Recipe
from .sampler import Position
from .settings import Settings
from .setup import preprocessing_of
from .step import Losses, WeightStep


class Trainer:
    """Trains one model on one set of images by one recipe.

    Args:
        model: is trained in place.
        data: images and class names; the model has as many outputs.
        recipe: how.
        settings: where.
        processes: this process among the others of the run.
        start: what the model's weights are, where that matters to a run that resumes.
        teacher: opens the models whose answers this one learns from, for its preprocessing; None without any.
    """

    def __init__(
        self,
        model: ImageClassifier,
        data: Data,
        recipe: Recipe,
        settings: Settings,
        processes: Processes,
        start: str = "",
        teacher: Callable[[Preprocessing], Ensemble] | None = None,
    ) -> None:
        self.data, self.recipe, self.settings, self.processes = data, recipe, settings, processes
        self.device, self.start = processes.device, start
        self.checkpoints = settings.out / "checkpoints"
        self.position = Position()
        self.model = model.to(self.device)
        if recipe.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
        self.model.preprocessing = preprocessing_of(recipe, model, data)
        self.model.categories, self.model.wnids = data.categories, data.wnids
        self.teacher = teacher(self.model.preprocessing) if teacher is not None else None
        if recipe.sync_bn and processes.world > 1:
            convert_sync_bn(self.model)
        workers = settings.worker_count(processes.world)
        self.loader = TrainLoader(
            data.train, recipe, self.model.preprocessing,
            num_classes=model.num_classes, processes=processes, workers=workers,
            max_unreadable=settings.max_unreadable,
        )  # fmt: skip
        self.steps_per_epoch = self.loader.steps_per_epoch
        self.val_loader = None
        if data.val is not None and len(data.val):
            size = min(256, max(1, recipe.batch_size // processes.world))
            self.val_loader = EvalLoader(
                data.val, self.model.preprocessing, batch_size=size, processes=processes, workers=workers
            )
        if recipe.keep == "best" and self.val_loader is None:
            raise ProxylessError('keep = "best" needs validation images, and there are none')
        self.optimizer = make_optimizer(parameter_groups(model, recipe), recipe)
        self.average = WeightAverage(model, recipe.ema_decay) if recipe.ema_decay else None
        self.step = WeightStep(model, self.optimizer, recipe, self.device, self.average)
        self._head_only: bool | None = None
        self.losses = Losses(self.step, processes, self.steps_per_epoch, self.checkpoints)
        self._unreadable = UnreadableNotes()
        self._wanted = {name for name, p in model.named_parameters() if p.requires_grad}

    # ---- training

    def fit(self, stop: StopRequest, run: RunLog) -> bool:
        """Train to the end of the recipe.

        Returns:
            False if the run was stopped before (it is saved).

        Raises:
            ProxylessError: the loss is not finite; the last checkpoint is from before.
            CheckpointError, DataError: see those.
        """
        while self.position.epoch < self.recipe.epochs:
            self._name_unreadable(run)
            self._enter_phase(self.position.epoch)
            if not self._epoch(stop, run):
                self.save()
                return False
            if self.val_loader is not None:
                self.save()  # validation may take longer than a job scheduler waits
            try:
                self._end_of_epoch(run, stop)
            except Stopped:
                return False
            self._name_unreadable(run)
            more = self.position.epoch < self.recipe.epochs
            if more and self.processes.any_of(stop.signal is not None):
                return False
        return True

    def _name_unreadable(self, run: RunLog) -> None:
        """Tell of images that were found unreadable since this was last called."""
        self._unreadable.tell(run.note, "training", self.loader.unreadable, "others take their place")
        if self.val_loader is not None:
            self._unreadable.tell(run.note, "validation", self.val_loader.unreadable, "they are left out")

    def _epoch(self, stop: StopRequest, run: RunLog) -> bool:
        """Train to the end of the present epoch; return False if a signal asked to stop before."""
        p, recipe = self.position, self.recipe
        set_train_mode(self.model, bool(self._head_only))
        side = recipe.side_at(p.epoch, self.loader.preprocessing.input_size)
        batches = self.loader.epoch(p.epoch, first_step=p.step)
        before = time.monotonic()
        self.loader.waited_s = 0.0
        for batch in batches:
            factor = rate_factor(p.global_step, recipe, self.steps_per_epoch)
            taught = self._taught(batch.inputs)
            inputs = shrunk(batch.inputs, side)
            self.losses.add(self.step(inputs, batch.targets, p.global_step, factor, taught))
            p.step, p.global_step = p.step + 1, p.global_step + 1
            end = p.step == self.steps_per_epoch
            save = bool(self.settings.save_every) and p.global_step % self.settings.save_every == 0
            if not (end or save or p.step % self.losses.every == 0):
                continue
            loss, steps, stopping = self.losses.look(stop)
            now = time.monotonic()
            seconds, before = now - before, now
            waited, self.loader.waited_s = self.loader.waited_s, 0.0
            p.add(loss * steps, seconds, waited)
            run.step(
                p.global_step, p.epoch + 1, loss, recipe.learning_rate * factor,
                steps * recipe.batch_size / max(seconds, 1e-9), waiting=waited / max(seconds, 1e-9),
                memory_mib=memory_mib(self.device),
            )  # fmt: skip
            if stopping:
                return end
            if save and not end:
                self.save()
                before = time.monotonic()
        return True

    def _taught(self, inputs: Tensor) -> Tensor | None:
        """Return the teacher's logits for a batch, [B, classes]; None without a teacher."""
        if self.teacher is None:
            return None
        with self.step.autocast():
            return self.teacher(inputs, self.loader.preprocessing, mirrored=self.recipe.teacher_mirrored)

    def _end_of_epoch(self, run: RunLog, stop: StopRequest) -> None:
        p = self.position
        started = time.monotonic()
        metrics = self.validate(run, stop)
        best = metrics is not None and metrics.top1 > p.best.get("top1", -1.0)
        if metrics is not None and best:
            p.best = {"top1": metrics.top1, "epoch": p.epoch + 1}
        p.total_seconds += time.monotonic() - started
        steps = self.steps_per_epoch
        record = {
            "epoch": p.epoch + 1,
            "step": p.global_step,
            "train_loss": p.loss_sum / steps,
            "val_loss": metrics.loss if metrics else None,
            "val_top1": metrics.top1 if metrics else None,
            "val_top5": metrics.top5 if metrics else None,
            "rate": self.recipe.learning_rate * rate_factor(p.global_step - 1, self.recipe, steps),
            "images_per_second": steps * self.recipe.batch_size / max(p.seconds, 1e-9),
            "waiting": p.waited / max(p.seconds, 1e-9),
            "seconds": p.seconds + time.monotonic() - started,
            "memory_mib": memory_mib(self.device),
        }
        p.next_epoch()
        run.epoch(record)  # before the checkpoint: a run killed in between cuts it off again
        self.save(best=best)

    def validate(self, run: RunLog, stop: StopRequest) -> Metrics | None:
        """Return the accuracy on the validation images (of the averaged weights, if there are any).

        Raises:
            Stopped: a signal came; only where there is no other process that would have to be told.
        """
        self._share_statistics()
        if self.average is not None:
            with self.average.applied(self.model):
                return self.measure(run, stop)
        return self.measure(run, stop)

    def _share_statistics(self) -> None:
        """Give every process the first one's BatchNorm statistics: they are those that are saved."""
        averaged = self.average.state_dict() if self.average else {}
        names = [name for name, _ in self.model.named_buffers()]
        self.processes.copy_first_([*self.model.buffers(), *(averaged[n] for n in names if n in averaged)])

    def measure(self, run: RunLog, stop: StopRequest | None = None, *, amp: bool = True) -> Metrics | None:
        """Return the accuracy of the model as it is on the validation images; None if there are none.

        Args:
            run: shows how far it is.
            stop: looked at between batches.
            amp: compute in the recipe's precision, as in training; False in that of the saved file.
        """
        if self.val_loader is None:
            return None
        total = len(self.val_loader)

        def before(done: int) -> None:
            run.validating(done, total)
            if stop is not None and stop.signal is not None and self.processes.world == 1:
                raise Stopped

        autocast = self.step.autocast if amp else contextlib.nullcontext
        return accuracy_on(self.model, self.val_loader, self.processes, autocast, before)

    # ---- phases: classifier alone, then everything

    def _enter_phase(self, epoch: int) -> None:
        """Freeze or free the body, and wrap the model anew when that changes."""
        head_only = epoch < self.recipe.freeze_epochs
        if head_only == self._head_only:
            return
        self._head_only = head_only
        head = {id(p) for p in self.model.classifier.parameters()}
        for name, p in self.model.named_parameters():
            p.requires_grad_(name in self._wanted and (not head_only or id(p) in head))
            p.grad = None
        wrapped: nn.Module = self.model
        if self.recipe.compile:
            wrapped = torch.compile(wrapped)  # type: ignore[assignment]
        if self.processes.world > 1:
            ids = [self.device.index] if self.device.type == "cuda" else None
            wrapped = DistributedDataParallel(wrapped, device_ids=ids)
        self.step.model = wrapped

    # ---- what is kept

    def save(self, *, best: bool = False) -> None:
        """Write a checkpoint; every process takes part.

        Raises:
            ProxylessError: the weights are not finite; the last checkpoint is from before.
            CheckpointError: it cannot be written; the one before is kept.
        """
        self._check_finite()
        state = self._state()
        if self.processes.main:
            epoch, every = self.position.epoch, self.settings.keep_every
            at_end = self.position.step == 0 and epoch > 0
            keep = f"epoch-{epoch:04d}.pt" if at_end and every and epoch % every == 0 else None
            checkpoint.save(self.checkpoints, state, best=best, keep_as=keep)
        self.processes.wait()

    def _check_finite(self) -> None:
        averaged = self.average.state_dict() if self.average else {}
        check_finite(self, self.model.state_dict(), averaged)

    def _state(self) -> State:
        """Return everything a run resumes from; every process takes part."""
        return {
            **shared_state(self, self._arch()),
            "average": self.average.state_dict() if self.average else None,
            **self._origin(),
        }

    def resume(self) -> list[str]:
        """Put the run where its newest checkpoint is, if there is one; return what the user should know.

        Raises:
            CheckpointError: the checkpoint belongs to another run (recipe, data or model differ), or none is
                sound.
        """
        return resume_run(
            self,
            self._differences,
            self._restore,
            lambda: self.position.epoch >= self.recipe.epochs,
            "the result can differ in its last digits from a run in one piece",
        )

    def _restore(self, state: State) -> None:
        restore_shared(self, state)
        if self.average is not None:
            self.average.load_state_dict(state["average"])

    def _differences(self, state: State) -> Iterator[str]:
        before = Recipe.from_dict(state["recipe"], f"the recipe in {self.checkpoints}")
        different = self.recipe.differences(before)
        if different:
            yield f"; its recipe differs ({'; '.join(different)})"
        if state["arch"] != self._arch():
            yield f", of another model ({str(state['arch'])[:200]})"
        yield from other_images(self, state)
        now = self._origin()
        if state.get("teacher") != now["teacher"]:  # a checkpoint from before there were teachers has none
            yield ", with another teacher or none" if self.teacher else ", with a teacher"
        if any(state[key] != now[key] for key in ("start", "preprocessing")):
            yield ", which began with other weights (--keep-classifier counts) or another preprocessing"

    def _origin(self) -> dict[str, Any]:
        """Return what the run began with."""
        known = self.model.preprocessing
        return {
            "start": self.start,
            "teacher": self.teacher.digest if self.teacher is not None else None,
            "preprocessing": known.to_dict() if known is not None else None,
        }

    def _arch(self) -> str:
        text = str(self.model.arch).partition("\n#")[0]  # without the comments that name modules
        return f"{text} classes={self.model.num_classes} channels={self.model.in_chans}"

    # ---- the end

    def finish(self, run: RunLog) -> Metrics | None:
        """Give the model the weights the run ends with, and return their validation accuracy.

        Those are the last or the best ones (averaged, if the recipe averages), with BatchNorm statistics
        computed anew if the recipe says so.
        """
        if self.recipe.keep == "best":
            packed = None
            if self.processes.main:
                packed = checkpoint.pack({"state": checkpoint.load(self.checkpoints / checkpoint.BEST)})
            state = checkpoint.unpack(self.processes.broadcast(packed))["state"]
            self.model.load_state_dict(state["model"])
            if self.average is not None:
                self.average.load_state_dict(state["average"])
        self._share_statistics()
        if self.average is not None:
            self.average.copy_to(self.model)
        if self.recipe.recalibrate_batches:
            inputs = (batch.inputs for batch in self.loader.epoch(self.recipe.epochs, mix=False))
            recalibrate(self.model, inputs, self.recipe.recalibrate_batches, processes=self.processes)
        self._check_finite()
        metrics = self.measure(run, amp=False)
        self.model.eval()
        return metrics

    def release(self) -> None:
        """Give the model back as an ordinary one, whatever happened: nothing frozen that was not before."""
        self.step.model = self.model  # what wrapped it refers to the process group, which is to end
        self.loader.close()
        for name, p in self.model.named_parameters():
            p.requires_grad_(name in self._wanted)
            p.grad = None
        revert_sync_bn(self.model)
