"""Every kind of image file ends as the right upright RGB pixels, or as one clear error."""

from __future__ import annotations

import io
import os
import random
import struct
import threading
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageChops, features

from proxylessnas.data import images
from proxylessnas.data.images import EXTENSIONS, load_image, to_rgb
from proxylessnas.data.transforms import Preprocessing
from proxylessnas.errors import ImageError

WIDTH, HEIGHT = 48, 32


@pytest.fixture(scope="module")
def scene() -> Image.Image:
    """Return an RGB image without any symmetry: wrong turns and swapped channels show."""
    image = Image.new("RGB", (WIDTH, HEIGHT))
    image.putdata([(x * 5, y * 8, (x * y) % 256) for y in range(HEIGHT) for x in range(WIDTH)])
    return image


def saved(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)  # type: ignore[arg-type]
    return path


def difference(a: Image.Image, b: Image.Image) -> int:
    """Return the largest difference of any channel of any pixel."""
    assert a.size == b.size
    assert a.mode == b.mode == "RGB"
    return max(high for _, high in ImageChops.difference(a, b).getextrema())  # type: ignore[misc]


def grey_of(scene: Image.Image) -> Image.Image:
    return scene.getchannel(0)


# ---- rotation

TURNS: dict[int, Callable[[Image.Image], Image.Image]] = {
    # What a camera stores for an upright scene: the inverse of what a viewer has to do.
    1: lambda im: im.copy(),
    2: lambda im: im.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    3: lambda im: im.transpose(Image.Transpose.ROTATE_180),
    4: lambda im: im.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
    5: lambda im: im.transpose(Image.Transpose.TRANSPOSE),
    6: lambda im: im.transpose(Image.Transpose.ROTATE_90),
    7: lambda im: im.transpose(Image.Transpose.TRANSVERSE),
    8: lambda im: im.transpose(Image.Transpose.ROTATE_270),
}


def exif(orientation: int) -> Image.Exif:
    data = Image.Exif()
    data[0x0112] = orientation
    return data


@pytest.mark.parametrize("ending", ["png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_lossless(scene: Image.Image, tmp_path: Path, orientation: int, ending: str) -> None:
    options = {"lossless": True} if ending == "webp" else {}
    path = saved(TURNS[orientation](scene), tmp_path / f"x.{ending}", exif=exif(orientation), **options)
    assert difference(load_image(path), scene) == 0


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_jpeg(scene: Image.Image, tmp_path: Path, orientation: int) -> None:
    stored = TURNS[orientation](scene)
    path = saved(stored, tmp_path / "x.jpg", exif=exif(orientation), quality=95, subsampling=0)
    assert difference(load_image(path), scene) < 32


def test_the_rotation_is_applied_once(scene: Image.Image, tmp_path: Path) -> None:
    path = saved(TURNS[6](scene), tmp_path / "x.png", exif=exif(6))
    assert difference(to_rgb(load_image(path)), scene) == 0
    with Image.open(path) as opened:
        assert difference(to_rgb(opened), scene) == 0


@pytest.mark.parametrize("value", [0, 9, 77])
def test_an_orientation_that_does_not_exist_is_upright(
    scene: Image.Image, tmp_path: Path, value: int
) -> None:
    assert difference(load_image(saved(scene, tmp_path / "x.png", exif=exif(value))), scene) == 0


def test_damaged_exif_does_not_stop_the_image(scene: Image.Image, tmp_path: Path) -> None:
    path = saved(scene, tmp_path / "x.png", exif=b"Exif\0\0II*\0\xff\xff\xff\x7fgarbage")
    assert difference(load_image(path), scene) == 0
    path = saved(scene, tmp_path / "x.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x7f" + b"\1" * 20)
    assert load_image(path).size == scene.size


# ---- colour modes


@pytest.mark.parametrize("ending", ["png", "jpg", "bmp", "webp", "tif", "ppm", "gif", "mpo", "jp2"])
def test_plain_images(scene: Image.Image, tmp_path: Path, ending: str) -> None:
    options = {"jpg": {"quality": 95, "subsampling": 0}, "webp": {"lossless": True}, "mpo": {"quality": 95}}
    path = tmp_path / f"x.{ending}"
    try:
        saved(scene, path, **options.get(ending, {}))
    except (OSError, KeyError):
        pytest.skip(f"this Pillow cannot write {ending}")
    with Image.open(path) as plain:
        expected = plain.convert("RGB")
    assert f".{ending}" in EXTENSIONS
    assert difference(load_image(path), expected) == 0
    assert load_image(path).info == {}


def test_grey(scene: Image.Image, tmp_path: Path) -> None:
    grey = grey_of(scene)
    assert difference(load_image(saved(grey, tmp_path / "x.png")), Image.merge("RGB", [grey] * 3)) == 0


def test_one_bit(tmp_path: Path) -> None:
    bits = Image.new("1", (3, 1))
    bits.putdata([0, 255, 0])
    for ending in ("png", "tif", "bmp"):
        loaded = load_image(saved(bits, tmp_path / f"x.{ending}"))
        assert [loaded.getpixel((x, 0)) for x in range(3)] == [(0, 0, 0), (255, 255, 255), (0, 0, 0)]


def test_palette_and_its_transparency(tmp_path: Path) -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putpixel((1, 0), 1)
    opaque = load_image(saved(palette, tmp_path / "x.png"))
    assert [opaque.getpixel((x, 0)) for x in range(2)] == [(255, 0, 0), (0, 0, 255)]
    for name, transparency in {"x.png": 1, "y.png": bytes([255, 0]), "x.gif": 1}.items():
        clear = load_image(saved(palette, tmp_path / name, transparency=transparency))
        assert [clear.getpixel((x, 0)) for x in range(2)] == [(255, 0, 0), (255, 255, 255)], name


def test_alpha_is_laid_on_white(tmp_path: Path) -> None:
    rgba = Image.new("RGBA", (3, 1))
    rgba.putdata([(200, 0, 0, 255), (200, 0, 0, 0), (200, 0, 0, 51)])
    loaded = load_image(saved(rgba, tmp_path / "x.png"))
    assert [loaded.getpixel((x, 0)) for x in range(3)] == [(200, 0, 0), (255, 255, 255), (244, 204, 204)]
    grey = Image.new("LA", (2, 1))
    grey.putdata([(100, 255), (100, 0)])
    loaded = load_image(saved(grey, tmp_path / "y.png"))
    assert [loaded.getpixel((x, 0)) for x in range(2)] == [(100, 100, 100), (255, 255, 255)]
    for premultiplied in (rgba.convert("RGBa"), grey.convert("La")):
        assert to_rgb(premultiplied).getpixel((1, 0)) == (255, 255, 255)


def test_a_colour_marked_transparent(tmp_path: Path) -> None:
    """PNG marks one grey level or one RGB colour as transparent without an alpha channel."""
    rgb = Image.new("RGB", (2, 1), (10, 20, 30))
    rgb.putpixel((1, 0), (1, 2, 3))
    loaded = load_image(saved(rgb, tmp_path / "x.png", transparency=(1, 2, 3)))
    assert [loaded.getpixel((x, 0)) for x in range(2)] == [(10, 20, 30), (255, 255, 255)]
    loaded = load_image(saved(Image.new("L", (1, 1), 7), tmp_path / "y.png", transparency=7))
    assert loaded.getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("adobe", [True, False], ids=["with Adobe marker", "without"])
def test_cmyk_jpeg_is_stored_inverted(tmp_path: Path, adobe: bool) -> None:
    """No ink is white. Photoshop stores CMYK JPEGs inverted, and every viewer expects it."""
    inks = {(0, 0, 0, 0): (255, 255, 255), (0, 255, 255, 0): (255, 0, 0), (0, 0, 0, 255): (0, 0, 0)}
    for ink, colour in inks.items():
        path = saved(Image.new("CMYK", (16, 16), ink), tmp_path / "x.jpg", quality=95)
        data = path.read_bytes()
        start = data.index(b"\xff\xee")
        assert data[start + 4 : start + 9] == b"Adobe"
        if not adobe:
            path.write_bytes(
                data[:start] + data[start + 2 + struct.unpack(">H", data[start + 2 : start + 4])[0] :]
            )
        pixel = load_image(path).getpixel((8, 8))
        assert isinstance(pixel, tuple)
        assert max(abs(a - b) for a, b in zip(pixel, colour, strict=True)) <= 3


def test_cmyk_tiff(tmp_path: Path) -> None:
    path = saved(Image.new("CMYK", (4, 4), (255, 0, 0, 0)), tmp_path / "x.tif")
    assert load_image(path).getpixel((0, 0)) == (0, 255, 255)


def test_other_colour_spaces(scene: Image.Image) -> None:
    for mode in ("YCbCr", "HSV"):
        assert difference(to_rgb(scene.convert(mode)), scene.convert(mode).convert("RGB")) == 0


# ---- more than 8 bits


def deep_png(path: Path, grey: Image.Image) -> Path:
    """Write 16-bit grey by hand, so that the test does not depend on what Pillow can write."""
    rows = b"".join(
        b"\0" + b"".join(struct.pack(">H", int(grey.getpixel((x, y))) * 257) for x in range(grey.width))  # type: ignore[arg-type]
        for y in range(grey.height)
    )

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", *grey.size, 16, 0, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
    return path


def raw_tiff(path: Path, size: tuple[int, int], data: bytes, bits: int, kind: int, order: str = "<") -> Path:
    """Write an uncompressed one-strip grey TIFF. ``kind``: 1 unsigned, 2 signed, 3 floating point."""
    tags = [
        (256, 4, size[0]),
        (257, 4, size[1]),
        (258, 3, bits),
        (259, 3, 1),
        (262, 3, 1),
        (273, 4, 0),
        (277, 3, 1),
    ]
    tags += [(278, 4, size[1]), (279, 4, len(data)), (339, 3, kind)]
    offset = 8 + 2 + 12 * len(tags) + 4
    entries = b""
    for tag, width, value in tags:
        value = offset if tag == 273 else value
        packed = struct.pack(order + ("Hxx" if width == 3 else "I"), value)
        entries += struct.pack(order + "HHI", tag, width, 1) + packed
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, len(tags))
    path.write_bytes(head + entries + struct.pack(order + "I", 0) + data)
    return path


@pytest.fixture(scope="module")
def all_levels() -> Image.Image:
    """Return 8-bit grey that uses every level from 0 to 255."""
    grey = Image.new("L", (16, 16))
    grey.putdata(list(range(256)))
    return grey


def test_16_bit_png_equals_its_8_bit_version(all_levels: Image.Image, tmp_path: Path) -> None:
    expected = load_image(saved(all_levels, tmp_path / "8.png"))
    assert difference(load_image(deep_png(tmp_path / "16.png", all_levels)), expected) == 0


@pytest.mark.parametrize("order", ["<", ">"], ids=["I;16", "I;16B"])
def test_16_bit_tiff_equals_its_8_bit_version(all_levels: Image.Image, tmp_path: Path, order: str) -> None:
    data = struct.pack(f"{order}256H", *(v * 257 for v in range(256)))
    path = raw_tiff(tmp_path / "x.tif", (16, 16), data, 16, 1, order)
    with Image.open(path) as opened:
        assert opened.mode.startswith("I;16")
    assert difference(load_image(path), Image.merge("RGB", [all_levels] * 3)) == 0


def test_16_bit_rounds_to_the_nearest_level(tmp_path: Path) -> None:
    values = [0, 128, 129, 256, 257 * 100 + 128, 257 * 100 + 129, 65535, 65534]
    path = raw_tiff(tmp_path / "x.tif", (8, 1), struct.pack("<8H", *values), 16, 1)
    loaded = load_image(path)
    assert [loaded.getpixel((x, 0))[0] for x in range(8)] == [round(v / 257) for v in values]  # type: ignore[index]


@pytest.mark.parametrize(
    ("code", "bits", "kind", "values", "expected"),
    [
        ("i", 32, 2, [0, 100, 255], [0, 100, 255]),
        ("i", 32, 2, [0, 25700, 65535], [0, 100, 255]),
        ("i", 32, 2, [-1000, 0, 1000], [0, 128, 255]),
        ("i", 32, 2, [0, 500_000, 1_000_000], [0, 128, 255]),
        ("f", 32, 3, [0.0, 0.5, 1.0], [0, 128, 255]),
        ("f", 32, 3, [0.0, 100.0, 255.0], [0, 100, 255]),
        ("f", 32, 3, [0.0, 25700.0, 65535.0], [0, 100, 255]),
        ("f", 32, 3, [-1.0, 0.0, 1.0], [0, 128, 255]),
        ("f", 32, 3, [0.0, 0.0, 0.0], [0, 0, 0]),
    ],
)
def test_32_bit_grey_is_scaled_sensibly(
    tmp_path: Path, code: str, bits: int, kind: int, values: list[float], expected: list[int]
) -> None:
    path = raw_tiff(tmp_path / "x.tif", (3, 1), struct.pack(f"<3{code}", *values), bits, kind)
    loaded = load_image(path)
    assert [loaded.getpixel((x, 0)) for x in range(3)] == [(v, v, v) for v in expected]


def test_floating_point_that_is_not_finite(tmp_path: Path) -> None:
    path = raw_tiff(tmp_path / "x.tif", (2, 1), struct.pack("<2f", float("nan"), 1.0), 32, 3)
    with pytest.raises(ImageError, match=r"x\.tif: holds values that are not finite"):
        load_image(path)


def test_16_bit_grey_is_turned_too(all_levels: Image.Image, tmp_path: Path) -> None:
    path = saved(
        Image.open(deep_png(tmp_path / "a.png", all_levels.rotate(90))), tmp_path / "b.png", exif=exif(6)
    )
    assert difference(load_image(path), Image.merge("RGB", [all_levels] * 3)) == 0


# ---- several frames


@pytest.mark.parametrize("ending", ["gif", "png", "webp", "tif"])
def test_the_first_frame_of_an_animation(tmp_path: Path, ending: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if ending == "webp" else {}
    path = saved(frames[0], tmp_path / f"x.{ending}", save_all=True, append_images=frames[1:], **options)
    assert load_image(path).getpixel((4, 4)) == (255, 0, 0)


# ---- sources


def test_open_files_and_path_objects(scene: Image.Image, tmp_path: Path) -> None:
    path = saved(scene, tmp_path / "x.png")
    for source in (str(path), path, io.BytesIO(path.read_bytes())):
        assert difference(load_image(source), scene) == 0
    with path.open("rb") as file:
        assert difference(load_image(file), scene) == 0
        assert not file.closed
    with pytest.raises(ImageError, match="image data: is not an image"):
        load_image(io.BytesIO(b"hello"))
    closed = io.BytesIO(b"x")
    closed.close()
    with pytest.raises(ImageError, match="cannot be read"):
        load_image(closed)


@pytest.mark.skipif(not os.path.isdir("/dev/fd"), reason="no pipes by name here")
def test_a_pipe(scene: Image.Image, tmp_path: Path) -> None:
    data = saved(scene, tmp_path / "x.png").read_bytes()
    here, there = os.pipe()  # as `<(command)` in a shell
    writer = threading.Thread(target=lambda: (os.write(there, data), os.close(there)))
    writer.start()
    assert difference(load_image(f"/dev/fd/{here}"), scene) == 0
    writer.join()
    os.close(here)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ImageError, match="named pipe, not a regular file"):
        load_image(tmp_path / "pipe")


# ---- what is refused


def png_of(width: int, height: int) -> bytes:
    """Return the start of a PNG that claims a size."""
    data = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    crc = zlib.crc32(b"IHDR" + data)
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + b"IHDR"
        + data
        + struct.pack(">I", crc)
        + b"\0\0\0\0IDAT"
    )


def test_decompression_bombs(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png_of(14_000, 14_000))
    limit, filters = Image.MAX_IMAGE_PIXELS, list(warnings.filters)
    with pytest.raises(ImageError, match=r"bomb\.png: more than 179 million .*PIL\.Image\.MAX_IMAGE_PIXELS"):
        load_image(path)
    assert limit == Image.MAX_IMAGE_PIXELS
    assert list(warnings.filters) == filters


def test_the_users_own_pixel_limit_counts(
    scene: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(scene, tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", WIDTH * HEIGHT // 2 - 1)
    with pytest.raises(ImageError, match="million pixels"):
        load_image(path)


def test_a_huge_jpeg_is_decoded_smaller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Pillow would only warn; other formats are decoded whole."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 640 * 480 - 1)
    monkeypatch.setattr(images, "_DRAFT_SIDE", 100)
    image = Image.new("RGB", (640, 480), (10, 120, 200))
    image.save(tmp_path / "a.jpg", quality=95)
    image.save(tmp_path / "a.png")
    small = load_image(tmp_path / "a.jpg")
    assert (small.size, small.mode) == ((160, 120), "RGB")  # 1/4: at 1/8 a side would be below 100
    middle = small.getpixel((80, 60))
    assert isinstance(middle, tuple)
    assert all(abs(a - b) <= 3 for a, b in zip(middle, (10, 120, 200), strict=True))
    assert load_image(tmp_path / "a.png").size == (640, 480)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 640 * 480)
    assert load_image(tmp_path / "a.jpg").size == (640, 480)


def test_heic_is_read_where_pillow_heif_is_installed(tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif")
    heif.from_pillow(Image.new("RGB", (64, 48), (10, 120, 200))).save(tmp_path / "a.heic")
    assert load_image(tmp_path / "a.heic").size == (64, 48)


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "gif", "tif", "bmp"])
def test_truncated_at_any_length(scene: Image.Image, tmp_path: Path, ending: str) -> None:
    """Whatever part of a file arrived, the answer is an image or an ImageError with the file's name."""
    data = saved(scene, tmp_path / f"x.{ending}").read_bytes()
    path = tmp_path / f"cut.{ending}"
    lengths = range(1, len(data), max(1, len(data) // 60))
    refused = shown = 0
    for length in lengths:
        path.write_bytes(data[:length])
        try:
            load_image(path)
        except ImageError as e:
            refused += str(e).startswith(f"{path}: ") and "\n" not in str(e)
        else:
            shown += 1
    assert refused > 20
    assert refused + shown == len(lengths)
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ImageError, match=r"cut\."):
        load_image(path)


CONTENTS = {
    "empty": (b"", "the file is empty"),
    "text": (b"hello, world\n", "is not an image"),
    "zeros": (b"\0" * 1000, "is not an image"),
    "page": (b"\n<!DOCTYPE html><html><body>404</body></html>", r"is a web page \(HTML\)"),
    "drawing": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "vector drawing"),
    "pdf": (b"%PDF-1.7\n", "is a PDF"),
    "heic": (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC"),
    "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "is not an image"),
    "jpeg header only": (b"\xff\xd8\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0", "image"),
}


@pytest.mark.parametrize("kind", CONTENTS)
def test_not_an_image(tmp_path: Path, kind: str) -> None:
    content, reason = CONTENTS[kind]
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=rf"^{path}: .*{reason}"):
        load_image(path)


def test_paths_that_are_no_file(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"nowhere\.jpg: no such file"):
        load_image(tmp_path / "nowhere.jpg")
    with pytest.raises(ImageError, match="is a folder, not an image"):
        load_image(tmp_path)
    with pytest.raises(ImageError, match="cannot be opened"):
        load_image("zero\0byte.jpg")
    with pytest.raises(ImageError, match="cannot be opened"):
        load_image("x" * 5000)
    with pytest.raises(ImageError, match="a device, not a regular file"):
        load_image(os.devnull)


def test_no_permission(scene: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(scene, tmp_path / "x.png")
    path.chmod(0)
    if os.access(path, os.R_OK):  # root may read anything: let the system's own refusal come from open()

        def refuse(*args: object, **kwargs: object) -> None:
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(ImageError, match=r"x\.png: permission denied"):
        load_image(path)


def test_many_threads_leave_the_warning_filters_alone(scene: Image.Image, tmp_path: Path) -> None:
    good = saved(scene, tmp_path / "x.jpg")
    bomb = tmp_path / "bomb.png"
    bomb.write_bytes(png_of(10_000, 10_000))
    filters = list(warnings.filters)

    def work() -> None:
        for _ in range(30):
            load_image(good)
            with pytest.raises(ImageError):
                load_image(bomb)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(warnings.filters) == filters


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "I;16", "F"])
def test_a_large_image_is_converted_in_strips_to_the_same_bits(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = Image.frombytes("RGBA", (61, 47), random.Random(1).randbytes(61 * 47 * 4))
    if mode == "I;16":
        image = Image.frombytes(mode, (61, 47), random.Random(2).randbytes(61 * 47 * 2))
    elif mode == "F":
        image = noise.convert("F").point(lambda x: x * 3 - 7.0)
    else:
        image = noise.convert("RGB").quantize(20) if mode == "P" else noise.convert(mode)
    if mode == "P":
        image.info["transparency"] = 3
    transform = Preprocessing(16, 20).build()
    whole, seen = to_rgb(image), transform(image)
    sizes: list[int] = []
    paste = Image.Image.paste
    monkeypatch.setattr("proxylessnas.data.images._STRIP_PIXELS", 500)
    monkeypatch.setattr(
        Image.Image, "paste", lambda self, part, box: (sizes.append(part.height), paste(self, part, box))[1]
    )
    assert to_rgb(image).tobytes() == whole.tobytes()
    assert max(sizes) == 8  # 500 / 61 rows: no copy is larger
    assert torch.equal(transform(image), seen)


@pytest.mark.parametrize("levels", [6, 1])
def test_a_very_large_jpeg_2000_is_read_at_a_lower_resolution(
    levels: int, scene: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("PIL.Jpeg2KImagePlugin")
    if not features.check("jpg_2000"):
        pytest.skip("this Pillow knows no JPEG 2000")
    file = io.BytesIO()
    scene.resize((640, 480)).save(file, "JPEG2000", num_resolutions=levels)
    file.seek(0)
    assert load_image(file).size == (640, 480)
    monkeypatch.setattr("proxylessnas.data.images._REDUCE_PIXELS", 20_000)
    monkeypatch.setattr("proxylessnas.data.images._REDUCE_SHORT", 200)
    file.seek(0)
    assert load_image(file).size == ((320, 240) if levels > 1 else (640, 480))  # where it has one
