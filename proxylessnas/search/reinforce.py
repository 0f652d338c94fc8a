"""The other published algorithm: REINFORCE, which needs no gradient through the net (section 3.3.2)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..errors import ProxylessError
from ..train.batchnorm import single_values_as_data_error
from .arch_step import SMALL_BATCH
from .objective import reward

if TYPE_CHECKING:
    from ..train.distributed import Processes
    from .supernet import SuperNet


class ReinforceResult(NamedTuple):
    """What an update came to.

    Attributes:
        accuracy: mean of the sampled nets on the held-out batch, 0 to 1.
        reward: their mean reward.
        baseline: what rewards were compared with.
        cost: their mean cost; None without costs.
        gradient_norm: Euclidean norm of alpha's gradient.
    """

    accuracy: float
    reward: float
    baseline: float
    cost: float | None
    gradient_norm: float


class ReinforceStep:
    """Updates the architecture parameters from the rewards of sampled nets.

    ``samples`` nets are drawn and judged on one batch of held-out pictures, with the batch's own BatchNorm
    statistics. The gradient is the mean of ``(R - b) * grad(-log p)``. The baseline b is a moving average of
    earlier rewards: ``b <- decay * b + (1 - decay) * mean R``, after it was used; in the original code the
    new mean has the weight that was meant for the old average, and is in b before it is compared with it.

    Args:
        supernet: the net, with alpha.
        optimizer: of ``supernet.alphas.logits``.
        cost_of: returns a net's cost; None judges by accuracy alone.
        target: in the unit of the cost.
        samples: M, nets an update.
        exponent: see :func:`~.objective.reward`.
        decay: of the baseline.
        generator: of the sampling; the same in every process.
        processes: those that share the held-out batch.
        autocast: makes the context of the forward pass.

    Attributes:
        baseline: b, None before the first update.
    """

    def __init__(
        self,
        supernet: SuperNet,
        optimizer: torch.optim.Optimizer,
        cost_of: Callable[[Sequence[int]], float] | None,
        target: float | None,
        *,
        samples: int = 10,
        exponent: float = 0.1,
        decay: float = 0.99,
        generator: torch.Generator,
        processes: Processes | None = None,
        autocast: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
    ) -> None:
        self.supernet, self.optimizer, self.cost_of, self.target = supernet, optimizer, cost_of, target
        self.samples, self.exponent, self.decay = samples, exponent, decay
        self.generator, self.processes, self.autocast = generator, processes, autocast
        self.baseline: float | None = None

    def __call__(self, inputs: Tensor, targets: Tensor) -> ReinforceResult:
        """Do one update; the device is waited for once.

        Args:
            inputs: [N, channels, H, W], held out from the training of the weights.
            targets: [N] class indices.

        Raises:
            DataError: the batch leaves BatchNorm a single value a channel.
            ProxylessError: the gradient is not finite; alpha is as before.
        """
        alphas = self.supernet.alphas
        paths = [alphas.sample(self.generator) for _ in range(self.samples)]
        accuracies = self._accuracies(self.right(paths, inputs, targets))
        costs = None if self.cost_of is None else [self.cost_of(path) for path in paths]
        rewards = [
            reward(a, costs[m] if costs else None, self.target, self.exponent)
            for m, a in enumerate(accuracies)
        ]
        mean = sum(rewards) / len(rewards)
        baseline = mean if self.baseline is None else self.baseline
        with torch.no_grad():
            p = alphas.probs()
            gradient = torch.zeros_like(p)
            for path, r in zip(paths, rewards, strict=True):
                chosen = torch.zeros_like(p)
                chosen[torch.arange(len(path)), torch.tensor(path)] = 1.0
                gradient -= (r - baseline) * (chosen - p)  # of log p by alpha, which is to rise
            gradient = (gradient / len(paths)).masked_fill(~alphas.mask, 0.0)
        norm = float(gradient.norm())
        if not norm < float("inf"):
            raise ProxylessError(
                "the gradient of the architecture parameters is not finite (NaN or infinite)"
            )
        alphas.logits.grad = gradient
        self.optimizer.step()
        self.baseline = self.decay * baseline + (1.0 - self.decay) * mean
        return ReinforceResult(
            sum(accuracies) / len(accuracies), mean, baseline,
            sum(costs) / len(costs) if costs else None, norm,
        )  # fmt: skip

    def right(self, paths: Sequence[Sequence[int]], inputs: Tensor, targets: Tensor) -> Tensor:
        """Return how many pictures of this process each path gets right; the device is not waited for.

        Args:
            paths: columns, one a searched block.
            inputs: [N, channels, H, W].
            targets: [N] class indices.

        Returns:
            [paths + 1] on the device: pictures that are right, and how many there are.
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
        if self.processes is not None and self.processes.world > 1:
            self.processes.sum_([right])
        return (right[:-1] / right[-1]).tolist()
