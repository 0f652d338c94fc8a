"""Where files that this package keeps for later lie, and whether it may use the network."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from ..errors import WeightsFetchError

#: Files that come with the package: classes, a small data set, a latency table, weights, a page's style.
ASSETS = Path(__file__).resolve().parents[1] / "assets"


def cache_dir() -> Path:
    """Return the cache folder; it is not made until something is written to it.

    ``$PROXYLESSNAS_CACHE``, else ``proxylessnas`` in torch's hub folder (which follows ``TORCH_HOME``,
    ``XDG_CACHE_HOME`` and ``torch.hub.set_dir``).

    Raises:
        WeightsFetchError: there is no home folder to put it in.
    """
    chosen = os.environ.get("PROXYLESSNAS_CACHE", "").strip()
    if not chosen:
        chosen = os.path.join(_hub_dir(), "proxylessnas")
    path = os.path.expanduser(chosen)
    if path.startswith("~"):  # a container's nameless user has no home: "~" would be made in the CWD
        raise WeightsFetchError(
            "there is no home folder to cache weights in; set PROXYLESSNAS_CACHE or TORCH_HOME"
        )
    return Path(path).absolute()


def _hub_dir() -> str:
    """Return torch's hub folder; without importing torch, which takes over a second, where nobody has yet."""
    torch: Any = sys.modules.get("torch")
    if hasattr(torch, "hub"):
        folder = os.path.expanduser(torch.hub.get_dir())  # torch.hub.set_dir() may have changed it
        if os.path.isabs(folder):
            return folder
    # Empty settings count as none and a relative one is ignored: torch would use the working folder.
    home, cache = (os.path.expanduser(os.environ.get(name, "")) for name in ("TORCH_HOME", "XDG_CACHE_HOME"))
    if not os.path.isabs(cache):
        cache = os.path.join("~", ".cache")
    return os.path.join(home if os.path.isabs(home) else os.path.join(cache, "torch"), "hub")


def is_offline() -> bool:
    """Return whether ``PROXYLESSNAS_OFFLINE`` forbids the network (set, and not 0, false, no or off)."""
    return os.environ.get("PROXYLESSNAS_OFFLINE", "").strip().lower() not in ("", "0", "false", "no", "off")
