"""The loop of a search: weight steps on sampled paths, arch steps in between; it stops and resumes anywhere.

On a CPU the same search gives the same bits, whether it was interrupted or not: images and their order are
functions of the seed and the step, and a checkpoint holds alpha, weights, both optimisers, the controller or
baseline, and the generators that paths are drawn from.

Several processes sample the same paths, and average the gradients of the weights on them and of alpha. Their
BatchNorm statistics are each their own, unless the recipe says ``sync_bn``; before models are evaluated, all
get the first process's, which are those that are saved, as in training.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import DataError, ProxylessError
from ..models.batchnorm import convert_sync_bn
from ..train import checkpoint
from ..train.augment import shrunk
from ..train.checkpoint import check_finite, other_images, restore_shared, resume_run, shared_state
from ..train.loader import Batch, UnreadableNotes
from ..train.logger import memory_mib
from ..train.optim import make_optimizer, parameter_groups
from ..train.sampler import Position, mix64
from ..train.settings import Settings
from ..train.step import Losses, WeightStep
from ..utils.distributed import Processes
from ..utils.signals import StopRequest
from .arch_optimizers import ReinforceStep
from .baselines import Evaluated
from .constraints import zero_column
from .evaluate import SubnetEvaluator
from .logger import Health, SearchLog
from .objective import ConstraintController, expected_cost
from .path_optimizer import PathParameters, mean_gradients
from .recipe import SearchRecipe
from .setup import SearchSetup

_PATHS, _ARCH = 101, 102  # what a generator is for


@dataclass(frozen=True)
class Schedule:
    """The course of a search (original code, B.7): which steps it does when, and at which learning rate.

    First a warm-up of weight steps alone, on paths drawn evenly (alpha is as good as zero) or in turns; then,
    but for ``frozen_epochs``, arch steps between weight steps.
    """

    recipe: SearchRecipe
    steps_per_epoch: int

    @property
    def total_epochs(self) -> int:
        """Epochs of warm-up and search."""
        return self.recipe.warmup_epochs + self.recipe.epochs

    @property
    def total_steps(self) -> int:
        """Weight steps of warm-up and search."""
        return self.total_epochs * self.steps_per_epoch

    @property
    def _frozen(self) -> int:
        return min(self.recipe.frozen_epochs, max(self.recipe.epochs - 1, 0))

    def searching(self, epoch: int) -> bool:
        """Return whether an epoch (from 0) belongs to the search, not to the warm-up, and alpha is learnt."""
        return self.recipe.learns and epoch >= self.recipe.warmup_epochs

    def arch_steps_after(self, epoch: int, step: int) -> int:
        """Return how many arch steps follow a weight step; both are counted from 0, the step in its epoch."""
        r, total = self.recipe, self.steps_per_epoch
        if not r.learns or epoch < r.warmup_epochs + self._frozen:
            return 0
        if r.algorithm == "gradient":
            return int((step + 1) % r.arch_every == 0)
        return (step + 1) * r.reinforce_updates // total - step * r.reinforce_updates // total

    def arch_steps(self) -> int:
        """Return how many arch steps there are in all."""
        r = self.recipe
        each = self.steps_per_epoch // r.arch_every if r.algorithm == "gradient" else r.reinforce_updates
        return (r.epochs - self._frozen) * each if r.learns else 0

    def rate_factor(self, step: int) -> float:
        """Return the share of the warm-up's learning rate at a weight step (from 0, over the whole run).

        A cosine to 0 over the warm-up, and another one from ``search_rate`` to 0 over the search.
        """
        r = self.recipe
        warmup = r.warmup_epochs * self.steps_per_epoch
        if step < warmup:
            return _cosine(step, warmup)
        share = r.search_rate / r.weights.learning_rate
        return share * _cosine(step - warmup, r.epochs * self.steps_per_epoch)


def _cosine(step: int, total: int) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * min(step / max(total, 1), 1.0)))


class Searcher:
    """One search.

    Args:
        setup: what is searched; its supernet is trained in place.
        settings: where and how.
        processes: this process among the others of the run.
    """

    def __init__(self, setup: SearchSetup, settings: Settings, processes: Processes) -> None:
        self.setup, self.settings, self.processes = setup, settings, processes
        self.recipe, self.data, self.device = setup.recipe, setup.data, processes.device
        self.checkpoints = settings.out / "checkpoints"
        self.position, self.arch_steps = Position(), 0
        recipe, weights = self.recipe, self.recipe.weights
        self.model = setup.supernet.to(self.device)
        if weights.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
        if weights.sync_bn and processes.world > 1:
            convert_sync_bn(self.model)
        self.loader, self.arch_loader, self.eval_loader = setup.loaders(settings, processes)
        self.schedule = Schedule(recipe, self.loader.steps_per_epoch)
        if recipe.learns and not self.schedule.arch_steps():
            raise DataError(
                f"there would be no arch step: {self.loader.steps_per_epoch} weight steps an epoch, one "
                f"arch step after every {recipe.arch_every}, {recipe.frozen_epochs} of {recipe.epochs} "
                "epochs without; lower arch_every, frozen_epochs or batch_size"
            )
        self.optimizer = make_optimizer(parameter_groups(self.model, weights), weights)  # type: ignore[arg-type]
        self.paths = PathParameters(self.model, self.optimizer)
        self.step = WeightStep(
            self.model, self.optimizer, weights, self.device,
            exchange=lambda params: mean_gradients(params, processes),
        )  # fmt: skip
        self.losses = Losses(self.step, processes, self.loader.steps_per_epoch, self.checkpoints)
        self.evaluator = SubnetEvaluator(setup, self.loader, self.eval_loader, processes, self.step.autocast)
        self.path_generator = torch.Generator().manual_seed(mix64(recipe.seed, _PATHS))
        self.arch_generator = torch.Generator().manual_seed(mix64(recipe.seed, _ARCH))
        self.arch_optimizer = torch.optim.Adam(
            [self.model.alphas.logits], lr=recipe.arch_rate, betas=recipe.arch_betas
        )
        self.controller = ConstraintController(setup.objective(), recipe.adapt, recipe.arch_rate)
        self.arch_step = setup.arch_step(
            self.paths, self.arch_optimizer, self.arch_generator, processes, self.step.autocast
        )
        self.health = Health(zero_column(setup.space), recipe.stuck_epochs)
        self._unreadable = UnreadableNotes()

    # ---- the loop

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, and all models evaluated."""
        return self.trained and not self.evaluator.due

    @property
    def trained(self) -> bool:
        """Whether all epochs are done."""
        return self.position.epoch >= self.schedule.total_epochs

    def fit(self, stop: StopRequest, log: SearchLog) -> bool:
        """Search to the end of the recipe; return False if a signal stopped it before (it is saved)."""
        p = self.position
        while p.epoch < self.schedule.total_epochs:
            self._name_unreadable(log)
            if not self._epoch(stop, log):
                self.save()
                return False
            self._end_of_epoch(log)
            if self.processes.any_of(stop.signal is not None) and p.epoch < self.schedule.total_epochs:
                return False
        self._name_unreadable(log)
        if not self.evaluator.due:
            return True
        if self.recipe.learns and not self.evaluator.evaluated:
            log.run.note(self.evaluator.plan())
        done = self.evaluator.evaluate_all(stop, self.save, lambda: log.evaluated(self))
        self.save()
        return done

    def _name_unreadable(self, log: SearchLog) -> None:
        """Tell of images that were found unreadable since this was last called."""
        held_out = {**self.eval_loader.unreadable, **self.arch_loader.unreadable}
        self._unreadable.tell(log.run.note, "training", self.loader.unreadable, "others take their place")
        self._unreadable.tell(log.run.note, "held-out", held_out, "they are left out, or others taken")

    def _epoch(self, stop: StopRequest, log: SearchLog) -> bool:
        """Do the steps of the present epoch; return False if a signal asked to stop before its end."""
        p, weights = self.position, self.recipe.weights
        self.model.train()
        side = weights.side_at(p.epoch, self.loader.preprocessing.input_size)
        before = time.monotonic()
        self.loader.waited_s = 0.0
        for batch in self.loader.epoch(p.epoch, first_step=p.step):
            self.model.set_path(self.next_path())
            factor = self.schedule.rate_factor(p.global_step)
            self.losses.add(self.weight_step(batch, p.global_step, factor, side))
            due = self.schedule.arch_steps_after(p.epoch, p.step)
            p.step, p.global_step = p.step + 1, p.global_step + 1
            self._arch_steps(due, stop, log)
            end = p.step == self.schedule.steps_per_epoch
            save = bool(self.settings.save_every) and p.global_step % self.settings.save_every == 0
            # After an arch step the device has been waited for already.
            if not (end or save or due or p.step % self.losses.every == 0):
                continue
            loss, steps, stopping = self.losses.look(stop)
            now = time.monotonic()
            seconds, before = now - before, now
            waited, self.loader.waited_s = self.loader.waited_s, 0.0
            p.add(loss * steps, seconds, waited)
            log.run.step(
                p.global_step, p.epoch + 1, loss, weights.learning_rate * factor,
                steps * weights.batch_size / max(seconds, 1e-9), waiting=waited / max(seconds, 1e-9),
                memory_mib=memory_mib(self.device),
            )  # fmt: skip
            if stopping:
                return end
            if save and not end:
                self.save()
                before = time.monotonic()
        return True

    def next_path(self) -> list[int]:
        """Return the path that the next weight step trains."""
        p, recipe = self.position, self.recipe
        if recipe.fair_warmup and not self.schedule.searching(p.epoch):
            return self.model.alphas.turn(p.global_step, recipe.seed)
        return self.model.alphas.sample(self.path_generator)

    def weight_step(self, batch: Batch, number: int, factor: float, side: int | None = None) -> Tensor:
        """Train the present path on a batch, and return its loss, [], on the device.

        ``factor`` is that of the learning rates; ``side``, in px, what the images are shrunk to.
        """
        inputs = batch.inputs if side is None else shrunk(batch.inputs, side)
        with self.paths.selected():
            return self.step(inputs, batch.targets, number, factor)

    def arch_update(self, number: int) -> dict[str, Any]:
        """Update alpha on the held-out batch of a number, and return the figures of it."""
        assert self.arch_step is not None
        inputs, targets = self.arch_loader.batch(number)
        objective = self.controller.current()
        if isinstance(self.arch_step, ReinforceStep):
            figures = self.arch_step(inputs, targets, objective)._asdict()
            return figures if objective.kind == "none" else {**figures, "strength": objective.strength}
        r = self.arch_step(inputs, targets, objective)
        figures = {
            "loss": r.loss, "objective": r.objective.value, "gradient_norm": r.gradient_norm,
            "strength": self.controller.strength,
        }  # fmt: skip
        scale = self.arch_step.scale
        return figures if scale is None else {**figures, "skipped": r.skipped, "scale": scale.factor}

    def _arch_steps(self, due: int, stop: StopRequest, log: SearchLog) -> None:
        """Do some arch steps, and write down what they came to."""
        for _ in range(due):
            try:
                figures = self.arch_update(self.arch_steps)
            except ProxylessError:
                self.losses.look(
                    stop
                )  # weights that broke down since the last look are what is to be reported
                raise
            self.arch_steps += 1
            if not figures.get("skipped"):
                self.health.arch_step(figures["gradient_norm"])
                expected = self.expected()
                if expected is not None:
                    self.controller.update(expected)
            log.arch_step(self, figures)

    def expected(self) -> float | None:
        """Return the mean cost of a model drawn from the present probabilities, by the first constraint."""
        if not self.setup.constraints:
            return None
        costs = self.setup.constraints[0].costs
        return float(expected_cost(self.model.alphas.probs().detach(), costs.table, costs.fixed))

    def _end_of_epoch(self, log: SearchLog) -> None:
        p, steps = self.position, self.schedule.steps_per_epoch
        started = time.monotonic()
        self.processes.copy_first_(self.model.buffers())
        searching = self.schedule.searching(p.epoch)
        choices = self.evaluator.derived() if searching else []
        metrics = self.evaluator.inherited(choices, amp=True)[1] if searching else None
        if searching and self.arch_steps:
            last = p.epoch + 1 == self.schedule.total_epochs
            for note in self.health.end_of_epoch(self.model.alphas, last=last):
                log.run.note(note)
        record = {
            "epoch": p.epoch + 1, "step": p.global_step, "train_loss": p.loss_sum / steps,
            "val_loss": metrics.loss if metrics else None, "val_top1": metrics.top1 if metrics else None,
            "val_top5": metrics.top5 if metrics else None,
            "rate": self.recipe.weights.learning_rate * self.schedule.rate_factor(p.global_step - 1),
            "images_per_second": steps * self.recipe.weights.batch_size / max(p.seconds, 1e-9),
            "waiting": p.waited / max(p.seconds, 1e-9), "seconds": p.seconds + time.monotonic() - started,
            "memory_mib": memory_mib(self.device),
        }  # fmt: skip
        p.total_seconds += time.monotonic() - started
        if searching:
            log.epoch(self, choices, metrics.top1 if metrics else None)
        p.next_epoch()
        log.run.epoch(record)  # before the checkpoint: a run killed in between cuts it off again
        self.save()

    # ---- checkpoints

    def save(self) -> None:
        """Write a checkpoint; every process takes part.

        Raises:
            ProxylessError: weights or alpha are not finite; the last checkpoint is from before.
            CheckpointError: it cannot be written; the one before is kept.
        """
        check_finite(self, self.model.state_dict(), {"alpha": self.model.alphas.logits.detach()})
        state = self.state_dict()
        if self.processes.main:
            checkpoint.save(self.checkpoints, state)
        self.processes.wait()

    def state_dict(self) -> dict[str, Any]:
        """Return everything a search resumes from; every process takes part."""
        return {
            **shared_state(self, self._space()),
            "kind": "search",
            "alphas": self.model.alphas.logits.detach().clone(),
            "arch_optimizer": self.arch_optimizer.state_dict(),
            "arch_steps": self.arch_steps,
            **({} if self.arch_step is None else self.arch_step.state_dict()),
            "controller": self.controller.state_dict(),
            "health": self.health.state_dict(),
            "judged": [e.to_list() for e in self.evaluator.evaluated],
            "paths": self.path_generator.get_state(),
            "arch_paths": self.arch_generator.get_state(),
            "budgets": self._limits(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put the search into the state of a checkpoint, whatever it is of."""
        restore_shared(self, state)
        with torch.no_grad():
            self.model.alphas.logits.copy_(state["alphas"])
        self.arch_optimizer.load_state_dict(state["arch_optimizer"])
        self.arch_steps = int(state["arch_steps"])
        if self.arch_step is not None:
            self.arch_step.load_state_dict(state)
        self.controller.load_state_dict(state["controller"])
        self.health.load_state_dict(state["health"])
        self.evaluator.evaluated[:] = map(Evaluated.from_list, state["judged"])
        self.path_generator.set_state(state["paths"])
        self.arch_generator.set_state(state["arch_paths"])

    def resume(self) -> list[str]:
        """Put the search where its newest checkpoint is, if there is one; return what the user should know.

        Raises:
            CheckpointError: the checkpoint belongs to another search, or none is sound.
        """
        return resume_run(
            self,
            self._differences,
            self.load_state_dict,
            lambda: self.finished,
            "the result can differ from that of a search in one piece",
        )

    def _differences(self, state: dict[str, Any]) -> Iterator[str]:
        if state.get("kind") != "search":
            yield ", which is no search"
        before = SearchRecipe.from_dict(state["recipe"], f"the recipe in {self.checkpoints}")
        different = self.recipe.differences(before)
        if different:
            yield f"; its recipe differs ({'; '.join(different)}; `search resume` keeps to its own)"
        if state["arch"] != self._space():
            yield ", in another space"
        yield from other_images(self, state)
        if state["budgets"] != self._limits():
            yield ", with other targets or another latency table"

    def _space(self) -> str:
        return json.dumps(self.model.space.to_dict(), sort_keys=True)

    def _limits(self) -> list[list[Any]]:
        """Return the constraints, with sums that change with the costs."""
        found: list[list[Any]] = []
        for b in self.setup.constraints:
            table = b.costs.table.masked_fill(~b.costs.mask, 0.0)
            # Exactly rounded: the last digits of a dot product depend on the processor.
            weighted = math.fsum(n * v for n, v in enumerate(table.flatten().tolist(), 1))
            found.append([b.costs.name, b.limit, b.costs.fixed, weighted])
        return found

    def close(self) -> None:
        """End worker processes."""
        self.loader.close()
        self.arch_loader.close()
