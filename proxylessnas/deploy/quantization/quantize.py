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

from ...data.folders import LabelledImages, counted
from ...errors import ExportError, shown
from ...latency.measurement import LIMIT, Measurement, uncertainty
from ...models.base import ImageClassifier
from ...runtimes.base import Session
from ...runtimes.timer import window
from ..bundle import ModelBundle
from ..formats.base import Format, Program
from ..settings import ExportOptions
from .backends import Backend, backend_of
from .calibration import Calibration, labelled_inputs, read_calibration
from .ptq import corrected
from .qat import quantisation_aware
from .report import Int8Report, Tried
from .schemes import Scheme, check_target, exact_on, scheme_of

_TURNS, _MOST_SECONDS = 20, 10.0  # of both files for the latency: at least, and unless it is certain


def quantise(
    bundle: ModelBundle,
    path: Path,
    fmt: Format,
    *,
    calibration: str | os.PathLike[str] | Iterable[str | os.PathLike[str]] | LabelledImages | None,
    judge: LabelledImages | None = None,
    min_agreement: float = 0.90,
    max_drop: float = 0.02,
    target_isa: str = "any",
    schemes: Sequence[str | Scheme] | None = None,
    qat_epochs: int = 0,
    qat_data: str | os.PathLike[str] | None = None,
    options: ExportOptions | None = None,
    threads: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> Int8Report:
    """Write a model as an int8 file, by the scheme that does best on images it was not calibrated on.

    A third of the calibration images is held out; each scheme is calibrated on the others, its file run
    in its own runtime on those held out, and the one whose probabilities are nearest to the float32 model's
    is taken. With images to judge by, it is then calibrated on all; the judge is looked at once, at the end.

    Args:
        bundle: the model.
        path: the file to be written, in a folder of the export's own.
        fmt: its format: ``.onnx``, ``.xml``, ``.pte`` or ``.tflite``.
        calibration: see :func:`~.calibration.read_calibration`.
        judge: labelled images to judge by; None takes the calibration images that were held out.
        min_agreement: share of the images, 0 to 1, to which int8 has to give the float32 model's class.
        max_drop: how much of the top-1 accuracy may be lost, 0 to 1; a single image always may.
        target_isa: processors to choose schemes for, one of :data:`~.saturation.TARGETS`.
        schemes: what to try, by name (:func:`~.schemes.scheme_of`); None takes the format's own list for the
            target.
        qat_epochs: first train the model so many epochs as its int8 file computes; see
            :func:`~.qat.quantisation_aware`. The judge still compares with the model as it was.
        qat_data: labelled images to train on.
        options: as for the float file.
        threads: of the runtime; None is torch's number.
        progress: told what comes next.

    Raises:
        ExportError: no or unreadable images, no scheme works, or the best is below a limit; nothing is at
            ``path`` then.
        MissingExtraError: a library is not installed.
    """
    options = options or ExportOptions()
    backend = check_int8(fmt, qat_epochs, qat_data, target_isa)
    tell = progress or (lambda what: None)
    wanted = [scheme_of(s) if isinstance(s, str) else s for s in schemes or backend.schemes(target_isa)]
    if not wanted:
        raise ExportError("no int8 scheme to try")
    threads = threads or torch.get_num_threads()
    images = read_calibration(bundle, calibration)
    folder = Path(tempfile.mkdtemp(prefix=".int8-", dir=path.parent))
    try:
        work = _Work(bundle, fmt, backend, options, threads, folder)
        exact = folder / f"float{fmt.suffix}"
        fmt.write(bundle, exact, options)
        base = bundle.model
        if qat_epochs:
            assert qat_data is not None  # says check_int8()
            tell(f"quantisation-aware training, {counted(qat_epochs, 'epoch')}")
            base = quantisation_aware(base, qat_data, images.fit, wanted[-1], epochs=qat_epochs)
        tried, best = _best(work, Prepared(base, images.fit), images, wanted, tell)
        if judge is not None:
            tell(f"writing the int8 file by the scheme {best.name}")
            draft = work.write(best, Prepared(base, images.everything))
            judged_on, seen = f"{len(judge)} labelled images", images.n
        else:
            draft = work.path_of(best)
            judged_on = "held out of the calibration images"
            seen = sum(len(x) for x in images.fit)
        tell("judging the int8 file")
        program = fmt.open(draft, threads=threads)
        verdict = _judged(bundle, program, images, judge, options)
        programs = [fmt.open(exact, threads=threads), program]
        ms_float, ms_int8 = by_turns(programs, images.fit[0], options.batch_size or 1)
        top1_float, top1_int8 = verdict.top1
        isas, saturating = exact_on(backend.paired_weights(draft))
        report = Int8Report(
            scheme=best.name,
            tried=tuple(tried),
            calibrated_on=images.source,
            calibration_images=seen,
            judged_on=judged_on,
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
            threads=threads,
            qat_epochs=qat_epochs,
            target_isa=target_isa,
            exact_on=isas,
            saturating=saturating,
        )
        _refuse_bad(report, verdict, min_agreement, max_drop)
        for part in _parts(draft):
            os.replace(part, path.with_suffix(part.suffix))
        return report
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_int8(fmt: Format, qat_epochs: object, qat_data: object, target_isa: object = "any") -> Backend:
    """Return what writes int8 files of a format.

    Raises:
        ExportError: nothing does, the quantisation-aware training makes no sense, or the target is none.
    """
    backend = backend_of(fmt)
    check_target(target_isa)
    if isinstance(qat_epochs, bool) or not isinstance(qat_epochs, int) or qat_epochs < 0:
        raise ExportError(f"qat_epochs must be a whole number of at least 0, not {shown(qat_epochs)}")
    if (qat_epochs > 0) != (qat_data is not None):
        raise ExportError(
            "quantisation-aware training takes both --qat-epochs and --qat-data, the images "
            "(qat_epochs= and qat_data= in Python)"
        )
    return backend


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
    judge: LabelledImages | None,
    options: ExportOptions,
) -> _Verdict:
    verdict = _Verdict()
    batches: Iterable[tuple[Tensor, Tensor | None]] = (
        ((x, None) for x in images.held_out) if judge is None else labelled_inputs(bundle, judge.samples)
    )
    for x, labels in batches:
        with torch.inference_mode():
            expected = bundle.model(x)
        verdict.add(expected, torch.cat(run_in_batches(program, [x], options)), labels)
    if not verdict.n:
        raise ExportError("there are no images to judge int8 by")
    return verdict


def _refuse_bad(report: Int8Report, verdict: _Verdict, min_agreement: float, max_drop: float) -> None:
    """Raise ExportError if a limit is not kept."""
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
