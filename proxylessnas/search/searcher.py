"""The loop of a search: weight steps on sampled paths, arch steps in between; it stops and resumes anywhere.

On a CPU the same search gives the same bits, whether it was interrupted or not: images and their order are
functions of the seed and the step, and a checkpoint holds alpha, weights, both optimisers, the controller or
baseline, and the generators that paths are drawn from.

Several processes sample the same paths, and average the gradients of the weights on them and of alpha. Their
BatchNorm statistics are each their own, unless the recipe says ``sync_bn``; before models are judged, all get
the first process's, which are those that are saved, as in training.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import DataError, ProxylessError
from ..models.batchnorm import convert_sync_bn
from ..train import checkpoint
from ..train.augment import shrunk
from ..train.checkpoint import check_finite, other_images, restore_shared, resume_run, shared_state
from ..train.loader import Batch, UnreadableNotes
from ..train.logger import memory_mib
from ..train.metrics import Metrics
from ..train.optim import make_optimizer, parameter_groups
from ..train.sampler import Position, mix64
from ..train.settings import Settings
from ..train.step import Losses, WeightStep
from ..utils.distributed import Processes
from ..utils.signals import StopRequest
from .baselines import Evaluated
from .components import arch_step_of, loaders, objective_of
from .constraints import Constraint
from .data import SearchData
from .evaluate import SubnetEvaluator
from .logger import Health, SearchLog
from .objective import ConstraintController
from .path_optimizer import PathParameters, mean_gradients
from .recipe import SearchRecipe
from .schedule import Schedule
from .supernet import SuperNet

if TYPE_CHECKING:
    from ..models.proxylessnas import ProxylessNAS


_PATHS, _ARCH = 101, 102  # what a generator is for


class Searcher:
    """One search.

    Args:
        supernet: is trained in place; its preprocessing is set.
        data: images to train weights on, and images held out of them for alpha.
        recipe: how.
        settings: where.
        processes: this process among the others of the run.
        constraints: limits on the derived model; the first one is what the objective trades accuracy against.
    """

    def __init__(
        self,
        supernet: SuperNet,
        data: SearchData,
        recipe: SearchRecipe,
        settings: Settings,
        processes: Processes,
        constraints: Sequence[Constraint],
    ) -> None:
        self.data, self.recipe, self.settings, self.processes = data, recipe, settings, processes
        self.constraints, self.device = list(constraints), processes.device
        self.checkpoints = settings.out / "checkpoints"
        self.position, self.arch_steps = Position(), 0
        weights = recipe.weights
        self.model = supernet.to(self.device)
        if weights.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
        if weights.sync_bn and processes.world > 1:
            convert_sync_bn(self.model)
        self.loader, self.arch_loader, self.judge_loader = loaders(
            self.model, data, recipe, settings, processes
        )
        self.learns = recipe.algorithm in ("gradient", "reinforce")
        self.schedule = Schedule(
            recipe.warmup_epochs, recipe.epochs, self.loader.steps_per_epoch, recipe.frozen_epochs,
            every=recipe.arch_every if recipe.algorithm == "gradient" else 0,
            per_epoch=recipe.reinforce_updates if recipe.algorithm == "reinforce" else 0,
            search_share=recipe.search_rate / weights.learning_rate,
        )  # fmt: skip
        if self.learns and not self.schedule.arch_steps():
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
        self.evaluator = SubnetEvaluator(
            self.model,
            recipe,
            self.constraints,
            self.loader,
            self.judge_loader,
            processes,
            self.step.autocast,
        )
        self.path_generator = torch.Generator().manual_seed(mix64(recipe.seed, _PATHS))
        self.arch_generator = torch.Generator().manual_seed(mix64(recipe.seed, _ARCH))
        self.arch_optimizer = torch.optim.Adam(
            [self.model.alphas.logits], lr=recipe.arch_rate, betas=recipe.arch_betas
        )
        objective = objective_of(recipe, self.constraints)
        self.controller = ConstraintController(objective, adapt=recipe.adapt, rate=recipe.arch_rate)
        self.arch_step, self.reinforce = arch_step_of(
            recipe,
            self.paths,
            self.arch_optimizer,
            self.constraints,
            self.arch_generator,
            processes,
            self.step,
        )
        self.health = Health(self.evaluator.rules["zero_column"], recipe.stuck_epochs)
        self._unreadable = UnreadableNotes()

    # ---- the loop

    @property
    def evaluated(self) -> list[Evaluated]:
        """The models that "random" and "evolution" have judged so far."""
        return self.evaluator.evaluated

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, and all models judged."""
        over = self.position.epoch >= self.schedule.total_epochs
        return over and (self.learns or len(self.evaluated) >= self.recipe.evaluations)

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
        if self.learns:
            return True
        done = self.evaluator.judge_all(stop, self.save, lambda: log.evaluated(self))
        self.save()
        return done

    def _name_unreadable(self, log: SearchLog) -> None:
        """Tell of images that were found unreadable since this was last called."""
        held_out = {**self.judge_loader.unreadable, **self.arch_loader.unreadable}
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
            self.model.set_path(self.model.alphas.sample(self.path_generator))
            factor = self.schedule.rate_factor(p.global_step)
            self.losses.add(self.weight_step(batch, p.global_step, factor, side))
            due = self.schedule.arch_steps_after(p.epoch, p.step) if self.learns else 0
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

    def weight_step(self, batch: Batch, number: int, factor: float, side: int | None = None) -> Tensor:
        """Train the present path on a batch, and return its loss, [], on the device.

        Args:
            batch: of this process.
            number: of the step, from 0.
            factor: of the learning rates.
            side: to shrink the images to, px.
        """
        inputs = batch.inputs if side is None else shrunk(batch.inputs, side)
        with self.paths.selected():
            return self.step(inputs, batch.targets, number, factor)

    def arch_update(self, number: int) -> dict[str, Any]:
        """Update alpha on the held-out batch of a number, and return the figures of it."""
        inputs, targets = self.arch_loader.batch(number)
        if self.arch_step is not None:
            r = self.arch_step(inputs, targets, self.controller.current())
            figures = {
                "loss": r.loss, "objective": r.pull.value, "gradient_norm": r.gradient_norm,
                "strength": self.controller.strength,
            }  # fmt: skip
            scale = self.arch_step.scale
            return figures if scale is None else {**figures, "skipped": r.skipped, "scale": scale.factor}
        assert self.reinforce is not None
        s = self.reinforce(inputs, targets)
        return {
            "accuracy": s.accuracy, "reward": s.reward, "baseline": s.baseline, "sampled_cost": s.cost,
            "gradient_norm": s.gradient_norm,
        }  # fmt: skip

    def _arch_steps(self, due: int, stop: StopRequest, log: SearchLog) -> None:
        """Do some arch steps, and write down what they came to."""
        for _ in range(due):
            try:
                figures = self.arch_update(self.arch_steps)
            except ProxylessError:
                self.losses.look(stop)  # weights that broke down since the last look are what is to be told
                raise
            self.arch_steps += 1
            if not figures.get("skipped"):
                self.health.arch_step(figures["gradient_norm"])
                expected = self.expected()
                if expected is not None and self.arch_step is not None:
                    self.controller.update(expected)
            log.arch_step(self, figures)

    def expected(self) -> float | None:
        """Return the mean cost of a model drawn from the present probabilities, by the first budget."""
        if not self.constraints:
            return None
        costs = self.constraints[0].costs
        return float((self.model.alphas.probs().detach() * costs.table).sum()) + costs.fixed

    def standing(self) -> dict[str, float | None]:
        """Return the expected cost (also as a share of the target), and the signs of health."""
        expected = self.expected()
        share = None if expected is None else expected / self.constraints[0].limit
        return {"expected": expected, "of_target": share, **self.health.figures(self.model.alphas)}

    def probabilities(self) -> list[list[float]]:
        """Return p to four digits, [blocks][candidates]."""
        return [[round(v, 4) for v in row] for row in self.model.alphas.probs().tolist()]

    def _end_of_epoch(self, log: SearchLog) -> None:
        p, steps = self.position, self.schedule.steps_per_epoch
        started = time.monotonic()
        self.processes.copy_first_(self.model.buffers())
        searching = self.schedule.searching(p.epoch) and self.learns
        choices = self.derived() if searching else []
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

    # ---- models

    def derived(self, constraints: Sequence[Constraint] | None = None) -> list[int]:
        """Return the model that a search ends with; see :meth:`~.evaluator.SubnetEvaluator.derived`."""
        return self.evaluator.derived(constraints)

    def inherited(self, choices: Sequence[int], name: str) -> tuple[ProxylessNAS, Metrics]:
        """Return one model and its accuracy, as it is saved (:meth:`SubnetEvaluator.inherited`)."""
        return self.evaluator.inherited(choices, name)

    # ---- what is kept

    def save(self) -> None:
        """Write a checkpoint; every process takes part.

        Raises:
            ProxylessError: weights or alpha are not finite; the last checkpoint is from before.
            CheckpointError: it cannot be written; the one before is kept.
        """
        check_finite(self, self.model.state_dict(), {"alpha": self.model.alphas.logits.detach()})
        state = search_state(self)
        if self.processes.main:
            checkpoint.save(self.checkpoints, state)
        self.processes.wait()

    def release(self) -> None:
        """End worker processes."""
        self.loader.close()
        self.arch_loader.close()


def search_state(searcher: Searcher) -> dict[str, Any]:
    """Return everything a search goes on from; every process takes part."""
    gradient, reinforce = searcher.arch_step, searcher.reinforce
    return {
        **shared_state(searcher, _space(searcher)),
        "kind": "search",
        "alphas": searcher.model.alphas.logits.detach().clone(),
        "arch_optimizer": searcher.arch_optimizer.state_dict(),
        "arch_steps": searcher.arch_steps,
        "arch_scale": gradient.scale.state_dict() if gradient and gradient.scale else None,
        "controller": searcher.controller.state_dict(),
        "baseline": reinforce.baseline if reinforce else None,
        "health": searcher.health.state_dict(),
        "judged": [[list(j.choices), j.top1, list(j.costs)] for j in searcher.evaluated],
        "paths": searcher.path_generator.get_state(),
        "arch_paths": searcher.arch_generator.get_state(),
        "budgets": _constraints(searcher),
    }


def resume_search(searcher: Searcher) -> list[str]:
    """Put a search where its newest checkpoint is, if there is one; return what the user should know.

    Raises:
        CheckpointError: the checkpoint belongs to another search, or none is sound.
    """
    return resume_run(
        searcher,
        lambda state: _differences(searcher, state),
        lambda state: restore(searcher, state),
        lambda: searcher.finished,
        "the result can differ from that of a search in one piece",
    )


def restore(searcher: Searcher, state: dict[str, Any]) -> None:
    """Put a search into the state of a checkpoint, whatever it is of."""
    restore_shared(searcher, state)
    with torch.no_grad():
        searcher.model.alphas.logits.copy_(state["alphas"])
    searcher.arch_optimizer.load_state_dict(state["arch_optimizer"])
    searcher.arch_steps = int(state["arch_steps"])
    gradient, scale = searcher.arch_step, state.get("arch_scale")
    if gradient is not None and gradient.scale is not None and scale is not None:
        gradient.scale.load_state_dict(scale)
    searcher.controller.load_state_dict(state["controller"])
    if searcher.reinforce is not None:
        searcher.reinforce.baseline = state["baseline"]
    searcher.health.load_state_dict(state["health"])
    searcher.evaluated[:] = [Evaluated(tuple(p), float(a), tuple(c)) for p, a, c in state["judged"]]
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
    yield from other_images(searcher, state)
    if state["budgets"] != _constraints(searcher):
        yield ", with other targets or another latency table"


def _space(searcher: Searcher) -> str:
    return json.dumps(searcher.model.space.to_dict(), sort_keys=True)


def _constraints(searcher: Searcher) -> list[list[Any]]:
    """Return the limits, and sums that change with the costs."""
    found: list[list[Any]] = []
    for b in searcher.constraints:
        table = b.costs.table.masked_fill(~b.costs.mask, 0.0)
        # Exactly rounded: the last digits of a dot product depend on the processor.
        weighted = math.fsum(n * v for n, v in enumerate(table.flatten().tolist(), 1))
        found.append([b.costs.name, b.limit, b.costs.fixed, weighted])
    return found
