"""Measures how long one forward pass of a model takes here: :func:`measure`."""

from __future__ import annotations

import copy
import datetime
import logging
import os
import pickle
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from ..arch.arch import Arch
from ..arch.op_key import DEFAULT_RESOLUTION
from ..arch.tree import TreeArch
from ..errors import LatencyError, ProxylessError, shown
from ..models.factory import create_model
from ..models.resolve import resolve
from ..runtimes.base import ModelSpec
from ..runtimes.files import check_runtime, file_runtimes, input_size_of
from ..runtimes.modules import CannotTravel, example_input, place, seeded
from ..runtimes.settings import Conditions, Settings, one_thread
from ..runtimes.timer import MAX_SECONDS, MIN_SECONDS, Window, window
from .measurement import LIMIT, Measurement, Timing
from .settings import MeasureSettings
from .worker import Worker

_LOG = logging.getLogger("proxylessnas")
_NAME = "net"
_WARM_UP_S = 0.1
_LEAST_WINDOWS = 4
_HANDED_BACK = (
    "measured in this process, whose memory allocator hands freed memory back to the system, which slows "
    "models down, in each process differently; proxylessnas.keep_freed_pages() at its start prevents that"
)


def measure(
    model_or_arch: nn.Module | Arch | TreeArch | str | os.PathLike[str],
    *,
    batch_size: int = 1,
    device: str | torch.device | None = None,
    threads: int | None = None,
    runtime: str | None = None,
    input_size: tuple[int, int, int] | int | None = None,
    settings: MeasureSettings | None = None,
) -> Timing:
    """Measure how long a forward pass takes on this machine.

    A copy runs in a process of its own, in evaluation mode, with freed memory kept
    (:func:`proxylessnas.keep_freed_pages`). After a warm-up, short windows of runs follow until the
    undisturbed latency, a low quantile, is certain to 1 % (:mod:`.measurement`), or the time is over.
    :func:`.bench` compares models more fairly.

    Args:
        model_or_arch: a module; an architecture, a zoo name or an architecture's file, with random weights;
            a file of weights that names its architecture; or an exported file (:mod:`.files`).
        batch_size: images a forward pass.
        device: "cpu" or "cuda"; None takes the module's own, "cpu" if it has several or none.
        threads: of the runtime, on a CPU; None: 1.
        runtime: one of :func:`.runtimes`; None takes an exported file's own, else "torch".
        input_size: (channels, height, width) of one image; one number is the height and width. None takes
            the model's own, or that of the report beside an exported file, else (3, 224, 224).
        settings: precision, memory format, and how long; None takes the defaults.

    Returns:
        The undisturbed latency, median, 10 % and 90 % quantile in milliseconds, and reasons to distrust them,
        if any; a disturbance that lasts longer than the measurement is not seen.

    Raises:
        LatencyError, ArchError, UnknownModelError: it cannot be measured so; the message says why.
        MissingExtraError: the runtime's library is not installed.

    A module whose classes other processes cannot import (those of ``__main__``, or inside a function) is
    measured in this process, which needs runtime "torch"; freed memory that is not kept here is then a reason
    to distrust the figures.
    """
    limits = settings or MeasureSettings()
    measured = _measured(model_or_arch)
    own = [] if measured.file is None else [*file_runtimes(measured.file)]
    asked = Settings(
        runtime or [*own, "torch"][0], _device(device, measured.module),
        1 if threads is None else threads, batch_size, limits.dtype, limits.memory_format, limits.cuda_graph,
    )  # fmt: skip
    size = _input_size(input_size, measured)
    if measured.module is None:
        spec = ModelSpec("arch", str(measured.arch), size)
        if measured.file is not None:
            check_runtime(measured.file, asked.runtime)
            spec = ModelSpec("file", os.path.abspath(measured.file), size)
        with Worker(asked) as worker:
            worker.load(_NAME, spec)
            found, conditions = _until_certain(_windows_of(worker), limits), worker.conditions
        doubts: tuple[str, ...] = ()
    else:
        found, conditions, doubts = _measure_module(measured.module, asked, size, limits)
    return Timing.of(found, conditions, size, datetime.date.today().isoformat(), doubts)


def _windows_of(worker: Worker) -> Callable[[float], Window]:
    return lambda seconds: worker.window(_NAME, min_seconds=min(MIN_SECONDS, seconds), max_seconds=seconds)


def _until_certain(take: Callable[[float], Window], limits: MeasureSettings) -> Measurement:
    """Take windows, the first of which is the warm-up, until the latency is certain.

    Args:
        take: times a window that begins no run after so many seconds.
        limits: when it is enough.
    """
    take(min(_WARM_UP_S, limits.max_seconds / 4))
    found, runs, begin = Measurement(), 0, time.perf_counter()
    while True:
        spent = time.perf_counter() - begin
        found.windows.append(take(min(MAX_SECONDS, max(0.0, limits.max_seconds - spent))))
        runs += len(found.windows[-1].ms)
        spent = time.perf_counter() - begin
        enough = (
            runs >= limits.min_runs and spent >= limits.min_seconds and len(found.windows) >= _LEAST_WINDOWS
        )
        if (enough and found.uncertainty <= LIMIT) or spent >= limits.max_seconds:
            return found


class _Measured(NamedTuple):
    """What is to be measured: a module, an exported file, or else an architecture alone."""

    module: nn.Module | None = None
    arch: Arch | TreeArch | None = None
    channels: int = 3
    file: str | None = None


def _measured(what: object) -> _Measured:
    """Find out what the caller named."""
    if isinstance(what, (str, os.PathLike)) and file_runtimes(what):
        return _Measured(file=os.fspath(what))
    try:
        found = resolve(what)
    except TypeError as e:
        raise LatencyError(f"what is to be measured {e}") from e
    module = found.module
    if found.path is not None and found.kind == "weights file":
        module = create_model(found.path)
    if module is None:
        arch = found.arch
        if isinstance(arch, Arch) and any(block.kind == "custom" for block in arch.iter_blocks()):
            # Another process knows nothing of operations that were registered here.
            with seeded(str(arch)):
                module = create_model(arch)
        return _Measured(module, arch, arch.in_channels)
    if any(tensor.is_meta for tensor in [*module.parameters(), *module.buffers()]):
        raise LatencyError("the module is on the device 'meta': it has no weights to run with")
    own: object = getattr(module, "arch", None)
    channels = getattr(module, "in_chans", None)
    if isinstance(own, (Arch, TreeArch)):
        return _Measured(module, own, channels if isinstance(channels, int) else 3)
    return _Measured(module)


def _device(device: object, module: nn.Module | None) -> str:
    if device is not None:
        if isinstance(device, str) and device.startswith("cuda:"):
            device = torch.device(device)
        if isinstance(device, torch.device):
            here = torch.cuda.current_device() if device.type == "cuda" and torch.cuda.is_available() else 0
            if device.index not in (None, here):
                raise LatencyError(f"device {device}: set CUDA_VISIBLE_DEVICES, so that it is the only one")
            return device.type
        return str(device)
    tensors = [] if module is None else [*module.parameters(), *module.buffers()]
    kinds = {tensor.device.type for tensor in tensors}
    return kinds.pop() if len(kinds) == 1 else "cpu"


def _input_size(given: object, measured: _Measured) -> tuple[int, int, int]:
    resolution = getattr(measured.arch, "resolution", None) or DEFAULT_RESOLUTION
    size: object = (measured.channels, resolution, resolution)
    if measured.file is not None:
        size = input_size_of(measured.file) or size
    if isinstance(given, int):
        size = (measured.channels, given, given)
    elif given is not None:
        size = given
    if (
        isinstance(size, Sequence)
        and len(size) == 3
        and all(isinstance(n, int) and not isinstance(n, bool) and 1 <= n <= 65_536 for n in size)
    ):
        return size[0], size[1], size[2]
    raise LatencyError(
        f"input_size must be (channels, height, width), or one number of pixels, all from 1 to 65536, not "
        f"{shown(given)}"
    )


def _measure_module(
    module: nn.Module, settings: Settings, size: tuple[int, int, int], limits: MeasureSettings
) -> tuple[Measurement, Conditions, tuple[str, ...]]:
    """Send a module to a process of its own; where that cannot be done, measure a copy of it here.

    Returns:
        The runs, what they were made with, and reasons to distrust them that the runs do not show.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="proxylessnas-module-") as folder:
            path = Path(folder) / "module.pkl"
            pickle_module(module, path)
            with Worker(settings) as worker:
                worker.load(_NAME, ModelSpec("module", str(path), size))
                path.unlink()
                return _until_certain(_windows_of(worker), limits), worker.conditions, ()
    except CannotTravel as e:
        if settings.runtime != "torch":
            raise LatencyError(
                f"runtime {settings.runtime!r} runs in a process of its own, and {e}. Define the module's "
                "classes and functions in a file that can be imported, not in the main program or inside a "
                "function; or use runtime 'torch'"
            ) from e
        _LOG.info("measuring in this process: %s", e)
    found, conditions = _measure_here(module, settings, size, limits)
    handed_back = conditions.device == "cpu" and conditions.allocator == "default"
    return found, conditions, (_HANDED_BACK,) if handed_back else ()


def pickle_module(module: nn.Module, path: Path) -> None:
    """Write a module to a file.

    Raises:
        CannotTravel: it cannot be pickled, or not so that another process could read it.
    """
    here = {type(part).__qualname__ for part in module.modules() if type(part).__module__ == "__main__"}
    if here:
        raise CannotTravel(f"the module cannot be sent there: {min(here)} is defined in the main program")
    try:
        with path.open("wb") as file:
            pickle.dump(module, file, pickle.HIGHEST_PROTOCOL)
    except OSError as e:
        raise LatencyError(f"{path}: {e.strerror or e}") from e
    except Exception as e:  # whatever is in a user's module says in its own way that it cannot be pickled
        raise CannotTravel(f"the module cannot be sent there: {type(e).__name__}: {e}") from e


def _measure_here(
    module: nn.Module, settings: Settings, size: tuple[int, int, int], limits: MeasureSettings
) -> tuple[Measurement, Conditions]:
    """Measure a deep copy in this process, and leave every setting of it as it was."""
    from ..runtimes.environment import conditions
    from ..runtimes.torch_eager import RUNTIME
    from ..runtimes.torch_sessions import check_device, session_for
    from ..utils.random import keep_random_state

    check_device(settings)
    threads = torch.get_num_threads()
    gpus = [torch.cuda.current_device()] if settings.device == "cuda" else []
    torch.set_num_threads(settings.threads)
    try:
        with (
            keep_random_state(),
            torch.random.fork_rng(devices=gpus),
            torch.inference_mode(False),
            torch.no_grad(),
            torch.autocast(settings.device, enabled=False),
        ):
            twin = place(copy.deepcopy(module), settings)
            session = session_for(twin, example_input(size, settings), settings, [])
            alone = one_thread(settings)
            found = _until_certain(
                lambda s: window(session, min_seconds=min(MIN_SECONDS, s), max_seconds=s, one_thread=alone),
                limits,
            )
            return found, conditions(settings, RUNTIME)
    except ProxylessError:
        raise
    except Exception as e:  # copying and running a user's module may fail in any way
        raise LatencyError(f"the module cannot be run: {type(e).__name__}: {e}") from e
    finally:
        torch.set_num_threads(threads)
