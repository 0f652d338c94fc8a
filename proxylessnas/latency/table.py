"""A latency table: what each operation of a search space costs on one device, and models predicted from it.

The paper's latency model (ProxylessNAS, section 3.3.1): a model's latency is the sum of its operations'. On
top come ``offset_ms``, which belongs to no operation, and a :class:`Correction` where one was adopted.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..arch.arch import Arch
from ..arch.op_key import STEM, OpKey, arch_keys, candidate_key, nearest_key, space_keys
from ..arch.ops import ZERO
from ..arch.space import SearchSpace
from ..errors import LatencyError, LatencyKeyError, shown
from ..runtimes.settings import Conditions
from ..utils.files import write_atomically
from ..utils.paths import ASSETS
from .table_io import (
    Breakdown,
    Correction,
    Entry,
    ForeignConditions,
    parse_table,
    problems_of,
    raise_problems,
    read_json,
    table_to_dict,
    table_to_text,
)

if TYPE_CHECKING:
    from .metrics import Validation
    from .predictor import Predictor

__all__ = ["BUNDLED", "Breakdown", "Correction", "Entry", "ForeignConditions", "LatencyTable"]

BUNDLED = {"pixel1": ASSETS / "pixel1.json"}


@dataclass(frozen=True)
class LatencyTable:
    """What each operation costs on one device under one set of conditions. It never changes.

    Attributes:
        conditions: runtime, device, threads, batch size and versions that it holds for.
        entries: milliseconds of each operation, in order of first use.
        space: the search space that it was made for, if any.
        offset_ms: a constant of every model that belongs to no operation.
        correction: a line through the predictions; the identity unless one was adopted.
        statistic: what an entry is over its runs, "undisturbed", "median", "mean" or "unknown".
        source: where the figures were published, if they were.
        method: how they were found, as JSON values, for the record.
        date: ISO day of the measurement, or "unknown".
        validation: how well it predicted whole models, as JSON values: those of
            :class:`~proxylessnas.latency.Validation`; None if nobody tried.

    Raises:
        LatencyError: a value is impossible; the message lists every problem.
    """

    conditions: Conditions
    entries: Mapping[OpKey, Entry]
    space: SearchSpace | None = None
    offset_ms: float = 0.0
    correction: Correction = field(default_factory=Correction)
    statistic: str = "median"
    source: str | None = None
    method: Mapping[str, Any] = field(default_factory=dict)
    date: str = field(default_factory=lambda: datetime.date.today().isoformat())
    validation: Mapping[str, Any] | None = None
    _costs: dict[SearchSpace, tuple[Tensor, float]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        problems = problems_of(self)
        # Copies, so that nobody's later change is ours.
        object.__setattr__(self, "entries", MappingProxyType(dict(self.entries)))
        for name in ("method", "validation"):
            value = getattr(self, name)
            try:
                copied = json.loads(json.dumps(None if value is None else dict(value), allow_nan=False))
                object.__setattr__(self, name, copied)
            except (TypeError, ValueError) as e:
                problems.append(f"{name} cannot be written as JSON: {e}")
        raise_problems(problems, "a latency table")

    def __reduce__(self) -> Any:  # pickle and deepcopy know no read-only mapping
        return LatencyTable.from_dict, (self.to_dict(),)

    # What it says about operations and models.

    def lookup(self, key: OpKey) -> float:
        """Return the milliseconds that an operation adds to a model's latency.

        Raises:
            LatencyKeyError: it is not in the table; the message names its nearest neighbour.
        """
        if key not in self.entries:
            raise self._missing([key])
        return self.correction.scale * self.entries[key].ms

    def _missing(self, keys: Sequence[OpKey]) -> LatencyKeyError:
        return missing_entries(keys, self.entries, self.space)

    def explain(
        self, arch: Arch, *, resolution: int | None = None, num_classes: int | None = None
    ) -> Breakdown:
        """Return the latency of a model and what it is made of.

        Args:
            arch: the model.
            resolution: height and width of its input in pixels; None takes the architecture's own.
            num_classes: outputs of its classifier; None takes the architecture's own.

        Raises:
            LatencyKeyError: the table lacks one of its operations.
            LatencyError: it is no chain of blocks, or its resolution is not known.
        """
        keys = arch_keys(arch, resolution=resolution, num_classes=num_classes)
        missing = [key for key in dict.fromkeys(keys) if key not in self.entries]
        if missing:
            raise self._missing(missing)
        parts = tuple((key, self.lookup(key), self.entries[key].how) for key in keys)
        total = sum(ms for _, ms, _ in parts) + self._offset_ms
        return Breakdown(total, parts, self._offset_ms, sum(how == "predicted" for _, _, how in parts))

    def predict(self, arch: Arch, *, resolution: int | None = None, num_classes: int | None = None) -> float:
        """Return the milliseconds of a model, one forward pass of the whole batch, as :meth:`explain`."""
        return self.explain(arch, resolution=resolution, num_classes=num_classes).total_ms

    @property
    def _offset_ms(self) -> float:
        return self.correction.scale * self.offset_ms + self.correction.offset_ms

    # What it says about a space.

    def costs(self, space: SearchSpace | None = None) -> tuple[Tensor, float]:
        """Return what each candidate of each block costs, and what all models of a space have in common.

        Args:
            space: None takes the one that the table was made for.

        Returns:
            ``(costs, fixed_ms)``: float64 [blocks, columns] in milliseconds, 0 for "-" and where a block does
            not have the candidate (see ``space.mask``); and the milliseconds of stem, first block, last
            layer, classifier and offset. A model's latency is ``fixed_ms`` plus one cell of each row.

        Raises:
            LatencyKeyError: the table does not cover the space.
            LatencyError: no space is given, and the table was made for none.
        """
        costs, fixed_ms = self._costs_of(self._space(space))
        return costs.clone(), fixed_ms

    def _costs_of(self, space: SearchSpace) -> tuple[Tensor, float]:
        if space not in self._costs:
            missing = self.coverage(space)[2]
            if missing:
                raise self._missing(missing)
            costs, fixed_ms = cost_matrix(space, self.lookup)
            self._costs[space] = costs, fixed_ms + self._offset_ms
        return self._costs[space]

    def _space(self, space: SearchSpace | None) -> SearchSpace:
        found = self.space if space is None else space
        if found is None:
            raise LatencyError("the table was made for no search space: give one")
        return found

    def expected(self, probs: Tensor, space: SearchSpace | None = None) -> Tensor:
        """Return the mean latency in milliseconds of a network drawn from ``probs``; differentiable.

        Each block adds its candidates' costs weighted by their probability (ProxylessNAS, section 3.3.1).

        Args:
            probs: [blocks, columns], floating; each row sums to 1, and is 0 where ``space.mask`` is False.
            space: None takes the one that the table was made for.

        Returns:
            A scalar with the dtype and on the device of ``probs``.

        Raises:
            LatencyKeyError: the table does not cover the space.
            LatencyError: ``probs`` has the wrong shape or holds no probabilities.
        """
        space = self._space(space)
        costs, fixed_ms = self._costs_of(space)
        check_probs(probs, space)
        # Sums of a hundred terms in half precision would be off by whole milliseconds.
        exact = torch.float32 if probs.device.type == "mps" else torch.float64
        mean = (probs.to(exact) * costs.to(probs.device, exact)).sum() + fixed_ms
        return mean.to(probs.dtype)

    def range_ms(self, space: SearchSpace | None = None) -> tuple[float, float]:
        """Return the latencies of the fastest and the slowest model of a space (exactly, as predicted).

        Raises:
            LatencyKeyError, LatencyError: as :meth:`costs`.
        """
        space = self._space(space)
        costs, fixed_ms = self._costs_of(space)
        mask = torch.tensor(space.mask, device="cpu")
        least = costs.masked_fill(~mask, math.inf).amin(1).sum()
        most = costs.masked_fill(~mask, -math.inf).amax(1).sum()
        return float(least) + fixed_ms, float(most) + fixed_ms

    def coverage(self, space: SearchSpace | None = None) -> tuple[int, int, tuple[OpKey, ...]]:
        """Return how many of a space's operations the table has, how many it needs, and those it lacks."""
        needed = space_keys(self._space(space))
        missing = tuple(key for key in needed if key not in self.entries)
        return len(needed) - len(missing), len(needed), missing

    # Changed copies.

    def with_validation(self, validation: Validation | Mapping[str, Any] | None) -> LatencyTable:
        """Return the table with the result of a validation."""
        if validation is None or isinstance(validation, Mapping):
            data: Any = validation
        else:
            data = validation.to_dict()
        return dataclasses.replace(self, validation=data)

    def with_correction(self, scale: float, offset_ms: float) -> LatencyTable:
        """Return the table with another line through its predictions, and without a validation.

        The line is that of the corrected table over the uncorrected one, not over an earlier correction.
        """
        line, method = Correction(scale, offset_ms), dict(self.method)
        method.pop("correction", None)
        return dataclasses.replace(self, correction=line, method=method, validation=None)

    def extended(self, keys: Sequence[OpKey] | SearchSpace, predictor: Predictor) -> LatencyTable:
        """Return the table with predicted entries for those of ``keys`` (or of a space) that it lacks.

        They are marked "predicted", and :meth:`explain` counts them.

        Raises:
            LatencyKeyError: the predictor knows nothing of such an operation.
        """
        wanted = space_keys(keys) if isinstance(keys, SearchSpace) else keys
        new = {k: Entry(predictor.predict(k), how="predicted") for k in wanted if k not in self.entries}
        return dataclasses.replace(self, entries={**self.entries, **new})

    # Files.

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values, those of its file."""
        return table_to_dict(self)

    @classmethod
    def from_dict(cls, data: Any, where: str = "the latency table") -> LatencyTable:
        """Read a table from JSON values; ``where`` names them in messages.

        Raises:
            LatencyError: with every problem.
        """
        return cls(**parse_table(data, where))

    @property
    def digest(self) -> str:
        """SHA-256 of everything in it, the same on every machine."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the table as JSON. The file appears under its name only when it is complete.

        Raises:
            LatencyError: it cannot be written.
        """
        path = Path(path)
        try:
            write_atomically(path, table_to_text(self).encode())
        except OSError as e:
            raise LatencyError(f"cannot write {path}: {e.strerror or e}") from e
        return path

    @classmethod
    def load(cls, source: str | os.PathLike[str]) -> LatencyTable:
        """Read a table from a file, or one that comes with the package by its name ("pixel1").

        Raises:
            LatencyError: there is no such file, or it is no valid table; every problem is listed.
        """
        path = BUNDLED[source] if isinstance(source, str) and source in BUNDLED else Path(source)
        if not path.exists():
            raise LatencyError(
                f"no latency table at {path}; those that come with the package: {', '.join(BUNDLED)}"
            )
        return cls.from_dict(read_json(path), str(path))


def cost_matrix(space: SearchSpace, lookup: Callable[[OpKey], float]) -> tuple[Tensor, float]:
    """Return the milliseconds of each candidate, float64 [blocks, columns], and those of the fixed parts.

    "-" costs nothing; cells where a block does not have the candidate are 0 too.
    """
    rows = [
        [
            lookup(candidate_key(p, c)) if c in p.candidate_ops and c != ZERO else 0.0
            for c in space.candidate_ops
        ]
        for p in space.search_blocks
    ]
    keys = arch_keys(space.arch(space.first_choices))
    fixed_ms = sum(map(lookup, keys[: -2 - len(rows)] + keys[-2:]))
    with torch.inference_mode(False):  # kept, and used again where gradients are wanted
        return torch.tensor(rows, dtype=torch.float64, device="cpu"), fixed_ms


def check_probs(probs: Tensor, space: SearchSpace) -> None:
    """Check the probabilities of a space's candidates; on a GPU their shape alone, as looking is waiting.

    Raises:
        LatencyError: no floating tensor [blocks, columns], no distribution, or one over missing candidates.
    """
    shape = (len(space.search_blocks), len(space.candidate_ops))
    if not isinstance(probs, Tensor) or not probs.is_floating_point() or probs.shape != shape:
        given = f"{probs.dtype} {list(probs.shape)}" if isinstance(probs, Tensor) else shown(probs)
        raise LatencyError(f"probs must be a floating tensor {list(shape)}, not {given}")
    if probs.device.type != "cpu":
        return
    close = max(1e-3, 8 * torch.finfo(probs.dtype).eps)
    values = probs.detach().double()
    # NaN is in no range, so both tests are of what is right.
    right = ((values.sum(1) - 1).abs() <= close) & (values >= -close).all(1)
    if not right.all():
        row = int((~right).nonzero()[0])
        raise LatencyError(f"probs: row {row} is no distribution: {shown(values[row].tolist(), 200)}")
    outside = values.masked_fill(torch.tensor(space.mask, device="cpu"), 0).nonzero()
    if len(outside):
        row, column = outside[0].tolist()
        raise LatencyError(
            f"probs: row {row} gives {float(values[row, column]):.3g} to {space.candidate_ops[column]!r}, "
            "which that block does not have: it must be 0 (mask the logits with -inf before the softmax)"
        )


def missing_entries(
    keys: Sequence[OpKey], known: Iterable[OpKey], space: SearchSpace | None
) -> LatencyKeyError:
    """Return the error for operations that a table (of ``known`` ones, made for ``space``) lacks."""
    known = list(known)
    nearest = nearest_key(keys[0], known)
    others = f" (and {len(keys) - 1} more)" if len(keys) > 1 else ""
    if space is not None:
        what = f"covers the space {shown(space.name)} at {space.resolution} px, {space.num_classes} classes"
    else:
        sizes = sorted({key.size for key in known if key.op == STEM})
        inputs = f" of models for inputs of {', '.join(map(str, sizes))} px" if sizes else ""
        what = f"holds {len(known)} operations{inputs}"
    return LatencyKeyError(
        f"the latency table has no entry for {keys[0]}{others}; the nearest it has is {nearest}. It {what}: "
        "build one for your space (`proxylessnas latency build`), or have the missing entries predicted "
        "(LatencyTable.extended)"
    )
