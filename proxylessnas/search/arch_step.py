"""The arch step of the gradient algorithm: one update of alpha on held-out pictures (sections 3.2, 3.3)."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import DataError, ProxylessError, shown
from ..train.batchnorm import single_values_as_data_error
from .gate_scale import GateScale
from .objective import Objective, Pull, expected_cost

if TYPE_CHECKING:
    from ..train.distributed import Processes
    from .paths import PathParameters
    from .supernet import SuperNet

MODES = ("two", "full", "full_v2")
#: What helps where held-out batches are too small for BatchNorm.
SMALL_BATCH = "raise arch_batch_size or image_size (or arch_fraction, where fewer pictures are held out)"


class ArchStepResult(NamedTuple):
    """What an arch step came to.

    Attributes:
        loss: cross-entropy on the held-out pictures, over all processes.
        pull: the objective and its derivatives.
        expected: the expected cost that was in the objective: over all candidates, or over the pairs.
        gradient_norm: Euclidean norm of alpha's gradient; NaN in a step that was skipped.
        skipped: whether alpha was left alone, as 16 bits were too few for the gradient (fp16 alone).
    """

    loss: float
    pull: Pull
    expected: float
    gradient_norm: float
    skipped: bool = False


class ArchStep:
    """Updates the architecture parameters.

    The modes differ in which candidates a sampled path is compared with:

    * ``two``: per block two candidates are drawn; one is on the path, the other is evaluated. Their alphas
      alone are updated, and shifted so that all other probabilities stay what they were. The paper's method.
    * ``full_v2``: all candidates are evaluated in the backward pass; nothing of theirs is stored. The
      original code's default.
    * ``full``: all are evaluated in the forward pass, and their outputs stored.

    Weights are frozen: no gradient of a weight is computed. Statistics of BatchNorm are the batch's, and the
    running ones stay as they are (the original code lets held-out pictures into them). A sampled Zero takes
    part like any other candidate; the original code leaves its block out of the step.

    Args:
        supernet: the net, with alpha.
        optimizer: of ``supernet.alphas.logits``; published: Adam, rate 1e-3, betas (0, 0.999).
        paths: of the supernet's weights.
        costs: cost of each candidate, float64 [blocks, candidates], 0 for Zero.
        fixed_cost: of what every net has.
        mode: see above.
        generator: of the sampling; the same in every process.
        processes: those that share the step; gradients are averaged.
        autocast: makes the context of the forward pass.
        scale: of the loss, where that context is one of fp16; else None.
    """

    def __init__(
        self,
        supernet: SuperNet,
        optimizer: torch.optim.Optimizer,
        paths: PathParameters,
        costs: Tensor,
        fixed_cost: float,
        *,
        mode: str = "full_v2",
        generator: torch.Generator,
        processes: Processes | None = None,
        autocast: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
        scale: GateScale | None = None,
    ) -> None:
        if mode not in MODES:
            raise DataError(f"the arch step's mode is {shown(mode)}; known are {', '.join(MODES)}")
        self.supernet, self.optimizer, self.paths, self.mode = supernet, optimizer, paths, mode
        self.costs, self.fixed_cost = costs, fixed_cost
        self.generator, self.processes, self.autocast = generator, processes, autocast
        self.scale = scale
        self._blocks, self._columns = costs.shape

    def __call__(self, inputs: Tensor, targets: Tensor, objective: Objective) -> ArchStepResult:
        """Do one update; the device is waited for once.

        Args:
            inputs: [N, channels, H, W], held out from the training of the weights.
            targets: [N] class indices.
            objective: what to minimise.

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
        expected = expected_cost(probs, self.costs, self.fixed_cost)
        pull = objective.pull(loss, float(expected.detach()))
        if self.scale is not None and math.isfinite(loss) and not self.scale.fits(gates):
            return ArchStepResult(loss, pull, float(expected.detach()), math.nan, skipped=True)
        (expected * pull.by_cost).backward()
        alphas.add_gate_gradient(gates * pull.by_loss, pairs)
        gradient = alphas.logits.grad
        assert gradient is not None
        norm = float(gradient.norm())
        if not norm < float("inf"):  # NaN too
            raise ProxylessError(
                "the gradient of the architecture parameters is not finite (NaN or infinite)"
            )
        before = alphas.logits.detach().clone()
        self.optimizer.step()
        if pairs is not None:
            alphas.keep_others(before, pairs)
        return ArchStepResult(loss, pull, float(expected.detach()), norm)

    def gate_gradient(self, inputs: Tensor, targets: Tensor, wanted: Sequence[Sequence[int]]) -> Tensor:
        """Return the gradient of this process's gates on the present path; the device is not waited for.

        Args:
            inputs: [N, channels, H, W].
            targets: [N] class indices.
            wanted: columns whose gate gradient is wanted, besides the active one, for each block.

        Returns:
            [blocks * columns + 1] on the device: by each gate, and the cross-entropy behind them.
        """
        net = self.supernet
        gates = torch.zeros(
            self._blocks, self._columns, device=inputs.device, dtype=torch.float32, requires_grad=True
        )
        # Around the backward pass too: other candidates run there.
        advice = single_values_as_data_error(inputs, SMALL_BATCH)
        with advice, torch.enable_grad(), net.statistics_kept(), self.paths.frozen():
            with self.autocast(), net.gated(gates, wanted, store=self.mode == "full"):
                logits = net(inputs)
            loss = F.cross_entropy(logits.float(), targets)
            (loss if self.scale is None else loss * self.scale.factor).backward()
        assert gates.grad is not None
        return torch.cat([gates.grad.reshape(-1), loss.detach().reshape(1)])

    def _over_processes(self, own: Tensor) -> tuple[float, Tensor]:
        """Return the cross-entropy and its derivative by each gate, [blocks, columns], over all processes."""
        both = own.to("cpu", torch.float64)
        if self.processes is not None and self.processes.world > 1:
            self.processes.sum_([both])
            both /= self.processes.world
        gradient = both[:-1].view(self._blocks, self._columns)
        return float(both[-1]), gradient if self.scale is None else gradient / self.scale.factor
