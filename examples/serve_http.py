"""The HTTP side of serve.py: limits, status codes, an orderly end. Standard library and Pillow.

GET / is the page, GET /health says that the service is up, POST /classify takes a picture as its body.
Refused with {"error": ...}: 400 damaged, 404 no such address, 408 too slow, 411 no length, 413 too large,
415 no picture, 503 too many at once. There is neither TLS nor a login: those belong in front of it.
"""

from __future__ import annotations

import contextlib
import io
import json
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from PIL import Image

KINDS = ("jpeg", "png", "webp", "gif", "bmp")  # Pillow's names, and those of media types
MAX_BYTES, MAX_PIXELS = 12 << 20, 50_000_000
MAX_SECONDS = 20  # for an upload
MAX_CONNECTIONS = 64  # those beyond wait until one ends
PAGE = Path(__file__).with_name("serve_page.html")
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src blob: data:; "
POLICY += "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


class Refused(Exception):
    """A request that is answered by a status and a reason."""


class Server(ThreadingHTTPServer):
    """A thread a connection, up to a number; those that run are waited for at the end."""

    daemon_threads = False
    request_queue_size = MAX_CONNECTIONS

    def __init__(self, address: tuple[str, int], classify: Callable[..., Any], name: str, at_once: int):
        self.classify, self.net_name, self.page = classify, name, PAGE.read_bytes()
        self.free, self.connections = threading.Semaphore(at_once), threading.Semaphore(MAX_CONNECTIONS)
        super().__init__(address, Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Take a connection, once there are few enough."""
        self.connections.acquire()
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer it, in a thread of its own."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.connections.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Report what went wrong; those who hang up are no error of ours."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """Answers one request, then closes the connection."""

    server: Server
    protocol_version = "HTTP/1.1"  # senders of large files ask for leave first
    server_version, sys_version = "proxylessnas", ""
    timeout = 5  # seconds of silence

    def do_GET(self) -> None:
        """Answer the page and the health check."""
        if self.path == "/":
            self.reply(200, self.server.page, "text/html; charset=utf-8")
        elif self.path == "/health":
            limits = {"types": [f"image/{kind}" for kind in KINDS], "max_bytes": MAX_BYTES}
            self.reply(200, {"status": "ok", "net": self.server.net_name, **limits})
        else:
            self.reply(404, {"error": f"nothing is at {self.path}"})

    do_HEAD = do_GET

    def do_POST(self) -> None:
        """Answer a picture."""
        try:
            self.reply(200, self.classified())
        except Refused as e:
            self.reply(e.args[0], {"error": e.args[1]})
            self.drain()

    def classified(self) -> dict[str, Any]:
        """Return the answer to the picture in this request."""
        if self.path != "/classify":
            raise Refused(404, f"nothing is at {self.path}")
        if self.headers.get_content_type() not in [f"image/{kind}" for kind in KINDS]:
            raise Refused(415, f"send a picture ({', '.join(KINDS)}) as the body, with its Content-Type")
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            raise Refused(411, "the request says no Content-Length")
        if len(length) > 12 or int(length) > MAX_BYTES:
            raise Refused(413, f"the file is larger than {MAX_BYTES >> 20} MB")
        if not self.server.free.acquire(blocking=False):
            raise Refused(503, "too many pictures at once; try again in a moment")
        try:
            picture = decoded(self.received(int(length)))
            return {**self.server.classify(picture), "width": picture.width, "height": picture.height}
        finally:
            self.server.free.release()

    def received(self, length: int) -> bytes:
        """Return the body."""
        body, end = bytearray(), time.monotonic() + MAX_SECONDS
        while len(body) < length:
            part = self.rfile.read1(length - len(body))
            if not part:
                raise Refused(400, "the upload broke off")
            if time.monotonic() > end:
                raise Refused(408, f"the upload took longer than {MAX_SECONDS} s")
            body += part
        return bytes(body)

    def reply(self, status: int, body: bytes | dict[str, Any], kind: str = "application/json") -> None:
        """Send an answer; it is the last on this connection."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode() + b"\n"
        self.send_response(status)
        headers = {"Content-Type": kind, "Content-Length": str(len(data)), "Connection": "close"}
        headers |= {"X-Content-Type-Options": "nosniff", "Content-Security-Policy": POLICY}
        headers |= {"Cache-Control": "no-store"} | ({"Retry-After": "1"} if status == 503 else {})
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuse other methods and broken requests, which the base class finds, as all else is refused."""
        self.close_connection = True
        self.reply(code, {"error": message or self.responses[code][0]})

    def drain(self) -> None:
        """Take in the rest of a refused upload: otherwise its sender sees a reset instead of the answer."""
        end = time.monotonic() + self.timeout
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            while time.monotonic() < end and self.rfile.read1(1 << 16):
                pass


def decoded(body: bytes) -> Image.Image:
    """Return the picture in an upload, without unpacking one that is far too large."""
    try:
        picture = Image.open(io.BytesIO(body), formats=KINDS)
        if picture.width * picture.height > MAX_PIXELS:
            raise Refused(413, f"the picture has more than {MAX_PIXELS // 10**6} million pixels")
        picture.load()
    except Refused:
        raise
    except Exception as e:  # Pillow's decoders raise nearly anything
        raise Refused(400, "this is no picture, or a damaged one") from e
    return picture


def serve(classify: Callable[..., Any], name: str, host: str, port: int, at_once: int) -> None:
    """Answer requests until SIGTERM or Ctrl-C; those that run then are finished."""
    Image.MAX_IMAGE_PIXELS = None  # decoded() has a limit of its own, which is an answer and not a warning
    try:
        server = Server((host, port), classify, name, at_once)
    except (OSError, OverflowError) as e:
        sys.exit(f"error: cannot serve at {host}, port {port}: {e}")
    with server:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: threading.Thread(target=server.shutdown).start())
        print(f"{name} is served at http://{host}:{server.server_port}", flush=True)
        server.serve_forever(poll_interval=0.1)
    print("stopped", flush=True)
