"""Choosing a device, whether anything can be computed on it, and the transfer of a batch to it."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from ..errors import ProxylessError, first_line


def choose_device(name: str) -> torch.device:
    """Return the device of this process: "auto" is a GPU if there is one, "cuda" this process's own.

    Raises:
        ProxylessError: there is no such device, or it cannot be used.
    """
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if name == "auto":
        kinds = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
        name = next(kind for kind, there in kinds.items() if there)
    try:
        device = torch.device("cuda", local) if name == "cuda" else torch.device(name)
    except RuntimeError as e:
        raise ProxylessError(f"device {name!r}: not usable here ({first_line(e)}); try cpu") from e
    check_usable(device, f"device {name!r}")
    return device


def check_usable(device: torch.device, what: str) -> None:
    """Compute something on a device, which ``what`` names in messages: "--device cuda:1".

    Raises:
        ProxylessError: that fails; the message says why.
    """
    try:
        if device.type == "meta" or float(torch.ones(1, device=device).sum()) != 1:
            raise ProxylessError(f"{what}: nothing can be computed there")
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as e:
        raise ProxylessError(f"{what}: not usable here ({first_line(e)}); try cpu") from e


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device, without waiting for what the device has to do before.

    Only what is copied out of pinned memory goes to a GPU while this process goes on.
    """
    if device.type == "cuda" and tensor.device.type == "cpu" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
