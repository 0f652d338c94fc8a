"""Preprocessing as data, and the same model input from Pillow images and tensors."""

from __future__ import annotations

import contextlib
import json
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2

from proxylessnas.data.transforms import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from proxylessnas.errors import DataError, ImageError

TINY = Preprocessing(112, 128, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def noise(height: int, width: int, channels: int = 3) -> torch.Tensor:
    return torch.randint(0, 256, (channels, height, width), dtype=torch.uint8)


def image(tensor: torch.Tensor) -> Image.Image:
    image: Image.Image = v2.functional.to_pil_image(tensor)
    return image


# ---- the numbers


def test_dict_and_json_round_trip() -> None:
    p = Preprocessing(224, 256, IMAGENET_MEAN, IMAGENET_STD, "bicubic", antialias=False)
    assert Preprocessing.from_dict(p.to_dict()) == p
    assert Preprocessing.from_json(json.dumps(p.to_dict())) == p
    assert p.to_dict()["mean"] == [0.485, 0.456, 0.406]
    assert hash(Preprocessing.from_dict(TINY.to_dict())) == hash(TINY)
    assert str(TINY) == "resize 128 (bilinear), crop 112, mean 0.5 0.5 0.5, std 0.5 0.5 0.5"


BAD = [
    ({"input_size": 0}, "input_size must be a whole number"),
    ({"input_size": -1}, "input_size"),
    ({"input_size": 112.0}, "input_size"),
    ({"input_size": True}, "input_size"),
    ({"input_size": 10**9}, "input_size"),
    ({"input_size": 129}, "input_size 129 is larger than resize 128"),
    ({"resize": 111}, "larger than resize 111"),
    ({"resize": None}, "resize"),
    ({"mean": (0.5, 0.5)}, "mean must be three"),
    ({"mean": 0.5}, "mean must be three"),
    ({"mean": "abc"}, "mean must be three"),
    ({"mean": (0.5, 0.5, float("nan"))}, "finite"),
    ({"mean": (0.5, True, 0.5)}, "finite"),
    ({"std": (0.5, 0.0, 0.5)}, "std must be above zero"),
    ({"std": (0.5, -0.1, 0.5)}, "std must be above zero"),
    ({"std": (0.5, float("inf"), 0.5)}, "finite"),
    ({"std": (0.5, "0.5", 0.5)}, "finite"),
    ({"interpolation": "nearest"}, "bilinear or bicubic"),
    ({"interpolation": ["bilinear"]}, "bilinear or bicubic"),
    ({"antialias": 1}, "antialias must be true or false"),
    ({"crop": 3}, "unknown: crop"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_wrong_values_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Preprocessing.from_dict({**TINY.to_dict(), **change})


def test_all_problems_at_once() -> None:
    with pytest.raises(DataError, match=r"input_size.*; mean.*; std") as caught:
        Preprocessing(0, 128, (0.5,), (0.0, 0.0, 0.0))  # type: ignore[arg-type]
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("missing", ["input_size", "resize", "mean", "std"])
def test_there_are_no_defaults_in_files(missing: str) -> None:
    data = TINY.to_dict()
    del data[missing]
    with pytest.raises(DataError, match=f"missing: {missing}"):
        Preprocessing.from_dict(data)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from([*TINY.to_dict(), "other"]), anything) | anything)
def test_any_value_gives_preprocessing_or_a_data_error(data: object) -> None:
    with contextlib.suppress(DataError):
        assert isinstance(Preprocessing.from_dict(data), Preprocessing)


@given(st.text(max_size=30) | st.just("[" * 100_000))
def test_any_text_gives_preprocessing_or_a_data_error(text: str) -> None:
    with pytest.raises(DataError):
        Preprocessing.from_json(text)


# ---- the pixels


@pytest.mark.parametrize("size", [(200, 300), (300, 200), (128, 128), (90, 70), (1, 1), (5, 400), (3000, 2)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_image_and_tensor_give_the_same_bits(size: tuple[int, int], interpolation: str) -> None:
    transform = Preprocessing(56, 64, IMAGENET_MEAN, IMAGENET_STD, interpolation).build()
    tensor = noise(*size)
    out = transform(tensor)
    assert out.shape == (3, 56, 56)
    assert out.dtype == torch.float32
    assert torch.equal(out, transform(image(tensor)))


def agree(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """The same numbers as torchvision gives.

    Old torchvision resizes floating-point numbers and rounds once: at most one grey level (of noise, where a
    pixel's shift would be a hundred).
    """
    version = tuple(int(part) for part in torchvision.__version__.split(".")[:2])
    assert (ours - theirs).abs().max() < (1e-6 if version >= (0, 29) else 1.01 / 255)


def test_it_is_the_usual_pipeline() -> None:
    tensor = noise(190, 260)
    usual = v2.Compose(
        [
            v2.Resize(128, antialias=True),
            v2.CenterCrop(112),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )
    ours = TINY.build()(image(tensor)) * 0.5 + 0.5
    assert (ours - usual(image(tensor))).abs().max() < 1.01 / 255  # Pillow's resize rounds a little otherwise
    agree(ours, usual(tensor))


def test_normalisation() -> None:
    out = Preprocessing(4, 4, IMAGENET_MEAN, IMAGENET_STD).build()(
        torch.full((3, 4, 4), 255, dtype=torch.uint8)
    )
    for channel in range(3):
        expected = (1 - IMAGENET_MEAN[channel]) / IMAGENET_STD[channel]
        assert torch.allclose(out[channel], torch.tensor(expected))


def test_crop_is_central() -> None:
    tensor = torch.zeros(3, 8, 16, dtype=torch.uint8)
    tensor[:, 2:6, 6:10] = 255
    assert (Preprocessing(4, 8, (0.0,) * 3, (1.0,) * 3).build()(tensor) == 1).all()


def test_batches() -> None:
    batch = torch.stack([noise(150, 170) for _ in range(3)])
    out = TINY.build()(batch)
    assert out.shape == (3, 3, 112, 112)
    for i in range(3):
        assert torch.equal(out[i], TINY.build()(batch[i]))


def test_grey_is_repeated() -> None:
    grey = noise(140, 140, channels=1)
    out = TINY.build()(grey)
    assert torch.equal(out, TINY.build()(grey.expand(3, -1, -1)))
    assert torch.equal(out, TINY.build()(image(grey)))
    assert TINY.build()(grey[None]).shape == (1, 3, 112, 112)


def test_images_of_any_mode_and_orientation(tmp_path: Path) -> None:
    upright = image(noise(150, 200))
    for mode in ("RGBA", "P", "CMYK", "L", "1", "F"):
        assert TINY.build()(upright.convert(mode)).shape == (3, 112, 112)
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as turned:
        assert torch.equal(TINY.build()(turned), TINY.build()(upright))


def test_a_strip_needs_little_memory() -> None:
    """Resized by its short side, 1 x 60,000 px would become 128 x 7,680,000."""
    strip = noise(1, 60_000)
    assert TINY.build()(strip).shape == (3, 112, 112)
    middle = strip[..., 30_000 - 8 : 30_000 + 8]
    assert torch.equal(TINY.build()(strip), TINY.build()(middle))


def test_what_is_refused() -> None:
    transform = TINY.build()
    with pytest.raises(TypeError, match=r"must be uint8 .* not float32"):
        transform(torch.rand(3, 150, 150))
    with pytest.raises(TypeError, match="Pillow image or a uint8 tensor, not str"):
        transform("photo.jpg")  # type: ignore[arg-type]
    for shape in [(150, 150), (4, 150, 150), (150, 150, 3), (1, 1, 3, 9, 9), (3, 0, 5), (0, 3, 9, 9)]:
        with pytest.raises(ImageError, match="image tensor is"):
            transform(torch.zeros(shape, dtype=torch.uint8))
    with pytest.raises(ImageError, match="no pixels"):
        transform(Image.new("RGB", (0, 5)))


def test_it_travels_to_other_processes() -> None:
    transform = TINY.build()
    again = pickle.loads(pickle.dumps(transform))
    assert again.preprocessing == TINY
    tensor = noise(130, 140)
    assert torch.equal(again(tensor), transform(tensor))
    assert repr(transform) == f"ClassificationTransform({TINY})"


@given(
    st.integers(1, 260),
    st.integers(1, 260),
    st.sampled_from(["bilinear", "bicubic"]),
    st.booleans(),
    st.booleans(),
)
def test_equals_the_torchvision_pipeline(
    height: int, width: int, interpolation: str, antialias: bool, batched: bool
) -> None:
    """Any size and shape, larger and smaller, is treated as torchvision's v2 classes treat it."""
    if max(height, width) > 16 * min(height, width):
        return  # our own rule for strips
    image = noise(height, width)
    image = torch.stack([image, image.flip(-1)]) if batched else image
    mine = Preprocessing(48, 56, interpolation=interpolation, antialias=antialias)
    usual = v2.Compose(
        [
            v2.Resize(56, v2.InterpolationMode(interpolation), antialias=antialias),
            v2.CenterCrop(48),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(mine.mean, mine.std),
        ]
    )
    std = torch.tensor(mine.std).view(3, 1, 1)
    agree(mine.build()(image) * std, usual(image) * std)


@pytest.mark.parametrize("error", [ImportError("no torchvision"), RuntimeError("nms does not exist")])
def test_without_torchvision(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    class Broken:
        def find_spec(self, name: str, path: object = None, target: object = None) -> None:
            if name.startswith("torchvision"):
                raise error

    for name in [name for name in sys.modules if name.startswith("torchvision")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    assert TINY.build()(noise(130, 140)).shape == (3, 112, 112)


def test_real_photos(shared_data: Path) -> None:
    """Pillow images and uint8 tensors give the same answers on real photos."""
    from proxylessnas import create_model
    from proxylessnas.data.images import load_image

    weights = shared_data / "weights" / "proxyless-w0.25-r112_imagenet.pth"
    model = create_model("proxyless_w025_r112", weights=weights).eval()
    assert model.preprocessing == TINY
    transform = TINY.build()
    pillow_resize = v2.Compose([v2.Resize(128, antialias=True), v2.CenterCrop(112), v2.PILToTensor()])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    photos = [load_image(p) for p in sorted((shared_data / "imagenet_sample").glob("*.jpg"))[:40]]
    ours = torch.stack([transform(photo) for photo in photos])
    tensors = torch.stack([transform(v2.functional.pil_to_tensor(photo)) for photo in photos])
    by_pillow = torch.stack([pillow_resize(photo) for photo in photos]).float() / 255 * 2 - 1
    with torch.inference_mode():
        logits = [model(x) for x in (ours, tensors, by_pillow)]
    torch.set_num_threads(threads)
    assert torch.equal(logits[0], logits[1])
    assert torch.equal(logits[0].argmax(1), logits[2].argmax(1))
    assert (logits[0] - logits[2]).abs().max() < 0.05  # Pillow's own resize rounds a little otherwise


def test_a_single_pixel_is_enough() -> None:
    assert Preprocessing(1, 1).build()(noise(40, 30)).shape == (3, 1, 1)
