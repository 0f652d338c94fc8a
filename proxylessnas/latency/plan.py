"""What is to be measured for a latency table: models, operations, and the time for them."""

from __future__ import annotations

import math
from typing import Any

from ..arch import Arch
from ..errors import LatencyError, shown
from ..space import SearchSpace
from .keys import OpKey, arch_keys, space_keys
from .random_nets import random_nets, too_few
from .session import REFERENCE, Item
from .settings import Settings
from .spec import NetSpec
from .validation import check_count, model_spec

#: Measuring processes that share the work; fewer where there is little time.
PROCESSES, FEW_PROCESSES = 4, 2
LITTLE_MINUTES = 3.0
DEFAULT_MINUTES = 8.0
#: Models a table is fitted on: at least, and by default for each operation, and at most.
LEAST_NETS = 24
NETS_PER_OPERATION = 2.2
MOST_NETS = 240
_FEWEST_NETS = 5  # in a space that has hardly more
#: Runtimes whose operations are timed inside whole models.
_WITH_PARTS = ("torch",)


class Plan:
    """What is to be measured."""

    def __init__(
        self,
        space: SearchSpace,
        settings: Settings,
        nets: int | None,
        validation_nets: int,
        minutes: float | None,
        seed: int,
        extra: tuple[Arch, ...],
    ) -> None:
        least = max(LEAST_NETS, 2 * max(len(p.choices) for p in space.positions))
        if nets is not None:
            check_count("nets", nets, least)
        check_count("validation_nets", validation_nets, 0)
        check_count("seed", seed, 0, 2**63)
        if minutes is not None and (
            isinstance(minutes, bool) or not isinstance(minutes, (int, float)) or not 0 < minutes < 1e6
        ):
            raise LatencyError(f"minutes must be a positive number, not {shown(minutes)}")
        if validation_nets == 1:
            raise LatencyError("validation_nets must be 0 or at least 2")
        for arch in extra:
            arch_keys(arch)  # raises if it is not made of blocks
        self.space, self.settings, self.seed, self.extra = space, settings, seed, extra
        self.given, self.minutes = nets, minutes
        self.budget_s = 60 * (minutes or DEFAULT_MINUTES)
        self.processes = PROCESSES if self.budget_s >= 60 * LITTLE_MINUTES else FEW_PROCESSES
        self.keys = space_keys(space)
        self.all_keys = list(dict.fromkeys([*self.keys, *(key for arch in extra for key in arch_keys(arch))]))
        wanted = nets or min(MOST_NETS, max(least, 40, math.ceil(NETS_PER_OPERATION * len(self.keys))))
        self.drawn = random_nets(space, _leaving_some(space, wanted, validation_nets, seed), seed=seed)
        if len(self.drawn) < _FEWEST_NETS:
            raise too_few(space)
        self.extra += self._never_drawn()
        self.checked = []
        if validation_nets:
            self.checked = random_nets(space, validation_nets, seed=seed + 1, avoid=self.drawn)

    def _never_drawn(self) -> tuple[Arch, ...]:
        """Return models with the operations that none of the drawn ones has, for their parts."""
        space, seen = self.space, set[OpKey]()
        for picks in self.drawn:
            seen.update(arch_keys(space.arch(picks)))
        found = []
        for position in space.positions:
            for column in range(len(position.choices)):
                picks = (*self.drawn[0][: position.index], column, *self.drawn[0][position.index + 1 :])
                keys = arch_keys(space.arch(picks))
                if not seen.issuperset(keys):
                    seen.update(keys)
                    found.append(space.arch(picks))
        return tuple(found)

    def request(self) -> dict[str, Any]:
        """Return what a journal must agree with, as JSON values."""
        return {
            "space": self.space.digest,
            "nets": self.given,
            "validation_nets": len(self.checked),
            "minutes": self.minutes,
            "seed": self.seed,
            "extra": [str(arch) for arch in self.extra],
        }

    def items(self) -> list[Item]:
        """Return what a session measures: the reference, models to fit on and to check with, operations."""
        settings, parts = self.settings, self.settings.runtime in _WITH_PARTS
        archs = {f"net {i}": self.space.arch(picks) for i, picks in enumerate(self.drawn)}
        found = [Item(REFERENCE, model_spec(archs["net 0"]), settings)]
        found += [Item(name, model_spec(arch), settings, parts) for name, arch in archs.items()]
        for i, picks in enumerate(self.checked):
            found.append(Item(f"check {i}", model_spec(self.space.arch(picks)), settings))
        if parts:
            for i, arch in enumerate(self.extra):
                found.append(Item(f"extra {i}", model_spec(arch), settings, parts))
        else:
            for key in self.all_keys:
                spec = NetSpec("op", str(key), (key.in_channels, key.size, key.size))
                found.append(Item(f"op {key}", spec, settings))
        return found


def _leaving_some(space: SearchSpace, wanted: int, others: int, seed: int) -> int:
    """Return how many models to fit on, so that a space of few leaves others to check with."""
    every = wanted + max(others, wanted // 2)
    if space.count > 4 * every:
        return wanted
    return min(wanted, math.ceil(len(random_nets(space, every, seed=seed)) * 2 / 3))
