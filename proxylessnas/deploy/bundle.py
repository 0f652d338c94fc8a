"""A model that is to be exported, with all that those who get the file need to know of it."""

from __future__ import annotations

import copy
import dataclasses
import os
from dataclasses import dataclass

import torch

from ..arch.arch import Arch
from ..arch.tree import TreeArch
from ..data.transforms import Preprocessing
from ..errors import ExportError, shown
from ..models.base import ImageClassifier, unwrapped
from ..models.batchnorm import recalibrate
from ..models.factory import create_model
from ..models.loading import header_texts
from ..models.resolve import resolve
from ..runtimes.files import file_runtimes
from ..utils.checks import is_int


@dataclass(frozen=True, eq=False)
class ModelBundle:
    """A model and what is known about it.

    Attributes:
        name: for people and file headers.
        model: in evaluation mode, float32, on the CPU, contiguous; a copy of the caller's.
        input_size: (channels, height, width) of one image.
        preprocessing: what images need, or None if it is not known.
        categories, wnids: of the outputs, in order; empty if not known.
        license: SPDX identifier of the weights; "" if not known.
        origin: where the weights come from, for people.
    """

    name: str
    model: ImageClassifier
    input_size: tuple[int, int, int]
    preprocessing: Preprocessing | None
    categories: tuple[str, ...] = ()
    wnids: tuple[str, ...] = ()
    license: str = ""
    origin: str = ""

    def metadata(self) -> dict[str, str]:
        """Return what a file says of its model, as texts; what is not known is left out.

        ``name``, ``license``, ``origin`` and the keys of a ``.safetensors`` header: ``arch``,
        ``num_classes``, ``global_pool``, and as JSON ``preprocessing``, ``categories`` and ``wnids``.
        """
        known = {
            "name": self.name,
            **header_texts(self.model, self.preprocessing, self.categories, self.wnids),
            "license": self.license,
            "origin": self.origin,
        }
        return {key: value for key, value in known.items() if value}


def open_bundle(
    given: ImageClassifier | Arch | TreeArch | str | os.PathLike[str],
    *,
    pretrained: bool = True,
    weights: str | os.PathLike[str] | None = None,
    input_size: int | None = None,
) -> ModelBundle:
    """Return a model ready to be exported; what is given is left as it is.

    Args:
        given: a model, a name of the zoo, a ``.safetensors`` file, or an architecture.
        pretrained: take published weights for a name; False leaves its weights random, and gives it BatchNorm
            statistics with which its outputs are of ordinary size.
        weights: see :func:`~proxylessnas.create_model`.
        input_size: side of the input, px; None takes that of the preprocessing, else the model's own. Another
            one than the preprocessing's changes the resize before the crop in proportion.

    Raises:
        ProxylessError: the model or its weights cannot be had.
    """
    given = unwrapped(given)
    if not isinstance(given, (ImageClassifier, Arch, TreeArch, str, os.PathLike)):
        raise ExportError(
            "what is exported must be a model of this package, a name, a file or an architecture, not "
            f"{shown(given)}"
        )
    if input_size is not None and not is_int(input_size, 1, 4096):
        raise ExportError(f"input_size must be a whole number from 1 to 4096, not {shown(input_size)}")
    found = resolve(given)
    if found.path is not None and os.path.isfile(found.path) and file_runtimes(found.path):
        raise ExportError(
            f"{found.given}: is an exported file already, and cannot be exported again: give the "
            ".safetensors file or the name that it was made from"
        )
    if isinstance(given, ImageClassifier):
        model = copy.deepcopy(given)
    else:
        model = create_model(given, pretrained=pretrained and weights is None, weights=weights)
    model = model.float().cpu().eval()
    known = model.preprocessing
    side = input_size or model.input_size[1]
    if known is not None and side != known.input_size:
        resize = max(side, round(side * known.resize / known.input_size))
        model.preprocessing = dataclasses.replace(known, input_size=side, resize=resize)
    if not (found.kind in ("module", "weights file") or pretrained or weights is not None):
        noise = torch.randn(8, model.in_chans, side, side, generator=torch.Generator().manual_seed(0))
        recalibrate(model, [noise], 1)
    record = model.weights
    return ModelBundle(
        model.name or "net",
        model,
        (model.in_chans, side, side),
        model.preprocessing,
        tuple(model.categories),
        tuple(model.wnids),
        record.license if record else "",
        f"weights {record.name} of this package's zoo, SHA-256 {record.sha256}" if record else "",
    )
