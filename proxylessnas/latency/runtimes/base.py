"""The interface between the measuring process and whatever runs a net."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from ..settings import Settings
from ..spec import NetSpec


class Session(Protocol):
    """A loaded net with an input of the right size."""

    def run(self) -> None:
        """Run one forward pass of the whole batch; return when its output is there."""

    def times_ms(self, runs: int) -> list[float] | None:
        """Time ``runs`` forward passes by the device's own clock; None where the caller's clock is right."""

    def close(self) -> None:
        """Free everything."""


class PartsSession(Session, Protocol):
    """A session that can also tell how long each operation took inside the whole net."""

    def parts_ms(self, runs: int) -> list[tuple[str, list[float]]]:
        """Return ``(text of an operation's key, ms of each run)`` for each operation, stem to classifier."""


class Runtime(Protocol):
    """One way to run nets. It lives in the measuring process and is imported only there."""

    name: str
    has_parts: bool  # sessions of "arch" specs are PartsSessions

    def versions(self) -> dict[str, str]:
        """Return the versions of the libraries it runs on."""

    def device_name(self, settings: Settings) -> str | None:
        """Return the name of an accelerator; None for the CPU."""

    def load(self, spec: NetSpec, settings: Settings, folder: Path) -> Session:
        """Load a net; ``folder`` is the process's own, for files.

        Raises:
            LatencyError: the net cannot be run by this runtime.
        """
