"""What happened in a search or a training run, read from its folder alone."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..arch.arch import Arch
from ..arch.space_base import Space
from ..arch.spaces import space_from_dict
from ..arch.tree import TreeArch
from ..errors import ArchError, DataError, ProxylessError, first_line, short_name
from ..figures.probability_map import block_names
from ..utils.files import open_file, read_bytes
from ..utils.text import counted, csv_rows

LOG_FILE = "search.jsonl"  # as search.log writes it; importing that would import torch


@dataclass(frozen=True)
class Snapshot:
    """How a search stood after an arch step, or at the end of an epoch.

    Attributes:
        step: weight steps up to then.
        epoch: counted from 1.
        probs: [blocks][candidates], each row sums to 1; the columns are the candidate ops.
        expected: mean cost of a model drawn from them, in the target's unit; None without a target.
        figures: everything else that the log holds of it, by name.
    """

    step: int
    epoch: int
    probs: tuple[tuple[float, ...], ...]
    expected: float | None
    figures: Mapping[str, Any]

    @property
    def choices(self) -> list[int]:
        """The most probable candidate of every block."""
        return [max(range(len(row)), key=row.__getitem__) for row in self.probs]


class Target(NamedTuple):
    """What a model may cost at most: the kind of cost ("latency", "macs" or "params"), how much, the unit."""

    kind: str
    limit: float
    unit: str


@dataclass(frozen=True)
class SearchRun:
    """A search, as far as its log goes.

    Attributes:
        begin: what was asked for.
        space: what was searched in.
        candidate_ops: names of the candidates.
        snapshots: with probabilities, in order.
        epochs: the ends of epochs: figures by name, with ``choices``, ``top1`` and ``costs`` of the model
            that would have been derived.
        evaluated: models that "random" and "evolution" evaluated.
        done: the result; None while the search runs.
        notes: what is to be said about the log itself.
    """

    begin: Mapping[str, Any]
    space: Space
    candidate_ops: tuple[str, ...]
    snapshots: tuple[Snapshot, ...]
    epochs: tuple[Mapping[str, Any], ...]
    evaluated: tuple[Mapping[str, Any], ...]
    done: Mapping[str, Any] | None
    notes: tuple[str, ...]

    @property
    def targets(self) -> list[Target]:
        """What the model may cost."""
        units = self.begin.get("units", {})
        return [Target(k, float(v), units.get(k, "")) for k, v in self.begin.get("targets", {}).items()]

    @property
    def target(self) -> Target | None:
        """The first target, or None."""
        return next(iter(self.targets), None)

    @property
    def figures(self) -> Mapping[str, Any]:
        """What came out: the result, or how the last epoch stands, or the best model so far."""
        if self.done is not None:
            return {**self.done, "top1": self.done.get("top1_held_out")}
        if self.epochs:
            return self.epochs[-1]
        return max(self.evaluated, key=lambda row: row.get("top1") or 0.0, default={})

    @property
    def costs(self) -> Mapping[str, float]:
        """Costs of the model of :attr:`figures` by kind: "latency" in ms, "macs" and "params" in millions."""
        return self.figures.get("costs", {})

    @property
    def blocks(self) -> list[str]:
        """Names of the blocks, as "2.1": stage and block in it, counted from 1."""
        return block_names(self.space)

    def tokens(self, choices: Sequence[int]) -> list[str]:
        """Return the candidates' names of a choice."""
        return [self.candidate_ops[k] for k in choices]


def read_run(folder_or_log: str | os.PathLike[str]) -> SearchRun:
    """Read the log of a search.

    A log that ends in the middle of a line, or holds one that is damaged, is read as far as it goes, with a
    note.

    Args:
        folder_or_log: a search's folder, or its ``search.jsonl``.

    Raises:
        DataError: there is none, or it does not tell what was searched for.
    """
    path = Path(folder_or_log)
    path = path / LOG_FILE if path.is_dir() else path
    rows, notes = read_rows(path)
    begins = [row for row in rows if row.get("event") == "begin"]
    if not begins:
        raise DataError(f"{path}: does not begin as the log of a search does (no sound line with 'begin')")
    begin = _sound(begins[-1])
    try:
        modules = begin.get("registered_by")
        space = space_from_dict(begin["space"], modules=modules if isinstance(modules, dict) else None)
        candidate_ops = tuple(map(str, begin["columns"]))
    except (KeyError, TypeError, ValueError, ArchError) as e:
        raise DataError(f"{path}: its first line does not tell the search space ({first_line(e)})") from e
    sound = [row for row in map(_sound, rows) if row.get("event") in ("arch", "epoch", "judged", "done")]
    fitting = [row for row in sound if _fits(row, len(space.search_blocks), len(candidate_ops))]
    if len(fitting) < len(sound):
        notes.append(left_out(len(sound) - len(fitting), "line", f"{path.name} not fitting the space"))
    by_step = sorted((row for row in fitting if "probs" in row), key=lambda row: row["step"])
    epochs, evaluated, done = (
        tuple(row for row in fitting if row["event"] == event) for event in ("epoch", "judged", "done")
    )
    if not done:
        notes.append("the search has not ended, or its log was cut off: this is what there is")
    return SearchRun(
        begin,
        space,
        candidate_ops,
        tuple(Snapshot(row["step"], row["epoch"], row["probs"], row.get("expected"), row) for row in by_step),
        epochs,
        evaluated,
        done[-1] if done else None,
        tuple(notes),
    )


def _fits(row: Mapping[str, Any], blocks: int, candidate_ops: int) -> bool:
    """Return whether a line says where in the search it is, with probabilities of the space if it has any."""
    if row["event"] not in ("arch", "epoch"):
        return True
    if not {"step", "epoch"} <= row.keys():
        return False
    probs = row.get("probs")
    if probs is None:
        return True
    return len(probs) == blocks and all(
        len(line) == candidate_ops and all(0 <= p <= 1 for p in line) for line in probs
    )


def _encodable(row: dict[str, Any]) -> dict[str, Any]:
    """Return an object without halves of characters, which JSON may hold and no file or figure can."""

    def mend(value: Any) -> Any:
        return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value

    return {mend(key): mend(value) for key, value in row.items()}


def left_out(count: int, what: str, of: str) -> str:
    """Return a note, as in "2 damaged lines of a.jsonl are left out"."""
    return f"{counted(count, what)} of {of} {'is' if count == 1 else 'are'} left out"


def read_rows(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the sound lines of a JSONL file, and what is to be said about the others.

    Raises:
        DataError: the file cannot be read.
    """
    rows, bad, last_bad = [], 0, False
    try:
        with open_file(path) as file:
            for line in (raw.decode(errors="replace") for raw in file):
                try:
                    row = json.loads(line, object_hook=_encodable)
                except (ValueError, RecursionError):
                    row = None
                last_bad = not isinstance(row, dict)
                if isinstance(row, dict):
                    rows.append(row)
                elif line.strip():
                    bad += 1
    except OSError as e:
        raise DataError(f"{path}: cannot be read ({e.strerror or e})") from e
    notes = []
    if bad == 1 and last_bad:
        notes.append(f"the last line of {path.name} is incomplete and left out")
    elif bad:
        notes.append(left_out(bad, "damaged line", path.name))
    return rows, notes


def as_number(value: object) -> float | None:
    """Return a value if it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return value if math.isfinite(value) and abs(value) < 1e300 else None
    except OverflowError:  # a whole number of over 300 digits
        return None


def _matrix(value: Any) -> tuple[tuple[float, ...], ...] | None:
    """Return lines of numbers; no line of what is something else."""
    try:
        return None if value is None else tuple(tuple(map(float, line)) for line in value)
    except (TypeError, ValueError, OverflowError):
        return ()


def _choices(value: object) -> list[int] | None:
    return value if isinstance(value, list) and all(type(k) is int for k in value) else None


def _read(kind: Any, value: object) -> Any:
    """Return a value if it is of a kind, without what is not in lists and objects; None for another one."""
    if kind in (float, int):
        number = as_number(value)
        return number if number is None or kind is float else int(number)
    if isinstance(kind, type):
        return value if isinstance(value, kind) else None
    if isinstance(kind, dict) and isinstance(value, dict):
        return {k: found for k, v in value.items() if (found := _read(kind[str], v)) is not None}
    if isinstance(kind, list) and isinstance(value, list):
        return [found for v in value if (found := _read(kind[0], v)) is not None]
    if isinstance(kind, tuple) and isinstance(value, list):
        found = _read([kind[0]], value)
        return found if len(found) == len(kind) == len(value) else None
    return kind(value) if callable(kind) else None


_FIGURES = (
    "expected entropy skip_share gradient_norm loss top1 best top1_held_out predicted_ms measured_ms "
    "measured_raw_ms measured_median_ms measured_reference_ratio measured_p10_ms measured_p90_ms seconds"
)
_TEXTS = "time data algorithm table table_conditions model arch measured_note net source weights"
#: Fields of a line -> their types, or what reads them.
_FIELDS: dict[str, Any] = {
    **dict.fromkeys(_FIGURES.split(), float),
    **dict.fromkeys(_TEXTS.split(), str),
    **dict.fromkeys(("step", "epoch", "number"), int),
    **{name: {str: float} for name in ("costs", "targets", "limits")},
    **{name: {str: str} for name in ("units", "versions")},
    **dict.fromkeys(("given_weights", "kept_classifier"), bool),
    "pictures": {str: int},
    "range": {str: (float, float)},
    "picks": _choices,
    "probs": _matrix,
    "teachers": [str],
    "measured_noise": [str],
    "measured_too_slow": [(float, float)],
}


def _sound(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a line says, without fields that are not of the type they should be."""
    found = {name: _read(_FIELDS[name], value) if name in _FIELDS else value for name, value in row.items()}
    sound = {name: value for name, value in found.items() if value is not None}
    return {"measured_noise": [], "measured_too_slow": [], **sound}


TABLE, LOG, RECIPE, RESULT = "epochs.csv", "log.jsonl", "recipe.toml", "result.json"
MODEL = "model.safetensors"


@dataclass(frozen=True)
class TrainRun:
    """A training run, as far as its files go.

    Attributes:
        name: of its folder.
        epochs: a row an epoch: the columns of ``epochs.csv``; None where there is no value.
        recipe: its TOML text; "" if it is not there.
        result: ``result.json``; None while the run goes on.
        texts: what the run told its user.
        begin: what the log says was asked for; empty in logs of earlier versions.
        arch: the trained model, or the one that is in training; None where neither file nor log has it.
        metadata: of the trained model's file.
        notes: what is to be said about the files themselves.
    """

    name: str
    epochs: tuple[Mapping[str, Any], ...]
    recipe: str
    result: Mapping[str, Any] | None
    texts: tuple[str, ...]
    begin: Mapping[str, Any]
    arch: Arch | TreeArch | None
    metadata: Mapping[str, str]
    notes: tuple[str, ...]

    @property
    def best(self) -> Mapping[str, Any] | None:
        """The epoch with the best validation accuracy."""
        known = [row for row in self.epochs if row.get("val_top1") is not None]
        return max(known, key=lambda row: row["val_top1"], default=None)

    @property
    def top1(self) -> float | None:
        """Validation accuracy of the model that was kept, or of the last epoch, percent."""
        if self.result is not None and self.result["top1"] is not None:
            return float(self.result["top1"])
        known = [row["val_top1"] for row in self.epochs if row.get("val_top1") is not None]
        return known[-1] if known else None


def read_train_run(folder: str | os.PathLike[str]) -> TrainRun:
    """Read the folder of a training run.

    What is damaged or cut off is read as far as it goes, with a note.

    Raises:
        DataError: neither the table of epochs nor the log says anything.
    """
    folder = Path(folder)
    notes: list[str] = []
    rows: list[dict[str, Any]] = []
    if (folder / LOG).is_file():
        rows, found = read_rows(folder / LOG)
        notes += found
    epochs = _epochs(folder / TABLE, notes) or [_numbers(row) for row in rows if row.get("event") == "epoch"]
    epochs = [row for row in epochs if row.get("epoch") is not None]
    if not epochs and not rows:
        raise DataError(f"{folder}: holds no run: neither {TABLE} nor {LOG} has a sound line")
    if not epochs:
        notes.append("no epoch has ended yet")
    result = _json(folder / RESULT, notes)
    if result is None:
        notes.append("the run has not ended, or its result is not there: this is what there is")
    arch, metadata = _model(folder / MODEL, notes)
    begin = next((_sound(row) for row in reversed(rows) if row.get("event") == "begin"), {})
    if arch is None and "arch" in begin:
        try:
            arch = Arch.parse(begin["arch"])
        except ArchError as e:
            notes.append(f"the model that {LOG} names cannot be read ({first_line(e)})")
    return TrainRun(
        short_name(folder.resolve().name, "run"),
        tuple(sorted(epochs, key=lambda row: row["epoch"])),
        _text(folder / RECIPE, notes),
        result,
        tuple(str(row.get("text")) for row in rows if row.get("event") == "note"),
        begin,
        arch,
        metadata,
        tuple(notes),
    )


def _epochs(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    text = _text(path, notes)
    try:
        rows = list(csv_rows(text))
    except csv.Error as e:
        notes.append(f"{path.name} is damaged and left out ({e})")
        return []
    found = [_numbers(row) for row in rows]
    good = [
        row for row, given in zip(found, rows, strict=True) if "?" not in given.values() and row.get("epoch")
    ]
    if len(good) < len(rows):
        notes.append(left_out(len(rows) - len(good), "damaged row", path.name))
    return good


def _numbers(row: Mapping[Any, Any]) -> dict[str, Any]:
    """Return what a row says, as numbers; None for what is none."""
    found: dict[str, Any] = {}
    for key, value in row.items():
        try:
            found[str(key)] = as_number(float(value))
        except (TypeError, ValueError, OverflowError):
            found[str(key)] = None
    return found


def _text(path: Path, notes: list[str]) -> str:
    try:
        return read_bytes(path).decode(errors="replace")
    except FileNotFoundError:
        return ""
    except OSError as e:
        notes.append(f"{path.name} cannot be read ({e.strerror or e})")
        return ""


def _json(path: Path, notes: list[str]) -> Mapping[str, Any] | None:
    text = _text(path, notes)
    if not text:
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, dict):
        numbers = ("top1", "best_top1", "steps", "seconds", "val_loss")
        return {**found, **{name: as_number(found.get(name)) for name in numbers}}
    notes.append(f"{path.name} is damaged and left out")
    return None


def _model(path: Path, notes: list[str]) -> tuple[Arch | TreeArch | None, Mapping[str, str]]:
    """Return the architecture in the header of the trained model's file, and the rest of the header."""
    from ..utils.tensor_files import read_metadata

    if not path.is_file():
        return None, {}
    try:
        metadata = read_metadata(path)
        return Arch.parse(metadata["arch"]) if "arch" in metadata else None, metadata
    except (ProxylessError, ArchError, OSError) as e:
        notes.append(f"{path.name} cannot be read and is left out ({first_line(e)})")
        return None, {}
