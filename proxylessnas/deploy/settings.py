"""How a file is to be written."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ExportError, shown
from ..utils.checks import is_int


@dataclass(frozen=True)
class ExportOptions:
    """How a file is to be written; a format refuses what it cannot do.

    Attributes:
        batch_size: images a call; None leaves it open where the format can.
        uint8_input: the file takes images of any size as bytes, uint8 [N, 3, H, W], and does resize, crop
            and normalisation itself.
        opset: version of ONNX's operators; None takes the exporter's own.
        aot: ``.pt2`` only: machine code for this machine (AOTInductor) instead of a portable graph.
        threads: ``.pt2`` with ``aot``: threads the machine code is made for; None is torch's own number.

    Raises:
        ExportError: a number is out of range.
    """

    batch_size: int | None = None
    uint8_input: bool = False
    opset: int | None = None
    aot: bool = False
    threads: int | None = None

    def __post_init__(self) -> None:
        for name, most in (("batch_size", 65_536), ("opset", 1000), ("threads", 1024)):
            value = getattr(self, name)
            if value is not None and not is_int(value, 1, most):
                raise ExportError(f"{name} must be a whole number from 1 to {most}, not {shown(value)}")
