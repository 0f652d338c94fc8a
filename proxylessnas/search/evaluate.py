"""Evaluates subnets of a supernet; derives, measures and writes the one a search ends with.

A table predicts; what counts is the device. So the most probable model within the constraints is measured,
interleaved with the reference model of the table (:mod:`..latency.session`), and if its undisturbed latency
is above the target, the constraint is tightened by what the prediction missed, and the next candidate is
taken.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor

from ..arch.arch import Arch
from ..arch.ops import modules_of
from ..errors import DataError, ProxylessError, first_line, short_name
from ..models.batchnorm import convert_sync_bn, recalibrate, revert_sync_bn
from ..models.loading import save_weights
from ..train.evaluate import accuracy_on
from ..train.loader import EvalLoader, TrainLoader
from ..train.metrics import Metrics
from ..utils.distributed import Processes
from ..utils.files import write_atomically
from ..utils.progress import tell
from ..utils.signals import StopRequest
from .baselines import Evaluated, Sampler, best_of, fits, probable_models
from .constraints import Constraint, MinDepth
from .derivation import most_probable
from .logger import ARCH_FILE, CHILD_FILE, SearchResult
from .ship import int8_file

if TYPE_CHECKING:
    from ..latency.measurement import Timing
    from ..latency.table import LatencyTable
    from ..models.proxylessnas import ProxylessNAS
    from ..runtimes.base import ModelSpec
    from .arch_optimizers import Autocast
    from .setup import SearchSetup


CONFIG_FILE = "net.config"
#: The precision that models are evaluated in at the end: that of the saved weights, whatever the search's is.
PRECISION = "float32"
_SAVE_EVERY_S = 30.0  # while models are evaluated
_CALIBRATION = 2**20  # the epoch whose batches BatchNorm statistics are computed from: none of the run's own


class SubnetEvaluator:
    """Evaluates models on the images held out for alpha, with the weights they inherit.

    A model is evaluated as a copy, whose BatchNorm statistics are computed anew: those in the supernet are a
    mixture over all models. The supernet stays as it is.

    Args:
        setup: gives the supernet, the recipe and the constraints.
        loader: gives training inputs for the statistics.
        images: the held-out ones, this process's share.
        processes: those that evaluate together.
        autocast: makes the context in which models are compared during a search.

    Attributes:
        evaluated: the models that were evaluated once the supernet was trained, so far.
        earlier: how many of them were evaluated for targets of another call.
    """

    def __init__(
        self, setup: SearchSetup, loader: TrainLoader, images: EvalLoader, processes: Processes,
        autocast: Autocast,
    ) -> None:  # fmt: skip
        self.setup, self.model, self.recipe = setup, setup.supernet, setup.recipe
        self.loader, self.images, self.processes, self.autocast = loader, images, processes, autocast
        self.depth = MinDepth.of(setup.space, setup.recipe.min_depth)
        self.evaluated: list[Evaluated] = []
        self.earlier = 0

    def derived(self, constraints: Sequence[Constraint] | None = None) -> list[int]:
        """Return the best model evaluated within the constraints; the most probable one where none was.

        Args:
            constraints: by default the search's own.

        Raises:
            DataError: there is none.
        """
        constraints = self.setup.constraints if constraints is None else constraints
        meeting = self.within(constraints)
        if meeting:
            return list(best_of(meeting).choices)
        if self.evaluated and not self.recipe.learns:
            raise DataError(
                f"none of the {len(self.evaluated)} models that were evaluated keeps to the new targets; "
                "search again"
            )
        return self.most_probable(constraints)

    def most_probable(self, constraints: Sequence[Constraint]) -> list[int]:
        """Return the most probable model within the constraints, which uses the least share of the target."""
        log_probs, share = self.model.alphas.log_probs(), self.recipe.least_share
        return most_probable(log_probs, constraints, min_utilization=share, depth=self.depth)

    def within(self, constraints: Sequence[Constraint]) -> list[Evaluated]:
        """Return the evaluated models that keep to the constraints."""
        return [e for e in self.evaluated if fits(e.choices, constraints, 0.0, self.depth)]

    def inherited(
        self, choices: Sequence[int], name: str = "evaluated", *, amp: bool = False
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
        if self.processes.world > 1:
            # All of it, whatever the recipe says of steps: which model is the best is not to depend on how
            # many processes find it out.
            convert_sync_bn(child)
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

    def evaluate_all(self, stop: StopRequest, save: Callable[[], None], log: Callable[[], None]) -> bool:
        """Evaluate as many models as the recipe says; return False if a signal came.

        ``stop`` is looked at and ``log`` called after each, ``save`` now and then.
        """
        saved = time.monotonic()
        for choices in self._next_models():
            self.evaluated.append(self._evaluated(choices))
            log()
            if self.processes.any_of(stop.signal is not None):
                return False
            if self.processes.any_of(time.monotonic() - saved > _SAVE_EVERY_S):  # each has its own clock
                save()
                saved = time.monotonic()
        return True

    def _next_models(self) -> Iterator[tuple[int, ...]]:
        """Yield what is evaluated next, given what was, for one target after the other."""
        each, sampler = self.recipe.evaluated_models, None
        for number, constraints in enumerate(self.setup.targets):
            start = self.earlier + number * each
            while len(self.evaluated) < start + each:
                sampler = sampler or self._sampler(constraints)
                # What was evaluated for other targets is as good where it keeps to this one.
                learns = self.recipe.learns
                yield sampler.next(self.within(constraints) if learns else self.evaluated[start:])
            sampler = None

    def _sampler(self, constraints: Sequence[Constraint]) -> Sampler:
        r, first = self.recipe, list[tuple[int, ...]]()
        if r.learns:
            first = probable_models(
                self.model.alphas.log_probs(), constraints, r.final_candidates, seed=r.seed,
                min_utilization=r.least_share, depth=self.depth,
            )  # fmt: skip
        return Sampler(self.setup.space, constraints, r, first)

    def _evaluated(self, choices: tuple[int, ...]) -> Evaluated:
        for known in self.evaluated:
            if known.choices == choices:
                return known
        metrics = self.inherited(choices, amp=True)[1]
        costs = tuple(b.costs.of(choices) for b in self.setup.constraints)
        return Evaluated(choices, metrics.top1, costs, metrics.loss if self.recipe.learns else 0.0)

    def told_of(self, constraints: Sequence[Constraint]) -> dict[str, Any]:
        """Return what a result says of the models that it was chosen from."""
        among = {e.choices: e.top1 for e in self.within(constraints)} if self.recipe.learns else {}
        if not among:
            return {}
        top1 = among.get(tuple(self.most_probable(constraints)))
        return {"chosen_of": len(among), "most_probable_top1": top1}

    @property
    def due(self) -> int:
        """How many models are still to be evaluated."""
        each = self.recipe.evaluated_models
        return max(0, self.earlier + each * len(self.setup.targets) - len(self.evaluated))

    def plan(self) -> str:
        """Return in words what is evaluated at the end."""
        r = self.recipe
        each = f" for each of {len(self.setup.targets)} targets" if len(self.setup.targets) > 1 else ""
        return (
            f"the end: {r.final_candidates} probable models and {r.final_evolution} more by evolution{each} "
            f"are evaluated on {len(self.setup.held_out):,} held-out images, and the best within the target "
            "is taken"
        )


# ---- which model a search ends with


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


def choose(
    evaluator: SubnetEvaluator, constraints: Sequence[Constraint] | None = None
) -> tuple[list[int], list[Measured]]:
    """Return the model that a search ends with, and every candidate that was measured, the last one being it.

    Every process takes part; the first one measures.

    Args:
        evaluator: of the search.
        constraints: by default the search's own.

    Raises:
        DataError: no model meets the constraints.
    """
    setup, processes = evaluator.setup, evaluator.processes
    limits = setup.constraints if constraints is None else constraints
    target = next((b for b in limits if b.costs.name == "latency"), None)
    candidates, tried = [evaluator.derived(limits)], list[Measured]()
    while True:
        limit_ms = 0.0  # of the table, for the next candidate; 0: there is none
        if processes.main and setup.table is not None:
            if not tried:
                tell("note: measuring the latency of what was found; this takes half a minute")
            arch = setup.space.arch(candidates[-1])
            tried.append(measure_like(arch, tuple(candidates[-1]), setup.table))
            limit_ms = _next_limit_ms(tried, target)
        (limit_ms,) = processes.sum_of(limit_ms)  # the other processes add nothing
        if not limit_ms:
            break
        tighter = [Constraint(b.costs, limit_ms) if b is target else b for b in limits]
        try:
            candidates.append(evaluator.derived(tighter))
        except DataError:  # nothing is as fast as that
            break
    best = int(processes.sum_of(_best(tried, target) if tried else 0)[0])
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


def measure_like(
    arch: Arch, choices: tuple[int, ...], table: LatencyTable, spec: ModelSpec | None = None
) -> Measured:
    """Measure a model under a table's conditions, beside its reference, if this is its machine.

    Args:
        arch: the model.
        choices: its columns in the space.
        table: says how.
        spec: what to load, such as the model's exported file; None takes the architecture.
    """
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
        spec = spec or model_spec(arch)
        items = [Item("model", spec, settings)]
        items += [Item(REFERENCE, model_spec(known[0]), settings)] if known else []
        session = MeasurementSession(items, imports=imports)

        def ratio() -> float | None:
            return session.measured[REFERENCE].undisturbed_ms / known[1] if known else None

        session.run(
            _SECONDS, least_rounds=_LEAST_ROUNDS, least_seconds=_LEAST_SECONDS,
            settled=lambda: (ratio() or 1.0) <= 1 + _REFERENCE_OFF,
        )  # fmt: skip
        day = datetime.date.today().isoformat()
        timing = Timing.of(session.measured["model"], session.conditions(settings), spec.input_size, day)
        return Measured(choices, predicted, timing, ratio())
    except Exception as e:  # noqa: BLE001 - hours of search are not lost to a failed measurement
        return Measured(choices, predicted, None, note=f"not measured: {first_line(e)}")


# ---- its files


def settle(
    evaluator: SubnetEvaluator,
    out: Path,
    extra: Mapping[str, Any],
    *,
    constraints: Sequence[Constraint] | None = None,
    searched: str = "",
    seconds: float = 0.0,
) -> tuple[SearchResult, Metrics]:
    """Derive a model, evaluate, measure and save it; every process takes part, the first one writes.

    Args:
        evaluator: of the search, as far as it is.
        out: folder for the model's files; its name is the model's.
        extra: what ``result.json`` says besides.
        constraints: by default the search's own.
        searched: what the weights' file says of its origin; by default a summary of the search.
        seconds: that the search took.

    Raises:
        DataError: no model meets the constraints.
        ProxylessError: it cannot be written.
    """
    setup = evaluator.setup
    limits = setup.constraints if constraints is None else constraints
    choices, tried = choose(evaluator, limits)
    child, metrics = evaluator.inherited(choices, short_name(out.resolve().name, "searched"))
    costs = {name: c.of(choices) for name, c in setup.costs.items()}
    result = SearchResult(
        True, out, cast(Arch, child.arch), tuple(choices), out / CHILD_FILE, metrics.top1, costs,
        {b.costs.name: b.limit for b in limits}, costs.get("latency"), seconds=seconds,
        **evaluator.told_of(limits),
    )  # fmt: skip
    if not evaluator.processes.main:
        return result, metrics
    if tried:
        winner = tried[-1]
        result = dataclasses.replace(
            result, measured=winner.timing, measured_ms=winner.ms, measured_note=winner.note,
            reference_ratio=winner.reference_ratio,
            too_slow=tuple((t.predicted_ms, t.ms) for t in tried[:-1] if t.ms is not None),
        )  # fmt: skip
    child.categories, child.wnids = setup.data.categories, setup.data.wnids
    try:
        _write_model(child, out, searched or _summary(setup, costs))
        if setup.table is not None:
            measured = functools.partial(measure_like, cast(Arch, result.arch), result.choices, setup.table)
            result = dataclasses.replace(result, int8=int8_file(setup, out / CHILD_FILE, measured))
        result.write({"judged_in": PRECISION, **extra})
    except OSError as e:
        raise ProxylessError(
            f"{out}: the derived model cannot be written ({e.strerror or e}); free space, run again"
        ) from e
    return result, metrics


def _write_model(child: ProxylessNAS, folder: Path, searched: str) -> None:
    """Write a model as text, in the original format, and as weights."""
    arch = child.arch
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / ARCH_FILE, (str(arch) + "\n").encode())
    custom = isinstance(arch, Arch) and any(block.kind == "custom" for block in arch.blocks)
    if not custom:  # the original format has no others
        text = json.dumps(arch.to_official(), indent=2) + "\n"
        write_atomically(folder / CONFIG_FILE, text.encode())
    save_weights(child, folder / CHILD_FILE, metadata={"searched": searched})


def _summary(setup: SearchSetup, costs: Mapping[str, float]) -> str:
    parts = [f"{setup.recipe.algorithm} search on {setup.data.name}, seed {setup.recipe.seed}"]
    parts += [f"{name} {setup.costs[name].show(value)}" for name, value in costs.items()]
    if setup.table is not None:
        parts.append(f"table {setup.table.digest}")
    return ", ".join(parts)
