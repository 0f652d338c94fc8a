"""One function a published net, all of one signature: what ``torch.hub`` shows and most people call."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, cast

from .builders import create_model
from .model import ProxylessNAS
from .pyramid import PyramidTreeNet

if TYPE_CHECKING:
    from .weights import Weights


def proxyless_gpu(
    pretrained: bool = False,
    progress: bool = True,
    *,
    weights: str | os.PathLike[str] | Weights | None = None,
    num_classes: int | None = None,
    in_chans: int = 3,
    global_pool: str = "avg",
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
) -> ProxylessNAS:
    """ProxylessNAS-GPU, specialised for a V100 GPU of 2018: short and wide.

    7.12 M parameters, 465 M MACs at 224 pixels; published ImageNet top-1 error 24.9 %.
    Arguments and errors: see :func:`create_model`.

    >>> model = proxyless_gpu(num_classes=10)
    """
    model = create_model(
        "proxyless_gpu",
        pretrained,
        progress,
        weights=weights,
        num_classes=num_classes,
        in_chans=in_chans,
        global_pool=global_pool,
        drop_rate=drop_rate,
        drop_path_rate=drop_path_rate,
    )
    return cast(ProxylessNAS, model)


def proxyless_cpu(
    pretrained: bool = False,
    progress: bool = True,
    *,
    weights: str | os.PathLike[str] | Weights | None = None,
    num_classes: int | None = None,
    in_chans: int = 3,
    global_pool: str = "avg",
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
) -> ProxylessNAS:
    """ProxylessNAS-CPU, specialised for a Xeon E5-2640 v4 CPU.

    4.36 M parameters, 439 M MACs at 224 pixels; published ImageNet top-1 error 24.7 %.
    Arguments and errors: see :func:`create_model`.

    >>> model = proxyless_cpu(num_classes=10)
    """
    model = create_model(
        "proxyless_cpu",
        pretrained,
        progress,
        weights=weights,
        num_classes=num_classes,
        in_chans=in_chans,
        global_pool=global_pool,
        drop_rate=drop_rate,
        drop_path_rate=drop_path_rate,
    )
    return cast(ProxylessNAS, model)


def proxyless_mobile(
    pretrained: bool = False,
    progress: bool = True,
    *,
    weights: str | os.PathLike[str] | Weights | None = None,
    num_classes: int | None = None,
    in_chans: int = 3,
    global_pool: str = "avg",
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
) -> ProxylessNAS:
    """ProxylessNAS-Mobile, specialised for a Pixel 1 phone.

    4.08 M parameters, 320 M MACs at 224 pixels; published ImageNet top-1 error 25.4 %.
    Arguments and errors: see :func:`create_model`.

    >>> model = proxyless_mobile(num_classes=10)
    """
    model = create_model(
        "proxyless_mobile",
        pretrained,
        progress,
        weights=weights,
        num_classes=num_classes,
        in_chans=in_chans,
        global_pool=global_pool,
        drop_rate=drop_rate,
        drop_path_rate=drop_path_rate,
    )
    return cast(ProxylessNAS, model)


def proxyless_mobile_14(
    pretrained: bool = False,
    progress: bool = True,
    *,
    weights: str | os.PathLike[str] | Weights | None = None,
    num_classes: int | None = None,
    in_chans: int = 3,
    global_pool: str = "avg",
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
) -> ProxylessNAS:
    """ProxylessNAS-Mobile-14, the wide variant (about 1.4 times) of ``proxyless_mobile``.

    6.86 M parameters, 581 M MACs at 224 pixels; published ImageNet top-1 error 23.3 %.
    Arguments and errors: see :func:`create_model`.

    >>> model = proxyless_mobile_14(num_classes=10)
    """
    model = create_model(
        "proxyless_mobile_14",
        pretrained,
        progress,
        weights=weights,
        num_classes=num_classes,
        in_chans=in_chans,
        global_pool=global_pool,
        drop_rate=drop_rate,
        drop_path_rate=drop_path_rate,
    )
    return cast(ProxylessNAS, model)


def proxyless_w025_r112(
    pretrained: bool = False,
    progress: bool = True,
    *,
    weights: str | os.PathLike[str] | Weights | None = None,
    num_classes: int | None = None,
    in_chans: int = 3,
    global_pool: str = "avg",
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
) -> ProxylessNAS:
    """ProxylessNAS-w0.25-r112, a tiny ImageNet net for 112-pixel images.

    0.57 M parameters; its weights expect mean = std = 0.5 (``model.preprocessing``).
    Arguments and errors: see :func:`create_model`.

    >>> model = proxyless_w025_r112(num_classes=10)
    """
    model = create_model(
        "proxyless_w025_r112",
        pretrained,
        progress,
        weights=weights,
        num_classes=num_classes,
        in_chans=in_chans,
        global_pool=global_pool,
        drop_rate=drop_rate,
        drop_path_rate=drop_path_rate,
    )
    return cast(ProxylessNAS, model)


def proxyless_w03_r176(
    pretrained: bool = False,
    progress: bool = True,
    *,
    weights: str | os.PathLike[str] | Weights | None = None,
    num_classes: int | None = None,
    in_chans: int = 3,
    global_pool: str = "avg",
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
) -> ProxylessNAS:
    """ProxylessNAS-w0.3-r176, a tiny ImageNet net for 176-pixel images.

    0.75 M parameters; its weights expect mean = std = 0.5 (``model.preprocessing``).
    Arguments and errors: see :func:`create_model`.

    >>> model = proxyless_w03_r176(num_classes=10)
    """
    model = create_model(
        "proxyless_w03_r176",
        pretrained,
        progress,
        weights=weights,
        num_classes=num_classes,
        in_chans=in_chans,
        global_pool=global_pool,
        drop_rate=drop_rate,
        drop_path_rate=drop_path_rate,
    )
    return cast(ProxylessNAS, model)


def proxyless_cifar(
    pretrained: bool = False,
    progress: bool = True,
    *,
    weights: str | os.PathLike[str] | Weights | None = None,
    num_classes: int | None = None,
    in_chans: int = 3,
    global_pool: str = "avg",
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
) -> PyramidTreeNet:
    """ProxylessNAS-CIFAR, the tree-structured CIFAR-10 net of the paper.

    5.73 M parameters, 1,213 M MACs at 32 pixels; published CIFAR-10 error 2.08 %.
    Arguments and errors: see :func:`create_model`.

    >>> model = proxyless_cifar(num_classes=10)
    """
    model = create_model(
        "proxyless_cifar",
        pretrained,
        progress,
        weights=weights,
        num_classes=num_classes,
        in_chans=in_chans,
        global_pool=global_pool,
        drop_rate=drop_rate,
        drop_path_rate=drop_path_rate,
    )
    return cast(PyramidTreeNet, model)


def proxyless_mobile14(
    pretrained: bool = False,
    progress: bool = True,
    *,
    weights: str | os.PathLike[str] | Weights | None = None,
    num_classes: int | None = None,
    in_chans: int = 3,
    global_pool: str = "avg",
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
) -> ProxylessNAS:
    """Alias of :func:`proxyless_mobile_14`, the name older documentation used.

    6.86 M parameters, 581 M MACs at 224 pixels; published ImageNet top-1 error 23.3 %.
    Arguments and errors: see :func:`create_model`.

    >>> model = proxyless_mobile14(num_classes=10)
    """
    model = create_model(
        "proxyless_mobile_14",
        pretrained,
        progress,
        weights=weights,
        num_classes=num_classes,
        in_chans=in_chans,
        global_pool=global_pool,
        drop_rate=drop_rate,
        drop_path_rate=drop_path_rate,
    )
    return cast(ProxylessNAS, model)
