"""Reads and checks what a search is given, and makes its parts; nothing is trained before all of it fits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .._version import __version__
from ..arch.ops import modules_of
from ..arch.space_base import Space
from ..arch.spaces import read_space
from ..data.named import parse_name
from ..data.open import Data
from ..errors import DataError, LatencyError
from ..train.loader import EvalLoader, TrainLoader
from ..train.sampler import mix64
from ..train.settings import Settings
from ..train.setup import preprocessing_of
from ..utils.distributed import Processes
from .arch_optimizers import ArchStep, Autocast, GateScale, ReinforceStep
from .constraints import Constraint, MinDepth, check_reachable, latency_costs, size_costs
from .data import ArchLoader, open_search_data
from .derivation import most_probable
from .init import align
from .objective import Baseline, Objective, Reward
from .path_optimizer import PathParameters
from .recipe import SearchRecipe, read_search_recipe
from .supernet import SuperNet, seeded

if TYPE_CHECKING:
    from ..latency.table import LatencyTable


_START = 104  # what a generator is for


class SearchSetup:
    """A search before its first step: what it was given, read and checked, and its supernet.

    Args: as of :func:`~.run.search`.

    Attributes:
        source: where the images are, for another call; None if they are an object.
        recipe: how to search.
        data: images for the weights (``train``), and those held out of them for the architecture (``val``).
        space: with as many classes as the images have, at the size that the recipe trains at.
        table: latencies of the space, or None.
        notes: what a user should know, one line each.
        supernet: a new one; a search trains it in place.
        costs: every kind of cost that is known, by name.
        constraints: the recipe's targets, latency first. The first one is what accuracy is traded against.
        targets: the constraints on each model that is derived at the end: those alone, or as the recipe's
            ``front`` says, the lowest first.
    """

    def __init__(
        self,
        space: Any,
        data: Any,
        recipe: Any,
        table: Any = None,
        force: bool = False,
        limit: int | None = None,
    ) -> None:
        from ..latency.table import LatencyTable

        self.source: dict[str, Any] | None = None
        if isinstance(data, (str, Path)):
            named = isinstance(data, str) and parse_name(data) is not None
            self.source = {"data": str(data if named else Path(data).resolve()), "limit": limit}
        self.recipe = r = recipe if isinstance(recipe, SearchRecipe) else read_search_recipe(recipe)
        self.data = open_search_data(data, arch_fraction=r.arch_fraction, seed=r.seed, limit=limit)
        assert self.data.val is not None
        self.held_out = self.data.val
        self.space = adapted(space if isinstance(space, Space) else read_space(space), self.data, r)
        self.table = table if table is None or isinstance(table, LatencyTable) else LatencyTable.load(table)
        if self.table is None and r.target_ms is not None:
            raise DataError(
                "a target in milliseconds needs a latency table of the device: name one, or make one with "
                "`proxylessnas latency build`"
            )
        self.costs = {} if self.table is None else {"latency": latency_costs(self.table, self.space)}
        self.notes = [] if self.table is None else _checked(self.table, force)
        self.supernet = self._created()
        self.costs |= size_costs(self.supernet)
        self.constraints = [Constraint(self.costs[name], limit) for name, limit in r.targets.items()]
        self.targets = [self.constraints]
        if r.front:
            first, *others = self.constraints
            self.targets = [[Constraint(first.costs, limit), *others] for limit in sorted(set(r.front))]
        # Whether they can be met together is found out now, not after hours of training.
        log_probs = self.supernet.alphas.log_probs()
        for constraints in self.targets:
            check_reachable(constraints)
            most_probable(log_probs, constraints, depth=MinDepth.of(self.space, r.min_depth))

    def _created(self) -> SuperNet:
        """Return the supernet that the search starts from."""
        r, supernet = self.recipe, seeded(self.space, self.recipe.seed)
        weights = r.weights if r.weights.image_size else r.weights.replace(image_size=self.space.resolution)
        supernet.preprocessing = preprocessing_of(weights, supernet, self.data)  # type: ignore[arg-type]
        if r.aligned_start:
            align(supernet, torch.Generator().manual_seed(mix64(r.seed, _START)))
        supernet.alphas.init(torch.Generator().manual_seed(r.seed), r.arch_init)
        return supernet

    # ---- parts of the search

    def loaders(self, settings: Settings, processes: Processes) -> tuple[TrainLoader, ArchLoader, EvalLoader]:
        """Return one process's loaders: for weights, for arch steps, and to evaluate single models.

        The last two have the same images, those held out; only the last one has them in order.

        Raises:
            DataError: the images do not do for the recipe.
        """
        r, preprocessing = self.recipe, self.supernet.preprocessing
        assert preprocessing is not None
        workers = settings.worker_count(processes.world)
        size = r.held_out_batch_size
        weights = TrainLoader(
            self.data.train, r.weights, preprocessing,
            num_classes=self.space.num_classes, processes=processes, workers=workers,
            max_unreadable=settings.max_unreadable,
        )  # fmt: skip
        arch = ArchLoader(
            self.held_out, preprocessing, batch_size=size, seed=r.seed,
            rank=processes.rank, world=processes.world, device=processes.device, workers=workers,
            max_unreadable=settings.max_unreadable, channels_last=r.weights.channels_last,
        )  # fmt: skip
        each = max(1, min(256, size // processes.world))
        return (
            weights,
            arch,
            EvalLoader(self.held_out, preprocessing, batch_size=each, processes=processes, workers=workers),
        )

    def objective(self) -> Objective:
        """Return what is minimised; of "reinforce", how its reward weighs the cost near the target."""
        r = self.recipe
        if not self.constraints or (r.regulariser == "none" and r.algorithm != "reinforce"):
            return Objective("none")
        if r.algorithm == "reinforce":
            return Objective("add_linear", self.constraints[0].limit, r.reward_weight)
        return Objective(r.regulariser, self.constraints[0].limit, r.cost_strength, r.scale)

    def arch_step(
        self,
        paths: PathParameters,
        optimizer: torch.optim.Optimizer,
        generator: torch.Generator,
        processes: Processes,
        autocast: Autocast,
    ) -> ArchStep | ReinforceStep | None:
        """Return the update of alpha; None where it is not learnt."""
        r, first = self.recipe, self.constraints[0] if self.constraints else None
        if r.algorithm == "gradient":
            scale = GateScale() if r.weights.amp == "fp16" else None
            return ArchStep(
                paths, optimizer, first.costs if first else None, mode=r.arch_mode, generator=generator,
                processes=processes, autocast=autocast, scale=scale,
            )  # fmt: skip
        if r.algorithm == "reinforce":
            return ReinforceStep(
                self.supernet, optimizer, first, samples=r.reinforce_samples,
                reward=Reward(r.reinforce_reward, r.reward_weight),
                baseline=Baseline(r.reinforce_baseline, r.reinforce_baseline_first),
                generator=generator, processes=processes, autocast=autocast,
            )  # fmt: skip
        return None

    # ---- for people, and for readers of the log

    def reach(self) -> list[str]:
        """Return in words what is asked for, and what can be reached."""
        found = []
        for n, constraint in enumerate(self.constraints):
            show, (low, high) = constraint.costs.show, constraint.costs.range()
            limits = [constraints[n].limit for constraints in self.targets]
            name, aim = constraint.costs.name, show(constraint.limit)
            asked = f"target: {name} of at most {aim}"
            if len(set(limits)) > 1:
                each = ", ".join(map(show, limits))
                asked = f"targets: {name} of at most {each}, a model each, the architecture learnt for {aim}"
            found.append(f"{asked}; models of this space go from {show(low)} to {show(high)}")
        return found

    def origin(self) -> dict[str, Any]:
        """Return what a reader of the log needs to know about the search."""
        return {
            "space": self.space.to_dict(),
            "columns": list(self.space.candidate_ops),
            "registered_by": modules_of(self.space.candidate_ops),
            "blocks": [
                {"stage": p.stage, "block": p.block, "choices": list(p.candidate_ops)}
                for p in self.space.search_blocks
            ],
            "algorithm": self.recipe.algorithm,
            "targets": {b.costs.name: b.limit for b in self.constraints},
            **({"front": [c[0].limit for c in self.targets]} if len(self.targets) > 1 else {}),
            "units": {b.costs.name: b.costs.unit for b in self.constraints},
            "range": {b.costs.name: list(b.costs.range()) for b in self.constraints},
            "table": None if self.table is None else self.table.digest,
            "table_conditions": None if self.table is None else self.table.conditions.describe(),
            "data": self.data.name,
            "pictures": {"weights": len(self.data.train), "arch": len(self.held_out)},
            "versions": {"proxylessnas": __version__, "torch": str(torch.__version__)},
            "seed": self.recipe.seed,
        }


def _checked(table: LatencyTable, force: bool) -> list[str]:
    """Return why a table is not to be trusted, as notes; with no ``force``, raise it as an error."""
    from ..latency.validate import doubts

    problems = doubts(table)
    if problems and not force:
        raise LatencyError(
            f"this latency table is not to be trusted: {'; '.join(problems)}. Run `proxylessnas latency "
            "validate` on its device, or search with it all the same: --force (force=True in Python)"
        )
    return [f"WARNING: the latency table is not to be trusted: {doubt}" for doubt in problems]


def adapted(space: Space, data: Data, recipe: SearchRecipe) -> Any:
    """Return a space with the outputs that the data needs, at the size the recipe trains at."""
    changes: dict[str, Any] = {"num_classes": len(data.categories), "in_channels": 3}
    if recipe.weights.image_size is not None:
        changes["resolution"] = recipe.weights.image_size
    changes = {k: v for k, v in changes.items() if getattr(space, k) != v}
    return space.replace(**changes) if changes else space
