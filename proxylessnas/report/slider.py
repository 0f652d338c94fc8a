"""The search as something to play with: a slider over its steps, probabilities, the net, two charts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .curves import Line, Mark, finite, line_chart
from .draw_search import net_lines, spread
from .page import WORDS, Raw, amount, data, figure, tag
from .runs import Moment, Story

_LONG = 10  # blocks
_MOMENTS = 160  # at most: about what a slider on a screen can tell apart


def slider(story: Story, most: int = _MOMENTS) -> Raw:
    """Return the slider with everything that it moves; without a script it shows the end of the search.

    Args:
        story: of a search with at least one moment.
        most: moments, evenly spread over the search.
    """
    moments = spread(story.moments, most)
    ends = (float(moments[0].step), float(moments[-1].step))
    target = story.target
    charts = []
    expected = finite([(m.step, m.expected) for m in story.moments])
    if target is not None:
        name = WORDS.get(target[0], target[0])
        mark = Mark(target[1], f"target {amount(target[1], target[2])}")
        chart = line_chart(
            f"Expected {name} of a net drawn now",
            target[2],
            [Line("", expected)],
            x_range=ends,
            marks=[mark],
            cursor=True,
        )
        charts.append(
            figure(chart, f"Expected {name} of a net drawn from the probabilities") if chart else Raw("")
        )
    top1 = finite([(e.get("step"), e.get("top1")) for e in story.epochs])
    chart = line_chart(
        "Accuracy of the net derived then", "top-1 (%)", [Line("", top1)], x_range=ends, cursor=True
    )
    charts.append(
        figure(chart, "Accuracy on the held-out pictures of the net derived after each epoch")
        if chart
        else Raw("")
    )
    last = moments[-1]
    net = tag(
        "pre",
        tag("code", net_lines(story, last.picks), id="net"),
        tabindex=0,
        role="region",
        aria_label="net",
    )
    below = [tag("h3", "Most probable net"), net]
    long = len(story.blocks) > _LONG  # then there is more room below the charts
    left = tag("div", _table(story, last), *([] if long else below))
    right = tag("div", *charts, *(below if long else []))
    about = tag(
        "p", "Move the slider (or focus it and press the arrow keys), or press Play. The frame marks the "
        "most probable candidate of each block; a cross is one that the block does not have.",
    )  # fmt: skip
    words = f"epoch {last.epoch}, step {last.step:,}"
    return Raw(
        about
        + _player(len(moments))
        + tag("p", words, id="now", class_="now")
        + tag("div", left, right, class_="split")
        + data("story", _document(story, moments, ends, top1))
    )


def _player(count: int) -> Raw:
    """Return the button and the slider; they work from the moment on that the script runs."""
    play = Raw('<button type="button" id="play" disabled>Play</button>')
    label = Raw('<label class="hidden" for="moment">moment of the search</label>')
    line = f'<input type="range" id="moment" min="0" max="{count - 1}" value="{count - 1}" step="1" disabled>'
    return tag("div", play, label, Raw(line), class_="player")


def _table(story: Story, moment: Moment) -> Raw:
    head = [tag("th", "block", scope="col")]
    head += [tag("th", "skip" if c == "-" else c, scope="col") for c in story.columns]
    rows = []
    for position, name, line, pick in zip(
        story.space.positions, story.blocks, moment.probs, moment.picks, strict=True
    ):
        cells = [tag("th", name, scope="row")]
        for k, (column, p) in enumerate(zip(story.columns, line, strict=True)):
            if column not in position.choices:
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
            cells.append(tag("td", f"{p:.2f}", style=shade, class_="pick" if k == pick else None))
        rows.append(tag("tr", *cells, class_="stage" if position.block == 0 and position.index else None))
    caption = tag("caption", "Probability of each candidate, by stage.block")
    whole = tag(
        "table", caption, tag("thead", tag("tr", *head)), tag("tbody", *rows), class_="probs", id="probs"
    )
    return tag("div", whole, class_="scroll", tabindex=0, role="region", aria_label="probabilities")


def _document(
    story: Story, moments: Sequence[Moment], ends: tuple[float, float], top1: Sequence[tuple[float, float]]
) -> dict[str, Any]:
    """Return what the script needs; probabilities in thousandths."""
    target = story.target
    return {
        "columns": ["skip" if c == "-" else c for c in story.columns],
        "stage": [p.stage for p in story.space.positions],
        "stages": [stage.width for stage in story.space.stages],
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
            for m in moments
        ],
    }
