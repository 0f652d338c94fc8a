"""Predict the latency of operations that were not measured, from those that were.

The paper predicts models from operations; this goes one step down, to shapes that a table lacks. Two parts:

1. What the work costs: a line through multiply-accumulates, memory traffic and weights of dense and of
   depthwise convolutions, with coefficients that are not negative, fitted to the relative error.
2. What that leaves over, on a log scale: ridge regression over the logarithms of channels, sizes, kernel and
   expansion ratio, with a kernel (a constant, a linear part, and bumps of two widths), apart for each kind
   of operation. Near a measured shape it follows the table; far from all of them it fades to a power law.

Held-out errors come with it, for it is a guess: on the published Pixel-1 table, 2.6 % (root mean square of
the relative error) for an operation whose shape was measured with other kernels or ratios, and 10 % where
nothing of that shape was.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..arch.op_key import CLASSIFIER, OpKey, nearest_key
from ..arch.ops.spec import ConvSpec, with_sizes
from ..errors import LatencyError, LatencyKeyError
from ..utils.checks import Fields, check_keys, is_number, is_text, show
from ..utils.files import write_atomically
from .table import Entry, LatencyTable
from .table_io import MAX_ENTRIES, check_format, is_ms, raise_problems, read_json

FORMAT = "proxylessnas latency predictor"
VERSION = 1
LEAST_ENTRIES = 6
MOST_ENTRIES = 3_000  # the kernel matrix grows with the square

_NOISE = 0.003  # of the logarithm of a time, squared; a flat optimum, held-out on the Pixel-1 table
_MOST_LEFT_OVER = 3.0  # never off the line by more than a factor of 20


@dataclass(frozen=True)
class HeldOut:
    """Errors on operations that a fit did not see.

    Attributes:
        entries: how many were predicted.
        rmse_ms: root of the mean squared error, in milliseconds.
        rmspe_percent: the same of the relative error, in percent.
        within_5_percent, within_10_percent: percentage of predictions as close as that.
    """

    entries: int
    rmse_ms: float
    rmspe_percent: float
    within_5_percent: float
    within_10_percent: float


@dataclass(frozen=True, eq=False)
class Predictor:
    """A regression over the operations of one table; :meth:`fit` makes one.

    Attributes:
        keys: the operations that it was fitted to.
        coefficients: milliseconds for each unit of work, see :func:`work`.
        center: mean of the logarithms of shapes.
        weights: of each of ``keys`` in the left-over part.
        held_out: errors with single operations left out; None where that was impossible.
        held_out_shapes: errors with all operations of a shape left out together: what to expect of shapes
            that a table lacks altogether.
    """

    keys: tuple[OpKey, ...]
    coefficients: tuple[float, ...]
    center: tuple[float, ...]
    weights: tuple[float, ...]
    held_out: HeldOut | None = None
    held_out_shapes: HeldOut | None = None

    @staticmethod
    def fit(table: LatencyTable | Mapping[OpKey, Entry | float]) -> Predictor:
        """Fit to a table, or to the milliseconds of operations; entries that were predicted are left out.

        Raises:
            LatencyError: there are too few operations, too many, or a time is not positive.
        """
        entries = table.entries if isinstance(table, LatencyTable) else table
        times = {
            key: entry.ms if isinstance(entry, Entry) else entry
            for key, entry in entries.items()
            if not (isinstance(entry, Entry) and entry.how == "predicted")
        }
        if not LEAST_ENTRIES <= len(times) <= MOST_ENTRIES:
            wanted = f"{LEAST_ENTRIES} to {MOST_ENTRIES:,}"
            raise LatencyError(f"a predictor is fitted to {wanted} measured operations, not {len(times):,}")
        raise_problems([f"{k}: {show(v)} is no latency" for k, v in times.items() if not is_ms(v)], "a table")
        keys, ms = tuple(times), torch.tensor(list(times.values()), dtype=torch.float64, device="cpu")
        folds = [list(range(i, len(keys), 100)) for i in range(min(100, len(keys)))]
        shapes: dict[tuple[Any, ...], list[int]] = {}
        for i, key in enumerate(keys):
            shapes.setdefault((key.family, *key[1:5]), []).append(i)
        return dataclasses.replace(
            _fit(keys, ms),
            held_out=_held_out(keys, ms, folds),
            held_out_shapes=_held_out(keys, ms, list(shapes.values())),
        )

    def predict(self, key: OpKey) -> float:
        """Return the milliseconds of an operation; always positive.

        Raises:
            LatencyKeyError: the table that this was fitted to holds no operation of its kind.
        """
        return float(self._predict([key])[0])

    def _predict(self, keys: Sequence[OpKey]) -> Tensor:
        known = {key.family for key in self.keys}
        for key in keys:
            if key.family not in known:
                near = nearest_key(key, self.keys)
                raise LatencyKeyError(
                    f"no operation like {key} was measured, so nothing can be said of its latency; the "
                    f"nearest is {near}"
                )
        line = work(keys) @ torch.tensor(self.coefficients, dtype=torch.float64, device="cpu")
        similar = similarity(keys, self.keys, self._center)
        left = similar @ torch.tensor(self.weights, dtype=torch.float64, device="cpu")
        return line * left.clamp(-_MOST_LEFT_OVER, _MOST_LEFT_OVER).exp()

    @cached_property
    def _center(self) -> Tensor:
        return torch.tensor(self.center, dtype=torch.float64, device="cpu")

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "unit": "ms",
            "coefficients": list(self.coefficients),
            "center": list(self.center),
            "held_out": self.held_out and dataclasses.asdict(self.held_out),
            "held_out_shapes": self.held_out_shapes and dataclasses.asdict(self.held_out_shapes),
            "operations": [
                {"key": str(key), "weight": weight}
                for key, weight in zip(self.keys, self.weights, strict=True)
            ],
        }

    @staticmethod
    def from_dict(data: Any, where: str = "the predictor") -> Predictor:
        """Undo :meth:`to_dict`.

        Raises:
            LatencyError: with every problem.
        """
        return _parse(data, where)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it as JSON. The file appears under its name only when it is complete.

        Raises:
            LatencyError: it cannot be written.
        """
        path = Path(path)
        text = json.dumps(self.to_dict(), indent=1, allow_nan=False)
        try:
            write_atomically(path, f"{text}\n".encode())
        except OSError as e:
            raise LatencyError(f"cannot write {path}: {e.strerror or e}") from e
        return path

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Predictor:
        """Read it from its file.

        Raises:
            LatencyError: it cannot be read, or is not valid; every problem is listed.
        """
        return _parse(read_json(Path(path)), str(path))


def _fit(keys: Sequence[OpKey], ms: Tensor) -> Predictor:
    load = work(keys)
    coefficients = non_negative(load / ms[:, None], torch.ones_like(ms))
    coefficients[-1].clamp_(min=1e-3 * float(ms.min()))  # so that no kind of operation is free
    left = (ms / (load @ coefficients)).log()
    center = place(keys).mean(0)
    matrix = similarity(keys, keys, center)
    weights = torch.linalg.solve(
        matrix + _NOISE * torch.eye(len(keys), dtype=torch.float64, device="cpu"), left
    )
    return Predictor(
        tuple(keys), tuple(coefficients.tolist()), tuple(center.tolist()), tuple(weights.tolist())
    )


def _held_out(keys: Sequence[OpKey], ms: Tensor, folds: Sequence[Sequence[int]]) -> HeldOut | None:
    """Return the errors on folds that were left out, where something of the same kind was left in."""
    predicted, measured = [], []
    for fold in folds:
        out = set(fold)
        rest = [i for i in range(len(keys)) if i not in out]
        known = {keys[i].family for i in rest}
        evaluated = [i for i in fold if keys[i].family in known]
        if evaluated and len(rest) >= LEAST_ENTRIES - 1:
            predicted.append(_fit([keys[i] for i in rest], ms[rest])._predict([keys[i] for i in evaluated]))
            measured.append(ms[evaluated])
    if not predicted:
        return None
    guess, truth = torch.cat(predicted), torch.cat(measured)
    relative = guess / truth - 1
    return HeldOut(
        entries=len(truth),
        rmse_ms=float((guess - truth).square().mean().sqrt()),
        rmspe_percent=100 * float(relative.square().mean().sqrt()),
        within_5_percent=100 * float((relative.abs() <= 0.05).double().mean()),
        within_10_percent=100 * float((relative.abs() <= 0.10).double().mean()),
    )


def _parse(data: Any, where: str) -> Predictor:
    data = check_format(data, where, FORMAT, VERSION)
    problems: list[str] = []
    names = set("format version unit coefficients center held_out held_out_shapes operations".split())
    check_keys(problems, "the predictor", data, required=names, optional=frozenset())
    fields = Fields(problems, "the predictor", data)
    fields.take("unit", lambda v: v == "ms", '"ms"')
    coefficients = fields.take(
        "coefficients", lambda v: _is_numbers(v, WORK_COLUMNS, 0), f"{WORK_COLUMNS} numbers from 0 up"
    )
    center = fields.take("center", lambda v: _is_numbers(v, PLACE_COLUMNS, -1e6), f"{PLACE_COLUMNS} numbers")
    errors = [_read_held_out(problems, name, data.get(name)) for name in ("held_out", "held_out_shapes")]
    operations = fields.take(
        "operations", lambda v: isinstance(v, list) and 0 < len(v) <= MAX_ENTRIES, "a list"
    )
    keys, weights = [], []
    for number, item in enumerate(operations or (), 1):
        text, weight = (item.get("key"), item.get("weight")) if isinstance(item, dict) else (None, None)
        if not is_text(text, 300) or not is_number(weight, -1e9, 1e9):
            problems.append(f"operation {number} is {show(item)}; wanted a key and a weight")
            continue
        try:
            keys.append(OpKey.parse(str(text)))
            weights.append(float(weight or 0))
        except LatencyError as e:
            problems.append(f"operation {number}: {e}")
    if coefficients is not None and not any(coefficients):
        problems.append("the predictor: every coefficient is 0")
    raise_problems(problems, where)
    return Predictor(tuple(keys), tuple(coefficients), tuple(center), tuple(weights), *errors)


def _is_numbers(value: object, count: int, low: float) -> bool:
    return isinstance(value, list) and len(value) == count and all(is_number(v, low, 1e12) for v in value)


def _read_held_out(problems: list[str], name: str, data: Any) -> HeldOut | None:
    if data is None:
        return None
    names = [f.name for f in dataclasses.fields(HeldOut)]
    if not isinstance(data, dict) or set(data) != set(names):
        problems.append(f"{name} is {show(data)}; wanted an object of {', '.join(names)}")
        return None
    bad = [n for n in names if not is_number(data[n], 0, 1e12)]
    problems.extend(f"{name}: {n} is {show(data[n])}; wanted a number" for n in bad)
    return None if bad else HeldOut(**data)


WORK_COLUMNS = 6
PLACE_COLUMNS = 6

# The shape of the kernel; flat optima, held-out on the Pixel-1 table. They belong to the file's version.
CONSTANT, LINEAR, WIDTHS = 1.0, 0.3, (1.0, 2.0)


def work(keys: Iterable[OpKey]) -> Tensor:
    """Return the work of each operation, float64 [keys, 6].

    Columns: millions of multiply-accumulates in dense and in depthwise convolutions, millions of values that
    dense and depthwise ones read and write, millions of dense weights, and 1. A registered operation counts
    as one 1x1 convolution, squeeze-and-excite as depthwise; what is wrong with that, the left-over part of
    its own kind learns.
    """
    rows = []
    for key in keys:
        dense = depthwise = moved = moved_depthwise = weights = 0.0
        if key.kind == CLASSIFIER:
            dense = weights = key.in_channels * key.out_channels
            moved = key.in_channels * key.size**2
        else:
            unknown = (ConvSpec("", key.in_channels, key.out_channels, stride=key.stride),)
            for layer, size in with_sizes(key.layers or unknown, key.size):
                if layer.is_depthwise:
                    depthwise += layer.macs(size)
                    moved_depthwise += layer.values(size)
                else:
                    dense += layer.macs(size)
                    moved += layer.values(size)
                    weights += layer.weights
        rows.append([dense, depthwise, moved, moved_depthwise, weights, 1e6])
    return torch.tensor(rows, dtype=torch.float64, device="cpu") / 1e6


def place(keys: Iterable[OpKey]) -> Tensor:
    """Return where operations lie among shapes, float64 [keys, 6], all on a log scale."""
    rows = [(k.in_channels, k.out_channels, k.size, k.out_size, k.kernel or 1, k.expand or 1) for k in keys]
    return torch.tensor(rows, dtype=torch.float64, device="cpu").log()


def similarity(a: Sequence[OpKey], b: Sequence[OpKey], center: Tensor) -> Tensor:
    """Return the kernel between operations, float64 [len(a), len(b)]; 0 between kinds."""
    at, bt = place(a), place(b)
    numbers: dict[str, int] = {}
    kinds = [
        torch.tensor([numbers.setdefault(key.family, len(numbers)) for key in keys], device="cpu")
        for keys in (a, b)
    ]
    distance = (at[:, None] - bt[None]).pow(2).sum(-1)
    bumps = sum((-0.5 * distance / width**2).exp() for width in WIDTHS) / len(WIDTHS)
    return (kinds[0][:, None] == kinds[1][None]) * (
        CONSTANT + bumps + LINEAR * (at - center) @ (bt - center).T
    )


def non_negative(matrix: Tensor, target: Tensor) -> Tensor:
    """Return the least-squares solution with no negative entry (active-set method of Lawson and Hanson)."""
    scale = matrix.norm(dim=0).clamp_min(1e-300)
    matrix = matrix / scale
    x, free = torch.zeros_like(scale), torch.zeros(len(scale), dtype=torch.bool, device="cpu")
    for _ in range(10 * len(scale)):
        gain = (matrix.T @ (target - matrix @ x)).masked_fill(free, -math.inf)
        if gain.max() <= 1e-10 * target.norm():
            break
        free[int(gain.argmax())] = True
        while True:
            wanted = torch.zeros_like(x)
            wanted[free] = torch.linalg.lstsq(matrix[:, free], target[:, None], driver="gelsd").solution[:, 0]
            negative = free & (wanted <= 0)
            if not negative.any():
                x = wanted
                break
            # As far towards it as no entry turns negative; whichever is 0 then stays so.
            step = (x[negative] / (x[negative] - wanted[negative])).min()
            x = x + step * (wanted - x)
            free &= ~(negative & (x <= 1e-12))
            x[~free] = 0
    return x / scale


def filled(table: LatencyTable, keys: Iterable[OpKey]) -> tuple[LatencyTable, Predictor | None]:
    """Return a table with predictions for those of some operations that it lacks, and what made them."""
    missing = [key for key in dict.fromkeys(keys) if key not in table.entries]
    if not missing:
        return table, None
    predictor = Predictor.fit(table)
    return table.extended(missing, predictor), predictor
