"""8-bit files: scales chosen by calibration pictures, the scheme by measurement, the result by a judge."""

from ..quantization.quantize import check_int8 as check_int8
from ..quantization.quantize import quantise as quantise
from ..quantization.report import Int8Report as Int8Report
from ..quantization.report import Tried as Tried
from ..quantization.report import doubts as doubts
from ..quantization.schemes import Scheme as Scheme
from ..quantization.schemes import scheme_of as scheme_of

__all__ = ["Int8Report", "Scheme", "Tried", "check_int8", "doubts", "quantise", "scheme_of"]
