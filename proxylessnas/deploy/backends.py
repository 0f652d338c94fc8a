"""The backends of PyTorch that :func:`proxylessnas.deploy.optimize` tries, and its report."""

from __future__ import annotations

import copy
import dataclasses
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..models.fuse import fuse
from ..runtimes.files import load_program
from ..runtimes.torch_compile import own_function
from .formats.torch_export import compile_program

#: Runs a batch [N, C, H, W] in float32, of the shape it was made for, to outputs in float32.
Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Backend:
    """Something that runs a model.

    Attributes:
        name: for people.
        make: takes the model as given, the folded model and an example batch. Whatever it raises means that
            the backend cannot be had here.
        bf16: whether it computes in bfloat16.
        compiled: whether it needs a compiler and its time.
        devices: that it is tried on.
    """

    name: str
    make: Callable[[nn.Module, nn.Module, Tensor], Run]
    bf16: bool = False
    compiled: bool = False
    devices: tuple[str, ...] = ("cpu", "cuda")


class Placed(nn.Module):
    """A model with its input in another memory format or dtype; the output is float32 again."""

    def __init__(self, model: nn.Module, memory_format: torch.memory_format, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).to(dtype=dtype).to(memory_format=memory_format)
        self.memory_format, self.dtype = memory_format, dtype

    def forward(self, x: Tensor) -> Tensor:
        """Run the model."""
        x = x.to(dtype=self.dtype, memory_format=self.memory_format)
        return self.model(x).float()


def channels_last(model: nn.Module, dtype: torch.dtype = torch.float32) -> Placed:
    """Return a copy that keeps the channels of a pixel together, which is how fast kernels want them."""
    return Placed(model, torch.channels_last, dtype)


def _fused(dtype: torch.dtype) -> Callable[[nn.Module, nn.Module, Tensor], Run]:
    def make(_: nn.Module, folded: nn.Module, example: Tensor) -> Run:
        placed = channels_last(folded, dtype)
        placed.model = fuse(placed.model, example.to(dtype=dtype, memory_format=torch.channels_last))
        return placed

    return make


def _inductor(dtype: torch.dtype) -> Callable[[nn.Module, nn.Module, Tensor], Run]:
    def make(_: nn.Module, folded: nn.Module, example: Tensor) -> Run:
        import torch._inductor.config as inductor

        options: Any = inductor
        call: Any = torch.compile(own_function(channels_last(folded, dtype)), dynamic=False)
        # In the mode it will run in: compiled code belongs to one mode, and is made anew for another.
        with options.patch(freezing=True), torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for _twice in range(2):  # the second call must find the compiled code
                call(example)
        run: Run = call
        return run

    return make


def _aot_inductor(dtype: torch.dtype) -> Callable[[nn.Module, nn.Module, Tensor], Run]:
    def make(_: nn.Module, folded: nn.Module, example: Tensor) -> Run:
        with warnings.catch_warnings(), tempfile.TemporaryDirectory(prefix="proxylessnas-aot-") as folder:
            warnings.simplefilter("ignore")
            program = torch.export.export(channels_last(folded, dtype), (example,), strict=False)
            path = Path(folder) / "net.pt2"
            compile_program(program, path, "the model", None)
            loaded = load_program(path)
        return lambda x: loaded(x.contiguous())

    return make


_F32, _BF16 = torch.float32, torch.bfloat16
#: The simplest first: of two that are equally fast, the one that comes first is taken.
WAYS = (
    Backend("as given", lambda model, _, __: model),
    Backend("channels last", lambda model, _, __: channels_last(model)),
    Backend("folded", lambda _, folded, __: folded),
    Backend("folded, channels last", lambda _, folded, __: channels_last(folded)),
    Backend("oneDNN fused", _fused(_F32), devices=("cpu",)),
    Backend("AOTInductor", _aot_inductor(_F32), compiled=True),
    Backend("inductor", _inductor(_F32), compiled=True),
    Backend("folded, channels last, bfloat16", lambda _, folded, __: channels_last(folded, _BF16), bf16=True),
    Backend("oneDNN fused, bfloat16", _fused(_BF16), bf16=True, devices=("cpu",)),
    Backend("AOTInductor, bfloat16", _aot_inductor(_BF16), bf16=True, compiled=True),
    Backend("inductor, bfloat16", _inductor(_BF16), bf16=True, compiled=True),
)


def no_bfloat16(device: torch.device) -> str:
    """Return why bfloat16 is not worth a try on a device; "" if it is."""
    if device.type == "cuda":
        return "" if torch.cuda.is_bf16_supported(including_emulation=False) else "this GPU has no bfloat16"
    try:
        return "" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "this processor has no bfloat16"
    except (AttributeError, RuntimeError):
        return "this build of PyTorch has no bfloat16 kernels"


@dataclass(frozen=True)
class Candidate:
    """A backend that was tried.

    Attributes:
        name: as in :attr:`OptimizeReport.chosen`.
        ms: a forward pass of the whole batch, undisturbed, milliseconds; None if it was not timed.
        spread: how much longer the median pass took, as a share of ``ms``; None if it was not timed.
        difference: largest absolute difference of an output to the model as given; None if it never ran.
        agreement: share of the images with the same largest output, 0 to 1; None if it never ran.
        prepare_seconds: what making it took.
        out: why it could not be chosen; "" if it could.
    """

    name: str
    ms: float | None = None
    spread: float | None = None
    difference: float | None = None
    agreement: float | None = None
    prepare_seconds: float = 0.0
    out: str = ""


@dataclass(frozen=True)
class OptimizeReport:
    """What :func:`~proxylessnas.deploy.optimize` tried, found and chose.

    Attributes:
        chosen: name of the candidate that runs.
        why: the reason, in a sentence.
        candidates: all of them, the model as given first.
        images: what the outputs were compared on, in words.
        batch_size, input_size: what was timed; other inputs are run by the folded model.
        threads: that were timed, and are built into compiled code.
        device, device_name, allocator, versions: what was measured on.
        advice: what would make it faster, in words.
        noise: reasons to distrust the times.
    """

    chosen: str
    why: str
    candidates: tuple[Candidate, ...]
    images: str
    batch_size: int
    input_size: tuple[int, ...]
    threads: int
    device: str
    device_name: str
    allocator: str
    versions: Mapping[str, str]
    advice: tuple[str, ...] = ()
    noise: tuple[str, ...] = ()

    @property
    def speedup(self) -> float:
        """How many times as fast as the model given the chosen one is."""
        return _ms(self.candidates[0]) / _ms(self._chosen)

    @property
    def _chosen(self) -> Candidate:
        return next(candidate for candidate in self.candidates if candidate.name == self.chosen)

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        found = {**dataclasses.asdict(self), "versions": dict(self.versions), "speedup": self.speedup}
        return {"pictures": found.pop("images"), **found}  # the key has been this since 0.1

    def __str__(self) -> str:
        """Return a table for a terminal, and the reason below it."""
        rows: list[tuple[str, ...]] = [("", "ms", "times", "max diff", "same class", "made in")]
        for c in self.candidates:
            mark = ">" if c.name == self.chosen else " "
            times = [f"{c.ms:.2f}", f"{_ms(self.candidates[0]) / c.ms:.2f}x"] if c.ms else ["-", "-"]
            far = "-" if c.difference is None else f"{c.difference:.1e}"
            same = "-" if c.agreement is None else f"{c.agreement:.0%}"
            rows.append((f"{mark} {c.name}", *times, far, same, f"{c.prepare_seconds:.1f} s", c.out))
        widths = [max(len(row[i]) for row in rows) for i in range(6)]
        lines = []
        for row in rows:
            cells = [row[0].ljust(widths[0]), *(row[i].rjust(widths[i]) for i in range(1, 6)), *row[6:]]
            lines.append("  ".join(cells).rstrip())
        threads = f"{self.threads} thread{'s' if self.threads != 1 else ''}, " if self.device == "cpu" else ""
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        where = (
            f"{self.device_name}, {threads}batch {self.batch_size}, input {list(self.input_size)}; {versions}"
        )
        lines += [self.why, f"{where}; compared on {self.images}"]
        return "\n".join([*lines, *self.advice, *(f"not to be trusted: {reason}" for reason in self.noise)])


def _ms(candidate: Candidate) -> float:
    assert candidate.ms is not None  # it was timed
    return candidate.ms
