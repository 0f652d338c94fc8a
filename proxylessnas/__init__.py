"""ProxylessNAS: specialised image nets to load, fine-tune and ship.

Importing this package reads no data file and opens no socket. The names below are imported from their modules
when they are first used, so that ``proxylessnas --help`` need not wait for torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._version import __version__ as __version__
from .lazy_names import lazy_names

if TYPE_CHECKING:
    from .arch import Arch as Arch
    from .arch import Stage as Stage
    from .arch import register_op as register_op
    from .builders import create_model as create_model
    from .builders import list_models as list_models
    from .builders import read_arch as read_arch
    from .errors import ArchError as ArchError
    from .errors import CheckpointError as CheckpointError
    from .errors import DataError as DataError
    from .errors import ExportError as ExportError
    from .errors import ImageError as ImageError
    from .errors import LatencyError as LatencyError
    from .errors import LatencyKeyError as LatencyKeyError
    from .errors import ManifestError as ManifestError
    from .errors import MissingExtraError as MissingExtraError
    from .errors import OfflineError as OfflineError
    from .errors import ProxylessError as ProxylessError
    from .errors import UnknownModelError as UnknownModelError
    from .errors import WeightsCorruptError as WeightsCorruptError
    from .errors import WeightsFetchError as WeightsFetchError
    from .errors import WeightsMismatchError as WeightsMismatchError
    from .errors import WeightsNotFoundError as WeightsNotFoundError
    from .loading import LoadReport as LoadReport
    from .loading import load_weights as load_weights
    from .memory import keep_freed_pages as keep_freed_pages
    from .model import ProxylessNAS as ProxylessNAS
    from .model_file import save_weights as save_weights
    from .predict import Prediction as Prediction
    from .profiling import Profile as Profile
    from .profiling import profile as profile
    from .pyramid import PyramidTreeNet as PyramidTreeNet
    from .transforms import Preprocessing as Preprocessing
    from .tree_arch import TreeArch as TreeArch
    from .weights import Weights as Weights
    from .weights import get_weights as get_weights
    from .zoo import proxyless_cifar as proxyless_cifar
    from .zoo import proxyless_cifar10_demo as proxyless_cifar10_demo
    from .zoo import proxyless_cpu as proxyless_cpu
    from .zoo import proxyless_custom as proxyless_custom
    from .zoo import proxyless_gpu as proxyless_gpu
    from .zoo import proxyless_mobile as proxyless_mobile
    from .zoo import proxyless_mobile14 as proxyless_mobile14
    from .zoo import proxyless_mobile_14 as proxyless_mobile_14
    from .zoo import proxyless_w025_r112 as proxyless_w025_r112
    from .zoo import proxyless_w03_r176 as proxyless_w03_r176

_HOME = {
    "Arch": "arch",
    "Stage": "arch",
    "register_op": "arch",
    "create_model": "builders",
    "list_models": "builders",
    "read_arch": "builders",
    "ArchError": "errors",
    "CheckpointError": "errors",
    "DataError": "errors",
    "ExportError": "errors",
    "ImageError": "errors",
    "LatencyError": "errors",
    "LatencyKeyError": "errors",
    "ManifestError": "errors",
    "MissingExtraError": "errors",
    "OfflineError": "errors",
    "ProxylessError": "errors",
    "UnknownModelError": "errors",
    "WeightsCorruptError": "errors",
    "WeightsFetchError": "errors",
    "WeightsMismatchError": "errors",
    "WeightsNotFoundError": "errors",
    "LoadReport": "loading",
    "load_weights": "loading",
    "keep_freed_pages": "memory",
    "ProxylessNAS": "model",
    "save_weights": "model_file",
    "Prediction": "predict",
    "Profile": "profiling",
    "profile": "profiling",
    "PyramidTreeNet": "pyramid",
    "Preprocessing": "transforms",
    "TreeArch": "tree_arch",
    "Weights": "weights",
    "get_weights": "weights",
    "proxyless_cifar": "zoo",
    "proxyless_cifar10_demo": "zoo",
    "proxyless_cpu": "zoo",
    "proxyless_custom": "zoo",
    "proxyless_gpu": "zoo",
    "proxyless_mobile": "zoo",
    "proxyless_mobile14": "zoo",
    "proxyless_mobile_14": "zoo",
    "proxyless_w025_r112": "zoo",
    "proxyless_w03_r176": "zoo",
}
__all__ = ["__version__", *_HOME]
__getattr__, __dir__ = lazy_names(__name__, _HOME)
