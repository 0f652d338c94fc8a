"""Puts weights into models, all or nothing, and writes a model to one file that says everything about it.

A model's file is safetensors, with architecture, preprocessing and class names in the header.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..arch.arch import Arch
from ..arch.published import PUBLISHED
from ..arch.tree import TreeArch
from ..data.transforms import Preprocessing
from ..errors import (
    ProxylessError,
    UnknownModelError,
    WeightsCorruptError,
    WeightsMismatchError,
    WeightsNotFoundError,
    one_line,
    shown,
)
from ..utils.tensor_files import plain_names, read_metadata, safe_load, state_dict_of, write_safetensors
from ..weights.record import Weights
from ..weights.registry import find_by_digest, get_weights
from .base import POOLS, ImageClassifier, unwrapped
from .proxylessnas import ProxylessNAS
from .pyramid import PyramidTreeNet
from .resolve import name_of_file, resolve

log = logging.getLogger("proxylessnas")
HEAD = "classifier."
_RESERVED = ("format", "arch", "num_classes", "global_pool", "preprocessing", "categories", "wnids")


def build(arch: Arch | TreeArch, **options: Any) -> ImageClassifier:
    """Build a model with random weights, and with the preprocessing of the published ones if it is theirs.

    ``options`` are those of :class:`~.proxylessnas.ProxylessNAS`; ``global_pool`` None means "avg".
    """
    options["global_pool"] = "avg" if options.get("global_pool") is None else options["global_pool"]
    model = ProxylessNAS(arch, **options) if isinstance(arch, Arch) else PyramidTreeNet(arch, **options)
    if arch.name in PUBLISHED:
        model.preprocessing = get_weights(arch.name).preprocessing
    return model


@dataclass(frozen=True)
class Header:
    """What a file says of its model; what it does not say is None or empty."""

    num_classes: int | None = None
    global_pool: str | None = None
    preprocessing: Preprocessing | None = None
    categories: tuple[str, ...] = ()
    wnids: tuple[str, ...] = ()

    @classmethod
    def parse(cls, metadata: Mapping[str, str], where: str) -> Header:
        """Read the text entries of a safetensors header.

        Raises:
            WeightsCorruptError: an entry is malformed.
        """
        found: dict[str, Any] = {}
        try:
            if "num_classes" in metadata:
                found["num_classes"] = int(metadata["num_classes"])
            if metadata.get("global_pool") in POOLS:
                found["global_pool"] = metadata["global_pool"]
            if "preprocessing" in metadata:
                found["preprocessing"] = Preprocessing.from_json(metadata["preprocessing"])
            for key in ("categories", "wnids"):
                names = json.loads(metadata.get(key, "[]"))
                if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                    raise ValueError(f"{key} is not a list of names")
                found[key] = tuple(names)
        except (ValueError, RecursionError) as e:
            raise WeightsCorruptError(f"{where}: the header is malformed ({e})") from e
        return cls(**found)


def current_arch(model: ImageClassifier) -> Any:
    """Return the architecture of a model, with the classes and channels that it has now."""
    arch: Any = model.arch
    classes = model.num_classes or arch.num_classes
    return dataclasses.replace(arch, num_classes=classes, in_channels=model.in_chans)


def header_texts(
    model: ImageClassifier,
    preprocessing: Preprocessing | None,
    categories: Sequence[str],
    wnids: Sequence[str],
) -> dict[str, str]:
    """Return what a file says of its model, as texts; what is not known is left out."""
    texts = {
        "arch": str(current_arch(model)),
        "num_classes": str(model.num_classes),
        "global_pool": model.global_pool,
    }
    if preprocessing is not None:
        texts["preprocessing"] = json.dumps(preprocessing.to_dict())
    if categories:
        texts["categories"] = json.dumps(categories, ensure_ascii=False)
    if wnids:
        texts["wnids"] = json.dumps(wnids)
    return texts


def read_header(path: str | os.PathLike[str]) -> Header:
    """Return what a file says of its model, without reading its weights; empty for all but ``.safetensors``.

    Raises:
        WeightsNotFoundError, WeightsCorruptError: it cannot be read.
    """
    if Path(path).suffix.lower() != ".safetensors":
        return Header()
    return Header.parse(read_metadata(Path(path)), os.fspath(path))


@dataclass(frozen=True)
class Source:
    """Opened weights.

    Attributes:
        state: the tensors, on the CPU.
        label: how messages name them.
        header: what a file of :func:`~proxylessnas.save_weights` says of itself; empty for others.
        record: the published weights, if it is they.
        name: of the model that they belong to; "" if it is not known.
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
    if isinstance(source, Mapping):
        return Source(state_dict_of(source, "the given weights"), "the given weights")
    if not isinstance(source, Weights):
        try:
            found = resolve(source)
            if found.kind in ("module", "arch"):
                raise TypeError(f"weights are a file, a name, a record or a state dict, not {shown(source)}")
            if (path := found.path) is not None:
                state, metadata = safe_load(path)
                record = find_by_digest(path)
                name = record.name if record is not None else name_of_file(path)
                return Source(state, str(path), Header.parse(metadata, str(path)), record, name)
            source = get_weights(found.name)
        except UnknownModelError as e:
            raise WeightsNotFoundError(
                f"{source!r} is neither a weights file nor a model with published weights ({e})"
            ) from e
    return Source(
        source.state_dict(progress), f"the weights of {source.name}", record=source, name=source.name
    )


@dataclass
class LoadReport:
    """What :func:`load_weights` did.

    Attributes:
        missing: parameters of the model that the weights lack (with ``strict=False`` only).
        unexpected: tensors of the weights that the model has no place for (with ``strict=False`` only).
        adapted: what was changed to fit (a stem, a classifier): tensor name to a sentence.
        prefix: what all names of the weights began with, such as "model.", and was taken off.
    """

    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    adapted: dict[str, str] = field(default_factory=dict)
    prefix: str = ""


def adapt_stem(weight: Tensor, in_chans: int) -> Tensor:
    """Return a stem convolution's weights, [out, old, k, k], for n input channels, [out, n, k, k].

    One channel gets the sum over the old ones (a grey image then gives what it would give as RGB); n channels
    repeat the old ones and are scaled by old / n, so that activations keep their size.
    """
    old = weight.shape[1]
    if in_chans == 1:
        return weight.sum(1, keepdim=True)
    repeats = -(-in_chans // old)
    return weight.repeat(1, repeats, 1, 1)[:, :in_chans] * (old / in_chans)


def without_prefix(state: Mapping[str, Tensor], own: Collection[str]) -> tuple[dict[str, Tensor], str]:
    """Return weights without a prefix that keeps all their names from being a model's, and it, or "".

    Other training loops hold the model as an attribute, which is then in front of every name. ``own`` are the
    names of the model's tensors.
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

    The model is not touched. See :func:`load_weights` for the rules and the errors. ``embeddings`` says that
    the weights are those of a model without a classifier; otherwise a missing one is an error.
    """
    own = model.state_dict()
    state, prefix = without_prefix(state, own)
    report = LoadReport(prefix=prefix)
    stem = next(name for name, p in model.named_parameters() if p.dim() == 4)
    classes = 0 if embeddings else head_classes(state, model.num_features)
    fitted: dict[str, Tensor] = {}
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
    kinds: list[str] = []
    if classes is not None and classes != model.num_classes:
        head = {key for key in own if key.startswith(HEAD)} | {HEAD + "linear.weight", HEAD + "linear.bias"}
        what = f"not loaded: the weights have {classes} classes, the model has {model.num_classes}"
        report.adapted = dict.fromkeys(sorted(head), what)
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
            key == stem and value.dim() == 4 and value.numel() and value[:, :0].shape == own[key][:, :0].shape
        ):
            fitted[key] = adapt_stem(value, own[key].shape[1])
            report.adapted[key] = f"{value.shape[1]} input channels made into {own[key].shape[1]}"
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
        raise WeightsMismatchError(f"{what}: {kinds[0]}, the model has another kind of numbers there")
    if shapes or (strict and (report.missing or report.unexpected)):
        missing, unexpected = (report.missing, report.unexpected) if strict else ([], [])
        raise WeightsMismatchError(what, missing=missing, unexpected=unexpected, shapes=shapes)
    return fitted, report


def adopt(model: ImageClassifier, source: Source, report: LoadReport) -> None:
    """Give a model what belongs to its weights: name, record, preprocessing, classes; log what was adapted.

    A classifier that keeps random values is a warning, as is a prefix taken off.
    """
    record, header = source.record, source.header
    model.weights = record
    model.name = source.name or model.name
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
    if report.prefix:
        log.warning("%s: the prefix %r of all names was taken off", source.label, report.prefix)
    for key, what in report.adapted.items():
        if key == HEAD + "linear.weight" and model.num_classes:
            log.warning("%s: the classifier was %s; it keeps its own values", one_line(source.label), what)
        elif not key.startswith(HEAD):
            log.info("%s: %s: %s", one_line(source.label), one_line(key), what)


def load_weights(
    model: ImageClassifier,
    source: str | os.PathLike[str] | Weights | Mapping[str, Tensor],
    *,
    strict: bool = True,
) -> LoadReport:
    """Copy weights into ``model``, all or nothing.

    Two things are adapted, reported and logged, never an error: a stem for another number of input channels,
    and a classifier for another number of classes, which keeps the model's own values. Where they are known
    (published weights, a file of :func:`~proxylessnas.save_weights`), ``model.preprocessing`` and the class
    names of a classifier that was loaded come with the weights.

    Args:
        model: any model of this package, also one that torch.compile or DataParallel wraps.
        source: a local ``.safetensors`` or ``.pth`` file, the name of a published model, a record
            of :func:`~proxylessnas.get_weights`, or a state dict.
        strict: False allows missing and unexpected tensors and reports them. Shapes must fit in any case.

    Returns:
        What was missing, unexpected and adapted.

    Raises:
        WeightsMismatchError: tensors do not fit; the model is unchanged.
        TypeError: not a model of this package, or one without memory (on the meta device).
        WeightsNotFoundError, WeightsFetchError, WeightsCorruptError: the weights cannot be had.
    """
    model = unwrapped(model)
    if not isinstance(model, ImageClassifier):
        raise TypeError(f"load_weights takes a model of this package, not a {type(model).__name__}")
    if any(p.is_meta for p in model.parameters()):
        raise TypeError(
            "the model is on the meta device: build it with its weights, create_model(..., weights=...)"
        )
    opened = open_source(source)
    embeddings = opened.header.num_classes == 0
    fitted, report = fit_state_dict(model, opened.state, opened.label, strict=strict, embeddings=embeddings)
    model.load_state_dict(fitted, strict=False)
    adopt(model, opened, report)
    return report


def save_weights(
    model: ImageClassifier,
    path: str | os.PathLike[str],
    metadata: Mapping[str, str] | None = None,
    *,
    categories: Sequence[str] | None = None,
) -> Path:
    """Write a model to one ``.safetensors`` file that ``create_model(path)`` opens again.

    Architecture, pooling, preprocessing and class names are in its header; settings of a training run (drop
    rates, frozen BatchNorm) are not.

    Args:
        model: any model of this package, also one that torch.compile or DataParallel wraps.
        path: where to; the suffix must be ``.safetensors``.
        metadata: more text for the header; ``safetensors.safe_open(path, "pt").metadata()`` shows it.
        categories: names of the classes, in output order; by default ``model.categories``.

    Raises:
        ValueError: another suffix, a reserved metadata key, or another number of names than of classes.
        TypeError: not a model of this package, or metadata that is not text.
        WeightsMismatchError: the model was changed so that its file could not be opened again (another kind
            of classifier, pruned weights); the message says what to do.
        ProxylessError: the folder does not exist.
        MissingExtraError: safetensors is not installed.
    """
    path, model = Path(path), unwrapped(model)
    if not isinstance(model, ImageClassifier):
        raise TypeError(f"save_weights takes a model of this package, not a {type(model).__name__}")
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: the suffix must be .safetensors")
    if not path.parent.is_dir():
        raise ProxylessError(f"{path}: the folder {path.parent} does not exist")
    for key, value in (metadata or {}).items():
        if key in _RESERVED:
            raise ValueError(f"metadata key {key!r} is reserved")
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(f"metadata must be text; {key!r} is a {type(value).__name__}")
    names = tuple(model.categories if categories is None else categories)
    if names and len(names) != model.num_classes:
        raise ValueError(f"{len(names)} class names for {model.num_classes} classes")
    header = header_texts(model, model.preprocessing, names, model.wnids if names == model.categories else ())
    state = plain_names(model.state_dict())
    _check_fits(model, state, path)
    if not names and model.has_old_names:
        log.warning(
            "%s: the last layer was replaced since the class names were set: they are left out (set "
            "model.categories, or give categories=...)", path,
        )  # fmt: skip
    write_safetensors(state, path, {"format": "pt", **header, **(metadata or {})})
    return path


def _check_fits(model: ImageClassifier, state: Mapping[str, Tensor], path: Path) -> None:
    """Check that tensors fit a model built from what the file's header will say."""
    with torch.random.fork_rng(devices=[]):  # registered operations draw weights
        rebuilt = build(
            current_arch(model), num_classes=model.num_classes, global_pool=model.global_pool, device="meta"
        )
    try:
        _, report = fit_state_dict(rebuilt, state, embeddings=model.num_classes == 0)
        if report.adapted:  # it would be opened as another model
            own = rebuilt.state_dict()
            shapes = {k: (tuple(state[k].shape), tuple(own[k].shape)) for k in report.adapted}
            raise WeightsMismatchError("other shapes", shapes=shapes)
    except WeightsMismatchError as e:
        odd = [*e.unexpected, *e.missing, *e.shapes]
        remedy = "write down its Arch and build the model from that, or keep it with torch.save"
        if any(key.endswith("_mask") for key in odd):
            remedy = (
                "make pruning final: torch.nn.utils.prune.remove(module, 'weight') for each pruned module"
            )
        elif any("parametrizations" in key.split(".") for key in odd):
            remedy = "torch.nn.utils.parametrize.remove_parametrizations makes plain weights of them"
        elif odd and all(key.startswith(HEAD) for key in odd):
            how = "model.reset_classifier(N), or replace model.classifier.linear"
            remedy = f"a classifier is one linear layer: {how}"
        raise WeightsMismatchError(
            f"{path}: not written: the model is no longer what its architecture says, and create_model could "
            f"not open the file; {remedy}",
            missing=e.missing, unexpected=e.unexpected, shapes=e.shapes,
        ) from e  # fmt: skip
