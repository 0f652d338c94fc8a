"""A machine whose latencies are known, in place of a measuring process."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

from proxylessnas.arch import Arch
from proxylessnas.errors import LatencyError
from proxylessnas.latency.keys import OpKey, arch_keys, key_bytes, key_macs
from proxylessnas.latency.process import Worker
from proxylessnas.latency.settings import Conditions, Settings
from proxylessnas.latency.spec import NetSpec
from proxylessnas.latency.timing import Samples

OFFSET_MS = 0.4


def true_ms(key: OpKey) -> float:
    """What an operation adds to a net: by its size, and by a taste of its own."""
    macs, traffic = key_macs(key), key_bytes(key)
    assert macs is not None
    assert traffic is not None
    own = math.exp(random.Random(str(key)).gauss(0, 0.2))
    return own * (0.02 + macs / 30e6 + sum(traffic) / 20e6)


def true_net_ms(arch: Arch) -> float:
    return OFFSET_MS + sum(map(true_ms, arch_keys(arch)))


def maps_mb(key: OpKey) -> float:
    return 4e-6 * (key.in_channels * key.size**2 + key.out_channels * key.out_size**2)


class Machine:
    """What all processes on it have in common.

    Args:
        parts: whether the runtime can time parts.
        placement: standard deviation of a net's latency from loading to loading, as a share.
        drift: how much slower it gets in the course of 300 loadings, as a share.
        disturbed: share of the visits during which another program runs.
        load_s: what loading a net takes.
        shared: (first, last) loading during which its processors share a core, and all takes half as long
            again, but small maps are slowed less.
    """

    def __init__(
        self,
        *,
        parts: bool = True,
        placement: float = 0.013,
        drift: float = 0.0,
        disturbed: float = 0.0,
        load_s: float = 0.0,
        shared: tuple[int, int] = (0, 0),
        name: str = "simulated",
    ) -> None:
        self.shared = shared
        self.parts, self.placement, self.drift = parts, placement, drift
        self.disturbed, self.load_s, self.name = disturbed, load_s, name
        self.rng = random.Random(0)
        self.now_s = 0.0
        self.loads: Counter[str] = Counter()
        self.loaded = 0
        self.processes = 0
        self.stop_after: int | None = None

    # It stands in place of the module `time`, too.

    def perf_counter(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds

    def worker(self, settings: Settings, imports: Sequence[str] = ()) -> SimulatedWorker:
        self.processes += 1
        return SimulatedWorker(self, settings)


class SimulatedWorker:
    """Stands where :class:`proxylessnas.latency.process.Worker` stands."""

    def __init__(self, machine: Machine, settings: Settings) -> None:
        self.machine, self.settings, self.has_parts = machine, settings, machine.parts
        self.conditions = Conditions(**settings.to_dict(), device_name=machine.name, versions={"torch": "9"})
        self.nets: dict[str, tuple[NetSpec, float]] = {}
        self.speed = math.exp(machine.rng.gauss(0, 0.01))
        self.closed = False

    def load(self, name: str, spec: NetSpec) -> float:
        machine = self.machine
        if name != "reference":
            if machine.stop_after is not None and machine.loaded >= machine.stop_after:
                raise KeyboardInterrupt
            machine.loaded += 1
            machine.loads[spec.text] += 1
        self.nets[name] = spec, math.exp(machine.rng.gauss(0, machine.placement))
        machine.sleep(0.1 + machine.load_s)
        return machine.load_s

    def drop(self, name: str) -> None:
        del self.nets[name]

    def sample(
        self, name: str, *, min_runs: int = 20, min_seconds: float = 0.3, max_seconds: float = 10.0
    ) -> Samples:
        machine, (spec, placement) = self.machine, self.nets[name]
        if spec.kind == "op":  # alone, an operation converts its maps, and finds its input in the cache
            key = OpKey.parse(spec.text)
            ms = 0.85 * true_ms(key) + 0.03 + 0.05 * maps_mb(key)
        else:
            arch = Arch.parse(spec.text)
            assert isinstance(arch, Arch)
            ms = OFFSET_MS + sum(true_ms(key) * self._sharing(key) for key in arch_keys(arch))
        ms *= placement * self._slow()
        bad = machine.rng.random() < machine.disturbed
        times = [
            ms * math.exp(machine.rng.gauss(0, 0.01)) * (1.6 if bad and machine.rng.random() < 0.7 else 1.0)
            for _ in range(min_runs)
        ]
        machine.sleep(max(min_seconds, sum(times) / 1e3))
        return Samples(tuple(times), 6, True, 0.3 if bad else 0.0)

    def parts(self, name: str, *, runs: int) -> list[tuple[str, tuple[float, ...]]]:
        machine, (spec, placement) = self.machine, self.nets[name]
        if not self.has_parts:
            raise LatencyError("no parts")
        arch = Arch.parse(spec.text)
        assert isinstance(arch, Arch)
        found = []
        for key in arch_keys(arch):
            ms = (
                (1.03 * true_ms(key) + 0.004) * self._sharing(key) * placement * self._slow()
            )  # the clock costs something
            noise = [math.exp(machine.rng.gauss(0, 0.03)) for _ in range(runs)]
            found.append((str(key), tuple(ms * n for n in noise)))
        return found

    def _slow(self) -> float:
        return self.speed * (1 + self.machine.drift * self.machine.loaded / 300)

    def _sharing(self, key: OpKey) -> float:
        first, last = self.machine.shared
        return (1.35 if key.size < 30 else 1.6) if first <= self.machine.loaded < last else 1.0

    def close(self) -> None:
        self.closed = True


class SteadyWorker(Worker):
    """A real measuring process, whose figures give way to the truth: other tests run beside it."""

    def __init__(self, settings: Settings, imports: Sequence[str] = ()) -> None:
        super().__init__(settings, imports)
        self.specs: dict[str, NetSpec] = {}

    def load(self, name: str, spec: NetSpec) -> float:
        self.specs[name] = spec
        return super().load(name, spec)

    def sample(self, name: str, **limits: Any) -> Samples:
        found, spec = super().sample(name, **limits), self.specs[name]
        if spec.kind == "op":
            ms = true_ms(OpKey.parse(spec.text))
        else:
            arch = Arch.parse(spec.text)
            assert isinstance(arch, Arch)
            ms = true_net_ms(arch)
        return Samples((ms,) * len(found.ms), found.warmup_runs, True, 0.0)

    def parts(self, name: str, *, runs: int) -> list[tuple[str, tuple[float, ...]]]:
        found = super().parts(name, runs=runs)
        return [(key, (true_ms(OpKey.parse(key)),) * len(ms)) for key, ms in found]
