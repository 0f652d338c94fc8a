"""What happened in a training run, read from its folder alone."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..arch import Arch
from ..errors import ArchError, DataError, ProxylessError, first_line
from ..safe_text import csv_rows
from ..tree_arch import TreeArch
from ..user_files import read_bytes
from .search_story import as_number, left_out, read_rows

TABLE, LOG, RECIPE, RESULT, MODEL = (
    "epochs.csv",
    "log.jsonl",
    "recipe.toml",
    "result.json",
    "model.safetensors",
)


@dataclass(frozen=True)
class TrainStory:
    """A training run, as far as its files go.

    Attributes:
        name: of its folder.
        epochs: a row an epoch: the columns of ``epochs.csv``; None where there is no value.
        recipe: its TOML text; "" if it is not there.
        result: ``result.json``; None while the run goes on.
        texts: what the run told its user.
        begin: what the log says was asked for; empty in logs of earlier versions.
        arch: the trained net, or the one that is in training; None where neither file nor log has it.
        metadata: of the trained net's file.
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
        """Validation accuracy of the net that was kept, or of the last epoch, percent."""
        if self.result is not None and self.result["top1"] is not None:
            return float(self.result["top1"])
        known = [row["val_top1"] for row in self.epochs if row.get("val_top1") is not None]
        return known[-1] if known else None


def read_train_story(folder: str | os.PathLike[str]) -> TrainStory:
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
    arch, metadata = _net(folder / MODEL, notes)
    begin = next((_begin(row) for row in reversed(rows) if row.get("event") == "begin"), {})
    if arch is None and isinstance(begin.get("arch"), str):
        try:
            arch = Arch.parse(begin["arch"])
        except ArchError as e:
            notes.append(f"the net that {LOG} names cannot be read ({first_line(e)})")
    return TrainStory(
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


def _net(path: Path, notes: list[str]) -> tuple[Arch | TreeArch | None, Mapping[str, str]]:
    """Return the architecture in the header of the trained net's file, and the rest of the header."""
    from ..cache import read_metadata

    if not path.is_file():
        return None, {}
    try:
        metadata = read_metadata(path)
        return Arch.parse(metadata["arch"]) if "arch" in metadata else None, metadata
    except (ProxylessError, ArchError, OSError) as e:
        notes.append(f"{path.name} cannot be read and is left out ({first_line(e)})")
        return None, {}
