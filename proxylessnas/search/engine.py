"""The loop of a search: weight steps on sampled paths, arch steps in between, then a net is derived.

On a CPU the same search gives the same bits, whether it was interrupted or not: pictures and their order are
functions of the seed and the step, and a checkpoint holds alpha, weights, both optimisers, the controller or
baseline, and the generators that paths are drawn from.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import DataError, ProxylessError
from ..metrics import Metrics
from ..train import checkpoint
from ..train.augment import shrunk
from ..train.batchnorm import convert_sync_bn
from ..train.distributed import Processes
from ..train.eval_loader import EvalLoader
from ..train.history import LineLog
from ..train.loader import Batch, TrainLoader
from ..train.optim import make_optimizer, parameter_groups
from ..train.position import Position
from ..train.runlog import RunLog, memory_mib
from ..train.sampler import mix64
from ..train.settings import Settings
from ..train.step import WeightStep
from ..train.stop import StopRequest
from .arch_step import ArchStep
from .budgets import Budget
from .candidates import Judged, Proposals, accuracy_of, best_of, fits, within
from .controller import Controller
from .data import ArchLoader, SearchData
from .health import Health
from .objective import Objective
from .paths import PathParameters, mean_gradients
from .recipe import PUBLISHED_STRENGTH, SearchRecipe
from .reinforce import ReinforceStep
from .schedule import Schedule
from .supernet import SuperNet

_PATHS, _ARCH = 101, 102  # what a generator is for
_ROWS = 2000  # lines with all probabilities, about, in a search's log


class Searcher:
    """One search.

    Args:
        supernet: is trained in place; its preprocessing is set.
        data: pictures to train weights on, and pictures held out of them for alpha.
        recipe: how.
        settings: where.
        processes: this process among the others of the run.
        budgets: limits on the derived net; the first one is what the objective trades accuracy against.
    """

    def __init__(
        self,
        supernet: SuperNet,
        data: SearchData,
        recipe: SearchRecipe,
        settings: Settings,
        processes: Processes,
        budgets: Sequence[Budget],
    ) -> None:
        self.data, self.recipe, self.settings, self.processes = data, recipe, settings, processes
        self.budgets, self.device = list(budgets), processes.device
        self.checkpoints = settings.out / "checkpoints"
        self.position, self.arch_steps = Position(), 0
        self.judged: list[Judged] = []
        weights = recipe.weights
        self.net = supernet.to(self.device)
        if weights.channels_last:
            self.net = self.net.to(memory_format=torch.channels_last)
        if weights.sync_bn and processes.world > 1:
            convert_sync_bn(self.net)
        space, preprocessing = supernet.space, supernet.preprocessing
        assert preprocessing is not None
        shared: dict[str, Any] = {
            "rank": processes.rank, "world": processes.world, "device": self.device,
            "workers": settings.worker_count(processes.world),
        }  # fmt: skip
        self.loader = TrainLoader(
            data.weights.train, weights, preprocessing,
            num_classes=space.num_classes, max_unreadable=settings.max_unreadable, **shared,
        )  # fmt: skip
        size = recipe.arch_batch_size or weights.batch_size
        self.arch_loader = ArchLoader(
            data.arch, preprocessing, batch_size=size, seed=recipe.seed,
            max_unreadable=settings.max_unreadable, channels_last=weights.channels_last, **shared,
        )  # fmt: skip
        self.judge_loader = EvalLoader(
            data.arch, preprocessing, batch_size=max(1, min(256, size // processes.world)), **shared
        )
        gradient = recipe.algorithm == "gradient"
        learns = gradient or recipe.algorithm == "reinforce"
        self.schedule = Schedule(
            recipe.warmup_epochs, recipe.epochs, self.loader.steps_per_epoch, recipe.frozen_epochs,
            every=recipe.arch_every if gradient else 0,
            per_epoch=recipe.reinforce_updates if recipe.algorithm == "reinforce" else 0,
            search_share=recipe.search_rate / weights.learning_rate,
        )  # fmt: skip
        self.learns = learns
        if learns and not self.schedule.arch_steps():
            raise DataError(
                f"there would be no arch step: {self.loader.steps_per_epoch} weight steps an epoch, one "
                f"arch step after every {recipe.arch_every}, {recipe.frozen_epochs} of {recipe.epochs} "
                "epochs without; lower arch_every, frozen_epochs or batch_size"
            )
        self.optimizer = make_optimizer(parameter_groups(self.net, weights), weights)  # type: ignore[arg-type]
        self.paths = PathParameters(self.net, self.optimizer)
        self.step = WeightStep(
            self.net, self.optimizer, weights, self.device,
            exchange=lambda params: mean_gradients(params, processes),
        )  # fmt: skip
        self.path_generator = torch.Generator().manual_seed(mix64(recipe.seed, _PATHS))
        self.arch_generator = torch.Generator().manual_seed(mix64(recipe.seed, _ARCH))
        self.arch_optimizer = torch.optim.Adam(
            [self.net.alphas.logits], lr=recipe.arch_rate, betas=recipe.arch_betas
        )
        self.controller = Controller(self._objective(), adapt=recipe.adapt, rate=recipe.arch_rate)
        mask = torch.tensor(space.mask)
        costs = self.budgets[0].costs if self.budgets else None
        self.arch_step: ArchStep | None = None
        self.reinforce: ReinforceStep | None = None
        common: dict[str, Any] = {
            "generator": self.arch_generator, "processes": processes, "autocast": self.step.autocast,
        }  # fmt: skip
        if gradient:
            self.arch_step = ArchStep(
                self.net, self.arch_optimizer, self.paths,
                costs.table if costs else torch.zeros(mask.shape, dtype=torch.float64),
                costs.fixed if costs else 0.0, mode=recipe.arch_mode, **common,
            )  # fmt: skip
        elif learns:
            self.reinforce = ReinforceStep(
                self.net, self.arch_optimizer, costs.of if costs else None,
                self.budgets[0].limit if self.budgets else None,
                samples=recipe.reinforce_samples, exponent=recipe.reinforce_exponent,
                decay=recipe.reinforce_baseline, **common,
            )  # fmt: skip
        columns = space.columns
        self.health = Health(columns.index("-") if "-" in columns else None, recipe.stuck_epochs)
        self.rules: dict[str, Any] = {
            "stages": [p.stage for p in space.positions], "zero_column": self.health.zero_column,
            "least_depth": recipe.min_depth,
        }  # fmt: skip
        self._rows_every = max(1, self.schedule.arch_steps() // _ROWS)

    def _objective(self) -> Objective:
        r = self.recipe
        if not self.budgets or r.regulariser == "none":
            return Objective("none")
        strength = PUBLISHED_STRENGTH[r.regulariser] if r.strength is None else r.strength
        return Objective(r.regulariser, self.budgets[0].limit, strength, r.scale)

    # ---- the loop

    def fit(self, stop: StopRequest, run: RunLog, lines: LineLog | None) -> bool:
        """Search to the end of the recipe; return False if a signal stopped it before (it is saved)."""
        p = self.position
        while p.epoch < self.schedule.total_epochs:
            if not self._epoch(stop, run, lines):
                self.save()
                return False
            self._end_of_epoch(run, lines)
            if self.processes.any_of(stop.signal is not None) and p.epoch < self.schedule.total_epochs:
                return False
        if not self.learns and not self._judge_all(stop, run, lines):
            self.save()
            return False
        return True

    def _epoch(self, stop: StopRequest, run: RunLog, lines: LineLog | None) -> bool:
        p, weights = self.position, self.recipe.weights
        self.net.train()
        side = weights.side_at(p.epoch, self.loader.preprocessing.input_size)
        started = time.monotonic()
        self.loader.waited_s = 0.0
        for batch in self.loader.epoch(p.epoch, first_step=p.step):
            self.net.set_path(self.net.alphas.sample(self.path_generator))
            factor = self.schedule.rate_factor(p.global_step)
            loss = self.weight_step(batch, p.global_step, factor, side)
            loss = self.processes.sum_of(loss)[0] / self.processes.world
            if not abs(loss) < float("inf"):
                raise ProxylessError(
                    f"the loss is not finite (NaN or infinite) since step {p.global_step} (epoch "
                    f"{p.epoch + 1}); the last good checkpoint is kept in {self.checkpoints}. Try a "
                    'lower learning_rate, clip_norm = 1, or amp = "off"'
                )
            due = self.schedule.arch_steps_after(p.epoch, p.step) if self.learns else 0
            p.step, p.global_step, p.loss_sum = p.step + 1, p.global_step + 1, p.loss_sum + loss
            for _ in range(due):
                self._arch(lines)
            now = time.monotonic()
            seconds, started = now - started, now
            p.seconds, p.total_seconds = p.seconds + seconds, p.total_seconds + seconds
            p.waited, waited, self.loader.waited_s = (
                p.waited + self.loader.waited_s,
                self.loader.waited_s,
                0.0,
            )
            run.step(
                p.global_step, p.epoch + 1, loss, weights.learning_rate * factor,
                weights.batch_size / max(seconds, 1e-9), waiting=waited / max(seconds, 1e-9),
                memory_mib=memory_mib(self.device),
            )  # fmt: skip
            end = p.step == self.schedule.steps_per_epoch
            if self.processes.any_of(stop.signal is not None):
                return end
            if self.settings.save_every and p.global_step % self.settings.save_every == 0 and not end:
                self.save()
                started = time.monotonic()
        return True

    def weight_step(self, batch: Batch, number: int, factor: float, side: int | None = None) -> float:
        """Train the present path on a batch, and return its loss.

        Args:
            batch: of this process.
            number: of the step, from 0.
            factor: of the learning rates.
            side: to shrink the pictures to, px.
        """
        inputs = batch.inputs if side is None else shrunk(batch.inputs, side)
        with self.paths.selected():
            return float(self.step(inputs, batch.targets, number, factor))

    def arch_update(self, number: int) -> dict[str, Any]:
        """Update alpha on the held-out batch of a number, and return the figures of it."""
        inputs, targets = self.arch_loader.batch(number)
        if self.arch_step is not None:
            r = self.arch_step(inputs, targets, self.controller.current())
            return {
                "loss": r.loss, "objective": r.pull.value, "gradient_norm": r.gradient_norm,
                "strength": self.controller.strength,
            }  # fmt: skip
        assert self.reinforce is not None
        s = self.reinforce(inputs, targets)
        return {
            "accuracy": s.accuracy, "reward": s.reward, "baseline": s.baseline, "sampled_cost": s.cost,
            "gradient_norm": s.gradient_norm,
        }  # fmt: skip

    def _arch(self, lines: LineLog | None) -> None:
        """Do one arch step, and write down what it came to."""
        figures = self.arch_update(self.arch_steps)
        self.health.arch_step(figures["gradient_norm"])
        self.arch_steps += 1
        expected = self.expected()
        if expected is not None and self.arch_step is not None:
            self.controller.update(expected)
        if lines is not None:
            figures = {"arch_step": self.arch_steps, **figures, "expected": expected}
            figures.update(self.health.figures(self.net.alphas))
            if self.arch_steps % self._rows_every == 0:
                figures["probs"] = self.probabilities()
            lines.write(
                "arch", {"step": self.position.global_step, "epoch": self.position.epoch + 1, **figures}
            )

    def expected(self) -> float | None:
        """Return the mean cost of a net drawn from the present probabilities, by the first budget."""
        if not self.budgets:
            return None
        costs = self.budgets[0].costs
        return float((self.net.alphas.probs().detach() * costs.table).sum()) + costs.fixed

    def probabilities(self) -> list[list[float]]:
        """Return p to four digits, [blocks][candidates]."""
        return [[round(v, 4) for v in row] for row in self.net.alphas.probs().tolist()]

    def _end_of_epoch(self, run: RunLog, lines: LineLog | None) -> None:
        p, steps = self.position, self.schedule.steps_per_epoch
        started = time.monotonic()
        searching = self.schedule.searching(p.epoch) and self.learns
        picks = self.derived() if searching else []
        metrics = self.judge(picks) if searching else None
        notes = self.health.end_of_epoch(self.net.alphas) if searching and self.arch_steps else []
        for note in notes:
            run.note(note)
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
        if lines is not None and searching:
            lines.write(
                "epoch",
                {
                    "step": p.global_step, "epoch": p.epoch + 1, "expected": self.expected(),
                    **self.health.figures(self.net.alphas), "probs": self.probabilities(), "picks": picks,
                    "top1": metrics.top1 if metrics else None,
                    "costs": {b.costs.name: b.costs.of(picks) for b in self.budgets},
                },
            )  # fmt: skip
        p.next_epoch()
        run.epoch(record)  # before the checkpoint: a run killed in between cuts it off again
        self.save()

    # ---- nets

    def derived(self) -> list[int]:
        """Return the most probable net within the budgets; for random and evolution the best one judged."""
        if not self.learns:
            meeting = [j for j in self.judged if fits(j.picks, self.budgets, 0.0, **self.rules)]
            if meeting:
                return list(best_of(meeting).picks)
            if self.judged:
                raise DataError(
                    f"none of the {len(self.judged)} nets that were judged keeps to the new targets; search "
                    "again"
                )
        log_probs = self.net.alphas.log_probs().detach()
        return within(log_probs, self.budgets, self.recipe.least_share, **self.rules)

    def judge(self, picks: Sequence[int]) -> Metrics:
        """Return the accuracy of one net on the pictures held out for alpha, BatchNorm recalibrated."""
        limit = self.recipe.recalibrate_batches
        with self.step.autocast() if self.recipe.weights.amp != "off" else contextlib.nullcontext():
            return accuracy_of(self.net, picks, self.calibration(), limit, self.judge_loader, self.processes)

    def calibration(self) -> Iterator[Tensor]:
        """Yield batches of training inputs, always the same ones."""
        for batch in self.loader.epoch(2**20, mix=False):
            yield batch.inputs

    def _judge_all(self, stop: StopRequest, run: RunLog, lines: LineLog | None) -> bool:
        """Judge as many nets as the recipe says; return False if a signal came."""
        r = self.recipe
        proposals = Proposals(
            self.net, self.budgets, algorithm=r.algorithm, seed=r.seed, least_share=r.least_share,
            population=r.population, mutation=r.mutation, rules=self.rules,
        )  # fmt: skip
        saved = time.monotonic()
        while len(self.judged) < r.evaluations:
            picks = proposals.next(self.judged)
            metrics = self.judge(picks)
            costs = tuple(b.costs.of(picks) for b in self.budgets)
            self.judged.append(Judged(picks, metrics.top1, costs))
            run.validating(len(self.judged), r.evaluations)
            if lines is not None:
                names, number = [b.costs.name for b in self.budgets], len(self.judged)
                fields: dict[str, Any] = {
                    "step": self.position.global_step + number, "number": number, "picks": list(picks),
                    "top1": metrics.top1, "costs": dict(zip(names, costs, strict=True)),
                    "best": best_of(self.judged).top1,
                }  # fmt: skip
                lines.write("judged", fields)
            if self.processes.any_of(stop.signal is not None):
                return False
            if self.processes.any_of(time.monotonic() - saved > 30):  # each has a clock of its own
                self.save()
                saved = time.monotonic()
        return True

    # ---- what is kept

    def save(self) -> None:
        """Write a checkpoint; every process takes part.

        Raises:
            ProxylessError: weights or alpha are not finite; the last checkpoint is from before.
            CheckpointError: it cannot be written; the one before is kept.
        """
        from .resume import search_state

        states = [self.net.state_dict(), {"alpha": self.net.alphas.logits.detach()}]
        if self.processes.any_of(not checkpoint.all_finite(*states)):
            raise ProxylessError(
                f"the weights are not finite (NaN or infinite) after step {self.position.global_step - 1}; "
                f"the last good checkpoint is kept in {self.checkpoints}"
            )
        state = search_state(self)
        if self.processes.main:
            checkpoint.save(self.checkpoints, state)
        self.processes.wait()

    def release(self) -> None:
        """End worker processes."""
        self.loader.close()
        self.arch_loader.close()
