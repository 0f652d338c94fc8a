"""Downloads one weights file so that its final path only ever holds a complete, verified file.

Sources are tried in order. What may pass (a 5xx, a stall, a broken transfer) is tried again with growing
pauses and resumed where it stopped; what will not pass (a 404, a web page, a wrong digest) moves on to the
next source at once. The bytes go to ``<file>.part`` in the same folder; size and digest are checked before it
is renamed. A lock, which the system releases if its holder is killed, lets one process download while the
others wait for its result.

requests honours the environment's proxies and certificate settings (``REQUESTS_CA_BUNDLE``,
``CURL_CA_BUNDLE``, and here ``SSL_CERT_FILE``); certificate checks cannot be skipped.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import os
import random
import re
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from ..errors import WeightsFetchError, needs
from ..utils.files import LockTimeout, locked, read_bytes, sync_folder, unlink_quietly
from ..utils.paths import is_offline
from ..utils.progress import Bar
from ..utils.tensor_files import what_else
from ..utils.text import shown_reason, shown_url
from .file_spec import (
    MAX_WEIGHTS_BYTES,
    FileSpec,
    expected_digest,
    file_problem,
    offline_error,
    source_urls,
    ways_without_network,
)

if TYPE_CHECKING:
    import requests

_LOG = logging.getLogger("proxylessnas")
_RETRY_STATUS = frozenset({408, 425, 429})
_REDIRECTS, _MAX_REDIRECTS = frozenset({301, 302, 303, 307, 308}), 5
_MIN_BYTES_PER_TIMEOUT = 1024  # slower than this is a stall, even when a byte trickles in now and then


@dataclass(frozen=True)
class Policy:
    """How patient a download is.

    Attributes:
        timeout_s: for a connection and for every wait for data (``PROXYLESSNAS_TIMEOUT``).
        retries: further attempts at one source after the first (``PROXYLESSNAS_RETRIES``).
        backoff_s: the first pause; each further one is twice as long.
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
        """Return the defaults, changed by the variables; raise WeightsFetchError if one is no number."""
        timeout = _number("PROXYLESSNAS_TIMEOUT", cls.timeout_s, 0.01, 86400)
        return cls(timeout_s=timeout, retries=int(_number("PROXYLESSNAS_RETRIES", cls.retries, 0, 100)))

    def pause_s(self, failures: int, asked_s: float | None) -> float:
        """Return the pause before the next attempt at a source that failed ``failures`` times, seconds."""
        spread = random.uniform(0.5, 1.0)  # many clients must not come back at the same moment
        pause = self.backoff_s * 2.0 ** min(failures - 1, 20) * spread
        return min(max(pause, asked_s or 0.0), self.max_wait_s)


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


def download(spec: FileSpec, dest: Path, progress: bool = True, *, policy: Policy | None = None) -> Path:
    """Put the verified file at ``dest``, whose folder is made if need be, and return it.

    Safe to call from many processes at once: one downloads, the others find its file.

    Args:
        spec: what to fetch and what to demand of it.
        dest: final path.
        progress: show a progress bar when standard error is a terminal.
        policy: patience; by default from the environment.

    Raises:
        OfflineError: ``PROXYLESSNAS_OFFLINE`` is set.
        MissingExtraError: requests is not installed.
        WeightsFetchError: every source failed (each is listed with its reason), or the folder cannot be
            written.
    """
    if is_offline():
        raise offline_error(spec, dest)
    with needs(
        "requests", f"downloading the weights of {spec.name} (weights=FILE takes a file that you have)"
    ):
        import requests  # noqa: F401
    policy = policy or Policy.from_environment()
    urls = source_urls(spec)
    try:
        dest.parent.mkdir(parents=True, exist_ok=True)
        with locked(dest.with_name(dest.name + ".lock"), policy.lock_wait_s):
            if not (dest.is_file() and file_problem(spec, dest) is None):  # another process was not faster
                _Download(spec, dest, policy, progress).run(urls)
    except LockTimeout as e:
        raise WeightsFetchError(
            f"another process has held {dest}.lock for {policy.lock_wait_s / 60:.0f} minutes; is it stuck?"
        ) from e
    except OSError as e:
        if isinstance(e, WeightsFetchError):
            raise
        raise WeightsFetchError(
            f"cannot write the weights of {spec.name} to {dest}: {e.strerror or e}. Make room, or choose "
            "a folder that can be written: PROXYLESSNAS_CACHE, or TORCH_HOME for everything that torch caches"
        ) from e
    return dest


class _Download:
    """One download under its lock."""

    def __init__(self, spec: FileSpec, dest: Path, policy: Policy, progress: bool) -> None:
        self.spec, self.dest, self.policy, self.progress = spec, dest, policy, progress
        self.part = dest.with_name(dest.name + ".part")
        self.tag = dest.with_name(dest.name + ".part.json")  # where a partial file is from: {"url", "etag"}
        self.limit = spec.size or MAX_WEIGHTS_BYTES

    def run(self, urls: tuple[str, ...]) -> None:
        """Try the sources until one has delivered."""
        if self.part.is_file() and file_problem(self.spec, self.part) is None:
            return self._finish()  # killed after the last byte and before the renaming
        queue, failures = list(urls), {url: list[FetchFailure]() for url in urls}
        while queue:
            url = queue.pop(0)
            failed = failures[url]
            if failed:
                pause = self.policy.pause_s(len(failed), failed[-1].wait_s)
                _LOG.info("%s: trying again in %.1f s", shown_url(url), pause)
                time.sleep(pause)
            try:
                self._attempt(url)
                return self._finish()
            except FetchFailure as e:
                _LOG.info("%s: %s", shown_url(url), e.reason)
                failed.append(e.with_traceback(None))
                # A host that cannot be reached is asked once more, not as often as one that stumbles, and
                # waits until the others have had their turn.
                allowed = min(1, self.policy.retries) if e.unreachable else self.policy.retries
                if e.retry and len(failed) <= allowed:
                    queue.insert(len(queue) if e.unreachable else 0, url)
        listed = "".join(
            f"    {shown_url(url)}: {failed[-1].reason}"
            + (f" ({len(failed)} attempts)\n" if len(failed) > 1 else "\n")
            for url, failed in failures.items()
        )
        raise WeightsFetchError(
            f"no source delivered the weights of {self.spec.name}.\n  {ways_without_network()}.\n"
            f"  Tried were\n{listed}"
            f"  expected {expected_digest(self.spec)}\n  at {self.dest}\n"
            "  Or put the file there by hand, or name a mirror in PROXYLESSNAS_WEIGHTS_URL."
        )

    def _attempt(self, url: str) -> None:
        """Fetch from one source into the ``.part`` file, or resume it, and check it."""
        import requests

        start = self._resumable()
        headers = {"Accept-Encoding": "identity", "User-Agent": "proxylessnas"}
        if start:
            headers["Range"] = f"bytes={start}-"
            if etag := self._etag(url):
                headers["If-Range"] = etag
        with (
            requests.Session() as session,
            contextlib.closing(open_url(session, url, headers, self.policy.timeout_s)) as response,
        ):
            try:
                start = self._accept(response, start)
                self._receive(response, url, start)
            except OSError:
                self._discard()  # a full disk: give the room back
                raise
        problem = file_problem(self.spec, self.part)
        if problem:
            self._discard()
            if start:
                raise FetchFailure(f"the resumed file is wrong ({problem}); starting again", retry=True)
            raise FetchFailure(f"wrong file: {problem}")

    def _resumable(self) -> int:
        """Return the size of a partial file worth resuming, bytes; anything else is removed."""
        try:
            size = self.part.stat().st_size
        except FileNotFoundError:
            return 0
        if 0 < size < self.limit:
            return size
        self._discard()
        return 0

    def _accept(self, response: requests.Response, start: int) -> int:
        """Check status and headers; return where in the file the body begins."""
        status = response.status_code
        if status == 206 and start:
            text = response.headers.get("content-range", "").strip()
            found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", text)
            if found and int(found[1]) == start and found[2] in ("*", str(self.spec.size or found[2])):
                return start
            self._discard()
            raise FetchFailure("the server resumed at another place; starting again", retry=True)
        if status == 200:
            return 0  # also when a range was asked for: the server ignores it or the file has changed
        if status == 416 and start:
            self._discard()
            raise FetchFailure("the server refused to resume; starting again", retry=True)
        passing = status in _RETRY_STATUS or status >= 500
        raise FetchFailure(f"HTTP {status}", retry=passing, wait_s=_retry_after(response))

    def _receive(self, response: requests.Response, url: str, start: int) -> None:
        """Write the body to the ``.part`` file, which stays only if it can be resumed."""
        length = response.headers.get("content-length", "")
        total = start + int(length) if re.fullmatch(r"\d{1,15}", length) else None
        chunk = _read_some(response)
        if not start:
            self._check_start(chunk, total)
            etag = response.headers.get("etag", "")
            self._discard()
            if etag.startswith('"'):  # a weak tag does not promise the same bytes
                self.tag.write_text(json.dumps({"url": shown_url(url), "etag": etag}), encoding="utf-8")
        wanted = self.spec.size or total
        done, mark_done, mark_time = start, start, time.monotonic()
        bar = Bar(self.spec.filename, wanted, start, self.progress)
        try:
            with contextlib.closing(bar), self.part.open("ab") as file:
                while chunk:
                    done += len(chunk)
                    if done > self.limit:
                        self._discard()
                        raise FetchFailure(f"the body is larger than the {self.limit:,} bytes expected")
                    file.write(chunk)
                    bar.update(len(chunk))
                    now = time.monotonic()
                    if now - mark_time > self.policy.timeout_s:
                        if done - mark_done < _MIN_BYTES_PER_TIMEOUT:
                            raise FetchFailure("stalled: almost no data is coming", retry=True)
                        mark_done, mark_time = done, now
                    chunk = _read_some(response)
                file.flush()
                os.fsync(file.fileno())
            if wanted is not None and done < wanted:
                raise FetchFailure("the transfer broke off", retry=True)
        except FetchFailure as e:
            if e.retry:
                e.reason += f" (after {done:,}" + (f" of {wanted:,} bytes)" if wanted else " bytes)")
            raise

    def _check_start(self, first: bytes, total: int | None) -> None:
        """Recognise by its first bytes and announced length what cannot be the file."""
        if not first:
            raise FetchFailure("the answer is empty")
        if other := what_else(first):
            raise FetchFailure(f"{other[0]} came instead of the file")
        if total is not None and self.spec.size is not None and total != self.spec.size:
            raise FetchFailure(f"wrong file: {total:,} bytes announced, {self.spec.size:,} expected")
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


@dataclass(eq=False)
class FetchFailure(Exception):
    """One attempt at one address failed; the download makes a retry or a WeightsFetchError of it.

    Attributes:
        reason: what happened, for the user.
        retry: the same address may work a moment later.
        unreachable: no connection was made at all, so another host is the better next try.
        wait_s: seconds the server asked us to wait, or None.
    """

    reason: str
    retry: bool = False
    unreachable: bool = False
    wait_s: float | None = None


def open_url(
    session: requests.Session, url: str, headers: Mapping[str, str], timeout: float
) -> requests.Response:
    """Send a GET and follow redirects, or raise FetchFailure; the body is not read yet.

    The timeout, in seconds, is that for the connection and for every wait for data.
    """
    # The usual setting of Python's own ssl; those of requests, where they are set, go first.
    session.verify = os.environ.get("SSL_CERT_FILE") or True
    for _ in range(_MAX_REDIRECTS + 1):
        with _failures():
            response = session.get(url, headers=headers, timeout=timeout, stream=True, allow_redirects=False)
        if response.status_code not in _REDIRECTS:
            return response
        response.close()
        # Not followed by requests, which would step from https down to http.
        url = redirect_target(url, response.headers.get("location"))
    raise FetchFailure(f"more than {_MAX_REDIRECTS} redirects")


def redirect_target(url: str, location: str | None) -> str:
    """Return the address a redirect leads to, or raise FetchFailure if it gives up https or leaves http."""
    if not location:
        raise FetchFailure("redirect without a Location")
    try:
        target = urljoin(url, location)
        scheme, host = urlsplit(target).scheme, urlsplit(target).hostname
    except ValueError as e:
        raise FetchFailure(f"redirect to {shown_url(location)}, which is no address") from e
    if scheme not in ("http", "https") or not host:
        raise FetchFailure(f"redirect to {shown_url(target)} refused: only http and https are followed")
    if scheme == "http" and urlsplit(url).scheme == "https":
        raise FetchFailure(f"redirect from https to {shown_url(target)} refused: not protected")
    return target


def _read_some(response: requests.Response) -> bytes:
    """Return some of the body as soon as there is some, or ``b""`` at the end."""
    raw: Any = response.raw
    with _failures():
        # read1 returns what has arrived; plain read waits for all it was asked for, so there ask for little.
        return bytes(raw.read1(1 << 16) if hasattr(raw, "read1") else raw.read(1 << 14))


def _retry_after(response: requests.Response) -> float | None:
    """Return the seconds a server asks to wait (a number or a date), or None."""
    from urllib3 import Retry
    from urllib3.exceptions import InvalidHeader

    if len(response.headers.get("retry-after", "")) > 40:  # longer than a date: no wish
        return None
    try:
        return Retry().get_retry_after(response.raw)
    except (InvalidHeader, ValueError, OverflowError):
        return None


@contextlib.contextmanager
def _failures() -> Iterator[None]:
    """Make a FetchFailure of whatever requests, urllib3 and the socket raise."""
    try:
        yield
    except Exception as e:
        if (failure := _explain(e)) is None:
            raise
        raise failure from e


def _explain(error: Exception) -> FetchFailure | None:
    from urllib3 import exceptions as urllib3

    chain = _causes(error)
    root = chain[-1]
    refused = next((e for e in chain if isinstance(e, ssl.SSLCertVerificationError)), None)
    if refused is not None:
        return FetchFailure(
            f"certificate refused: {refused.verify_message}; set REQUESTS_CA_BUNDLE to your site's CA file"
        )
    text = shown_reason(str(root)) or type(root).__name__
    for kinds, reason, unreachable in (
        (socket.gaierror, "the host name cannot be resolved", True),
        (ConnectionRefusedError, "connection refused", True),
        (urllib3.NewConnectionError, f"no connection: {text}", True),
        (urllib3.ConnectTimeoutError, "timed out while connecting", True),
        ((TimeoutError, urllib3.ReadTimeoutError), "timed out while waiting for data", False),
        (urllib3.ProxyError, f"no connection: {text}", True),
        (http.client.IncompleteRead, "the transfer broke off", False),
        (ConnectionError, "the connection was reset", False),
    ):
        if any(isinstance(e, kinds) for e in chain):
            return FetchFailure(reason, retry=True, unreachable=unreachable)
    if isinstance(error, ValueError) or any(isinstance(e, urllib3.LocationValueError) for e in chain):
        return FetchFailure(f"not a usable address or setting ({type(root).__name__})")
    if isinstance(error, (OSError, http.client.HTTPException, urllib3.HTTPError)):
        return FetchFailure(f"{type(root).__name__}: {text}", retry=True)
    return None


def _causes(error: BaseException) -> list[BaseException]:
    """Return an error and everything it wraps, outermost first: the socket's own is wrapped several times."""
    chain: list[BaseException] = []
    todo: list[object] = [error]
    while todo and len(chain) < 20:
        item = todo.pop(0)
        if isinstance(item, BaseException) and item not in chain:
            chain.append(item)
            todo += [item.__cause__, item.__context__, getattr(item, "reason", None), *item.args]
    return chain
