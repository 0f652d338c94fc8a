"""Latency: measure this device, predict any model of a space, and say how wrong the prediction is.

    >>> from proxylessnas import latency
    >>> latency.measure("proxyless_cifar10_demo").undisturbed_ms  # doctest: +SKIP
    3.4

The paper's latency model (ProxylessNAS, section 3.3.1): a model's latency is the sum of its operations'. What
each costs on a device is measured once and kept in a :class:`LatencyTable`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..utils.lazy_names import lazy_names

if TYPE_CHECKING:
    from ..arch.op_key import OpKey as OpKey
    from ..arch.op_key import arch_keys as arch_keys
    from ..arch.op_key import space_keys as space_keys
    from ..runtimes.settings import Conditions as Conditions
    from ..runtimes.settings import Settings as Settings
    from .benchmark import bench as bench
    from .build import build_table as build_table
    from .kit.kit import write_kit as write_kit
    from .kit.results import kit_table as kit_table
    from .kit.results import read_results as read_results
    from .measure_model import measure as measure
    from .measurement import Timing as Timing
    from .metrics import Validation as Validation
    from .op_costs import op_costs as op_costs
    from .predictor import Predictor as Predictor
    from .settings import BenchSettings as BenchSettings
    from .settings import BuildSettings as BuildSettings
    from .settings import ImportSettings as ImportSettings
    from .settings import MeasureSettings as MeasureSettings
    from .settings import OpCostSettings as OpCostSettings
    from .table import LatencyTable as LatencyTable
    from .table_import import import_table as import_table
    from .validate import adopt_correction as adopt_correction
    from .validate import doubts as doubts
    from .validate import require_trust as require_trust
    from .validate import validate_table as validate_table

_NAMES = {
    "..arch.op_key": "OpKey arch_keys space_keys",
    "..runtimes.settings": "Conditions Settings",
    ".benchmark": "bench",
    ".build": "build_table",
    ".table_import": "import_table",
    ".kit.kit": "write_kit",
    ".kit.results": "kit_table read_results",
    ".measure_model": "measure",
    ".measurement": "Timing",
    ".metrics": "Validation",
    ".op_costs": "op_costs",
    ".predictor": "Predictor",
    ".settings": "BenchSettings BuildSettings ImportSettings MeasureSettings OpCostSettings",
    ".table": "LatencyTable",
    ".validate": "adopt_correction doubts require_trust validate_table",
}
__all__, __getattr__, __dir__ = lazy_names(__name__, _NAMES)
