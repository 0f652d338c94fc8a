"""ProxylessNAS: specialised image models to load, fine-tune and ship.

Importing this package reads no data file and opens no socket. The names below are imported from their modules
when they are first used, so that ``proxylessnas --help`` need not wait for torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._version import __version__ as __version__
from .utils.lazy_names import lazy_names

if TYPE_CHECKING:
    from .arch.arch import Arch as Arch
    from .arch.blocks import Stage as Stage
    from .arch.ops import register_op as register_op
    from .arch.tree import TreeArch as TreeArch
    from .data.transforms import Preprocessing as Preprocessing
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
    from .models.base import Prediction as Prediction
    from .models.factory import create_model as create_model
    from .models.factory import list_models as list_models
    from .models.factory import proxyless_cifar as proxyless_cifar
    from .models.factory import proxyless_cifar10_demo as proxyless_cifar10_demo
    from .models.factory import proxyless_cpu as proxyless_cpu
    from .models.factory import proxyless_custom as proxyless_custom
    from .models.factory import proxyless_gpu as proxyless_gpu
    from .models.factory import proxyless_mobile as proxyless_mobile
    from .models.factory import proxyless_mobile14 as proxyless_mobile14
    from .models.factory import proxyless_mobile_14 as proxyless_mobile_14
    from .models.factory import proxyless_w025_r112 as proxyless_w025_r112
    from .models.factory import proxyless_w03_r176 as proxyless_w03_r176
    from .models.loading import LoadReport as LoadReport
    from .models.loading import load_weights as load_weights
    from .models.loading import save_weights as save_weights
    from .models.profile import Profile as Profile
    from .models.profile import profile as profile
    from .models.proxylessnas import ProxylessNAS as ProxylessNAS
    from .models.pyramid import PyramidTreeNet as PyramidTreeNet
    from .models.resolve import read_arch as read_arch
    from .utils.malloc import keep_freed_pages as keep_freed_pages
    from .weights.record import Weights as Weights
    from .weights.registry import get_weights as get_weights

_NAMES = {
    ".arch.arch": "Arch",
    ".arch.blocks": "Stage",
    ".arch.ops": "register_op",
    ".arch.tree": "TreeArch",
    ".data.transforms": "Preprocessing",
    ".errors": (
        "ArchError CheckpointError DataError ExportError ImageError LatencyError "
        "LatencyKeyError ManifestError MissingExtraError OfflineError ProxylessError "
        "UnknownModelError WeightsCorruptError WeightsFetchError WeightsMismatchError "
        "WeightsNotFoundError"
    ),
    ".models.base": "Prediction",
    ".models.factory": (
        "create_model list_models proxyless_cifar proxyless_cifar10_demo "
        "proxyless_cpu proxyless_custom proxyless_gpu proxyless_mobile "
        "proxyless_mobile14 proxyless_mobile_14 proxyless_w025_r112 "
        "proxyless_w03_r176"
    ),
    ".models.loading": "LoadReport load_weights save_weights",
    ".models.profile": "Profile profile",
    ".models.proxylessnas": "ProxylessNAS",
    ".models.pyramid": "PyramidTreeNet",
    ".models.resolve": "read_arch",
    ".utils.malloc": "keep_freed_pages",
    ".weights.record": "Weights",
    ".weights.registry": "get_weights",
}
__all__, __getattr__, __dir__ = lazy_names(__name__, _NAMES)
__all__ += ["__version__"]
