"""What :func:`proxylessnas.deploy.optimize` tried and found, and what it chose."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Candidate:
    """One way to run the net.

    Attributes:
        name: as in :attr:`OptimizeReport.chosen`.
        ms: a forward pass of the whole batch, undisturbed, milliseconds; None if it was not timed.
        spread: how much longer the median pass took, as a share of ``ms``; None if it was not timed.
        difference: largest absolute difference of an output to the net as it was given; None if it never ran.
        agreement: share of the pictures with the same largest output, 0 to 1; None if it never ran.
        prepare_seconds: what making it took.
        out: why it could not be chosen; "" if it could.
    """

    name: str
    ms: float | None = None
    spread: float | None = None
    difference: float | None = None
    agreement: float | None = None
    prepare_seconds: float = 0.0
    out: str = ""


@dataclass(frozen=True)
class OptimizeReport:
    """What was tried and found, and what it chose.

    Attributes:
        chosen: name of the candidate that runs.
        why: the reason, in a sentence.
        candidates: all of them, the one given first.
        pictures: what the outputs were compared on, in words.
        batch_size, input_size: what was timed; other inputs are run by the folded net.
        threads: that were timed, and are built into compiled code.
        device, device_name, allocator, versions: what was measured on.
        advice: what would make it faster, in words; empty if nothing is known.
        noise: reasons to distrust the times; empty if there are none.
    """

    chosen: str
    why: str
    candidates: tuple[Candidate, ...]
    pictures: str
    batch_size: int
    input_size: tuple[int, ...]
    threads: int
    device: str
    device_name: str
    allocator: str
    versions: Mapping[str, str]
    advice: tuple[str, ...] = ()
    noise: tuple[str, ...] = ()

    @property
    def speedup(self) -> float:
        """How many times as fast as the net given the chosen one is."""
        return _ms(self.candidates[0]) / _ms(self._chosen)

    @property
    def _chosen(self) -> Candidate:
        return next(candidate for candidate in self.candidates if candidate.name == self.chosen)

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {**dataclasses.asdict(self), "versions": dict(self.versions), "speedup": self.speedup}

    def __str__(self) -> str:
        """Return a table for a terminal, and the reason below it."""
        rows: list[tuple[str, ...]] = [("", "ms", "times", "max diff", "same class", "made in")]
        for c in self.candidates:
            mark = ">" if c.name == self.chosen else " "
            times = [f"{c.ms:.2f}", f"{_ms(self.candidates[0]) / c.ms:.2f}x"] if c.ms else ["-", "-"]
            far = "-" if c.difference is None else f"{c.difference:.1e}"
            same = "-" if c.agreement is None else f"{c.agreement:.0%}"
            rows.append((f"{mark} {c.name}", *times, far, same, f"{c.prepare_seconds:.1f} s", c.out))
        widths = [max(len(row[i]) for row in rows) for i in range(6)]
        lines = []
        for row in rows:
            cells = [row[0].ljust(widths[0]), *(row[i].rjust(widths[i]) for i in range(1, 6)), *row[6:]]
            lines.append("  ".join(cells).rstrip())
        threads = f"{self.threads} thread{'s' if self.threads != 1 else ''}, " if self.device == "cpu" else ""
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        where = (
            f"{self.device_name}, {threads}batch {self.batch_size}, input {list(self.input_size)}; {versions}"
        )
        lines += [self.why, f"{where}; compared on {self.pictures}"]
        return "\n".join([*lines, *self.advice, *(f"not to be trusted: {reason}" for reason in self.noise)])


def _ms(candidate: Candidate) -> float:
    assert candidate.ms is not None  # it was timed
    return candidate.ms
