"""A machine whose latencies are known, in place of a measuring process."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from proxylessnas.arch.arch import Arch
from proxylessnas.arch.op_key import OpKey, arch_keys, key_bytes, key_macs
from proxylessnas.errors import LatencyError
from proxylessnas.latency import session
from proxylessnas.latency import validate as validation
from proxylessnas.latency.worker import Worker
from proxylessnas.runtimes.base import ModelSpec
from proxylessnas.runtimes.settings import Conditions, Settings
from proxylessnas.runtimes.timer import MAX_SECONDS, MIN_RUNS, MIN_SECONDS, Window

OFFSET_MS = 0.4
START_S = 0.5  # of a process


def true_ms(key: OpKey) -> float:
    """What an operation adds to a model: by its size, and by a taste of its own."""
    macs, traffic = key_macs(key), key_bytes(key)
    assert macs is not None
    assert traffic is not None
    own = math.exp(random.Random(str(key)).gauss(0, 0.2))
    return own * (0.02 + macs / 30e6 + sum(traffic) / 20e6)


def true_model_ms(arch: Arch) -> float:
    return OFFSET_MS + sum(map(true_ms, arch_keys(arch)))


def maps_mb(key: OpKey) -> float:
    return 4e-6 * (key.in_channels * key.size**2 + key.out_channels * key.out_size**2)


class Machine:
    """What all processes on it have in common: its clock, its neighbours, and what was done on it.

    It stands in place of the module ``time``, too.

    Args:
        parts: whether the runtime can time parts.
        placement: standard deviation of a model's latency from loading to loading, as a share.
        speeds: that of a process's speed.
        drift: how much slower it gets in 300 s, as a share.
        disturbed: share of the time in which a neighbour is busy: for 1 to 5 s at a time, in which each run
            takes 1.2 to 2 times as long.
        stolen: share of the runs that another program interrupts for 5 ms, which are no CPU time of theirs.
        own: by how much a model always differs from the sum of its operations, as a share.
        load_s: what loading a model takes.
        shared: (first, last) second between which its processors share a core: small maps are slowed less.
        seed: of all of this.
    """

    def __init__(
        self,
        *,
        parts: bool = True,
        placement: float = 0.005,
        speeds: float = 0.005,
        drift: float = 0.0,
        disturbed: float = 0.0,
        stolen: float = 0.0,
        own: float = 0.0,
        load_s: float = 0.02,
        shared: tuple[float, float] = (0, 0),
        name: str = "simulated",
        seed: int = 0,
    ) -> None:
        self.shared, self.stolen, self.speeds, self.own = shared, stolen, speeds, own
        self.parts, self.placement, self.drift = parts, placement, drift
        self.disturbed, self.load_s, self.name = disturbed, load_s, name
        self.rng = random.Random(seed)
        self.now_s = 0.0
        self.loads: Counter[str] = Counter()
        self.windows: Counter[str] = Counter()
        self.processes = 0
        self.loaded: set[str] = set()
        self.most_loaded = 0
        self.stop_after: int | None = None
        self.broken: set[str] = set()
        self._until_s, self._factor = 0.0, 1.0

    def perf_counter(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds

    def slowness(self) -> float:
        """How many times as long everything takes now, whatever it is."""
        while self._until_s <= self.now_s:
            busy = self._factor == 1.0 and self.disturbed > 0
            seconds = self.rng.uniform(1, 5)
            if self.disturbed < 1 and not busy:
                self._factor = 1.0
                seconds *= (1 - self.disturbed) / max(self.disturbed, 1e-3)
            else:
                self._factor = self.rng.uniform(1.2, 2.0)
            self._until_s = max(self._until_s, self.now_s) + seconds
        return self._factor * (1 + self.drift * self.now_s / 300)

    def worker(self, settings: Settings, imports: Sequence[str] = ()) -> SimulatedWorker:
        self.processes += 1
        self.loaded.clear()
        self.sleep(START_S)
        return SimulatedWorker(self, settings)


def simulated(monkeypatch: pytest.MonkeyPatch, **traits: Any) -> Machine:
    """Measure on a simulated machine from now on."""
    machine = Machine(**traits)
    monkeypatch.setattr(session, "Worker", machine.worker)
    monkeypatch.setattr(session, "time", machine)
    monkeypatch.setattr(validation, "Worker", machine.worker)
    return machine


class SimulatedWorker:
    """Stands where :class:`proxylessnas.latency.worker.Worker` stands."""

    def __init__(self, machine: Machine, settings: Settings) -> None:
        self.machine, self.settings, self.has_parts = machine, settings, machine.parts
        self.conditions = Conditions(**settings.to_dict(), device_name=machine.name, versions={"torch": "9"})
        self.nets: dict[str, tuple[ModelSpec, float, list[tuple[OpKey, float]], float]] = {}
        self.speed = math.exp(machine.rng.gauss(0, machine.speeds))

    def __enter__(self) -> SimulatedWorker:
        return self

    def __exit__(self, *_: object) -> None: ...

    def load(self, name: str, spec: ModelSpec) -> float:
        machine = self.machine
        machine.sleep(machine.load_s)
        if name in machine.broken:
            raise LatencyError(f"{name} cannot be run")
        machine.loads[name] += 1
        machine.loaded.add(name)
        machine.most_loaded = max(machine.most_loaded, len(machine.loaded))
        place = self.speed * math.exp(machine.rng.gauss(0, machine.placement))
        if spec.kind == "op":  # alone, an operation converts its maps, and finds its input in the cache
            key = OpKey.parse(spec.text)
            costs, rest_ms = [(key, 0.85 * true_ms(key))], 0.03 + 0.05 * maps_mb(key)
        else:
            arch = Arch.parse(spec.text)
            assert isinstance(arch, Arch)
            costs, rest_ms = [(key, true_ms(key)) for key in arch_keys(arch)], OFFSET_MS
            place *= math.exp(random.Random(spec.text).gauss(0, machine.own))
        self.nets[name] = spec, place, costs, rest_ms
        return machine.load_s

    def drop(self, name: str) -> None:
        self.nets.pop(name, None)
        self.machine.loaded.discard(name)

    def window(
        self,
        name: str,
        *,
        min_runs: int = MIN_RUNS,
        min_seconds: float = MIN_SECONDS,
        max_seconds: float = MAX_SECONDS,
    ) -> Window:
        machine, (_, place, costs, rest_ms) = self.machine, self.nets[name]
        if machine.stop_after is not None and machine.windows.total() >= machine.stop_after:
            raise KeyboardInterrupt
        machine.windows[name] += 1
        usual_ms = place * (rest_ms + sum(ms * self._sharing(key) for key, ms in costs))
        machine.sleep(usual_ms * machine.slowness() / 1e3)  # a run that does not count
        begin, wall, own = machine.now_s, list[float](), list[float]()
        while len(wall) < min_runs or machine.now_s - begin < min_seconds:
            own.append(usual_ms * machine.slowness() * (1 + machine.rng.expovariate(100)))
            wall.append(own[-1] + (5.0 if machine.rng.random() < machine.stolen else 0.0))
            machine.sleep(wall[-1] / 1e3)
            if machine.now_s - begin >= max_seconds:
                break
        return Window(tuple(wall), tuple(own))

    def parts(self, name: str, *, runs: int) -> list[tuple[str, tuple[float, ...]]]:
        machine, (spec, place, costs, _) = self.machine, self.nets[name]
        if not self.has_parts:
            raise LatencyError("no parts")
        assert spec.kind == "arch"
        slow, found = machine.slowness() * place, []
        for key, ms in costs:
            usual_ms = (1.03 * ms + 0.004) * self._sharing(key) * slow  # the clock costs something
            noise = [1 + machine.rng.expovariate(30) for _ in range(runs)]
            found.append((str(key), tuple(usual_ms * n for n in noise)))
            machine.sleep(runs * usual_ms / 1e3)
        return found

    def _sharing(self, key: OpKey) -> float:
        first_s, last_s = self.machine.shared
        return (1.35 if key.size < 30 else 1.6) if first_s <= self.machine.now_s < last_s else 1.0


class SteadyWorker(Worker):
    """A real measuring process, whose figures give way to the truth: other tests run beside it."""

    def __init__(self, settings: Settings, imports: Sequence[str] = ()) -> None:
        super().__init__(settings, imports)
        self.specs: dict[str, ModelSpec] = {}

    def load(self, name: str, spec: ModelSpec) -> float:
        self.specs[name] = spec
        return super().load(name, spec)

    def window(self, name: str, **limits: Any) -> Window:
        found, spec = super().window(name, **limits), self.specs[name]
        if spec.kind == "op":
            ms = true_ms(OpKey.parse(spec.text))
        else:
            arch = Arch.parse(spec.text)
            assert isinstance(arch, Arch)
            ms = true_model_ms(arch)
        return Window((ms,) * len(found.ms), (ms,) * len(found.ms))

    def parts(self, name: str, *, runs: int) -> list[tuple[str, tuple[float, ...]]]:
        found = super().parts(name, runs=runs)
        return [(key, (true_ms(OpKey.parse(key)),) * len(ms)) for key, ms in found]
