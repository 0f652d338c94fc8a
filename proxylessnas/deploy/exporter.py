"""A net becomes a file of another runtime, which is proven before it appears: :func:`export`."""

from __future__ import annotations

import datetime
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..arch.arch import Arch
from ..arch.tree import TreeArch
from ..data.folders import LabelledImages, labelled_images
from ..errors import LatencyError
from ..models.base import ImageClassifier
from ..runtimes.device_name import device_name
from ..utils.files import check_place, check_space, put_in_place, workshop
from . import verify as parity
from .bundle import ModelBundle, open_bundle
from .formats.base import Format, format_of
from .report import ExportReport, FileRecord
from .settings import ExportSettings
from .verify import LatencyRow, not_measured, proof_pictures, time_file

if TYPE_CHECKING:
    from .quantization import Int8Report

#: Told what comes next, in words.
Steps = Callable[[str], None]


def export(
    net: ImageClassifier | Arch | TreeArch | str | os.PathLike[str],
    path: str | os.PathLike[str],
    settings: ExportSettings | None = None,
    *,
    progress: Steps | None = None,
) -> ExportReport:
    """Write a net as a file of the format that the suffix names, and prove that it computes the same.

    The file is loaded by its own runtime and run on real pictures and random numbers at batch 1, 2 and 7, as
    is the net. Only one within the tolerance gets its name; ``<path>.json`` beside it holds the report.

    Args:
        net: a net, a name of the zoo, a ``.safetensors`` file, or an architecture.
        path: where to; see :func:`.formats.base.formats`.
        settings: how; None takes the defaults.
        progress: told what comes next.

    Raises:
        ExportError: the format cannot take the net or an option, the file computes something else, or it
            cannot be written; nothing new is at ``path`` then, and an older file is as it was.
        MissingExtraError: a library is not installed; the message gives the pip line.
        ProxylessError: the net, its weights or a picture cannot be had.
    """
    begin = time.perf_counter()
    path, asked = Path(path), settings or ExportSettings()
    fmt = _format(path, asked)
    check_place(path, force=asked.force)
    versions = {"torch": str(torch.__version__), **fmt.versions()}
    tell = progress or (lambda what: None)
    tell("opening the net")
    known = not asked.untrained
    subject = open_bundle(net, pretrained=known, weights=asked.weights, input_size=asked.input_size)
    options = asked.options
    fmt.check(subject, options)
    pictures = proof_pictures(subject, asked.images)
    tensors = [*subject.model.parameters(), *subject.model.buffers()]
    check_space(path, sum(t.numel() * t.element_size() for t in tensors))
    with workshop(path) as folder:
        draft = folder / path.name
        tell(f"writing {fmt.name}")
        files, int8 = _write(subject, fmt, draft, asked, tell)
        tell(f"comparing with the net on {pictures.source}")
        threads = asked.threads or torch.get_num_threads()
        rows = parity.compare(subject, fmt.open(draft, threads=threads), options, pictures)
        usual = parity.PIXEL_TOLERANCE if asked.uint8_input else parity.TOLERANCE
        tolerance = None if asked.int8 else asked.tolerance or usual
        if tolerance is not None:
            parity.check(rows, tolerance, path.name)
        latency, notes = _measured(subject, draft, asked, threads, tell)
        report = ExportReport(
            path, fmt.name, "float32" if int8 is None else "int8", tuple(map(FileRecord.of, files)), subject,
            options, pictures.source, tolerance, rows, latency, int8, versions, device_name(),
            datetime.date.today().isoformat(), time.perf_counter() - begin,
            (*_doubts(int8, asked), *notes),
        )  # fmt: skip
        record = folder / f"{path.name}.json"
        record.write_bytes(report.to_json())
        put_in_place([files[0], *files[1:], record], path.parent)
    return report


def _format(path: Path, asked: ExportSettings) -> Format:
    """Return the format that the suffix names; refuse one that has no INT8 where that is asked for."""
    fmt = format_of(path)
    if asked.int8:
        from .quantization import backend_of

        backend_of(fmt)
    return fmt


def _write(
    subject: ModelBundle, fmt: Format, draft: Path, asked: ExportSettings, tell: Steps
) -> tuple[list[Path], Int8Report | None]:
    """Write the file, and return it with those that belong to it, and what INT8 came to."""
    if not asked.int8:
        return fmt.write(subject, draft, asked.options), None
    from .quantization import quantise

    int8 = quantise(subject, draft, fmt, asked, judge=_judge(subject, asked.data), progress=tell)
    if asked.uint8_input:
        from .formats.onnx import take_bytes

        take_bytes(draft, subject)
    beside = [path for path in draft.parent.iterdir() if path.stem == draft.stem and path != draft]
    return [draft, *sorted(beside)], int8


def _measured(
    subject: ModelBundle, draft: Path, asked: ExportSettings, threads: int, tell: Steps
) -> tuple[tuple[LatencyRow, ...], list[str]]:
    """Return the latencies, if they are wanted and can be measured, and what a user should know."""
    if not asked.measure:
        return (), []
    tell("measuring the latency")
    try:
        return time_file(subject, draft, asked.options, threads), []
    except LatencyError as e:
        return (), [not_measured(e)]


def _doubts(int8: Int8Report | None, asked: ExportSettings) -> list[str]:
    if int8 is None:
        return []
    from .quantization import doubts

    return doubts(int8, asked.data is None)


def _judge(subject: ModelBundle, data: str | os.PathLike[str] | None) -> LabelledImages | None:
    """Return the labelled pictures that judge int8."""
    if data is None:
        return None
    record, classes = subject.model.weights, subject.model.num_classes
    dataset = record.dataset if record is not None and record.num_classes == classes else None
    return labelled_images(data, classes, dataset, names=subject.categories)
