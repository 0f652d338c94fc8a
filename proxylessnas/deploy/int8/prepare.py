"""What is done to a net in torch before it is written in 8 bits; done once for the schemes that share it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ...classifier import Classifier
from .correction import corrected
from .equalisation import equalised
from .schemes import Scheme


class Prepared:
    """A net made ready for schemes.

    Args:
        model: in evaluation mode; is not changed.
        batches: calibration inputs [N, C, H, W].
    """

    def __init__(self, model: Classifier, batches: Sequence[Tensor]) -> None:
        self.model, self.batches = model, batches
        self._made: dict[tuple[Any, ...], Classifier] = {}

    def net(self, scheme: Scheme) -> Classifier:
        """Return the net whose weights a scheme rounds."""
        net = self.model
        if scheme.equalise:
            key: tuple[Any, ...] = ("equalise", scheme.equalise)
            if key not in self._made:
                self._made[key] = equalised(net, self.batches, scheme.equalise)
            net = self._made[key]
        if scheme.compensate or scheme.correct:
            key = (scheme,)
            if key not in self._made:
                self._made[key] = corrected(net, self.batches, scheme)
            net = self._made[key]
        return net
