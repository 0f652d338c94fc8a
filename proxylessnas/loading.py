"""Put weights into a net, all or nothing, and say what was done."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .arch import Arch
from .classifier import Classifier
from .errors import ArchError, UnknownModelError, WeightsMismatchError, WeightsNotFoundError

if TYPE_CHECKING:
    from .tree_arch import TreeArch
    from .weights import Weights

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
    """

    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    adapted: dict[str, str] = field(default_factory=dict)


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


def fit_state_dict(
    model: Classifier, state: Mapping[str, Tensor], source: str = "the weights", *, strict: bool = True
) -> tuple[dict[str, Tensor], LoadReport]:
    """Return the tensors of ``state`` that ``model`` takes, adapted where that is meaningful, and the report.

    The net is not touched. See :func:`load_weights` for the rules and the errors.
    """
    report = LoadReport()
    own = model.state_dict()
    stem = stem_name(model)
    head = {key for key in state if key.startswith(HEAD)}
    own_head = {key for key in own if key.startswith(HEAD)}
    fits_head = head == own_head and all(state[key].shape == own[key].shape for key in head)
    fitted: dict[str, Tensor] = {}
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
    if not fits_head and (head or not own_head):
        found = state[HEAD + "linear.weight"].shape[0] if HEAD + "linear.weight" in state else "other"
        for key in sorted(head | own_head):
            report.adapted[key] = (
                f"not loaded: the weights have {found} classes, the net has {model.num_classes}"
            )
    for key, value in state.items():
        if key in report.adapted:
            continue
        if key not in own:
            report.unexpected.append(key)
        elif value.shape == own[key].shape:
            fitted[key] = value
        elif (
            key == stem
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
        raise WeightsMismatchError(f"{what}: no tensor of the weights belongs to this net")
    if shapes or (strict and (report.missing or report.unexpected)):
        missing, unexpected = (report.missing, report.unexpected) if strict else ([], [])
        raise WeightsMismatchError(what, missing=missing, unexpected=unexpected, shapes=shapes)
    return fitted, report


def log_report(report: LoadReport, model: Classifier, source: str) -> None:
    """Log what was adapted; a classifier that keeps random values is a warning."""
    for key, what in report.adapted.items():
        if key == HEAD + "linear.weight" and model.num_classes:
            log.warning("%s: the classifier was %s; it keeps its own values", source, what)
        elif not key.startswith(HEAD):
            log.info("%s: %s: %s", source, key, what)


@dataclass(frozen=True)
class Source:
    """Where weights come from, opened.

    Attributes:
        state: the tensors, on the CPU.
        label: how messages name it.
        metadata: the safetensors header's text entries, empty for other files.
        path: the local file, or None.
    """

    state: Mapping[str, Tensor]
    label: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    path: Path | None = None


def looks_like_path(text: str | os.PathLike[str]) -> bool:
    """Tell a file's path from a name: it has a separator, a known suffix, or it exists."""
    if not isinstance(text, str):
        return True
    known = (".pth", ".pt", ".tar", ".bin", ".ckpt", ".safetensors", ".json", ".config", ".txt")
    return os.sep in text or "/" in text or text.lower().endswith(known) or os.path.isfile(text)


def open_source(
    source: str | os.PathLike[str] | Weights | Mapping[str, Tensor], progress: bool = True
) -> Source:
    """Open weights given as a path, a zoo name, a :class:`~proxylessnas.Weights` record or a state dict.

    Raises:
        WeightsNotFoundError, WeightsFetchError, WeightsCorruptError: see those.
    """
    from .cache import cached_state_dict, safe_load
    from .weights import Weights, get_weights

    if isinstance(source, Mapping):
        return Source(source, "the given tensors")
    if isinstance(source, Weights):
        return Source(cached_state_dict(source, progress=progress), f"the weights of {source.name}")
    if looks_like_path(source):
        path = Path(source)
        state, metadata = safe_load(path)
        return Source(state, str(path), metadata, path)
    try:
        weights = get_weights(str(source))
    except UnknownModelError as e:
        raise WeightsNotFoundError(
            f"{source!r} is neither a weights file nor a net with published weights ({e})"
        ) from e
    return open_source(weights, progress)


def load_weights(
    model: Classifier, source: str | os.PathLike[str] | Weights | Mapping[str, Tensor], *, strict: bool = True
) -> LoadReport:
    """Copy weights into ``model``, all or nothing.

    Two things are adapted, reported and logged, never an error: a stem for another number of input channels,
    and a classifier for another number of classes, which keeps the net's own values. Everything else must
    fit.

    Args:
        model: any net of this package.
        source: a local ``.safetensors`` or ``.pth`` file, the name of a net with published weights, a record
            of :func:`~proxylessnas.get_weights`, or a state dict.
        strict: False allows missing and unexpected tensors and reports them. Shapes must fit in any case.

    Returns:
        What was missing, unexpected and adapted.

    Raises:
        WeightsMismatchError: tensors do not fit; the net is unchanged.
        WeightsNotFoundError, WeightsFetchError, WeightsCorruptError: the weights cannot be had.
    """
    opened = open_source(source)
    fitted, report = fit_state_dict(model, opened.state, opened.label, strict=strict)
    model.load_state_dict(fitted, strict=False)
    log_report(report, model, opened.label)
    return report


def save_weights(
    model: Classifier, path: str | os.PathLike[str], metadata: Mapping[str, str] | None = None
) -> Path:
    """Write a net to one ``.safetensors`` file that ``create_model(path)`` opens again.

    Architecture and preprocessing are in its header.

    The file appears under its name only when it is complete.

    Args:
        model: any net of this package.
        path: where to; the suffix must be ``.safetensors``.
        metadata: more text for the header.

    Raises:
        ValueError: another suffix.
        MissingExtraError: safetensors is not installed.
    """
    import dataclasses
    import json

    from .cache import write_safetensors

    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: the suffix must be .safetensors")
    in_chans = model.get_parameter(stem_name(model)).shape[1]
    arch: Any = dataclasses.replace(
        model.arch, num_classes=model.num_classes or model.arch.num_classes, in_channels=in_chans
    )
    header = {"format": "pt", "arch": str(arch), "num_classes": str(model.num_classes)}
    if model.preprocessing is not None:
        header["preprocessing"] = json.dumps(model.preprocessing.to_dict())
    write_safetensors(
        {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()},
        path,
        {**header, **(metadata or {})},
    )
    return path


def arch_of_header(metadata: Mapping[str, str], label: str) -> Arch | TreeArch:
    """Return the architecture stored in a safetensors header.

    Raises:
        ArchError: there is none, or it is malformed.
    """
    if "arch" not in metadata:
        raise ArchError(
            f"{label}: holds no architecture; give one, as in create_model(NAME_OR_ARCH, weights=FILE)"
        )
    return Arch.parse(metadata["arch"])
