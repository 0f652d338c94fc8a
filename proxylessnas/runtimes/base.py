"""The interface between the measuring process and whatever runs a net."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from .settings import Settings

# DOC proxylessnas.latency.spec: """What a measuring process is asked to load, in a form that goes through a pipe."""


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


@dataclass(frozen=True)
class NetSpec:
    """A net, or one operation of it.

    Attributes:
        kind: "arch" (``text`` is ``str(arch)``), "op" (``text`` is that of an operation's key), "module"
            (``text`` is the path of a pickled ``nn.Module``) or "file" (that of an exported file, see
            :mod:`.files`).
        text: see ``kind``.
        input_size: (channels, height, width) of one picture; for "op" that of the operation's input.
        num_classes: outputs of the classifier of an "arch"; None takes the architecture's.
    """

    kind: str
    text: str
    input_size: tuple[int, int, int]
    num_classes: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {**dataclasses.asdict(self), "input_size": list(self.input_size)}

    @staticmethod
    def from_dict(data: dict[str, Any]) -> NetSpec:
        """Undo :meth:`to_dict`."""
        return NetSpec(**{**data, "input_size": tuple(data["input_size"])})
