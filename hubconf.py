"""Entry points of ``torch.hub.load``; every public name here is one model, or builds any."""

dependencies = ["torch"]

import os as _os
import warnings as _warnings

import proxylessnas as _package
from proxylessnas.models.factory import (
    proxyless_cifar,
    proxyless_cifar10_demo,
    proxyless_cpu,
    proxyless_custom,
    proxyless_gpu,
    proxyless_mobile,
    proxyless_mobile14,
    proxyless_mobile_14,
    proxyless_w025_r112,
    proxyless_w03_r176,
)

_here = _os.path.dirname(_os.path.realpath(__file__))
_used = _os.path.dirname(_os.path.dirname(_os.path.realpath(_package.__file__)))
if _here != _used:  # Python imports a package once, so a pinned tag may not be what runs
    _warnings.warn(
        f"proxylessnas {_package.__version__} from {_used} was imported before and is used instead of "
        f"the one in {_here}; load that one in a process of its own",
        stacklevel=2,
    )
