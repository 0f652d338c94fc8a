"""One function a published net, all of one signature: what ``torch.hub`` shows and most people call."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from .arch import Arch
from .builders import create_model
from .classifier import Classifier
from .model import ProxylessNAS
from .pyramid import PyramidTreeNet

if TYPE_CHECKING:
    from .tree_arch import TreeArch
    from .weights import Weights

Net = TypeVar("Net", bound=Classifier, covariant=True)


class Builder(Protocol[Net]):
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
    ) -> Net:
        """Build the net."""


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
    The net, in training mode. model.preprocessing is what its images need, model.predict(photo) names what is
    on one.

Raises:
    WeightsFetchError, WeightsCorruptError, WeightsMismatchError: see create_model.
"""


def _builder(name: str, kind: type[Net], summary: str, *, alias: str | None = None) -> Builder[Net]:
    """Return an ordinary function, with name, signature and docstring, that builds one published net."""

    def build(
        pretrained: bool = False,
        progress: bool = True,
        *,
        weights: str | os.PathLike[str] | Weights | None = None,
        num_classes: int | None = None,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> Net:
        model = create_model(
            name,
            pretrained,
            progress,
            weights=weights,
            num_classes=num_classes,
            in_chans=in_chans,
            global_pool=global_pool,
            drop_rate=drop_rate,
            drop_path_rate=drop_path_rate,
        )
        return cast("Net", model)

    build.__name__ = build.__qualname__ = alias or name
    build.__doc__ = summary + "\n" + _ARGUMENTS
    build.__annotations__["return"] = kind.__name__
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
    """A tiny ImageNet net for images of 112 pixels.

0.57 M parameters, 10.7 M MACs; its weights want mean = std = 0.5, which model.preprocessing knows.""",
)
proxyless_w03_r176 = _builder(
    "proxyless_w03_r176",
    ProxylessNAS,
    """A tiny ImageNet net for images of 176 pixels.

0.75 M parameters, 38.3 M MACs; ImageNet top-1 error 43.0 % (published, not re-measured). Its weights want
mean = std = 0.5, which model.preprocessing knows.""",
)
proxyless_cifar = _builder(
    "proxyless_cifar",
    PyramidTreeNet,
    """The tree-structured CIFAR-10 net of the paper, found by gradient search.

5.73 M parameters, 1,213 M MACs at 32 pixels; CIFAR-10 error 2.08 % (published, not re-measured).""",
)
proxyless_cifar10_demo = _builder(
    "proxyless_cifar10_demo",
    ProxylessNAS,
    """A small CIFAR-10 net whose weights come with the package: pretrained=True needs no network.

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
) -> Classifier:
    """Any other net: one that a search found, or that was trained or written down by somebody.

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
    if arch is None and weights is None:
        raise ValueError(
            "proxyless_custom needs arch=..., or weights=... of a file that holds its architecture"
        )
    if isinstance(arch, str) and "(" in arch and not os.path.exists(arch):
        arch = Arch.parse(arch)
    what = cast("Any", weights if arch is None else arch)
    return create_model(
        what,
        progress=progress,
        weights=weights,
        num_classes=num_classes,
        in_chans=in_chans,
        global_pool=global_pool,
        drop_rate=drop_rate,
        drop_path_rate=drop_path_rate,
    )
