"""Downloads one weights file so that its final path only ever holds a complete, verified file.

Sources are tried in order. What may pass (a 5xx, a stall, a broken transfer) is tried again with growing
pauses and resumed where it stopped; what will not pass (a 404, a web page, a wrong digest) moves on to the
next source at once. The bytes go to ``<file>.part`` in the same folder; size and digest are checked before it
is renamed. A lock lets one process download while the others wait for its result, and is released by the
system if that process is killed.

The environment says how patient it is, names mirrors, or forbids the network.
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

from ..errors import OfflineError, WeightsFetchError, needs
from ..utils.files import LockTimeout, locked, read_bytes, sync_folder, unlink_quietly
from ..utils.paths import ASSETS, is_offline
from ..utils.progress import Bar
from ..utils.text import shown_url
from .file_spec import MAX_WEIGHTS_BYTES, FileSpec, expected_digest, file_problem
from .transport import FetchFailure, open_url, read_some

if TYPE_CHECKING:
    import requests

_LOG = logging.getLogger("proxylessnas")
_RETRY_STATUS = frozenset({408, 425, 429})
_MIN_BYTES_PER_TIMEOUT = 1024  # slower than this is a stall, even when a byte trickles in now and then


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


def source_urls(spec: FileSpec) -> tuple[str, ...]:
    """Return the addresses to try, in order: the file's own, or those below ``PROXYLESSNAS_WEIGHTS_URL``.

    The variable holds one base address or several, separated by commas; the file's name is appended to the
    path of each. A mirror can do no harm, http included, because the digest still comes from the manifest.

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


def download(spec: FileSpec, dest: Path, progress: bool = True, *, policy: Policy | None = None) -> Path:
    """Put the verified file at ``dest`` and return it.

    Safe to call from many processes at once: one downloads, the others find its file.

    Args:
        spec: what to fetch and what to demand of it.
        dest: final path. Its folder is made if need be; ``.part`` and ``.lock`` files lie next to it
            meanwhile.
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
        raise FetchFailure(f"HTTP {status}", retry=passing, wait_s=_retry_after(response.headers))

    def _receive(self, response: requests.Response, url: str, start: int) -> None:
        """Write the body to the ``.part`` file, which stays only if it can be resumed."""
        length = response.headers.get("content-length", "")
        total = start + int(length) if re.fullmatch(r"\d{1,15}", length) else None
        chunk = read_some(response)
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
                    chunk = read_some(response)
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
        head = first[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
        if not first:
            raise FetchFailure("the answer is empty")
        if head.startswith(b"<"):
            raise FetchFailure("a web page came instead of the file")
        if head.startswith(b"version https://git-lfs"):
            raise FetchFailure("a Git LFS pointer came instead of the file")
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


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds a server asks to wait (a number or a date), or None."""
    text = headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d{1,9}", text):
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None
