"""The ``README.md`` of a model on the Hugging Face Hub: YAML for machines, then Markdown for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._version import __version__
from ..errors import ProxylessError
from ..models.base import ImageClassifier
from ..models.profile import profile
from ..train.evaluate import Evaluation
from ..weights.record import Weights
from .hub_files import LIBRARY, hub_library

if TYPE_CHECKING:
    from torch import Tensor

TASK = "image-classification"

#: Names of this package's data sets on the Hub, and for people.
_DATASETS = {"imagenet": ("imagenet-1k", "ImageNet-1k"), "cifar10": ("cifar10", "CIFAR-10")}

_PAPER = """## Paper

Han Cai, Ligeng Zhu, Song Han: ProxylessNAS: Direct Neural Architecture Search on Target Task and Hardware,
ICLR 2019, [arXiv:1812.00332](https://arxiv.org/abs/1812.00332)
"""


def unchanged_weights(model: ImageClassifier) -> Weights | None:
    """Return the record of the published weights that a model has bit for bit, or None.

    A model that was fine-tuned still knows where its weights came from, but neither the published accuracy
    nor the licence of that file is its own. Nothing is fetched: without the published file in the cache (or
    in the package) the answer is None.
    """
    from ..models.loading import fit_state_dict
    from ..weights.cache import cached_state_dict, verify

    record = model.weights
    if record is None or record.num_classes != model.num_classes:
        return None
    try:
        verify(record)
        published, report = fit_state_dict(model, cached_state_dict(record, progress=False))
    except ProxylessError:
        return None
    own = model.state_dict()
    return record if not report.adapted and all(_same(own[key], t) for key, t in published.items()) else None


def _same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and bool((a.cpu() == b.cpu()).all())


def model_card(
    model: ImageClassifier, name: str, *, license: str | None = None, measured: Evaluation | None = None
) -> str:
    """Return the text of a model card.

    Args:
        model: the model.
        name: its title.
        license: SPDX identifier; None takes that of the published weights, if the model has just these.
        measured: accuracy of this model as :func:`~.train.evaluate.evaluate` found it; None shows the
            published figures, if the model has just these weights, and says that they are.

    Raises:
        MissingExtraError: huggingface_hub is not installed.
    """
    hub = hub_library()
    record = unchanged_weights(model)
    license = license or (record.license if record else None)
    dataset = _DATASETS.get(record.dataset) if record else None
    rows = _figures(record, measured)
    results = [
        hub.EvalResult(
            task_type=TASK,
            dataset_type=dataset[0] if dataset else "other",
            dataset_name=dataset[1] if dataset else "the author's own images",
            metric_type="accuracy",
            metric_name=f"{label} accuracy, percent ({status})",
            metric_value=round(value, 3),
        )
        for label, value, status in rows
    ]
    data = hub.ModelCardData(
        license=license.lower() if license else None,
        library_name=LIBRARY,
        pipeline_tag=TASK,
        tags=[TASK, LIBRARY, "pytorch", "neural-architecture-search"],
        datasets=[dataset[0]] if dataset else None,
        metrics=["accuracy"] if rows else None,
        model_name=name if results else None,
        eval_results=results or None,
    )
    parts = [f"# {name}", _what(model), _origin(model, record, license), _accuracy(rows, record)]
    parts += [_use(), _PAPER]
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(part.strip() for part in parts if part) + "\n"


def _figures(record: Weights | None, measured: Evaluation | None) -> list[tuple[str, float, str]]:
    """Return (label, percent, status) of each known accuracy."""
    if measured is not None:
        status = f"measured on {measured.n} images"
        return [("top-1", measured.top1, status), ("top-5", measured.top5, status)]
    if record is None:
        return []
    status = str(record.metrics["status"])
    values = {"top-1": record.metrics.get("top1"), "top-5": record.metrics.get("top5")}
    return [(label, float(value), status) for label, value in values.items() if value is not None]


def _of_some(record: Weights | None) -> str:
    """Return what was measured with published weights on a part of the images, in words."""
    found = () if record is None else record.metrics.get("measured", ())
    return "".join(
        f"\n\nMeasured by this package's authors on {m['n']:,} {m['images']}: top-1 {m['top1']:.2f} %, "
        f"top-5 {m['top5']:.2f} %."
        for m in found
    )


def _what(model: ImageClassifier) -> str:
    side = model.preprocessing.input_size if model.preprocessing else getattr(model.arch, "resolution", None)
    lines = []
    if side:
        counted = profile(model)
        lines.append(
            f"- {counted.params / 1e6:.2f} million parameters, {counted.macs / 1e6:.1f} million "
            f"multiply-adds for an image of {side} x {side} px"
        )
    outputs = f"{model.num_classes} classes" if model.num_classes else "embeddings"
    lines.append(f"- {outputs}, {model.in_chans} input channels")
    if model.preprocessing:
        lines.append(f"- images are prepared so: {model.preprocessing}")
    return (
        "A convolutional model for images, made of MBConv blocks or tree cells that were found by search.\n\n"
        + "\n".join(lines)
        + f"\n\nArchitecture:\n\n```\n{model.arch}\n```"
    )


def _origin(model: ImageClassifier, record: Weights | None, license: str | None) -> str:
    lines = ["## Weights"]
    if record is not None:
        digest = f"SHA-256 `{record.sha256}`" if record.sha256 else f"git blob `{record.git_blob}`"
        lines.append(f"The published weights `{record.name}`, unchanged; their file has {digest}.")
        training = record.training
        while training:
            lines.append(f"Trained on {training['data']}, {training['date']}: `{training['command']}`")
            training = training.get("before")
    elif model.weights is not None:
        lines.append(
            f"The model was made from the published weights `{model.weights.name}` "
            f"({model.weights.license}); it is not known to have just these."
        )
    else:
        lines.append("Not published by this package's authors.")
    lines.append(f"Licence: {license}." if license else "No licence is stated.")
    return "\n\n".join(lines)


def _accuracy(rows: list[tuple[str, float, str]], record: Weights | None) -> str:
    if not rows:
        return f"## Accuracy\n\n{_of_some(record).strip() or 'Not stated.'}"
    table = "\n".join(f"| {label} | {value:.2f} % | {status} |" for label, value, status in rows)
    source = ""
    if record is not None and rows[0][2] == record.metrics["status"]:
        images = f"\n\nOf {record.metrics['images']}." if record.metrics.get("images") else ""
        source = f"{images}\n\nSource: {record.metrics['source']}.{_of_some(record)}"
    return f"## Accuracy\n\n| | | |\n|---|---|---|\n{table}{source}"


def _use() -> str:
    return f"""## Use

```python
# pip install 'proxylessnas[hub]'
from proxylessnas.deploy.hub import from_pretrained

model = from_pretrained("OWNER/NAME")  # or a folder
print(model.predict("photo.jpg"))
```

`model.safetensors` holds architecture, preprocessing and class names in its header too;
`proxylessnas.create_model("model.safetensors")` opens it without anything else. Written by proxylessnas
{__version__}."""
