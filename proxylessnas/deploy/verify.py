"""Proof that an exported file computes what the model does, the images for that, and the speed-up."""

from __future__ import annotations

import datetime
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from ..data.folders import entries, images_below
from ..data.images import load_image, pixels_of
from ..data.named import load_digits
from ..data.transforms import Preprocessing
from ..errors import DataError, ExportError, LatencyError, first_line
from ..latency.measure_model import pickle_module
from ..latency.measurement import Timing
from ..latency.session import Item, MeasurementSession
from ..runtimes.base import ModelSpec
from ..runtimes.files import file_runtimes
from ..runtimes.settings import Settings
from .bundle import ModelBundle
from .formats.base import Program
from .settings import ExportOptions

T = TypeVar("T")

#: Images a call where the file leaves that open.
BATCHES = (1, 2, 7)
#: How far a float file's outputs may be off, times the largest output of the model (or 1, if that is less).
TOLERANCE = 1e-4
#: The same for a file that resizes images itself: runtimes round a pixel in thousands differently.
PIXEL_TOLERANCE = 0.02
#: So many images prove a file: two calls of the largest batch.
MOST = 14
_CALLS = 2  # a batch size and kind of input
_RANDOM = 7  # random inputs
#: Of a checkout; a wheel has none.
_EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "photos"
_ROUNDS = 20  # of the latency, at least
_SECONDS = 30.0  # of the latency at most, with the start of the processes
_PHOTO = 4 / 3  # long side over short side, of an image for a file that resizes itself


@dataclass(frozen=True)
class ParityRow:
    """A file against its model, on one kind of input at one batch size.

    Attributes:
        inputs: "images" or "random numbers".
        batch: images a call.
        n: images in all.
        difference: largest absolute difference of an output.
        largest: largest absolute output of the model.
        agreement: share of the images that both give the same class, 0 to 1; None for embeddings.
    """

    inputs: str
    batch: int
    n: int
    difference: float
    largest: float
    agreement: float | None


def compare(
    bundle: ModelBundle, program: Program, options: ExportOptions, images: ProofImages
) -> tuple[ParityRow, ...]:
    """Run a file in its own runtime and its model on the same inputs.

    Raises:
        ExportError: the file cannot be run, gives outputs of another shape, or the model's own are not
            finite.
    """
    return tuple(
        _row(inputs, batch, [_both(bundle, program, *call) for call in calls], bundle.model.num_classes > 0)
        for batch in ((options.batch_size,) if options.batch_size else BATCHES)
        for inputs, calls in _calls(bundle, options, images, batch)
    )


def check(rows: Sequence[ParityRow], tolerance: float, what: str) -> None:
    """Refuse a file that computes something else than its model.

    Raises:
        ExportError: an output is off by more than ``tolerance`` times the largest output of the model (or 1,
            if that is less); the message says where and by how much.
    """
    for row in rows:
        limit = tolerance * max(1.0, row.largest)
        if not row.difference <= limit:  # a NaN, too
            raise ExportError(
                f"{what} does not compute what the model does: on {row.inputs} at batch {row.batch} an "
                f"output is off by {row.difference:.3g}, more than {limit:.3g} ({tolerance:g} times the "
                "largest output); nothing was kept. tolerance (--tolerance) sets the limit"
            )


def _calls(
    bundle: ModelBundle, options: ExportOptions, images: ProofImages, batch: int
) -> Iterator[tuple[str, list[tuple[Tensor, Tensor]]]]:
    """Yield kinds of input, each with calls: (what the file takes, what the model takes)."""
    draw = torch.Generator().manual_seed(0)
    count = batch * (_CALLS if batch > 1 else 2 * _CALLS)
    if options.uint8_input:
        transform = images.preprocessing.build()
        # A batch is one image, moved sideways: all of a batch are equally large.
        photos = [
            torch.stack([images.pixels[i % len(images.pixels)].roll(3 * n, dims=-1) for n in range(batch)])
            for i in range(2 * _CALLS)
        ]
        side = images.preprocessing.resize
        noise = [torch.randint(0, 256, (batch, 3, side + 31, side + 7), generator=draw, dtype=torch.uint8)]
        for name, all_pixels in (("images", photos), ("random numbers", noise)):
            yield name, [(pixels, transform(pixels)) for pixels in all_pixels]
        return
    real = images.inputs(bundle.input_size[0])
    real = real[torch.arange(count) % len(real)]
    random = torch.randn(max(_RANDOM, batch), *bundle.input_size, generator=draw)[: max(batch, 2)]
    for name, x in (("images", real), ("random numbers", random)):
        yield name, [(part, part) for part in x.split(batch) if len(part) == batch]


def _both(bundle: ModelBundle, program: Program, given: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the outputs of the model and of the file."""
    with torch.inference_mode():
        expected = bundle.model(x).float()
    if not expected.isfinite().all():
        raise ExportError(f"{bundle.name}: the model's own outputs are not finite; its weights are damaged")
    found = program(given).float()
    if found.shape != expected.shape:
        raise ExportError(
            f"the file gives outputs of {list(found.shape)}, the model of {list(expected.shape)}"
        )
    return expected, found


def _row(inputs: str, batch: int, results: Sequence[tuple[Tensor, Tensor]], classes: bool) -> ParityRow:
    expected, found = (torch.cat(parts) for parts in zip(*results, strict=True))
    agreement = None
    if classes:
        agreement = float((expected.argmax(1) == found.argmax(1)).double().mean())
    difference = float((expected - found).abs().max())  # a NaN anywhere makes it NaN
    return ParityRow(inputs, batch, len(expected), difference, float(expected.abs().max()), agreement)


@dataclass(frozen=True, eq=False)
class ProofImages:
    """Images, and where they are from.

    Attributes:
        pixels: uint8 [3, H, W] each, of different sizes.
        source: in words, for the report.
        preprocessing: the model's; where that is not known, its input size with the usual numbers.
    """

    pixels: tuple[Tensor, ...]
    source: str
    preprocessing: Preprocessing

    def inputs(self, channels: int) -> Tensor:
        """Return what the model takes, [N, channels, side, side]; of other channels than three, grey."""
        transform = self.preprocessing.build()
        x = torch.stack([transform(image) for image in self.pixels])
        return x if channels == 3 else x.mean(1, keepdim=True).repeat(1, channels, 1, 1)


def proof_images(
    bundle: ModelBundle, images: str | os.PathLike[str] | Iterable[str | os.PathLike[str]] | None = None
) -> ProofImages:
    """Return images to prove a file with.

    Args:
        bundle: the model.
        images: a folder (searched below, too), or files; at most :data:`MOST` are taken, spread evenly. None
            takes the photos among this project's examples, or else the digits that come with the package.

    Raises:
        DataError: no images are there.
        ImageError: an image cannot be read; the message names it.
    """
    known = bundle.preprocessing
    side = bundle.input_size[1]
    preprocessing = known if known is not None else Preprocessing(side, side)
    files: list[str] = []
    source = ""
    if images is not None:
        files, name = image_files(images)
        if not files:
            named = f"{name}: no images in it"
            raise DataError(named if name else "the list of images to prove the file with is empty")
        source = "the images given"
        if name:
            source = f"{'the image' if os.path.isfile(name) else 'images of'} {name}"
    elif _EXAMPLES.is_dir():
        files, source = image_files(_EXAMPLES)[0], "photos of examples/photos"
    if files:
        pixels = [pixels_of(load_image(file)) for file in spread(files, MOST)]
        return ProofImages(tuple(pixels), source, preprocessing)
    digits = load_digits()[0][:MOST, None].expand(-1, 3, -1, -1)
    return ProofImages(tuple(digits), "handwritten digits of this package", preprocessing)


def image_files(given: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> tuple[list[str], str]:
    """Return the paths of the images of a folder, of a file or of a list, and the name of the first two.

    Raises:
        DataError: there is no such folder.
    """
    if not isinstance(given, (str, os.PathLike)):
        return [os.fspath(file) for file in given], ""
    root = os.fspath(given)
    if os.path.isfile(root):
        return [root], root
    entries(root)  # says what is wrong with the folder
    return [os.path.join(root, name) for name in sorted(images_below(root))], root


def spread(files: Sequence[T], most: int) -> list[T]:
    """Return at most so many files, spread evenly over all."""
    count = min(len(files), most)
    return [files[i * len(files) // count] for i in range(count)]


@dataclass(frozen=True)
class LatencyRow:
    """The latency of the model in one runtime.

    Attributes:
        runtime: what ran, in words: "torch (eager)" is the model, others are the file.
        threads, batch: as measured.
        undisturbed_ms: of a call of the whole batch: the figure to compare (:mod:`..latency.timing`).
        median_ms, p10_ms, p90_ms: over all calls: what one gets on this machine now.
        speedup: over the model in eager PyTorch, undisturbed.
        noise: reasons to distrust the figures; empty if there are none.
    """

    runtime: str
    threads: int
    batch: int
    undisturbed_ms: float
    median_ms: float
    p10_ms: float
    p90_ms: float
    speedup: float
    noise: tuple[str, ...]


def time_file(
    bundle: ModelBundle, path: Path, options: ExportOptions, threads: int
) -> tuple[LatencyRow, ...]:
    """Measure a model and its file by turns, each in a process of its own with so many threads.

    Returns:
        The model first; nothing where no runtime that can be measured reads the file.

    Raises:
        LatencyError: it cannot be measured.
    """
    readers = file_runtimes(path)
    if not readers:
        return ()
    batch, size = options.batch_size or 1, bundle.input_size
    if options.uint8_input and bundle.preprocessing is not None:
        short = bundle.preprocessing.resize
        size = (3, short, round(_PHOTO * short))
    with tempfile.TemporaryDirectory(prefix="proxylessnas-") as folder:
        pickled = Path(folder) / "net.pickle"
        pickle_module(bundle.model, pickled)
        jobs = {
            "torch (eager)": ("torch", ModelSpec("module", str(pickled), bundle.input_size)),
            f"{path.suffix} in {readers[0]}": (readers[0], ModelSpec("file", str(path), size)),
        }
        items = [
            Item(name, spec, Settings(runtime, threads=threads, batch_size=batch))
            for name, (runtime, spec) in jobs.items()
        ]
        session = MeasurementSession(items)
        session.run(_SECONDS, processes=1, least_rounds=_ROUNDS, least_seconds=0.0)
    day = datetime.date.today().isoformat()
    found = {
        s.name: Timing.of(session.measured[s.name], session.conditions(s.settings), size, day) for s in items
    }
    eager_ms = found["torch (eager)"].undisturbed_ms
    return tuple(
        LatencyRow(
            name, threads, batch, t.undisturbed_ms, t.median_ms, t.p10_ms, t.p90_ms, eager_ms /
            t.undisturbed_ms, t.noise,
        )
        for name, t in found.items()
    )  # fmt: skip


def not_measured(error: LatencyError) -> str:
    """Return why there are no latencies, for the report: an export is sound without them."""
    return f"the latency was not measured: {first_line(error)}"
