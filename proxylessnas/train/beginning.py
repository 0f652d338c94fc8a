"""What the log of a training says of its beginning: the net, the pictures, the versions."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch

from .._version import __version__

if TYPE_CHECKING:
    from .engine import Trainer


def begin_fields(trainer: Trainer) -> dict[str, Any]:
    """Return what a reader of the log needs to know about the run."""
    net, data = trainer.net, trainer.data
    return {
        "net": net.name,
        "arch": str(dataclasses.replace(net.arch, num_classes=net.num_classes)),
        "given_weights": bool(trainer.start),
        "teachers": trainer.teacher.names if trainer.teacher is not None else [],
        "data": data.name,
        "pictures": {"training": len(data.train), "validation": len(data.val) if data.val is not None else 0},
        "versions": {"proxylessnas": __version__, "torch": str(torch.__version__)},
    }


def figure(trainer: Trainer) -> bytes:
    """Return the net as a picture for TensorBoard, a PNG."""
    from ..report.board import net_png

    return net_png(trainer.net.arch)
