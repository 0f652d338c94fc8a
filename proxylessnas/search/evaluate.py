"""Evaluates subnets of a supernet, and measures the one a search ends with until it meets its target.

A table predicts; what counts is the device. So the most probable model within the constraints is measured,
interleaved with the reference model of the table (:mod:`..latency.session`), and if its undisturbed latency
is above the target, the constraint is tightened by what the prediction missed, and the next candidate is
taken.
"""

from __future__ import annotations

import contextlib
import datetime
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..arch.arch import Arch
from ..arch.ops import modules_of
from ..errors import DataError, first_line
from ..models.batchnorm import convert_sync_bn, recalibrate, revert_sync_bn
from ..train.evaluate import accuracy_on
from ..train.loader import EvalLoader, TrainLoader
from ..train.metrics import Metrics
from ..utils.distributed import Processes
from ..utils.progress import tell
from ..utils.signals import StopRequest
from .baselines import Evaluated, Sampler, best_of, fits
from .constraints import Constraint
from .derivation import rules_of, within

if TYPE_CHECKING:
    from ..latency.measurement import Timing
    from ..latency.table import LatencyTable
    from ..models.proxylessnas import ProxylessNAS
    from .recipe import SearchRecipe
    from .searcher import Searcher
    from .setup import SearchSetup
    from .supernet import SuperNet


_SAVE_EVERY_S = 30.0  # while models are judged
_CALIBRATION = 2**20  # the epoch whose batches BatchNorm statistics are computed from: none of the run's own


class SubnetEvaluator:
    """Judges models on the images held out for alpha, with the weights they inherit.

    A model is judged as a copy, whose BatchNorm statistics are computed anew: those in the supernet are a
    mixture over all models. The supernet stays as it is.

    Args:
        supernet: gives the weights, and alpha.
        recipe: the recipe of the search.
        constraints: limits on the model that is derived.
        loader: gives training inputs for the statistics.
        images: the held-out ones, this process's share.
        processes: those that judge together.
        autocast: makes the context in which models are compared during a search.

    Attributes:
        evaluated: the models of "random" and "evolution" so far.
        rules: what a derived model has to keep to besides the budgets.
    """

    def __init__(
        self,
        supernet: SuperNet,
        recipe: SearchRecipe,
        constraints: Sequence[Constraint],
        loader: TrainLoader,
        images: EvalLoader,
        processes: Processes,
        autocast: Callable[[], contextlib.AbstractContextManager[Any]],
    ) -> None:
        self.model, self.recipe, self.constraints = supernet, recipe, list(constraints)
        self.loader, self.images, self.processes, self.autocast = loader, images, processes, autocast
        self.learns = recipe.algorithm in ("gradient", "reinforce")
        self.rules = rules_of(supernet.space, recipe.min_depth)
        self.evaluated: list[Evaluated] = []

    def derived(self, constraints: Sequence[Constraint] | None = None) -> list[int]:
        """Return the most probable model within the budgets; for random and evolution the best one judged.

        Args:
            constraints: by default the search's own.

        Raises:
            DataError: there is none.
        """
        constraints = self.constraints if constraints is None else list(constraints)
        if not self.learns:
            meeting = [j for j in self.evaluated if fits(j.choices, constraints, 0.0, **self.rules)]
            if meeting:
                return list(best_of(meeting).choices)
            if self.evaluated:
                raise DataError(
                    f"none of the {len(self.evaluated)} models that were judged keeps to the new targets; "
                    "search again"
                )
        log_probs = self.model.alphas.log_probs().detach()
        return within(log_probs, constraints, self.recipe.least_share, **self.rules)

    def inherited(
        self, choices: Sequence[int], name: str = "judged", *, amp: bool = False
    ) -> tuple[ProxylessNAS, Metrics]:
        """Return one model with its own BatchNorm statistics, and its accuracy; all processes take part.

        Args:
            choices: the model.
            name: of its architecture.
            amp: compute in the precision of the search, to compare models in less time; else in that of the
                weights, which is how the model is used once it is saved.

        Raises:
            DataError: a batch leaves BatchNorm a single value a channel; or no held-out image can be read.
        """
        autocast = self.autocast if amp else contextlib.nullcontext
        child = self.model.child(choices, name)
        if self.recipe.weights.sync_bn and self.processes.world > 1:
            convert_sync_bn(child)  # all of it: candidates are so already
        if self.recipe.recalibrate_batches:
            with autocast():
                limit = self.recipe.recalibrate_batches
                recalibrate(child, self.calibration(), limit, processes=self.processes)
        revert_sync_bn(child)
        return child, accuracy_on(child, self.images, self.processes, autocast)

    def calibration(self) -> Iterator[Tensor]:
        """Yield batches of training inputs, always the same ones."""
        for batch in self.loader.epoch(_CALIBRATION, mix=False):
            yield batch.inputs

    def judge_all(self, stop: StopRequest, save: Callable[[], None], tell: Callable[[], None]) -> bool:
        """Judge as many models as the recipe says.

        Args:
            stop: looked at after each.
            save: called now and then.
            tell: called after each, which is the last of ``evaluated`` then.

        Returns:
            False if a signal came.
        """
        r = self.recipe
        proposals = Sampler(
            self.model, self.constraints, algorithm=r.algorithm, seed=r.seed, least_share=r.least_share,
            population=r.population, mutation=r.mutation, rules=self.rules,
        )  # fmt: skip
        saved = time.monotonic()
        while len(self.evaluated) < r.evaluations:
            choices = proposals.next(self.evaluated)
            metrics = self.inherited(choices, amp=True)[1]
            self.evaluated.append(
                Evaluated(choices, metrics.top1, tuple(b.costs.of(choices) for b in self.constraints))
            )
            tell()
            if self.processes.any_of(stop.signal is not None):
                return False
            if self.processes.any_of(time.monotonic() - saved > _SAVE_EVERY_S):  # each has its own clock
                save()
                saved = time.monotonic()
        return True


_SECONDS = 40.0  # at most, for a candidate
_LEAST_SECONDS = 4.0  # of a process; the reference tells whether that was enough
_LEAST_ROUNDS = 25  # of a process: two models only
CANDIDATES = 5
#: Beyond this the machine is not as it was when the table was made.
_REFERENCE_OFF = 0.03
#: The next candidate is to be faster than the target by so much, as its prediction is uncertain, too.
_MARGIN = 0.995


@dataclass(frozen=True)
class Measured:
    """A candidate for the end of a search, measured.

    Attributes:
        choices: the candidate: its columns in the space, one a block.
        predicted_ms: by the table.
        timing: on this machine; None where that could not be done, for the reason in ``note``.
        reference_ratio: how many times longer the reference model took than when the table was made; None
            where that is not known.
        note: why it was not measured.
    """

    choices: tuple[int, ...]
    predicted_ms: float
    timing: Timing | None
    reference_ratio: float | None = None
    note: str = ""

    @property
    def ms(self) -> float | None:
        """Its undisturbed latency, on the machine as it was when the table was made.

        A reference that takes longer now tells that everything was disturbed throughout.
        """
        if self.timing is None:
            return None
        ratio = self.reference_ratio or 1.0
        return self.timing.undisturbed_ms / (ratio if ratio > 1 + _REFERENCE_OFF else 1.0)


def choose(setup: SearchSetup, searcher: Searcher) -> tuple[list[int], list[Measured]]:
    """Return the model that a search ends with, and every candidate that was measured, the last one being it.

    Every process takes part; the first one measures.

    Raises:
        DataError: no model meets the constraints.
    """
    share = searcher.processes.sum_of  # the other processes add nothing
    target = next((b for b in setup.constraints if b.costs.name == "latency"), None)
    candidates, tried = [searcher.derived()], list[Measured]()
    while True:
        limit_ms = 0.0  # of the table, for the next candidate; 0: there is none
        if searcher.processes.main and setup.table is not None:
            if not tried:
                tell("note: measuring the latency of what was found; this takes half a minute")
            arch = setup.space.arch(candidates[-1])
            tried.append(measure_like(arch, tuple(candidates[-1]), setup.table))
            limit_ms = _next_limit_ms(tried, target)
        limit_ms = share(limit_ms)[0]
        if not limit_ms:
            break
        constraints = [Constraint(b.costs, limit_ms) if b is target else b for b in setup.constraints]
        try:
            candidates.append(searcher.derived(constraints))
        except DataError:  # nothing is as fast as that
            break
    best = int(share(_best(tried, target) if tried else 0)[0])
    if tried:
        tried.append(tried.pop(best))
    return candidates[best], tried


def _next_limit_ms(tried: Sequence[Measured], target: Constraint | None) -> float:
    """Return the predicted latency that the next candidate may have; 0 where the last one will do."""
    last = tried[-1]
    if target is None or last.ms is None or last.ms <= target.limit:
        return 0.0
    if len(tried) == CANDIDATES or last.predicted_ms <= 0:
        return 0.0
    missed = last.ms / last.predicted_ms
    lowest_ms = 1.0001 * target.costs.range()[0]  # where nothing can keep to the target, this comes nearest
    limit_ms = min(max(_MARGIN * target.limit / missed, lowest_ms), 0.9999 * last.predicted_ms)
    tell(
        f"note: measured {last.ms:.3f} ms, above the target of {target.limit:.3f} ms: the next candidate has "
        f"a predicted latency of at most {limit_ms:.3f} ms"
    )
    return limit_ms


def _best(tried: Sequence[Measured], target: Constraint | None) -> int:
    """Return the first candidate that keeps to the target, or else the fastest."""
    if target is None or any(t.ms is None for t in tried):
        return len(tried) - 1
    times = [t.ms or 0.0 for t in tried]
    return next((i for i, ms in enumerate(times) if ms <= target.limit), times.index(min(times)))


def measure_like(arch: Arch, choices: tuple[int, ...], table: LatencyTable) -> Measured:
    """Measure a model under a table's conditions, beside its reference, if this is its machine."""
    from ..latency.measurement import Timing
    from ..latency.session import REFERENCE, Item, MeasurementSession
    from ..latency.validate import conditions_here, elsewhere, model_spec, reference_of

    predicted = 0.0
    try:
        predicted = table.predict(arch)
        settings = table.conditions.settings
        modules = set(modules_of(block.token for block in arch.iter_blocks()).values())
        imports = sorted(name for name in modules if not name.endswith(".py"))
        if len(imports) < len(modules):
            program = min(modules - set(imports))
            why = f"its operation is registered by the program {program}, not by a module to import"
            return Measured(choices, predicted, None, note=f"not measured: {why}")
        differences = elsewhere(table, conditions_here(settings, imports))
        if differences:
            return Measured(choices, predicted, None, note=f"not measured: {'; '.join(differences)}")
        known = reference_of(table)
        spec = model_spec(arch)
        items = [Item("model", spec, settings)]
        items += [Item(REFERENCE, model_spec(known[0]), settings)] if known else []
        session = MeasurementSession(items, imports=imports)

        def ratio() -> float | None:
            return session.measured[REFERENCE].undisturbed_ms / known[1] if known else None

        session.run(
            _SECONDS,
            least_rounds=_LEAST_ROUNDS,
            least_seconds=_LEAST_SECONDS,
            settled=lambda: (ratio() or 1.0) <= 1 + _REFERENCE_OFF,
        )
        day = datetime.date.today().isoformat()
        timing = Timing.of(session.measured["model"], session.conditions(settings), spec.input_size, day)
        return Measured(choices, predicted, timing, ratio())
    except Exception as e:  # noqa: BLE001 - hours of search are not lost to a failed measurement
        return Measured(choices, predicted, None, note=f"not measured: {first_line(e)}")
