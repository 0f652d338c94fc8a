"""What serve.py takes: one image as the body of a request, in steps, each of which refuses what is wrong.

Refusals are {"error": ...}: 400 damaged, 404, 405, 408 too slow, 413 too large, 415 no image, 503 too many.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import anyio
from PIL import Image
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse

KINDS = ("jpeg", "png", "webp", "gif", "bmp")  # Pillow's names, and those of media types
TYPES = [f"image/{kind}" for kind in KINDS]
MAX_BYTES, MAX_PIXELS, STEP = 12 << 20, 50_000_000, 1 << 16
PAGE = Path(__file__).with_name("serve_page.html")
MAX_SECONDS = 20
LIMITS = {"types": TYPES, "max_bytes": MAX_BYTES}  # that clients are told
DAMAGED = "this is no image, or a damaged one"
Image.MAX_IMAGE_PIXELS = None  # opened() has a limit of its own, which is an answer and not a warning


def check_type(request: Request) -> None:
    """Refuse a request that does not say that it brings an image."""
    if request.headers.get("Content-Type", "").partition(";")[0].strip().lower() not in TYPES:
        raise HTTPException(415, f"send an image ({', '.join(KINDS)}) as the body, with its Content-Type")


def page(_: Request) -> FileResponse:
    """Return the page to drop images on."""
    return FileResponse(PAGE)


async def received(request: Request, keep: Callable[[int], None]) -> bytes:
    """Return the body of a request; ``keep`` is asked for each further step of memory, and may refuse it."""
    check_type(request)
    body, kept = bytearray(), 0
    try:
        with anyio.fail_after(MAX_SECONDS):
            async for part in request.stream():
                if len(body) + len(part) > MAX_BYTES:
                    raise HTTPException(413, f"the file is larger than {MAX_BYTES >> 20} MB")
                while kept < len(body) + len(part):
                    keep(STEP)
                    kept += STEP
                body += part
    except TimeoutError as e:
        raise HTTPException(408, f"the upload took longer than {MAX_SECONDS} s") from e
    except ClientDisconnect as e:
        raise HTTPException(400, "the upload broke off") from e
    return bytes(body)


def opened(body: bytes) -> Image.Image:
    """Return the image in an upload, of which only the header is read."""
    try:
        image = Image.open(io.BytesIO(body), formats=KINDS)
    except Exception as e:  # Pillow's decoders raise nearly anything
        raise HTTPException(400, DAMAGED) from e
    if image.width * image.height > MAX_PIXELS:
        raise HTTPException(413, f"the image has more than {MAX_PIXELS // 10**6} million pixels")
    return image


def unpacked(image: Image.Image) -> Image.Image:
    """Return an opened image with its pixels."""
    try:
        image.load()
    except Exception as e:
        raise HTTPException(400, DAMAGED) from e
    return image
