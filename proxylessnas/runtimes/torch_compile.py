"""Runtime "torch-compile": PyTorch through inductor, with the weights frozen into the compiled net."""

from __future__ import annotations

import itertools
import os
import shutil
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import LatencyError
from .base import NetSpec
from .modules import build_net
from .settings import Settings
from .torch_eager import CudaSession, EagerSession, check_device, cuda_name, torch_versions

_numbers = itertools.count()


def missing_compiler() -> str | None:
    """Return what to do about a missing C++ compiler; None if there is one."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "cl"]
    if any(shutil.which(name) for name in names):
        return None
    return f"install a C++ compiler ({', '.join(names)} is not on the PATH), or name one in CXX"


class TorchCompileRuntime:
    """PyTorch, compiled."""

    name = "torch-compile"
    has_parts = False

    def versions(self) -> dict[str, str]:
        """Return torch's version."""
        return torch_versions()

    def device_name(self, settings: Settings) -> str | None:
        """Return the GPU's name; None for the CPU."""
        return cuda_name() if settings.device == "cuda" else None

    def load(self, spec: NetSpec, settings: Settings, folder: Path) -> EagerSession:
        """Build the net, compile it and run it once; that takes tens of seconds.

        Raises:
            LatencyError: there is no compiler, or the net cannot be compiled.
        """
        check_device(settings)
        todo = missing_compiler() if settings.device == "cpu" else None
        if todo:
            raise LatencyError(f"runtime 'torch-compile' needs a C++ compiler: {todo}")
        net, x = build_net(spec, settings)
        return compiled_session(net, x, settings)


def compiled_session(net: nn.Module, x: Tensor, settings: Settings) -> EagerSession:
    """Compile a net that is in place.

    Raises:
        LatencyError: it cannot be compiled.
    """
    import torch._inductor.config as inductor

    inductor.freezing = True
    call: Any = torch.compile(own_function(net), dynamic=False)
    kind = CudaSession if settings.device == "cuda" else EagerSession
    session = kind(call, x, [])
    try:
        for _ in range(2):  # the second call must find the compiled code
            session.run()
    except Exception as e:
        text = str(e).strip().split("\n", 1)[0]
        raise LatencyError(f"torch.compile cannot run this net: {type(e).__name__}: {text}") from e
    return session


def own_function(net: nn.Module) -> Callable[[Tensor], Any]:
    """Return a function of its own that calls the net.

    The compiler files its results under the code object, a few at most for each, and falls back to eager
    silently after that. All nets share one code object for their ``forward``; this gives each its own.
    """

    def call(x: Tensor) -> Any:
        return net(x)

    name = f"call_{next(_numbers)}"
    code = call.__code__.replace(co_name=name)
    return types.FunctionType(code, call.__globals__, name, None, call.__closure__)


RUNTIME = TorchCompileRuntime()
