"""The components of a search, as its recipe names them: loaders, objective, architecture optimiser."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from ..train.loader import EvalLoader, TrainLoader
from ..train.settings import Settings
from ..train.step import WeightStep
from ..utils.distributed import Processes
from .arch_optimizers import ArchStep, GateScale, ReinforceStep
from .constraints import Constraint
from .data import ArchLoader, SearchData
from .objective import Objective
from .path_optimizer import PathParameters
from .recipe import SearchRecipe
from .supernet import SuperNet


class Loaders(NamedTuple):
    """Where a search's images come from.

    Attributes:
        weights: images to train the weights on.
        arch: held-out ones, for arch steps.
        judge: the same ones in order, to judge single models by.
    """

    weights: TrainLoader
    arch: ArchLoader
    judge: EvalLoader


def loaders(
    model: SuperNet, data: SearchData, recipe: SearchRecipe, settings: Settings, processes: Processes
) -> Loaders:
    """Return the loaders of one process.

    Raises:
        DataError: the images do not do for the recipe.
    """
    weights, preprocessing = recipe.weights, model.preprocessing
    assert preprocessing is not None
    workers = settings.worker_count(processes.world)
    size = recipe.arch_batch_size or weights.batch_size
    return Loaders(
        TrainLoader(
            data.weights.train, weights, preprocessing,
            num_classes=model.num_classes, processes=processes, workers=workers,
            max_unreadable=settings.max_unreadable,
        ),
        ArchLoader(
            data.arch, preprocessing, batch_size=size, seed=recipe.seed,
            rank=processes.rank, world=processes.world, device=processes.device, workers=workers,
            max_unreadable=settings.max_unreadable, channels_last=weights.channels_last,
        ),
        EvalLoader(
            data.arch, preprocessing, batch_size=max(1, min(256, size // processes.world)),
            processes=processes, workers=workers,
        ),
    )  # fmt: skip


def objective_of(recipe: SearchRecipe, constraints: Sequence[Constraint]) -> Objective:
    """Return what "gradient" minimises."""
    if not constraints or recipe.regulariser == "none":
        return Objective("none")
    return Objective(recipe.regulariser, constraints[0].limit, recipe.cost_strength, recipe.scale)


def arch_step_of(
    recipe: SearchRecipe,
    paths: PathParameters,
    optimizer: torch.optim.Optimizer,
    constraints: Sequence[Constraint],
    generator: torch.Generator,
    processes: Processes,
    step: WeightStep,
) -> tuple[ArchStep | None, ReinforceStep | None]:
    """Return the step of alpha by either algorithm; neither where alpha is not learnt."""
    r, model = recipe, paths.supernet
    costs = constraints[0].costs if constraints else None
    common: dict[str, Any] = {"generator": generator, "processes": processes, "autocast": step.autocast}
    if r.algorithm == "gradient":
        none = torch.zeros(model.alphas.mask.shape, dtype=torch.float64)
        return ArchStep(
            model, optimizer, paths, costs.table if costs else none, costs.fixed if costs else 0.0,
            mode=r.arch_mode, scale=GateScale() if r.weights.amp == "fp16" else None, **common,
        ), None  # fmt: skip
    if r.algorithm == "reinforce":
        return None, ReinforceStep(
            model, optimizer, costs.of if costs else None, constraints[0].limit if constraints else None,
            samples=r.reinforce_samples, exponent=r.reinforce_exponent, decay=r.reinforce_baseline, **common,
        )  # fmt: skip
    return None, None
