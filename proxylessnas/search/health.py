"""Signs that a search goes wrong, in figures and in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..errors import ProxylessError
from .alphas import Alphas

_COLLAPSED = 0.75  # share of the blocks that may be skipped, of which a healthy search keeps some
_MOVED = 1e-7  # of the mean entropy, in nats, between two epochs


@dataclass
class Health:
    """Watches alpha.

    Attributes:
        zero_column: the candidate that skips its block; None if there is none.
        stuck_epochs: epochs without any movement after which a search is stopped; 0 never does.
        entropies: mean entropy at the end of each epoch with arch steps so far.
        warned: whether the collapse was told.
    """

    zero_column: int | None
    stuck_epochs: int
    entropies: list[float] = field(default_factory=list)
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

    def end_of_epoch(self, alphas: Alphas) -> list[str]:
        """Take note of an epoch with arch steps, and return what a user should know.

        Raises:
            ProxylessError: alpha has not moved for ``stuck_epochs`` epochs.
        """
        found = self.figures(alphas)
        self.entropies.append(found["entropy"])
        last = self.entropies[-(self.stuck_epochs + 1) :]
        if self.stuck_epochs and len(last) > self.stuck_epochs and max(last) - min(last) < _MOVED:
            raise ProxylessError(
                f"the architecture parameters have not moved for {self.stuck_epochs} epochs (mean entropy "
                f"{last[-1]:.6f} nats): raise arch_rate, or look at arch_every and frozen_epochs; "
                "stuck_epochs = 0 goes on regardless"
            )
        notes = []
        # At the start all candidates are as good as equal, and which is the most probable says nothing.
        meant = found["skip_share"] > 0.5 and found["skip_share_now"] > _COLLAPSED
        if meant and not self.warned:
            self.warned = True
            notes.append(
                f"{found['skip_share_now']:.0%} of the blocks that may be skipped are: the search collapses "
                "to a shallow net. A longer warm-up, a weaker pull of the cost (strength, or a higher "
                "target) or min_depth help"
            )
        return notes

    def state_dict(self) -> dict[str, object]:
        """Return what a run goes on from."""
        return {"entropies": list(self.entropies), "warned": self.warned}

    def load_state_dict(self, state: dict[str, Sequence[float]]) -> None:
        """Undo :meth:`state_dict`."""
        self.entropies, self.warned = [float(e) for e in state["entropies"]], bool(state["warned"])
