"""What the machine and this process are: names, versions, and the state of the memory allocator."""

from __future__ import annotations

import ctypes
import platform
import sys
from pathlib import Path

from .base import Runtime
from .machine import device_name
from .settings import Conditions, Settings

_PROBE_BYTES = 64 << 20  # above glibc's largest threshold for mapping a block of its own (32 MiB)


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
