"""The page of a training run: what was asked, what came out, how it went, and how to do it again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..arch.published import PUBLISHED
from ..data.transforms import Preprocessing
from ..errors import ProxylessError
from ..models.loading import Header
from ..utils.plotting import finite
from ..utils.progress import clock
from .model_page import model_figures, precisions
from .page import Comparison, Facts, Figure, Line, RunPage, Table, line_chart, percent
from .resolve import profile_of
from .runs import TrainRun

if TYPE_CHECKING:
    from ..models.profile import Profile

_SHOWN = ("epoch", "train_loss", "val_loss", "val_top1", "val_top5", "rate", "images_per_second", "seconds")


def train_page(runs: Mapping[str, TrainRun], folder: Path, notes: list[str], command: str) -> RunPage:
    """Return the page of a training run.

    Args:
        runs: name to run: first the one that the page is about, then those to compare it with.
        folder: of the first.
        notes: to which is added what cannot be shown, and why.
        command: that makes the page.
    """
    run = next(iter(runs.values()))
    model = run.begin.get("net") or (run.arch.name if run.arch is not None else "a model")
    state = "finished" if run.result is not None else "not finished"
    arch: Any = run.arch
    figures, text = model_figures(replace(arch, name=run.name), None, notes) if arch is not None else ([], "")
    rows = [["-" if row.get(key) is None else f"{row[key]:.4g}" for key in _SHOWN] for row in run.epochs]
    head = [key.replace("_", " ") for key in _SHOWN]
    return RunPage(
        title=f"{run.name}: training of {model}",
        about=f"{_data(run) or run.name}, {len(run.epochs)} epochs, {state}",
        notes=notes, cards=_cards(run), asked=_asked(run),
        found=_found(run), architecture=str(run.arch or ""),
        precisions=precisions(folder), models=figures, model_text=text,
        no_models="No figure of the model: its file is written when the run ends, or cannot be read.",
        charts=_charts(run), no_charts="No epoch has ended yet.",
        epochs=Table(head, rows, "Epochs", range(len(_SHOWN))) if rows else None,
        comparison=_comparison(runs),
        commands="\n".join([*_commands(run, folder), "# this report", command]),
        files=[("The recipe (recipe.toml)", run.recipe)] if run.recipe else (), said=run.texts,
        versions=[*run.begin.get("versions", {}).items()] or [("versions", "not in the log of this run")],
    )  # fmt: skip


def _data(run: TrainRun) -> str:
    return str(run.begin.get("data") or run.metadata.get("data", "").rpartition(" (")[0])


def _size(run: TrainRun) -> Profile | None:
    """Return the size of a run's model at the size of its images."""
    if run.arch is None:
        return None
    try:
        return profile_of(run.arch, _preprocessing(run))
    except ProxylessError:
        return None


def _preprocessing(run: TrainRun) -> Preprocessing | None:
    """Return what the trained model's file says of its images, if it says anything sound."""
    try:
        return Header.parse(run.metadata, run.name).preprocessing
    except ProxylessError:
        return None


def _cards(run: TrainRun) -> list[tuple[str, object, object]]:
    rows: list[tuple[str, object, object]] = []
    best, result, size = run.best, run.result or {}, _size(run)
    if run.top1 is not None:
        of = "of the model that was kept" if result else "last epoch"
        rows.append(("top-1, validation images", percent(run.top1), of))
    if best is not None:
        rows.append(("best epoch", f"{best['epoch']:.0f}", percent(best["val_top1"])))
    if run.epochs:
        seconds = result.get("seconds") or sum(row.get("seconds") or 0.0 for row in run.epochs)
        rows.append(("time", clock(seconds), f"{len(run.epochs)} epochs"))
    if size is not None:
        rows.append(("parameters", f"{size.params:,}", f"{size.macs / 1e6:.3g} M multiply-adds"))
    return rows


def recipe_values(text: str) -> dict[str, str]:
    """Return the values of a recipe's TOML text as they are written there, the first level alone."""
    found = {}
    for line in text.splitlines():
        key, equals, value = line.partition(" = ")
        if equals and key.isidentifier():
            found[key] = value.partition("  #")[0].strip().strip('"')
    return found


def _asked(run: TrainRun) -> Facts:
    values, data = recipe_values(run.recipe), _data(run)
    images = run.begin.get("pictures", {})
    counts = ", ".join(f"{count:,} for {part}" for part, count in images.items())
    rows: list[tuple[str, object]] = [
        ("images", f"{data} ({counts})" if counts else run.metadata.get("data") or data)
    ]
    if run.begin.get("net"):
        start = "weights that were given" if run.begin.get("given_weights") else "random weights"
        rows.append(("model", f"{run.begin['net']}, from {start}"))
    if _teachers(run):
        share, temperature = values.get("teacher_share"), values.get("teacher_temperature")
        both = ", with mirror images" if values.get("teacher_mirrored") == "true" else ""
        how = f"({share} of the loss, at temperature {temperature}{both})"
        rows.append(("teacher", f"{' + '.join(_teachers(run))} {how}"))
    names = {
        "epochs": "epochs", "batch_size": "images a step", "optimizer": "optimizer",
        "learning_rate": "learning rate", "schedule": "schedule", "weight_decay": "weight decay",
        "label_smoothing": "label smoothing", "crop": "crop", "image_size": "input, px",
        "amp": "mixed precision", "ema_decay": "average of the weights", "seed": "seed",
    }  # fmt: skip
    return [*rows, *((label, values.get(key)) for key, label in names.items())]


def _found(run: TrainRun) -> Facts:
    result = run.result or {}
    rows: list[tuple[str, object]] = []
    if run.top1 is not None:
        rows.append(("top-1", f"{percent(run.top1)} on the validation images"))
    if result.get("val_loss") is not None:
        rows.append(("loss", f"{result['val_loss']:.4f} (cross-entropy, nats)"))
    if result.get("steps"):
        rows.append(("steps", f"{result['steps']:,}"))
    if result.get("model"):
        rows.append(("weights", f"{result['model']}, which every other command takes"))
    return rows


def _charts(run: TrainRun) -> list[Figure]:
    def line(key: str, name: str = "") -> Line:
        return Line(name, finite((row.get("epoch"), row.get(key)) for row in run.epochs))

    loss = "nats; in training with the teacher's part" if _teachers(run) else "cross-entropy (nats)"
    charts = (
        ("Loss", loss, [line("train_loss", "training"), line("val_loss", "validation")]),
        ("Accuracy on the validation images", "top-1 (%)", [line("val_top1")]),
        ("Learning rate", "per step", [line("rate")]),
        ("Speed", "images a second", [line("images_per_second")]),
        ("Waiting for images", "share of the time", [line("waiting")]),
        ("Memory, peak", "MiB", [line("memory_mib")]),
    )
    found = []
    for title, unit, lines in charts:
        chart = line_chart(title, unit, lines, x_label="epochs", log=title == "Loss")
        if chart:
            found.append(Figure(chart, title=title))
    return found


def _comparison(runs: Mapping[str, TrainRun]) -> Comparison:
    """Return a run beside others, and beside what is published of its model."""
    rows = []
    first = next(iter(runs.values()))
    for name, run in runs.items():
        size = _size(run)
        model = run.arch.name if run.arch is not None else "-"
        counts = (f"{size.params / 1e6:.3g} M", f"{size.macs / 1e6:.3g} M") if size else ("-", "-")
        verdict = percent(run.top1), _against(first, run)
        rows.append((name, model, _data(run) or "-", len(run.epochs), *verdict, *counts))
    head = (
        "run", "architecture", "images", "epochs", "top-1", "against this run", "parameters",
        "multiply-adds",
    )  # fmt: skip
    remarks = []
    if first.arch is not None and first.arch.name in PUBLISHED:
        from ..weights.registry import get_weights

        record = get_weights(first.arch.name)
        published = record.metrics.get("top1")
        if published is not None:
            status = f"of {record.metrics.get('images') or record.dataset}, {record.metrics['status']}"
            remarks.append(f"{record.name} of the zoo: top-1 {published:.2f} % {status}.")
    advice = "proxylessnas bench and proxylessnas plot --bench set accuracy against it"
    remarks.append(f"A training does not measure latency: {advice}.")
    table = Table(head, rows, "Runs, each on its own validation images", (3, 4, 6, 7))
    return Comparison("Comparison", table, remarks)


def _against(first: TrainRun, run: TrainRun) -> str:
    """Return how a run fares against the first; accuracies on other images cannot be compared."""
    if run is first:
        return "this run"
    if _data(run) != _data(first) or run.begin.get("pictures") != first.begin.get("pictures"):
        return "other images"
    if first.top1 is None or run.top1 is None:
        return "not known"
    return f"{run.top1 - first.top1:+.2f} points"


def _teachers(run: TrainRun) -> list[str]:
    return run.begin.get("teachers", [])


def _commands(run: TrainRun, folder: Path) -> list[str]:
    """Return the commands that make the run once more, and use its model."""
    begin = run.begin
    out, data = shlex.quote(str(folder)), shlex.quote(_data(run) or "DATA")
    name = str(begin.get("net") or (run.arch.name if run.arch is not None else ""))
    known = name if name in PUBLISHED else f"{folder}/model.safetensors" if run.arch is not None else "MODEL"
    model = shlex.quote(str(begin.get("source") or known))
    given = begin.get("given_weights")
    lines = []
    if given is None:
        lines.append(
            "# the folder does not say whether it was train or finetune; of the latter the model had weights"
        )
    options = "".join(f" --teacher {shlex.quote(teacher)}" for teacher in _teachers(run))
    if begin.get("weights"):
        options += f" --weights {shlex.quote(begin['weights'])}"
    if begin.get("kept_classifier"):
        options += " --keep-classifier"
    elif given and begin.get("source"):
        options += " --new-classifier"
    command = "finetune" if given else "train"
    lines.append(f"proxylessnas {command} {model} {data} --recipe {out}/recipe.toml{options} --out NEW")
    if (folder / "model.safetensors").is_file():
        lines += [
            "# evaluate it on other images; measure it",
            f"proxylessnas eval {out}/model.safetensors TEST --per-class",
            f"proxylessnas bench {out}/model.safetensors --csv bench.csv",
        ]
    return lines
