"""8-bit files: scales chosen by calibration pictures, the scheme by measurement, the result by a judge."""

from .choose import check_int8 as check_int8
from .choose import quantise as quantise
from .report import Int8Report as Int8Report
from .report import Tried as Tried
from .report import doubts as doubts
from .schemes import Scheme as Scheme
from .schemes import scheme_of as scheme_of

__all__ = ["Int8Report", "Scheme", "Tried", "check_int8", "doubts", "quantise", "scheme_of"]
