"""Searches side by side: what each found at what cost; beside them models by chance, and published ones."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import ProxylessError
from ..utils.plotting import BLUE, GREY, ORANGE, clean_axes, finite, open_figure
from .page import WORDS, Comparison, Figure, Table, amount, inline, percent, word
from .runs import SearchRun

if TYPE_CHECKING:
    from ..latency.table import LatencyTable

EQUAL = 0.05  # costs that differ by less than this share count as equal
_MARKERS = "osD^vPX"


def compare(runs: Mapping[str, SearchRun], table: LatencyTable | None) -> Comparison:
    """Return the comparison of a search with others, with chance, and with the published models.

    Args:
        runs: name to search; the first is the one that the page is about.
        table: the latency table of the first.
    """
    run = next(iter(runs.values()))
    kind = run.target.kind if run.target else "macs"
    same_images = {n: other for n, other in runs.items() if other.begin.get("data") == run.begin.get("data")}
    drawn = max(_kinds(kind), key=lambda k: len(_comparable(same_images, k)) > 1)  # the first that can be
    found = Comparison(
        "Comparison at equal cost",
        _table(runs, kind) if len(runs) > 1 else None,
        [text for n, other in runs.items() if other is not run for text in _differences(n, run, other)],
        _chart(_comparable(same_images, drawn), drawn, _unit(run, drawn)),
        [text for n, other in same_images.items() for text in _by_chance(n, other)],
        _published(run, table) if table is not None else "",
    )
    if found.table or found.chart or found.remarks_below or found.published:
        return found
    advice = "name other runs with --compare DIR, such as one of --algorithm random with the same target"
    return Comparison(found.title, None, [f"There is nothing to compare with: {advice}."])


def _table(runs: Mapping[str, SearchRun], kind: str) -> Table:
    run = next(iter(runs.values()))
    rows = []
    for name, other in runs.items():
        measured = (other.done or {}).get("measured_ms")
        rows.append(
            (
                name, other.begin.get("algorithm"), other.begin.get("seed"),
                amount(other.costs.get(kind), _unit(run, kind)), amount(measured, "ms") if measured else "-",
                percent(other.figures.get("top1")),
                "this run" if other is run else _verdict(run, other, kind),
            )
        )  # fmt: skip
    words = word(kind)
    head = ("run", "algorithm", "seed", f"{words}, predicted", "measured", "top-1", f"at equal {words}")
    return Table(head, rows, f"Runs; equal {words} is within {100 * EQUAL:.0f} %", (2, 3, 4, 5))


def _unit(run: SearchRun, kind: str) -> str:
    return str(run.begin.get("units", {}).get(kind, "M"))


def _kinds(first: str) -> list[str]:
    """Return the kinds of cost, this one first; multiply-accumulates and parameters need no device."""
    return list(dict.fromkeys((first, *WORDS)))


def _same_cost(run: SearchRun, other: SearchRun, kind: str) -> bool:
    """Tell whether two runs know this cost of what they found, and it means the same in both."""
    tables = {run.begin.get("table"), other.begin.get("table")} - {None}
    return kind in run.costs and kind in other.costs and (kind != "latency" or len(tables) < 2)


def _comparable(runs: Mapping[str, SearchRun], kind: str) -> dict[str, SearchRun]:
    """Return the first run, and those that can be set against it by this cost."""
    first = next(iter(runs.values()))
    return {n: each for n, each in runs.items() if each is first or _same_cost(first, each, kind)}


def _verdict(run: SearchRun, other: SearchRun, kind: str) -> str:
    """Return how another run fares, by what can be compared: by another cost than the target's if need be."""
    by = next((each for each in _kinds(kind) if _same_cost(run, other, each)), None)
    if by is None:
        return "another table" if kind == "latency" and kind in other.costs else "not known"
    if not run.costs[by]:
        return "not known"
    words = "" if by == kind else f", by {word(by)}"
    share = other.costs[by] / run.costs[by] - 1
    if other.begin.get("data") != run.begin.get("data"):
        return f"other images; costs {share:+.0%}{words}"
    if abs(share) > EQUAL:
        return f"costs {share:+.0%}{words}: not equal"
    top1, other_top1 = run.figures.get("top1"), other.figures.get("top1")
    if top1 is None or other_top1 is None:
        return "not known"
    return f"{other_top1 - top1:+.2f} points{words}"


def _differences(name: str, run: SearchRun, other: SearchRun) -> list[str]:
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


def _chart(runs: Mapping[str, SearchRun], kind: str, unit: str) -> Figure | None:
    """Return accuracy against cost of all models that the runs evaluated; None for fewer than two."""
    words = word(kind)
    points = {}
    for name, run in runs.items():
        rows = (*run.evaluated, *run.epochs)
        tried = finite((row.get("costs", {}).get(kind), row.get("top1")) for row in rows)
        points[name] = tried, finite([(run.costs.get(kind), run.figures.get("top1"))])
    if sum(len(tried) + len(best) for tried, best in points.values()) < 2:
        return None
    file = io.BytesIO()
    with open_figure(file, 4.8, 3.4, tight=False) as figure:
        axes = figure.add_subplot()
        for i, (name, (tried, best)) in enumerate(points.items()):
            look = {"color": (BLUE, ORANGE, GREY)[min(i, 2)], "marker": _MARKERS[i % len(_MARKERS)]}
            if tried:
                axes.plot(
                    *zip(*tried, strict=True), linestyle="", markersize=4, markerfacecolor="none", alpha=0.75,
                    **look,
                )  # fmt: skip
            if best:
                axes.plot(
                    *zip(*best, strict=True), linestyle="", markersize=9, markeredgecolor="#ffffff",
                    label=name[:30], **look,
                )  # fmt: skip
        target = next(iter(runs.values())).target
        if target is not None and target.kind == kind:
            axes.axvline(target.limit, color=BLUE, linewidth=1.4, linestyle=(0, (5, 2)), label="target")
        axes.set_xlabel(f"{words}{', predicted' * (kind == 'latency')} ({unit})", fontsize=10)
        axes.set_ylabel("top-1 (%), held-out images", fontsize=10)
        axes.tick_params(labelsize=10)
        clean_axes(axes)
        axes.legend(loc="best", fontsize=9, framealpha=0.9)
    title = f"Accuracy against {words}"
    said = "; ".join(
        f"{name}: {amount(run.costs.get(kind), unit)}, {percent(run.figures.get('top1'))}"
        for name, run in runs.items()
    )
    svg = inline(file, title, f"{title} of {', '.join(runs)}. Found: {said}.", natural=True)
    return Figure(svg, "Left and up is better. Hollow marks are models that a run evaluated on its way.")


def _by_chance(name: str, run: SearchRun) -> list[str]:
    """Return how a blind choice fares, from the models that a baseline evaluated."""
    rows = [row for row in run.evaluated if _keeps_to_targets(row, run)]
    top1 = sorted(row["top1"] for row in rows if "top1" in row)
    if not top1:
        return []
    return [
        f"Of the models that {name} evaluated, {len(top1)} keep to its target: from {top1[0]:.2f} to "
        f"{top1[-1]:.2f} %, half of them below {top1[len(top1) // 2]:.2f} %."
    ]


def _keeps_to_targets(row: Mapping[str, Any], run: SearchRun) -> bool:
    return all(row.get("costs", {}).get(target.kind, 0) <= target.limit for target in run.targets)


def _published(run: SearchRun, table: LatencyTable) -> Table | str:
    """Return the published models by this run's table, where it knows their operations."""
    rows = _published_rows(table)
    if not rows:
        known = f"models for {run.space.resolution} px and {run.space.num_classes} classes"
        return f"The latency table knows none of the published models: it is of {known}."
    caption = "Published models by this run's latency table; accuracies published, not re-measured"
    return Table(("model", "latency, predicted", "top-1", "of"), rows, caption, (1, 2))


def _published_rows(table: LatencyTable) -> Sequence[tuple[object, ...]]:
    from ..arch.arch import Arch
    from ..arch.published import PUBLISHED
    from ..weights.registry import get_weights

    rows = []
    for name, arch in PUBLISHED.items():
        if not isinstance(arch, Arch):
            continue
        try:
            ms, record = table.predict(arch), get_weights(name)
        except ProxylessError:
            continue
        top1, status = record.metrics.get("top1"), record.metrics.get("status")
        of = record.metrics.get("images") or record.dataset
        rows.append((name, amount(ms, "ms"), percent(top1), f"{of}, {status}"))
    return rows
