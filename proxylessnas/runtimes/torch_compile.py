"""Runtime "torch-compile": PyTorch through inductor, with the weights frozen into the compiled model."""

from __future__ import annotations

import itertools
import os
import shutil
import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..errors import LatencyError
from .base import ModelSpec, Session
from .settings import Settings
from .torch_eager import TorchRuntime

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .torch_sessions import EagerSession

_numbers = itertools.count()


def missing_compiler() -> str | None:
    """Return what to do about a missing C++ compiler; None if there is one."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "cl"]
    if any(shutil.which(name) for name in names):
        return None
    return f"install a C++ compiler ({', '.join(names)} is not on the PATH), or name one in CXX"


class TorchCompileRuntime(TorchRuntime):
    """PyTorch, compiled."""

    name = "torch-compile"
    suffixes = ()
    has_parts = False

    def missing(self) -> str | None:
        """Return what to do about a missing C++ compiler; None if there is one."""
        return missing_compiler()

    def _load(self, spec: ModelSpec, settings: Settings) -> Session:
        from .modules import build_model
        from .torch_sessions import check_device

        check_device(settings)
        todo = missing_compiler() if settings.device == "cpu" else None
        if todo:
            raise LatencyError(f"runtime 'torch-compile' needs a C++ compiler: {todo}")
        model, x = build_model(spec, settings)
        return compiled_session(model, x, settings)


def compiled_session(model: nn.Module, x: Tensor, settings: Settings) -> EagerSession:
    """Compile a model that is in place.

    Raises:
        LatencyError: it cannot be compiled.
    """
    import torch
    import torch._inductor.config as inductor

    from .torch_sessions import CudaSession, EagerSession

    inductor.freezing = True
    call: Any = torch.compile(own_function(model), dynamic=False)
    kind = CudaSession if settings.device == "cuda" else EagerSession
    session = kind(call, x, [])
    try:
        for _ in range(2):  # the second call must find the compiled code
            session.run()
    except Exception as e:
        text = str(e).strip().split("\n", 1)[0]
        raise LatencyError(f"torch.compile cannot run this model: {type(e).__name__}: {text}") from e
    return session


def own_function(model: nn.Module) -> Callable[[Tensor], Any]:
    """Return a function of its own that calls the model.

    The compiler files a few results at most under each code object, and falls back to eager silently after
    that; all models share that of their ``forward``.
    """

    def call(x: Tensor) -> Any:
        return model(x)

    name = f"call_{next(_numbers)}"
    code = call.__code__.replace(co_name=name)
    return types.FunctionType(code, call.__globals__, name, None, call.__closure__)


RUNTIME = TorchCompileRuntime()
