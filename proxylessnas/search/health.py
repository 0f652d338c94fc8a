"""Signs that a search goes wrong, in figures and in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..errors import ProxylessError
from .alphas import Alphas

_COLLAPSED = 0.75  # share of the blocks that may be skipped, of which a healthy search keeps some
_LASTS = 3  # epochs in a row after which a collapse is no passing state
_MOVED = 1e-9  # of any alpha, between two epochs
_NO_GRADIENT = 50  # arch steps in a row


@dataclass
class Health:
    """Watches alpha.

    Attributes:
        zero_column: the candidate that skips its block; None if there is none.
        stuck_epochs: epochs without any movement after which a search is stopped; 0 never does.
        still: epochs up to now in which alpha did not move.
        zeros: arch steps up to now whose gradient was zero.
        last: alpha at the end of the last epoch with arch steps.
        collapsed: epochs up to now in which most blocks that may be skipped were.
        warned: whether the collapse was told.
    """

    zero_column: int | None
    stuck_epochs: int
    still: int = 0
    zeros: int = 0
    last: Tensor | None = None
    collapsed: int = 0
    warned: bool = False

    def figures(self, alphas: Alphas) -> dict[str, float]:
        """Return entropy (nats, mean over blocks) and the shares of skipped blocks: expected, most probable.

        Both are shares of the blocks that may be skipped.
        """
        entropy = float(alphas.entropy().mean())
        zero = self.zero_column
        skippable = [] if zero is None else alphas.mask[:, zero].nonzero()[:, 0].tolist()
        if not skippable:
            return {"entropy": entropy, "skip_share": 0.0, "skip_share_now": 0.0}
        expected = float(alphas.probs().detach()[skippable, zero].mean())
        best = alphas.most_probable()
        now = sum(best[i] == zero for i in skippable) / len(skippable)
        return {"entropy": entropy, "skip_share": expected, "skip_share_now": now}

    def arch_step(self, gradient_norm: float) -> None:
        """Take note of an arch step.

        Raises:
            ProxylessError: alpha has had no gradient for many steps.
        """
        self.zeros = 0 if gradient_norm > 0 else self.zeros + 1
        if self.stuck_epochs and self.zeros >= _NO_GRADIENT:
            raise ProxylessError(
                f"the architecture parameters had no gradient in the last {self.zeros} arch steps: nothing "
                "is being searched. Are all blocks left with one candidate, or all sampled nets equally good?"
            )

    def end_of_epoch(self, alphas: Alphas, *, last: bool = False) -> list[str]:
        """Take note of an epoch with arch steps, and return what a user should know.

        A collapse is told once, when it has lasted for some epochs or stands at the end: many a search passes
        through one and comes out of it.

        Args:
            alphas: as they are now.
            last: the search ends here.

        Raises:
            ProxylessError: alpha has not moved for ``stuck_epochs`` epochs.
        """
        now = alphas.logits.detach().clone()
        moved = self.last is None or float((now - self.last).abs().max()) > _MOVED
        self.last, self.still = now, 0 if moved else self.still + 1
        if self.stuck_epochs and self.still >= self.stuck_epochs:
            raise ProxylessError(
                f"the architecture parameters have not moved for {self.still} epochs: raise arch_rate, or "
                "look at arch_every and frozen_epochs; a search may be continued with stuck_epochs = 0"
            )
        found = self.figures(alphas)
        # Which candidate is the most probable says little while others are nearly as probable.
        meant = min(found["skip_share"], found["skip_share_now"]) > _COLLAPSED
        self.collapsed = self.collapsed + 1 if meant else 0
        if self.warned or not meant or not (last or self.collapsed >= _LASTS):
            return []
        self.warned = True
        since = f", for {self.collapsed} epochs now" if self.collapsed > 1 else ""
        return [
            f"{found['skip_share_now']:.0%} of the skippable blocks are skipped{since}: the search "
            "collapses to a shallow net. A longer warm-up, a weaker pull of the cost (strength, or a higher "
            "target) or min_depth help"
        ]

    def state_dict(self) -> dict[str, Any]:
        """Return what a run goes on from."""
        counts = {"still": self.still, "zeros": self.zeros, "collapsed": self.collapsed}
        return {**counts, "last": self.last, "warned": self.warned}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Undo :meth:`state_dict`."""
        self.still, self.zeros = int(state["still"]), int(state["zeros"])
        self.collapsed = int(state.get("collapsed", 0))  # earlier checkpoints did not count
        self.last, self.warned = state["last"], bool(state["warned"])
