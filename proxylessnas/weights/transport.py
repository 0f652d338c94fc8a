"""HTTP for the downloader: one GET at a time, through requests or, where that is missing, urllib.

Both transports honour the proxy variables of the environment (``HTTPS_PROXY``, ``NO_PROXY``, ...) and the
certificate settings (``REQUESTS_CA_BUNDLE``, ``CURL_CA_BUNDLE``, ``SSL_CERT_FILE``); neither can be told to
skip certificate checks. Redirects are followed here, not in the libraries, so that a step from https down to
http is always refused.
"""

from __future__ import annotations

import base64
import http.client
import os
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit

from ..utils.text import shown_reason, shown_url

MAX_REDIRECTS = 5
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_CA_VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")


class FetchFailure(Exception):
    """One attempt at one address failed; the downloader makes a retry or a WeightsFetchError of it.

    Attributes:
        reason: what happened, for the user.
        retry: the same address may work a moment later.
        unreachable: no connection was made at all, so another host is the better next try.
        wait_s: seconds the server asked us to wait, or None.
    """

    def __init__(
        self, reason: str, *, retry: bool = False, unreachable: bool = False, wait_s: float | None = None
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry = retry
        self.unreachable = unreachable
        self.wait_s = wait_s


@dataclass
class Reply:
    """An answer whose body has not been read yet.

    Attributes:
        status: HTTP status code.
        headers: names in lower case.
        url: the address that answered.
    """

    status: int
    headers: Mapping[str, str]
    url: str
    _read: Callable[[int], bytes]
    close: Callable[[], None]

    def read(self, limit: int) -> bytes:
        """Return at most ``limit`` bytes as soon as some are there, or ``b""`` at the end.

        Raises:
            FetchFailure: the connection broke or stalled.
        """
        try:
            return self._read(limit)
        except Exception as e:  # whatever the two libraries raise; unknown errors are raised again
            raise _explain(e) from e


class Transport(Protocol):
    """One GET without redirects."""

    name: str

    def get(self, url: str, headers: Mapping[str, str], timeout: float) -> Reply:
        """Return as soon as the headers are there; raise FetchFailure if they do not come."""
        ...


class RequestsTransport:
    """The usual transport. requests reads proxies and certificate settings from the environment."""

    name = "requests"

    def get(self, url: str, headers: Mapping[str, str], timeout: float) -> Reply:
        """Send the request; see :class:`Transport`."""
        import requests

        session = requests.Session()
        # requests knows the first two variables; SSL_CERT_FILE is Python's own and many sites set only that.
        verify: bool | str = True
        if not any(os.environ.get(name) for name in _CA_VARIABLES[:2]):
            verify = os.environ.get(_CA_VARIABLES[2]) or True
        try:
            response = session.get(
                url, headers=dict(headers), timeout=timeout, stream=True, allow_redirects=False, verify=verify
            )
        except Exception as e:  # requests lets some errors of urllib3 and of the socket through
            session.close()
            raise _explain(e) from e
        raw: Any = response.raw
        # read1 returns what has arrived; plain read waits for all it was asked for, so there ask for little.
        read = raw.read1 if hasattr(raw, "read1") else lambda limit: raw.read(min(limit, 16384))

        def close() -> None:
            response.close()
            session.close()

        return Reply(
            response.status_code, {k.lower(): v for k, v in response.headers.items()}, url, read, close
        )


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


class UrllibTransport:
    """The standard library only, for a machine that has torch and nothing else."""

    name = "urllib"

    def get(self, url: str, headers: Mapping[str, str], timeout: float) -> Reply:
        """Send the request; see :class:`Transport`."""
        try:
            url, authorization = _split_credentials(url)
            request = urllib.request.Request(url, headers={**headers, **authorization})
            opener = urllib.request.build_opener(_NoRedirect())
            if urlsplit(url).scheme == "https":  # reading the system's certificates takes its time
                opener = urllib.request.build_opener(
                    _NoRedirect(), urllib.request.HTTPSHandler(context=_ssl_context())
                )
            try:
                response: Any = opener.open(request, timeout=timeout)
            except urllib.error.HTTPError as e:
                response = e  # an answer like any other: it has a status, headers and a body
        except Exception as e:  # OSError, HTTPException, ValueError: all explained, unknown ones raised again
            raise _explain(e) from e
        headers_in = {k.lower(): v for k, v in response.headers.items()}
        return Reply(
            response.status if response.status is not None else 0,
            headers_in,
            url,
            response.read1,
            response.close,
        )


def default_transport() -> Transport:
    """Return requests' transport where requests can be imported, else the standard library's."""
    try:
        import requests  # noqa: F401
    except Exception:  # noqa: BLE001 - a broken installation of it is none
        return UrllibTransport()
    return RequestsTransport()


def open_url(transport: Transport, url: str, headers: Mapping[str, str], timeout: float) -> Reply:
    """Send a GET and follow redirects.

    Args:
        transport: how.
        url: http or https.
        headers: sent on every hop; they hold no secrets.
        timeout: seconds for the connection, and for every wait for data.

    Raises:
        FetchFailure: no answer, or a redirect that is refused (to http from https, to another scheme, or too
            many).
    """
    for _ in range(MAX_REDIRECTS + 1):
        reply = transport.get(url, headers, timeout)
        if reply.status not in _REDIRECTS:
            return reply
        reply.close()
        url = redirect_target(url, reply.headers.get("location"))
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


def _split_credentials(url: str) -> tuple[str, dict[str, str]]:
    """Turn ``https://user:password@host/`` into the bare address and a header, as requests does."""
    parts = urlsplit(url)
    if parts.username is None:
        return url, {}
    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
    bare = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    return bare, {"Authorization": "Basic " + base64.b64encode(pair).decode("ascii")}


def _ssl_context() -> ssl.SSLContext:
    for name in _CA_VARIABLES:
        path = os.environ.get(name)
        if path:
            if os.path.isdir(path):
                return ssl.create_default_context(capath=path)
            return ssl.create_default_context(cafile=path)
    return ssl.create_default_context()


def _explain(error: Exception) -> FetchFailure:
    """Sort an error of either library by its cause. The same fault must read the same through both.

    The libraries wrap the socket's own error several times over, so the whole chain is looked at.
    """
    if isinstance(error, FetchFailure):
        return error
    chain = _causes(error)
    names = {base.__name__ for e in chain for base in type(e).__mro__}
    exact = {type(e).__name__ for e in chain}  # urllib3 derives other failures from its ConnectTimeoutError
    root = chain[-1]
    text = shown_reason(str(root)) or type(root).__name__
    for e in chain:
        if isinstance(e, ssl.SSLCertVerificationError):
            return FetchFailure(
                f"certificate refused: {e.verify_message}; set REQUESTS_CA_BUNDLE to your site's CA file"
            )
    timed_out = any(isinstance(e, TimeoutError) for e in chain)
    # urllib wraps in URLError what goes wrong before the request is out, and nothing later.
    if exact & {"ConnectTimeoutError", "ConnectTimeout"} or (timed_out and "URLError" in names):
        return FetchFailure("timed out while connecting", retry=True, unreachable=True)
    if "NameResolutionError" in names or any(isinstance(e, socket.gaierror) for e in chain):
        return FetchFailure("the host name cannot be resolved", retry=True, unreachable=True)
    if timed_out or "ReadTimeoutError" in names:
        return FetchFailure("timed out while waiting for data", retry=True)
    if any(isinstance(e, ConnectionRefusedError) for e in chain):
        return FetchFailure("connection refused", retry=True, unreachable=True)
    if "ProxyError" in names or "NewConnectionError" in names:
        return FetchFailure(f"no connection: {text}", retry=True, unreachable=True)
    if any(isinstance(e, http.client.IncompleteRead) for e in chain) or "IncompleteRead" in names:
        return FetchFailure("the transfer broke off", retry=True)
    if any(isinstance(e, ConnectionError) for e in chain):
        return FetchFailure("the connection was reset", retry=True)
    if isinstance(error, ValueError) or names & {
        "InvalidURL",
        "InvalidSchema",
        "InvalidHeader",
        "LocationParseError",
    }:
        return FetchFailure(f"not a usable address or setting ({type(root).__name__})")
    if (
        isinstance(error, (OSError, http.client.HTTPException))
        or "HTTPError" in names
        or "RequestException" in names
    ):
        return FetchFailure(f"{type(root).__name__}: {text}", retry=True)
    raise error


def _causes(error: BaseException) -> list[BaseException]:
    """Return an error and everything it wraps, outermost first."""
    chain: list[BaseException] = []
    todo: list[object] = [error]
    while todo and len(chain) < 20:
        item = todo.pop(0)
        if isinstance(item, BaseException) and item not in chain:
            chain.append(item)
            todo += [item.__cause__, item.__context__, getattr(item, "reason", None), *item.args]
    return chain
