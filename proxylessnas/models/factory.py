"""Builds models: one function a published model, and :func:`create_model` for any architecture.

What ``torch.hub`` shows and most people call is the first kind; they all have one signature.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import inspect
import os
from typing import Any, Protocol, TypeVar, cast

import torch

from ..arch.arch import Arch
from ..arch.published import MODEL_NAMES, PUBLISHED
from ..arch.tree import TreeArch
from ..errors import WeightsNotFoundError, shown
from ..weights.cache import VerifiedLoader
from ..weights.record import Weights
from ..weights.registry import get_weights, read_manifest
from .base import ImageClassifier
from .loading import Source, adopt, build, fit_state_dict, head_classes, open_source, without_prefix
from .proxylessnas import ProxylessNAS
from .pyramid import PyramidTreeNet
from .resolve import resolve


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
) -> ImageClassifier:
    """Build a model from a name, an architecture, or a file that holds one.

    >>> model = create_model("proxyless_mobile", num_classes=10)

    Args:
        name_or_arch: a zoo name ("proxyless_cpu"; see :func:`list_models`), an :class:`Arch`, the path of an
            architecture (text, or the original ``net.config``), or of a ``.safetensors`` file with its
            architecture in the header, whose weights are then loaded.
        pretrained: load the published weights, from the cache or the network.
        progress: show a bar while downloading.
        weights: load these instead: a local file, a zoo name or a :func:`get_weights` record.
        num_classes: outputs; 0 returns embeddings; None takes the weights' or the architecture's. If it
            differs from the weights', the classifier starts anew and everything else is loaded.
        in_chans: input channels; the stem's weights are adapted; None takes the architecture's.
        global_pool: "avg", "max", "avgmax", or "" to keep the feature map (with num_classes=0); None takes
            the file's, "avg" if it says nothing.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth.

    Returns:
        The model, in training mode; its ``preprocessing`` and ``weights`` (a record) are None if not known.

    Raises:
        UnknownModelError: no such name; the nearest ones are listed.
        ArchError: the architecture is malformed.
        WeightsNotFoundError, WeightsFetchError, WeightsCorruptError, WeightsMismatchError: none that fit.
    """
    if not isinstance(pretrained, bool):
        raise TypeError(f"pretrained must be True or False, not {pretrained!r}; a file goes into weights=")
    found = resolve(name_or_arch)
    if found.kind == "module":
        raise TypeError(f"a model is built from a name, a file or an architecture, not {shown(name_or_arch)}")
    if found.kind == "weights file":
        weights = weights or found.path
    options: dict[str, Any] = {
        "num_classes": num_classes,
        "in_chans": in_chans,
        "global_pool": global_pool,
        "drop_rate": drop_rate,
        "drop_path_rate": drop_path_rate,
    }
    with torch.inference_mode(False):  # parameters made under inference mode could never be trained
        if weights is None and not pretrained:
            model = build(found.arch, **options)
            model.name = found.name
            return model
        weights = _published_as(found.arch) if weights is None else weights
        return _build_with_weights(found.arch, weights, progress, options)


def _published_as(arch: Arch | TreeArch) -> Weights:
    """Return the published weights of an architecture, whatever it calls itself."""
    for name, published in PUBLISHED.items():
        if dataclasses.replace(published, name=arch.name) == arch:
            return get_weights(name)
    raise WeightsNotFoundError(
        f"no weights are published for the architecture {arch.name!r}: give --weights FILE "
        "(weights=FILE in Python)"
    )


def _build_with_weights(
    arch: Arch | TreeArch, weights: str | os.PathLike[str] | Weights, progress: bool, options: dict[str, Any]
) -> ImageClassifier:
    if isinstance(weights, str) and (named := resolve(weights)).kind == "zoo":
        weights = get_weights(named.name)
    if isinstance(weights, Weights):
        # Reading and hashing 18 MB takes as long as creating 400 modules: do both at once.
        loader = VerifiedLoader(weights, progress=progress)
        model = build(arch, **options, device="meta")
        label = f"the weights of {weights.name}"
        source = Source(loader.result(), label, record=weights, name=weights.name, owned=True)
    else:
        source = open_source(weights, progress)
        said = {
            key: getattr(source.header, key) for key in ("num_classes", "global_pool") if options[key] is None
        }
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
        # They may share memory with each other, with a larger buffer, or with the caller.
        placed = {key: value.clone(memory_format=torch.contiguous_format) for key, value in placed.items()}
    model.load_state_dict(placed, strict=False, assign=True)
    if any(p.is_meta for p in model.classifier.parameters()):
        model._set_head(model.num_classes, model.global_pool, device, dtype)
    adopt(model, source, report)
    return model


def list_models(pattern: str = "*", *, pretrained: bool = False) -> list[str]:
    """Return the zoo names that match a shell-style pattern, sorted.

    >>> list_models("*mobile*")
    ['proxyless_mobile', 'proxyless_mobile_14']

    Args:
        pattern: as in ``"proxyless_w*"``.
        pretrained: only models with published weights.
    """
    names = sorted(fnmatch.filter(MODEL_NAMES, pattern))
    if pretrained:
        names = [name for name in names if name in read_manifest()]
    return names


Model = TypeVar("Model", bound=ImageClassifier, covariant=True)


class Builder(Protocol[Model]):
    """The signature of every function here."""

    __name__: str

    def __call__(
        self,
        pretrained: bool = False,
        progress: bool = True,
        *,
        weights: str | os.PathLike[str] | Weights | None = None,
        num_classes: int | None = None,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> Model:
        """Build the model."""


_PARAMETERS = list(inspect.signature(Builder.__call__).parameters.values())[1:]  # without self
_DEFAULTS = {p.name: p.default for p in _PARAMETERS if p.kind is p.KEYWORD_ONLY}
_ARGUMENTS = """
Args:
    pretrained: load the published weights, from the package, the cache or the network.
    progress: show a bar while downloading.
    weights: load these instead: a local file, a zoo name or a get_weights() record.
    num_classes: outputs; 0 returns embeddings; None takes the weights' or the published number.
    in_chans: input channels; the stem's weights are adapted.
    global_pool: "avg", "max", "avgmax", or "" to keep the feature map (with num_classes=0).
    drop_rate: dropout before the classifier.
    drop_path_rate: stochastic depth.

Returns:
    The model, in training mode. model.preprocessing is what its images need, model.predict(photo) names what
    is on one.

Raises:
    WeightsFetchError, WeightsCorruptError, WeightsMismatchError: see create_model.
"""


def _builder(name: str, kind: type[Model], summary: str, *, alias: str | None = None) -> Builder[Model]:
    """Return an ordinary function, with name, signature and docstring, that builds one published model."""

    def build(pretrained: bool = False, progress: bool = True, **options: Any) -> Model:
        return cast("Model", create_model(name, pretrained, progress, **{**_DEFAULTS, **options}))

    build.__name__ = build.__qualname__ = alias or name
    build.__doc__ = summary + "\n" + _ARGUMENTS
    signature = inspect.Signature(_PARAMETERS, return_annotation=kind.__name__)
    build.__signature__ = signature  # type: ignore[attr-defined]
    return build


proxyless_gpu = _builder(
    "proxyless_gpu",
    ProxylessNAS,
    """ProxylessNAS-GPU, specialised for a V100: short and wide, with large kernels.

7.12 M parameters, 465 M MACs at 224 pixels; ImageNet top-1 error 24.9 % (published, not re-measured).""",
)
proxyless_cpu = _builder(
    "proxyless_cpu",
    ProxylessNAS,
    """ProxylessNAS-CPU, specialised for a Xeon E5-2640 v4: deep, mostly 3x3 kernels.

4.36 M parameters, 439 M MACs at 224 pixels; ImageNet top-1 error 24.7 % (published, not re-measured).""",
)
proxyless_mobile = _builder(
    "proxyless_mobile",
    ProxylessNAS,
    """ProxylessNAS-Mobile, specialised for a Pixel 1.

4.08 M parameters, 320 M MACs at 224 pixels; ImageNet top-1 error 25.4 % (published, not re-measured).""",
)
_MOBILE_14 = """ProxylessNAS-Mobile, 1.4 times as wide or so.

6.86 M parameters, 581 M MACs at 224 pixels; ImageNet top-1 error 23.3 % (published, not re-measured)."""
proxyless_mobile_14 = _builder("proxyless_mobile_14", ProxylessNAS, _MOBILE_14)
#: The name older documentation used.
proxyless_mobile14 = _builder("proxyless_mobile_14", ProxylessNAS, _MOBILE_14, alias="proxyless_mobile14")
proxyless_w025_r112 = _builder(
    "proxyless_w025_r112",
    ProxylessNAS,
    """A tiny ImageNet model for images of 112 pixels.

0.57 M parameters, 10.7 M MACs; its weights want mean = std = 0.5, which model.preprocessing knows.""",
)
proxyless_w03_r176 = _builder(
    "proxyless_w03_r176",
    ProxylessNAS,
    """A tiny ImageNet model for images of 176 pixels.

0.75 M parameters, 38.3 M MACs; ImageNet top-1 error 43.0 % (published, not re-measured). Its weights want
mean = std = 0.5, which model.preprocessing knows.""",
)
proxyless_cifar = _builder(
    "proxyless_cifar",
    PyramidTreeNet,
    """The tree-structured CIFAR-10 model of the paper, found by gradient search.

5.73 M parameters, 1,213 M MACs at 32 pixels; CIFAR-10 error 2.08 % (published, not re-measured).""",
)
proxyless_cifar10_demo = _builder(
    "proxyless_cifar10_demo",
    ProxylessNAS,
    """A small CIFAR-10 model whose weights come with the package: pretrained=True needs no network.

0.82 M parameters, 67 M MACs at 32 pixels; trained by this project, not the authors. Its accuracy is in
get_weights("proxyless_cifar10_demo").metrics, how it was made in .training.""",
)


def proxyless_custom(
    arch: str | os.PathLike[str] | Arch | TreeArch | None = None,
    weights: str | os.PathLike[str] | None = None,
    progress: bool = True,
    *,
    num_classes: int | None = None,
    in_chans: int | None = None,
    global_pool: str | None = None,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
) -> ImageClassifier:
    """Any other model: one that a search found, or that was trained or written down by somebody.

    Args:
        arch: an architecture, its text ("Arch(...)"), or the path of a file that holds it (.txt, the original
            net.config, .safetensors); None takes the one in the header of the weights.
        weights: a .safetensors or .pth file; None leaves the weights random.
        progress: as everywhere; a local file needs no bar.
        num_classes: outputs; 0 returns embeddings; None takes the weights' or the architecture's.
        in_chans: input channels; the stem's weights are adapted.
        global_pool: "avg", "max", "avgmax", or "" to keep the feature map (with num_classes=0).
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth.

    Raises:
        ValueError: neither an architecture nor weights are given.
        ArchError, WeightsNotFoundError, WeightsCorruptError, WeightsMismatchError: see create_model.
    """
    if isinstance(arch, str) and "(" in arch and not os.path.exists(arch):
        arch = Arch.parse(arch)
    found = weights if arch is None else arch
    if found is None:
        raise ValueError(
            "proxyless_custom needs arch=..., or weights=... of a file that holds its architecture"
        )
    return create_model(
        found,
        progress=progress,
        weights=weights,
        num_classes=num_classes,
        in_chans=in_chans,
        global_pool=global_pool,
        drop_rate=drop_rate,
        drop_path_rate=drop_path_rate,
    )
