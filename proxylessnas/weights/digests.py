r"""Digests: does a file, or do these bytes, hold exactly the weights that the manifest names?

Two kinds are known. SHA-256 is preferred; a git blob id (SHA-1 of ``"blob <length>\0"`` and the bytes) pins
the files for which the hosting git repository is the only published record.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ..utils.files import open_file, size_of

if TYPE_CHECKING:
    from .registry import Weights

_CHUNK = 1 << 20


def expected_digest(weights: Weights) -> str:
    """Return what is demanded of a file, for messages: ``"sha256 d4bf..."`` or ``"git blob 373f..."``."""
    return f"sha256 {weights.sha256}" if weights.sha256 else f"git blob {weights.git_blob}"


def short_digest(weights: Weights) -> str:
    """Return the first 8 hexadecimal digits of the digest, which make cache file names unique per content."""
    return (weights.sha256 or weights.git_blob or "")[:8]


def bytes_problem(weights: Weights, data: bytes | bytearray) -> str | None:
    """Return what is wrong with ``data`` as the file of ``weights`` (size, then digest), or None."""
    return _problem(weights, len(data), (data,))


def digests_of(path: Path) -> tuple[str, str]:
    """Return the SHA-256 and the git blob id of a file.

    Raises:
        OSError: it cannot be read.
    """
    with open_file(path) as file:
        plain = hashlib.sha256()
        blob = hashlib.sha1(b"blob %d\0" % size_of(file), usedforsecurity=False)
        while chunk := file.read(_CHUNK):
            plain.update(chunk)
            blob.update(chunk)
    return plain.hexdigest(), blob.hexdigest()


def file_problem(weights: Weights, path: Path) -> str | None:
    """Return what is wrong with the file ``path`` as the file of ``weights``, or None.

    Raises:
        OSError: the file cannot be read.
    """
    with open_file(path) as file:
        return _problem(weights, size_of(file), iter(lambda: file.read(_CHUNK), b""))


def _problem(weights: Weights, size: int, chunks: Iterable[bytes | bytearray]) -> str | None:
    if weights.size is not None and size != weights.size:
        return f"{size:,} bytes instead of {weights.size:,} (expected {expected_digest(weights)})"
    if weights.sha256:
        kind, wanted, digest = "sha256", weights.sha256, hashlib.sha256()
    else:
        kind, wanted = "git blob", weights.git_blob or ""
        # SHA-1 only because git names its files so; nothing better is published for these.
        digest = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    for chunk in chunks:
        digest.update(chunk)
    actual = digest.hexdigest()
    return None if actual == wanted else f"{kind} is {actual}, expected {wanted}"
