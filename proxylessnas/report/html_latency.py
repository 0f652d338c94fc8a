"""The part of a search's page about latency: predicted, measured, and how good the predictions are."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from ..arch import Arch
from ..errors import LatencyError
from .page import Raw, facts, figure
from .search_story import Story
from .svg import inline
from .wording import amount

if TYPE_CHECKING:
    from ..latency.agreement import Validation
    from ..latency.table import LatencyTable


def latency_part(story: Story, net: Arch | None, table: LatencyTable | None) -> Raw:
    """Return what is known of the latency of a search's net, and of its table.

    Args:
        story: of the search.
        net: what it found.
        table: of its device; None where it is missing or damaged.
    """
    done = story.done or {}
    rows: list[tuple[str, object]] = []
    predicted, measured = done.get("predicted_ms"), done.get("measured_ms")
    if predicted:
        rows.append(("predicted", amount(predicted, "ms")))
    elif net is not None and table is not None:
        try:
            rows.append(("predicted", amount(table.predict(net), "ms")))
        except LatencyError:
            rows.append(("predicted", "not known"))
    if measured:
        from ..search.result import describe_latency

        rows += [("measured" if not i else "", text) for i, text in enumerate(describe_latency(done))]
    elif done:
        rows.append(("measured", done.get("measured_note") or "not measured"))
    else:
        rows.append(("measured", "not yet: the net is measured when the search ends"))
    rows.append(("device", story.begin.get("table_conditions")))
    if table is None:
        return facts([*rows, ("the table", "is not in the run's folder, or damaged")])
    doubts, known = table.trust(), _validation(table)
    rows.append(("the table's own test", known.verdict if known else "; ".join(doubts) or "passed"))
    if known is None or not known.pairs:
        return facts(rows)
    return Raw(facts(rows) + _chart(known, predicted, measured))


def _validation(table: LatencyTable) -> Validation | None:
    from ..latency.agreement import Validation

    try:
        return None if table.validation is None else Validation.from_dict(table.validation)
    except LatencyError:
        return None


def _chart(known: Validation, predicted: Any, measured: Any) -> Raw:
    from ..latency.charts import Named, prediction_png

    file = io.BytesIO()
    named = [Named("this net", float(predicted), float(measured))] if predicted and measured else []
    title = "Nets predicted by the table, and measured"
    prediction_png([pair[1:] for pair in known.pairs], file, title="", named=named, side=4.6)
    said = (
        f"{known.nets} random nets; {known.within_5_percent:.0f} % of them are predicted within 5 %, "
        f"{known.within_10_percent:.0f} % within 10 %. {known.verdict}"
    )
    svg = inline(file, title, said, natural=True)
    caption = (
        "Random nets that the table was not made from, each predicted and measured; on the line is perfect."
    )
    return figure(svg.text, caption)
