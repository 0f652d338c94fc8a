"""The models of a benchmark: ours, torchvision's and timm's, with what is known about their accuracy."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import importlib.util
import os
import pickle
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..arch.arch import Arch
from ..arch.tree import TreeArch
from ..errors import (
    LatencyError,
    MissingExtraError,
    ProxylessError,
    UnknownModelError,
    first_line,
    missing_extra,
)
from ..models.factory import create_model
from ..models.loading import read_header
from ..models.profile import profile
from ..models.resolve import resolve
from ..runtimes.base import ModelSpec
from ..runtimes.files import file_runtimes, input_size_of, report_of

#: What most papers compare with; measured beside ImageNet models unless that is unwanted, timm's if it is
#: installed.
PEERS = (
    "torchvision/mobilenet_v2", "torchvision/mobilenet_v3_large", "torchvision/efficientnet_b0",
    "timm/mobilenetv3_large_100", "timm/efficientnet_lite0", "timm/mnasnet_100",
)  # fmt: skip
#: Top-1 accuracy in percent of timm's default weights (name, tag), at 224 px, from its list of results; the
#: installed package has none.
_TIMM_RESULTS = "results/results-imagenet.csv of github.com/huggingface/pytorch-image-models, commit 0173a13"
_TIMM_TOP1 = {
    ("mobilenetv3_large_100", "ra_in1k"): 75.766,
    ("efficientnet_lite0", "ra_in1k"): 75.480,
    ("mnasnet_100", "rmsp_in1k"): 74.650,
}
_TIMM_SIDE = 224
#: The authors' four ImageNet models.
SPECIALISED = ("proxyless_gpu", "proxyless_cpu", "proxyless_mobile", "proxyless_mobile_14")

_IMAGENET_CLASSES = 1000


@dataclass(frozen=True)
class BenchModel:
    """A model that is measured.

    Attributes:
        name: of the model; torchvision's and timm's as in "timm/mnasnet_100".
        spec: what the measuring process loads.
        params: number of parameters; 0 where a file does not tell.
        macs: multiply-accumulates for one image of the size in ``spec``; 0 likewise.
        num_classes: outputs.
        top1: accuracy in percent at that size, if it is known.
        top1_status: "published" (by others, not re-measured), "measured here" (by this project), or None.
        top1_source: who says so.
        dataset: whose images ``top1`` is about, "imagenet" or "cifar10"; None without ``top1``.
        peer: another library's model.
    """

    name: str
    spec: ModelSpec
    params: int
    macs: int
    num_classes: int
    top1: float | None = None
    top1_status: str | None = None
    top1_source: str | None = None
    dataset: str | None = None
    peer: bool = False


def open_models(
    words: Iterable[str | os.PathLike[str] | Arch | TreeArch],
    folder: Path,
    *,
    image_size: int | None = None,
    peers: Sequence[str] | None = None,
) -> tuple[list[BenchModel], list[str]]:
    """Return the models to be measured, and what a user should know about them.

    Args:
        words: models of the zoo, files with an architecture, architectures, "torchvision/NAME", "timm/NAME",
            exported files (:mod:`.files`).
        folder: for files that the measuring processes read.
        image_size: side of the input in pixels; None takes each model's own.
        peers: other libraries' models that are added if there is an ImageNet model. One that cannot be had is
            left out, with a note unless it is timm's and timm is not there at all; one among ``words`` would
            be an error.

    Raises:
        UnknownModelError, ArchError: there is no such model.
        MissingExtraError: a model's library is not installed.
        LatencyError: a model does not take images of this size.
    """
    if image_size is not None and image_size < 1:
        raise LatencyError(f"the image size must be at least 1 px, not {image_size}")
    models: list[BenchModel] = []
    notes: list[str] = []
    seen: Counter[str] = Counter()
    for word in dict.fromkeys(words):
        model = _open(word, folder, image_size)
        seen[model.name] += 1
        if seen[model.name] > 1:  # two files may hold models of the same name
            model = dataclasses.replace(model, name=f"{model.name} ({seen[model.name]})")
        models.append(model)
    if peers and any(model.num_classes == _IMAGENET_CLASSES for model in models):
        for word in peers:
            if any(word == model.name for model in models) or (word.startswith("timm/") and not _has_timm()):
                continue
            try:
                models.append(_open(word, folder, image_size))
            except (MissingExtraError, UnknownModelError) as e:  # another version may lack a model
                notes.append(f"{word} is left out: {e}")
    elif peers:
        notes.append("other libraries' models are left out: none of these is an ImageNet model")
    return models, notes


def _has_timm() -> bool:
    """Tell whether timm is installed, in whatever state."""
    try:
        return importlib.util.find_spec("timm") is not None
    except ValueError:  # somebody put None in its place in sys.modules
        return False


def _open(word: str | os.PathLike[str] | Arch | TreeArch, folder: Path, image_size: int | None) -> BenchModel:
    if isinstance(word, str):
        library, _, name = word.partition("/")
        if library == "torchvision":
            return _from_torchvision(name, folder, image_size)
        if library == "timm":
            return _from_timm(name, folder, image_size)
    if not isinstance(word, (Arch, TreeArch)) and file_runtimes(word):
        return _exported(word, image_size)
    return _own(word, image_size)


def _exported(file: str | os.PathLike[str], image_size: int | None) -> BenchModel:
    """Return an exported file, with what the report beside it tells."""
    size = input_size_of(file) or (3, 224, 224)
    if image_size is not None:
        size = (size[0], image_size, image_size)
    model = BenchModel(Path(file).name, ModelSpec("file", os.path.abspath(file), size), 0, 0, 0)
    known = report_of(file).get("net")
    if not isinstance(known, dict) or not isinstance(known.get("arch"), str):
        return model
    try:
        arch = Arch.parse(known["arch"])
        with torch.device("meta"):
            params, macs = _counted(
                create_model(arch, num_classes=known.get("num_classes")), size, model.name
            )
    except (ProxylessError, ValueError):  # a report that somebody changed: the file itself may be sound
        return model
    return dataclasses.replace(
        model, params=params, macs=macs, num_classes=int(known.get("num_classes") or 0)
    )


def _own(word: str | os.PathLike[str] | Arch | TreeArch, image_size: int | None) -> BenchModel:
    found = resolve(word)
    arch, name, record = found.arch, found.name, found.weights
    stored = read_header(found.path).preprocessing if found.path is not None else None
    with torch.device("meta"):
        model = create_model(arch)
        model.preprocessing = record.preprocessing if record else stored or model.preprocessing
        own_size = model.input_size[1]
        side = own_size if image_size is None else image_size
        size = (arch.in_channels, side, side)
        params, macs = _counted(model, size, name)
    entry = BenchModel(name or "net", ModelSpec("arch", str(arch), size), params, macs, arch.num_classes)
    if record is None or size[1] != own_size or record.metrics.get("top1") is None:
        return entry
    return dataclasses.replace(
        entry,
        top1=float(record.metrics["top1"]),
        top1_status="measured here" if record.metrics["status"] == "measured" else "published",
        top1_source=str(record.metrics.get("source") or ""),
        dataset=record.dataset,
    )


def _published(model: BenchModel, top1: float, source: str) -> BenchModel:
    return dataclasses.replace(
        model, top1=top1, top1_status="published", top1_source=source, dataset="imagenet"
    )


def _from_torchvision(name: str, folder: Path, image_size: int | None) -> BenchModel:
    try:
        models: Any = importlib.import_module("torchvision.models")
    except Exception as e:  # a build for another torch raises whatever it likes
        raise missing_extra("torchvision", f"torchvision/{name}") from e
    known = models.list_models(module=models)
    if name not in known:
        raise _unknown("torchvision", name, known)
    model = models.get_model(name, weights=None)
    entry = BenchModel(f"torchvision/{name}", ModelSpec("module", "", (3, 224, 224)), 0, 0, 0, peer=True)
    weights = models.get_model_weights(name).DEFAULT
    own_size = int(weights.transforms.keywords.get("crop_size", 224))
    top1 = weights.meta.get("_metrics", {}).get("ImageNet-1K", {}).get("acc@1")
    if top1 is not None and image_size in (None, own_size):
        entry = _published(entry, float(top1), f"torchvision, {type(weights).__name__}.{weights.name}")
    side = own_size if image_size is None else image_size
    return _saved(entry, model, (3, side, side), folder)


def _from_timm(name: str, folder: Path, image_size: int | None) -> BenchModel:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its own deprecations are none of the user's concern
            timm: Any = importlib.import_module("timm")
    except Exception as e:
        raise missing_extra("timm", f"timm/{name}") from e
    if not timm.is_model(name):
        raise _unknown("timm", name, timm.list_models())
    model = timm.create_model(name, pretrained=False)
    weights = model.pretrained_cfg
    channels, height, width = weights.get("input_size", (3, 224, 224))
    entry = BenchModel(f"timm/{name}", ModelSpec("module", "", (3, 224, 224)), 0, 0, 0, peer=True)
    if image_size is not None:
        height = width = image_size
    top1 = _TIMM_TOP1.get((str(weights.get("architecture")), str(weights.get("tag"))))
    if top1 is not None and height == width == _TIMM_SIDE:
        entry = _published(entry, top1, f"timm, weights {weights['tag']}: {_TIMM_RESULTS}")
    return _saved(entry, model, (channels, height, width), folder)


def _saved(entry: BenchModel, model: nn.Module, size: tuple[int, int, int], folder: Path) -> BenchModel:
    """Return the model with its module in a file."""
    model.eval().requires_grad_(False)
    params, macs = _counted(model, size, entry.name)
    file = folder / (entry.name.replace("/", "-") + ".pickle")
    with file.open("wb") as stream:
        pickle.dump(model, stream)
    with torch.inference_mode():
        classes = int(model(torch.zeros(1, *size)).shape[-1])  # names of it differ from library to library
    return dataclasses.replace(
        entry, spec=ModelSpec("module", str(file), size), params=params, macs=macs, num_classes=classes
    )


def _counted(model: nn.Module, size: tuple[int, int, int], name: str) -> tuple[int, int]:
    try:
        counted = profile(model, size)
    except (AssertionError, RuntimeError, ValueError) as e:
        raise LatencyError(f"{name} does not take images of {size[1]} x {size[2]} px: {first_line(e)}") from e
    return counted.params, counted.macs


def _unknown(library: str, name: str, known: Sequence[str]) -> UnknownModelError:
    near = difflib.get_close_matches(name, known, 3)
    hint = f"; did you mean {', '.join(f'{library}/{n}' for n in near)}?" if near else ""
    return UnknownModelError(f"{library} has no model {name!r}{hint}")
