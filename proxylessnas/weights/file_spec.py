r"""Describes a published file: names, size, digests and sources; checks files against that.

SHA-256 is preferred as the digest; a git blob id (SHA-1 of ``"blob <length>\0"`` and the bytes) pins the
files for which the hosting git repository is the only published record.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from ..errors import OfflineError, WeightsFetchError
from ..utils.files import open_file, size_of
from ..utils.paths import ASSETS
from ..utils.text import shown_url

MAX_WEIGHTS_BYTES = 1 << 30
_CHUNK = 1 << 20


@dataclass(frozen=True, kw_only=True)
class FileSpec:
    """What identifies a file of weights, and where it can be had.

    Attributes:
        name: of the entry in the manifest; also the start of the file name in the cache.
        filename: the hosts' name of the file.
        size: bytes, or None where it is not known.
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
    """Return the first 8 digits of the digest, which make cache file names unique per content."""
    return (spec.sha256 or spec.git_blob or "")[:8]


def bytes_problem(spec: FileSpec, data: bytes) -> str | None:
    """Return what is wrong with ``data`` as the content of the file (size, then digest), or None."""
    return _problem(spec, len(data), (data,))


def file_problem(spec: FileSpec, path: Path) -> str | None:
    """Return what is wrong with the content of ``path`` as that of the file, or None; or raise OSError."""
    with open_file(path) as file:
        return _problem(spec, size_of(file), iter(lambda: file.read(_CHUNK), b""))


def digests_of(path: Path) -> tuple[str, str]:
    """Return the SHA-256 and the git blob id of a file, or raise OSError."""
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


def source_urls(spec: FileSpec) -> tuple[str, ...]:
    """Return the addresses to try, in order: the file's own, or those below ``PROXYLESSNAS_WEIGHTS_URL``.

    The variable holds base addresses, separated by commas, to whose paths the file's name is appended. A
    mirror can do no harm, http included, because the digest still comes from the manifest.

    Raises:
        WeightsFetchError: an address in the variable is not http or https.
    """
    urls = []
    for base in filter(None, map(str.strip, os.environ.get("PROXYLESSNAS_WEIGHTS_URL", "").split(","))):
        if not re.match(r"https?://[^/]", base, re.IGNORECASE):
            raise WeightsFetchError(
                f"PROXYLESSNAS_WEIGHTS_URL: {shown_url(base)!r} is not an http or https address"
            )
        place, mark, query = base.partition("?")  # a query, a token say, stays at the end
        urls.append(f"{place.rstrip('/')}/{quote(spec.filename)}{mark}{query}")
    return tuple(dict.fromkeys(urls or spec.sources))


def ways_without_network() -> str:
    """Return what needs no download, for messages: a file of one's own, or weights that are here."""
    here = ", ".join(sorted(path.stem for path in ASSETS.glob("proxyless_*.safetensors")))
    return (
        "Without a network: --weights FILE (weights=FILE in Python) takes a file that you have"
        + f"; {here} comes with the package and needs none" * bool(here)
    )


def offline_error(spec: FileSpec, dest: Path) -> OfflineError:
    """Return the error that says what to put where when the network is forbidden."""
    urls = "\n    ".join(map(shown_url, source_urls(spec)))
    tool = "sha256sum" if spec.sha256 else "git hash-object"
    return OfflineError(
        f"the weights of {spec.name} are not in the cache and PROXYLESSNAS_OFFLINE forbids the network.\n"
        f"  {ways_without_network()}.\n"
        f"  Or, on a machine with a network, download one of\n    {urls}\n"
        f"  check it with {tool} (expected: {expected_digest(spec)})\n  and put it at\n    {dest}"
    )
