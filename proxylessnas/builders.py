"""The functions that build a net: one a published net, and :func:`create_model` for any architecture."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from .arch import Arch
from .classifier import Classifier
from .errors import ArchError, WeightsNotFoundError
from .loading import arch_of_header, fit_state_dict, log_report, looks_like_path, open_source
from .model import ProxylessNAS
from .published import MODEL_NAMES, PUBLISHED, normalise_name
from .pyramid import PyramidTreeNet
from .tree_arch import TreeArch

if TYPE_CHECKING:
    from .loading import Source
    from .transforms import Preprocessing
    from .weights import Weights


def _read_arch_file(path: Path) -> Arch | TreeArch:
    if path.suffix in (".json", ".config"):
        return Arch.from_official(path)
    try:
        if path.stat().st_size > 1_000_000:
            raise ArchError(f"{path}: too large for an architecture's text")
        text = path.read_text(encoding="utf-8")
    except OSError as e:
        raise ArchError(f"{path}: {e.strerror or e}") from e
    except UnicodeDecodeError as e:
        raise ArchError(f"{path}: not a text file") from e
    try:
        return Arch.parse(text)
    except ArchError as e:
        raise ArchError(f"{path}: {e}") from e


def read_arch(path: str | os.PathLike[str]) -> Arch | TreeArch:
    """Read an architecture from a ``.json``/``.config`` file, a text, or a ``.safetensors`` header.

    Raises:
        ArchError: there is none, or it is malformed; the message names the file and the place.
    """
    path = Path(path)
    if path.suffix in (".pth", ".pt", ".tar", ".bin", ".ckpt"):
        raise ArchError(
            f"{path}: holds weights but no architecture; give a net's name or an architecture beside it"
        )
    if path.suffix == ".safetensors":
        from .cache import read_metadata

        return arch_of_header(read_metadata(path), str(path))
    return _read_arch_file(path)


def _preprocessing(
    arch: Arch | TreeArch, record: Weights | None, source: Source | None
) -> Preprocessing | None:
    """Return the preprocessing of the weights, else that of the published net of this name."""
    from .transforms import Preprocessing
    from .weights import get_weights

    if source is not None and "preprocessing" in source.metadata:
        return Preprocessing.from_json(source.metadata["preprocessing"])
    if record is None and arch.name in PUBLISHED:
        record = get_weights(arch.name)
    return record.preprocessing if record is not None else None


def _build(arch: Arch | TreeArch, options: dict[str, Any]) -> Classifier:
    return ProxylessNAS(arch, **options) if isinstance(arch, Arch) else PyramidTreeNet(arch, **options)


def _record_of(arch: Arch | TreeArch, source: Source | None) -> Weights | None:
    """Return the manifest's record of a local file, known by its digest."""
    if source is None or source.path is None:
        return None
    from .weights import find_by_digest

    return find_by_digest(source.path)


def create_model(
    name_or_arch: str | os.PathLike[str] | Arch | TreeArch,
    pretrained: bool = False,
    progress: bool = True,
    *,
    weights: str | os.PathLike[str] | Weights | None = None,
    num_classes: int | None = None,
    in_chans: int | None = None,
    global_pool: str = "avg",
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
        global_pool: "avg", "max", "avgmax", or "" to keep the feature map (with num_classes=0).
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
    if isinstance(name_or_arch, (Arch, TreeArch)):
        arch = name_or_arch
    elif looks_like_path(name_or_arch):
        arch = read_arch(name_or_arch)
        if Path(name_or_arch).suffix == ".safetensors":
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
    if weights is None and not pretrained:
        model = _build(arch, options)
        model.preprocessing = _preprocessing(arch, None, None)
        return model
    return _build_with_weights(arch, weights, progress, options)


def _build_with_weights(
    arch: Arch | TreeArch, weights: Any, progress: bool, options: dict[str, Any]
) -> Classifier:
    from .cache import verified_loader
    from .weights import Weights, get_weights

    if weights is None:
        if arch.name not in PUBLISHED or PUBLISHED[arch.name] != arch:
            raise WeightsNotFoundError(
                f"no weights are published for the architecture {arch.name!r}: pass weights=FILE"
            )
        weights = get_weights(arch.name)
    elif isinstance(weights, str) and not looks_like_path(weights):
        weights = get_weights(weights)
    source: Source | None = None
    if isinstance(weights, Weights):
        record: Weights | None = weights
        label = f"the weights of {weights.name}"
        # Reading and hashing 18 MB takes as long as creating 400 modules: do both at once.
        loader = verified_loader(weights, progress=progress)
        model = _build(arch, {**options, "device": "meta"})
        state: Mapping[str, Tensor] = loader.result()
    else:
        source = open_source(weights, progress)
        record, label, state = _record_of(arch, source), source.label, source.state
        if options["num_classes"] is None and "classifier.linear.weight" in state:
            options = {**options, "num_classes": state["classifier.linear.weight"].shape[0]}
        elif options["num_classes"] is None and source.metadata.get("num_classes") == "0":
            options = {**options, "num_classes": 0}
        model = _build(arch, {**options, "device": "meta"})
    fitted, report = fit_state_dict(model, state, label)
    device, dtype = torch.get_default_device(), torch.get_default_dtype()
    placed = {
        key: value.to(device, dtype if value.is_floating_point() else None) for key, value in fitted.items()
    }
    model.load_state_dict(placed, strict=False, assign=True)
    if any(p.is_meta for p in model.classifier.parameters()):
        model._set_head(model.num_classes, model.global_pool, device, dtype)
    log_report(report, model, label)
    model.preprocessing = _preprocessing(arch, record, source)
    model.weights = record
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
