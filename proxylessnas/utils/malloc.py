"""Keep freed memory in the process, so that CPU runs are fast and steady."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8


def keep_freed_pages(top_pad_mib: int = 64) -> bool:
    """Tell glibc to reuse freed memory instead of handing it back to the system.

    Convolutional models allocate and free large activations all the time. By default glibc maps them afresh
    each time, and touching fresh pages is slow, on virtual machines very slow. Call this once at the start of
    a CPU program that runs or trains models; it is never done at import. The process keeps its peak memory
    until it ends.

    Args:
        top_pad_mib: how much to ask for at a time, in MiB.

    Returns:
        True if it took effect; False where the C library is not glibc (macOS, Windows, musl).
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = (
        (_M_ARENA_MAX, 1),
        (_M_MMAP_MAX, 0),
        (_M_TRIM_THRESHOLD, 2**31 - 1),
        (_M_TOP_PAD, top_pad_mib << 20),
    )
    return all(mallopt(name, value) == 1 for name, value in settings)
