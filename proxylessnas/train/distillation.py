"""Knowledge distillation: a model learns from the answers of a trained one, besides the labels.

The teacher says of every image how likely it finds each class, which tells a small model more than the label
does (Hinton, Vinyals and Dean 2015, "Distilling the knowledge in a neural network"). It sees the very pixels
that its student sees, cropped, mirrored and cut out alike, and so answers for them (Beyer et al. 2022,
"Knowledge distillation: a good teacher is patient and consistent").
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.open import not_held_out_before
from ..data.sources import Data
from ..data.transforms import Preprocessing
from ..errors import DataError, first_line
from ..models.base import ImageClassifier, unwrapped
from ..models.batchnorm import fold_batchnorm
from ..models.factory import create_model
from ..models.fuse import fuse
from ..models.resolve import resolve
from ..utils.devices import sent
from .checkpoint import weights_digest
from .recipe import Recipe

PROGRAM_SUFFIX = ".pt2"
_EXAMPLE_IMAGES = (2, 3)  # of two sizes, as the last batch of an epoch may have another

TeacherSource: TypeAlias = nn.Module | str | os.PathLike[str]
Teachers: TypeAlias = TeacherSource | Sequence[TeacherSource]


@dataclass(frozen=True)
class Teacher:
    """A model that answers for a batch of its student's inputs.

    Attributes:
        model: maps float32 [B, 3, S, S] to logits [B, classes]; in evaluation mode.
        name: how to call it.
        digest: of its weights; a run that is resumed has to have the same teacher.
        preprocessing: what its images need; None takes the student's.
    """

    model: nn.Module
    name: str
    digest: str
    preprocessing: Preprocessing | None = None

    @torch.no_grad()
    def __call__(self, inputs: Tensor, student: Preprocessing) -> Tensor:
        """Return logits, float32 [B, classes], for float32 [B, 3, S, S], normalised as ``student`` says."""
        return self.model(_renormalised(inputs, student, self.preprocessing)).float()


@dataclass(frozen=True)
class Ensemble:
    """Several teachers that answer with the mean of their logits: together they are right more often."""

    teachers: tuple[Teacher, ...]

    @property
    def names(self) -> list[str]:
        """How to call each."""
        return [teacher.name for teacher in self.teachers]

    @property
    def digest(self) -> str:
        """Of all their weights."""
        return "+".join(teacher.digest for teacher in self.teachers)

    def __call__(self, inputs: Tensor, student: Preprocessing, *, mirrored: bool = False) -> Tensor:
        """Return the mean logits, float32 [B, classes], ``mirrored`` those for the mirror images included."""
        views = [inputs, inputs.flip(-1)] if mirrored else [inputs]
        return torch.stack([teacher(view, student) for teacher in self.teachers for view in views]).mean(0)


def teacher_notes(source: Teachers | None, data: Data, recipe: Recipe) -> list[str]:
    """Return what a user should know of the teachers, or of there being none, one line each."""
    if source is None:
        idle = [
            f"{field.name} = {getattr(recipe, field.name)}"
            for field in dataclasses.fields(recipe)
            if field.name.startswith("teacher_") and getattr(recipe, field.name) != field.default
        ]
        return [f"there is no teacher, so this counts for nothing: {', '.join(idle)}"] if idle else []
    if not data.held_out or data.val is None:
        return []
    files = [each for each in teacher_sources(source) if not isinstance(each, nn.Module)]
    return [
        f"{new:,} of the {len(data.val):,} images held out here were not held out for the teacher {each}, "
        "which may know them: the accuracy on them may be a little too good"
        for each in files
        if (new := not_held_out_before(each, data))
    ]


def open_teachers(source: Teachers, data: Data, student: Preprocessing, device: torch.device) -> Ensemble:
    """Return one or several teachers for the classes of some data; see :func:`open_teacher`."""
    sources = teacher_sources(source)
    if not sources:
        raise DataError("no teacher is given: name one at least, or None")
    return Ensemble(tuple(open_teacher(each, data, student, device) for each in sources))


def teacher_sources(source: Teachers) -> tuple[TeacherSource, ...]:
    """Return one or several teachers as several."""
    return (source,) if isinstance(source, (nn.Module, str, os.PathLike)) else tuple(source)


def open_teacher(source: TeacherSource, data: Data, student: Preprocessing, device: torch.device) -> Teacher:
    """Return a teacher for the classes of some data.

    Args:
        source: the name of a published model, a trained ``.safetensors`` file, a program that
            ``torch.export.save`` (or ``proxylessnas export``) wrote, ``.pt2``, or a module. Programs and
            modules that are not of this package take the student's own inputs; that their classes are those
            of the data, in this order, cannot be seen.
        data: its classes have to be the teacher's, in the same order.
        student: the preprocessing of the student.
        device: where it computes.

    Raises:
        DataError: it cannot be read, or knows other classes.
        WeightsNotFoundError, WeightsFetchError, WeightsMismatchError: the weights of a named model cannot be
            had.
    """
    own = None
    if isinstance(source, nn.Module):
        model = copy.deepcopy(unwrapped(source))  # the caller's own stays as it is
        name = model.name if isinstance(model, ImageClassifier) else type(model).__name__
    elif str(source).lower().endswith(PROGRAM_SUFFIX):
        model, own = _program(Path(source))
        name = str(source)
    else:
        model, name = create_model(_nameable(source), pretrained=True), str(source)
    own = model.preprocessing if isinstance(model, ImageClassifier) else own
    digest = weights_digest(model)  # before it is on the device
    teacher = Teacher(_ready(model, device), name, digest, own)
    _check_classes(teacher, data, student, device)
    return teacher


def distillation_loss(
    logits: Tensor, targets: Tensor, taught: Tensor, *, share: float, temperature: float, smoothing: float
) -> Tensor:
    """Return the loss of a student, a mean over the batch, [].

    It is ``(1 - share) * CE(logits, targets) + share * T^2 * KL(softmax(taught / T) || softmax(logits / T))``
    with the temperature T; the square keeps the gradients of both parts of one size at any T (section 2).

    Args:
        logits: [B, classes] of the student.
        targets: [B] class indices, or [B, classes] shares.
        taught: [B, classes], the teacher's logits.
        share: of the teacher, 0 to 1.
        temperature: T, above 0.
        smoothing: of the labels.
    """
    found = F.log_softmax(logits / temperature, 1)
    wanted = F.log_softmax(taught / temperature, 1)
    divergence = F.kl_div(found, wanted, reduction="batchmean", log_target=True) * temperature**2
    if share == 1:
        return divergence
    return (1 - share) * F.cross_entropy(logits, targets, label_smoothing=smoothing) + share * divergence


def _nameable(source: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """Return a name or file that says which model it is of."""
    if os.path.isdir(source):
        raise DataError(f"the teacher {source} is a folder: name the model.safetensors in it")
    if resolve(source).kind == "weights file" and Path(source).suffix.lower() != ".safetensors":
        raise DataError(
            f"the teacher {source} does not say which model it is of: in Python load it with "
            "create_model(NAME, weights=FILE), and save_weights writes a .safetensors file that can teach"
        )
    return source


def _program(path: Path) -> tuple[nn.Module, Preprocessing | None]:
    """Load a program of torch.export, and the preprocessing of one that ``proxylessnas export`` wrote."""
    if not path.is_file():
        raise DataError(f"the teacher {path} is not there")
    from ..runtimes.files import METADATA_FILE

    extra = {METADATA_FILE: ""}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the reader's own insides
            model: Any = torch.export.load(path, extra_files=extra).module()
        said = json.loads(extra[METADATA_FILE] or "{}")
        if "categories" in said:
            model.categories = tuple(json.loads(said["categories"]))
        known = said.get("preprocessing")
        return model, Preprocessing.from_dict(json.loads(known)) if known else None
    except Exception as e:  # torch's reader raises whatever a broken archive makes it stumble over
        raise DataError(
            f"{path}: not a program of torch.export ({first_line(e)}); machine code (--aot) cannot teach"
        ) from e


def _ready(model: nn.Module, device: torch.device) -> nn.Module:
    """Return a model in evaluation mode on its device; one of ours in the form that answers fastest."""
    with contextlib.suppress(NotImplementedError):  # a program of torch.export is in its mode for good
        model.eval()
    model = model.to(device).to(memory_format=torch.channels_last)
    if not isinstance(model, ImageClassifier):
        return model
    quick = fold_batchnorm(model)
    if device.type != "cpu" or model.preprocessing is None:
        return quick
    side = model.preprocessing.input_size
    generator = torch.Generator().manual_seed(0)
    example = torch.randn(_EXAMPLE_IMAGES[0], model.in_chans, side, side, generator=generator)
    example = example.contiguous(memory_format=torch.channels_last)
    try:
        with torch.no_grad():
            fused = fuse(quick, example)
            torch.testing.assert_close(fused(example), quick(example), rtol=1e-4, atol=1e-4)
    except (RuntimeError, AttributeError, AssertionError):  # the operators are not PyTorch's public interface
        return quick
    return fused


def _check_classes(teacher: Teacher, data: Data, student: Preprocessing, device: torch.device) -> None:
    said = getattr(teacher.model, "categories", ())
    known: tuple[str, ...] = tuple(said) if isinstance(said, (tuple, list)) else ()
    wanted = data.categories
    if known and known != wanted:
        if sorted(known) == sorted(wanted):
            raise DataError(f"the teacher {teacher.name} has the classes of {data.name} in another order")
        missing = [name for name in wanted if name not in known]
        what = f"does not know {missing[0]!r}" if missing else f"knows {len(known)} classes"
        raise DataError(
            f"the teacher {teacher.name} {what}; {data.name} has {len(wanted)}: train it on the same classes"
        )
    side = student.input_size
    logits = torch.zeros(0)
    for count in _EXAMPLE_IMAGES:
        try:
            logits = teacher(torch.zeros(count, 3, side, side, device=device), student)
            shape = tuple(logits.shape)
        except Exception as e:  # a model that is not ours raises what its layers raise
            if count > _EXAMPLE_IMAGES[0]:
                raise DataError(
                    f"the teacher {teacher.name} takes {_EXAMPLE_IMAGES[0]} images a call and not "
                    f"{count} ({first_line(e)}): its batch size has to be open"
                ) from e
            raise DataError(
                f"the teacher {teacher.name} cannot take inputs of {[count, 3, side, side]} ({first_line(e)})"
            ) from e
        if shape != (count, len(wanted)):
            raise DataError(
                f"the teacher {teacher.name} gives {list(shape[1:])} outputs an image, but {data.name} has "
                f"{len(wanted)} classes"
            )
    if not bool(logits.isfinite().all()):
        raise DataError(f"the teacher {teacher.name} answers with NaN or infinite logits")


def _renormalised(inputs: Tensor, student: Preprocessing, own: Preprocessing | None) -> Tensor:
    """Return a student's inputs as its teacher wants them."""
    if own is None:
        return inputs
    if (own.mean, own.std) != (student.mean, student.std):
        mean, std, own_mean, own_std = (
            sent(torch.tensor(v, dtype=inputs.dtype), inputs.device)[:, None, None]
            for v in (student.mean, student.std, own.mean, own.std)
        )
        inputs = inputs * (std / own_std) + (mean - own_mean) / own_std
    if own.input_size != inputs.shape[-1]:
        size = (own.input_size, own.input_size)
        inputs = F.interpolate(inputs, size, mode="bilinear", antialias=True, align_corners=False)
    return inputs
