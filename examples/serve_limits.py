"""The limits of serve.py: connections end, uploads are small, and what all requests share is handed out."""

from __future__ import annotations

import asyncio
import contextlib
import io
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
from PIL import Image
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from uvicorn.protocols.http.h11_impl import H11Protocol

KINDS = ("jpeg", "png", "webp", "gif", "bmp")  # Pillow's names, and those of media types
MAX_BYTES, MAX_PIXELS = 12 << 20, 50_000_000  # of one image
MAX_PIXELS_AT_ONCE = 64_000_000  # of all images in work: beside the largest there is room for a photo
MAX_SECONDS = 20  # of an upload, and of a connection that has no request in work
MAX_WAIT_SECONDS = 5  # for others
Image.MAX_IMAGE_PIXELS = None  # opened() has a limit of its own, which is an answer and not a warning


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


class Budget:
    """An amount that all requests share."""

    def __init__(self, left: int) -> None:
        self.left, self.changed = left, asyncio.Condition()

    @contextlib.asynccontextmanager
    async def take(self, amount: int) -> AsyncIterator[None]:
        """Take some for a while, once there is enough; a request that waits too long for it is turned away."""
        try:
            with anyio.fail_after(MAX_WAIT_SECONDS):
                async with self.changed:
                    await self.changed.wait_for(lambda: self.left >= amount)
                    self.left -= amount
        except TimeoutError as e:
            raise HTTPException(503, "too many images at once; try again", {"Retry-After": "1"}) from e
        try:
            yield
        finally:
            async with self.changed:
                self.left += amount
                self.changed.notify_all()


async def received(request: Request) -> bytes:
    """Return the body of a request."""
    body = bytearray()
    try:
        with anyio.fail_after(MAX_SECONDS):
            async for part in request.stream():
                body += part
                if len(body) > MAX_BYTES:
                    raise HTTPException(413, f"the file is larger than {MAX_BYTES >> 20} MB")
    except TimeoutError as e:
        raise HTTPException(408, f"the upload took longer than {MAX_SECONDS} s") from e
    except ClientDisconnect as e:
        raise HTTPException(400, "the upload broke off") from e
    return bytes(body)


def opened(body: bytes) -> Image.Image:
    """Return the image in an upload, of which only the header is read: load() unpacks it."""
    with refusing_damage():
        image = Image.open(io.BytesIO(body), formats=KINDS)
    if image.width * image.height > MAX_PIXELS:
        raise HTTPException(413, f"the image has more than {MAX_PIXELS // 10**6} million pixels")
    return image


@contextlib.contextmanager
def refusing_damage() -> Iterator[None]:
    """Refuse what Pillow cannot read."""
    try:
        yield
    except Exception as e:  # Pillow's decoders raise nearly anything
        raise HTTPException(400, "this is no image, or a damaged one") from e
