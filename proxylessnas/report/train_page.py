"""The report of a training run: what was asked, what came out, how it went, and how to do it again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..arch.published import PUBLISHED
from ..data.transforms import Preprocessing
from ..errors import ProxylessError
from ..models.loading import Header
from ..utils.progress import clock
from .curves import Line, finite, line_chart
from .model_page import model_part
from .page import Raw, cards, code, details, facts, figure, percent, section, table, tag
from .resolve import profile_of
from .runs import TrainRun

_SHOWN = ("epoch", "train_loss", "val_loss", "val_top1", "val_top5", "rate", "images_per_second", "seconds")


def train_title(run: TrainRun) -> tuple[str, str]:
    """Return the title of a run's page, and the line below it."""
    model = run.begin.get("net") or (run.arch.name if run.arch is not None else "a model")
    state = "finished" if run.result is not None else "not finished"
    about = f"{_data(run) or run.name}, {len(run.epochs)} epochs, {state}"
    return f"{run.name}: training of {model}", about


def train_parts(run: TrainRun, notes: list[str]) -> list[object]:
    """Return the parts of a run's page between its head and its comparison."""
    arch: Any = run.arch
    image = model_part(replace(arch, name=run.name), None, notes) if arch is not None else Raw("")
    missing = (
        tag("p", "No figure of the model: its file is written when the run ends, or cannot be read.")
        if not image
        else Raw("")
    )
    return [
        _cards(run),
        section("What was asked", _asked(run)),
        section("What was found", _found(run), image, missing),
        section("Curves", _curves(run)),
    ]


def _data(run: TrainRun) -> str:
    return str(run.begin.get("data") or run.metadata.get("data", "").rpartition(" (")[0])


def _cards(run: TrainRun) -> Raw:
    rows: list[tuple[str, object, object]] = []
    best, result = run.best, run.result or {}
    if run.top1 is not None:
        rows.append(
            (
                "top-1, validation images",
                percent(run.top1),
                "of the model that was kept" if result else "last epoch",
            )
        )
    if best is not None:
        rows.append(("best epoch", f"{best['epoch']:.0f}", percent(best["val_top1"])))
    if run.epochs:
        seconds = result.get("seconds") or sum(row.get("seconds") or 0.0 for row in run.epochs)
        rows.append(("time", clock(seconds), f"{len(run.epochs)} epochs"))
    if run.arch is not None:
        try:
            size = profile_of(run.arch, _preprocessing(run))
            rows.append(("parameters", f"{size.params:,}", f"{size.macs / 1e6:.3g} M multiply-adds"))
        except ProxylessError:
            pass
    return cards(rows) if rows else Raw("")


def recipe_values(text: str) -> dict[str, str]:
    """Return the values of a recipe's TOML text as they are written there, the first level alone."""
    found = {}
    for line in text.splitlines():
        key, equals, value = line.partition(" = ")
        if equals and key.isidentifier():
            found[key] = value.partition("  #")[0].strip().strip('"')
    return found


def _asked(run: TrainRun) -> Raw:
    values = recipe_values(run.recipe)
    images = dict(run.begin.get("pictures") or {})
    counts = ", ".join(f"{count:,} for {part}" for part, count in images.items() if isinstance(count, int))
    data = _data(run)
    rows: list[tuple[str, object]] = [
        ("pictures", f"{data} ({counts})" if counts else run.metadata.get("data") or data)
    ]
    if run.begin.get("net"):
        start = "weights that were given" if run.begin.get("given_weights") else "random weights"
        rows.append(("net", f"{run.begin['net']}, from {start}"))
    if _teachers(run):
        share, temperature = values.get("teacher_share"), values.get("teacher_temperature")
        both = ", with mirror images" if values.get("teacher_mirrored") == "true" else ""
        counts = f"({share} of the loss, at temperature {temperature}{both})"
        rows.append(("teacher", f"{' + '.join(_teachers(run))} {counts}"))
    names = {
        "epochs": "epochs", "batch_size": "images a step", "optimizer": "optimiser",
        "learning_rate": "learning rate", "schedule": "schedule", "weight_decay": "weight decay",
        "label_smoothing": "label smoothing", "crop": "crop", "image_size": "input, px",
        "amp": "mixed precision", "ema_decay": "average of the weights", "seed": "seed",
    }  # fmt: skip
    rows += [(label, values.get(key)) for key, label in names.items()]
    return facts(rows)


def _found(run: TrainRun) -> Raw:
    result = run.result or {}
    rows: list[tuple[str, object]] = []
    if run.top1 is not None:
        rows.append(("top-1", f"{percent(run.top1)} on the validation images"))
    if isinstance(result.get("val_loss"), (int, float)):
        rows.append(("loss", f"{result['val_loss']:.4f} (cross-entropy, nats)"))
    if result.get("steps"):
        rows.append(("steps", f"{result['steps']:,}"))
    rows.append(
        (
            "weights",
            f"{result.get('model')}, which every other command takes" if result.get("model") else None,
        )
    )
    if run.arch is not None:
        rows.append(
            (
                "architecture",
                tag("pre", tag("code", str(run.arch)), tabindex=0, role="region", aria_label="code"),
            )
        )
    return facts(rows) if rows else Raw("")


def _curves(run: TrainRun) -> Raw:
    def points(key: str) -> list[tuple[float, float]]:
        return finite([(row.get("epoch"), row.get(key)) for row in run.epochs])

    charts = (
        (
            "Loss",
            "nats; in training with the teacher's part" if _teachers(run) else "cross-entropy (nats)",
            [Line("training", points("train_loss")), Line("validation", points("val_loss"))],
            True,
        ),
        ("Accuracy on the validation images", "top-1 (%)", [Line("", points("val_top1"))], False),
        ("Learning rate", "per step", [Line("", points("rate"))], False),
        ("Speed", "images a second", [Line("", points("images_per_second"))], False),
        ("Waiting for images", "share of the time", [Line("", points("waiting"))], False),
        ("Memory, peak", "MiB", [Line("", points("memory_mib"))], False),
    )
    found = []
    for title, unit, lines, log in charts:
        chart = line_chart(title, unit, lines, x_label="epochs", log=log)
        if chart:
            found.append(tag("div", tag("h3", title), figure(chart)))
    if not found:
        return tag("p", "No epoch has ended yet.")
    rows = [["-" if row.get(key) is None else f"{row[key]:.4g}" for key in _SHOWN] for row in run.epochs]
    head = [key.replace("_", " ") for key in _SHOWN]
    return Raw(
        tag("div", *found, class_="grid")
        + details("The figures of each epoch", table(head, rows, "Epochs", range(len(_SHOWN))))
    )


def train_comparison(runs: Mapping[str, TrainRun]) -> Raw:
    """Return a run beside others, and beside what is published of its model."""
    rows = []
    first = next(iter(runs.values()))
    for name, run in runs.items():
        size: Any = None
        if run.arch is not None:
            try:
                size = profile_of(run.arch, _preprocessing(run))
            except ProxylessError:
                size = None
        model = run.arch.name if run.arch is not None else "-"
        counts = (f"{size.params / 1e6:.3g} M", f"{size.macs / 1e6:.3g} M") if size else ("-", "-")
        verdict = percent(run.top1), _against(first, run)
        rows.append((name, model, _data(run) or "-", len(run.epochs), *verdict, *counts))
    head = (
        "run", "architecture", "pictures", "epochs", "top-1", "against this run", "parameters",
        "multiply-adds",
    )  # fmt: skip
    parts: list[object] = [table(head, rows, "Runs, each on its own validation images", (3, 4, 6, 7))]
    if first.arch is not None and first.arch.name in PUBLISHED:
        from ..weights.registry import get_weights

        record = get_weights(first.arch.name)
        published = record.metrics.get("top1")
        if published is not None:
            images = record.metrics.get("images") or record.dataset
            status = f"of {images}, {record.metrics['status']}"
            parts.append(tag("p", f"{record.name} of the zoo: top-1 {published:.2f} % {status}."))
    advice = "proxylessnas bench and proxylessnas plot --bench set accuracy against it"
    parts.append(tag("p", f"A training does not measure latency: {advice}."))
    return section("Comparison", *parts)


def _against(first: TrainRun, run: TrainRun) -> str:
    """Return how a run fares against the first; accuracies on other images cannot be compared."""
    if run is first:
        return "this run"
    if _data(run) != _data(first) or run.begin.get("pictures") != first.begin.get("pictures"):
        return "other images"
    if first.top1 is None or run.top1 is None:
        return "not known"
    return f"{run.top1 - first.top1:+.2f} points"


def _preprocessing(run: TrainRun) -> Preprocessing | None:
    """Return what the trained model's file says of its images, if it says anything sound."""
    try:
        return Header.parse(run.metadata, run.name).preprocessing
    except ProxylessError:
        return None


def _teachers(run: TrainRun) -> list[str]:
    return [str(name) for name in run.begin.get("teachers") or ()]


def train_again(run: TrainRun, folder: Path, report: str) -> Raw:
    """Return the commands that make the run, and this page, once more; ``report`` makes the page."""
    out, data = shlex.quote(str(folder)), shlex.quote(_data(run) or "DATA")
    name = str(run.begin.get("net") or (run.arch.name if run.arch is not None else ""))
    known = name if name in PUBLISHED else f"{folder}/model.safetensors" if run.arch is not None else "MODEL"
    model = str(run.begin.get("source") or known)
    given = run.begin.get("given_weights")
    verb = "finetune" if given else "train"
    lines = []
    if given is None:
        lines.append(
            "# the folder does not say whether it was train or finetune; of the latter the model had weights"
        )
    options = "".join(f" --teacher {shlex.quote(teacher)}" for teacher in _teachers(run))
    if run.begin.get("weights"):
        options += f" --weights {shlex.quote(str(run.begin['weights']))}"
    if run.begin.get("kept_classifier"):
        options += " --keep-classifier"
    elif given and run.begin.get("source"):
        options += " --new-classifier"
    lines += [
        f"proxylessnas {verb} {shlex.quote(model)} {data} --recipe {out}/recipe.toml{options} --out NEW",
    ]
    if (folder / "model.safetensors").is_file():
        lines += [
            "# judge it on other images; measure it",
            f"proxylessnas eval {out}/model.safetensors TEST --per-class",
            f"proxylessnas bench {out}/model.safetensors --csv bench.csv",
        ]
    lines += ["# this report", report]
    parts = str(code("\n".join(lines)))
    if run.recipe:
        parts += details("The recipe (recipe.toml)", code(run.recipe))
    if run.texts:
        parts += details("What the run said", tag("ul", *(tag("li", text) for text in run.texts)))
    return Raw(parts)


def train_versions(run: TrainRun) -> list[tuple[str, object]]:
    """Return what the run was made with."""
    found: list[tuple[str, object]] = [(str(k), v) for k, v in dict(run.begin.get("versions") or {}).items()]
    return found or [("versions", "not in the log of this run")]
