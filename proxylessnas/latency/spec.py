"""What a measuring process is asked to load, in a form that goes through a pipe."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class NetSpec:
    """A net, or one operation of it.

    Attributes:
        kind: "arch" (``text`` is ``str(arch)``), "op" (``text`` is that of an operation's key), "module"
            (``text`` is the path of a pickled ``nn.Module``) or "file" (that of an exported file, see
            :mod:`.files`).
        text: see ``kind``.
        input_size: (channels, height, width) of one picture; for "op" that of the operation's input.
        num_classes: outputs of the classifier of an "arch"; None takes the architecture's.
    """

    kind: str
    text: str
    input_size: tuple[int, int, int]
    num_classes: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {**dataclasses.asdict(self), "input_size": list(self.input_size)}

    @staticmethod
    def from_dict(data: dict[str, Any]) -> NetSpec:
        """Undo :meth:`to_dict`."""
        return NetSpec(**{**data, "input_size": tuple(data["input_size"])})
