"""Updates of the architecture parameters: gradient steps through gates (3.2, 3.3) and REINFORCE (3.3.2)."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import DataError, ProxylessError, shown
from ..models.batchnorm import single_values_as_data_error
from ..utils.distributed import Processes
from .objective import Baseline, Objective, ObjectiveGradient, Reward, expected_cost

if TYPE_CHECKING:
    from .constraints import Constraint, Costs
    from .path_optimizer import PathParameters
    from .supernet import SuperNet


MODES = ("two", "full", "full_v2")
Autocast = Callable[[], contextlib.AbstractContextManager[Any]]
#: What helps where held-out batches are too small for BatchNorm.
SMALL_BATCH = "raise arch_batch_size or image_size (or arch_fraction, where fewer images are held out)"
_ALONE, _PUBLISHED = Processes(0, 1, torch.device("cpu")), Reward()


class ArchStepResult(NamedTuple):
    """What an arch step came to.

    Attributes:
        loss: cross-entropy on the held-out images, over all processes.
        objective: its value and derivatives.
        expected: the cost in it: over all candidates, or over the pairs.
        gradient_norm: of alpha's gradient; NaN in a step that was skipped.
        skipped: whether alpha was left alone, as 16 bits were too few for the gradient (fp16 alone).
    """

    loss: float
    objective: ObjectiveGradient
    expected: float
    gradient_norm: float
    skipped: bool = False


class ArchStep:
    """Updates the architecture parameters by the gradient of their gates.

    The modes differ in which candidates a sampled path is compared with:

    * ``two``: per block two candidates are drawn; one is on the path, the other is evaluated. Their alphas
      alone are updated, and shifted so that all other probabilities stay what they were. The paper's method.
    * ``full_v2``: all candidates are evaluated in the backward pass; nothing of theirs is stored. The
      original code's default.
    * ``full``: all are evaluated in the forward pass, and their outputs stored.

    Weights are frozen: no gradient of a weight is computed. Statistics of BatchNorm are the batch's, and the
    running ones stay as they are (the original code lets held-out images into them). A sampled Zero takes
    part like any other candidate; the original code leaves its block out of the step.

    Args:
        paths: of the supernet's weights.
        optimizer: of its ``alphas.logits``; published: Adam, rate 1e-3, betas (0, 0.999).
        costs: what enters the objective; None for nothing.
        mode: see above.
        generator: of the sampling; the same in every process.
        processes: those that share the step; gradients are averaged.
        autocast: makes the context of the forward pass.
        scale: of the loss, where that context is one of fp16; else None.
    """

    def __init__(
        self,
        paths: PathParameters,
        optimizer: torch.optim.Optimizer,
        costs: Costs | None,
        *,
        mode: str = "full_v2",
        generator: torch.Generator,
        processes: Processes = _ALONE,
        autocast: Autocast = contextlib.nullcontext,
        scale: GateScale | None = None,
    ) -> None:
        if mode not in MODES:
            raise DataError(f"the arch step's mode is {shown(mode)}; known are {', '.join(MODES)}")
        self.supernet, self.optimizer, self.paths, self.mode = paths.supernet, optimizer, paths, mode
        self.costs, self.generator, self.processes, self.autocast = costs, generator, processes, autocast
        self.scale = scale
        self._blocks, self._columns = self.supernet.alphas.mask.shape

    def __call__(self, inputs: Tensor, targets: Tensor, objective: Objective) -> ArchStepResult:
        """Do one update on held-out images [N, channels, H, W] and their classes; wait for the device once.

        Raises:
            DataError: the batch leaves BatchNorm a single value a channel.
            ProxylessError: the gradient of alpha is not finite; alpha is as before.
        """
        alphas = self.supernet.alphas
        pairs = alphas.sample_pairs(self.generator) if self.mode == "two" else None
        if pairs is None:
            path = alphas.sample(self.generator)
            wanted: list[Sequence[int]] = [range(self._columns)] * self._blocks
        else:
            path = pairs.indices[:, 0].tolist()
            wanted = [[k] for k in pairs.indices[:, 1].tolist()]
        self.supernet.set_path(path)
        loss, gates = self._over_processes(self.gate_gradient(inputs, targets, wanted))
        self.optimizer.zero_grad(set_to_none=True)
        probs = alphas.probs() if pairs is None else alphas.pair_probs(pairs)
        cost = (
            0 * probs.sum()
            if self.costs is None
            else expected_cost(probs, self.costs.table, self.costs.fixed)
        )
        expected = float(cost.detach())
        found = objective.gradient(loss, expected)
        if self.scale is not None and math.isfinite(loss) and not self.scale.fits(gates):
            return ArchStepResult(loss, found, expected, math.nan, skipped=True)
        (cost * found.by_cost).backward()
        alphas.add_gate_gradient(gates * found.by_loss, pairs)
        gradient = alphas.logits.grad
        assert gradient is not None
        norm = _finite_norm(gradient)
        before = alphas.logits.detach().clone()
        self.optimizer.step()
        if pairs is not None:
            alphas.keep_others(before, pairs)
        return ArchStepResult(loss, found, expected, norm)

    def gate_gradient(self, inputs: Tensor, targets: Tensor, wanted: Sequence[Sequence[int]]) -> Tensor:
        """Return the gradient of this process's gates on the present path; the device is not waited for.

        ``wanted`` are the columns whose gate gradient is wanted, besides the active one, for each block. One
        tensor [blocks * columns + 1] holds the derivative by each gate, and the cross-entropy behind them.
        """
        model = self.supernet
        gates = torch.zeros(
            self._blocks, self._columns, device=inputs.device, dtype=torch.float32, requires_grad=True
        )
        # Around the backward pass too: other candidates run there.
        advice = single_values_as_data_error(inputs, SMALL_BATCH)
        with advice, torch.enable_grad(), model.statistics_kept(), self.paths.frozen():
            with self.autocast(), model.gated(gates, wanted, store=self.mode == "full"):
                logits = model(inputs)
            loss = F.cross_entropy(logits.float(), targets)
            (loss if self.scale is None else loss * self.scale.factor).backward()
        assert gates.grad is not None
        return torch.cat([gates.grad.reshape(-1), loss.detach().reshape(1)])

    def _over_processes(self, own: Tensor) -> tuple[float, Tensor]:
        """Return the cross-entropy and its derivative by each gate, [blocks, columns], over all processes."""
        both = own.to("cpu", torch.float64)
        self.processes.sum_([both])
        both /= self.processes.world
        gradient = both[:-1].view(self._blocks, self._columns)
        return float(both[-1]), gradient if self.scale is None else gradient / self.scale.factor

    def state_dict(self) -> dict[str, Any]:
        """Return what a search resumes from."""
        return {"arch_scale": None if self.scale is None else self.scale.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Undo :meth:`state_dict`."""
        if self.scale is not None and state.get("arch_scale") is not None:
            self.scale.load_state_dict(state["arch_scale"])


class ReinforceResult(NamedTuple):
    """What an update came to: means over the sampled models, and the norm of alpha's gradient.

    Accuracy is that on the held-out batch, 0 to 1; there is no cost without a constraint.
    """

    accuracy: float
    reward: float
    baseline: float
    sampled_cost: float | None
    gradient_norm: float


class ReinforceStep:
    """Updates the architecture parameters from the rewards of sampled models.

    ``samples`` models are drawn and evaluated on one batch of held-out images, with the batch's own BatchNorm
    statistics. The gradient is the mean of ``(R - b) * grad(-log p)``; b is what a reward is compared with.
    Where a controller wants the cost to weigh more or less than in the reward, the difference is added as a
    multiple of the expected cost, whose gradient needs no samples.

    Args:
        supernet: the model, with alpha.
        optimizer: of ``supernet.alphas.logits``.
        constraint: gives costs and target of the reward; None rewards accuracy alone.
        samples: M, models an update.
        reward: of a model within a constraint.
        baseline: gives b; None compares each reward with the others of its update.
        generator: of the sampling; the same in every process.
        processes: those that share the held-out batch.
        autocast: makes the context of the forward pass.
    """

    def __init__(
        self,
        supernet: SuperNet,
        optimizer: torch.optim.Optimizer,
        constraint: Constraint | None,
        *,
        samples: int = 10,
        reward: Reward = _PUBLISHED,
        baseline: Baseline | None = None,
        generator: torch.Generator,
        processes: Processes = _ALONE,
        autocast: Autocast = contextlib.nullcontext,
    ) -> None:
        self.supernet, self.optimizer, self.constraint = supernet, optimizer, constraint
        self.samples, self.reward, self.baseline = samples, reward, baseline or Baseline()
        self.generator, self.processes, self.autocast = generator, processes, autocast

    def __call__(
        self, inputs: Tensor, targets: Tensor, objective: Objective | None = None
    ) -> ReinforceResult:
        """Do one update on held-out images [N, channels, H, W] and their classes; wait for the device once.

        ``objective`` is a controller's: an "add_linear" whose strength the cost is to have; None leaves it at
        that of the reward.

        Raises:
            DataError: the batch leaves BatchNorm a single value a channel.
            ProxylessError: the gradient is not finite; alpha is as before.
        """
        alphas, limit = self.supernet.alphas, self.constraint
        paths = [alphas.sample(self.generator) for _ in range(self.samples)]
        accuracies = self._accuracies(self.right(paths, inputs, targets))
        if limit is None:
            costs, rewards = [], accuracies
        else:
            costs = [limit.costs.of(path) for path in paths]
            each = zip(accuracies, costs, strict=True)
            rewards = [self.reward.of(accuracy, cost, limit.limit) for accuracy, cost in each]
        advantages = self.baseline.advantages(rewards)
        with torch.no_grad():
            p = alphas.probs()
            gradient = torch.zeros_like(p)
            for path, advantage in zip(paths, advantages, strict=True):
                chosen = torch.zeros_like(p)
                chosen[torch.arange(len(path)), torch.tensor(path)] = 1.0
                gradient -= advantage * (chosen - p)  # of log p by alpha, which is to rise
            gradient = (gradient / len(paths)).masked_fill(~alphas.mask, 0.0)
            if limit is not None and objective is not None and objective.balance is not None:
                slope = self.reward.slope(sum(accuracies) / len(accuracies)) / limit.limit
                more = slope * (objective.strength - self.reward.weight)
                costly = p * (limit.costs.table - (p * limit.costs.table).sum(1, keepdim=True))
                gradient = objective.balance * (gradient + more * costly)
        norm = _finite_norm(gradient)
        alphas.logits.grad = gradient
        self.optimizer.step()
        accuracy, reward, gain = (sum(values) / len(paths) for values in (accuracies, rewards, advantages))
        cost = sum(costs) / len(costs) if costs else None
        return ReinforceResult(accuracy, reward, reward - gain, cost, norm)

    def right(self, paths: Sequence[Sequence[int]], inputs: Tensor, targets: Tensor) -> Tensor:
        """Return how many images of this process each path gets right, and how many images there are.

        Both are one tensor [paths + 1] on the device, which is not waited for.
        """
        right = torch.zeros(len(paths) + 1, device=inputs.device)  # counts, exact in 32 bits
        right[-1] = len(targets)
        advice = single_values_as_data_error(inputs, SMALL_BATCH)
        with advice, torch.no_grad(), self.supernet.statistics_kept(), self.autocast():
            for m, path in enumerate(paths):
                self.supernet.set_path(path)
                right[m] = (self.supernet(inputs).argmax(1) == targets).sum()
        return right

    def _accuracies(self, own: Tensor) -> list[float]:
        """Return the accuracy of each path on the batch of all processes, 0 to 1."""
        right = own.cpu().double()
        self.processes.sum_([right])
        return (right[:-1] / right[-1]).tolist()

    def state_dict(self) -> dict[str, Any]:
        """Return what a search resumes from."""
        return {"baseline": self.baseline.average}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Undo :meth:`state_dict`."""
        self.baseline.average = state["baseline"]


def _finite_norm(gradient: Tensor) -> float:
    """Return the Euclidean norm of alpha's gradient; raise if it is not finite."""
    norm = float(gradient.norm())
    if not norm < math.inf:  # NaN too
        raise ProxylessError("the gradient of the architecture parameters is not finite (NaN or infinite)")
    return norm


_BACKOFF, _GROWTH, _INTERVAL = 0.5, 2.0, 2000  # torch's own, see torch.amp.GradScaler


@dataclass
class GateScale:
    """Scales the loss, as ``torch.amp.GradScaler`` does, for a gradient that is on the CPU.

    That of the gates has to come there in any case, as alpha is there; so whether it fits is seen without
    another wait for the device. It is summed over all processes before, which therefore agree.
    """

    factor: float = 2.0**16
    good: int = 0  # steps in a row that fitted

    def fits(self, gradient: Tensor) -> bool:
        """Return whether a gradient is finite, and adapt the scale; raise if there is none to lower."""
        if bool(gradient.isfinite().all()):
            self.good += 1
            if self.good == _INTERVAL:
                self.factor, self.good = self.factor * _GROWTH, 0
            return True
        if self.factor <= 1.0:
            raise ProxylessError(
                "the gradient of the architecture parameters does not fit into fp16 even without a scale: "
                'set amp to "bf16" or "off"'
            )
        self.factor, self.good = self.factor * _BACKOFF, 0
        return False

    def state_dict(self) -> dict[str, float]:
        """Return what a search resumes from."""
        return {"factor": self.factor, "good": self.good}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Undo :meth:`state_dict`."""
        self.factor, self.good = float(state["factor"]), int(state["good"])
