"""Where weights come from: a name, a record, a file or a state dict, opened to one thing."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from .errors import UnknownModelError, WeightsNotFoundError
from .model_file import Header
from .names import looks_like_path, name_of_file

if TYPE_CHECKING:
    from .weights import Weights


@dataclass(frozen=True)
class Source:
    """Opened weights.

    Attributes:
        state: the tensors, on the CPU.
        label: how messages name them.
        header: what a file of :func:`~proxylessnas.save_weights` says of itself; empty for others.
        record: the published weights, if it is they; a local file is known by its digest.
        name: of the net in a local file; "" for others.
        owned: each tensor is known to have memory of its own.
    """

    state: Mapping[str, Tensor]
    label: str
    header: Header = field(default_factory=Header)
    record: Weights | None = None
    name: str = ""
    owned: bool = False


def open_source(
    source: str | os.PathLike[str] | Weights | Mapping[str, Tensor], progress: bool = True
) -> Source:
    """Open weights given as a path, a zoo name, a :class:`~proxylessnas.Weights` record or a state dict.

    Raises:
        WeightsNotFoundError, WeightsFetchError, WeightsCorruptError: see those.
    """
    from .cache import cached_state_dict, safe_load
    from .tensorfile import state_dict_of
    from .weights import Weights, find_by_digest, get_weights

    if isinstance(source, Mapping):
        return Source(state_dict_of(source, "the given weights"), "the given weights")
    if isinstance(source, Weights):
        return Source(
            cached_state_dict(source, progress),
            f"the weights of {source.name}",
            record=source,
        )
    if looks_like_path(source):
        path = Path(source)
        state, metadata = safe_load(path)
        header = Header.parse(metadata, str(path))
        return Source(state, str(path), header, find_by_digest(path), name_of_file(path))
    try:
        weights = get_weights(str(source))
    except UnknownModelError as e:
        raise WeightsNotFoundError(
            f"{source!r} is neither a weights file nor a net with published weights ({e})"
        ) from e
    return open_source(weights, progress)
