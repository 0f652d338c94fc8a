"""What the environment says about downloads: patience, mirrors, or no network at all."""

from __future__ import annotations

import os
import random
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

from .errors import WeightsFetchError
from .safe_text import shown_url

if TYPE_CHECKING:
    from .weights import Weights


@dataclass(frozen=True)
class Policy:
    """How patient a download is.

    Attributes:
        timeout_s: for a connection and for every wait for data (``PROXYLESSNAS_TIMEOUT``).
        retries: further attempts at one source after the first (``PROXYLESSNAS_RETRIES``).
        backoff_s: the first pause; each further one is twice as long, with up to half of it left off at
            random.
        max_wait_s: the longest pause, also when a server asks for more.
        lock_wait_s: how long to wait for another process that is downloading the same file.
    """

    timeout_s: float = 20.0
    retries: int = 3
    backoff_s: float = 0.5
    max_wait_s: float = 30.0
    lock_wait_s: float = 3600.0

    @classmethod
    def from_environment(cls) -> Policy:
        """Return the defaults, changed by ``PROXYLESSNAS_TIMEOUT`` and ``PROXYLESSNAS_RETRIES``.

        Raises:
            WeightsFetchError: a variable is not a sensible number.
        """
        timeout = _number("PROXYLESSNAS_TIMEOUT", cls.timeout_s, 0.01, 86400)
        return cls(timeout_s=timeout, retries=int(_number("PROXYLESSNAS_RETRIES", cls.retries, 0, 100)))

    def pause_s(self, failures: int, asked_s: float | None) -> float:
        """Return the pause before the next attempt at a source that failed ``failures`` times, seconds."""
        pause = (
            self.backoff_s * 2.0 ** min(failures - 1, 20) * random.uniform(0.5, 1.0)
        )  # spread many clients out
        return float(min(max(pause, asked_s or 0.0), self.max_wait_s))


def _number(variable: str, default: float, low: float, high: float) -> float:
    text = os.environ.get(variable, "").strip()
    try:
        value = float(text) if text else default
    except ValueError:
        value = -1.0
    if not low <= value <= high:
        raise WeightsFetchError(
            f"the environment variable {variable} is {text!r}; wanted a number, {low:g} to {high:g}"
        )
    return value


def is_offline() -> bool:
    """Return whether ``PROXYLESSNAS_OFFLINE`` forbids the network (set, and not 0, false, no or off)."""
    return os.environ.get("PROXYLESSNAS_OFFLINE", "").strip().lower() not in ("", "0", "false", "no", "off")


def source_urls(weights: Weights) -> tuple[str, ...]:
    """Return the addresses to try, in order: the manifest's, or those below ``PROXYLESSNAS_WEIGHTS_URL``.

    The variable holds one base address or several, separated by commas; the file's name is appended to the
    path of each.
    A mirror can do no harm, http included, because the digest still comes from the manifest.

    Raises:
        WeightsFetchError: an address in the variable is not http or https.
    """
    bases = [
        base.strip() for base in os.environ.get("PROXYLESSNAS_WEIGHTS_URL", "").split(",") if base.strip()
    ]
    for base in bases:
        if not re.match(r"https?://[^/]", base, re.IGNORECASE):
            raise WeightsFetchError(
                f"PROXYLESSNAS_WEIGHTS_URL: {shown_url(base)!r} is not an http or https address"
            )
    parts = [base.partition("?") for base in bases]  # a query, a token say, stays at the end
    name = quote(weights.filename)
    urls = [f"{place.rstrip('/')}/{name}{mark}{query}" for place, mark, query in parts] or weights.sources
    return tuple(dict.fromkeys(urls))
