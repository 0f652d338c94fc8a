"""What the machine and this process are: names, versions, and the state of the memory allocator."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from pathlib import Path

from .runtimes.base import Runtime
from .settings import Conditions, Settings

_PROBE_BYTES = 64 << 20  # above glibc's largest threshold for mapping a block of its own (32 MiB)


def processors() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def device_name() -> str:
    """Return the processor's name and how many of its cores this process may use."""
    count = processors()
    return f"{_cpu_name()}, {count} core{'s' if count > 1 else ''}"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith(("model name", "Model", "Hardware")):
            return " ".join(line.split(":", 1)[-1].split()) or platform.machine()
    if sys.platform == "darwin":
        name = _sysctl("machdep.cpu.brand_string")
        if name:
            return name
    return platform.processor() or platform.machine() or "unknown processor"


def _sysctl(name: str) -> str | None:
    size, text = ctypes.c_size_t(256), ctypes.create_string_buffer(256)
    try:
        failed = ctypes.CDLL(None).sysctlbyname(name.encode(), text, ctypes.byref(size), None, 0)
    except (OSError, AttributeError):
        return None
    return None if failed else text.value.decode("utf-8", "replace")


def allocator() -> str:
    """Return the state of this process's memory allocator, found out and not assumed.

    Returns:
        "tcmalloc", "jemalloc" or "mimalloc" if one is loaded in place of the C library's; else "pages kept"
        if freed memory stays in the process (see :func:`proxylessnas.keep_freed_pages`), "default" if glibc
        hands it back; "unknown" where there is no telling.
    """
    if not sys.platform.startswith("linux"):
        return "unknown"
    try:
        loaded = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "unknown"
    for name in ("tcmalloc", "jemalloc", "mimalloc"):
        if f"lib{name}" in loaded:
            return name
    return _glibc_state()


def _glibc_state() -> str:
    """Ask for a large block, give it back, and look where the heap ends before and after."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return "unknown"
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.restype, libc.free.argtypes = None, [ctypes.c_void_p]
    libc.sbrk.restype, libc.sbrk.argtypes = ctypes.c_void_p, [ctypes.c_ssize_t]
    block = libc.malloc(_PROBE_BYTES)  # never touched: no page of it exists
    if not block:
        return "unknown"
    end = libc.sbrk(0)
    libc.free(block)
    in_heap = end is not None and block + _PROBE_BYTES <= end
    return "pages kept" if in_heap and libc.sbrk(0) == end else "default"


def conditions(settings: Settings, runtime: Runtime) -> Conditions:
    """Return the conditions under which this process measures."""
    import torch

    versions = {"Python": platform.python_version(), "torch": str(torch.__version__), **runtime.versions()}
    return Conditions(
        **settings.to_dict(),
        device_name=runtime.device_name(settings) or device_name(),
        allocator=allocator(),
        versions=versions,
        system=f"{platform.system()} {platform.release()}".strip() or "unknown",
    )
