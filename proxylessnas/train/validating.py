"""The accuracy of a net on the pictures of several processes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ..classifier import Classifier
from ..evaluate import evaluation_mode
from ..metrics import Metrics
from .distributed import Processes


def accuracy_on(
    net: Classifier,
    batches: Iterable[tuple[Tensor, Tensor]],
    processes: Processes,
    autocast: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
    before: Callable[[int], None] = lambda done: None,
) -> Metrics:
    """Return the accuracy of a net as it is, in evaluation mode; all processes take part.

    Args:
        net: on the processes' device.
        batches: inputs and class indices; this process's share of the pictures.
        processes: those that share them.
        autocast: makes the context of each forward pass; without it the net computes in its own precision.
        before: called before each batch with how many are done.
    """
    metrics = Metrics(net.num_classes, device=processes.device)
    with evaluation_mode(net), torch.inference_mode():
        for done, (inputs, targets) in enumerate(batches):
            before(done)
            with autocast():
                logits = net(inputs)
            metrics.add(logits.float(), targets)
    processes.sum_(metrics.tensors())
    return metrics
