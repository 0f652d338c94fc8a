"""Files in 8 bits: scales chosen with calibration images, the scheme by measurement, the result evaluated."""

from .backends import backend_of as backend_of
from .quantize import quantise as quantise
from .report import Int8Report as Int8Report
from .report import Tried as Tried
from .report import doubts as doubts
from .schemes import Scheme as Scheme
from .schemes import scheme_of as scheme_of

__all__ = ["Int8Report", "Scheme", "Tried", "backend_of", "doubts", "quantise", "scheme_of"]
