"""On which x86 processors an 8-bit file computes what it was judged by: proven from its weights.

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
from pathlib import Path

import torch
from torch import Tensor

from ...errors import ExportError, shown

#: Instruction sets by the worst that a kernel does with them: "avx2" stands for all x86 processors without
#: VNNI (SSE4.1 and AVX-512 too), "vnni" for those with it in any form (AVX-VNNI, AVX-512 VNNI, AMX).
ISAS = ("avx2", "vnni")
#: What a file can be made for; "any" is all of :data:`ISAS`.
TARGETS = (*ISAS, "any")
_LEAST, _MOST = -(1 << 15), (1 << 15) - 1
_LARGEST_INPUT = 255


def check_target(target_isa: object) -> None:
    """Refuse what is no target.

    Raises:
        ExportError: it is none of :data:`TARGETS`.
    """
    if target_isa not in TARGETS:
        raise ExportError(f"target_isa is {shown(target_isa)}; known are {', '.join(TARGETS)}")


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
