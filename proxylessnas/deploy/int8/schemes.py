"""The ways of choosing 8-bit numbers that are tried; which is best differs from net to net."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ...errors import ExportError, shown
from .ranges import RULES


@dataclass(frozen=True)
class Scheme:
    """One way.

    Weights are always symmetric and have a scale for each output channel, activations always have a zero
    point and one scale a tensor: without the first, nets with depthwise convolutions lose several points.

    Attributes:
        rule: which values a scale covers, one of :data:`~.ranges.RULES`.
        equalise: strength of cross-layer equalisation, 0 to 1; 0 is none.
        compensate: round weights one after the other, each making good what the ones before did to the
            layer's output.
        correct: correct the mean of each channel.
        float_adds: sums of the shortcuts stay in float32.
        float_first: the first convolution and the first block stay in float32. Their maps are large and have
            few channels: 8 bits cost most there, and, as depthwise convolutions go, gain least.
        float_last: the classifier stays in float32.
        float_wide: depthwise convolutions of more than 25 weights a channel stay in float32: XNNPACK has no
            kernel for them, and less so in 8 bits.
        weight_bits: 8, or 7 so that no sum is cut off on x86 processors without VNNI (:mod:`.saturation`);
            depthwise convolutions keep 8.
    """

    rule: str = "minmax"
    equalise: float = 0.0
    compensate: bool = False
    correct: bool = False
    float_adds: bool = False
    float_first: bool = False
    float_last: bool = False
    float_wide: bool = False
    weight_bits: int = 8

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise ExportError(f"no INT8 rule is called {shown(self.rule)}; there are {', '.join(RULES)}")
        if not 0 <= self.equalise <= 1:
            raise ExportError(f"equalise is {shown(self.equalise)}; it is a strength from 0 to 1")
        if self.weight_bits not in (7, 8):
            raise ExportError(f"weight_bits is {shown(self.weight_bits)}; 7 and 8 can be had")

    def weight_steps(self, layer: nn.Module) -> int:
        """Return the steps of the scale of a layer's weights on either side of zero."""
        if self.weight_bits == 8:
            return 127
        if not isinstance(layer, nn.Conv2d):
            return 64
        return 127 if 1 < layer.groups == layer.in_channels == layer.out_channels else 64

    @property
    def name(self) -> str:
        """Its parts, as in ``mse+equalise0.5+correct``; :func:`scheme_of` reads it back."""
        parts = [self.rule]
        if self.equalise:
            parts.append(f"equalise{self.equalise:g}")
        parts += [word for word in _WORDS if getattr(self, _WORDS[word])]
        return "+".join([*parts, "7bit"] if self.weight_bits == 7 else parts)


_WORDS = {
    "compensate": "compensate",
    "correct": "correct",
    "floatadds": "float_adds",
    "floatfirst": "float_first",
    "floatlast": "float_last",
    "floatwide": "float_wide",
}


def scheme_of(name: str) -> Scheme:
    """Return the scheme of a name.

    >>> scheme_of("mse+equalise0.5+correct") == Scheme("mse", equalise=0.5, correct=True)
    True

    Raises:
        ExportError: a part of the name is not known.
    """
    rule, *words = name.split("+")
    values: dict[str, bool | float | int] = {}
    for word in words:
        if word in _WORDS:
            values[_WORDS[word]] = True
        elif word == "7bit":
            values["weight_bits"] = 7
        elif word.startswith("equalise"):
            try:
                values["equalise"] = float(word.removeprefix("equalise"))
            except ValueError:
                raise ExportError(f"{shown(word)}: equalise takes a strength, as in equalise0.5") from None
        else:
            known = ", ".join([*_WORDS, "equalise0.5", "7bit"])
            raise ExportError(f"no part of an INT8 scheme is called {shown(word)}; there are {known}")
    return Scheme(rule, **values)  # type: ignore[arg-type]
