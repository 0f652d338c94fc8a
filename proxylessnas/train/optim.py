"""Optimisers (SGD, AdamW, Muon, ...), parameter groups, and the learning rate as a pure function of the step.

A 1x1 convolution is a matrix, and most of an MBConv model's weights are in such. Muon (Jordan et al. 2024,
"Muon: An optimizer for hidden layers in neural networks") replaces the momentum of a matrix by the nearest
matrix with orthogonal rows or columns, so that every direction is learnt at the same rate. From scratch,
MBConv models then get further in few epochs.

``torch.optim.Muon`` takes matrices only, needs torch 2.9, and wants a second optimiser for everything else;
this one takes all parameters of a model, so that a checkpoint holds one state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..models.base import ImageClassifier
from .recipe import Recipe

_WARMUP_START = 0.01  # share of the rate at the first step of a warm-up
_FUSED_DEVICES = {"cpu", "cuda"}
_NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)


def sections(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the parts of a model that follow each other, first to last: stem, each block, ..., classifier.

    Parts without parameters (a Zero block, the place of a classifier that is absent) are left out, but for
    the classifier, from which ``layer_decay`` counts.
    """
    found: list[tuple[str, nn.Module]] = []
    for name, child in model.named_children():
        if name == "classifier":
            continue
        if isinstance(child, (nn.ModuleList, nn.Sequential)):
            found += [(f"{name}.{i}", part) for i, part in enumerate(child)]
        else:
            found.append((name, child))
    found = [(name, part) for name, part in found if next(part.parameters(), None) is not None]
    head = getattr(model, "classifier", None)
    return [*found, ("classifier", head if isinstance(head, nn.Module) else nn.Identity())]


def parameter_groups(model: ImageClassifier, recipe: Recipe) -> list[dict[str, Any]]:
    """Return the trainable parameters in groups of one learning rate and one weight decay each.

    Parameters without ``requires_grad`` are left out. The order depends on the model and the recipe alone, so
    that an optimiser's state fits again after a restart.

    Besides what an optimiser takes, they have ``name``, ``factor`` (share of the recipe's rate) and ``base``
    (the rate that :func:`set_rates` scales).

    Raises:
        ValueError: nothing can be trained.
    """
    parts = sections(model)
    last = len(parts) - 1
    places = {id(param): i for i, (_, part) in enumerate(parts) for param in part.parameters()}
    groups: dict[tuple[bool, float, float, bool], dict[str, Any]] = {}
    seen: set[int] = set()  # two modules may share a parameter
    for param, decays, matrix in _with_kind(model, recipe):
        if id(param) in seen or not param.requires_grad:
            continue
        seen.add(id(param))
        place = places.get(id(param), 0)  # what hangs on the model itself goes with its first part
        factor = recipe.head_rate if place == last else recipe.layer_decay ** (last - place)
        decay = 0.0 if not decays else recipe.muon_decay if matrix else recipe.weight_decay
        rate = (recipe.muon_rate if matrix else recipe.learning_rate) * factor
        name = parts[place][0] if place == last or recipe.layer_decay != 1.0 else "body"
        name += (", matrices" if matrix else "") + ("" if decays else ", no decay")
        group = groups.setdefault(
            (place == last, factor, decay, matrix),
            {"params": [], "lr": rate, "weight_decay": decay, "base": rate, "factor": factor, "name": name},
        )
        if matrix:
            group["matrix"] = True
        group["params"].append(param)
    if not groups:
        raise ValueError("no parameter of the model has requires_grad: there is nothing to train")
    return list(groups.values())


def _with_kind(model: nn.Module, recipe: Recipe) -> Iterator[tuple[nn.Parameter, bool, bool]]:
    """Yield each parameter of a model, whether it decays, and whether Muon steps it as a matrix."""
    for module in model.modules():
        norm = isinstance(module, _NORMS)
        for name, param in module.named_parameters(recurse=False):
            spared = recipe.no_decay != "none" and norm
            spared |= recipe.no_decay == "bn+bias" and name == "bias"
            yield param, not spared, recipe.optimizer == "muon" and is_matrix(module, name)


def make_optimizer(groups: Iterable[dict[str, Any]], recipe: Recipe) -> torch.optim.Optimizer:
    """Return the recipe's optimiser over the groups of :func:`parameter_groups`.

    One fused kernel updates all parameters where torch has it (CPU and CUDA); elsewhere torch chooses.
    """
    groups = list(groups)
    params = [p for group in groups for p in group["params"]]
    fused = all(p.device.type in _FUSED_DEVICES and p.is_floating_point() for p in params)
    options: dict[str, Any] = {"lr": recipe.learning_rate, "fused": fused or None}
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, betas=recipe.betas, **options)
    if recipe.optimizer == "muon":
        return Muon(groups, momentum=recipe.momentum)
    return torch.optim.SGD(groups, momentum=recipe.momentum, nesterov=recipe.momentum > 0, **options)


def rate_factor(step: int, recipe: Recipe, steps_per_epoch: int) -> float:
    """Return the share of the recipe's learning rate, 0 to 1, at an optimiser step (0 is the first).

    It rises straight from 0.01 over the warm-up to 1, then follows the schedule, which would reach
    ``final_rate`` one step after the last one.
    """
    total = recipe.epochs * steps_per_epoch
    warmup = round(recipe.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return _WARMUP_START + (1.0 - _WARMUP_START) * step / warmup
    if recipe.schedule == "constant":
        return 1.0
    done = min((step - warmup) / max(total - warmup, 1), 1.0)
    left = 0.5 * (1.0 + math.cos(math.pi * done)) if recipe.schedule == "cosine" else 1.0 - done
    return recipe.final_rate + (1.0 - recipe.final_rate) * left


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set each group's rate to ``factor`` times its base rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["base"] * factor


def set_train_mode(model: ImageClassifier, frozen_body: bool = False) -> None:
    """Put a model in training mode; a frozen body stays in evaluation mode.

    So its BatchNorm statistics do not move and no path is dropped, while dropout before the classifier is on.
    """
    model.train()
    if frozen_body:
        for name, child in model.named_children():
            if name != "classifier":
                child.eval()


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
