"""What keeps serve.py up: connections end, and what all requests share is handed out; uvicorn's settings."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
from starlette.exceptions import HTTPException
from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_SECONDS = 10  # of a connection that has no request in work
MAX_WAIT_SECONDS = 5  # for other requests
MAX_BYTES_AT_ONCE = 256 << 20  # of all uploads, as far as they have come: a slow one holds next to nothing
MAX_PIXELS_AT_ONCE = 64_000_000  # of all images in work: beside the largest there is room for a photo
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src blob: data:; "
POLICY += "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


class Connection(H11Protocol):
    """A connection with an end: uvicorn by itself waits for ever for the headers of a request."""

    def connection_made(self, transport: Any) -> None:
        """Set the end; a request that is then in work is answered first."""
        super().connection_made(transport)
        self.end = self.loop.call_later(MAX_SECONDS, self.shutdown)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the end."""
        self.end.cancel()
        super().connection_lost(exc)


BUSY = HTTPException(503, "too many images at once; try again", {"Retry-After": "1"})


class Memory:
    """Bytes that all uploads share; who wants more than are left is turned away, which frees others."""

    def __init__(self, left: int) -> None:
        self.left = left

    @contextlib.contextmanager
    def take(self, amount: int) -> Iterator[None]:
        """Take some for a while."""
        if self.left < amount:
            raise BUSY
        self.left -= amount
        try:
            yield
        finally:
            self.left += amount


class Budget:
    """An amount that all requests share."""

    def __init__(self, left: int) -> None:
        self.left, self.changed = left, asyncio.Condition()

    @contextlib.asynccontextmanager
    async def take(self, amount: int) -> AsyncIterator[None]:
        """Take some for a while, once there is enough; who waits too long for it is turned away."""
        try:
            with anyio.fail_after(MAX_WAIT_SECONDS):
                async with self.changed:
                    await self.changed.wait_for(lambda: self.left >= amount)
                    self.left -= amount
        except TimeoutError as e:
            raise BUSY from e
        try:
            yield
        finally:
            async with self.changed:
                self.left += amount
                self.changed.notify_all()


SETTINGS: dict[str, Any] = {  # of uvicorn
    "http": Connection,
    "ws": "none",
    "lifespan": "off",
    "limit_concurrency": 500,  # connections; with more, every request is answered 503
    "timeout_keep_alive": 5,
    "timeout_graceful_shutdown": 30,  # an upload, its turn and the work
    "access_log": False,
    "log_level": "warning",
    "server_header": False,
    "headers": [
        ("Content-Security-Policy", POLICY),
        ("X-Content-Type-Options", "nosniff"),
        ("Cache-Control", "no-store"),
    ],
}
