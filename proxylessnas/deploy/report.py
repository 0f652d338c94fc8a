"""What an export has to show: the files, the proof, and what was gained."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .bundle import ModelBundle
from .settings import ExportOptions
from .verify import LatencyRow, ParityRow

#: Kinds of inputs as the file of a report has called them since 0.1.
_KINDS = {"images": "pictures", "random numbers": "random numbers"}


@dataclass(frozen=True)
class FileRecord:
    """A file that was written: its name, size in bytes, and SHA-256."""

    name: str
    bytes: int
    sha256: str

    @staticmethod
    def of(path: Path) -> FileRecord:
        """Read a file."""
        data = path.read_bytes()
        return FileRecord(path.name, len(data), hashlib.sha256(data).hexdigest())


@dataclass(frozen=True, eq=False)
class ExportReport:
    """The result of :func:`~proxylessnas.deploy.export`; ``<file>.json`` beside the file holds it.

    Attributes:
        path: the file.
        format: its format, for people.
        precision: "float32" or "int8".
        files: the file first, then those that belong to it.
        bundle: the model.
        options: what the file was written with.
        images: where the real images of the proof are from.
        tolerance: how far an output may be off, times the largest output; None for int8, which is evaluated
            on its own.
        parity: the proof.
        latency: model and file; empty if it was not measured.
        int8: what the quantisation found; None for a float file.
        versions: of the libraries that wrote and ran the file.
        machine: processor.
        date: ISO day.
        seconds: what it all took.
        notes: what a user should know.
    """

    path: Path
    format: str
    precision: str
    files: tuple[FileRecord, ...]
    bundle: ModelBundle
    options: ExportOptions
    images: str
    tolerance: float | None
    parity: tuple[ParityRow, ...]
    latency: tuple[LatencyRow, ...]
    int8: Any
    versions: Mapping[str, str]
    machine: str
    date: str
    seconds: float
    notes: tuple[str, ...] = field(default=())

    @property
    def size_bytes(self) -> int:
        """Size of all files together."""
        return sum(file.bytes for file in self.files)

    @property
    def largest_difference(self) -> float:
        """Largest absolute difference of an output over the whole proof."""
        return max(row.difference for row in self.parity)

    @property
    def agreement(self) -> float | None:
        """Share of the proof's real images that get the same class; None for embeddings."""
        rows = [row for row in self.parity if row.inputs == "images"]
        shares = [row.agreement * row.n for row in rows if row.agreement is not None]
        return sum(shares) / sum(row.n for row in rows) if shares else None

    @property
    def speedup(self) -> float | None:
        """Latency of the model in eager PyTorch over that of the file; None if it was not measured."""
        return self.latency[1].speedup if len(self.latency) > 1 else None

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        known = self.bundle.metadata()
        preprocessing = self.bundle.preprocessing
        return {
            "file": self.path.name,
            "format": self.format,
            "precision": self.precision,
            "files": [dataclasses.asdict(file) for file in self.files],
            "net": {
                **{key: known.get(key, "") for key in ("name", "arch", "license", "origin")},
                "num_classes": self.bundle.model.num_classes,
                "named_classes": len(self.bundle.categories),
                "preprocessing": preprocessing.to_dict() if preprocessing else None,
            },
            "input_size": list(self.bundle.input_size),
            "options": dataclasses.asdict(self.options),
            "pictures": self.images,
            "tolerance": self.tolerance,
            "parity": [{**dataclasses.asdict(row), "inputs": _KINDS[row.inputs]} for row in self.parity],
            "latency": [dataclasses.asdict(row) for row in self.latency],
            "int8": None if self.int8 is None else self.int8.to_dict(),
            "versions": dict(self.versions),
            "machine": self.machine,
            "date": self.date,
            "seconds": round(self.seconds, 1),
            "notes": list(self.notes),
        }

    def to_json(self) -> bytes:
        """Return it as the file that is written beside the model."""
        return (json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n").encode()

    def __str__(self) -> str:
        gain = f", {self.speedup:.1f} times as fast as eager PyTorch" if self.speedup else ""
        return (
            f"{self.path}: {self.format}, {self.size_bytes / 1e6:.1f} MB, off by "
            f"{self.largest_difference:.1e} at most{gain}"
        )
