"""The fastest way to run a model in this process, found by trying.

>>> import proxylessnas
>>> from proxylessnas.deploy import optimize
>>> model = proxylessnas.create_model("proxyless_cpu")
>>> fast = optimize(model, batch_size=8)  # doctest: +SKIP
>>> print(fast.report)  # doctest: +SKIP

Which way is fastest depends on processor, number of threads, batch and versions, and a compiler is not
everywhere. So each candidate is made, compared with the model as it was given, timed in turns with the
others, and one of them is taken. Memory that is handed back to the system after every layer can cost more
than all of
this gains: call :func:`proxylessnas.keep_freed_pages` at the start of the program. It changes the whole
process, so it is not done here; the report says if it is missing.
"""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ExportError, first_line, shown
from ..latency.measurement import LIMIT, Measurement, uncertainty
from ..models.base import ImageClassifier, unwrapped
from ..models.batchnorm import fold_batchnorm
from ..runtimes.environment import allocator
from ..runtimes.machine import device_name
from ..runtimes.timer import MIN_SECONDS, window
from ..runtimes.torch_compile import missing_compiler
from ..runtimes.torch_sessions import CudaSession, EagerSession, cuda_name, torch_versions
from .backends import WAYS, Backend, Candidate, OptimizeReport, Run, no_bfloat16
from .bundle import open_bundle
from .settings import OptimizeSettings
from .verify import proof_images

_ROUNDS = 5
_RANDOM_INPUTS = 32
#: A simpler candidate is taken for another that is faster by less than this share: that is within the noise.
_TIE = 0.03
_BF16_TOLERANCE = 0.05
_KEEP_PAGES = (
    "freed memory is handed back to the system, which slows models down: call "
    "proxylessnas.keep_freed_pages() at the start of the program"
)
_JUDGE = "bfloat16 was judged by few inputs: give real ones as `example`, or forbid it with allow_bf16=False"


class Optimized(nn.Module):
    """A model that runs the fastest way there was; made by :func:`optimize`.

    It is for inference: always in evaluation mode, in inference mode, and not under autocast. What was
    chosen was made for one shape of input; other shapes are run by ``model``, the folded one.

    Attributes:
        report: what was tried, and why this was chosen.
        model: the model with BatchNorm folded.
    """

    def __init__(self, model: nn.Module, run: Run, example: Tensor, report: OptimizeReport) -> None:
        super().__init__()
        self.model, self.report = model.eval(), report
        self._run = [run]  # in a list, for a module in an attribute would count as a part, with its weights
        self._shape, self._dtype, self._device = example.shape, example.dtype, example.device

    @torch.inference_mode()
    def forward(self, x: Tensor) -> Tensor:
        """Map images [N, C, H, W] to what the model given returns."""
        with torch.autocast(x.device.type, enabled=False):
            if x.shape == self._shape and x.dtype == self._dtype and x.device == self._device:
                return self._run[0](x)
            found: Tensor = self.model(x)
            return found

    def train(self, mode: bool = True) -> Optimized:
        """Stay in evaluation mode.

        Raises:
            ExportError: training is asked for.
        """
        if mode:
            raise ExportError("an optimised model is for inference only; train the model it was made from")
        super().train(False)
        return self

    def __reduce__(self) -> Any:
        raise ExportError(
            "an optimised model belongs to this process: save the model it was made from, or export it "
            "(`proxylessnas export MODEL FILE.pt2 --aot`)"
        )


def optimize(
    model: nn.Module, example: Tensor | None = None, settings: OptimizeSettings | None = None
) -> Optimized:
    """Return the fastest module that computes what ``model`` computes, on this machine, for one shape.

    Tried are: the model as it is; with channels last; with BatchNorm folded; with oneDNN's fused operators
    (CPU); compiled by inductor and by AOTInductor with frozen weights, where there is a C++ compiler; and the
    promising ones in bfloat16. Compiling takes 20 to 60 seconds each.

    Args:
        model: takes one tensor and returns one. It is not changed. What is tried runs on its device.
        example: real inputs [N, C, H, W] in float32, as many as there are at hand: a candidate must name the
            same class for them. Without them, random numbers are used, and a few images of ours if the
            model's preprocessing is known: too few to judge bfloat16 by, so the report advises against that.
        settings: the shape, what is tried and how close it must be; None takes the defaults.

    Returns:
        A module with ``report``; print it to see what was chosen and why.

    Raises:
        ExportError: the example is wrong, or the model cannot be run.
    """
    asked = settings or OptimizeSettings()
    before = torch.get_num_threads()
    torch.set_num_threads(asked.threads or before)
    try:
        with torch.inference_mode(False), torch.no_grad():
            backends = _ways(asked.compile, asked.allow_bf16)
            return _optimized(copy.deepcopy(model).eval(), example, asked, backends)
    finally:
        torch.set_num_threads(before)


def _ways(compile: str, allow_bf16: bool) -> Sequence[Backend]:
    """Return what is to be tried.

    Raises:
        ExportError: compiling is asked for, and there is no compiler.
    """
    todo = missing_compiler()
    if compile == "always" and todo:
        raise ExportError(f"compile='always' needs a C++ compiler: {todo}")
    compiling = compile != "never" and not todo
    return [
        backend
        for backend in WAYS
        if (allow_bf16 or not backend.bf16) and (compiling or not backend.compiled)
    ]


def _optimized(
    model: nn.Module,
    given: Tensor | None,
    asked: OptimizeSettings,
    backends: Sequence[Backend],
) -> Optimized:
    device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    images, source = _images(model, given, asked.input_size)
    images = images.to(device)
    batch_size = asked.batch_size or (1 if given is None else len(images))
    example = _batches(images, batch_size)[0]
    folded = fold_batchnorm(model)
    try:
        reference = _outputs(model, images, batch_size)
    except Exception as e:  # a user's module may fail in any way
        raise ExportError(f"the model does not take {list(example.shape)} ({first_line(e)})") from e
    found: dict[str, Candidate] = {}
    runs: dict[str, Run] = {}
    for backend in backends:
        if device.type not in backend.devices:
            continue
        begin = time.perf_counter()
        candidate, run = Candidate(backend.name, out=_not_worth(backend, device, found)), None
        if not candidate.out:
            try:
                run = backend.make(model, folded, example)
                candidate = _compared(backend, _outputs(run, images, batch_size), reference, asked)
            except Exception as e:  # noqa: BLE001 - compilers raise anything; this way is out, no more
                candidate = replace(candidate, out=f"failed: {first_line(e, 120)}")
        found[backend.name] = replace(candidate, prepare_seconds=round(time.perf_counter() - begin, 3))
        if run is not None and not candidate.out:
            runs[backend.name] = run
    noise = _time(found, runs, example, asked.seconds)
    chosen, why = _choose(list(found.values()))
    cuda, state = device.type == "cuda", allocator()
    advice = [_KEEP_PAGES] if state == "default" and not cuda else []
    if given is None and "bfloat16" in chosen:
        advice.append(_JUDGE)
    report = OptimizeReport(
        chosen, why, tuple(found.values()), source,
        batch_size, tuple(example.shape[1:]), torch.get_num_threads(), device.type,
        (cuda_name() if cuda else None) or device_name(), state, torch_versions(),
        tuple(advice), noise,
    )  # fmt: skip
    return Optimized(folded, runs[chosen], example, report)


def _images(model: nn.Module, given: Tensor | None, input_size: int | None) -> tuple[Tensor, str]:
    """Return what the candidates are compared on, [N, C, H, W] in float32, and what it is in words."""
    if given is not None:
        if not isinstance(given, Tensor) or given.ndim != 4 or given.dtype != torch.float32 or not len(given):
            seen = f"{given.dtype} {list(given.shape)}" if isinstance(given, Tensor) else shown(given)
            raise ExportError(f"example is a float32 tensor [N, C, H, W] with N above 0, not {seen}")
        if input_size not in (None, given.shape[-1]):
            raise ExportError(f"input_size {input_size} is not that of the example, {list(given.shape)}")
        return given.detach().clone(), f"the {len(given)} inputs given"
    generator, source = torch.Generator().manual_seed(0), f"{_RANDOM_INPUTS} random inputs"
    model = unwrapped(model)
    if not isinstance(model, ImageClassifier):
        return torch.randn(_RANDOM_INPUTS, 3, *[input_size or 224] * 2, generator=generator), source
    bundle = open_bundle(model, input_size=input_size)
    noise = torch.randn(_RANDOM_INPUTS, *bundle.input_size, generator=generator)
    if model.preprocessing is None or input_size not in (None, model.preprocessing.input_size):
        return noise, source
    # All noise looks alike to a trained model: images ask more of it.
    proof = proof_images(bundle)
    return torch.cat(
        [proof.inputs(model.in_chans), noise]
    ), f"{source} and {len(proof.pixels)} {proof.source}"


def _batches(images: Tensor, batch_size: int) -> list[Tensor]:
    """Return the images in batches of one size; the last is filled up from the first image on."""
    missing = -len(images) % batch_size
    filled = images[torch.arange(len(images) + missing, device=images.device) % len(images)]
    return [part.clone() for part in filled.split(batch_size)]


@torch.inference_mode()
def _outputs(run: Run, images: Tensor, batch_size: int) -> Tensor:
    """Return what a candidate makes of all images."""
    outputs = [run(batch) for batch in _batches(images, batch_size)]
    if not all(isinstance(output, Tensor) for output in outputs):
        raise TypeError(f"it returns {shown(outputs[0])}, not a tensor")
    return torch.cat([output.clone() for output in outputs])[: len(images)].float()


def _not_worth(backend: Backend, device: torch.device, found: dict[str, Candidate]) -> str:
    """Return why a way need not be tried; "" if it is to be."""
    if not backend.bf16:
        return ""
    if backend.compiled and any(
        other.bf16 and found[other.name].out for other in WAYS if other.name in found
    ):
        return "bfloat16 is out already"
    return no_bfloat16(device)


def _compared(backend: Backend, outputs: Tensor, reference: Tensor, limits: OptimizeSettings) -> Candidate:
    """Return a candidate with how far its outputs are from the reference, out if that is too far."""
    difference = float((outputs - reference).abs().max())
    same = (outputs.flatten(1).argmax(1) == reference.flatten(1).argmax(1)).float().mean().item()
    share = max(limits.tolerance, _BF16_TOLERANCE) if backend.bf16 else limits.tolerance
    allowed = share * max(1.0, float(reference.abs().max()))
    out = ""
    if backend is WAYS[0]:
        pass  # it is the reference
    elif not bool(torch.isfinite(outputs).all()):
        out = "its outputs are not finite"
    elif difference > allowed:
        out = f"differs by {difference:.2g}, more than {allowed:.2g}"
    elif same < limits.min_agreement:
        out = f"names another class for {1 - same:.1%} of the images"
    return Candidate(backend.name, difference=difference, agreement=same, out=out)


def _time(
    found: dict[str, Candidate], runs: dict[str, Run], example: Tensor, seconds: float
) -> tuple[str, ...]:
    """Time the candidates in short interleaved windows, so that what disturbs the machine hits all alike.

    Returns:
        Reasons to distrust the times.
    """
    kind = CudaSession if example.device.type == "cuda" else EagerSession
    sessions = [(name, kind(run, example, [])) for name, run in runs.items()]
    measured = {name: Measurement() for name in runs}
    alone = example.device.type == "cpu" and torch.get_num_threads() == 1
    begin, turn = time.perf_counter(), 0
    while turn < _ROUNDS or (
        time.perf_counter() - begin < seconds * len(sessions) and uncertainty(measured.values()) > LIMIT
    ):
        random.Random(turn).shuffle(sessions)
        for name, session in sessions:
            found_now = window(
                session, min_runs=3, min_seconds=min(seconds / _ROUNDS, MIN_SECONDS), one_thread=alone
            )
            measured[name].windows.append(found_now)
        turn += 1
    for name, result in measured.items():
        spread = (result.median_ms - result.undisturbed_ms) / result.undisturbed_ms
        found[name] = replace(found[name], ms=result.undisturbed_ms, spread=spread)
    unsure = uncertainty(measured.values())
    return (f"the times are uncertain by {unsure:.1%}, wanted {LIMIT:.0%}",) if unsure > 2 * LIMIT else ()


def _choose(candidates: Sequence[Candidate]) -> tuple[str, str]:
    """Return the name of the fastest candidate, of several as good as equal the simplest, and the reason."""
    timed = [(candidate.ms, candidate.name) for candidate in candidates if candidate.ms is not None]
    fastest_ms, fastest = min(timed)
    chosen_ms, chosen = next((ms, name) for ms, name in timed if ms <= fastest_ms * (1 + _TIE))
    why = f"{chosen}: {chosen_ms:.2f} ms, {timed[0][0] / chosen_ms:.2f} times as fast as the model as given"
    if chosen != fastest:
        return chosen, f"{why}; {fastest} takes {fastest_ms:.2f} ms, which is no more than noise better"
    others = sorted(pair for pair in timed if pair[1] != chosen)
    return chosen, f"{why}; next is {others[0][1]} with {others[0][0]:.2f} ms" if others else why
