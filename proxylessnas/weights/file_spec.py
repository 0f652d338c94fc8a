r"""Describes a published file (names, size, digests, sources) and checks files against that.

Two kinds of digest are known. SHA-256 is preferred; a git blob id (SHA-1 of ``"blob <length>\0"`` and the
bytes) pins the files for which the hosting git repository is the only published record.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..utils.files import open_file, size_of

MAX_WEIGHTS_BYTES = 1 << 30
_CHUNK = 1 << 20


@dataclass(frozen=True, kw_only=True)
class FileSpec:
    """What identifies a file of weights, and where it can be had.

    Attributes:
        name: of the entry in the manifest; also the start of the file name in the cache.
        filename: the hosts' name of the file.
        size: of the file, bytes, or None where it is not known.
        sha256: of the file, or None where it is not known.
        git_blob: git's id of the file (SHA-1), or None. At least one of the two digests is known.
        sources: https addresses of the same file, in the order in which they are tried; none if bundled.
        bundled: the file comes with the package: it needs neither network nor cache.
    """

    name: str
    filename: str
    size: int | None
    sha256: str | None
    git_blob: str | None
    sources: tuple[str, ...]
    bundled: bool = False

    def copy_metadata(self) -> dict[str, str]:
        """Return the text that a safetensors copy of the file holds about itself."""
        return {"format": "pt", "weights": self.name, "source": expected_digest(self)}


def expected_digest(spec: FileSpec) -> str:
    """Return what is demanded of the file, for messages: ``"sha256 d4bf..."`` or ``"git blob 373f..."``."""
    return f"sha256 {spec.sha256}" if spec.sha256 else f"git blob {spec.git_blob}"


def short_digest(spec: FileSpec) -> str:
    """Return the first 8 hexadecimal digits of the digest, which make cache file names unique per content."""
    return (spec.sha256 or spec.git_blob or "")[:8]


def bytes_problem(spec: FileSpec, data: bytes) -> str | None:
    """Return what is wrong with ``data`` as the content of the file (size, then digest), or None."""
    return _problem(spec, len(data), (data,))


def file_problem(spec: FileSpec, path: Path) -> str | None:
    """Return what is wrong with the content of ``path`` as that of the file, or None.

    Raises:
        OSError: ``path`` cannot be read.
    """
    with open_file(path) as file:
        return _problem(spec, size_of(file), iter(lambda: file.read(_CHUNK), b""))


def digests_of(path: Path) -> tuple[str, str]:
    """Return the SHA-256 and the git blob id of a file.

    Raises:
        OSError: it cannot be read.
    """
    with open_file(path) as file:
        plain, blob = hashlib.sha256(), _git_blob(size_of(file))
        while chunk := file.read(_CHUNK):
            plain.update(chunk)
            blob.update(chunk)
    return plain.hexdigest(), blob.hexdigest()


def _problem(spec: FileSpec, size: int, chunks: Iterable[bytes]) -> str | None:
    if spec.size is not None and size != spec.size:
        return f"{size:,} bytes instead of {spec.size:,} (expected {expected_digest(spec)})"
    kind, wanted = expected_digest(spec).rsplit(" ", 1)
    digest = hashlib.sha256() if spec.sha256 else _git_blob(size)
    for chunk in chunks:
        digest.update(chunk)
    actual = digest.hexdigest()
    return None if actual == wanted else f"{kind} is {actual}, expected {wanted}"


def _git_blob(size: int) -> hashlib._Hash:
    # SHA-1 only because git names its files so; nothing better is published for these.
    return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
