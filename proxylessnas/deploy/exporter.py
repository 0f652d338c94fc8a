"""A model becomes a file of another runtime, which is proven before it appears: :func:`export`."""

from __future__ import annotations

import dataclasses
import datetime
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from ..arch.arch import Arch
from ..arch.tree import TreeArch
from ..data.folders import LabelledImages, labelled_images
from ..errors import ExportError, LatencyError, shown
from ..models.base import ImageClassifier
from ..runtimes.device_name import device_name
from ..utils.files import check_place, check_space, put_in_place, workshop
from . import verify as parity
from .bundle import ModelBundle, open_bundle
from .formats.base import format_of
from .report import ExportReport, FileRecord
from .settings import ExportOptions
from .verify import LatencyRow, not_measured, proof_images, time_file

PRECISIONS = ("float32", "int8")

#: Told what comes next, in words.
Steps = Callable[[str], None]


def export(
    model: ImageClassifier | Arch | TreeArch | str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    precision: str = "float32",
    batch_size: int | None = None,
    uint8_input: bool = False,
    opset: int | None = None,
    aot: bool = False,
    threads: int | None = None,
    pretrained: bool = True,
    weights: str | os.PathLike[str] | None = None,
    input_size: int | None = None,
    images: str | os.PathLike[str] | Iterable[str | os.PathLike[str]] | None = None,
    tolerance: float | None = None,
    measure: bool = True,
    force: bool = False,
    calibration: str | os.PathLike[str] | Iterable[str | os.PathLike[str]] | None = None,
    data: str | os.PathLike[str] | None = None,
    target_isa: str = "any",
    min_agreement: float = 0.90,
    max_drop: float = 0.02,
    qat_epochs: int = 0,
    qat_data: str | os.PathLike[str] | None = None,
    progress: Steps | None = None,
) -> ExportReport:
    """Write a model as a file of the format that the suffix names, and prove that it computes the same.

    The file is written beside its final place, loaded by its own runtime, and run on real images and on
    random numbers at batch 1, 2 and 7, as is the model. Only a file within the tolerance gets its name; then
    ``<path>.json`` beside it holds the report.

    >>> export("proxyless_mobile", "mobile.onnx").speedup  # doctest: +SKIP
    3.4

    Args:
        model: a model, a name of the zoo, a ``.safetensors`` file, or an architecture.
        path: where to; see :func:`.formats.base.formats`.
        precision: "float32" or "int8" (``.onnx``, ``.xml``, ``.pte``, ``.tflite``; needs
            ``calibration``).
        batch_size: images a call; None leaves it open where the format can.
        uint8_input: ``.onnx`` only: the file takes uint8 images [N, 3, H, W] of any size, and resizes,
            crops and normalises them itself.
        opset: ``.onnx`` only: version of the operators.
        aot: ``.pt2`` only: machine code for this kind of machine.
        threads: that ``aot`` makes the code for, and that the latency is measured with; None is torch's
            number.
        pretrained: take published weights for a name; False leaves its weights random.
        weights: see :func:`~proxylessnas.create_model`.
        input_size: side of the input, px; see :func:`.bundle.open_bundle`.
        images: a folder or files to prove it with; None takes images that are here already.
        tolerance: how far an output may be off, times the model's largest output (or 1, if that is less);
            None means 1e-4, with ``uint8_input`` 0.02.
        measure: measure the latency of the model and of the file, by turns, for some seconds.
        force: replace a file that is there.
        calibration: a folder or files to calibrate int8 with.
        data: a folder of labelled images to judge int8 with; None takes those for the calibration.
        target_isa: processors that int8 has to compute the same on: "avx2" (x86 without VNNI), "vnni", or
            "any" of them; see :mod:`.int8.saturation`.
        min_agreement: share of the images, 0 to 1, to which int8 has to give the model's own class.
        max_drop: share of ``data``, 0 to 1, that int8 may get wrong more than float32 does.
        qat_epochs: first fine-tune the model so many epochs with the rounding of int8 in it.
        qat_data: labelled images to fine-tune on; not those of ``data``.
        progress: told what comes next.

    Returns:
        What was written, and what the proof found.

    Raises:
        ExportError: the format cannot take the model or an option, the file computes something else, or it
            cannot be written; nothing new is at ``path`` then, and an older file is as it was.
        MissingExtraError: a library is not installed; the message gives the pip line.
        ProxylessError: the model, its weights or an image cannot be had.
    """
    begin = time.perf_counter()
    path = Path(path)
    fmt = format_of(path)
    options = ExportOptions(batch_size, uint8_input, opset, aot, threads if aot else None)
    _check_options(precision, threads, tolerance, min_agreement, max_drop)
    if precision != "int8" and (qat_epochs or any(v is not None for v in (calibration, data, qat_data))):
        raise ExportError(
            "calibration, data, qat_epochs and qat_data are for --int8 (precision='int8' in Python)"
        )
    if precision != "int8" and target_isa != "any":
        raise ExportError("target_isa is for --int8 (precision='int8' in Python)")
    if precision == "int8":
        from .quantization import check_int8

        check_int8(fmt, qat_epochs, qat_data, target_isa)
    check_place(path, force=force)
    versions = {"torch": str(torch.__version__), **fmt.versions()}
    tell = progress or (lambda what: None)
    tell("opening the model")
    bundle = open_bundle(model, pretrained=pretrained, weights=weights, input_size=input_size)
    fmt.check(bundle, options)
    proof = proof_images(bundle, images)
    tensors = [*bundle.model.parameters(), *bundle.model.buffers()]
    check_space(path, sum(t.numel() * t.element_size() for t in tensors))
    threads = threads or torch.get_num_threads()
    with workshop(path) as folder:
        draft = folder / path.name
        tell(f"writing {fmt.name}")
        int8: Any = None
        if precision == "int8":
            from .quantization import doubts, quantise

            # What is calibrated and judged takes the model's own inputs.
            inner = dataclasses.replace(options, uint8_input=False)
            int8 = quantise(
                bundle, draft, fmt, calibration=calibration, judge=_judge(bundle, data),
                target_isa=target_isa, min_agreement=min_agreement, max_drop=max_drop, qat_epochs=qat_epochs,
                qat_data=qat_data, options=inner, threads=threads, progress=tell,
            )  # fmt: skip
            if uint8_input:
                from .formats.onnx import take_bytes

                take_bytes(draft, bundle)
            files = [draft, *sorted(p for p in folder.iterdir() if p.stem == path.stem and p != draft)]
        else:
            files = fmt.write(bundle, draft, options)
        tell(f"comparing with the model on {proof.source}")
        rows = parity.compare(bundle, fmt.open(draft, threads=threads), options, proof)
        if int8 is None:
            tolerance = tolerance or (parity.PIXEL_TOLERANCE if uint8_input else parity.TOLERANCE)
            parity.check(rows, tolerance, path.name)
        latency: tuple[LatencyRow, ...] = ()
        notes = [] if int8 is None else doubts(int8, data is None)
        if measure:
            tell("measuring the latency")
            try:
                latency = time_file(bundle, draft, options, threads)
            except LatencyError as e:
                notes.append(not_measured(e))
        report = ExportReport(
            path, fmt.name, precision, tuple(map(FileRecord.of, files)), bundle, options, proof.source,
            None if int8 is not None else tolerance, rows, latency, int8, versions, device_name(),
            datetime.date.today().isoformat(), time.perf_counter() - begin, tuple(notes),
        )  # fmt: skip
        record = folder / f"{path.name}.json"
        record.write_bytes(report.to_json())
        put_in_place([files[0], *files[1:], record], path.parent)
    return report


def _check_options(
    precision: object, threads: object, tolerance: object, min_agreement: object, max_drop: object
) -> None:
    if precision not in PRECISIONS:
        raise ExportError(f"precision is {shown(precision)}; known are {', '.join(PRECISIONS)}")
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise ExportError(f"threads must be a whole number of at least 1, not {shown(threads)}")
    if tolerance is not None and not (
        isinstance(tolerance, (int, float)) and not isinstance(tolerance, bool) and 0 < tolerance <= 1
    ):
        raise ExportError(f"tolerance must be a number above 0, at most 1, not {shown(tolerance)}")
    for name, share in (("min_agreement", min_agreement), ("max_drop", max_drop)):
        if not (isinstance(share, (int, float)) and 0 <= share <= 1):
            raise ExportError(f"{name} must be a number from 0 to 1, not {shown(share)}")


def _judge(bundle: ModelBundle, data: str | os.PathLike[str] | None) -> LabelledImages | None:
    """Return the labelled images that judge int8."""
    if data is None:
        return None
    record, classes = bundle.model.weights, bundle.model.num_classes
    dataset = record.dataset if record is not None and record.num_classes == classes else None
    return labelled_images(data, classes, dataset, names=bundle.categories)
