"""Sends one GET for the downloader, through requests, and says in one line what went wrong with it.

requests honours the proxy variables of the environment (``HTTPS_PROXY``, ``NO_PROXY``, ...) and the
certificate settings (``REQUESTS_CA_BUNDLE``, ``CURL_CA_BUNDLE``, and here ``SSL_CERT_FILE``); certificate
checks cannot be skipped. Its retries are not used: the downloader's go over several sources and resume.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from ..utils.text import shown_reason, shown_url

if TYPE_CHECKING:
    import requests

MAX_REDIRECTS = 5
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_CHUNK = 1 << 16


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
    """Send a GET and follow redirects; the body is not read yet.

    Redirects are followed here, not by requests, so that a step from https down to http is always refused.

    Args:
        session: sends the requests.
        url: http or https.
        headers: sent on every hop; they hold no secrets.
        timeout: seconds for the connection, and for every wait for data.

    Raises:
        FetchFailure: no answer, or a redirect that is refused (to http from https, to another scheme, or too
            many).
    """
    # The usual setting of Python's own ssl; those of requests, where they are set, go first.
    session.verify = os.environ.get("SSL_CERT_FILE") or True
    for _ in range(MAX_REDIRECTS + 1):
        with _failures():
            response = session.get(url, headers=headers, timeout=timeout, stream=True, allow_redirects=False)
        if response.status_code not in _REDIRECTS:
            return response
        response.close()
        url = redirect_target(url, response.headers.get("location"))
    raise FetchFailure(f"more than {MAX_REDIRECTS} redirects")


def redirect_target(url: str, location: str | None) -> str:
    """Return the address a redirect leads to.

    Raises:
        FetchFailure: there is none, or going there would give up the protection of https or leave http
            altogether.
    """
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


def read_some(response: requests.Response) -> bytes:
    """Return some of the body as soon as there is some, or ``b""`` at the end.

    Raises:
        FetchFailure: the connection broke or stalled.
    """
    raw: Any = response.raw
    with _failures():
        # read1 returns what has arrived; plain read waits for all it was asked for, so there ask for little.
        return bytes(raw.read1(_CHUNK) if hasattr(raw, "read1") else raw.read(min(_CHUNK, 16384)))


@contextlib.contextmanager
def _failures() -> Iterator[None]:
    """Sort whatever requests, urllib3 and the socket raise by its cause, as a FetchFailure."""
    try:
        yield
    except Exception as e:
        found = _explain(e)
        if found is e:
            raise
        raise found from e


def _explain(error: Exception) -> Exception:
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
    return error


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
