"""What a machine calls itself. The file goes into every kit: it must run alone, on Python 3.8."""

from __future__ import annotations

import os
import platform
import sys

# The board first, where there is one: an Arm processor's own name says less than "Raspberry Pi 4 Model B".
_BOARD, _CPU = "/sys/firmware/devicetree/base/model", "/proc/cpuinfo"


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
    board = " ".join(_read(_BOARD).strip("\0").split())
    if board:
        return board
    for line in _read(_CPU).splitlines():
        if line.startswith(("model name", "Model", "Hardware")):
            return " ".join(line.split(":", 1)[-1].split()) or platform.machine()
    if sys.platform == "darwin":
        name = _sysctl("machdep.cpu.brand_string")
        if name:
            return name
    return platform.processor() or platform.machine() or "unknown processor"


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _sysctl(name: str) -> str | None:
    import ctypes

    size, text = ctypes.c_size_t(256), ctypes.create_string_buffer(256)
    try:
        failed = ctypes.CDLL(None).sysctlbyname(name.encode(), text, ctypes.byref(size), None, 0)
    except (OSError, AttributeError):
        return None
    return None if failed else text.value.decode("utf-8", "replace")
