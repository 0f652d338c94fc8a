"""Entry points of ``torch.hub.load``; every public name here is one net."""

dependencies = ["torch"]

from proxylessnas.zoo import (  # noqa: E402
    proxyless_cifar,
    proxyless_cpu,
    proxyless_gpu,
    proxyless_mobile,
    proxyless_mobile14,
    proxyless_mobile_14,
    proxyless_w025_r112,
    proxyless_w03_r176,
)
