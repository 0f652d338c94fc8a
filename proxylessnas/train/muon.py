"""Muon: SGD for vectors, orthogonalised momentum for matrices.

A 1x1 convolution is a matrix, and most of an MBConv net's weights are in such. Muon (Jordan et al. 2024,
"Muon: An optimizer for hidden layers in neural networks") replaces the momentum of a matrix by the nearest
matrix with orthogonal rows or columns, so that every direction is learnt at the same rate. From scratch,
MBConv nets then get further in few epochs.

``torch.optim.Muon`` takes matrices only, needs torch 2.9, and wants a second optimiser for everything else;
this one takes all parameters of a net, so that a checkpoint holds one state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

# Of the quintic iteration: chosen by its authors so that singular values end between 0.7 and 1.2 soonest.
_A, _B, _C = 3.4445, -4.7750, 2.0315
_ITERATIONS = 3


def is_matrix(module: nn.Module, name: str) -> bool:
    """Tell whether a module's parameter is one that Muon steps as a matrix.

    These are the weights of dense convolutions, as [out, in * k * k]. Depthwise filters mix no channels, and
    the classifier's rows are better left to plain SGD.
    """
    return isinstance(module, nn.Conv2d) and name == "weight" and module.weight.shape[1] > 1


def orthogonalized(matrix: Tensor, iterations: int = _ITERATIONS) -> Tensor:
    """Return about the orthogonal matrix nearest to [rows, columns], by Newton-Schulz iterations.

    Its singular values lie around 1 instead of at 1; a matrix of zeros stays one.
    """
    x = matrix / (matrix.norm() + 1e-7)
    wide = x.shape[0] <= x.shape[1]
    x = x if wide else x.T
    for _ in range(iterations):
        gram = x @ x.T
        x = _A * x + (_B * gram + _C * gram @ gram) @ x
    return x if wide else x.T


class Muon(torch.optim.Optimizer):
    """Steps groups marked ``matrix=True`` by orthogonalised momentum, the others by SGD; both with Nesterov.

    Args:
        groups: dicts of ``params``, ``lr``, ``weight_decay`` and ``matrix``. Weight decay is L2 for SGD, as
            in ``torch.optim.SGD``, and decoupled (times the rate) for matrices.
        momentum: of both.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], momentum: float = 0.9) -> None:
        super().__init__(groups, {"lr": 0.02, "weight_decay": 0.0, "momentum": momentum, "matrix": False})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            update = _matrix_step if group["matrix"] else _vector_step
            for param in group["params"]:
                if param.grad is not None:
                    state = self.state[param]
                    if "momentum_buffer" not in state:
                        state["momentum_buffer"] = torch.zeros_like(param)
                    update(param, param.grad, state["momentum_buffer"], group)
        return loss


def _vector_step(param: Tensor, grad: Tensor, momentum: Tensor, group: dict[str, Any]) -> None:
    if group["weight_decay"]:
        grad = grad.add(param, alpha=group["weight_decay"])
    momentum.mul_(group["momentum"]).add_(grad)
    param.add_(grad.add(momentum, alpha=group["momentum"]), alpha=-group["lr"])


def _matrix_step(param: Tensor, grad: Tensor, momentum: Tensor, group: dict[str, Any]) -> None:
    momentum.mul_(group["momentum"]).add_(grad)
    direction = grad.add(momentum, alpha=group["momentum"]).reshape(len(param), -1)
    step = orthogonalized(direction).reshape(param.shape)
    # A tall matrix has orthogonal columns, so its rows would change less: the factor makes up for it.
    gain = max(1.0, len(param) / direction.shape[1]) ** 0.5
    param.mul_(1.0 - group["lr"] * group["weight_decay"]).add_(step, alpha=-group["lr"] * gain)
