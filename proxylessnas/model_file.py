"""One file for a net: safetensors, with architecture, preprocessing and class names in the header."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .arch import Arch
from .classifier import POOLS, Classifier
from .errors import ProxylessError, WeightsCorruptError
from .transforms import Preprocessing
from .tree_arch import TreeArch

_RESERVED = ("format", "arch", "num_classes", "global_pool", "preprocessing", "categories", "wnids")


@dataclass(frozen=True)
class Header:
    """What a file says of its net; what it does not say is None or empty."""

    arch: Arch | TreeArch | None = None
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
            if "arch" in metadata:
                found["arch"] = Arch.parse(metadata["arch"])
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
    from .cache import read_metadata

    if Path(path).suffix.lower() != ".safetensors":
        return Header()
    return Header.parse(read_metadata(Path(path)), os.fspath(path))


def save_weights(
    model: Classifier,
    path: str | os.PathLike[str],
    metadata: Mapping[str, str] | None = None,
    *,
    categories: Sequence[str] | None = None,
) -> Path:
    """Write a net to one ``.safetensors`` file that ``create_model(path)`` opens again.

    Architecture, pooling, preprocessing and class names are in its header; settings of a training run (drop
    rates, frozen BatchNorm) are not. The file appears under its name only when it is complete.

    Args:
        model: any net of this package.
        path: where to; the suffix must be ``.safetensors``.
        metadata: more text for the header; ``safetensors.safe_open(path, "pt").metadata()`` shows it.
        categories: names of the classes, in output order; by default ``model.categories``.

    Raises:
        ValueError: another suffix, a reserved metadata key, or another number of names than of classes.
        TypeError: not a net of this package, or metadata that is not text.
        ProxylessError: the folder does not exist.
        MissingExtraError: safetensors is not installed.
    """
    from .cache import write_safetensors

    path = Path(path)
    if not isinstance(model, Classifier):
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
    write_safetensors(model.state_dict(), path, {**header, **extra})
    return path
