"""Download one weights file so that its final path only ever holds a complete, verified file.

Sources are tried in order. What may pass (a 5xx, a stall, a broken transfer) is tried again with growing
pauses and resumed where it stopped; what will not pass (a 404, a web page, a wrong digest) moves on to the
next source at once. The bytes go to ``<file>.part`` in the same folder; size and digest are checked before it
is renamed. A lock lets one process download while the others wait for its result, and is released by the
system if that process is killed.
"""

from __future__ import annotations

import contextlib
import email.utils
import json
import logging
import os
import random
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from ..errors import OfflineError, WeightsFetchError
from ..utils.files import LockTimeout, locked, read_bytes, sync_folder, unlink_quietly
from ..utils.paths import is_offline
from ..utils.progress import Bar
from ..utils.text import shown_url
from .digests import expected_digest, file_problem
from .manifest import MAX_WEIGHTS_BYTES, read_manifest
from .transport import FetchFailure, Reply, Transport, default_transport, open_url

if TYPE_CHECKING:
    from .registry import Weights

# DOC proxylessnas.fetch_settings: """What the environment says about downloads: patience, mirrors, or no network at all."""

_LOG = logging.getLogger("proxylessnas")
_RETRY_STATUS = frozenset({408, 425, 429})
_MIN_BYTES_PER_TIMEOUT = 1024  # slower than this is a stall, even when a byte trickles in now and then
_CHUNK = 1 << 16
_BY_HAND = "Or put the file there by hand, or name a mirror in PROXYLESSNAS_WEIGHTS_URL."


def ways_without_network() -> str:
    """Return how to go on without a download, for messages: a file of one's own, or weights that are here."""
    here = ", ".join(name for name, weights in read_manifest().items() if weights.bundled)
    return (
        "Without a network: --weights FILE (weights=FILE in Python) takes a file that you have"
        + f"; {here} comes with the package and needs none" * bool(here)
    )


def offline_error(weights: Weights, dest: Path) -> OfflineError:
    """Return the error that says what to put where when the network is forbidden."""
    urls = "\n    ".join(shown_url(url) for url in source_urls(weights))
    tool = "sha256sum" if weights.sha256 else "git hash-object"
    return OfflineError(
        f"the weights of {weights.name} are not in the cache and PROXYLESSNAS_OFFLINE forbids the network.\n"
        f"  {ways_without_network()}.\n"
        f"  Or, on a machine with a network, download one of\n    {urls}\n"
        f"  check it with {tool} (expected: {expected_digest(weights)})\n  and put it at\n    {dest}"
    )


def download(
    weights: Weights,
    dest: Path,
    progress: bool = True,
    *,
    policy: Policy | None = None,
    transport: Transport | None = None,
) -> Path:
    """Put the verified file of ``weights`` at ``dest`` and return it.

    Safe to call from many processes at once: one downloads, the others find its file.

    Args:
        weights: what to fetch and what to demand of it.
        dest: final path. Its folder is made if need be; ``.part`` and ``.lock`` files lie next to it
            meanwhile.
        progress: show a progress bar when standard error is a terminal.
        policy: patience; by default from the environment.
        transport: by default requests, or urllib where requests is missing.

    Raises:
        OfflineError: ``PROXYLESSNAS_OFFLINE`` is set.
        WeightsFetchError: every source failed (each is listed with its reason), or the folder cannot be
            written.
    """
    if is_offline():
        raise offline_error(weights, dest)
    policy = policy or Policy.from_environment()
    urls = source_urls(weights)
    try:
        dest.parent.mkdir(parents=True, exist_ok=True)
        with locked(dest.with_name(dest.name + ".lock"), policy.lock_wait_s):
            if dest.is_file() and file_problem(weights, dest) is None:
                return dest  # another process was faster
            _Job(weights, dest, policy, transport or default_transport(), progress).run(urls)
    except LockTimeout as e:
        raise WeightsFetchError(
            f"another process has held {dest}.lock for {policy.lock_wait_s / 60:.0f} minutes; is it stuck?"
        ) from e
    except OSError as e:
        if isinstance(e, WeightsFetchError):
            raise
        raise WeightsFetchError(
            f"cannot write the weights of {weights.name} to {dest}: {e.strerror or e}. Make room, or choose "
            "a folder that can be written: PROXYLESSNAS_CACHE, or TORCH_HOME for everything that torch caches"
        ) from e
    return dest


class _Job:
    """One download under its lock."""

    def __init__(
        self, weights: Weights, dest: Path, policy: Policy, transport: Transport, progress: bool
    ) -> None:
        self.weights, self.dest, self.progress = weights, dest, progress
        self.policy, self.transport = policy, transport
        self.part = dest.with_name(dest.name + ".part")
        self.tag = dest.with_name(dest.name + ".part.json")  # where a partial file is from: {"url", "etag"}
        self.limit = weights.size or MAX_WEIGHTS_BYTES

    def run(self, urls: tuple[str, ...]) -> None:
        """Try the sources until one has delivered."""
        if self.part.is_file() and file_problem(self.weights, self.part) is None:
            return self._finish()  # killed after the last byte and before the renaming
        queue, failures, reasons = list(urls), dict.fromkeys(urls, 0), dict[str, str]()
        asked: dict[str, float | None] = {}
        while queue:
            url = queue[0]
            if failures[url]:
                pause = self.policy.pause_s(failures[url], asked.get(url))
                _LOG.info("%s: trying again in %.1f s", shown_url(url), pause)
                time.sleep(pause)
            try:
                self._attempt(url)
                return self._finish()
            except FetchFailure as e:
                _LOG.info("%s: %s", shown_url(url), e.reason)
                failures[url] += 1
                asked[url] = e.wait_s
                reasons[url] = e.reason + (f" ({failures[url]} attempts)" if failures[url] > 1 else "")
                queue.pop(0)
                # A host that cannot be reached is asked once more, not as often as one that stumbles.
                allowed = min(1, self.policy.retries) if e.unreachable else self.policy.retries
                if e.retry and failures[url] <= allowed:
                    # A host that cannot be reached at all waits until the others have had their turn.
                    queue.insert(len(queue) if e.unreachable else 0, url)
        listed = "\n".join(f"    {shown_url(url)}: {reasons[url]}" for url in urls)
        raise WeightsFetchError(
            f"no source delivered the weights of {self.weights.name}.\n  {ways_without_network()}.\n"
            f"  Tried were\n{listed}\n"
            f"  expected {expected_digest(self.weights)}\n  at {self.dest}\n  {_BY_HAND}"
        )

    def _attempt(self, url: str) -> None:
        """Fetch (or go on fetching) from one source into the ``.part`` file and check it."""
        start = self._resumable()
        headers = {"Accept-Encoding": "identity", "User-Agent": "proxylessnas"}
        if start:
            headers["Range"] = f"bytes={start}-"
            etag = self._etag(url)
            if etag:
                headers["If-Range"] = etag
        reply = open_url(self.transport, url, headers, self.policy.timeout_s)
        try:
            start = self._accept(reply, start)
            self._receive(reply, url, start)
        except OSError:
            self._discard()  # a full disk: give the room back
            raise
        finally:
            reply.close()
        problem = file_problem(self.weights, self.part)
        if problem:
            self._discard()
            if start:
                raise FetchFailure(f"the resumed file is wrong ({problem}); starting again", retry=True)
            raise FetchFailure(f"wrong file: {problem}")

    def _resumable(self) -> int:
        """Return the size of a partial file worth continuing, bytes; anything else is removed."""
        try:
            size = self.part.stat().st_size
        except FileNotFoundError:
            return 0
        if 0 < size < self.limit:
            return size
        self._discard()
        return 0

    def _accept(self, reply: Reply, start: int) -> int:
        """Judge status and headers; return where in the file the body begins."""
        status = reply.status
        if status == 206 and start:
            found = re.fullmatch(
                r"bytes (\d+)-(\d+)/(\d+|\*)", reply.headers.get("content-range", "").strip()
            )
            total = found[3] if found else ""
            if found and int(found[1]) == start and total in ("*", str(self.weights.size or total)):
                return start
            self._discard()
            raise FetchFailure("the server resumed at another place; starting again", retry=True)
        if status == 200:
            return 0  # also when a range was asked for: the server ignores it or the file has changed
        if status == 416 and start:
            self._discard()
            raise FetchFailure("the server refused to resume; starting again", retry=True)
        reason = f"HTTP {status}"
        if status in _RETRY_STATUS or status >= 500:
            raise FetchFailure(reason, retry=True, wait_s=_retry_after(reply.headers))
        raise FetchFailure(reason)

    def _receive(self, reply: Reply, url: str, start: int) -> None:
        """Write the body to the ``.part`` file, which stays only if it can be resumed."""
        length = reply.headers.get("content-length", "")
        total = start + int(length) if re.fullmatch(r"\d{1,15}", length) else None
        first = reply.read(_CHUNK)
        if not start:
            self._check_start(first, total)
            etag = reply.headers.get("etag", "")
            self._discard()
            if etag.startswith('"'):  # a weak tag does not promise the same bytes
                self.tag.write_text(json.dumps({"url": shown_url(url), "etag": etag}), encoding="utf-8")
        done, mark_done, mark_time = start, start, time.monotonic()
        wanted = self.weights.size or total
        bar = Bar(self.weights.filename, wanted, start, self.progress)
        broken: FetchFailure | None = None
        with contextlib.closing(bar), self.part.open("ab") as file:
            chunk = first
            while chunk and broken is None:
                done += len(chunk)
                if done > self.limit:
                    self._discard()
                    raise FetchFailure(f"the body is larger than the {self.limit:,} bytes expected")
                file.write(chunk)
                bar.update(len(chunk))
                now = time.monotonic()
                if now - mark_time > self.policy.timeout_s:
                    if done - mark_done < _MIN_BYTES_PER_TIMEOUT:
                        broken = FetchFailure("stalled: almost no data is coming", retry=True)
                        continue
                    mark_done, mark_time = done, now
                try:
                    chunk = reply.read(_CHUNK)
                except FetchFailure as e:
                    broken = e
            file.flush()
            os.fsync(file.fileno())
        if broken is None and wanted is not None and done < wanted:
            broken = FetchFailure("the transfer broke off", retry=True)
        if broken is not None:
            broken.reason += f" (after {done:,}" + (f" of {wanted:,} bytes)" if wanted else " bytes)")
            raise broken

    def _check_start(self, first: bytes, total: int | None) -> None:
        """Recognise by its first bytes and announced length what cannot be the file."""
        head = first[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
        if not first:
            raise FetchFailure("the answer is empty")
        if head.startswith(b"<"):
            raise FetchFailure("a web page came instead of the file")
        if head.startswith(b"version https://git-lfs"):
            raise FetchFailure("a Git LFS pointer came instead of the file")
        if total is not None and self.weights.size is not None and total != self.weights.size:
            raise FetchFailure(f"wrong file: {total:,} bytes announced, {self.weights.size:,} expected")
        if total is not None and total > self.limit:
            raise FetchFailure(f"{total:,} bytes announced; at most {self.limit:,} are accepted")

    def _etag(self, url: str) -> str | None:
        """Return the tag of the partial file if it is from this very address (it means nothing elsewhere)."""
        try:
            data = json.loads(read_bytes(self.tag, 4096))
        except (OSError, ValueError):
            return None
        etag = data.get("etag") if isinstance(data, dict) and data.get("url") == shown_url(url) else None
        return etag if isinstance(etag, str) and re.fullmatch(r'"[\x21\x23-\x7e]*"', etag) else None

    def _finish(self) -> None:
        os.replace(self.part, self.dest)
        sync_folder(self.dest.parent)
        unlink_quietly(self.tag)

    def _discard(self) -> None:
        unlink_quietly(self.part)
        unlink_quietly(self.tag)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds a server asks to wait (a number or a date), or None."""
    text = headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d{1,9}", text):
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


@dataclass(frozen=True)
class Policy:
    """How patient a download is.

    Attributes:
        timeout_s: for a connection and for every wait for data (``PROXYLESSNAS_TIMEOUT``).
        retries: further attempts at one source after the first (``PROXYLESSNAS_RETRIES``).
        backoff_s: the first pause; each further one is twice as long, with up to half of it left off at
            random.
        max_wait_s: the longest pause, also when a server asks for more.
        lock_wait_s: how long to wait for another process that is downloading the same file.
    """

    timeout_s: float = 20.0
    retries: int = 3
    backoff_s: float = 0.5
    max_wait_s: float = 30.0
    lock_wait_s: float = 3600.0

    @classmethod
    def from_environment(cls) -> Policy:
        """Return the defaults, changed by ``PROXYLESSNAS_TIMEOUT`` and ``PROXYLESSNAS_RETRIES``.

        Raises:
            WeightsFetchError: a variable is not a sensible number.
        """
        timeout = _number("PROXYLESSNAS_TIMEOUT", cls.timeout_s, 0.01, 86400)
        return cls(timeout_s=timeout, retries=int(_number("PROXYLESSNAS_RETRIES", cls.retries, 0, 100)))

    def pause_s(self, failures: int, asked_s: float | None) -> float:
        """Return the pause before the next attempt at a source that failed ``failures`` times, seconds."""
        pause = (
            self.backoff_s * 2.0 ** min(failures - 1, 20) * random.uniform(0.5, 1.0)
        )  # spread many clients out
        return float(min(max(pause, asked_s or 0.0), self.max_wait_s))


def _number(variable: str, default: float, low: float, high: float) -> float:
    text = os.environ.get(variable, "").strip()
    try:
        value = float(text) if text else default
    except ValueError:
        value = -1.0
    if not low <= value <= high:
        raise WeightsFetchError(
            f"the environment variable {variable} is {text!r}; wanted a number, {low:g} to {high:g}"
        )
    return value


def source_urls(weights: Weights) -> tuple[str, ...]:
    """Return the addresses to try, in order: the manifest's, or those below ``PROXYLESSNAS_WEIGHTS_URL``.

    The variable holds one base address or several, separated by commas; the file's name is appended to the
    path of each.
    A mirror can do no harm, http included, because the digest still comes from the manifest.

    Raises:
        WeightsFetchError: an address in the variable is not http or https.
    """
    bases = [
        base.strip() for base in os.environ.get("PROXYLESSNAS_WEIGHTS_URL", "").split(",") if base.strip()
    ]
    for base in bases:
        if not re.match(r"https?://[^/]", base, re.IGNORECASE):
            raise WeightsFetchError(
                f"PROXYLESSNAS_WEIGHTS_URL: {shown_url(base)!r} is not an http or https address"
            )
    parts = [base.partition("?") for base in bases]  # a query, a token say, stays at the end
    name = quote(weights.filename)
    urls = [f"{place.rstrip('/')}/{name}{mark}{query}" for place, mark, query in parts] or weights.sources
    return tuple(dict.fromkeys(urls))
