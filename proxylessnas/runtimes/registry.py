"""The runtimes by name. A runtime's file, and the library behind it, is imported when it is asked for."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable

from ..errors import LatencyError, shown
from .base import Runtime
from .settings import RUNTIMES

_MODULES = {
    "torch": "torch_eager",
    "torch-compile": "torch_compile",
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "executorch": "executorch",
    "litert": "litert",
}
#: What a runtime needs besides torch, and the extra of this package that brings it.
_NEEDS = {
    "onnxruntime": (("onnx", "onnxscript", "onnxruntime"), "onnx"),
    "openvino": (("onnx", "onnxscript", "openvino"), "openvino"),
    "executorch": (("executorch",), "mobile"),
    "litert": (("ai_edge_litert",), "litert"),
}


def get_runtime(name: str) -> Runtime:
    """Import a runtime.

    Raises:
        LatencyError: there is none of that name.
        MissingExtraError: its library is not installed; the message gives the pip line.
    """
    if name not in _MODULES:
        raise LatencyError(f"runtime is {shown(name)}; known are {', '.join(RUNTIMES)}")
    runtime: Runtime = importlib.import_module(f".{_MODULES[name]}", __package__).RUNTIME
    return runtime


def available(names: Iterable[str] = RUNTIMES) -> dict[str, str | None]:
    """Tell which runtimes can be used, without importing any library.

    Returns:
        Name to None if its libraries are installed, else to what to do about it: the pip line, or what else
        is missing.

    Raises:
        LatencyError: there is no runtime of that name.
    """
    found: dict[str, str | None] = {}
    for name in names:
        if name not in _MODULES:
            raise LatencyError(f"runtime is {shown(name)}; known are {', '.join(RUNTIMES)}")
        packages, extra = _NEEDS.get(name, ((), ""))
        missing = any(importlib.util.find_spec(package) is None for package in packages)
        found[name] = f"pip install 'proxylessnas[{extra}]'" if missing else None
        if name == "torch-compile":
            from .torch_compile import missing_compiler

            found[name] = missing_compiler()
    return found
