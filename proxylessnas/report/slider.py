"""The search as something to play with: a slider over its steps, probabilities, the model, two charts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .curves import Line, Mark, finite, line_chart
from .draw_search import model_lines, spread
from .page import WORDS, Raw, amount, data, figure, tag
from .runs import SearchRun, Snapshot

_LONG = 10  # blocks
_MOMENTS = 160  # at most: about what a slider on a screen can tell apart


def slider(run: SearchRun, most: int = _MOMENTS) -> Raw:
    """Return the slider with everything that it moves; without a script it shows the end of the search.

    Args:
        run: of a search with at least one moment.
        most: moments, evenly spread over the search.
    """
    snapshots = spread(run.snapshots, most)
    ends = (float(snapshots[0].step), float(snapshots[-1].step))
    target = run.target
    charts = []
    expected = finite([(m.step, m.expected) for m in run.snapshots])
    if target is not None:
        name = WORDS.get(target[0], target[0])
        mark = Mark(target[1], f"target {amount(target[1], target[2])}")
        chart = line_chart(
            f"Expected {name} of a model drawn now",
            target[2],
            [Line("", expected)],
            x_range=ends,
            marks=[mark],
            cursor=True,
        )
        charts.append(
            figure(chart, f"Expected {name} of a model drawn from the probabilities") if chart else Raw("")
        )
    top1 = finite([(e.get("step"), e.get("top1")) for e in run.epochs])
    chart = line_chart(
        "Accuracy of the model derived then", "top-1 (%)", [Line("", top1)], x_range=ends, cursor=True
    )
    charts.append(
        figure(chart, "Accuracy on the held-out images of the model derived after each epoch")
        if chart
        else Raw("")
    )
    last = snapshots[-1]
    model = tag(
        "pre",
        tag("code", model_lines(run, last.choices), id="net"),
        tabindex=0,
        role="region",
        aria_label="net",
    )
    below = [tag("h3", "Most probable model"), model]
    long = len(run.blocks) > _LONG  # then there is more room below the charts
    left = tag("div", _table(run, last), *([] if long else below))
    right = tag("div", *charts, *(below if long else []))
    about = tag(
        "p", "Move the slider (or focus it and press the arrow keys), or press Play. The frame marks the "
        "most probable candidate of each block; a cross is one that the block does not have.",
    )  # fmt: skip
    words = f"epoch {last.epoch}, step {last.step:,}"
    return Raw(
        about
        + _player(len(snapshots))
        + tag("p", words, id="now", class_="now")
        + tag("div", left, right, class_="split")
        + data("story", _document(run, snapshots, ends, top1))
    )


def _player(count: int) -> Raw:
    """Return the button and the slider; they work from the moment on that the script runs."""
    play = Raw('<button type="button" id="play" disabled>Play</button>')
    label = Raw('<label class="hidden" for="moment">moment of the search</label>')
    line = f'<input type="range" id="moment" min="0" max="{count - 1}" value="{count - 1}" step="1" disabled>'
    return tag("div", play, label, Raw(line), class_="player")


def _table(run: SearchRun, snapshot: Snapshot) -> Raw:
    head = [tag("th", "block", scope="col")]
    head += [tag("th", "skip" if c == "-" else c, scope="col") for c in run.candidate_ops]
    rows = []
    for search_block, name, line, choice in zip(
        run.space.search_blocks, run.blocks, snapshot.probs, snapshot.choices, strict=True
    ):
        cells = [tag("th", name, scope="row")]
        for k, (column, p) in enumerate(zip(run.candidate_ops, line, strict=True)):
            if column not in search_block.candidate_ops:
                cells.append(
                    tag(
                        "td",
                        tag("span", "×", aria_hidden="true"),
                        tag("span", "none", class_="hidden"),
                        class_="none",
                    )
                )
                continue
            shade = f"background-color:rgba(var(--p), {0.62 * p:.3f})"
            cells.append(tag("td", f"{p:.2f}", style=shade, class_="pick" if k == choice else None))
        rows.append(
            tag("tr", *cells, class_="stage" if search_block.block == 0 and search_block.index else None)
        )
    caption = tag("caption", "Probability of each candidate, by stage.block")
    whole = tag(
        "table", caption, tag("thead", tag("tr", *head)), tag("tbody", *rows), class_="probs", id="probs"
    )
    return tag("div", whole, class_="scroll", tabindex=0, role="region", aria_label="probabilities")


def _document(
    run: SearchRun,
    snapshots: Sequence[Snapshot],
    ends: tuple[float, float],
    top1: Sequence[tuple[float, float]],
) -> dict[str, Any]:
    """Return what the script needs; probabilities in thousandths."""
    target = run.target
    return {
        "columns": ["skip" if c == "-" else c for c in run.candidate_ops],
        "stage": [p.stage for p in run.space.search_blocks],
        "stages": [stage.width for stage in run.space.stages],
        "range": list(ends),
        "cost": "" if target is None else WORDS.get(target[0], target[0]),
        "unit": "" if target is None else target[2],
        "target": None if target is None else float(f"{target[1]:.4g}"),
        "top1": [list(point) for point in top1],
        "moments": [
            [
                m.step,
                m.epoch,
                None if m.expected is None or target is None else float(f"{m.expected:.4g}"),
                [[round(1000 * p) for p in line] for line in m.probs],
            ]
            for m in snapshots
        ],
    }
