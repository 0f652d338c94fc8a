"""What a search writes down: ``search.jsonl``, TensorBoard, signs that it goes wrong, and ``result.json``."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor

from ..arch.arch import Arch
from ..errors import ProxylessError
from ..train.log_files import LineLog
from ..train.logger import RunLog
from ..utils.files import read_bytes, write_atomically
from .arch_params import ArchParameters
from .baselines import best_of
from .constraints import Constraint
from .ship import describe_int8

if TYPE_CHECKING:
    from ..latency.measurement import Timing
    from .searcher import Searcher


LOG_FILE, RESULT_FILE = "search.jsonl", "result.json"
ARCH_FILE, CHILD_FILE = "arch.txt", "child.safetensors"
_GROUP = "search"  # of the figures in TensorBoard
_ROWS = 2000  # lines with all probabilities, about


class SearchLog:
    """The logs of a search: that which every run has, and ``search.jsonl``; silent but in the first process.

    Every ``rows_every`` arch steps a line holds all probabilities.
    """

    def __init__(self, run: RunLog, lines: LineLog | None, rows_every: int = 1) -> None:
        self.run, self._lines, self._rows_every = run, lines, rows_every

    def begin(self, fields: Mapping[str, Any]) -> None:
        """Write what the search is about."""
        self._write("begin", 0, {"epoch": 0, **fields})

    def arch_step(self, searcher: Searcher, figures: Mapping[str, Any]) -> None:
        """Write down an arch step, whose figures are these, and how alpha stands after it."""
        if self._lines is None:  # what follows takes time
            return
        p, number = searcher.position, searcher.arch_steps
        fields = {"arch_step": number, **figures, **_standing(searcher)}
        self.run.figures(_GROUP, p.global_step, fields)
        if number % self._rows_every == 0:
            fields["probs"] = _probabilities(searcher)
        self._write("arch", p.global_step, {"epoch": p.epoch + 1, **fields})

    def epoch(self, searcher: Searcher, choices: list[int], top1: float | None) -> None:
        """Write down the end of an epoch, and the model that would be derived now."""
        if self._lines is None:
            return
        p = searcher.position
        costs = {b.costs.name: b.costs.of(choices) for b in searcher.setup.constraints}
        derived = {"derived_top1": top1, **{f"derived_{name}": cost for name, cost in costs.items()}}
        self.run.figures(_GROUP, p.global_step, derived)
        fields = {"probs": _probabilities(searcher), "picks": choices, "top1": top1, "costs": costs}
        self._images(searcher, choices)
        self._write("epoch", p.global_step, {"epoch": p.epoch + 1, **_standing(searcher), **fields})

    def _images(self, searcher: Searcher, choices: list[int], *, last: bool = False) -> None:
        """Show alpha and the model that would be derived in TensorBoard, where it is asked for."""
        space, step = searcher.model.space, searcher.position.global_step

        def probabilities() -> bytes:
            from ..figures.tensorboard import probabilities_png

            return probabilities_png(space, _probabilities(searcher))

        def model() -> bytes:
            from ..figures.tensorboard import model_png

            return model_png(space.arch(choices, "derived"))

        self.run.image("search/probabilities", step, probabilities, last=last)
        self.run.image("search/net", step, model, last=last)

    def evaluated(self, searcher: Searcher) -> None:
        """Write down the model that was evaluated last."""
        evaluated = searcher.evaluator.evaluated
        found, number = evaluated[-1], len(evaluated)
        self.run.validating(number, number + searcher.evaluator.due)
        names = [b.costs.name for b in searcher.setup.constraints]
        figures = {"number": number, "top1": found.top1, "best": best_of(evaluated).top1}
        costs = dict(zip(names, found.costs, strict=True))
        step = searcher.position.global_step + number
        self.run.figures("judged", step, {**figures, **costs})
        self._write("judged", step, {**figures, "picks": list(found.choices), "costs": costs})

    def done(self, searcher: Searcher, result: Mapping[str, Any]) -> None:
        """Write down the result."""
        p = searcher.position
        self._images(searcher, list(result["picks"]), last=True)
        self._write("done", p.global_step, {"epoch": p.epoch, **result})

    def _write(self, event: str, step: int, fields: Mapping[str, Any]) -> None:
        if self._lines is not None:
            self._lines.write(event, {"step": step, **fields})


def _standing(searcher: Searcher) -> dict[str, float | None]:
    """Return the expected cost (also as a share of the target), and the signs of health."""
    expected = searcher.expected()
    share = None if expected is None else expected / searcher.setup.constraints[0].limit
    return {"expected": expected, "of_target": share, **searcher.health.figures(searcher.model.alphas)}


def _probabilities(searcher: Searcher) -> list[list[float]]:
    """Return p to four digits, [blocks][candidates]."""
    return [[round(v, 4) for v in row] for row in searcher.model.alphas.probs().tolist()]


@contextmanager
def open_logs(searcher: Searcher) -> Iterator[SearchLog]:
    """Open the logs of a search where it resumes."""
    settings, p, schedule = searcher.settings, searcher.position, searcher.schedule
    if not searcher.processes.main:
        yield SearchLog(RunLog.silent(), None)
        return
    step = p.global_step + len(searcher.evaluator.evaluated)
    with RunLog(
        settings.out, epochs=schedule.total_epochs, steps_per_epoch=schedule.steps_per_epoch,
        batch_size=searcher.recipe.weights.batch_size, tensorboard=settings.tensorboard,
        console=settings.console, resume_step=step, resume_epoch=p.epoch,
    ) as run:  # fmt: skip
        lines = LineLog(settings.out / LOG_FILE, step, p.epoch, run.note)
        try:
            yield SearchLog(run, lines, max(1, schedule.arch_steps() // _ROWS))
        finally:
            lines.close()


_COLLAPSED = 0.75  # share of the blocks that may be skipped, of which a healthy search keeps some
_LASTS = 3  # epochs in a row after which a collapse is no passing state
_MOVED = 1e-9  # of any alpha, between two epochs
_NO_GRADIENT = 50  # arch steps in a row
_STATE = ("still", "zeros", "collapsed", "last", "warned")  # of Health, in checkpoints


@dataclass
class Health:
    """Watches alpha for signs that a search goes wrong.

    Attributes:
        zero_column: the candidate that skips its block; None if there is none.
        stuck_epochs: epochs without any movement after which a search is stopped; 0 never does.
    """

    zero_column: int | None
    stuck_epochs: int
    still: int = 0  # epochs up to now in which alpha did not move
    zeros: int = 0  # arch steps up to now whose gradient was zero
    last: Tensor | None = None  # alpha at the end of the last epoch with arch steps
    collapsed: int = 0  # epochs up to now in which most blocks that may be skipped were
    warned: bool = False  # of the collapse

    def figures(self, alphas: ArchParameters) -> dict[str, float]:
        """Return entropy (nats, mean over blocks) and the shares of skipped blocks: expected, most probable.

        Both are shares of the blocks that may be skipped; where none may, there are none.
        """
        entropy = float(alphas.entropy().mean())
        zero = self.zero_column
        skippable = [] if zero is None else alphas.mask[:, zero].nonzero()[:, 0].tolist()
        if not skippable:
            return {"entropy": entropy}
        expected = float(alphas.probs().detach()[skippable, zero].mean())
        best = alphas.most_probable()
        now = sum(best[i] == zero for i in skippable) / len(skippable)
        return {"entropy": entropy, "skip_share": expected, "skip_share_now": now}

    def arch_step(self, gradient_norm: float) -> None:
        """Take note of an arch step.

        Raises:
            ProxylessError: alpha has had no gradient for many steps.
        """
        self.zeros = 0 if gradient_norm > 0 else self.zeros + 1
        if self.stuck_epochs and self.zeros >= _NO_GRADIENT:
            raise ProxylessError(
                f"the architecture parameters had no gradient in the last {self.zeros} arch steps: nothing "
                "is being searched. Are all blocks left with one candidate, or all sampled models equally "
                "good?"
            )

    def end_of_epoch(self, alphas: ArchParameters, *, last: bool = False) -> list[str]:
        """Take note of an epoch with arch steps, and return what a user should know.

        A collapse is reported once, when it has lasted for some epochs or stands at the ``last`` one: many a
        search passes through one and comes out of it.

        Raises:
            ProxylessError: alpha has not moved for ``stuck_epochs`` epochs.
        """
        now = alphas.logits.detach().clone()
        moved = self.last is None or float((now - self.last).abs().max()) > _MOVED
        self.last, self.still = now, 0 if moved else self.still + 1
        if self.stuck_epochs and self.still >= self.stuck_epochs:
            raise ProxylessError(
                f"the architecture parameters have not moved for {self.still} epochs: raise arch_rate, or "
                "look at arch_every and frozen_epochs; a search may be continued with stuck_epochs = 0"
            )
        found = self.figures(alphas)
        # Which candidate is the most probable says little while others are nearly as probable.
        meant = min(found.get("skip_share", 0.0), found.get("skip_share_now", 0.0)) > _COLLAPSED
        self.collapsed = self.collapsed + 1 if meant else 0
        if self.warned or not meant or not (last or self.collapsed >= _LASTS):
            return []
        self.warned = True
        since = f", for {self.collapsed} epochs now" if self.collapsed > 1 else ""
        return [
            f"{found['skip_share_now']:.0%} of the skippable blocks are skipped{since}: the search "
            "collapses to a shallow model. A longer warm-up, less weight of the cost (strength, or a "
            "higher target) or min_depth help"
        ]

    def state_dict(self) -> dict[str, Any]:
        """Return what a search resumes from."""
        return {name: getattr(self, name) for name in _STATE}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Undo :meth:`state_dict`."""
        for name in _STATE:
            setattr(self, name, state.get(name, 0))  # earlier checkpoints did not count collapsed epochs


@dataclass(frozen=True)
class SearchResult:
    """What a search came to.

    Attributes:
        finished: False if a signal stopped it; the same call resumes it.
        folder: of the run.
        arch: the model; None before the end.
        choices: its columns in the space, one a block.
        model: its weights' file, which ``create_model`` opens; None before the end.
        top1: accuracy on the images held out for alpha, percent, with inherited weights and recalibrated
            BatchNorm. These images chose the model, so this is no unbiased figure; and a model trained on its
            own does better.
        costs: what it costs by each constraint (and by size), name to value: "latency" in ms, "macs" and
            "params" in millions.
        limits: the targets, by the same names.
        predicted_ms: its latency by the table; None without one.
        measured: its latency on this machine; None if the table is of another one.
        measured_ms: its undisturbed latency, at the speed that the machine had when the table was made.
        measured_note: why it was not measured, if so.
        reference_ratio: how many times longer the table's reference model took than then.
        too_slow: (predicted, measured) ms of other candidates, which measured above the target.
        chosen_of: models within the targets that were evaluated, of which it is the best; 0 where it is the
            most probable one.
        most_probable_top1: accuracy of the most probable of them, in the precision of the search.
        front: of several targets, what the search came to for each; the result itself is that of the target
            that alpha learnt for.
        seconds: of all parts of the run.
        signal: number of the signal that stopped it, or None.
        int8: of a search with a table of INT8, what came of the model's INT8 file, as JSON values: its name
            and latency, and accuracy, latency and size of both precisions; or a note why there is none.
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
    chosen_of: int = 0
    most_probable_top1: float | None = None
    front: tuple[SearchResult, ...] = ()
    seconds: float = 0.0
    signal: int | None = None
    int8: Mapping[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        m = self.measured
        end = {"chosen_of": self.chosen_of, "most_probable_top1": self.most_probable_top1}
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
            **(end if self.chosen_of else {}),
            **({"front": {r.folder.name: r.to_dict() for r in self.front}} if self.front else {}),
            "seconds": self.seconds,
            **({} if self.int8 is None else {"int8": dict(self.int8)}),
        }

    def write(self, extra: Mapping[str, Any]) -> None:
        """Write ``result.json``, after all other files of the model; ``extra`` is what it says besides."""
        digest = None if self.model is None else hashlib.sha256(read_bytes(self.model)).hexdigest()
        timing = None if self.measured is None else dataclasses.asdict(self.measured)
        document = _finite({**self.to_dict(), "model_sha256": digest, "timing": timing, **extra})
        text = json.dumps(document, indent=2, allow_nan=False) + "\n"
        write_atomically(self.folder / RESULT_FILE, text.encode())

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any], folder: Path) -> SearchResult:
        """Return what :meth:`write` wrote into a folder."""
        from ..latency.measurement import Timing
        from ..runtimes.settings import Conditions

        timing = saved.get("timing")
        if timing is not None:
            doubt = timing["uncertainty"]
            made: dict[str, Any] = {name: tuple(timing[name]) for name in ("noise", "input_size")}
            made |= {"conditions": Conditions(**timing["conditions"])}
            timing = Timing(**{**timing, **made, "uncertainty": math.inf if doubt is None else doubt})
        names = ("finished", "costs", "limits", "predicted_ms", "measured_ms", "measured_note", "seconds")
        return cls(
            folder=folder, arch=cast(Arch, Arch.parse(saved["arch"])), choices=tuple(saved["picks"]),
            model=folder / CHILD_FILE, top1=saved["top1_held_out"], measured=timing,
            reference_ratio=saved["measured_reference_ratio"], int8=saved.get("int8"),
            too_slow=tuple((a, b) for a, b in saved["measured_too_slow"]),
            chosen_of=saved.get("chosen_of", 0), most_probable_top1=saved.get("most_probable_top1"),
            front=tuple(cls.from_dict(of, folder / name) for name, of in saved.get("front", {}).items()),
            **{name: saved[name] for name in names},
        )  # fmt: skip


def saved_result(folder: Path, origin: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what a folder's ``result.json`` says, if its model is there and from a search of this origin."""
    try:
        saved: dict[str, Any] = json.loads(read_bytes(folder / RESULT_FILE))
        result = SearchResult.from_dict(saved, folder)
        digest = hashlib.sha256(read_bytes(folder / CHILD_FILE)).hexdigest()
        arch = read_bytes(folder / ARCH_FILE).decode()
        last = json.loads(read_bytes(folder / LOG_FILE).splitlines()[-1])  # it is written after the result
        same = saved["origin"] == json.loads(json.dumps(_finite(origin)))
        same = same and saved["model_sha256"] == digest and arch == f"{result.arch}\n"
        same = same and last["event"] == "done"
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None  # cut short, or of an earlier version
    return saved if same else None


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return value


def describe_latency(result: Mapping[str, Any]) -> list[str]:
    """Return in words what a ``result.json`` says of latency: predicted, measured, target."""
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


def describe_result(result: SearchResult, constraints: Sequence[Constraint], accuracy: str) -> list[str]:
    """Return in words what was found."""
    found = [f"done: {result.model}, {accuracy} (inherited weights; train it on for its own)"]
    for constraint in constraints:
        if constraint.costs.name == "latency" and result.measured_ms is not None:
            continue  # stated below, against the target
        cost = result.costs[constraint.costs.name]
        show = constraint.costs.show
        found.append(
            f"{constraint.costs.name}: {show(cost)} of at most {show(constraint.limit)} "
            f"({cost / constraint.limit:.0%})"
        )
    if result.chosen_of:
        most = result.most_probable_top1
        found.append(
            f"the best of {result.chosen_of} evaluated models within the target, by cross-entropy"
            + ("" if most is None else f"; the most probable of them has {most:.2f} %")
        )
    found += describe_latency(result.to_dict())
    return found + describe_int8(result.to_dict())
