"""Scale of the loss in arch steps of fp16, whose gradients would otherwise round to zero."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..errors import ProxylessError

_BACKOFF, _GROWTH, _INTERVAL = 0.5, 2.0, 2000  # torch's own, see torch.amp.GradScaler


@dataclass
class GateScale:
    """What ``torch.amp.GradScaler`` is to an optimiser of weights, for a gradient that is on the CPU.

    That of the gates has to come there in any case, as alpha is there; so whether it fits is seen without
    another wait for the device. It is summed over all processes before, which therefore agree.

    Attributes:
        factor: of the loss.
        good: steps in a row that fitted.
    """

    factor: float = 2.0**16
    good: int = 0

    def fits(self, gradient: Tensor) -> bool:
        """Return whether a gradient is finite, and take the next scale from that.

        Raises:
            ProxylessError: it is not, although it was not scaled.
        """
        if bool(gradient.isfinite().all()):
            self.good += 1
            if self.good == _INTERVAL:
                self.factor, self.good = self.factor * _GROWTH, 0
            return True
        if self.factor <= 1.0:
            raise ProxylessError(
                "the gradient of the architecture parameters does not fit into fp16 even without a scale: "
                'set amp to "bf16" or "off"'
            )
        self.factor, self.good = self.factor * _BACKOFF, 0
        return False

    def state_dict(self) -> dict[str, float]:
        """Return what a run goes on from."""
        return {"factor": self.factor, "good": self.good}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Undo :meth:`state_dict`."""
        self.factor, self.good = float(state["factor"]), int(state["good"])
