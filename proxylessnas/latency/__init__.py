"""Latency: measure this device, predict any net of a space, and say how wrong the prediction is.

    >>> from proxylessnas import latency
    >>> latency.measure("proxyless_cifar10_demo").undisturbed_ms  # doctest: +SKIP
    3.4

The paper's latency model (ProxylessNAS, section 3.3.1): a net's latency is the sum of its operations'. What
each costs on a device is measured once and kept in a :class:`LatencyTable`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy_names import lazy_names

if TYPE_CHECKING:
    from .agreement import Validation as Validation
    from .benching import bench as bench
    from .building import build_table as build_table
    from .importing import import_table as import_table
    from .keys import OpKey as OpKey
    from .keys import arch_keys as arch_keys
    from .keys import space_keys as space_keys
    from .kit import read_results as read_results
    from .kit import write_kit as write_kit
    from .kit_table import kit_table as kit_table
    from .measuring import measure as measure
    from .predictor import Predictor as Predictor
    from .settings import Conditions as Conditions
    from .settings import Settings as Settings
    from .table import LatencyTable as LatencyTable
    from .timing import Timing as Timing
    from .validation import validate_table as validate_table

_HOME = {
    "bench": "benching",
    "build_table": "building",
    "import_table": "importing",
    "OpKey": "keys",
    "arch_keys": "keys",
    "space_keys": "keys",
    "read_results": "kit",
    "write_kit": "kit",
    "kit_table": "kit_table",
    "measure": "measuring",
    "Predictor": "predictor",
    "Conditions": "settings",
    "Settings": "settings",
    "LatencyTable": "table",
    "Timing": "timing",
    "Validation": "agreement",
    "validate_table": "validation",
}
__all__ = list(_HOME)
__getattr__, __dir__ = lazy_names(__name__, _HOME)
