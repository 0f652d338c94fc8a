"""What the quantisation of a model found."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from ...utils.text import counted
from .schemes import ISAS, this_machine_saturates

#: Images below which a share of them says little.
FEW = 20
#: A file that takes more than this share of the other's latency is not called faster: a verdict that noise
#: alone could turn would be none.
FASTER = 0.97
_NAMED = 3  # layers that are named in a line


def is_faster(int8_ms: float, float_ms: float) -> bool:
    """Return whether an int8 file is faster than its float32 file, by latencies that were measured alike."""
    return int8_ms < FASTER * float_ms


@dataclass(frozen=True)
class Tried:
    """One scheme on the calibration images that were held out, mirrored and enlarged ones among them.

    Attributes:
        scheme: its name; :func:`~.schemes.scheme_of` reads it.
        divergence: mean Kullback-Leibler divergence of the int8 model's probabilities from the float32
            model's, nats; what the choice goes by. None if the scheme failed.
        agreement: share of the images that both give the same class, 0 to 1.
        seconds: that writing the file took.
        problem: why it failed; "" if it did not.
    """

    scheme: str
    divergence: float | None
    agreement: float | None
    seconds: float
    problem: str = ""


@dataclass(frozen=True)
class Int8Report:
    """The file that was chosen, on the images that evaluate it.

    Attributes:
        scheme: name of the scheme.
        tried: all schemes, best first.
        calibrated_on: where the calibration images are from.
        calibration_images: how many scales were chosen by.
        judged_on: what evaluated it, in words.
        n: how many images that were.
        agreement: share of them that the int8 and the float32 model give the same class, 0 to 1.
        top1_float, top1_int8: accuracy on them, percent; None without labels.
        difference: largest absolute difference of a logit.
        divergence: as in :class:`Tried`.
        bytes_float, bytes_int8: sizes of the files in this format.
        ms_float, ms_int8: undisturbed latency of both files in their runtime, run by turns in this process,
            an image.
        threads: of that measurement.
        qat_epochs: of quantisation-aware training before.
        target_isa: what the schemes were chosen for, one of :data:`~.schemes.TARGETS`.
        exact_on: the instruction sets, of :data:`~.schemes.ISAS`, on which the file is proven to add up
            the same integers, so that the figures hold on all of them; None if that is not known.
        saturating: names of the layers whose sums may be cut off on the others.
    """

    scheme: str
    tried: tuple[Tried, ...]
    calibrated_on: str
    calibration_images: int
    judged_on: str
    n: int
    agreement: float
    top1_float: float | None
    top1_int8: float | None
    difference: float
    divergence: float
    bytes_float: int
    bytes_int8: int
    ms_float: float
    ms_int8: float
    threads: int
    qat_epochs: int = 0
    target_isa: str = "any"
    exact_on: tuple[str, ...] | None = None
    saturating: tuple[str, ...] = ()

    @property
    def drop(self) -> float | None:
        """Points of top-1 accuracy lost; None without labels."""
        return None if self.top1_float is None else self.top1_float - (self.top1_int8 or 0.0)

    @property
    def speedup(self) -> float:
        """Latency of the float32 file over that of the int8 file."""
        return self.ms_float / self.ms_int8

    @property
    def faster(self) -> bool:
        """Whether the int8 file is faster than the float32 file."""
        return is_faster(self.ms_int8, self.ms_float)

    @property
    def headline(self) -> str:
        """What has to be said before all else; "" if there is nothing."""
        if self.faster:
            return ""
        return (
            f"INT8 is not faster than float32 here: {_ms(self.ms_int8)} ms an image against "
            f"{_ms(self.ms_float)} ({self.speedup:.2f} times as fast, {counted(self.threads, 'thread')})"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        found = {**dataclasses.asdict(self), "faster": self.faster}
        found["calibration_pictures"] = found.pop("calibration_images")  # as files have it since 0.1
        return found

    def _exact(self) -> str:
        """Return on which processors the file computes what was evaluated."""
        if self.exact_on is None:
            return f"exact on: not known for this runtime (made for {self.target_isa})"
        if self.exact_on == ISAS:
            return "exact on avx2 and vnni: no two products of its weights add up to more than 16 bits"
        named = ", ".join(self.saturating[:_NAMED]) + (", ..." if len(self.saturating) > _NAMED else "")
        return (
            f"exact on {' and '.join(self.exact_on)} only: x86 processors without it cut off sums of "
            f"{counted(len(self.saturating), 'layer')} ({named}); --target-isa any avoids that"
        )

    def lines(self) -> list[str]:
        """Return it for a terminal."""
        top1 = ""
        if self.top1_float is not None and self.top1_int8 is not None:
            top1 = f", top-1 {self.top1_float:.1f} -> {self.top1_int8:.1f} %"
        trained = f" after {counted(self.qat_epochs, 'epoch')} of fine-tuning" if self.qat_epochs else ""
        return [
            f"int8 scheme {self.scheme}{trained}, the best of {len(self.tried)}, calibrated on "
            f"{self.calibration_images} images ({self.calibrated_on})",
            f"float32 -> int8 on {self.n} images ({self.judged_on}): same class for "
            f"{100 * self.agreement:.1f} %{top1}, logits off by {self.difference:.2g} at most",
            f"{self.bytes_float / 1e6:.1f} -> {self.bytes_int8 / 1e6:.1f} MB; both files in their "
            f"runtime, in this process: {_ms(self.ms_float)} -> {_ms(self.ms_int8)} ms an image "
            f"({self.speedup:.2f} times as fast, {counted(self.threads, 'thread')})",
            self._exact(),
        ]


def doubts(report: Int8Report, reused: bool) -> list[str]:
    """Return what to know about the figures of an int8 file.

    Args:
        report: the figures.
        reused: whether the images that chose the scheme evaluated it, too.
    """
    found = []
    if report.n < FEW:
        found.append(
            f"int8 was evaluated on {counted(report.n, 'image')} only: one image is "
            f"{100 / report.n:.0f} %; give more (--calibrate, or labelled ones with --data)"
        )
    if reused:
        found.append(
            "the images that int8 was evaluated on chose its scheme as well, so its figures flatter it a "
            "little: --data takes others"
        )
    if report.exact_on == ("vnni",) and this_machine_saturates():
        found.append(
            "int8 was evaluated on a processor without VNNI, which cuts sums of this file off: its figures "
            "are those of this machine, not of the target"
        )
    return found


def _ms(value: float) -> str:
    return f"{value:#.3g}".rstrip(".")
