"""The page of a search: what was asked, what was found, how it came about, how to repeat it."""

from __future__ import annotations

import io
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..arch.arch import Arch
from ..arch.ops import parse_token
from ..arch.ops.spec import OpSpec
from ..arch.tree_space import EDGE_OPS
from ..errors import LatencyError, ProxylessError
from ..utils.files import read_bytes
from ..utils.plotting import finite
from ..utils.progress import clock
from ..utils.text import large
from .compare import compare
from .draw_search import slider
from .model_page import model_figures, precisions
from .page import (
    UNITS,
    Facts,
    Figure,
    Line,
    RunPage,
    Table,
    amount,
    inline,
    line_chart,
    percent,
    word,
)
from .resolve import model_of, profile_of, table_of
from .runs import SearchRun

if TYPE_CHECKING:
    from ..latency.metrics import Validation
    from ..latency.table import LatencyTable

_ALGORITHMS = {
    "gradient": "gradient (ProxylessNAS-G)", "reinforce": "REINFORCE (ProxylessNAS-R)",
    "random": "random models (baseline)", "evolution": "evolution (baseline)",
}  # fmt: skip


def search_page(runs: Mapping[str, SearchRun], folder: Path, notes: list[str], command: str) -> RunPage:
    """Return the page of a search.

    Args:
        runs: name to search: first the one that the page is about, then those to compare it with.
        folder: of the first.
        notes: to which is added what cannot be shown, and why.
        command: that makes the page.
    """
    name, run = next(iter(runs.items()))
    model, table = model_of(run, name), None
    try:
        table = table_of(folder)
    except LatencyError as e:
        notes.append(f"the latency table is left out: {str(e).splitlines()[0]}")
    expected = ["space.toml", "search.toml", *(["table.json"] if run.begin.get("table") else [])]
    expected += ["child.safetensors"] if run.done is not None else []
    lost = [file for file in expected if not (folder / file).is_file()]
    if lost:
        notes.append(f"not in the folder any more: {', '.join(lost)}")
    figures, text = model_figures(model, table, notes) if model is not None else ([], "")
    latency, latency_chart = _latency(run, model, table) if run.begin.get("table") else ([], None)
    title, about = search_title(run)
    return RunPage(
        title=title, about=about, notes=notes,
        cards=_cards(run, model),
        asked=_asked(run), space=_space(run),
        found=_found(run) if model is not None else (), architecture=str(model or ""),
        precisions=precisions(folder), front=_front(run), models=figures, model_text=text,
        slider=slider(run) if run.snapshots else None,
        charts=_charts(run), epochs=_epochs(run),
        no_charts="No arch step and no epoch of the search proper has been logged yet.",
        latency=latency, latency_chart=latency_chart,
        comparison=compare(runs, table),
        commands="\n".join([*_commands(run, folder), "# this report", command]), files=_files(folder),
        versions=_versions(run),
    )  # fmt: skip


def search_title(run: SearchRun) -> tuple[str, str]:
    """Return the title of a search's page, and the line below it."""
    state = "finished" if run.done is not None else "not finished"
    about = (run.begin.get("data"), str(run.begin.get("time") or "")[:10], state)
    return f"Search in the space {run.space.name}", ", ".join(filter(None, about))


def _cards(run: SearchRun, model: Arch | None) -> list[tuple[str, object, object]]:
    figures, target, costs = run.figures, run.target, run.costs
    rows: list[tuple[str, object, object]] = []
    if figures.get("top1") is not None:
        about = "with inherited weights; these images chose it"
        rows.append(("top-1, held-out images", percent(figures["top1"]), about))
    if target is not None and target.kind in costs:
        cost, limit = costs[target.kind], target.limit
        about = f"{100 * cost / limit:.0f} % of the target, {amount(limit, target.unit)}" if limit else ""
        name = word(target.kind) + ", predicted" * (target.kind == "latency")
        rows.append((name, amount(cost, target.unit), about))
    if figures.get("measured_ms") and figures.get("predicted_ms"):
        off = figures["measured_ms"] / figures["predicted_ms"] - 1
        about = f"{100 * off:+.1f} % of the prediction{_against_target(figures)}"
        rows.append(("latency, measured", amount(figures["measured_ms"], "ms"), about))
    if model is not None:
        try:
            size = profile_of(model)
        except ProxylessError:
            pass
        else:
            rows.append(("parameters", f"{size.params:,}", f"{size.macs / 1e6:.3g} M multiply-adds"))
    if figures.get("seconds"):
        about = f"{run.begin.get('algorithm')}, all parts of the run"
        rows.append(("time", clock(figures["seconds"]), about))
    return rows


def _against_target(figures: Mapping[str, Any]) -> str:
    """Return how far the measured latency is over the target, or that it keeps to it."""
    target = (figures.get("limits") or {}).get("latency")
    if not target:
        return ""
    over = figures["measured_ms"] / target - 1
    return f"; {100 * over:.1f} % over the target" if over >= 0.0005 else "; the target is kept"


def _asked(run: SearchRun) -> Facts:
    begin = run.begin
    algorithm = str(begin.get("algorithm"))
    rows: list[tuple[str, object]] = [("algorithm", _ALGORITHMS.get(algorithm, algorithm))]
    for target in run.targets:
        text = f"at most {amount(target.limit, target.unit)}"
        reach = begin.get("range", {}).get(target.kind)
        if reach:
            low, high = (amount(end, target.unit) for end in reach)
            text += f"; models of the space go from {low} to {high}"
        rows.append((f"target: {word(target.kind)}", text))
    if not run.targets:
        rows.append(("target", "none: accuracy alone decides"))
    images, data = begin.get("pictures", {}), begin.get("data") or "not known"
    if {"weights", "arch"} <= images.keys():
        data += f": {images['weights']:,} for the weights, {images['arch']:,} held out for the architecture"
    rows += [("images", data), ("latency table", begin.get("table_conditions")), ("seed", begin.get("seed"))]
    return rows


def _space(run: SearchRun) -> tuple[str, Table]:
    space = run.space
    rows = []
    for number, stage in enumerate(space.stages, 1):
        first = next(p for p in space.search_blocks if p.stage == number - 1)
        sizes = f"{first.in_size} to {first.out_size} px"
        rows.append((number, stage.blocks, stage.width, first.stride, sizes))
    models = large(space.count)
    shown = ", ".join("skip" if c == "-" else c for c in space.candidate_ops)
    known: dict[str, str] = {}  # of each kind the first is explained
    for token in space.candidate_ops:
        op = None if token in EDGE_OPS else parse_token(token)[0]
        if op is None:
            known[token] = f"{token}: {EDGE_OPS[token]}"
        elif isinstance(op, OpSpec):
            known.setdefault(op.family, f"{op.name}: {op.about}")
    what = "blocks" if space.group == 1 else "edges"
    about = (
        f"{len(space.search_blocks)} searched {what}, each one of {shown}: {models} models, for images of "
        f"{space.resolution} px and {space.num_classes} classes. " + "; ".join(known.values())
    )
    head = ("stage", what, "channels", "stride", "map")
    return about, Table(head, rows, "The space, stage by stage", (1, 2, 3))


def _found(run: SearchRun) -> Facts:
    rows: list[tuple[str, object]] = [
        (word(kind), amount(value, UNITS.get(kind, ""))) for kind, value in run.costs.items()
    ]
    top1 = percent(run.figures.get("top1"))
    rows.append(("top-1", f"{top1} on the held-out images, with inherited weights"))
    if run.done is not None:
        rows.append(("weights", f"{run.done.get('model')}, which every other command takes"))
    else:
        rows.append(("state", _state(run)))
    return rows


def _front(run: SearchRun) -> tuple[Table, Figure] | None:
    """Return the models of a search for several targets."""
    front, target = (run.done or {}).get("front"), run.target
    if not isinstance(front, dict) or target is None:
        return None
    from ..search.front import front_rows

    try:
        found = front_rows([{**of, "folder": name} for name, of in front.items()], target.kind)
        lines = [Line("predicted", finite((r["predicted"], r["top1_held_out"]) for r in found))]
        if target.kind == "latency":
            lines.append(Line("measured", finite((r["measured_ms"], r["top1_held_out"]) for r in found)))
        rows = [
            (
                amount(r["target"], target.unit), percent(r["top1_held_out"]),
                amount(r["predicted"], target.unit),
                amount(r["measured_ms"], "ms") if r["measured_ms"] else "-", r["folder"],
            )
            for r in found
        ]  # fmt: skip
    except (KeyError, TypeError, AttributeError):
        return None  # a damaged log
    title = "Accuracy of the models for each target"
    chart = line_chart(title, "top-1 (%), held-out", lines, x_label=f"{word(target.kind)} ({target.unit})")
    head = ("target", "top-1", "predicted", "measured", "folder")
    about = "With inherited weights, on the images that chose the models."
    table = Table(head, rows, "The models, by target", (1, 2, 3))
    return None if chart is None else (table, Figure(chart, about))


def _state(run: SearchRun) -> str:
    state = "the search has not ended"
    if not run.epochs:
        return f"{state}: this is the best model that it has evaluated" if run.evaluated else state
    last = run.epochs[-1]
    return (
        f"{state}: this is the model that was derived, within the target, after epoch "
        f"{last.get('epoch')} (step {last.get('step')}); the most probable choice of each block by itself, "
        "as above the slider, can be another one"
    )


def _charts(run: SearchRun) -> list[Figure]:
    steps = [m.step for m in run.snapshots] or [int(e.get("step") or 0) for e in run.epochs] or [0]
    ends = (float(min(steps)), float(max(steps)))
    found = []

    def add(title: str, unit: str, points: list[tuple[Any, Any]], **options: Any) -> None:
        chart = line_chart(title, unit, [Line("", finite(points))], x_range=ends, **options)
        found.extend([Figure(chart, title=title)] if chart else [])

    def over_steps(key: str) -> list[tuple[Any, Any]]:
        return [(m.step, m.figures.get(key)) for m in run.snapshots]

    if run.target is not None:
        kind, title = run.target.kind, f"{word(run.target.kind).capitalize()} of the derived model"
        costs = [(e.get("step"), e.get("costs", {}).get(kind)) for e in run.epochs]
        add(title, run.target.unit, costs, target=run.target)
    if not run.snapshots:  # else the slider shows it
        top1 = [(e.get("step"), e.get("top1")) for e in run.epochs]
        add("Accuracy of the derived model", "top-1 (%), held-out", top1)
    add("Entropy of the probabilities, mean over the blocks", "nats", over_steps("entropy"))
    add("Skippable blocks that are skipped", "share", over_steps("skip_share"))
    add("Gradient of the architecture parameters", "norm", over_steps("gradient_norm"), log=True)
    add("Loss on the held-out images, arch steps", "cross-entropy (nats)", over_steps("loss"))
    if run.evaluated:
        title = "Models that were evaluated"
        lines = [
            Line(name, finite((row.get("number"), row.get(key)) for row in run.evaluated))
            for name, key in (("model", "top1"), ("best so far", "best"))
        ]
        chart = line_chart(title, "top-1 (%)", lines, x_label="models")
        found += [Figure(chart, title=title)] if chart else []
    return found


def _epochs(run: SearchRun) -> Table | None:
    if not run.epochs:
        return None
    kinds = list(run.epochs[-1].get("costs", {}))
    head = ["epoch", "step", "entropy (nats)", "expected", "top-1 (%)"]
    head += [f"{kind} ({UNITS.get(kind, '')})" for kind in kinds]
    rows = []
    for e in run.epochs:
        cells = [e.get("entropy"), e.get("expected"), e.get("top1")]
        cells += [e.get("costs", {}).get(kind) for kind in kinds]
        rows.append([e.get("epoch"), e.get("step"), *("-" if v is None else f"{v:.4g}" for v in cells)])
    return Table(head, rows, "Ends of epochs", range(1, len(head)))


def _latency(run: SearchRun, model: Arch | None, table: LatencyTable | None) -> tuple[Facts, Figure | None]:
    """Return what is known of the latency of a search's model, and a chart of its table's predictions."""
    done = run.done or {}
    predicted, measured = done.get("predicted_ms"), done.get("measured_ms")
    rows: list[tuple[str, object]] = []
    if predicted:
        rows.append(("predicted", amount(predicted, "ms")))
    elif model is not None and table is not None:
        try:
            rows.append(("predicted", amount(table.predict(model), "ms")))
        except LatencyError:
            rows.append(("predicted", "not known"))
    if measured:
        from ..search.logger import describe_latency

        rows += [("measured" if not i else "", text) for i, text in enumerate(describe_latency(done))]
    elif done:
        rows.append(("measured", done.get("measured_note") or "not measured"))
    else:
        rows.append(("measured", "not yet: the model is measured when the search ends"))
    rows += [("INT8" if not i else "", text) for i, text in enumerate(_int8(done))]
    rows.append(("device", run.begin.get("table_conditions")))
    if table is None:
        return [*rows, ("the table", "is not in the run's folder, or damaged")], None
    from ..latency.validate import doubts

    problems, known = doubts(table), _validation(table)
    rows.append(("the table's own test", known.verdict if known else "; ".join(problems) or "passed"))
    return rows, _predictions(known, predicted, measured) if known and known.pairs else None


def _int8(done: Mapping[str, Any]) -> list[str]:
    """Return in words what became of the model in INT8."""
    from ..search.ship import describe_int8

    try:
        return describe_int8(done)
    except (AttributeError, LookupError, TypeError, ValueError):  # a damaged log
        return []


def _validation(table: LatencyTable) -> Validation | None:
    from ..latency.metrics import Validation

    try:
        return None if table.validation is None else Validation.from_dict(table.validation)
    except LatencyError:
        return None


def _predictions(known: Validation, predicted: Any, measured: Any) -> Figure:
    from ..latency.plots import Named, prediction_png

    file = io.BytesIO()
    named = [Named("this model", float(predicted), float(measured))] if predicted and measured else []
    prediction_png([pair[1:] for pair in known.pairs], file, title="", named=named, side=4.6)
    said = (
        f"{known.nets} random models; {known.within_5_percent:.0f} % of them are predicted within 5 %, "
        f"{known.within_10_percent:.0f} % within 10 %. {known.verdict}"
    )
    svg = inline(file, "Models predicted by the table, and measured", said, natural=True)
    about = "Random models that the table was not made from, each predicted and measured"
    return Figure(svg, f"{about}; on the line is perfect.")


def _commands(run: SearchRun, folder: Path) -> list[str]:
    """Return the commands that make the run once more, and use its model."""
    begin = run.begin
    out, model = (shlex.quote(str(path)) for path in (folder, folder / "child.safetensors"))
    table = f" --table {shlex.quote(str(folder / 'table.json'))}" if begin.get("table") else ""
    source = _source(folder)
    data = shlex.quote(str(source.get("data") or begin.get("data")))
    limit = f" --limit {source['limit']}" if source.get("limit") else ""
    needs = ["space.toml", "search.toml", *(["table.json"] if table else [])]
    lost = [file for file in needs if not (folder / file).is_file()]
    if lost:
        lines = [f"# the search cannot be run again as it was: {', '.join(lost)} not in the folder"]
    else:
        lines = [
            "# the same search, to the bit on a CPU with the same versions and number of threads",
            f"proxylessnas search run --space {out}/space.toml --data {data} \\",
            f"    --recipe {out}/search.toml{table}{limit} --out NEW",
        ]
    lines += ["# look at it", f"proxylessnas search show {out}"]
    if (folder / "child.safetensors").is_file():
        lines += [
            "# train the model on, measure it",
            f"proxylessnas finetune {model} {data}",
            f"proxylessnas latency measure {model}",
        ]
    return lines


def _files(folder: Path) -> list[tuple[str, str]]:
    found = []
    for file, what in (("search.toml", "The recipe"), ("space.toml", "The space")):
        try:
            found.append((f"{what} ({file})", read_bytes(folder / file).decode(errors="replace")))
        except OSError:
            continue
    return found


def _source(folder: Path) -> dict[str, Any]:
    """Return where the images are, as the command line named them, and how many of a class were taken."""
    try:
        return dict(json.loads(read_bytes(folder / "source.json")))
    except (OSError, ValueError, TypeError):
        return {}


def _versions(run: SearchRun) -> Facts:
    begin = run.begin
    return [
        *begin.get("versions", {}).items(),
        ("latency table", f"SHA-256 {begin['table']}" if begin.get("table") else None),
        ("space", f"SHA-256 {run.space.digest}"),
        ("begun", begin.get("time")),
    ]
