"""What happened in a search or a training run, read from its folder alone."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..arch.arch import Arch
from ..arch.space import SearchSpace
from ..arch.tree import TreeArch
from ..errors import ArchError, DataError, ProxylessError, first_line
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
        probs: [blocks][candidates], each row sums to 1; the columns are those of the story.
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
        evaluated: models that "random" and "evolution" judged.
        done: the result; None while the search runs.
        notes: what is to be said about the log itself.
    """

    begin: Mapping[str, Any]
    space: SearchSpace
    candidate_ops: tuple[str, ...]
    snapshots: tuple[Snapshot, ...]
    epochs: tuple[Mapping[str, Any], ...]
    evaluated: tuple[Mapping[str, Any], ...]
    done: Mapping[str, Any] | None
    notes: tuple[str, ...]

    @property
    def target(self) -> tuple[str, float, str] | None:
        """Name, value and unit of the first target, or None."""
        for name, value in dict(self.begin.get("targets") or {}).items():
            return name, float(value), str(dict(self.begin.get("units") or {}).get(name, ""))
        return None

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
        space = SearchSpace.from_dict(begin["space"], modules=modules if isinstance(modules, dict) else None)
        candidate_ops = tuple(map(str, begin["columns"]))
    except (KeyError, TypeError, ValueError, ArchError) as e:
        raise DataError(f"{path}: its first line does not tell the search space ({first_line(e)})") from e
    snapshots: list[Snapshot] = []
    epochs, evaluated, done, odd = [], [], None, 0
    for row in map(_sound, rows):
        event = row.get("event")
        if event in ("arch", "epoch") and not {"step", "epoch"} <= row.keys():
            odd += 1
            continue
        if event in ("arch", "epoch") and row.get("probs") is not None:
            snapshot = _snapshot(row, len(space.search_blocks), len(candidate_ops))
            if snapshot is None:
                odd += 1
                continue
            snapshots.append(snapshot)
        if event == "epoch":
            epochs.append(row)
        elif event == "judged":
            evaluated.append(row)
        elif event == "done":
            done = row
    snapshots.sort(key=lambda snapshot: snapshot.step)
    if odd:
        notes.append(left_out(odd, "line", f"{path.name} not fitting the space"))
    if done is None:
        notes.append("the search has not ended, or its log was cut off: this is what there is")
    return SearchRun(
        begin, space, candidate_ops, tuple(snapshots), tuple(epochs), tuple(evaluated), done, tuple(notes)
    )


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
                    row = json.loads(line)
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


_NUMBERS = (
    "step epoch number expected entropy skip_share gradient_norm loss top1 best top1_held_out predicted_ms "
    "measured_ms measured_raw_ms measured_median_ms measured_reference_ratio "
    "measured_p10_ms measured_p90_ms seconds"
).split()
_TEXTS = "time data algorithm table table_conditions model arch measured_note".split()
_WHOLE = ("step", "epoch", "number")
_MAPS = {
    "costs": float,
    "targets": float,
    "units": str,
    "versions": str,
    "pictures": int,
    "range": list,
    "limits": float,
}


def _sound(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a line says, without fields that are not of the type they should be."""
    found = dict(row)
    for name in _NUMBERS:
        value = as_number(found.get(name))
        found[name] = value if value is None or name not in _WHOLE else int(value)
        if found[name] is None:
            del found[name]
    for name in _TEXTS:
        if not isinstance(found.get(name, ""), str):
            del found[name]
    for name, kind in _MAPS.items():
        given = found.pop(name, None)
        if isinstance(given, dict):
            fits = {key: as_number(value) if kind is float else value for key, value in given.items()}
            found[name] = {key: value for key, value in fits.items() if isinstance(value, kind)}
    for name in ("range",):
        ends = {key: list(map(as_number, value)) for key, value in found.get(name, {}).items()}
        found[name] = {key: value for key, value in ends.items() if len(value) == 2 and None not in value}
    choices = found.get("picks")
    if not isinstance(choices, list) or not all(type(k) is int for k in choices):
        found.pop("picks", None)
    noise = found.get("measured_noise")
    found["measured_noise"] = [str(text) for text in noise] if isinstance(noise, list) else []
    slow = found.pop("measured_too_slow", None)
    pairs = [list(map(as_number, p)) for p in slow if isinstance(p, list)] if isinstance(slow, list) else []
    found["measured_too_slow"] = [pair for pair in pairs if len(pair) == 2 and None not in pair]
    return found


def as_number(value: object) -> float | None:
    """Return a value if it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return value if math.isfinite(value) and abs(value) < 1e300 else None
    except OverflowError:  # a whole number of over 300 digits
        return None


def _snapshot(row: Mapping[str, Any], blocks: int, candidate_ops: int) -> Snapshot | None:
    try:
        probs = tuple(tuple(float(p) for p in line) for line in row["probs"])
    except (TypeError, ValueError, OverflowError):
        return None
    if len(probs) != blocks or any(len(line) != candidate_ops for line in probs):
        return None
    if not all(0 <= p <= 1 for line in probs for p in line):
        return None
    return Snapshot(row["step"], row["epoch"], probs, row.get("expected"), row)


TABLE, LOG, RECIPE, RESULT, MODEL = (
    "epochs.csv",
    "log.jsonl",
    "recipe.toml",
    "result.json",
    "model.safetensors",
)


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
    begin = next((_begin(row) for row in reversed(rows) if row.get("event") == "begin"), {})
    if arch is None and isinstance(begin.get("arch"), str):
        try:
            arch = Arch.parse(begin["arch"])
        except ArchError as e:
            notes.append(f"the model that {LOG} names cannot be read ({first_line(e)})")
    return TrainRun(
        folder.resolve().name,
        tuple(sorted(epochs, key=lambda row: row["epoch"])),
        _text(folder / RECIPE, notes),
        result,
        tuple(str(row.get("text")) for row in rows if row.get("event") == "note"),
        begin,
        arch,
        metadata,
        tuple(notes),
    )


def _begin(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a run was asked for, without fields that are not of the type they should be."""
    kinds = {
        "net": str, "arch": str, "data": str, "pictures": dict, "versions": dict, "given_weights": bool,
        "teachers": list, "source": str, "weights": str, "kept_classifier": bool,
    }  # fmt: skip
    return {name: row[name] for name, kind in kinds.items() if isinstance(row.get(name), kind)}


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
