"""How a latency is to be measured, and under which conditions it was."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import LatencyError, shown
from ..utils.checks import is_int
from .registry import get_runtime

DEVICES = ("cpu", "cuda")
DTYPES = ("float32", "bfloat16", "float16")
MEMORY_FORMATS = ("channels_last", "contiguous")


@dataclass(frozen=True)
class Settings:
    """What the user asks for.

    Attributes:
        runtime: one of :func:`~proxylessnas.runtimes.registry.runtimes`.
        device: "cpu" or "cuda".
        threads: of the runtime's thread pool, on a CPU.
        batch_size: images a call.
        dtype: of weights and input.
        memory_format: of weights and input; other runtimes than those of torch choose their own.
        cuda_graph: replay a captured CUDA graph instead of launching every kernel (device "cuda", runtime
            "torch").

    Raises:
        LatencyError: a value is wrong, or values do not fit together.
    """

    runtime: str = "torch"
    device: str = "cpu"
    threads: int = 1
    batch_size: int = 1
    dtype: str = "float32"
    memory_format: str = "channels_last"
    cuda_graph: bool = False

    def __post_init__(self) -> None:
        get_runtime(self.runtime)  # raises if there is none
        for name, known in (("device", DEVICES), ("dtype", DTYPES), ("memory_format", MEMORY_FORMATS)):
            if getattr(self, name) not in known:
                raise LatencyError(f"{name} is {shown(getattr(self, name))}; known are {', '.join(known)}")
        for name, most in (("threads", 1024), ("batch_size", 65_536)):
            value = getattr(self, name)
            if not is_int(value, 1, most):
                raise LatencyError(f"{name} must be a whole number from 1 to {most}, not {shown(value)}")
        if self.cuda_graph and (self.device, self.runtime) != ("cuda", "torch"):
            raise LatencyError("cuda_graph needs device 'cuda' and runtime 'torch'")

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return dataclasses.asdict(self)


def one_thread(settings: Settings) -> bool:
    """Tell whether one thread on a CPU does all the work, so that its CPU time can be compared."""
    # Some systems count CPU time in ticks of 10 ms and more, which tells nothing of a run.
    fine = time.get_clock_info("process_time").resolution < 1e-5
    return fine and settings.device == "cpu" and settings.threads == 1


@dataclass(frozen=True)
class Conditions(Settings):
    """What a measurement was made with: the settings, and what the machine was.

    Attributes:
        device_name: of the processor or GPU, with the number of processors this process could use.
        allocator: state of the memory allocator, which moves the latency of PyTorch on a CPU: "pages kept"
            (see :func:`proxylessnas.keep_freed_pages`), "tcmalloc", "jemalloc", "default", or "unknown".
        versions: of Python, torch and the runtime.
        system: operating system.
    """

    device_name: str = "unknown"
    allocator: str = "unknown"
    versions: Mapping[str, str] = field(default_factory=dict)
    system: str = "unknown"

    @property
    def settings(self) -> Settings:
        """The part that a user chooses."""
        return Settings(**{f.name: getattr(self, f.name) for f in dataclasses.fields(Settings)})

    def describe(self) -> str:
        """Return it in one line."""
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}, " if self.device == "cpu" else ""
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return (
            f"{self.runtime} on {self.device_name}, {threads}batch {self.batch_size}, {self.dtype}"
            f"{', CUDA graph' if self.cuda_graph else ''}; {versions}"
        )
