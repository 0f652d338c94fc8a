"""What a search writes down: ``search.jsonl``, and the same figures for TensorBoard."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..train.history import LineLog
from ..train.runlog import RunLog
from .candidates import best_of

if TYPE_CHECKING:
    from .engine import Searcher

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

    def epoch(self, searcher: Searcher, picks: list[int], top1: float | None) -> None:
        """Write down the end of an epoch, and the net that would be derived now."""
        if self._lines is None:
            return
        p = searcher.position
        costs = {b.costs.name: b.costs.of(picks) for b in searcher.budgets}
        derived = {"derived_top1": top1, **{f"derived_{name}": cost for name, cost in costs.items()}}
        self.run.figures(_GROUP, p.global_step, derived)
        fields = {"probs": searcher.probabilities(), "picks": picks, "top1": top1, "costs": costs}
        self._pictures(searcher, picks)
        self._write("epoch", p.global_step, {"epoch": p.epoch + 1, **searcher.standing(), **fields})

    def _pictures(self, searcher: Searcher, picks: list[int], *, last: bool = False) -> None:
        """Show alpha and the net that would be derived in TensorBoard, where it is asked for."""
        space, step = searcher.net.space, searcher.position.global_step

        def probabilities() -> bytes:
            from ..report.board import probabilities_png

            return probabilities_png(space, searcher.probabilities())

        def net() -> bytes:
            from ..report.board import net_png

            return net_png(space.arch(picks, "derived"))

        self.run.picture("search/probabilities", step, probabilities, last=last)
        self.run.picture("search/net", step, net, last=last)

    def judged(self, searcher: Searcher) -> None:
        """Write down the net that was judged last."""
        found, number = searcher.judged[-1], len(searcher.judged)
        self.run.validating(number, searcher.recipe.evaluations)
        names = [b.costs.name for b in searcher.budgets]
        figures = {"number": number, "top1": found.top1, "best": best_of(searcher.judged).top1}
        costs = dict(zip(names, found.costs, strict=True))
        step = searcher.position.global_step + number
        self.run.figures("judged", step, {**figures, **costs})
        self._write("judged", step, {**figures, "picks": list(found.picks), "costs": costs})

    def done(self, searcher: Searcher, result: Mapping[str, Any]) -> None:
        """Write down the result."""
        p = searcher.position
        self._pictures(searcher, list(result["picks"]), last=True)
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
    step = p.global_step + len(searcher.judged)
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
