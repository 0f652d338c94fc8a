"""What a search logs: ``search.jsonl``, TensorBoard, and signs that it goes wrong, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..errors import ProxylessError
from ..train.log_files import LineLog
from ..train.logger import RunLog
from .arch_params import ArchParameters
from .baselines import best_of

if TYPE_CHECKING:
    from .searcher import Searcher


LOG_FILE = "search.jsonl"
_GROUP = "search"  # of the figures in TensorBoard
_ROWS = 2000  # lines with all probabilities, about


class SearchLog:
    """The logs of a search; in all processes but the first one nothing is written.

    Args:
        run: the log that every run has.
        lines: ``search.jsonl``, or None.
        rows_every: arch steps between two lines that hold all probabilities.
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
        fields = {"arch_step": number, **figures, **searcher.standing()}
        self.run.figures(_GROUP, p.global_step, fields)
        if number % self._rows_every == 0:
            fields["probs"] = searcher.probabilities()
        self._write("arch", p.global_step, {"epoch": p.epoch + 1, **fields})

    def epoch(self, searcher: Searcher, choices: list[int], top1: float | None) -> None:
        """Write down the end of an epoch, and the model that would be derived now."""
        if self._lines is None:
            return
        p = searcher.position
        costs = {b.costs.name: b.costs.of(choices) for b in searcher.constraints}
        derived = {"derived_top1": top1, **{f"derived_{name}": cost for name, cost in costs.items()}}
        self.run.figures(_GROUP, p.global_step, derived)
        fields = {"probs": searcher.probabilities(), "picks": choices, "top1": top1, "costs": costs}
        self._images(searcher, choices)
        self._write("epoch", p.global_step, {"epoch": p.epoch + 1, **searcher.standing(), **fields})

    def _images(self, searcher: Searcher, choices: list[int], *, last: bool = False) -> None:
        """Show alpha and the model that would be derived in TensorBoard, where it is asked for."""
        space, step = searcher.model.space, searcher.position.global_step

        def probabilities() -> bytes:
            from ..figures.tensorboard import probabilities_png

            return probabilities_png(space, searcher.probabilities())

        def model() -> bytes:
            from ..figures.tensorboard import model_png

            return model_png(space.arch(choices, "derived"))

        self.run.image("search/probabilities", step, probabilities, last=last)
        self.run.image("search/net", step, model, last=last)

    def evaluated(self, searcher: Searcher) -> None:
        """Write down the model that was judged last."""
        found, number = searcher.evaluated[-1], len(searcher.evaluated)
        self.run.validating(number, searcher.recipe.evaluations)
        names = [b.costs.name for b in searcher.constraints]
        figures = {"number": number, "top1": found.top1, "best": best_of(searcher.evaluated).top1}
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


@contextmanager
def open_logs(searcher: Searcher) -> Iterator[SearchLog]:
    """Open the logs of a search where it goes on."""
    settings, p, schedule = searcher.settings, searcher.position, searcher.schedule
    if not searcher.processes.main:
        yield SearchLog(RunLog.silent(), None)
        return
    step = p.global_step + len(searcher.evaluated)
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


@dataclass
class Health:
    """Watches alpha.

    Attributes:
        zero_column: the candidate that skips its block; None if there is none.
        stuck_epochs: epochs without any movement after which a search is stopped; 0 never does.
        still: epochs up to now in which alpha did not move.
        zeros: arch steps up to now whose gradient was zero.
        last: alpha at the end of the last epoch with arch steps.
        collapsed: epochs up to now in which most blocks that may be skipped were.
        warned: whether the collapse was told.
    """

    zero_column: int | None
    stuck_epochs: int
    still: int = 0
    zeros: int = 0
    last: Tensor | None = None
    collapsed: int = 0
    warned: bool = False

    def figures(self, alphas: ArchParameters) -> dict[str, float]:
        """Return entropy (nats, mean over blocks) and the shares of skipped blocks: expected, most probable.

        Both are shares of the blocks that may be skipped.
        """
        entropy = float(alphas.entropy().mean())
        zero = self.zero_column
        skippable = [] if zero is None else alphas.mask[:, zero].nonzero()[:, 0].tolist()
        if not skippable:
            return {"entropy": entropy, "skip_share": 0.0, "skip_share_now": 0.0}
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
                "is being searched. Are all blocks left with one candidate, or all sampled models equally good?"
            )

    def end_of_epoch(self, alphas: ArchParameters, *, last: bool = False) -> list[str]:
        """Take note of an epoch with arch steps, and return what a user should know.

        A collapse is told once, when it has lasted for some epochs or stands at the end: many a search passes
        through one and comes out of it.

        Args:
            alphas: as they are now.
            last: the search ends here.

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
        meant = min(found["skip_share"], found["skip_share_now"]) > _COLLAPSED
        self.collapsed = self.collapsed + 1 if meant else 0
        if self.warned or not meant or not (last or self.collapsed >= _LASTS):
            return []
        self.warned = True
        since = f", for {self.collapsed} epochs now" if self.collapsed > 1 else ""
        return [
            f"{found['skip_share_now']:.0%} of the skippable blocks are skipped{since}: the search "
            "collapses to a shallow model. A longer warm-up, a weaker pull of the cost (strength, or a higher "
            "target) or min_depth help"
        ]

    def state_dict(self) -> dict[str, Any]:
        """Return what a run goes on from."""
        counts = {"still": self.still, "zeros": self.zeros, "collapsed": self.collapsed}
        return {**counts, "last": self.last, "warned": self.warned}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Undo :meth:`state_dict`."""
        self.still, self.zeros = int(state["still"]), int(state["zeros"])
        self.collapsed = int(state.get("collapsed", 0))  # earlier checkpoints did not count
        self.last, self.warned = state["last"], bool(state["warned"])
