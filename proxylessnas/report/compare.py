"""Runs side by side: what each found at what cost; and models by chance, or published ones, beside them."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import LatencyError, LatencyKeyError, ProxylessError
from ..utils.plotting import BLUE, GREY, GRID, ORANGE, open_figure
from .curves import finite
from .page import WORDS, Raw, amount, details, figure, inline, percent, section, table, tag
from .runs import SearchRun
from .search_page import figures_of

if TYPE_CHECKING:
    from ..latency.table import LatencyTable

EQUAL = 0.05  # costs that differ by less than this share count as equal


def compare_section(runs: Mapping[str, SearchRun], folder: Path) -> Raw:
    """Return the comparison of a search with others, with chance, and with the published models.

    Args:
        stories: name to search; the first is the one that the page is about.
        folder: of that one.
    """
    name, run = next(iter(runs.items()))
    rows, unlike = [], []
    kind = run.target[0] if run.target else "macs"
    for other_name, other in runs.items():
        point, done = _point(other, kind), other.done or {}
        difference = "this run" if other is run else _verdict(run, other, kind)
        rows.append(
            (
                other_name, other.begin.get("algorithm"), other.begin.get("seed"),
                amount(point[0], _unit(run, kind)),
                amount(done["measured_ms"], "ms") if done.get("measured_ms") else "-",
                percent(point[1]), difference,
            )
        )  # fmt: skip
        unlike += _unlike(other_name, run, other) if other_name != name else []
    words = WORDS.get(kind, kind)
    parts: list[object] = []
    if len(runs) > 1:
        head = ("run", "algorithm", "seed", f"{words}, predicted", "measured", "top-1", f"at equal {words}")
        parts.append(table(head, rows, f"Runs; equal {words} is within {100 * EQUAL:.0f} %", (2, 3, 4, 5)))
        parts += [tag("p", text) for text in unlike]
    same_images = {n: s for n, s in runs.items() if _same_images(run, s)}
    drawn = max(_kinds(kind), key=lambda k: len(_comparable(same_images, k)) > 1)  # the first that can be
    alike = _comparable(same_images, drawn)
    chart = _chart(alike, drawn, WORDS.get(drawn, drawn), _unit(run, drawn))
    if chart:
        parts.append(
            figure(chart, "Left and up is better. Hollow marks are models that a run judged on its way.")
        )
    parts += [_by_chance(n, s) for n, s in same_images.items()]
    parts.append(_published(run, folder))
    shown = [part for part in parts if part]
    if not shown:
        advice = "name other runs with --compare DIR, such as one of --algorithm random with the same target"
        shown = [tag("p", f"There is nothing to compare with: {advice}.")]
    return section("Comparison at equal cost", *shown)


def _unit(run: SearchRun, kind: str) -> str:
    return str(dict(run.begin.get("units") or {}).get(kind, "M"))


def _point(run: SearchRun, kind: str) -> tuple[float | None, float | None]:
    """Return the cost and the accuracy (percent) of what a search found."""
    figures = figures_of(run)
    costs = figures.get("costs")
    cost = costs.get(kind) if isinstance(costs, Mapping) else None
    found = finite([(cost, figures.get("top1"))])
    return found[0] if found else (cost if isinstance(cost, (int, float)) else None, figures.get("top1"))


def _same_images(run: SearchRun, other: SearchRun) -> bool:
    """Tell whether the accuracies of two runs are of the same images."""
    return bool(other.begin.get("data") == run.begin.get("data"))


def _kinds(first: str) -> list[str]:
    """Return the kinds of cost, this one first; multiply-accumulates and parameters need no device."""
    return list(dict.fromkeys((first, "latency", "macs", "params")))


def _same_cost(run: SearchRun, other: SearchRun, kind: str) -> bool:
    """Tell whether two runs know this cost of what they found, and it means the same in both."""
    tables = {run.begin.get("table"), other.begin.get("table")} - {None}
    known = all(_point(each, kind)[0] is not None for each in (run, other))
    return known and (kind != "latency" or len(tables) < 2)


def _comparable(runs: Mapping[str, SearchRun], kind: str) -> dict[str, SearchRun]:
    """Return the first run, and those that can be set against it by this cost."""
    first = next(iter(runs.values()))
    return {n: each for n, each in runs.items() if each is first or _same_cost(first, each, kind)}


def _verdict(run: SearchRun, other: SearchRun, kind: str) -> str:
    """Return how another run fares, by what can be compared: by another cost than the target's if need be."""
    by = next((each for each in _kinds(kind) if _same_cost(run, other, each)), None)
    if by is None:
        return "another table" if kind == "latency" and _point(other, kind)[0] is not None else "not known"
    (cost, top1), (other_cost, other_top1) = _point(run, by), _point(other, by)
    if not cost or other_cost is None:
        return "not known"
    words = "" if by == kind else f", by {WORDS.get(by, by)}"
    share = other_cost / cost - 1
    if not _same_images(run, other):
        return f"other images; costs {share:+.0%}{words}"
    if abs(share) > EQUAL:
        return f"costs {share:+.0%}{words}: not equal"
    if top1 is None or other_top1 is None:
        return "not known"
    return f"{other_top1 - top1:+.2f} points{words}"


def _unlike(name: str, run: SearchRun, other: SearchRun) -> list[str]:
    """Return what makes a comparison with another run unfair."""
    found = []
    if other.begin.get("data") != run.begin.get("data"):
        found.append(
            f"{name} is of other images ({other.begin.get('data')}): its accuracy cannot be compared."
        )
    if other.space.digest != run.space.digest:
        found.append(f"{name} is of another space ({other.space.name}).")
    if other.begin.get("table") != run.begin.get("table"):
        used = "is of another latency table" if other.begin.get("table") else "used no latency table"
        found.append(f"{name} {used}: its latencies are of other conditions, and not compared.")
    if other.done is None:
        found.append(f"{name} has not ended.")
    return found


def _chart(runs: Mapping[str, SearchRun], kind: str, words: str, unit: str) -> str:
    """Return accuracy against cost of all models that the runs have judged; "" if there are fewer than
    two.
    """
    marks = "osD^vPX"
    count = 0
    file = io.BytesIO()
    with open_figure(file, 4.8, 3.4, tight=False) as drawn:
        axes = drawn.add_subplot()
        for i, (name, run) in enumerate(runs.items()):
            color, marker = (BLUE if not i else ORANGE if i == 1 else GREY), marks[i % len(marks)]
            tried = finite(
                [
                    ((row.get("costs") or {}).get(kind), row.get("top1"))
                    for row in (*run.evaluated, *run.epochs)
                ]
            )
            point = finite([_point(run, kind)])
            if tried:
                axes.plot(
                    *zip(*tried, strict=True),
                    marker,
                    markersize=4,
                    markerfacecolor="none",
                    markeredgecolor=color,
                    alpha=0.75,
                )
            if point:
                axes.plot(
                    *zip(*point, strict=True),
                    marker,
                    markersize=9,
                    color=color,
                    markeredgecolor="#ffffff",
                    label=name[:30],
                )
            count += len(tried) + len(point)
        target = next(iter(runs.values())).target
        if target is not None and target[0] == kind:
            axes.axvline(target[1], color=BLUE, linewidth=1.4, linestyle=(0, (5, 2)), label="target")
        axes.set_xlabel(
            f"{words}, predicted ({unit})" if kind == "latency" else f"{words} ({unit})", fontsize=10
        )
        axes.set_ylabel("top-1 (%), held-out images", fontsize=10)
        axes.tick_params(labelsize=10)
        axes.grid(color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        if count:
            axes.legend(loc="best", fontsize=9, framealpha=0.9)
    if count < 2:
        return ""
    title = f"Accuracy against {words}"
    said = "; ".join(
        f"{name}: {amount(p[0], unit)}, {percent(p[1])}"
        for name, p in ((n, _point(s, kind)) for n, s in runs.items())
    )
    return inline(file, title, f"{title} of {', '.join(runs)}. Found: {said}.", natural=True).text


def _by_chance(name: str, run: SearchRun) -> Raw:
    """Return how a blind choice fares, from the models that a baseline judged."""
    within = [row for row in run.evaluated if _within(row, run)]
    if not within:
        return Raw("")
    accuracies = sorted(row["top1"] for row in within if isinstance(row.get("top1"), (int, float)))
    if not accuracies:
        return Raw("")
    low, middle, high = accuracies[0], accuracies[len(accuracies) // 2], accuracies[-1]
    return tag(
        "p",
        f"Of the models that {name} judged, {len(accuracies)} keep to its target: from {low:.2f} to "
        f"{high:.2f} %, half of them below {middle:.2f} %.",
    )


def _within(row: Mapping[str, Any], run: SearchRun) -> bool:
    costs = row.get("costs") or {}
    return all(costs.get(name, 0) <= limit for name, limit in dict(run.begin.get("targets") or {}).items())


def _published(run: SearchRun, folder: Path) -> Raw:
    """Return the published models by this run's table, where it knows their operations."""
    from .resolve import table_of

    try:
        found = table_of(folder)
    except LatencyError:
        return Raw("")
    if found is None:
        return Raw("")
    rows = _published_rows(run, found)
    if not rows:
        known = f"models for {run.space.resolution} px and {run.space.num_classes} classes"
        text = f"The latency table knows none of the published models: it is of {known}."
        return details("The published models", tag("p", text))
    head = ("net", "latency, predicted", "top-1", "of")
    caption = "Published models by this run's latency table; accuracies published, not re-measured"
    return table(head, rows, caption, (1, 2))


def _published_rows(run: SearchRun, found: LatencyTable) -> Sequence[tuple[object, ...]]:
    from ..arch.arch import Arch
    from ..arch.published import PUBLISHED
    from ..weights.registry import get_weights

    rows = []
    for name, arch in PUBLISHED.items():
        if not isinstance(arch, Arch):
            continue
        try:
            ms = found.predict(arch)
            record = get_weights(name)
        except (LatencyKeyError, ProxylessError):
            continue
        top1, status = record.metrics.get("top1"), record.metrics.get("status")
        of = record.metrics.get("images") or record.dataset
        rows.append((name, amount(ms, "ms"), percent(top1), f"{of}, {status}"))
    return rows
