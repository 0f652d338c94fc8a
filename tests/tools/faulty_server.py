"""A real HTTP server on this machine that misbehaves on request.

Each path has a plan: a list of behaviours, one for each request; the last one is used for all further
requests. A behaviour is a function that is given the request and the true content of the file, and answers as
badly as it likes.
"""

from __future__ import annotations

import contextlib
import http.server
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

ETAG = '"v1"'


@dataclass
class Seen:
    """What one request asked for and what it got."""

    path: str
    headers: dict[str, str]
    status: int = 0
    sent: int = 0


@dataclass
class Request:
    """A request to be answered."""

    handler: http.server.BaseHTTPRequestHandler
    content: bytes
    seen: Seen
    release: threading.Event = field(default_factory=threading.Event)

    def head(self, status: int, headers: dict[str, object] | None = None) -> None:
        self.seen.status = status
        self.handler.send_response(status)
        for name, value in (headers or {}).items():
            self.handler.send_header(name, str(value))
        self.handler.send_header("Connection", "close")
        self.handler.end_headers()

    def body(self, data: bytes) -> None:
        self.seen.sent += len(data)  # before the client can see the last of it and look here
        self.handler.wfile.write(data)
        self.handler.wfile.flush()

    def start(self) -> int:
        """Return where a requested range begins, or 0."""
        text = self.seen.headers.get("range", "")
        condition = self.seen.headers.get("if-range", ETAG)
        return int(text.removeprefix("bytes=").rstrip("-")) if text and condition == ETAG else 0


Behaviour = Callable[[Request], None]


def good(request: Request) -> None:
    """Answer as a proper server: with an ETag, and with a range where one is asked for."""
    part(len(request.content))(request)


def part(count: int, *, then: Behaviour | None = None) -> Behaviour:
    """Announce the whole file, send its first ``count`` bytes, then close (or do ``then``)."""

    def answer(request: Request) -> None:
        start, total = request.start(), len(request.content)
        headers: dict[str, object] = {"ETag": ETAG, "Content-Length": total - start}
        if start:
            headers["Content-Range"] = f"bytes {start}-{total - 1}/{total}"
        request.head(206 if start else 200, headers)
        request.body(request.content[start : max(start, count)])
        if then is not None:
            then(request)

    return answer


def hang(request: Request) -> None:
    """Send nothing more until the server stops."""
    request.release.wait(600)


def reset(request: Request) -> None:
    """Drop the connection the hard way."""
    connection = request.handler.connection
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def drip(request: Request) -> None:
    """Send a byte now and then: each arrives in time, and yet nothing gets done."""
    rest = request.content[request.seen.sent :]
    for value in rest:
        if request.release.wait(0.03):
            return
        request.body(bytes([value]))


def status(code: int, **headers: object) -> Behaviour:
    """Answer with a status and a short page; ``Retry_After=1`` becomes the header Retry-After."""

    def answer(request: Request) -> None:
        page = b"<html><body>no</body></html>"
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        request.head(code, {"Content-Length": len(page), **named})
        request.body(page)

    return answer


def content(data: bytes, kind: str = "application/octet-stream") -> Behaviour:
    """Answer 200 with these bytes instead of the file."""

    def answer(request: Request) -> None:
        request.head(200, {"Content-Length": len(data), "Content-Type": kind})
        request.body(data)

    return answer


def without_ranges(request: Request) -> None:
    """Ignore a requested range and send everything."""
    request.head(200, {"Content-Length": len(request.content)})
    request.body(request.content)


def wrong_range(request: Request) -> None:
    """Answer a range with one that begins elsewhere."""
    total = len(request.content)
    request.head(206, {"Content-Range": f"bytes 0-{total - 1}/{total}", "Content-Length": total})
    request.body(request.content)


def chunked(count: int | None = None, *, data: bytes | None = None) -> Behaviour:
    """Send the file (or ``data``) in chunks without a length; break off after ``count`` bytes if given."""

    def answer(request: Request) -> None:
        whole = request.content if data is None else data
        request.head(200, {"Transfer-Encoding": "chunked"})
        for start in range(0, len(whole) if count is None else count, 10000):
            piece = whole[start : start + 10000]
            request.body(b"%x\r\n" % len(piece) + piece + b"\r\n")
        if count is None:
            request.body(b"0\r\n\r\n")

    return answer


def until_close(count: int | None = None) -> Behaviour:
    """Send the file, or its first ``count`` bytes, with neither a length nor chunks, as old servers do."""

    def answer(request: Request) -> None:
        request.head(200)
        request.body(request.content[:count])

    return answer


class FaultyServer:
    """Serves ``files`` (by path, without the leading slash) according to ``plans``.

    Attributes:
        url: base address.
        seen: all requests so far, in order.
    """

    def __init__(self, files: dict[str, bytes], certificate: Path | None = None) -> None:
        self.files = files
        self.plans: dict[str, list[Behaviour]] = {}
        self.seen: list[Seen] = []
        self._lock = threading.Lock()
        self._release = threading.Event()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer._answer(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

            def handle_error(self, request: object, client_address: object) -> None:
                pass  # clients that go away in the middle are what this is for

        self._server = Server(("127.0.0.1", 0), Handler)
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self.url = f"{'https' if certificate else 'http'}://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def plan(self, path: str, *behaviours: Behaviour) -> str:
        """Set what happens at a path, and return its address."""
        self.plans[path] = list(behaviours)
        return f"{self.url}/{path}"

    def _answer(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        path = handler.path.split("://", 1)[-1].partition("/")[
            2
        ]  # also as a proxy, which is asked for a whole URL
        seen = Seen(handler.path, {name.lower(): value for name, value in handler.headers.items()})
        with self._lock:
            self.seen.append(seen)
            plan = self.plans.get(path, [])
            behaviour = plan.pop(0) if len(plan) > 1 else plan[0] if plan else None
        handler.close_connection = True
        name = path.rpartition("/")[2]
        request = Request(handler, self.files.get(name, b""), seen, self._release)
        if behaviour is None:
            behaviour = good if name in self.files else status(404)
        behaviour(request)

    def wait_until(self, condition: Callable[[], bool], timeout_s: float = 300.0) -> None:
        """Wait for something that a client of this server does."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError("it did not happen")
            time.sleep(0.01)

    def close(self) -> None:
        self._release.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextlib.contextmanager
def faulty_server(files: dict[str, bytes], certificate: Path | None = None) -> Iterator[FaultyServer]:
    """Run a server for the length of a ``with`` block."""
    server = FaultyServer(files, certificate)
    try:
        yield server
    finally:
        server.close()
