"""Put weights into a net, all or nothing, and say what was done."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..errors import UnknownModelError, WeightsMismatchError, WeightsNotFoundError, one_line, shown
from .base import ImageClassifier, unwrapped
from .model_file import Header
from .resolve import looks_like_path, name_of_file

if TYPE_CHECKING:
    from ..weights.registry import Weights

# DOC proxylessnas.sources: """Where weights come from: a name, a record, a file or a state dict, opened to one thing."""

log = logging.getLogger("proxylessnas")
HEAD = "classifier."


@dataclass
class LoadReport:
    """What :func:`load_weights` did.

    Attributes:
        missing: parameters of the net that the weights lack (with ``strict=False`` only).
        unexpected: tensors of the weights that the net has no place for (with ``strict=False`` only).
        adapted: what was changed to fit, tensor name to a sentence: a stem for another number of input
            channels, a classifier for another number of classes (which keeps the net's own values).
        prefix: what all names of the weights began with, such as "model.", and was taken off.
    """

    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    adapted: dict[str, str] = field(default_factory=dict)
    prefix: str = ""


def adapt_stem(weight: Tensor, in_chans: int) -> Tensor:
    """Return a stem convolution's weights for another number of input channels.

    One channel gets the sum over the old ones (a grey image then gives what it would give as RGB); n channels
    repeat the old ones and are scaled by old / n, so that activations keep their size.

    Args:
        weight: [out, old, k, k].
        in_chans: n.

    Returns:
        [out, n, k, k].
    """
    old = weight.shape[1]
    if in_chans == 1:
        return weight.sum(1, keepdim=True)
    repeats = -(-in_chans // old)
    return weight.repeat(1, repeats, 1, 1)[:, :in_chans] * (old / in_chans)


def stem_name(model: nn.Module) -> str:
    """Return the name of the first convolution's weight."""
    return next(name for name, p in model.named_parameters() if p.dim() == 4)


def without_prefix(state: Mapping[str, Tensor], own: Collection[str]) -> tuple[dict[str, Tensor], str]:
    """Return weights without the prefix that keeps all their names from being a model's, and the prefix.

    Other training loops hold the model as an attribute, which is then in front of every name.

    Args:
        state: the weights; they are returned as they are, with "", where no such prefix helps.
        own: names of the model's tensors.
    """
    first = next(iter(own), "")
    for end in [key for key in state if key.endswith("." + first) and key not in own]:
        prefix = end.removesuffix(first)
        found = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        if len(found) == len(state) and all(key in own or key.startswith(HEAD) for key in found):
            return found, prefix
    return dict(state), ""


def head_classes(state: Mapping[str, Tensor], num_features: int) -> int | None:
    """Return the number of classes of the classifier in ``state``, or None if there is no sound one."""
    weight, bias = state.get(HEAD + "linear.weight"), state.get(HEAD + "linear.bias")
    if weight is None or bias is None or sum(key.startswith(HEAD) for key in state) != 2:
        return None
    sound = weight.dim() == 2 and weight.shape[1] == num_features and bias.shape == weight.shape[:1]
    return weight.shape[0] if sound else None


def fit_state_dict(
    model: ImageClassifier,
    state: Mapping[str, Tensor],
    source: str = "the weights",
    *,
    strict: bool = True,
    embeddings: bool = False,
) -> tuple[dict[str, Tensor], LoadReport]:
    """Return the tensors of ``state`` that ``model`` takes, adapted where that is meaningful, and the report.

    The net is not touched. See :func:`load_weights` for the rules and the errors. ``embeddings`` says that
    the weights are known to be those of a net without a classifier; otherwise a missing one is an error.
    """
    own = model.state_dict()
    state, prefix = without_prefix(state, own)
    report = LoadReport(prefix=prefix)
    stem = stem_name(model)
    own_head = {key for key in own if key.startswith(HEAD)}
    classes = 0 if embeddings else head_classes(state, model.num_features)
    fitted: dict[str, Tensor] = {}
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
    kinds: list[str] = []
    if classes is not None and classes != model.num_classes:
        for key in sorted(own_head | {HEAD + "linear.weight", HEAD + "linear.bias"}):
            report.adapted[key] = (
                f"not loaded: the weights have {classes} classes, the net has {model.num_classes}"
            )
    for key, value in state.items():
        if key in report.adapted:
            continue
        if key not in own:
            report.unexpected.append(key)
        elif value.is_floating_point() != own[key].is_floating_point():
            kinds.append(f"{key} is {str(value.dtype).removeprefix('torch.')}")
        elif value.shape == own[key].shape:
            fitted[key] = value
        elif (
            key == stem
            and 0 not in value.shape
            and value.dim() == 4
            and value.shape[0] == own[key].shape[0]
            and value.shape[2:] == own[key].shape[2:]
        ):
            channels = own[key].shape[1]
            fitted[key] = adapt_stem(value, channels)
            report.adapted[key] = f"{value.shape[1]} input channels made into {channels}"
        else:
            shapes[key] = (tuple(value.shape), tuple(own[key].shape))
    for key in own:
        if key in state or key in report.adapted:
            continue
        if key.endswith("num_batches_tracked"):  # checkpoints older than torch 0.4.1 lack them
            fitted[key] = torch.zeros((), dtype=torch.long)
        else:
            report.missing.append(key)
    what = f"{source} do not fit {model.arch.name}"
    if not any(key in own for key in state):
        theirs, ours = (shown(next(iter(names), "nothing"), 100) for names in (state, own))
        raise WeightsMismatchError(
            f"{what}: no tensor of the weights belongs to this model; they hold {theirs}, it has {ours}"
        )
    if kinds:
        raise WeightsMismatchError(f"{what}: {kinds[0]}, the net has another kind of numbers there")
    if shapes or (strict and (report.missing or report.unexpected)):
        missing, unexpected = (report.missing, report.unexpected) if strict else ([], [])
        raise WeightsMismatchError(what, missing=missing, unexpected=unexpected, shapes=shapes)
    return fitted, report


def log_report(report: LoadReport, model: ImageClassifier, source: str) -> None:
    """Log what was adapted; a classifier that keeps random values is a warning, as is a prefix taken off."""
    if report.prefix:
        log.warning("%s: the prefix %r of all names was taken off", source, report.prefix)
    for key, what in report.adapted.items():
        if key == HEAD + "linear.weight" and model.num_classes:
            log.warning("%s: the classifier was %s; it keeps its own values", one_line(source), what)
        elif not key.startswith(HEAD):
            log.info("%s: %s: %s", one_line(source), one_line(key), what)


def adopt(model: ImageClassifier, source: Source, report: LoadReport) -> None:
    """Tell a net what belongs to its weights: their name, record, preprocessing and class names."""
    record, header = source.record, source.header
    model.weights = record
    model.name = record.name if record is not None else source.name or model.name
    if header.preprocessing is not None:
        model.preprocessing = header.preprocessing
    elif record is not None:
        model.preprocessing = record.preprocessing
    if HEAD + "linear.weight" in report.adapted:
        model.categories, model.wnids = (), ()
    elif header.categories:
        model.categories, model.wnids = header.categories, header.wnids
    elif record is not None and record.num_classes == model.num_classes:
        model.categories, model.wnids = record.categories, record.wnids


def load_weights(
    model: ImageClassifier,
    source: str | os.PathLike[str] | Weights | Mapping[str, Tensor],
    *,
    strict: bool = True,
) -> LoadReport:
    """Copy weights into ``model``, all or nothing.

    Two things are adapted, reported and logged, never an error: a stem for another number of input channels,
    and a classifier for another number of classes, which keeps the net's own values. Everything else must
    fit.

    What belongs to the weights comes with them, where it is known (published weights, a file of
    :func:`~proxylessnas.save_weights`): ``model.preprocessing``, and the class names if the classifier was
    loaded.

    Args:
        model: any model of this package, also one that torch.compile or DataParallel wraps.
        source: a local ``.safetensors`` or ``.pth`` file, the name of a net with published weights, a record
            of :func:`~proxylessnas.get_weights`, or a state dict.
        strict: False allows missing and unexpected tensors and reports them. Shapes must fit in any case.

    Returns:
        What was missing, unexpected and adapted.

    Raises:
        WeightsMismatchError: tensors do not fit; the net is unchanged.
        TypeError: not a net of this package, or one without memory (on the meta device).
        WeightsNotFoundError, WeightsFetchError, WeightsCorruptError: the weights cannot be had.
    """
    model = unwrapped(model)
    if not isinstance(model, ImageClassifier):
        raise TypeError(f"load_weights takes a net of this package, not a {type(model).__name__}")
    if any(p.is_meta for p in model.parameters()):
        raise TypeError(
            "the net is on the meta device: build it with its weights, create_model(..., weights=...)"
        )
    opened = open_source(source)
    embeddings = opened.header.num_classes == 0
    fitted, report = fit_state_dict(model, opened.state, opened.label, strict=strict, embeddings=embeddings)
    model.load_state_dict(fitted, strict=False)
    adopt(model, opened, report)
    log_report(report, model, opened.label)
    return report


@dataclass(frozen=True)
class Source:
    """Opened weights.

    Attributes:
        state: the tensors, on the CPU.
        label: how messages name them.
        header: what a file of :func:`~proxylessnas.save_weights` says of itself; empty for others.
        record: the published weights, if it is they; a local file is known by its digest.
        name: of the net in a local file; "" for others.
        owned: each tensor is known to have memory of its own.
    """

    state: Mapping[str, Tensor]
    label: str
    header: Header = field(default_factory=Header)
    record: Weights | None = None
    name: str = ""
    owned: bool = False


def open_source(
    source: str | os.PathLike[str] | Weights | Mapping[str, Tensor], progress: bool = True
) -> Source:
    """Open weights given as a path, a zoo name, a :class:`~proxylessnas.Weights` record or a state dict.

    Raises:
        WeightsNotFoundError, WeightsFetchError, WeightsCorruptError: see those.
    """
    from ..utils.tensor_files import state_dict_of
    from ..weights.cache import cached_state_dict, safe_load
    from ..weights.registry import Weights, find_by_digest, get_weights

    if isinstance(source, Mapping):
        return Source(state_dict_of(source, "the given weights"), "the given weights")
    if isinstance(source, Weights):
        return Source(
            cached_state_dict(source, progress),
            f"the weights of {source.name}",
            record=source,
        )
    if looks_like_path(source):
        path = Path(source)
        state, metadata = safe_load(path)
        header = Header.parse(metadata, str(path))
        return Source(state, str(path), header, find_by_digest(path), name_of_file(path))
    try:
        weights = get_weights(str(source))
    except UnknownModelError as e:
        raise WeightsNotFoundError(
            f"{source!r} is neither a weights file nor a net with published weights ({e})"
        ) from e
    return open_source(weights, progress)
