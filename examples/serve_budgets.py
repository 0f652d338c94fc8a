"""What all requests to serve.py share, and how it is handed out: memory for uploads, turns, pixels."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

import anyio
from starlette.exceptions import HTTPException

MAX_WAIT_SECONDS = 5  # for other requests
MAX_BYTES_AT_ONCE = 256 << 20  # of all uploads, as far as they have come: a slow one holds next to nothing
MAX_PIXELS_AT_ONCE = 64_000_000  # of all images in work: beside the largest there is room for a photo


def busy() -> HTTPException:
    """Return a new refusal: one that is raised again and again would keep every request's frames."""
    return HTTPException(503, "too many images at once; try again", {"Retry-After": "1"})


class Memory:
    """Bytes that all uploads share; who wants more than are left is turned away, which frees others."""

    def __init__(self, left: int) -> None:
        self.left = left

    @contextlib.contextmanager
    def take(self, amount: int) -> Iterator[None]:
        """Take some for a while."""
        if self.left < amount:
            raise busy()
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
            raise busy() from e
        try:
            yield
        finally:
            async with self.changed:
                self.left += amount
                self.changed.notify_all()
