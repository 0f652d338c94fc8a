"""A model becomes a file of another runtime, which is proven before it appears: :func:`export`."""

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
from ..data.sources import ImageSource
from ..errors import LatencyError
from ..models.base import ImageClassifier
from ..runtimes.machine import device_name
from ..utils.files import check_place, check_space, put_in_place, workshop
from . import verify as parity
from .bundle import ModelBundle, open_bundle
from .formats.base import Format, format_of
from .report import ExportReport, FileRecord
from .settings import ExportSettings
from .verify import LatencyRow, not_measured, proof_images, time_file

if TYPE_CHECKING:
    from .quantization import Int8Report

#: Told what comes next, in words.
Steps = Callable[[str], None]


def export(
    model: ImageClassifier | Arch | TreeArch | str | os.PathLike[str],
    path: str | os.PathLike[str],
    settings: ExportSettings | None = None,
    *,
    progress: Steps | None = None,
) -> ExportReport:
    """Write a model as a file of the format that the suffix names, and prove that it computes the same.

    The file is loaded by its own runtime and run on real images and random numbers at batch 1, 2 and 7, as
    is the model. Only one within the tolerance gets its name; ``<path>.json`` beside it holds the report.

    Args:
        model: a model, a name of the zoo, a ``.safetensors`` file, or an architecture.
        path: where to; see :func:`.formats.base.formats`.
        settings: how; None takes the defaults.
        progress: told what comes next.

    Raises:
        ExportError: the format cannot take the model or an option, the file computes something else, or it
            cannot be written; nothing new is at ``path`` then, and an older file is as it was.
        MissingExtraError: a library is not installed; the message gives the pip line.
        ProxylessError: the model, its weights or an image cannot be had.
    """
    begin = time.perf_counter()
    path, asked = Path(path), settings or ExportSettings()
    fmt = _format(path, asked)
    check_place(path, force=asked.force)
    versions = {"torch": str(torch.__version__), **fmt.versions()}
    tell = progress or (lambda what: None)
    tell("opening the model")
    known = not asked.untrained
    bundle = open_bundle(model, pretrained=known, weights=asked.weights, input_size=asked.input_size)
    options = asked.options
    fmt.check(bundle, options)
    proof = proof_images(bundle, asked.images)
    tensors = [*bundle.model.parameters(), *bundle.model.buffers()]
    check_space(path, sum(t.numel() * t.element_size() for t in tensors))
    with workshop(path) as folder:
        draft = folder / path.name
        tell(f"writing {fmt.name}")
        files, int8 = _write(bundle, fmt, draft, asked, tell)
        tell(f"comparing with the model on {proof.source}")
        threads = asked.threads or torch.get_num_threads()
        rows = parity.compare(bundle, fmt.open(draft, threads=threads), options, proof)
        usual = parity.PIXEL_TOLERANCE if asked.uint8_input else parity.TOLERANCE
        tolerance = None if asked.int8 else asked.tolerance or usual
        if tolerance is not None:
            parity.check(rows, tolerance, path.name)
        latency, notes = _measured(bundle, draft, asked, threads, tell)
        report = ExportReport(
            path, fmt.name, "float32" if int8 is None else "int8", tuple(map(FileRecord.of, files)), bundle,
            options, proof.source, tolerance, rows, latency, int8, versions, device_name(),
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
    bundle: ModelBundle, fmt: Format, draft: Path, asked: ExportSettings, tell: Steps
) -> tuple[list[Path], Int8Report | None]:
    """Write the file, and return it with those that belong to it, and what INT8 came to."""
    if not asked.int8:
        return fmt.write(bundle, draft, asked.options), None
    from .quantization import quantise

    int8 = quantise(bundle, draft, fmt, asked, judge=_judge(bundle, asked.data), progress=tell)
    if asked.uint8_input:
        from .formats.onnx import take_bytes

        take_bytes(draft, bundle)
    beside = [path for path in draft.parent.iterdir() if path.stem == draft.stem and path != draft]
    return [draft, *sorted(beside)], int8


def _measured(
    bundle: ModelBundle, draft: Path, asked: ExportSettings, threads: int, tell: Steps
) -> tuple[tuple[LatencyRow, ...], list[str]]:
    """Return the latencies, if they are wanted and can be measured, and what a user should know."""
    if not asked.measure:
        return (), []
    tell("measuring the latency")
    try:
        return time_file(bundle, draft, asked.options, threads), []
    except LatencyError as e:
        return (), [not_measured(e)]


def _doubts(int8: Int8Report | None, asked: ExportSettings) -> list[str]:
    if int8 is None:
        return []
    from .quantization import doubts

    return doubts(int8, asked.data is None)


def _judge(
    bundle: ModelBundle, data: str | os.PathLike[str] | ImageSource | None
) -> LabelledImages | ImageSource | None:
    """Return the labelled images that judge int8."""
    if data is None or isinstance(data, ImageSource):
        return data
    record, classes = bundle.model.weights, bundle.model.num_classes
    dataset = record.dataset if record is not None and record.num_classes == classes else None
    return labelled_images(data, classes, dataset, names=bundle.categories)
