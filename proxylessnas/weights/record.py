"""The record of published weights, with everything that belongs to them.

A model is only as good as its preprocessing: the same photo normalised with another model's mean and standard
deviation loses tens of points. So a :class:`Weights` record owns its transform, its class names, its figures
and its file, and all of it comes from ``weights_manifest.json``.

    >>> from proxylessnas.weights import get_weights
    >>> get_weights("proxyless-w025-r112").input_size
    112
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ..arch.published import PUBLISHED
from ..data.categories import categories, wnids
from ..data.transforms import Preprocessing
from . import cache
from .file_spec import FileSpec

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Weights(FileSpec):
    """One entry of the manifest: a :class:`FileSpec` and what the weights in the file are for.

    Attributes:
        arch: name of the model these weights fit.
        dataset: ``"imagenet"`` or ``"cifar10"``.
        num_classes: outputs of the classifier.
        input_size: side of the square crop, pixels.
        resize: length of the image's short side before the crop, pixels.
        mean: per channel (RGB), on a 0..1 scale.
        std: per channel (RGB), on a 0..1 scale.
        interpolation: ``"bilinear"`` or ``"bicubic"``.
        metrics: ``top1`` and ``top5`` (accuracy in percent, or None), ``images`` (which ones that is of),
            ``status`` and ``source``: where they are from. ``measured``, if there is any, lists figures that
            this project found with the published file on other images: ``images``, ``n`` (how many),
            ``top1``, ``top5`` and ``date``.
        params: number of trainable parameters.
        macs: multiply-adds of the convolutions and linear layers for one image of ``input_size``.
        license: SPDX identifier.
        training: how the weights were made, for those of this project's own, else None: ``command``,
            ``recipe`` and ``log`` (files of the repository), ``seed``, ``data``, ``data_sha256``, ``date``,
            ``minutes``, ``machine``, ``versions`` and ``commit``; ``teachers`` if it had any (``net``,
            ``command``, ``params``, ``seed``, ``minutes`` and ``top1`` of each), and ``before``, the record
            of the weights it began with, if it did not begin with random ones.
    """

    arch: str
    dataset: str
    num_classes: int
    input_size: int
    resize: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str
    metrics: Mapping[str, Any] = field(hash=False)
    params: int
    macs: int
    license: str
    training: Mapping[str, Any] | None = field(default=None, hash=False)

    def __post_init__(self) -> None:
        # The manifest is read once and shared: nobody may change a record for everybody else.
        for name in ("metrics", "training"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, MappingProxyType(dict(value)))

    def __reduce__(self) -> tuple[Callable[..., Weights], tuple[Any, ...]]:
        # A mapping proxy cannot be pickled or deep-copied; records travel to worker processes.
        plain = {k: dict(v) if isinstance(v, MappingProxyType) else v for k, v in vars(self).items()}
        return _rebuilt, (type(self), plain)

    @property
    def preprocessing(self) -> Preprocessing:
        """What turns an image into the input these weights were trained on, as data."""
        return Preprocessing(self.input_size, self.resize, self.mean, self.std, self.interpolation)

    def transforms(self, **overrides: Any) -> Callable[..., Tensor]:
        """Return the callable that prepares an image for these weights.

        Args:
            **overrides: fields of :class:`~proxylessnas.data.transforms.Preprocessing` to change, such as
                ``input_size``.

        Returns:
            A callable from a PIL image or a uint8 tensor [C, H, W] or [B, C, H, W] to a normalised float
            tensor.

        Raises:
            TypeError: an override is not a field of Preprocessing.
        """
        return dataclasses.replace(self.preprocessing, **overrides).build()

    @property
    def categories(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the model's outputs."""
        return tuple(categories(self.dataset))

    @property
    def wnids(self) -> tuple[str, ...]:
        """WordNet ids of the classes (ImageNet only), in the order of the model's outputs."""
        return tuple(wnids(self.dataset))

    @property
    def meta(self) -> dict[str, Any]:
        """Everything worth printing next to a result, as a new dict.

        Keys: ``name``, ``dataset``, ``categories``, ``wnids`` (ImageNet only), ``num_params``, ``macs``,
        ``input_size``, ``metrics``, ``license``, ``sha256``, ``git_blob``, ``sources``, ``bundled`` and,
        for weights of this project's own, ``training``.
        """
        own = "input_size metrics license sha256 git_blob sources bundled".split()
        meta: dict[str, Any] = {"name": self.name, "dataset": self.dataset, "categories": self.categories}
        meta |= {"wnids": self.wnids} if self.dataset == "imagenet" else {}
        meta |= {"num_params": self.params, "macs": self.macs} | {name: getattr(self, name) for name in own}
        meta |= {} if self.training is None else {"training": self.training}
        return {key: dict(v) if isinstance(v, MappingProxyType) else v for key, v in meta.items()}

    def copy_metadata(self) -> dict[str, str]:
        """Return the text that makes a copy stand on its own: origin, architecture and preprocessing."""
        metadata = super().copy_metadata()
        if self.arch in PUBLISHED:
            metadata["arch"] = str(PUBLISHED[self.arch])
        preprocessing = json.dumps(self.preprocessing.to_dict())
        return metadata | {"num_classes": str(self.num_classes), "preprocessing": preprocessing}

    def fetch(self, progress: bool = True, directory: Path | None = None) -> Path:
        """Return the path of the verified file, downloading it when it is neither here nor in the cache.

        Args:
            progress: show a progress bar when standard error is a terminal.
            directory: put it here instead of in the cache (to seed another machine's ``PROXYLESSNAS_CACHE``).

        Raises:
            WeightsFetchError: no source delivered the file (the message gives each one's reason).
            OfflineError: the file is not there and ``PROXYLESSNAS_OFFLINE`` is set.
            WeightsCorruptError: the file is there, is damaged, and cannot be replaced.
            WeightsNotFoundError: the file belongs to the package, but is not there.
        """
        return cache.fetch(self, progress, directory)

    def verify(self, path: Path | str | None = None) -> Path:
        """Check a file against the manifest's size and digest, and return its path. Never downloads.

        Args:
            path: the file; by default the one in the package, or the one in the cache (and the copy that
                loads faster, where there is one).

        Raises:
            WeightsNotFoundError: there is no such file.
            WeightsCorruptError: it is another file than the manifest names.
        """
        return cache.verify(self, path)

    def state_dict(self, progress: bool = True) -> dict[str, Tensor]:
        """Return the tensors, on the CPU, from the package, the cache or a source; verified on every call.

        Those of bundled weights, stored in half precision, are made float32, which is exact.

        Raises:
            WeightsFetchError, OfflineError, WeightsCorruptError: as :meth:`fetch`.
        """
        return cache.cached_state_dict(self, progress)


def _rebuilt(kind: type[Weights], values: dict[str, Any]) -> Weights:
    return kind(**values)
