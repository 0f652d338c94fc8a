"""Images that cannot be read: let pass up to a share of all, and told of by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..errors import DataError

_IN_ERROR, _IN_NOTE = 3, 10  # at most so many are named


class Unreadable:
    """The images of a loader that could not be read so far.

    Args:
        n: how many images there are.
        share: of them that may be unreadable.
        what: they are, in messages: "training images".

    Attributes:
        reasons: name of an image to why it cannot be read.
    """

    def __init__(self, n: int, share: float, what: str) -> None:
        self._n, self._share, self._what = n, share, what
        self.reasons: dict[str, str] = {}

    def add(self, reasons: Mapping[str, str]) -> None:
        """Take note of some more.

        Raises:
            DataError: they are too many now; names the first ones.
        """
        if not reasons:
            return
        self.reasons.update(reasons)
        if len(self.reasons) > self._share * self._n:
            first = "\n  ".join(list(self.reasons.values())[:_IN_ERROR])
            more = "\n  ..." if len(self.reasons) > _IN_ERROR else ""
            raise DataError(
                f"{len(self.reasons)} of {self._n} {self._what} cannot be read, more than the "
                f"{100 * self._share:g} % that are let pass (--max-unreadable); repair, convert or remove "
                f"them:\n  {first}{more}"
            )


class UnreadableNotes:
    """Tells the user of unreadable images, each of them once."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def tell(self, note: Callable[[str], None], part: str, reasons: Mapping[str, str], instead: str) -> None:
        """Tell of those that were not told of yet.

        Args:
            note: shows a text.
            part: which images, such as "training".
            reasons: name to reason of all that were found so far.
            instead: what is done about them, such as "they are left out".
        """
        fresh = [reason for name, reason in reasons.items() if name not in self._told]
        self._told.update(reasons)
        if fresh:
            more = f"\n  and {len(fresh) - _IN_NOTE} more" if len(fresh) > _IN_NOTE else ""
            shown = "\n  ".join(fresh[:_IN_NOTE])
            note(f"{len(fresh)} {part} image(s) cannot be read, {instead}:\n  {shown}{more}")
