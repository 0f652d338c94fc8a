"""The settings of this room's functions: of tables, of single measurements, of benches and of imports."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import LatencyError
from ..runtimes.settings import DTYPES, MOST_IMAGES, MOST_PIXELS, MOST_THREADS, Settings
from ..utils.checks import Range
from ..utils.config import Config, option, same_option

MOST_MODELS = 100_000
DEFAULT_MINUTES = 8.0
_LONGEST_S, _SEED = 86_400, Range(0, 2**63)
_IMPORTS = "modules that the measuring processes import first: they register operations"


@dataclass(frozen=True)
class BuildSettings(Settings):
    """How a latency table is built: what it holds for, and how much is measured for it.

    Raises:
        LatencyError: a value is wrong, or values do not fit together.
    """

    what = "settings of the table"

    # fmt: off
    nets: int | None = option(None, Range(1, MOST_MODELS), "whole models to fit it on; None takes 2.2 for "
        "each operation, 40 to 240", group="effort")
    validation_nets: int = option(30, Range(2, MOST_MODELS, or_zero=True), "other models to evaluate it "
        "with; 0 leaves the table unvalidated, and a search refuses it")
    minutes: float | None = option(None, Range(0, 1e6, open_low=True), "about how long it may take at most, "
        "less where the latencies are certain earlier. A few rounds are made all the same, which takes "
        f"longer where loading a model does; None takes {DEFAULT_MINUTES:g}", metavar="M")
    seed: int = option(0, _SEED, "of the random models")
    imports: tuple[str, ...] = option((), None, _IMPORTS)
    # fmt: on


@dataclass(frozen=True)
class OpCostSettings(Settings):
    """How :func:`~proxylessnas.latency.op_costs` compares operations: under what, with which, and how long.

    Raises:
        LatencyError: a value is wrong, or values do not fit together.
    """

    what = "settings of the comparison"

    # fmt: off
    base: str = option("k3e6", None, "the operation that the others are compared with", metavar="OP",
        group="effort")
    minutes: float = option(3.0, Range(0, 1e6, open_low=True), "about how long it may take at most, less "
        "where the latencies are certain earlier", metavar="M")
    seed: int = option(0, _SEED, "of the order")
    imports: tuple[str, ...] = option((), None, _IMPORTS)
    # fmt: on


@dataclass(frozen=True)
class MeasureSettings(Config):
    """What :func:`~proxylessnas.latency.measure` is seldom told: precision, memory, and how long.

    Raises:
        LatencyError: a value is wrong.
    """

    what = "settings of the measurement"
    error = LatencyError

    # fmt: off
    dtype: str = same_option(Settings, "dtype")
    memory_format: str = same_option(Settings, "memory_format")
    cuda_graph: bool = same_option(Settings, "cuda_graph")
    min_runs: int = option(20, Range(1, 1_000_000), "timed runs at least")
    min_seconds: float = option(0.5, Range(0, _LONGEST_S), "time that they take together at least")
    max_seconds: float = option(20.0, Range(0, _LONGEST_S), "no timed run is started later than this")
    # fmt: on


@dataclass(frozen=True)
class BenchSettings(Config):
    """Under which settings a bench measures, and how long.

    Raises:
        LatencyError: a value is wrong.
    """

    what = "settings of the bench"
    error = LatencyError

    # fmt: off
    image_size: int | None = option(None, Range(1, MOST_PIXELS), "side of the input, px. Accuracies "
        "that belong to another size are left out; None takes each model's own")
    runtimes: tuple[str, ...] = same_option(Settings, "runtime", ("torch",))
    threads: tuple[int, ...] = same_option(Settings, "threads", (1,))
    batches: tuple[int, ...] = same_option(Settings, "batch_size", (1,))
    cuda_graph: bool = same_option(Settings, "cuda_graph")
    device: str = same_option(Settings, "device")
    dtype: str = same_option(Settings, "dtype")
    dtypes: tuple[str, ...] = option((), DTYPES, "several in place of --dtype, side by side: float32,int8. A "
        "runtime is left out for one that it does not compute in; a file has its own", metavar="T")
    memory_format: str = same_option(Settings, "memory_format")
    rounds: int = option(7, Range(1, 1000), "how often each model is measured under each setting, at least",
        group="effort")
    seconds: float = option(0.3, Range(0, 60, open_low=True), "each is measured for rounds times this at "
        "least, up to twice as long where its latency is not certain to 1 % by then", metavar="S")
    seed: int = option(0, _SEED, "of the order")
    imports: tuple[str, ...] = option((), None, _IMPORTS)
    # fmt: on

    def conflicts(self) -> list[str]:
        """Return what does not fit together."""
        if not (self.runtimes and self.threads and self.batches):
            return ["no setting to measure: `runtimes`, `threads` and `batches` need a value each"]
        wrong = self.cuda_graph and (self.device, set(self.runtimes)) != ("cuda", {"torch"})
        return ["`cuda_graph` needs `device=cuda` and `runtimes=torch`"] if wrong else []


@dataclass(frozen=True)
class ImportSettings(Config):
    """What a file of latencies measured elsewhere may not say itself.

    Raises:
        LatencyError: a value is wrong.
    """

    what = "what is said of the file"
    error = LatencyError

    # fmt: off
    unit: str | None = option(None, ("ms", "s", "us"), "of the figures", group="what FILE may not say itself")
    device_name: str | None = option(None, None, "what it was measured on", metavar="NAME")
    runtime: str | None = option(None, None, "the program that ran the operations", metavar="NAME")
    threads: int | None = option(None, Range(1, MOST_THREADS), "on a CPU")
    batch_size: int | None = option(None, Range(1, MOST_IMAGES), "images a call")
    statistic: str | None = option(None, ("median", "mean"), "what a figure is over its runs")
    source: str | None = option(None, None, "where the figures were published", metavar="TEXT")
    # fmt: on
