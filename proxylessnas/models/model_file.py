"""One file for a net: safetensors, with architecture, preprocessing and class names in the header."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..arch.arch import Arch
from ..arch.tree import TreeArch
from ..data.transforms import Preprocessing
from ..errors import ProxylessError, WeightsCorruptError, WeightsMismatchError
from ..utils.tensor_files import plain_names
from .base import POOLS, ImageClassifier, unwrapped

log = logging.getLogger("proxylessnas")
_RESERVED = ("format", "arch", "num_classes", "global_pool", "preprocessing", "categories", "wnids")


@dataclass(frozen=True)
class Header:
    """What a file says of its net; what it does not say is None or empty."""

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


def read_header(path: str | os.PathLike[str]) -> Header:
    """Return what a file says of its net, without reading its weights; empty for all but ``.safetensors``.

    Raises:
        WeightsNotFoundError, WeightsCorruptError: it cannot be read.
    """
    from ..weights.cache import read_metadata

    if Path(path).suffix.lower() != ".safetensors":
        return Header()
    return Header.parse(read_metadata(Path(path)), os.fspath(path))


def save_weights(
    model: ImageClassifier,
    path: str | os.PathLike[str],
    metadata: Mapping[str, str] | None = None,
    *,
    categories: Sequence[str] | None = None,
) -> Path:
    """Write a net to one ``.safetensors`` file that ``create_model(path)`` opens again.

    Architecture, pooling, preprocessing and class names are in its header; settings of a training run (drop
    rates, frozen BatchNorm) are not. The file appears under its name only when it is complete.

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
    from ..weights.cache import write_safetensors

    path, model = Path(path), unwrapped(model)
    if not isinstance(model, ImageClassifier):
        raise TypeError(f"save_weights takes a net of this package, not a {type(model).__name__}")
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: the suffix must be .safetensors")
    if not path.parent.is_dir():
        raise ProxylessError(f"{path}: the folder {path.parent} does not exist")
    extra = dict(metadata or {})
    for key, value in extra.items():
        if key in _RESERVED:
            raise ValueError(f"metadata key {key!r} is reserved")
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(f"metadata must be text; {key!r} is a {type(value).__name__}")
    names = tuple(model.categories if categories is None else categories)
    if names and len(names) != model.num_classes:
        raise ValueError(f"{len(names)} class names for {model.num_classes} classes")
    arch: Any = dataclasses.replace(
        model.arch, num_classes=model.num_classes or model.arch.num_classes, in_channels=model.in_chans
    )
    header = {
        "format": "pt",
        "arch": str(arch),
        "num_classes": str(model.num_classes),
        "global_pool": model.global_pool,
    }
    if model.preprocessing is not None:
        header["preprocessing"] = json.dumps(model.preprocessing.to_dict())
    if names:
        header["categories"] = json.dumps(names, ensure_ascii=False)
    if model.wnids and names == model.categories:
        header["wnids"] = json.dumps(model.wnids)
    state = plain_names(model.state_dict())
    _check_fits(model, arch, state, path)
    if not names and model.has_old_names:
        log.warning(
            "%s: the last layer was replaced since the class names were set: they are left out (set "
            "model.categories, or give categories=...)", path,
        )  # fmt: skip
    write_safetensors(state, path, {**header, **extra})
    return path


def _check_fits(
    model: ImageClassifier, arch: Arch | TreeArch, state: Mapping[str, Tensor], path: Path
) -> None:
    """Compare tensors with those of a model built from what the file's header will say.

    Raises:
        WeightsMismatchError: names or shapes differ.
    """
    from .factory import build

    with torch.random.fork_rng(devices=[]):  # registered operations draw weights
        rebuilt = build(
            arch, num_classes=model.num_classes, global_pool=model.global_pool, device="meta"
        ).state_dict()
    shapes = {
        key: (tuple(value.shape), tuple(rebuilt[key].shape))
        for key, value in state.items()
        if key in rebuilt and value.shape != rebuilt[key].shape
    }
    unexpected = [key for key in state if key not in rebuilt]
    missing = [key for key in rebuilt if key not in state and not key.endswith("num_batches_tracked")]
    if not (shapes or unexpected or missing):
        return
    odd = [*unexpected, *missing, *shapes]
    if any(key.endswith("_mask") for key in unexpected):
        remedy = "make pruning final: torch.nn.utils.prune.remove(module, 'weight') for every pruned module"
    elif any("parametrizations" in key.split(".") for key in unexpected):
        remedy = "torch.nn.utils.parametrize.remove_parametrizations makes plain weights of them"
    elif all(key.startswith("classifier.") for key in odd):
        remedy = (
            "a classifier is one linear layer: model.reset_classifier(N), or replace model.classifier.linear"
        )
    else:
        remedy = "write down its Arch and build the model from that, or keep it with torch.save"
    raise WeightsMismatchError(
        f"{path}: not written: the model is no longer what its architecture says, and create_model could "
        f"not open the file; {remedy}",
        missing=missing, unexpected=unexpected, shapes=shapes,
    )  # fmt: skip
