"""The end of a search: its model is derived, evaluated, measured and written, as text, JSON and weights."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..arch.arch import Arch
from ..errors import ProxylessError, short_name
from ..models.loading import save_weights
from ..utils.files import write_atomically
from .constraints import Constraint
from .evaluate import choose
from .logger import SearchLog
from .searcher import Searcher
from .setup import SearchSetup

if TYPE_CHECKING:
    from ..latency.measurement import Timing
    from ..models.proxylessnas import ProxylessNAS
    from ..train.metrics import Metrics


ARCH_FILE, CONFIG_FILE, CHILD_FILE, RESULT_FILE = "arch.txt", "net.config", "child.safetensors", "result.json"


@dataclass(frozen=True)
class SearchResult:
    """What a search came to.

    Attributes:
        finished: False if a signal stopped it; the same call goes on.
        folder: of the run.
        arch: the model; None before the end.
        choices: its columns in the space, one a block.
        model: its weights' file, which ``create_model`` opens; None before the end.
        top1: accuracy on the images held out for alpha, percent, with inherited weights and recalibrated
            BatchNorm. These images chose the model, so this is no unbiased figure; and a model trained on its
            own does better.
        costs: what it costs by each budget (and by size), name to value: "latency" in ms, "macs" and "params"
            in millions.
        limits: the budgets, by the same names.
        predicted_ms: its latency by the table; None without one.
        measured: its latency on this machine; None if the table is of another one.
        measured_ms: its undisturbed latency, at the speed that the machine had when the table was made.
        measured_note: why it was not measured, if so.
        reference_ratio: how many times longer the table's reference model took than then.
        too_slow: (predicted, measured) ms of other candidates, which measured above the target.
        seconds: of all parts of the run.
        signal: number of the signal that stopped it, or None.
    """

    finished: bool
    folder: Path
    arch: Arch | None = None
    choices: tuple[int, ...] = ()
    model: Path | None = None
    top1: float | None = None
    costs: Mapping[str, float] = dataclasses.field(default_factory=dict)
    limits: Mapping[str, float] = dataclasses.field(default_factory=dict)
    predicted_ms: float | None = None
    measured: Timing | None = None
    measured_ms: float | None = None
    measured_note: str = ""
    reference_ratio: float | None = None
    too_slow: tuple[tuple[float, float], ...] = ()
    seconds: float = 0.0
    signal: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        m = self.measured
        return {
            "finished": self.finished,
            "arch": None if self.arch is None else str(self.arch),
            "picks": list(self.choices),
            "model": None if self.model is None else self.model.name,
            "top1_held_out": self.top1,
            "costs": dict(self.costs),
            "limits": dict(self.limits),
            "predicted_ms": self.predicted_ms,
            "measured_ms": self.measured_ms,
            "measured_raw_ms": None if m is None else m.undisturbed_ms,
            "measured_median_ms": None if m is None else m.median_ms,
            "measured_reference_ratio": self.reference_ratio,
            "measured_too_slow": [list(pair) for pair in self.too_slow],
            "measured_p10_ms": None if m is None else m.p10_ms,
            "measured_p90_ms": None if m is None else m.p90_ms,
            "measured_noise": None if m is None else list(m.noise),
            "measured_note": self.measured_note,
            "seconds": self.seconds,
        }


def write_child(
    child: ProxylessNAS,
    folder: Path,
    metadata: Mapping[str, str],
    categories: Sequence[str],
    wnids: Sequence[str],
) -> Path:
    """Write a model's three files and return the path of its weights.

    Raises:
        ProxylessError: they cannot be written.
    """
    child.categories, child.wnids = tuple(categories), tuple(wnids)
    arch = child.arch
    assert isinstance(arch, Arch)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / ARCH_FILE, (str(arch) + "\n").encode())
        if all(block.kind != "custom" for block in arch.blocks):  # the original format has no others
            text = json.dumps(arch.to_official(), indent=2) + "\n"
            write_atomically(folder / CONFIG_FILE, text.encode())
        save_weights(child, folder / CHILD_FILE, metadata=dict(metadata))
    except OSError as e:
        raise ProxylessError(
            f"{folder}: the derived model cannot be written ({e.strerror or e}); free space, run again"
        ) from e
    return folder / CHILD_FILE


def write_result(result: SearchResult, extra: Mapping[str, Any], path: Path) -> None:
    """Write ``result.json``."""
    document = _finite({**result.to_dict(), **extra})
    write_atomically(path, (json.dumps(document, indent=2, allow_nan=False) + "\n").encode())


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return value


def top1_text(metrics: Metrics) -> str:
    """Return an accuracy in words."""
    return f"top-1 {metrics.top1:.2f} % on {metrics.n:,} held-out images"


def describe_latency(result: Mapping[str, Any]) -> list[str]:
    """Return in words what is known of a result's latency: predicted, measured, target.

    Args:
        result: as in ``result.json``.
    """
    predicted, measured = result.get("predicted_ms"), result.get("measured_ms")
    if not predicted:
        return []
    if not measured:
        return [f"latency: predicted {predicted:.3f} ms, {result.get('measured_note') or 'not measured'}"]
    text = (
        f"latency: predicted {predicted:.3f} ms, measured {measured:.3f} ms ({measured / predicted - 1:+.1%})"
    )
    target = (result.get("limits") or {}).get("latency")
    if target:
        over = measured / target - 1
        text += f", target {target:.3f} ms: " + (f"over by {over:.1%}" if over >= 0.0005 else "kept")
    found = [text]
    raw, median = result.get("measured_raw_ms"), result.get("measured_median_ms")
    ratio = result.get("measured_reference_ratio")
    if raw and median:
        found.append(
            f"measured is the undisturbed latency; on this machine now half of the calls take over "
            f"{median:.3f} ms (disturbance {median / raw:.2f})"
        )
    if raw and ratio and raw != measured:
        found.append(
            f"the machine was disturbed throughout: the reference model took {ratio:.2f} times as long as "
            f"when the table was made, and this one {raw:.3f} ms"
        )
    slow = result.get("measured_too_slow") or []
    if slow:
        each = ", ".join(f"{b:.3f} ms (predicted {a:.3f})" for a, b in slow)
        found.append(f"{len(slow)} other candidate{'s' * (len(slow) > 1)} measured above the target: {each}")
    found += [f"doubt: {reason}" for reason in result.get("measured_noise") or []]
    return found


#: What models are judged in at the end: the precision of the saved weights, whatever the search computed in.
PRECISION = "float32"


def finish(setup: SearchSetup, searcher: Searcher, log: SearchLog) -> SearchResult:
    """Derive the model of a search that is at its end, write it down, and say what came out."""
    extra = {"origin": setup.origin(), "date": time.strftime("%Y-%m-%d")}
    seconds = searcher.position.total_seconds
    result, metrics = settle(setup, searcher, searcher.settings.out, extra, seconds=seconds)
    if searcher.processes.main:
        log.done(searcher, {**result.to_dict(), "judged_in": PRECISION})
        for text in describe_result(result, setup.constraints, f"{top1_text(metrics)} in {PRECISION}"):
            log.run.note(text)
        log.run.event("done", top1=result.top1, seconds=result.seconds)
    searcher.processes.wait()
    return result


def settle(
    setup: SearchSetup,
    searcher: Searcher,
    out: Path,
    extra: Mapping[str, Any],
    *,
    searched: str = "",
    seconds: float = 0.0,
) -> tuple[SearchResult, Metrics]:
    """Derive a model, judge it, measure it, and write it down; every process takes part, the first one
    writes.

    Args:
        setup: what was asked for.
        searcher: where the search is.
        out: folder for the model's files; its name is the model's.
        extra: what ``result.json`` says besides.
        searched: what the weights' file says of its origin; by default a summary of the search.
        seconds: what the search took.
    """
    choices, tried = choose(setup, searcher)
    child, metrics = searcher.inherited(choices, short_name(out.resolve().name, "searched"))
    costs = {name: c.of(choices) for name, c in setup.costs.items()}
    result = SearchResult(
        True, out, cast(Arch, child.arch), tuple(choices), out / CHILD_FILE, metrics.top1, costs,
        {b.costs.name: b.limit for b in setup.constraints}, costs.get("latency"), seconds=seconds,
    )  # fmt: skip
    if searcher.processes.main:
        metadata = {"searched": searched or _summary(setup, searcher, costs)}
        write_child(child, out, metadata, setup.data.categories, setup.data.wnids)
        if tried:
            winner = tried[-1]
            result = dataclasses.replace(
                result, measured=winner.timing, measured_ms=winner.ms, measured_note=winner.note,
                reference_ratio=winner.reference_ratio,
                too_slow=tuple((t.predicted_ms, t.ms) for t in tried[:-1] if t.ms is not None),
            )  # fmt: skip
        write_result(result, {"judged_in": PRECISION, **extra}, out / RESULT_FILE)
    return result, metrics


def _summary(setup: SearchSetup, searcher: Searcher, costs: dict[str, float]) -> str:
    parts = [f"{setup.recipe.algorithm} search on {setup.data.name}, seed {setup.recipe.seed}"]
    parts += [f"{name} {setup.costs[name].show(value)}" for name, value in costs.items()]
    if setup.table is not None:
        parts.append(f"table {setup.table.digest}")
    return ", ".join(parts)


def describe_result(result: SearchResult, constraints: Sequence[Constraint], accuracy: str) -> list[str]:
    """Return in words what was found."""
    found = [f"done: {result.model}, {accuracy} (inherited weights; train it on for its own)"]
    for constraint in constraints:
        if constraint.costs.name == "latency" and result.measured_ms is not None:
            continue  # told below, against the target
        cost = result.costs[constraint.costs.name]
        show = constraint.costs.show
        found.append(
            f"{constraint.costs.name}: {show(cost)} of at most {show(constraint.limit)} ({cost / constraint.limit:.0%})"
        )
    found += describe_latency(result.to_dict())
    return found
