"""An exponential moving average of a model's weights; it often predicts better than they do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..errors import CheckpointError


class WeightAverage:
    """Moving average of everything in a model's state dict, as a model would need it for evaluation.

    Parameters and BatchNorm statistics are averaged; whole numbers (BatchNorm's counters) are copied. Values
    of 16 bits are averaged in 32, where small changes do not vanish.

    Make it when the model is on its device and in its memory layout, and not wrapped (DDP,
    ``torch.compile``): it holds on to the model's tensors.

    Args:
        model: is trained.
        decay: share of the old average kept at each update; at the start less, min(decay, (1 + n) / (10 + n))
            after n updates, so that the initial weights are soon forgotten.

    Raises:
        ValueError: the decay is out of range.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"decay must be at least 0 and below 1, not {decay!r}")
        self.decay = float(decay)
        tensors = _tensors(model)
        self._averages = {name: _start(t) for name, t in tensors.items()}
        # Looked up once: walking the modules of a small model takes as long as the averaging.
        pairs = list(zip(tensors.values(), self._averages.values(), strict=True))
        self._real = [pair for pair in pairs if pair[0].is_floating_point()]
        self._whole = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the model's present weights, after ``step`` updates before this one."""
        decay = min(self.decay, (1 + step) / (10 + step))
        averages, sources = [a for _, a in self._real], [t.to(a.dtype) for t, a in self._real]
        torch._foreach_lerp_(averages, sources, 1.0 - decay)
        if self._whole:
            torch._foreach_copy_([a for _, a in self._whole], [t for t, _ in self._whole])

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averages by the names of the model's state dict; the tensors are not copied."""
        return dict(self._averages)

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Set the averages.

        Raises:
            CheckpointError: names or shapes are not those of the model.
        """
        _check_same(self._averages, state)
        for name, average in self._averages.items():
            average.copy_(state[name])

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Set a model's weights to the averages, for good.

        Raises:
            CheckpointError: it is another model.
        """
        tensors = _tensors(model)
        _check_same(tensors, self._averages)
        for name, tensor in tensors.items():
            tensor.copy_(self._averages[name])

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Have the averages in a model within a ``with`` block; afterwards it is bit for bit as it was.

        Raises:
            CheckpointError: it is another model.
        """
        tensors = _tensors(model)
        saved = {name: t.detach().clone() for name, t in tensors.items()}
        try:
            self.copy_to(model)
            yield
        finally:
            with torch.no_grad():
                for name, tensor in tensors.items():
                    tensor.copy_(saved[name])


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a model's state dict, themselves."""
    return {name: t.detach() for name, t in model.state_dict().items()}


def _start(tensor: Tensor) -> Tensor:
    if tensor.is_floating_point() and tensor.element_size() < 4:
        return tensor.to(torch.float32, copy=True)
    return tensor.clone()


def _check_same(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    wrong = sorted(expected.keys() ^ found.keys())
    wrong += [name for name, t in expected.items() if name in found and t.shape != found[name].shape]
    if wrong:
        names = ", ".join(wrong[:3]) + (", ..." if len(wrong) > 3 else "")
        raise CheckpointError(f"averaged weights of another model; {len(wrong)} tensors do not fit: {names}")
