"""How a latency is to be measured, and under which conditions it was."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import LatencyError
from ..utils.checks import Range
from ..utils.config import Config, option
from .registry import runtimes

DEVICES = ("cpu", "cuda")
FLOATS = ("float32", "bfloat16", "float16")
DTYPES = (*FLOATS, "int8")
MEMORY_FORMATS = ("channels_last", "contiguous")
MOST_THREADS, MOST_IMAGES, MOST_PIXELS = 1024, 65_536, 65_536


@dataclass(frozen=True)
class Settings(Config):
    """Where and how a model is run to be measured.

    Raises:
        LatencyError: a value is wrong, or values do not fit together.
    """

    what = "settings"
    error = LatencyError

    # fmt: off
    runtime: str = option("torch", runtimes, "what runs the model", metavar="R", group="settings")
    device: str = option("cpu", DEVICES, "where it runs", metavar="D")
    threads: int = option(1, Range(1, MOST_THREADS), "of the runtime's thread pool, on a CPU")
    batch_size: int = option(1, Range(1, MOST_IMAGES), "images a call")
    dtype: str = option("float32", DTYPES, "of weights and input; int8: weights and activations "
        "of 8 bits, as INT8 exports have them (runtimes onnxruntime and openvino)", metavar="T")
    memory_format: str = option("channels_last", MEMORY_FORMATS, "of weights and input; other runtimes than "
        "those of torch choose their own", metavar="F")
    cuda_graph: bool = option(False, None, "replay a captured CUDA graph instead of launching every kernel "
        "(device cuda, runtime torch)")
    # fmt: on

    @property
    def settings(self) -> Settings:
        """These alone, without what a derived class adds."""
        return Settings(**{f.name: getattr(self, f.name) for f in dataclasses.fields(Settings)})

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values, those of a derived class too."""
        return dataclasses.asdict(self)

    def conflicts(self) -> list[str]:
        """Return what does not fit together."""
        wrong = self.cuda_graph and (self.device, self.runtime) != ("cuda", "torch")
        return ["`cuda_graph` needs `device=cuda` and `runtime=torch`"] if wrong else []


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

    def describe(self) -> str:
        """Return it in one line."""
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}, " if self.device == "cpu" else ""
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return (
            f"{self.runtime} on {self.device_name}, {threads}batch {self.batch_size}, {self.dtype}"
            f"{', CUDA graph' if self.cuda_graph else ''}; {versions}"
        )
