"""Repeats a search with several seeds, and says how far the results are apart."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..train.settings import Settings
from ..utils.checks import is_int
from ..utils.distributed import processes
from ..utils.files import write_atomically
from .logger import SearchResult
from .recipe import SearchRecipe, read_search_recipe
from .run import SEEDS_FILE, search


@dataclass(frozen=True)
class SeedResults:
    """What searches with several seeds came to.

    Attributes:
        seeds: those asked for.
        results: of the searches so far, in that order; the last one may have been stopped.
        folder: that holds theirs.
    """

    seeds: tuple[int, ...]
    results: tuple[SearchResult, ...]
    folder: Path

    @property
    def finished(self) -> bool:
        """Whether every search is at its end."""
        return len(self.results) == len(self.seeds) and all(result.finished for result in self.results)

    @property
    def signal(self) -> int | None:
        """Number of the signal that stopped the last search, or None."""
        return self.results[-1].signal if self.results else None

    def figures(self) -> dict[str, dict[str, float | None]]:
        """Return mean, standard deviation (of the sample), lowest and highest of each figure by its name.

        Accuracy is in percent, each cost in its unit. A figure that some finished search lacks is left out.
        """
        rows = [_figures_of(result) for result in self.results if result.finished]
        found: dict[str, dict[str, float | None]] = {}
        for name in rows[0] if rows else ():
            values = [row[name] for row in rows if name in row]
            if len(values) == len(rows):
                spread = statistics.stdev(values) if len(values) > 1 else None
                extremes = {"min": min(values), "max": max(values)}
                found[name] = {"mean": statistics.fmean(values), "std": spread, **extremes}
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        searches = [
            {"seed": seed, "folder": result.folder.name, **result.to_dict()}
            for seed, result in zip(self.seeds, self.results, strict=False)
        ]
        return {
            "finished": self.finished, "seeds": list(self.seeds), "figures": self.figures(),
            "searches": searches,
        }  # fmt: skip


def _figures_of(result: SearchResult) -> dict[str, float]:
    figures = {"top1_held_out": result.top1, **result.costs, "measured_ms": result.measured_ms}
    return {name: value for name, value in figures.items() if value is not None}


def search_seeds(
    space: Any,
    data: Any,
    recipe: SearchRecipe | str | Path = "small",
    seeds: Sequence[int] = (0, 1, 2),
    *,
    out: str | Path | Settings,
    **options: Any,
) -> SeedResults:
    """Search with each of some seeds, one after the other, into ``out/seed-0`` and so on.

    ``out/seeds.json`` has mean and spread of what is finished, and is written anew after each search. Killed
    at any moment, the same call resumes; finished searches keep their results.

    Args:
        space: as of :func:`~.run.search`, as are ``data`` and ``recipe``.
        data: its held-out part, too, follows from the seed.
        recipe: its own seed does not matter.
        seeds: different ones.
        out: folder of the folders, or all settings.
        options: the other arguments of :func:`~.run.search`.

    Raises:
        DataError: the seeds are no different whole numbers.
        Others: see :func:`~.run.search`.
    """
    if not seeds or len(set(seeds)) != len(seeds) or not all(is_int(s, 0, 2**32 - 1) for s in seeds):
        raise DataError(f"seeds must be different whole numbers from 0 to 4294967295, not {list(seeds)}")
    settings = out if isinstance(out, Settings) else Settings(Path(out))
    recipe = recipe if isinstance(recipe, SearchRecipe) else read_search_recipe(recipe)
    found = SeedResults(tuple(seeds), (), settings.out)
    with processes(settings.device) as group:
        for seed in seeds:
            own = dataclasses.replace(settings, out=settings.out / f"seed-{seed}")
            result = search(space, data, recipe.replace(seed=seed), out=own, **options)
            found = dataclasses.replace(found, results=(*found.results, result))
            if group.main:
                text = json.dumps(found.to_dict(), indent=2, allow_nan=False) + "\n"
                write_atomically(settings.out / SEEDS_FILE, text.encode())
            if not result.finished:
                break
    return found
