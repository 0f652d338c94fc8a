"""The report of a search: what was asked, what was found, how it came about, how to repeat it."""

from __future__ import annotations

import io
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..arch.arch import Arch
from ..errors import LatencyError, ProxylessError
from ..utils.files import read_bytes
from ..utils.progress import clock
from .curves import Line, Mark, finite, line_chart
from .model_page import model_part
from .page import (
    UNITS,
    WORDS,
    Raw,
    amount,
    cards,
    code,
    details,
    facts,
    figure,
    inline,
    percent,
    section,
    table,
    tag,
)
from .resolve import model_of, profile_of, table_of
from .runs import SearchRun
from .slider import slider

if TYPE_CHECKING:
    from ..latency.metrics import Validation
    from ..latency.table import LatencyTable


_ALGORITHMS = {
    "gradient": "gradient (ProxylessNAS-G)", "reinforce": "REINFORCE (ProxylessNAS-R)",
    "random": "random models (baseline)", "evolution": "evolution (baseline)",
}  # fmt: skip


def search_parts(run: SearchRun, folder: Path, notes: list[str]) -> list[object]:
    """Return the parts of a search's page between its head and its comparison.

    Args:
        run: of the search.
        folder: of the run.
        notes: to which is added what cannot be shown, and why.
    """
    model = model_of(run, folder.resolve().name)
    found = None
    try:
        found = table_of(folder)
    except LatencyError as e:
        notes.append(f"the latency table is left out: {str(e).splitlines()[0]}")
    expected = ["space.toml", "search.toml", *(["table.json"] if run.begin.get("table") else [])]
    expected += ["child.safetensors"] if run.done is not None else []
    lost = [file for file in expected if not (folder / file).is_file()]
    if lost:
        notes.append(f"not in the folder any more: {', '.join(lost)}")
    images = model_part(model, found, notes) if model is not None else Raw("")
    return [
        _cards(run, model),
        section("What was asked", _asked(run), _space(run)),
        section("What was found", _found(run, model), images) if model is not None else Raw(""),
        section("The search, step by step", slider(run)) if run.snapshots else Raw(""),
        section("Curves", _curves(run)),
        section("Latency: predicted and measured", latency_part(run, model, found))
        if run.begin.get("table")
        else Raw(""),
    ]


def search_title(run: SearchRun) -> tuple[str, str]:
    """Return the title of a search's page, and the line below it."""
    begin = run.begin
    state = "finished" if run.done is not None else "not finished"
    when = str(begin.get("time") or "")[:10]
    about = ", ".join(filter(None, [str(begin.get("data") or ""), when, state]))
    return f"Search in the space {run.space.name}", about


def figures_of(run: SearchRun) -> dict[str, Any]:
    """Return what came out: the result, or how the last epoch stands."""
    if run.done is not None:
        return {**run.done, "top1": run.done.get("top1_held_out")}
    last = dict(run.epochs[-1]) if run.epochs else {}
    if not last and run.evaluated:
        best: Mapping[str, Any] = max(run.evaluated, key=lambda row: row.get("top1") or 0.0)
        last = dict(best)
    return last


def _costs(figures: Mapping[str, Any]) -> dict[str, Any]:
    costs = figures.get("costs")
    return dict(costs) if isinstance(costs, Mapping) else {}


def _cards(run: SearchRun, model: Arch | None) -> Raw:
    figures, target = figures_of(run), run.target
    rows: list[tuple[str, object, object]] = []
    top1 = figures.get("top1")
    if top1 is not None:
        rows.append(
            ("top-1, held-out images", percent(top1), "with inherited weights; these images chose it")
        )
    costs = _costs(figures)
    if target is not None and target[0] in costs:
        name, limit, unit = target
        share = f"{100 * costs[name] / limit:.0f} % of the target, {amount(limit, unit)}" if limit else ""
        rows.append(
            (
                f"{WORDS.get(name, name)}" + ", predicted" * (name == "latency"),
                amount(costs[name], unit),
                share,
            )
        )
    if figures.get("measured_ms") and figures.get("predicted_ms"):
        off = figures["measured_ms"] / figures["predicted_ms"] - 1
        rows.append(
            (
                "latency, measured",
                amount(figures["measured_ms"], "ms"),
                f"{100 * off:+.1f} % of the prediction{_against_target(figures)}",
            )
        )
    if model is not None:
        try:
            size = profile_of(model)
        except ProxylessError:
            size = None
        if size is not None:
            rows.append(("parameters", f"{size.params:,}", f"{size.macs / 1e6:.3g} M multiply-adds"))
    if figures.get("seconds"):
        rows.append(
            ("time", clock(figures["seconds"]), f"{run.begin.get('algorithm')}, all parts of the run")
        )
    return cards(rows) if rows else Raw("")


def _against_target(figures: Mapping[str, Any]) -> str:
    """Return how far the measured latency is over the target, or that it keeps to it."""
    target = (figures.get("limits") or {}).get("latency")
    if not target:
        return ""
    over = figures["measured_ms"] / target - 1
    return f"; {100 * over:.1f} % over the target" if over >= 0.0005 else "; the target is kept"


def _asked(run: SearchRun) -> Raw:
    begin = run.begin
    rows: list[tuple[str, object]] = []
    algorithm = str(begin.get("algorithm"))
    rows.append(("algorithm", _ALGORITHMS.get(algorithm, algorithm)))
    reach = dict(begin.get("range") or {})
    for name, value in dict(begin.get("targets") or {}).items():
        unit = dict(begin.get("units") or {}).get(name, "")
        text = f"at most {amount(value, unit)}"
        if isinstance(reach.get(name), list) and len(reach[name]) == 2:
            low, high = (amount(end, unit) for end in reach[name])
            text += f"; models of the space go from {low} to {high}"
        rows.append((f"target: {WORDS.get(name, name)}", text))
    if not begin.get("targets"):
        rows.append(("target", "none: accuracy alone decides"))
    rows.append(("images", _images(begin)))
    rows.append(("latency table", begin.get("table_conditions")))
    rows.append(("seed", begin.get("seed")))
    return facts(rows)


def _images(begin: Mapping[str, Any]) -> str:
    found = dict(begin.get("pictures") or {})
    counts = (
        f": {found['weights']:,} for the weights, {found['arch']:,} held out for the architecture"
        if (isinstance(found.get("weights"), int) and isinstance(found.get("arch"), int))
        else ""
    )
    return f"{begin.get('data') or 'not known'}{counts}"


def _space(run: SearchRun) -> Raw:
    space = run.space
    rows = []
    for number, stage in enumerate(space.stages, 1):
        first = next(p for p in space.search_blocks if p.stage == number - 1)
        rows.append(
            (number, stage.blocks, stage.width, first.stride, f"{first.in_size} to {first.out_size} px")
        )
    count = space.count
    models = f"{count:,}" if count < 10**9 else f"{count:.1e}"
    shown = ", ".join("skip" if c == "-" else c for c in space.candidate_ops)
    about = tag(
        "p", f"{len(space.search_blocks)} searched blocks, each one of {shown}: {models} models, for images "
        f"of {space.resolution} px and {space.num_classes} classes. k5e4 is a mobile inverted bottleneck "
        "with a 5×5 depthwise convolution and expansion ratio 4.",
    )  # fmt: skip
    stages = table(
        ("stage", "blocks", "channels", "stride", "map"), rows, "The space, stage by stage", (1, 2, 3)
    )
    return Raw(tag("h3", "The space") + about + stages)


def _found(run: SearchRun, model: Arch) -> Raw:
    figures = figures_of(run)
    rows: list[tuple[str, object]] = []
    for name, value in _costs(figures).items():
        rows.append((WORDS.get(name, name), amount(value, UNITS.get(name, ""))))
    rows.append(("top-1", f"{percent(figures.get('top1'))} on the held-out images, with inherited weights"))
    if run.done is not None:
        rows.append(("weights", f"{run.done.get('model')}, which every other command takes"))
    else:
        rows.append(("state", _state(run)))
    rows.append(
        ("architecture", tag("pre", tag("code", str(model)), tabindex=0, role="region", aria_label="code"))
    )
    return facts(rows)


def _state(run: SearchRun) -> str:
    state = "the search has not ended"
    if not run.epochs:
        return f"{state}: this is the best model that it has judged" if run.evaluated else state
    last = run.epochs[-1]
    return (
        f"{state}: this is the model that was derived, within the target, after epoch "
        f"{last.get('epoch')} (step {last.get('step')}); the most probable choice of each block by itself, "
        "as above the slider, can be another one"
    )


def _curves(run: SearchRun) -> Raw:
    steps = [m.step for m in run.snapshots] or [int(e.get("step") or 0) for e in run.epochs] or [0]
    ends = (float(min(steps)), float(max(steps)))
    target = run.target
    parts = []
    if target is not None:
        mark = Mark(target[1], f"target {amount(target[1], target[2])}")
        derived = [Line("", finite([(e.get("step"), _costs(e).get(target[0])) for e in run.epochs]))]
        words = f"{WORDS.get(target[0], target[0]).capitalize()} of the derived model"
        parts.append((words, target[2], derived, [mark], False))
    if not run.snapshots:  # else the slider shows it
        top1 = finite([(e.get("step"), e.get("top1")) for e in run.epochs])
        parts.append(("Accuracy of the derived model", "top-1 (%), held-out", [Line("", top1)], [], False))
    entropy = finite([(m.step, m.figures.get("entropy")) for m in run.snapshots])
    parts.append(
        ("Entropy of the probabilities, mean over the blocks", "nats", [Line("", entropy)], [], False)
    )
    skip = [Line("", finite([(m.step, m.figures.get("skip_share")) for m in run.snapshots]))]
    parts.append(("Skippable blocks that are skipped", "share", skip, [], False))
    gradient = finite([(m.step, m.figures.get("gradient_norm")) for m in run.snapshots])
    parts.append(("Gradient of the architecture parameters", "norm", [Line("", gradient)], [], True))
    loss = finite([(m.step, m.figures.get("loss")) for m in run.snapshots])
    parts.append(
        ("Loss on the held-out images, arch steps", "cross-entropy (nats)", [Line("", loss)], [], False)
    )
    found = []
    for title, unit, lines, marks, log in parts:
        chart = line_chart(title, unit, lines, x_range=ends, marks=marks, log=log)
        if chart:
            found.append(tag("div", tag("h3", title), figure(chart)))
    if run.evaluated:
        found.append(_judged(run))
    if not found:
        return tag("p", "No arch step and no epoch of the search proper has been logged yet.")
    return Raw(tag("div", *found, class_="grid") + _epoch_table(run))


def _judged(run: SearchRun) -> Raw:
    points = finite([(row.get("number"), row.get("top1")) for row in run.evaluated])
    best = finite([(row.get("number"), row.get("best")) for row in run.evaluated])
    title = "Models that were judged"
    chart = line_chart(
        title, "top-1 (%)", [Line("model", points), Line("best so far", best)], x_label="models"
    )
    return tag("div", tag("h3", title), figure(chart))


def _epoch_table(run: SearchRun) -> Raw:
    if not run.epochs:
        return Raw("")
    names = list(_costs(run.epochs[-1]))
    head = [
        "epoch",
        "step",
        "entropy (nats)",
        "expected",
        "top-1 (%)",
        *(f"{n} ({UNITS.get(n, '')})" for n in names),
    ]
    rows = []
    for e in run.epochs:
        cells = [e.get("entropy"), e.get("expected"), e.get("top1"), *(_costs(e).get(n) for n in names)]
        rows.append([e.get("epoch"), e.get("step"), *("-" if v is None else f"{v:.4g}" for v in cells)])
    return details("The figures of each epoch", table(head, rows, "Ends of epochs", range(1, len(head))))


def again(run: SearchRun, folder: Path, report: str) -> Raw:
    """Return the commands that make the run, and this page, once more.

    Args:
        run: of the search.
        folder: of the run.
        report: the command that makes the page.
    """
    begin = run.begin
    out = shlex.quote(str(folder))
    table_ = f" --table {shlex.quote(f'{folder}/table.json')}" if begin.get("table") else ""
    data = shlex.quote(_source(folder) or str(begin.get("data")))
    needs = ["space.toml", "search.toml", *(["table.json"] if table_ else [])]
    lost = [file for file in needs if not (folder / file).is_file()]
    lines = []
    if lost:
        lines.append(f"# the search cannot be run again as it was: {', '.join(lost)} not in the folder")
    else:
        lines += [
            "# the same search, to the bit on a CPU with the same versions and number of threads",
            f"proxylessnas search run --space {out}/space.toml --data {data} \\",
            f"    --recipe {out}/search.toml{table_} --out NEW",
        ]
    lines += ["# look at it", f"proxylessnas search show {out}"]
    if (folder / "child.safetensors").is_file():
        lines += [
            "# train the model on, measure it",
            f"proxylessnas finetune {out}/child.safetensors {data}",
            f"proxylessnas latency measure {out}/child.safetensors",
        ]
    lines += ["# this report", report]
    parts: list[object] = [code("\n".join(lines))]
    for file, what in (("search.toml", "The recipe"), ("space.toml", "The space")):
        try:
            text = read_bytes(folder / file).decode(errors="replace")
        except OSError:
            continue
        parts.append(details(f"{what} ({file})", code(text)))
    return Raw("".join(map(str, parts)))


def _source(folder: Path) -> str | None:
    import json

    try:
        found = json.loads(read_bytes(folder / "source.json"))
        return str(found["data"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def versions(run: SearchRun) -> list[tuple[str, object]]:
    """Return what the run was made with."""
    begin = run.begin
    found: list[tuple[str, object]] = [(str(k), v) for k, v in dict(begin.get("versions") or {}).items()]
    found.append(("latency table", f"SHA-256 {begin['table']}" if begin.get("table") else None))
    found.append(("space", f"SHA-256 {run.space.digest}"))
    found.append(("begun", begin.get("time")))
    return found


def latency_part(run: SearchRun, model: Arch | None, table: LatencyTable | None) -> Raw:
    """Return what is known of the latency of a search's model, and of its table.

    Args:
        run: of the search.
        model: what it found.
        table: of its device; None where it is missing or damaged.
    """
    done = run.done or {}
    rows: list[tuple[str, object]] = []
    predicted, measured = done.get("predicted_ms"), done.get("measured_ms")
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
    rows.append(("device", run.begin.get("table_conditions")))
    if table is None:
        return facts([*rows, ("the table", "is not in the run's folder, or damaged")])
    from ..latency.validate import doubts

    problems, known = doubts(table), _validation(table)
    rows.append(("the table's own test", known.verdict if known else "; ".join(problems) or "passed"))
    if known is None or not known.pairs:
        return facts(rows)
    return Raw(facts(rows) + _chart(known, predicted, measured))


def _validation(table: LatencyTable) -> Validation | None:
    from ..latency.metrics import Validation

    try:
        return None if table.validation is None else Validation.from_dict(table.validation)
    except LatencyError:
        return None


def _chart(known: Validation, predicted: Any, measured: Any) -> Raw:
    from ..latency.plots import Named, prediction_png

    file = io.BytesIO()
    named = [Named("this model", float(predicted), float(measured))] if predicted and measured else []
    title = "Models predicted by the table, and measured"
    prediction_png([pair[1:] for pair in known.pairs], file, title="", named=named, side=4.6)
    said = (
        f"{known.nets} random models; {known.within_5_percent:.0f} % of them are predicted within 5 %, "
        f"{known.within_10_percent:.0f} % within 10 %. {known.verdict}"
    )
    svg = inline(file, title, said, natural=True)
    caption = (
        "Random models that the table was not made from, each predicted and measured; on the line is perfect."
    )
    return figure(svg.text, caption)
