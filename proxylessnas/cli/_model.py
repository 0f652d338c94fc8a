"""The options of every command that runs a model, and what they and the words for models mean."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError, ProxylessError, WeightsCorruptError, WeightsNotFoundError
from ._arguments import add_imports
from ._command import UsageError
from ._options import add
from ._output import note

if TYPE_CHECKING:
    import torch

    from ..data.transforms import Preprocessing
    from ..models.base import ImageClassifier
    from ..models.resolve import Resolved
    from ..weights.record import Weights

_USUAL_RATIO = 256 / 224  # resize / input size, where nothing is known about a model


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Declare the model and the options that change its architecture, weights, preprocessing and device."""
    add(
        parser,
        "model NAME",
        "a model of the zoo, a .safetensors file with its architecture inside, a published .pth file, "
        "or an architecture file (then --weights is needed)",
    )
    group = parser.add_argument_group("model")
    add(group, "--arch FILE", "architecture: .txt, or the original .json/.config")
    add(group, "--weights FILE", "weights: .safetensors or .pth")
    add_imports(group)
    group.add_argument("--device", default="cpu", help="where to run: cpu (default), cuda, cuda:1, mps, ...")
    group = parser.add_argument_group(
        "preprocessing",
        "By default that of the weights (a published file is recognised by its\n"
        "  digest), else that of NAME.",
    )
    add(
        group,
        "--input-size N",
        "side of the centre crop, px; --resize follows in proportion unless it is given",
        type=int,
    )
    add(group, "--resize N", "length of the short side before the crop, px", type=int)
    for name in ("mean", "std"):
        group.add_argument(
            f"--{name}",
            metavar="R G B",
            help=f"{name} on a scale of 0 to 1: three numbers (spaces or commas between), or one for all",
        )


def join_numbers(argv: list[str]) -> list[str]:
    """Return the command line with ``--mean 0.5 0.5 0.5`` as ``--mean=0.5,0.5,0.5``.

    argparse would take every word behind the option, the images' names too, or only one.

    Raises:
        UsageError: what follows the option is no number.
    """
    joined: list[str] = []
    words = list(argv)
    while words:
        word = words.pop(0)
        if word == "--":
            return [*joined, word, *words]
        values: list[str] = []
        while word in ("--mean", "--std") and words and len(values) < 3 and _is_numbers(words[0]):
            values += words.pop(0).strip(",").split(",")
        if word in ("--mean", "--std") and words and not values:
            raise UsageError(f"{word} takes numbers, not {words[0]!r}")
        joined.append(f"{word}={','.join(values)}" if values else word)
    return joined


@dataclass(frozen=True)
class Model:
    """A model ready to run.

    Attributes:
        model: in evaluation mode, on its device.
        name: how to call it.
        preprocessing: what its images need.
        dataset: whose classes its outputs are, if known.
        file: the weights' file.
        sha256: of that file; None where only a copy of it is left.
        record: the published weights, if it is they.
        device: where it runs.
    """

    model: ImageClassifier
    name: str
    preprocessing: Preprocessing
    dataset: str | None
    file: Path
    sha256: str | None
    record: Weights | None
    device: torch.device

    def to_dict(self) -> dict[str, Any]:
        """Return what a result should be published with: model, weights and preprocessing."""
        return {
            "net": self.name,
            "weights": {
                "file": str(self.file),
                "sha256": self.sha256,
                "published": self.record.name if self.record else None,
            },
            "preprocessing": self.preprocessing.to_dict(),
        }


def check_options(args: argparse.Namespace) -> None:
    """Check what can be checked before torch is imported or anything is downloaded.

    Raises:
        UsageError: a preprocessing option is out of range, or no weights were given.
        ProxylessError: no such model or file.
    """
    from ..data.transforms import IMAGENET_MEAN, IMAGENET_STD, Preprocessing

    size = args.input_size if args.input_size is not None else 1
    resize = args.resize if args.resize is not None else min(max(size, 1), 4096)
    mean, std = _channels(args.mean, "--mean"), _channels(args.std, "--std")
    try:
        Preprocessing(size, resize, mean or IMAGENET_MEAN, std or IMAGENET_STD)
    except DataError as e:
        raise _usage_error(e) from e
    for file in (args.arch, args.weights):
        if file is not None:
            existing_file(file)
    if named(args.model).kind == "arch file" and args.weights is None:
        raise UsageError(f"{args.model} is an architecture without weights: give --weights FILE")


def open_model(args: argparse.Namespace) -> Model:
    """Build the model that the options describe, on its device, and print notes on what was assumed.

    Raises:
        UsageError: options that do not go together.
        ProxylessError: the model, its architecture or its weights cannot be had or do not fit.
    """
    check_options(args)
    from ..models.factory import create_model
    from ..models.resolve import read_arch
    from ..weights.cache import weights_path
    from ..weights.registry import find_by_digest

    device = _device(args.device)
    found = named(args.model)
    zoo = found.weights if found.kind == "zoo" else None
    file, record = found.path, found.weights
    if args.weights is not None:
        file = existing_file(args.weights)
        record = find_by_digest(file)
    arch = read_arch(existing_file(args.arch)) if args.arch is not None else found.arch
    model = create_model(arch, weights=file if file is not None else zoo)
    if model.arch.in_channels != 3:
        raise ProxylessError(
            f"{args.model}: the model takes {model.arch.in_channels} channels, but images have three"
        )
    if model.num_classes == 0:
        raise ProxylessError(f"{args.model}: the model gives embeddings and has no classes")

    known = _known_preprocessing(args, model, file, zoo)
    dataset = record.dataset if record is not None else zoo.dataset if zoo is not None else None
    if file is None:
        file = weights_path(record) if record is not None else Path()
    return Model(
        model=model.eval().to(device),
        name=model.name,
        preprocessing=_with_options(known, args),
        dataset=dataset if dataset is not None and _classes_of(dataset) == model.num_classes else None,
        file=file,
        sha256=_digest(record, file) if record is not None and record is zoo else sha256_of(file),
        record=record,
        device=device,
    )


def _digest(record: Weights, file: Path) -> str | None:
    """Return the SHA-256 of published weights that were loaded by name (perhaps from their copy)."""
    if record.sha256:
        return record.sha256
    from ..weights.file_spec import file_problem

    sound = file.is_file() and file_problem(record, file) is None
    return sha256_of(file) if sound else None


@contextlib.contextmanager
def running(model: Model, advice: str) -> Iterator[None]:
    """Name the weights in errors of a running model, and give advice with "out of memory"."""
    try:
        yield
    except WeightsCorruptError as e:
        raise WeightsCorruptError(f"{model.file}: {e}") from e
    except (RuntimeError, MemoryError) as e:
        text = str(e).lower()
        if isinstance(e, ProxylessError) or not (
            isinstance(e, MemoryError) or "out of memory" in text or "not enough memory" in text
        ):
            raise
        raise ProxylessError(f"not enough memory; {advice}") from e


def _known_preprocessing(
    args: argparse.Namespace, model: ImageClassifier, file: Path | None, zoo: Weights | None
) -> Preprocessing:
    """Return the weights' own preprocessing, else that of NAME, else the usual one; note the last two."""
    if model.weights is not None:
        return model.weights.preprocessing
    from ..data.transforms import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
    from ..models.loading import read_header

    stored = read_header(file).preprocessing if file is not None else None
    if stored is not None:
        return stored
    if zoo is not None:
        note(f"{file} is not a published file: the preprocessing of {zoo.name} is used")
        return zoo.preprocessing
    if model.preprocessing is not None:
        note(
            f"the preprocessing of the published {model.arch.name} is used, as the architecture has its name"
        )
        return model.preprocessing
    size = model.arch.resolution or 224
    assumed = Preprocessing(size, round(size * _USUAL_RATIO), IMAGENET_MEAN, IMAGENET_STD)
    if None in (args.input_size, args.mean, args.std):
        note(f"the model's preprocessing is not known; assumed where no option says otherwise: {assumed}")
    return assumed


def _with_options(known: Preprocessing, args: argparse.Namespace) -> Preprocessing:
    changes: dict[str, Any] = {}
    if args.input_size is not None:
        changes["input_size"] = args.input_size
        if args.resize is None and args.input_size != known.input_size:
            changes["resize"] = max(args.input_size, round(args.input_size * known.resize / known.input_size))
            note(f"--resize {changes['resize']} is used, in proportion to --input-size {args.input_size}")
    if args.resize is not None:
        changes["resize"] = args.resize
    for name in ("mean", "std"):
        values = _channels(getattr(args, name), f"--{name}")
        if values is not None:
            changes[name] = values
    try:
        return dataclasses.replace(known, **changes)
    except DataError as e:
        raise _usage_error(e) from e


def _usage_error(e: DataError) -> UsageError:
    return UsageError(
        re.sub(r"\b(input_size|resize|mean|std)\b", lambda m: "--" + m[0].replace("_", "-"), str(e))
    )


def _is_numbers(word: str) -> bool:
    try:
        return bool([float(part) for part in word.strip(",").split(",")])
    except ValueError:
        return False


def _channels(text: str | None, option: str) -> tuple[float, float, float] | None:
    """Return three numbers from ``0.5,0.5,0.5``, or from ``0.5``, which stands for all three."""
    if text is None:
        return None
    if not _is_numbers(text):
        raise UsageError(f"{option} takes numbers, not {text!r}")
    values = [float(part) for part in text.strip(",").split(",")]
    if len(values) == 1:
        values *= 3
    if len(values) != 3:
        raise UsageError(f"{option} takes three numbers, or one for all three channels, not {len(values)}")
    return values[0], values[1], values[2]


def _device(name: str) -> torch.device:
    import torch

    from ..utils.devices import check_usable

    try:
        device = torch.device(name)
    except RuntimeError as e:
        raise UsageError(f"--device {name!r}: no such device; try cpu, cuda or mps") from e
    check_usable(device, f"--device {name}")
    return device


def _classes_of(dataset: str) -> int:
    from ..data.categories import categories

    return len(categories(dataset))


def named(word: str) -> Resolved:
    """Return what a word names: a published model, or a file that is there.

    Raises:
        UnknownModelError: nothing is called so; the message lists the nearest names.
        WeightsNotFoundError: there is no such file.
    """
    from ..models.resolve import resolve

    found = resolve(word)
    if found.path is not None:
        existing_file(word)
    return found


def existing_file(word: str) -> Path:
    """Return the path of a file that is there.

    Raises:
        WeightsNotFoundError: there is none; the message names it.
    """
    path = Path(word)
    try:
        if path.is_dir():
            raise WeightsNotFoundError(f"{word}: is a folder, not a file")
        if not path.exists():
            raise WeightsNotFoundError(f"{word}: no such file")
    except (OSError, ValueError) as e:  # a name too long, or with a zero byte
        if isinstance(e, WeightsNotFoundError):
            raise
        raise WeightsNotFoundError(f"{word}: not a file name ({getattr(e, 'strerror', None) or e})") from e
    return path


def sha256_of(path: Path) -> str:
    """Return a file's SHA-256.

    Raises:
        WeightsNotFoundError: it cannot be read.
    """
    from ..weights.file_spec import digests_of

    try:
        return digests_of(path)[0]
    except OSError as e:
        raise WeightsNotFoundError(f"{path}: cannot be read ({e.strerror or e})") from e
