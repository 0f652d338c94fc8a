"""Schemes to choose 8-bit numbers by, and the x86 processors on which files of them are exact.

Without VNNI, kernels add pairs of products of unsigned activations and signed weights in 16 bits, and cut
off what does not fit (``pmaddubsw``). With 8-bit weights that happens all the time: on an emulated AVX2,
logits of ``proxyless_w03_r176`` were off by 9, in ONNX Runtime 1.32 and OpenVINO 2026.4 alike. With weights
from -64 to 64 no pair can leave 16 bits, whatever the activations (2 * 64 * 255 = 32640). Depthwise
convolutions keep 8 bits: neither runtime adds pairs there (files with both gave the same logits to the last
bit with VNNI and without).

Unsigned weights would be exact as well, in ONNX Runtime at 1.7 times the latency of signed ones.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ...errors import ExportError, shown

#: Which of a tensor's values a scale covers; see :class:`~proxylessnas.runtimes.onnx_int8.Observed`.
RULES = ("minmax", "mse")


@dataclass(frozen=True)
class Scheme:
    """How the 8-bit numbers of a file are chosen.

    Weights are always symmetric and have a scale for each output channel, activations always have a zero
    point and one scale a tensor: without the first, models with depthwise convolutions lose several points.

    Attributes:
        rule: which values a scale covers, one of :data:`RULES`.
        compensate: round weights one after the other, each making good what the ones before did to the
            layer's output.
        correct: correct the mean of each channel.
        float_first: the first convolution and the first block stay in float32. Their maps are large and have
            few channels: 8 bits cost most there, and, as depthwise convolutions go, gain least.
        float_wide: depthwise convolutions of more than 25 weights a channel stay in float32: XNNPACK has no
            kernel for them, and less so in 8 bits.
        weight_bits: 8, or 7 so that no sum is cut off on x86 processors without VNNI (see above);
            depthwise convolutions keep 8.
    """

    rule: str = "minmax"
    compensate: bool = False
    correct: bool = False
    float_first: bool = False
    float_wide: bool = False
    weight_bits: int = 8

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise ExportError(f"no INT8 rule is called {shown(self.rule)}; there are {', '.join(RULES)}")
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
        """Its parts, as in ``mse+compensate+correct``; :func:`scheme_of` reads it back."""
        parts = [self.rule, *(word for word, field in _WORDS.items() if getattr(self, field))]
        return "+".join([*parts, "7bit"] if self.weight_bits == 7 else parts)


_WORDS = {
    "compensate": "compensate",
    "correct": "correct",
    "floatfirst": "float_first",
    "floatwide": "float_wide",
}


def scheme_of(name: str) -> Scheme:
    """Return the scheme of a name.

    >>> scheme_of("mse+compensate+correct") == Scheme("mse", compensate=True, correct=True)
    True

    Raises:
        ExportError: a part of the name is not known.
    """
    rule, *words = name.split("+")
    bits = 7 if "7bit" in words else 8
    for word in words:
        if word not in _WORDS and word != "7bit":
            known = ", ".join([*_WORDS, "7bit"])
            raise ExportError(f"no part of an INT8 scheme is called {shown(word)}; there are {known}")
    return Scheme(rule, **{_WORDS[word]: True for word in words if word in _WORDS}, weight_bits=bits)


#: Instruction sets by the worst that a kernel does with them: "avx2" stands for all x86 processors without
#: VNNI (SSE4.1 and AVX-512 too), "vnni" for those with it in any form (AVX-VNNI, AVX-512 VNNI, AMX).
ISAS = ("avx2", "vnni")
_LEAST, _MOST = -(1 << 15), (1 << 15) - 1
_LARGEST_INPUT = 255


def can_saturate(weight: Tensor) -> bool:
    """Return whether two products of a layer can add up to more than 16 bits hold, in whatever order.

    Args:
        weight: the layer's weights as they are in the file, whole numbers, [out, ...].
    """
    rows = torch.nn.functional.pad(weight.flatten(1).int(), (0, 1))  # of an odd one the other is zero
    most = rows.clamp(min=0).topk(2, 1).values.sum(1).max()
    least = rows.clamp(max=0).topk(2, 1, largest=False).values.sum(1).min()
    return bool(most * _LARGEST_INPUT > _MOST or least * _LARGEST_INPUT < _LEAST)


def exact_on(paired: Mapping[str, Tensor] | None) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
    """Return the instruction sets that a file is exact on, and the layers that keep it from being so on all.

    Args:
        paired: see :meth:`.backends.Backend.paired_weights`; None makes the first None: not known.
    """
    if paired is None:
        return None, ()
    layers = tuple(name for name, weight in paired.items() if can_saturate(weight))
    return ("vnni",) if layers else ISAS, layers


def this_machine_saturates() -> bool:
    """Return whether this is an x86 processor that adds products of bytes in 16 bits, cutting them off."""
    if platform.machine().lower() not in ("x86_64", "amd64", "i686", "x86"):
        return False
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux: nothing tells
        return True
    return not any(word in flags for word in ("avx512_vnni", "avx_vnni", "avx512vnni"))
