"""The base of every model: pooling, classifier, feature maps, frozen BatchNorm, and classes of an image."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..arch.arch import Arch
from ..arch.tree import TreeArch
from ..errors import ImageError, ProxylessError, WeightsCorruptError
from ..utils.checks import Range, is_int
from .layers import LinearLayer

if TYPE_CHECKING:
    from PIL import Image

    from ..data.transforms import Preprocessing
    from ..weights.record import Weights

_T = TypeVar("_T")
POOLS = ("avg", "max", "avgmax", "")


class ImageClassifier(nn.Module):
    """Base of the models: a body that ends in a feature map, global pooling, dropout and a linear classifier.

    Attributes:
        name: how results call it: the published weights' name, or that of the file or run its weights are
            from; else the architecture's.
        arch: the architecture the model was built from.
        num_classes: outputs of the last layer, also of one that replaced it; 0 means embeddings.
        in_chans: channels that the stem takes, also one that replaced it.
        num_features: channels that enter the classifier.
        preprocessing: what images need before they enter the model, or None if it is not known.
        weights: the record of the published weights that were loaded, or None.
        categories: names of the classes, in output order; empty if they are not known. Set your own after
            training; :func:`~proxylessnas.save_weights` keeps them. They belong to the last layer that the
            model had then: where another one replaces it, they are gone.
        wnids: WordNet ids of the classes (ImageNet), or empty; as ``categories``.
        feature_info: one dict a resolution, finest first, with ``num_chs``, ``reduction`` (input pixels per
            map pixel) and ``module`` (dotted name of the block whose output it is);
            :meth:`forward_intermediates` returns these maps.
    """

    # TorchScript is not to compile them.
    __jit_unused_properties__ = ("num_classes", "in_chans", "categories", "wnids", "has_old_names")

    def __init__(self, arch: Arch | TreeArch, num_features: int, drop_rate: float) -> None:
        super().__init__()
        self.name = arch.name
        self.arch = arch
        self.num_features = num_features
        self.drop_rate = check_rate("drop_rate", drop_rate)
        self.feature_info: list[dict[str, Any]] = []
        self.preprocessing: Preprocessing | None = None
        self.weights: Weights | None = None
        self._names: dict[str, tuple[tuple[str, ...], nn.Module | None]] = {}
        self._frozen_bn = self._frozen_affine = False
        self.num_classes = -1
        self.in_chans = arch.in_channels

    def _last_layer(self) -> nn.Module | None:
        """Return the layer whose outputs are the classes; None without a linear one."""
        head = self._modules.get("classifier")  # None while the model is being built
        layers = [] if head is None else [m for m in head.modules() if isinstance(m, nn.Linear)]
        return layers[-1] if layers else None

    @property
    def num_classes(self) -> int:  # noqa: D102 - an attribute: see the class
        layer = self._last_layer()
        if isinstance(layer, nn.Linear):
            return layer.out_features
        return 0 if isinstance(self._modules.get("classifier"), nn.Identity) else self._num_classes

    @num_classes.setter
    def num_classes(self, value: int) -> None:
        self._num_classes = value  # what holds for a classifier that does not say it itself

    @property
    def in_chans(self) -> int:  # noqa: D102
        stem = next((m for m in self.modules() if isinstance(m, nn.Conv2d)), None)
        return self._in_chans if stem is None else stem.in_channels

    @in_chans.setter
    def in_chans(self, value: int) -> None:
        self._in_chans = value

    @property
    def categories(self) -> tuple[str, ...]:  # noqa: D102
        return self._names_of_outputs("categories")

    @categories.setter
    def categories(self, names: Sequence[str]) -> None:
        self._names["categories"] = (tuple(names), self._last_layer())

    @property
    def wnids(self) -> tuple[str, ...]:  # noqa: D102
        return self._names_of_outputs("wnids")

    @wnids.setter
    def wnids(self, names: Sequence[str]) -> None:
        self._names["wnids"] = (tuple(names), self._last_layer())

    @property
    def has_old_names(self) -> bool:
        """Whether class names were set for a last layer that was replaced since."""
        return any(names and not self._names_of_outputs(kind) for kind, (names, _) in self._names.items())

    def _names_of_outputs(self, kind: str) -> tuple[str, ...]:
        """Return names that were set for the last layer that is there now, or none."""
        names, layer = self._names.get(kind, ((), None))
        return names if layer is self._last_layer() else ()

    def _set_head(self, num_classes: int | None, global_pool: str, device: Any, dtype: Any = None) -> None:
        """Set pooling and classifier; a model's constructor does so last, which keeps the original order."""
        num_classes = self.arch.num_classes if num_classes is None else num_classes
        if not is_int(num_classes, 0):
            raise ValueError(f"num_classes must be a whole number, 0 for embeddings, not {num_classes!r}")
        if global_pool not in POOLS:
            raise ValueError(f"global_pool must be one of {', '.join(map(repr, POOLS))}, not {global_pool!r}")
        if num_classes and not global_pool:
            raise ValueError(
                "global_pool='' keeps the feature map, which a classifier cannot take: use num_classes=0"
            )
        self.num_classes = num_classes
        self.global_pool = global_pool
        features = self.num_features
        self.classifier: nn.Module = (
            LinearLayer(features, num_classes, device, dtype) if num_classes else nn.Identity()
        )

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new, randomly initialised one of the same device and dtype.

        Args:
            num_classes: outputs; 0 makes the model return embeddings.
            global_pool: "avg", "max", "avgmax" (mean of the two) or "" (no pooling, with num_classes=0); None
                keeps it.

        Raises:
            ValueError: a value is out of range.
        """
        like = next(self.parameters())
        pool = self.global_pool if global_pool is None else global_pool
        self._set_head(num_classes, pool, like.device, like.dtype)
        self.categories, self.wnids = (), ()  # a new classifier has new classes
        self.classifier.train(self.training)

    def stem_and_blocks(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield ``(module name, output)`` after the stem and after every block."""
        raise NotImplementedError  # pragma: no cover

    @property
    def input_size(self) -> tuple[int, int, int]:
        """(channels, height, width) of its images, as preprocessing or architecture say; else 224 px."""
        side = self.preprocessing.input_size if self.preprocessing else self.arch.resolution or 224
        return self.in_chans, side, side

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last feature map, [N, num_features, H / reduction, W / reduction], before pooling."""
        raise NotImplementedError  # pragma: no cover

    def forward_head(self, x: Tensor) -> Tensor:
        """Pool, drop out and classify a last feature map: [N, num_features, h, w] to [N, num_classes]."""
        if self.global_pool == "avg":
            x = x.mean((2, 3))
        elif self.global_pool == "max":
            x = x.amax((2, 3))
        elif self.global_pool == "avgmax":
            x = 0.5 * (x.mean((2, 3)) + x.amax((2, 3)))
        if self.drop_rate:
            x = F.dropout(x, self.drop_rate, self.training)
        return self.classifier(x)

    def forward(self, x: Tensor) -> Tensor:
        """Map images [N, in_chans, H, W] to logits [N, num_classes] (embeddings if num_classes is 0)."""
        return self.forward_head(self.forward_features(x))

    def predict(self, image: str | os.PathLike[str] | Image.Image | Tensor, top: int = 5) -> list[Prediction]:
        """Name the most probable classes of one image, preprocessed as the weights want it.

        Args:
            image: a file, a Pillow image, or a uint8 tensor [3, H, W].
            top: how many classes.

        Returns:
            The best classes, best first, each ``(name, probability, class_index, wnid)``; the name is the
            class's number where ``categories`` is empty. The model runs in evaluation mode and is left as it
            was.

        Raises:
            ImageError: the file cannot be read as an image.
            ProxylessError: the model's preprocessing is not known, it has no classifier, or it does not take
                three channels.
            ValueError: ``top`` is below 1.
        """
        from ..data.images import load_image

        if self.preprocessing is None:
            raise ProxylessError(
                f"the preprocessing of {self.name!r} is not known; set model.preprocessing to a "
                "proxylessnas.Preprocessing with the values it was trained with"
            )
        if not self.num_classes:
            raise ProxylessError(
                f"{self.name!r} has no classifier (num_classes=0): call the model for embeddings"
            )
        if top < 1:
            raise ValueError(f"top must be at least 1, not {top}")
        if self.in_chans != 3:
            raise ProxylessError(
                f"{self.name!r} takes images of {self.in_chans} channel(s) and photos have 3: "
                "prepare its input yourself and call the model"
            )
        if isinstance(image, (str, os.PathLike)):
            image = load_image(image)
        if getattr(image, "ndim", 3) != 3:
            raise ImageError(
                "predict takes one image; for a batch call the model on preprocessing.build()(images)"
            )
        like = next(self.parameters())
        inputs = self.preprocessing.build()(image)[None].to(like.device, like.dtype)
        with evaluation_mode(self):
            found = top_classes(self, inputs, top)[0]
        names, wnids = (
            known if len(known) == self.num_classes else () for known in (self.categories, self.wnids)
        )
        return [
            Prediction(names[i] if names else str(i), p, i, wnids[i] if wnids else None) for i, p in found
        ]

    def forward_intermediates(self, x: Tensor, indices: int | Sequence[int] | None = None) -> list[Tensor]:
        """Return the feature maps that ``feature_info`` describes, finest first.

        Blocks behind the last wanted map are not run.

        Args:
            x: images, [N, in_chans, H, W].
            indices: which maps, in the order given; negative ones count from the end. A whole number n means
                the last n; None means all.

        Returns:
            Maps of shape [N, info["num_chs"], ceil(H / info["reduction"]), ceil(W / info["reduction"])].

        Raises:
            ValueError: an index is out of range.
        """
        count = len(self.feature_info)
        if indices is None:
            wanted = list(range(count))
        elif isinstance(indices, int):
            if not 0 < indices <= count:
                raise ValueError(f"there are {count} feature maps; cannot return the last {indices}")
            wanted = list(range(count - indices, count))
        else:
            wanted = [i + count if i < 0 else i for i in indices]
            if any(not 0 <= i < count for i in wanted):
                raise ValueError(f"indices {list(indices)} out of range: there are {count} feature maps")
        if not wanted:
            return []
        names = {self.feature_info[i]["module"] for i in wanted}
        maps: dict[str, Tensor] = {}
        for name, y in self.stem_and_blocks(x):
            if name in names:
                maps[name] = y
                if len(maps) == len(names):
                    break
        return [maps[self.feature_info[i]["module"]] for i in wanted]

    def freeze_bn(self, freeze: bool = True, *, affine: bool = False) -> None:
        """Keep every BatchNorm in evaluation mode, also after ``.train()`` of the model (not of one part).

        Args:
            freeze: False undoes it, with the gradients that ``affine`` stopped.
            affine: also stop the gradients of the scales and shifts.
        """
        affine = affine or (not freeze and self._frozen_affine)
        self._frozen_bn, self._frozen_affine = freeze, freeze and (affine or self._frozen_affine)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.train(self.training and not freeze)
                if affine:
                    module.requires_grad_(not freeze)

    def train(self, mode: bool = True) -> ImageClassifier:
        """Set training mode; BatchNorms frozen by :meth:`freeze_bn` stay in evaluation mode."""
        super().train(mode)
        if self._frozen_bn:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.train(False)
        return self


def unwrapped(model: _T) -> _T | ImageClassifier:
    """Return the model in what torch.compile, DataParallel or AveragedModel made of it, or what is given."""
    inner: Any = model
    while isinstance(inner, nn.Module) and not isinstance(inner, ImageClassifier):
        inner = getattr(inner, "_orig_mod", None) or getattr(inner, "module", None)
    return inner if isinstance(inner, ImageClassifier) else model


def check_rate(name: str, rate: float) -> float:
    """Return a probability, or raise ValueError."""
    allowed = Range(0, 1, open_high=True)
    if rate not in allowed:
        raise ValueError(f"{name} must be {allowed}, not {rate!r}")
    return float(rate)


def check_in_chans(in_chans: int | None, arch: Arch | TreeArch) -> int:
    """Return the number of input channels, the architecture's own if None, or raise ValueError."""
    in_chans = arch.in_channels if in_chans is None else in_chans
    if not is_int(in_chans, 1):
        raise ValueError(f"in_chans must be a whole number of at least 1, not {in_chans!r}")
    return in_chans


class Prediction(NamedTuple):
    """One class of an image.

    Attributes:
        name: the class's name, or its number as text where no names are known.
        probability: 0 to 1.
        class_index: the class's number.
        wnid: its WordNet id ("n02124075") for ImageNet classes, else None.
    """

    name: str
    probability: float
    class_index: int
    wnid: str | None = None


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode and give every part its own mode back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def top_classes(model: nn.Module, inputs: Tensor, k: int = 5) -> list[list[tuple[int, float]]]:
    """Return the ``k`` best classes of each image, best first, as (class index, probability 0 to 1).

    The model, used in the mode it is in, gives logits ``[B, classes]`` of ``inputs``, ``[B, 3, H, W]``.

    Raises:
        WeightsCorruptError: the model's output is not finite.
    """
    with torch.inference_mode():
        logits = model(inputs)
    check_finite(logits.isfinite().all())
    best = logits.float().softmax(1)
    values, indices = best.topk(min(k, best.shape[1]))
    return [list(zip(i, v, strict=True)) for i, v in zip(indices.tolist(), values.tolist(), strict=True)]


def check_finite(finite: Tensor) -> None:
    """Raise if not all logits are finite; ``finite`` says whether, []."""
    if not bool(finite):
        raise WeightsCorruptError(
            "the model's output is not finite (NaN or infinite): the weights are damaged"
        )
