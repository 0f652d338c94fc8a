"""The functions that build a net: one a published net, and :func:`create_model` for any architecture."""

from __future__ import annotations

import dataclasses
import fnmatch
import os
from pathlib import Path
from typing import Any, cast

import torch

from .arch import Arch
from .arch_text import MAX_TEXT
from .cache import verified_loader
from .classifier import Classifier
from .errors import ArchError, WeightsNotFoundError
from .loading import adopt, fit_state_dict, head_classes, log_report, without_prefix
from .model import ProxylessNAS
from .names import is_weights_file, looks_like_path, name_of_file
from .published import MODEL_NAMES, PUBLISHED, normalise_name
from .pyramid import PyramidTreeNet
from .sources import Source, open_source
from .tree_arch import TreeArch
from .user_files import read_text
from .weights import Weights, find_by_digest, get_weights


def _read_arch_file(path: Path) -> Arch | TreeArch:
    if path.suffix.lower() in (".json", ".config"):
        return Arch.from_official(path)
    return _parsed(read_text(path, "an architecture", ArchError, 2 * MAX_TEXT), path)


def _parsed(text: str, path: Path) -> Arch | TreeArch:
    try:
        return Arch.parse(text)
    except ArchError as e:
        raise ArchError(f"{path}: {e}") from e


def read_arch(path: str | os.PathLike[str]) -> Arch | TreeArch:
    """Read an architecture from a ``.json``/``.config`` file, a text, or a ``.safetensors`` header.

    A published ``.pth`` file, known by its digest, has the architecture it was published with.

    Raises:
        ArchError: there is none, or it is malformed; the message names the file and the place.
    """
    path = Path(path)
    if not is_weights_file(path):
        return _read_arch_file(path)
    if path.suffix.lower() == ".safetensors":
        from .cache import read_metadata

        metadata = read_metadata(path)
        if "arch" in metadata:
            return _parsed(metadata["arch"], path)
    record = find_by_digest(path) if path.is_file() else None
    if record is None:
        raise ArchError(
            f"{path}: holds weights but no architecture; name one: NAME_OR_ARCH --weights FILE "
            "(create_model(NAME_OR_ARCH, weights=FILE) in Python)"
        )
    return PUBLISHED[record.arch]


def build(arch: Arch | TreeArch, **options: Any) -> Classifier:
    """Build a model with random weights; one of the published is told how their images are prepared.

    Args:
        arch: the architecture.
        options: those of :class:`~proxylessnas.model.ProxylessNAS`; ``global_pool`` None means "avg".
    """
    if options.get("global_pool") is None:
        options = {**options, "global_pool": "avg"}
    model: Classifier = (
        ProxylessNAS(arch, **options) if isinstance(arch, Arch) else PyramidTreeNet(arch, **options)
    )
    if arch.name in PUBLISHED:
        model.preprocessing = get_weights(arch.name).preprocessing
    return model


def create_model(
    name_or_arch: str | os.PathLike[str] | Arch | TreeArch,
    pretrained: bool = False,
    progress: bool = True,
    *,
    weights: str | os.PathLike[str] | Weights | None = None,
    num_classes: int | None = None,
    in_chans: int | None = None,
    global_pool: str | None = None,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
) -> Classifier:
    """Build a net from a name, an architecture, or a file that holds one.

    >>> model = create_model("proxyless_mobile", num_classes=10)

    Args:
        name_or_arch: a zoo name ("proxyless_cpu"; see :func:`list_models`), an :class:`Arch`, the path of an
            architecture (text, or the original ``net.config``), or of a ``.safetensors`` file with its
            architecture in the header, whose weights are then loaded.
        pretrained: load the published weights, from the cache or the network.
        progress: show a bar while downloading.
        weights: load these instead: a local file, a zoo name or a :func:`get_weights` record. No network for
            a file.
        num_classes: outputs; 0 returns embeddings; None takes the weights' or the architecture's. If it
            differs from the weights', the classifier starts anew and everything else is loaded.
        in_chans: input channels; the stem's weights are adapted. None takes the architecture's, 3 for the
            published nets.
        global_pool: "avg", "max", "avgmax", or "" to keep the feature map (with num_classes=0); None takes
            the file's, "avg" if it says nothing.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth.

    Returns:
        The net, in training mode. ``model.preprocessing`` is what its images need, ``model.weights`` the
        record of its published weights, each None if not known.

    Raises:
        UnknownModelError: no such name; the nearest ones are listed.
        ArchError: the architecture is malformed.
        WeightsNotFoundError, WeightsFetchError, WeightsCorruptError, WeightsMismatchError: the weights cannot
            be had or do not fit.
    """
    if not isinstance(pretrained, bool):
        raise TypeError(f"pretrained must be True or False, not {pretrained!r}; a file goes into weights=")
    from_file = False
    if isinstance(name_or_arch, (Arch, TreeArch)):
        arch = name_or_arch
    elif looks_like_path(name_or_arch):
        from_file = True
        arch = read_arch(name_or_arch)
        if is_weights_file(name_or_arch):
            weights = weights or name_or_arch
    else:
        arch = PUBLISHED[normalise_name(cast(str, name_or_arch))]
    options: dict[str, Any] = {
        "num_classes": num_classes,
        "in_chans": in_chans,
        "global_pool": global_pool,
        "drop_rate": drop_rate,
        "drop_path_rate": drop_path_rate,
    }
    with torch.inference_mode(False):  # parameters made under inference mode could never be trained
        if weights is None and not pretrained:
            model = build(arch, **options)
            model.name = name_of_file(cast(str, name_or_arch)) if from_file else model.name
            return model
        if weights is None:
            weights = get_weights(_published_as(arch))
        elif isinstance(weights, str) and not looks_like_path(weights):
            weights = get_weights(weights)
        return _build_with_weights(arch, weights, progress, options)


def _owned(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return tensors that share memory neither with each other, nor a larger buffer, nor the caller's."""
    return {key: value.clone(memory_format=torch.contiguous_format) for key, value in tensors.items()}


def _published_as(arch: Arch | TreeArch) -> str:
    """Return the zoo name of an architecture, whatever it calls itself."""
    for name, published in PUBLISHED.items():
        if dataclasses.replace(published, name=arch.name) == arch:
            return name
    raise WeightsNotFoundError(
        f"no weights are published for the architecture {arch.name!r}: give --weights FILE "
        "(weights=FILE in Python)"
    )


def _build_with_weights(
    arch: Arch | TreeArch, weights: str | os.PathLike[str] | Weights, progress: bool, options: dict[str, Any]
) -> Classifier:
    if isinstance(weights, Weights):
        # Reading and hashing 18 MB takes as long as creating 400 modules: do both at once.
        loader = verified_loader(weights, progress=progress)
        model = build(arch, **options, device="meta")
        source = Source(loader.result(), f"the weights of {weights.name}", record=weights, owned=True)
    else:
        source = open_source(weights, progress)
        said = {"num_classes": source.header.num_classes, "global_pool": source.header.global_pool}
        said = {key: value for key, value in said.items() if options[key] is None}
        model = build(arch, **{**options, **said}, device="meta")
        if options["num_classes"] is None:
            classes = head_classes(without_prefix(source.state, model.state_dict())[0], model.num_features)
            if classes is not None and classes != model.num_classes:
                model._set_head(classes, model.global_pool, "meta")
    embeddings = source.header.num_classes == 0
    fitted, report = fit_state_dict(model, source.state, source.label, embeddings=embeddings)
    device, dtype = torch.get_default_device(), torch.get_default_dtype()
    placed = {
        key: value.to(device, dtype if value.is_floating_point() else None) for key, value in fitted.items()
    }
    if not source.owned:
        placed = _owned(placed)
    model.load_state_dict(placed, strict=False, assign=True)
    if any(p.is_meta for p in model.classifier.parameters()):
        model._set_head(model.num_classes, model.global_pool, device, dtype)
    adopt(model, source, report)
    log_report(report, model, source.label)
    return model


def list_models(pattern: str = "*", *, pretrained: bool = False) -> list[str]:
    """Return the zoo names that match a shell-style pattern, sorted.

    >>> list_models("*mobile*")
    ['proxyless_mobile', 'proxyless_mobile_14']

    Args:
        pattern: as in ``"proxyless_w*"``.
        pretrained: only nets with published weights.
    """
    names = sorted(fnmatch.filter(MODEL_NAMES, pattern))
    if pretrained:
        from .manifest import read_manifest

        with_weights = read_manifest()
        names = [name for name in names if name in with_weights]
    return names
