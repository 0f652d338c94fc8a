"""Single nets of a supernet: what they are worth, and which one a search ends with."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..errors import DataError
from ..metrics import Metrics
from ..train.batchnorm import convert_sync_bn, recalibrate, revert_sync_bn
from ..train.distributed import Processes
from ..train.eval_loader import EvalLoader
from ..train.loader import TrainLoader
from ..train.stop import StopRequest
from ..train.validating import accuracy_on
from .budgets import Budget
from .candidates import Judged, Proposals, best_of, fits, within
from .knapsack import rules_of

if TYPE_CHECKING:
    from ..model import ProxylessNAS
    from .recipe import SearchRecipe
    from .supernet import SuperNet

_SAVE_EVERY_S = 30.0  # while nets are judged
_CALIBRATION = 2**20  # the epoch whose batches BatchNorm statistics are computed from: none of the run's own


class Judging:
    """Judges nets on the pictures held out for alpha, with the weights they inherit.

    A net is judged as a copy, whose BatchNorm statistics are computed anew: those in the supernet are a
    mixture over all nets. The supernet stays as it is.

    Args:
        supernet: gives the weights, and alpha.
        recipe: the recipe of the search.
        budgets: limits on the net that is derived.
        loader: gives training inputs for the statistics.
        pictures: the held-out ones, this process's share.
        processes: those that judge together.
        autocast: makes the context in which nets are compared during a search.

    Attributes:
        judged: the nets of "random" and "evolution" so far.
        rules: what a derived net has to keep to besides the budgets.
    """

    def __init__(
        self,
        supernet: SuperNet,
        recipe: SearchRecipe,
        budgets: Sequence[Budget],
        loader: TrainLoader,
        pictures: EvalLoader,
        processes: Processes,
        autocast: Callable[[], contextlib.AbstractContextManager[Any]],
    ) -> None:
        self.net, self.recipe, self.budgets = supernet, recipe, list(budgets)
        self.loader, self.pictures, self.processes, self.autocast = loader, pictures, processes, autocast
        self.learns = recipe.algorithm in ("gradient", "reinforce")
        self.rules = rules_of(supernet.space, recipe.min_depth)
        self.judged: list[Judged] = []

    def derived(self, budgets: Sequence[Budget] | None = None) -> list[int]:
        """Return the most probable net within the budgets; for random and evolution the best one judged.

        Args:
            budgets: by default the search's own.

        Raises:
            DataError: there is none.
        """
        budgets = self.budgets if budgets is None else list(budgets)
        if not self.learns:
            meeting = [j for j in self.judged if fits(j.picks, budgets, 0.0, **self.rules)]
            if meeting:
                return list(best_of(meeting).picks)
            if self.judged:
                raise DataError(
                    f"none of the {len(self.judged)} nets that were judged keeps to the new targets; search "
                    "again"
                )
        log_probs = self.net.alphas.log_probs().detach()
        return within(log_probs, budgets, self.recipe.least_share, **self.rules)

    def inherited(
        self, picks: Sequence[int], name: str = "judged", *, amp: bool = False
    ) -> tuple[ProxylessNAS, Metrics]:
        """Return one net with its own BatchNorm statistics, and its accuracy; all processes take part.

        Args:
            picks: the net.
            name: of its architecture.
            amp: compute in the precision of the search, to compare nets in less time; else in that of the
                weights, which is how the net is used once it is saved.

        Raises:
            DataError: a batch leaves BatchNorm a single value a channel; or no held-out picture can be read.
        """
        autocast = self.autocast if amp else contextlib.nullcontext
        child = self.net.child(picks, name)
        if self.recipe.weights.sync_bn and self.processes.world > 1:
            convert_sync_bn(child)  # all of it: candidates are so already
        if self.recipe.recalibrate_batches:
            with autocast():
                limit = self.recipe.recalibrate_batches
                recalibrate(child, self.calibration(), limit, processes=self.processes)
        revert_sync_bn(child)
        return child, accuracy_on(child, self.pictures, self.processes, autocast)

    def calibration(self) -> Iterator[Tensor]:
        """Yield batches of training inputs, always the same ones."""
        for batch in self.loader.epoch(_CALIBRATION, mix=False):
            yield batch.inputs

    def judge_all(self, stop: StopRequest, save: Callable[[], None], tell: Callable[[], None]) -> bool:
        """Judge as many nets as the recipe says.

        Args:
            stop: looked at after each.
            save: called now and then.
            tell: called after each, which is the last of ``judged`` then.

        Returns:
            False if a signal came.
        """
        r = self.recipe
        proposals = Proposals(
            self.net, self.budgets, algorithm=r.algorithm, seed=r.seed, least_share=r.least_share,
            population=r.population, mutation=r.mutation, rules=self.rules,
        )  # fmt: skip
        saved = time.monotonic()
        while len(self.judged) < r.evaluations:
            picks = proposals.next(self.judged)
            metrics = self.inherited(picks, amp=True)[1]
            self.judged.append(Judged(picks, metrics.top1, tuple(b.costs.of(picks) for b in self.budgets)))
            tell()
            if self.processes.any_of(stop.signal is not None):
                return False
            if self.processes.any_of(time.monotonic() - saved > _SAVE_EVERY_S):  # each has its own clock
                save()
                saved = time.monotonic()
        return True
