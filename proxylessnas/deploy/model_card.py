"""The ``README.md`` of a model on the Hugging Face Hub: YAML for machines, then Markdown for people."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .._version import __version__
from ..errors import ProxylessError, needs
from ..models.base import ImageClassifier
from ..models.profile import profile
from ..train.evaluate import Evaluation
from ..weights.record import Weights

if TYPE_CHECKING:
    from torch import Tensor

LIBRARY = "proxylessnas"
TASK = "image-classification"

#: Names of this package's data sets on the Hub, and for people.
_DATASETS = {"imagenet": ("imagenet-1k", "ImageNet-1k"), "cifar10": ("cifar10", "CIFAR-10")}

_TEMPLATE = """\
---
{{ card_data }}
---

# {{ name }}

A convolutional model for images, made of MBConv blocks or tree cells that were found by search.

{% if side -%}
- {{ "%.2f" % (profile.params / 1e6) }} million parameters, {{ "%.1f" % (profile.macs / 1e6) }} million \
multiply-adds for an image of {{ side }} x {{ side }} px
{% endif -%}
- {{ model.num_classes ~ " classes" if model.num_classes else "embeddings" }}, {{ model.in_chans }} input \
channels
{%- if model.preprocessing %}
- images are prepared so: {{ model.preprocessing }}
{%- endif %}

Architecture:

```
{{ model.arch }}
```

## Weights

{% if record -%}
The published weights `{{ record.name }}`, unchanged; their file has \
{% if record.sha256 %}SHA-256 `{{ record.sha256 }}`{% else %}git blob `{{ record.git_blob }}`{% endif %}.
{%- for training in trainings %}

Trained on {{ training.data }}, {{ training.date }}: `{{ training.command }}`
{%- endfor %}
{%- elif model.weights -%}
The model was made from the published weights `{{ model.weights.name }}` ({{ model.weights.license }}); it \
is not known to have just these.
{%- else -%}
Not published by this package's authors.
{%- endif %}

{{ "Licence: " ~ license ~ "." if license else "No licence is stated." }}

## Accuracy
{% if rows %}
| | | |
|---|---|---|
{% for label, value, status in rows -%}
| {{ label }} | {{ "%.2f" % value }} % | {{ status }} |
{% endfor -%}
{% if rows[0][2] == metrics.status %}
{%- if metrics.images %}
Of {{ metrics.images }}.
{% endif %}
Source: {{ metrics.source }}.
{% endif %}
{%- elif not metrics.measured %}
Not stated.
{% endif -%}
{% if not rows or rows[0][2] == metrics.status %}
{%- for part in metrics.measured %}
Measured by this package's authors on {{ "{:,}".format(part.n) }} {{ part.images }}: top-1 \
{{ "%.2f" % part.top1 }} %, top-5 {{ "%.2f" % part.top5 }} %.
{% endfor %}
{%- endif %}
## Use

```python
# pip install 'proxylessnas[hub]'
from proxylessnas.deploy.hub import from_pretrained

model = from_pretrained("OWNER/NAME")  # or a folder
print(model.predict("photo.jpg"))
```

`model.safetensors` holds architecture, preprocessing and class names in its header too;
`proxylessnas.create_model("model.safetensors")` opens it without anything else. Written by proxylessnas
{{ version }}.

## Paper

Han Cai, Ligeng Zhu, Song Han: ProxylessNAS: Direct Neural Architecture Search on Target Task and Hardware,
ICLR 2019, [arXiv:1812.00332](https://arxiv.org/abs/1812.00332)
"""


def hub_library() -> Any:
    """Return the package huggingface_hub.

    Raises:
        MissingExtraError: it is not installed or broken.
    """
    with needs("huggingface_hub", "the Hugging Face Hub", extra="hub"):
        for module in ("constants", "errors"):  # not always imported with it
            import_module(f"huggingface_hub.{module}")
        return import_module("huggingface_hub")


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
    side = model.preprocessing.input_size if model.preprocessing else getattr(model.arch, "resolution", None)
    trainings = [record.training] if record and record.training else []
    while trainings and trainings[-1].get("before"):
        trainings.append(trainings[-1]["before"])
    card = hub.ModelCard.from_template(
        data,
        template_str=_TEMPLATE,
        name=name,
        model=model,
        side=side,
        profile=profile(model) if side else None,
        record=record,
        trainings=trainings,
        metrics=record.metrics if record else {},
        license=license,
        rows=rows,
        version=__version__,
    )
    return f"{card}\n"


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
