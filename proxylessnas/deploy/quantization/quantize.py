"""Choose the 8-bit numbers of a model by measurement, and judge what came out: :func:`quantise`."""

from __future__ import annotations

import dataclasses
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...data.folders import LabelledImages
from ...data.sources import ImageSource
from ...errors import ExportError
from ...latency.measurement import LIMIT, Measurement, uncertainty
from ...models.base import ImageClassifier
from ...runtimes.base import Session
from ...runtimes.timer import window
from ...utils.text import counted
from ..bundle import ModelBundle
from ..formats.base import Format, Program
from ..settings import ExportOptions, ExportSettings
from .backends import Backend, backend_of
from .calibration import Calibration, labelled_inputs, read_calibration
from .ptq import corrected
from .qat import quantisation_aware
from .report import Int8Report, Tried
from .schemes import Scheme, exact_on, scheme_of

_TURNS, _MOST_SECONDS = 20, 10.0  # of both files for the latency: at least, and unless it is certain


def quantise(
    bundle: ModelBundle,
    path: Path,
    fmt: Format,
    settings: ExportSettings,
    *,
    judge: LabelledImages | ImageSource | None = None,
    schemes: Sequence[str | Scheme] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Int8Report:
    """Write a model as an int8 file, by the scheme that does best on images it was not calibrated on.

    A third of the calibration images is held out; each scheme is calibrated on the others, its file run
    in its own runtime on those held out, and the one whose probabilities are nearest to the float32 model's
    is taken. With images to judge by, it is then calibrated on all; the judge is looked at once, at the end,
    and compares with the model as it was, also where it is trained with the rounding first.

    Args:
        bundle: the model.
        path: the file to be written, in a folder of the export's own.
        fmt: its format: ``.onnx``, ``.xml``, ``.pte`` or ``.tflite``.
        settings: what to calibrate with, which limits to keep, and how the file (of floats) is written.
        judge: labelled images to judge by; None takes the calibration images that were held out.
        schemes: what to try, by name (:func:`~.schemes.scheme_of`); None takes the format's own list for the
            target.
        progress: told what comes next.

    Raises:
        ExportError: no or unreadable images, no scheme works, or the best is below a limit; nothing is at
            ``path`` then.
        MissingExtraError: a library is not installed.
    """
    backend, target = backend_of(fmt), settings.target_isa or "any"
    tell = progress or (lambda what: None)
    wanted = _wanted(schemes or backend.schemes(target), fmt, settings)
    threads = settings.threads or torch.get_num_threads()
    options = dataclasses.replace(settings.options, uint8_input=False)
    images = read_calibration(bundle, settings.calibrate)
    folder = Path(tempfile.mkdtemp(prefix=".int8-", dir=path.parent))
    try:
        work = _Work(bundle, fmt, backend, options, threads, folder)
        exact = folder / f"float{fmt.suffix}"
        fmt.write(bundle, exact, options)
        base = _trained(bundle.model, images, wanted[-1], settings, tell)
        tried, best = _best(work, Prepared(base, images.fit), images, wanted, tell)
        draft = work.path_of(best)
        if judge is not None:
            tell(f"writing the int8 file by the scheme {best.name}")
            draft = work.write(best, Prepared(base, images.everything))
        tell("judging the int8 file")
        report, verdict = _report(work, best, images, judge, (exact, draft), settings.qat_epochs)
        report = dataclasses.replace(report, tried=tuple(tried), target_isa=target)
        _refuse_bad(report, verdict, settings)
        for part in _parts(draft):
            os.replace(part, path.with_suffix(part.suffix))
        return report
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _wanted(schemes: Sequence[str | Scheme], fmt: Format, settings: ExportSettings) -> list[Scheme]:
    """Return the schemes to try."""
    wanted = [scheme_of(s) if isinstance(s, str) else s for s in schemes]
    if settings.all_int8:
        wanted = [scheme for scheme in wanted if not (scheme.float_first or scheme.float_wide)]
        if not wanted:
            raise ExportError(f"every int8 scheme of {fmt.suffix} files leaves something in float32")
    if not wanted:
        raise ExportError("no int8 scheme to try")
    return wanted


def _trained(
    model: ImageClassifier,
    images: Calibration,
    scheme: Scheme,
    settings: ExportSettings,
    tell: Callable[[str], None],
) -> ImageClassifier:
    """Return the model, fine-tuned with the rounding of a scheme in it if that is asked for."""
    epochs = settings.qat_epochs
    if settings.qat_data is None:
        return model
    tell(f"quantisation-aware training, {counted(epochs, 'epoch')}")
    return quantisation_aware(model, settings.qat_data, images.fit, scheme, epochs=epochs)


def _report(
    work: _Work,
    best: Scheme,
    images: Calibration,
    judge: LabelledImages | ImageSource | None,
    files: tuple[Path, Path],
    qat_epochs: int,
) -> tuple[Int8Report, _Verdict]:
    """Judge and time the int8 file; return the report, and the sums that it is made of.

    Args:
        work: what was tried.
        best: the scheme of the int8 file.
        images: it was calibrated on those, or on a part of them.
        judge: labelled images to judge by, or None.
        files: in float32 and in int8.
        qat_epochs: of fine-tuning before.
    """
    exact, draft = files
    program = work.fmt.open(draft, threads=work.threads)
    verdict = _judged(work.bundle, program, images, judge, work.options)
    programs = [work.fmt.open(exact, threads=work.threads), program]
    ms_float, ms_int8 = by_turns(programs, images.fit[0], work.options.batch_size or 1)
    top1_float, top1_int8 = verdict.top1
    isas, saturating = exact_on(work.backend.paired_weights(draft))
    held_out = judge is None
    report = Int8Report(
        scheme=best.name,
        tried=(),
        calibrated_on=images.source,
        calibration_images=sum(len(x) for x in images.fit) if held_out else images.n,
        judged_on="held out of the calibration images" if judge is None else f"{len(judge)} labelled images",
        n=verdict.n,
        agreement=verdict.agreement,
        top1_float=top1_float,
        top1_int8=top1_int8,
        difference=verdict.difference,
        divergence=verdict.divergence,
        bytes_float=_bytes(exact),
        bytes_int8=_bytes(draft),
        ms_float=ms_float,
        ms_int8=ms_int8,
        threads=work.threads,
        qat_epochs=qat_epochs,
        exact_on=isas,
        saturating=saturating,
    )
    return report, verdict


@dataclass(frozen=True, eq=False)
class _Work:
    """What the candidates have in common."""

    bundle: ModelBundle
    fmt: Format
    backend: Backend
    options: ExportOptions
    threads: int
    folder: Path

    def path_of(self, scheme: Scheme) -> Path:
        return self.folder / f"{scheme.name}{self.fmt.suffix}"

    def write(self, scheme: Scheme, prepared: Prepared) -> Path:
        """Write the model by a scheme, calibrated on the images of ``prepared``."""
        changed = dataclasses.replace(self.bundle, model=prepared.for_scheme(scheme))
        path = self.path_of(scheme)
        self.backend.write(changed, path, prepared.batches, scheme, self.options)
        return path


def _best(
    work: _Work,
    prepared: Prepared,
    images: Calibration,
    wanted: Sequence[Scheme],
    tell: Callable[[str], None],
) -> tuple[list[Tried], Scheme]:
    """Try all schemes on the images held out; return what came of each, best first, and the best."""
    with torch.inference_mode():
        expected = torch.cat([work.bundle.model(x) for x in images.views])
    tried: list[Tried] = []
    failure: ExportError | None = None
    for i, scheme in enumerate(wanted):
        tell(f"int8 scheme {i + 1} of {len(wanted)}: {scheme.name}")
        begin = time.perf_counter()
        try:
            path = work.write(scheme, prepared)
            seconds = time.perf_counter() - begin
            program = work.fmt.open(path, threads=work.threads)
            found = torch.cat(run_in_batches(program, images.views, work.options))
        except ExportError as e:
            failure = e
            tried.append(Tried(scheme.name, None, None, time.perf_counter() - begin, str(e)))
            continue
        agreement = float((found.argmax(1) == expected.argmax(1)).double().mean())
        tried.append(Tried(scheme.name, divergence(expected, found), agreement, seconds))
    tried.sort(key=lambda t: (t.divergence is None, t.divergence))
    if tried[0].divergence is None:
        assert failure is not None  # as nothing else leaves it None
        raise failure
    return tried, scheme_of(tried[0].scheme)


def divergence(expected: Tensor, found: Tensor) -> float:
    """Return the mean Kullback-Leibler divergence of logits [N, classes] from others, in nats.

    It is finer than the share of equal classes, which a dozen images can only tell to a twelfth. NaN
    counts as infinite.
    """
    p, q = expected.double().log_softmax(1), found.double().log_softmax(1)
    mean = float((p.exp() * (p - q)).sum(1).mean())
    return mean if mean == mean else float("inf")


def run_in_batches(program: Program, batches: Iterable[Tensor], options: ExportOptions) -> list[Tensor]:
    """Run a file on inputs, in batches of the size it takes; the last one is filled up."""
    if options.batch_size is None:
        return [program(x) for x in batches]
    found = []
    for x in batches:
        for part in x.split(options.batch_size):
            short = options.batch_size - len(part)
            filled = torch.cat([part, part[-1:].expand(short, *part.shape[1:])]) if short else part
            found.append(program(filled)[: len(part)])
    return found


@dataclass
class _Verdict:
    """Sums over the images that judge a file."""

    n: int = 0
    same: int = 0
    right_float: int = 0
    right_int8: int = 0
    labelled: bool = False
    difference: float = 0.0
    total: float = 0.0

    def add(self, expected: Tensor, found: Tensor, labels: Tensor | None) -> None:
        self.n += len(expected)
        a, b = expected.argmax(1), found.argmax(1)
        self.same += int((a == b).sum())
        self.difference = max(self.difference, float((expected - found).abs().max()))
        self.total += divergence(expected, found) * len(expected)
        if labels is not None:
            self.labelled = True
            self.right_float += int((a == labels).sum())
            self.right_int8 += int((b == labels).sum())

    @property
    def agreement(self) -> float:
        return self.same / self.n

    @property
    def divergence(self) -> float:
        return self.total / self.n

    @property
    def top1(self) -> tuple[float | None, float | None]:
        if not self.labelled:
            return None, None
        return 100 * self.right_float / self.n, 100 * self.right_int8 / self.n


def _judged(
    bundle: ModelBundle,
    program: Program,
    images: Calibration,
    judge: LabelledImages | ImageSource | None,
    options: ExportOptions,
) -> _Verdict:
    verdict = _Verdict()
    batches: Iterable[tuple[Tensor, Tensor | None]] = ((x, None) for x in images.held_out)
    if judge is not None:
        labelled = judge.samples if isinstance(judge, LabelledImages) else judge
        batches = labelled_inputs(bundle, labelled)
    for x, labels in batches:
        with torch.inference_mode():
            expected = bundle.model(x)
        verdict.add(expected, torch.cat(run_in_batches(program, [x], options)), labels)
    if not verdict.n:
        raise ExportError("there are no images to judge int8 by")
    return verdict


def _refuse_bad(report: Int8Report, verdict: _Verdict, settings: ExportSettings) -> None:
    """Raise ExportError if a limit is not kept."""
    min_agreement = 0.9 if settings.min_agreement is None else settings.min_agreement
    max_drop = 0.02 if settings.max_drop is None else settings.max_drop
    what = f"int8 by the scheme {report.scheme}, the best of {len(report.tried)}, "
    on = f"of the {report.n} images ({report.judged_on})"
    if not report.agreement >= min_agreement:
        raise ExportError(
            f"{what}gives the float32 model's class to only {100 * report.agreement:.1f} % {on}; "
            f"{100 * min_agreement:g} % are asked for (--min-agreement). Nothing was kept; more calibration "
            "images, like those the model will see, help"
        )
    lost = verdict.right_float - verdict.right_int8
    if verdict.labelled and lost > max(1, max_drop * verdict.n):
        raise ExportError(
            f"{what}is right on {report.top1_int8:.1f} % {on}, float32 on {report.top1_float:.1f} %: more "
            f"than {100 * max_drop:g} points lost (--max-drop). Nothing was kept; --qat-epochs helps"
        )


def by_turns(programs: Sequence[Program], x: Tensor, batch: int) -> list[float]:
    """Return the undisturbed latency of each program, run by turns, in ms an image; see latency.timing.

    Args:
        programs: files in their runtime.
        x: inputs [N, C, H, W].
        batch: images a call.
    """
    x = x[torch.arange(batch) % len(x)]
    calls = [_Call(program, x) for program in programs]
    measured = [Measurement() for _ in programs]
    begin, order = time.perf_counter(), random.Random(0)
    while len(measured[0].windows) < _TURNS or (
        uncertainty(measured) > LIMIT and time.perf_counter() - begin < _MOST_SECONDS
    ):
        for i in order.sample(range(len(calls)), len(calls)):
            measured[i].windows.append(window(calls[i]))
    return [found.undisturbed_ms / len(x) for found in measured]


class _Call(Session):
    """A program and its input, as the timing loop wants it."""

    def __init__(self, program: Program, x: Tensor) -> None:
        self.program, self.x = program, x

    def run(self) -> None:
        """Run it once."""
        self.program(self.x)


def _parts(draft: Path) -> list[Path]:
    """Return the files of a model, that which names it last."""
    return sorted((p for p in draft.parent.iterdir() if p.stem == draft.stem), key=lambda p: p == draft)


def _bytes(draft: Path) -> int:
    return sum(part.stat().st_size for part in _parts(draft))


class Prepared:
    """A model made ready for schemes.

    Args:
        model: in evaluation mode; is not changed.
        batches: calibration inputs [N, C, H, W].
    """

    def __init__(self, model: ImageClassifier, batches: Sequence[Tensor]) -> None:
        self.model, self.batches = model, batches
        self._made: dict[Scheme, ImageClassifier] = {}

    def for_scheme(self, scheme: Scheme) -> ImageClassifier:
        """Return the model whose weights a scheme rounds."""
        if not (scheme.compensate or scheme.correct):
            return self.model
        if scheme not in self._made:
            self._made[scheme] = corrected(self.model, self.batches, scheme)
        return self._made[scheme]
