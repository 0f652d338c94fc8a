"""Read any photo people really have into an upright 8-bit RGB image.

Cameras, scanners and web sites write grey, palette, transparent, CMYK, 16-bit and rotated files; a model
wants plain RGB. Everything that can go wrong with a file ends as an :class:`~proxylessnas.errors.ImageError`
that names it. Pillow is imported when an image is read, not before.
"""

from __future__ import annotations

import importlib.util
import io
import math
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import IO, TYPE_CHECKING, Any

from ..errors import ImageError, MissingExtraError, first_line, needs
from ..utils.files import open_file

if TYPE_CHECKING:
    import torch
    from PIL import Image

#: File name endings that folders are searched for (lower case).
EXTENSIONS = frozenset(
    f".{ending}"
    for ending in "jpg jpeg jpe jfif mpo png gif bmp dib webp avif tif tiff ppm pgm pbm pnm jp2 j2k".split()
)

HEIF_EXTENSIONS = frozenset({".heic", ".heif", ".hif"})  # read where pillow-heif is installed
#: File name endings of images that are not read (lower case): these are never passed over, but fail.
UNREAD_EXTENSIONS = HEIF_EXTENSIONS | {
    f".{ending}"
    for ending in "cr2 cr3 crw nef nrw arw sr2 srf dng orf rw2 raf pef srw x3f 3fr iiq erf mrw kdc raw "
    "svg svgz psd psb xcf jxl exr hdr tga dcm".split()
}

# Only formats that Pillow decodes itself. EPS, for one, would run Ghostscript on a file from anywhere.
# (MPO files, which phones write, are opened as JPEG.)
_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "DIB", "WEBP", "AVIF", "TIFF", "PPM", "JPEG2000", "HEIF")

# warnings.catch_warnings() swaps process-wide filters; two threads in it at once could leave them changed.
_WARNINGS_LOCK = threading.Lock()

_DRAFT_SIDE = 2048  # px: a huge JPEG is decoded at the least scale that leaves its shorter side this long
_ORIENTATION = 0x0112  # EXIF tag: how the stored image has to be turned to stand upright
_BITS_PER_SAMPLE = 258  # TIFF tag
_STRIP_PIXELS = 1 << 22  # converted at once
_REDUCE_PIXELS, _REDUCE_SHORT = 16_000_000, 1024  # larger is reduced, but not to a shorter side than this


def load_image(source: str | os.PathLike[str] | IO[bytes]) -> Image.Image:
    """Return the image in a file, upright, as 8-bit RGB.

    EXIF rotation is applied, transparency is laid on white, CMYK becomes RGB, 16-bit and floating-point grey
    is scaled to 8 bits, and of an animation the first frame is taken. A JPEG of more pixels than
    ``PIL.Image.MAX_IMAGE_PIXELS`` (89 million) is decoded at 1/2, 1/4 or 1/8 of its sides. HEIC is read where
    pillow-heif is installed.

    Args:
        source: a path, or an open binary file (left open).

    Returns:
        A ``PIL.Image.Image`` of mode ``RGB`` without metadata.

    Raises:
        ImageError: no such file, a folder, empty, not an image, damaged or truncated, or a decompression bomb
            (more than twice ``PIL.Image.MAX_IMAGE_PIXELS`` pixels, at which Pillow refuses).
        MissingExtraError: Pillow is not installed.
    """
    if isinstance(source, (str, os.PathLike)):
        name = os.fspath(source)
        with _open_path(name) as file:
            return _decode(file, name)
    name = str(getattr(source, "name", "image data"))
    return _decode(source, name)


def to_rgb(image: Image.Image) -> Image.Image:
    """Return a Pillow image of any mode as upright 8-bit RGB (the second half of :func:`load_image`).

    Raises:
        ImageError: the colour mode cannot be shown as RGB.
    """
    image.load()  # first: Pillow turns TIFFs itself here, and PNGs may hold their EXIF behind the pixels
    if image.mode == "RGB" and not image.info:  # done before: an EXIF rotation would be in there
        return image
    turn = _turn(image)
    rgb = _rgb(image)
    if turn is not None:
        rgb = rgb.transpose(turn)
    rgb.info = {}  # the rotation is done: nobody may apply it again
    return rgb


def pixels_of(image: Image.Image) -> torch.Tensor:
    """Return an RGB image of Pillow as a tensor, uint8 [3, H, W]."""
    import torch

    pixels = torch.empty(3, image.height, image.width, dtype=torch.uint8)
    for top, bottom, part in _strips(image):
        values = torch.frombuffer(bytearray(part.tobytes()), dtype=torch.uint8)
        pixels[:, top:bottom] = values.view(-1, image.width, 3).permute(2, 0, 1)
    return pixels


def _pillow() -> Any:
    with needs("pillow", "reading images"):
        import PIL.Image
    return PIL.Image


def _open_path(name: str) -> IO[bytes]:
    """Open a file that could hold an image; a folder or a device is refused with its reason."""
    try:
        return open_file(name)
    except IsADirectoryError as e:
        raise ImageError(f"{name}: is a folder, not an image") from e
    except FileNotFoundError as e:
        raise ImageError(f"{name}: no such file") from e
    except PermissionError as e:
        raise ImageError(f"{name}: permission denied") from e
    except OSError as e:
        raise ImageError(f"{name}: cannot be opened ({(e.strerror or str(e)).lower()})") from e


def _decode(file: IO[bytes], name: str) -> Image.Image:
    pil = _pillow()
    try:
        if not file.seekable():
            file = io.BytesIO(file.read())
        start = file.tell()
        head = file.read(512)
        file.seek(start)
    except (OSError, ValueError, AttributeError) as e:
        raise ImageError(f"{name}: cannot be read ({e})") from e
    if not head:
        raise ImageError(f"{name}: the file is empty")

    try:
        image = _open_header(pil, file)
        if _reduced(image):
            try:
                return to_rgb(image)
            except OSError:  # fewer resolutions in it than asked for
                file.seek(start)
                image = _open_header(pil, file)
        width, height = image.size
        if pil.MAX_IMAGE_PIXELS is not None and width * height > pil.MAX_IMAGE_PIXELS:
            side = min(width, height, _DRAFT_SIDE)
            image.draft(None, (side, side))  # JPEGs alone can be decoded smaller
        return to_rgb(image)
    except ImageError as e:
        raise ImageError(f"{name}: {e}") from e
    except MissingExtraError:
        raise
    except pil.DecompressionBombError as e:
        limit = 2 * (pil.MAX_IMAGE_PIXELS or 0) / 1e6
        raise ImageError(
            f"{name}: more than {limit:.0f} million pixels (a decompression bomb?); refused: shrink it, or "
            "in Python raise PIL.Image.MAX_IMAGE_PIXELS, which is half of that"
        ) from e
    except pil.UnidentifiedImageError as e:
        raise ImageError(f"{name}: {_what_it_is(head)}") from e
    except MemoryError as e:
        raise ImageError(f"{name}: not enough memory to decode it") from e
    except Exception as e:  # Pillow's decoders raise nearly anything on a damaged file
        raise ImageError(f"{name}: damaged or truncated image ({first_line(e)})") from e


def _open_header(pil: Any, file: IO[bytes]) -> Image.Image:
    def opened() -> Image.Image:
        image: Image.Image = pil.open(file, formats=[name for name in _FORMATS if name in pil.OPEN])
        return image

    # Opening reads the header only, so holding the lock costs next to nothing.
    with _WARNINGS_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pil.preinit()  # the common formats; the rest is slow to load and rarely met
        try:
            return opened()
        except pil.UnidentifiedImageError:
            pil.init()
            if heif_is_read() and "HEIF" not in pil.OPEN:
                with needs("pillow-heif", "reading HEIC photos"):
                    import pillow_heif  # type: ignore[import-not-found,unused-ignore]

                    pillow_heif.register_heif_opener()
            return opened()


def heif_is_read() -> bool:
    """Return whether HEIC photos are read, as pillow-heif is installed."""
    return importlib.util.find_spec("pillow_heif") is not None


def _reduced(image: Image.Image) -> bool:
    """Have a very large JPEG 2000 file decoded at a lower one of its resolutions; each takes a quarter.

    It is by far the slowest format: the largest image that is let in takes a minute.
    """
    levels, short = 0, min(image.size)
    while image.width * image.height >> 2 * levels > _REDUCE_PIXELS and short >> levels + 1 >= _REDUCE_SHORT:
        levels += 1
    if image.format != "JPEG2000" or not levels:
        return False
    image.reduce = levels  # type: ignore[method-assign,assignment]
    return True


def _what_it_is(head: bytes) -> str:
    """Return why these first bytes are not an image, as precisely as they allow."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head")):
        return "is a web page (HTML), not an image; the download probably failed"
    if text.startswith((b"<svg", b"<?xml")):
        return "is a vector drawing or XML, not a photo"
    if head.startswith(b"%PDF"):
        return "is a PDF, not an image"
    if head[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypmsf1", b"ftyphevc"):
        return "is a HEIC/HEIF photo: pip install pillow-heif, or convert it to JPEG or PNG first"
    return "is not an image, or of a kind that is not supported"


def _turn(image: Image.Image) -> Image.Transpose | None:
    """Return what makes the image upright; metadata that cannot be read counts as "upright"."""
    try:
        with _WARNINGS_LOCK, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # noqa: BLE001 - damaged EXIF must not stop an image that is fine
        return None
    t = _pillow().Transpose
    turns = (
        t.FLIP_LEFT_RIGHT, t.ROTATE_180, t.FLIP_TOP_BOTTOM, t.TRANSPOSE, t.ROTATE_270, t.TRANSVERSE,
        t.ROTATE_90,
    )  # fmt: skip
    return turns[orientation - 2] if isinstance(orientation, int) and 2 <= orientation <= 8 else None


def _strips(image: Image.Image) -> Iterator[tuple[int, int, Image.Image]]:
    """Yield (first row, row after the last, part) of an image, so that copies are only ever of a part."""
    rows = max(1, _STRIP_PIXELS // max(1, image.width))
    for top in range(0, image.height, rows):
        bottom = min(image.height, top + rows)
        yield top, bottom, image if rows >= image.height else image.crop((0, top, image.width, bottom))


def _rgb(image: Image.Image) -> Image.Image:
    mode = image.mode
    if mode.startswith("I;16") or mode in ("I", "F"):
        convert = _to_eight_bits(image)
    elif mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        convert = _on_white
    else:
        try:
            return image.convert("RGB")
        except ValueError as e:
            raise ImageError(f"images in colour mode {mode} are not supported") from e
    rgb: Image.Image = _pillow().new("RGB", image.size)
    for top, _, part in _strips(image):
        rgb.paste(convert(part), (0, top))
    return rgb


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode in ("RGBa", "La"):  # premultiplied alpha: Pillow converts it only to its straight form
        image = image.convert({"RGBa": "RGBA", "La": "LA"}[image.mode])
    rgba = image.convert("RGBA")
    white: Image.Image = _pillow().new("RGBA", rgba.size, (255, 255, 255, 255))
    white.alpha_composite(rgba)
    return white.convert("RGB")


def _to_eight_bits(image: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """Return what makes 8-bit RGB of 16-bit, 32-bit or floating-point grey, or of a part of it.

    16 bits hold 0 to 65535 by definition. For 32-bit and floating-point files the range in use tells which of
    the customary scales (0 to 1, 0 to 255, 0 to 65535) was meant; anything else is stretched from its least
    to its greatest value.
    """
    shift = 0.0
    if image.mode.startswith("I;16"):
        bits = (getattr(image, "tag_v2", None) or {}).get(_BITS_PER_SAMPLE, (16,))
        top = 4095.0 if tuple(bits)[:1] == (12,) else 65535.0
    else:
        extrema: Any = image.getextrema()  # a pair of numbers, as there is one channel
        low, high = extrema
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ImageError("holds values that are not finite numbers")
        if image.mode == "F" and low >= 0 and high <= 1:
            top = 1.0
        elif low >= 0 and high <= 65535:
            top = 255.0 if high <= 255 else 65535.0
        else:
            shift, top = -float(low), max(float(high) - float(low), 1e-30)
    scale = 255.0 / top

    def convert(part: Image.Image) -> Image.Image:
        deep = part.convert("I") if part.mode.startswith("I;16") else part
        # Pillow truncates on the way to 8 bits, hence the half; its point() takes only `x * scale + offset`.
        grey = deep.convert("F").point(lambda x: x * scale + (shift * scale + 0.5)).convert("L")
        return grey.convert("RGB")

    return convert
