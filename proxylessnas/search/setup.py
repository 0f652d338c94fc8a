"""What a search is asked for: read, and checked before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .._version import __version__
from ..arch.ops import modules_of
from ..arch.space import SearchSpace
from ..arch.spaces import read_space
from ..data.named import parse_name
from ..errors import DataError, LatencyError
from ..train.sampler import mix64
from ..train.settings import Settings
from ..train.setup import preprocessing_of
from ..utils.distributed import Processes
from .constraints import Constraint, Costs, check_reachable, latency_costs, size_costs
from .data import SearchData, open_search_data
from .derivation import most_probable_within, rules_of
from .init import align
from .recipe import SearchRecipe, read_search_recipe
from .searcher import Searcher
from .supernet import SuperNet, seeded

if TYPE_CHECKING:
    from ..latency.table import LatencyTable


_START = 104  # what a generator is for


class SearchSetup:
    """What is asked for, read and checked before anything is trained."""

    def __init__(
        self, space: Any, data: Any, recipe: Any, table: Any, force: bool, limit: int | None
    ) -> None:
        from ..latency.table import LatencyTable

        # What `resume` and `derive` open again; a data set object cannot be written down.
        self.source = None
        if isinstance(data, (str, Path)):
            named = isinstance(data, str) and parse_name(data) is not None
            self.source = {"data": str(data if named else Path(data).resolve()), "limit": limit}
        self.recipe = recipe if isinstance(recipe, SearchRecipe) else read_search_recipe(recipe)
        self.data: SearchData = (
            data
            if isinstance(data, SearchData)
            else open_search_data(
                data, arch_fraction=self.recipe.arch_fraction, seed=self.recipe.seed, limit=limit
            )
        )
        self.space = adapted(
            space if isinstance(space, SearchSpace) else read_space(space), self.data, self.recipe
        )
        self.table = table if table is None or isinstance(table, LatencyTable) else LatencyTable.load(table)
        if self.table is None and self.recipe.target_ms is not None:
            raise DataError(
                "a target in milliseconds needs a latency table of the device: name one, or make one with "
                "`proxylessnas latency build`"
            )
        self.notes: list[str] = []
        if self.table is not None:
            self.notes += self._checked(self.table, force)

    def _checked(self, table: LatencyTable, force: bool) -> list[str]:
        from ..latency.validate import doubts

        problems = doubts(table)
        if problems and not force:
            raise LatencyError(
                f"this latency table is not to be trusted: {'; '.join(problems)}. Run `proxylessnas latency "
                "validate` on its device, or search with it all the same: --force (force=True in Python)"
            )
        return [f"WARNING: the latency table is not to be trusted: {doubt}" for doubt in problems]

    def searcher(self, settings: Settings, group: Processes) -> Searcher:
        """Return the search, ready to begin or to go on."""
        supernet = seeded(self.space, self.recipe.seed)
        weights = self.recipe.weights
        recipe = weights if weights.image_size else weights.replace(image_size=self.space.resolution)
        supernet.preprocessing = preprocessing_of(recipe, supernet, self.data.weights)  # type: ignore[arg-type]
        if self.recipe.aligned_start:
            align(supernet, torch.Generator().manual_seed(mix64(self.recipe.seed, _START)))
        supernet.alphas.init(torch.Generator().manual_seed(self.recipe.seed), self.recipe.arch_init)
        self.costs = all_costs(supernet, self.table)
        self.constraints = constraints_of(self.recipe, self.costs)
        check_reachable(self.constraints)
        self._check_together(supernet)
        return Searcher(supernet, self.data, self.recipe, settings, group, self.constraints)

    def _check_together(self, supernet: SuperNet) -> None:
        """Find out now, not after hours of training, whether the budgets can be met together."""
        rules = rules_of(self.space, self.recipe.min_depth)
        most_probable_within(supernet.alphas.log_probs(), self.constraints, **rules)

    def reach(self) -> list[str]:
        """Return in words what can be reached, and what is asked for."""
        found = []
        for constraint in self.constraints:
            low, high = constraint.costs.range()
            show = constraint.costs.show
            found.append(
                f"target: {constraint.costs.name} of at most {show(constraint.limit)}; models of this space go from "
                f"{show(low)} to {show(high)}"
            )
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
            "units": {b.costs.name: b.costs.unit for b in self.constraints},
            "range": {b.costs.name: list(b.costs.range()) for b in self.constraints},
            "table": None if self.table is None else self.table.digest,
            "table_conditions": None if self.table is None else self.table.conditions.describe(),
            "data": self.data.name,
            "pictures": {"weights": len(self.data.weights.train), "arch": len(self.data.arch)},
            "versions": {"proxylessnas": __version__, "torch": str(torch.__version__)},
            "seed": self.recipe.seed,
        }


def adapted(space: SearchSpace, data: SearchData, recipe: SearchRecipe) -> SearchSpace:
    """Return a space with the outputs that the data needs, at the size the recipe trains at."""
    changes: dict[str, Any] = {"num_classes": len(data.categories), "in_channels": 3}
    if recipe.weights.image_size is not None:
        changes["resolution"] = recipe.weights.image_size
    changes = {k: v for k, v in changes.items() if getattr(space, k) != v}
    return space.replace(**changes) if changes else space


def all_costs(supernet: SuperNet, table: LatencyTable | None) -> dict[str, Costs]:
    """Return every kind of cost that is known of a space, by name."""
    found = {} if table is None else {"latency": latency_costs(table, supernet.space)}
    return {**found, **size_costs(supernet)}


def constraints_of(recipe: SearchRecipe, costs: dict[str, Costs]) -> list[Constraint]:
    """Return the recipe's targets, latency first."""
    wanted = {
        "latency": recipe.target_ms, "macs": recipe.target_macs_m, "params": recipe.target_params_m,
    }  # fmt: skip
    return [Constraint(costs[name], limit) for name, limit in wanted.items() if limit is not None]
