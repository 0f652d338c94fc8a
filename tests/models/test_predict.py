"""From an image to class names through the model's own method."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from proxylessnas import ImageError, Preprocessing, ProxylessError, create_model, get_weights
from proxylessnas.data.transforms import IMAGENET_MEAN
from tests.models.test_models import SMALL


@pytest.fixture
def model():
    model = create_model(SMALL)
    model.preprocessing = Preprocessing(32, 36)
    return model


def test_predict_equals_the_long_way(model, tmp_path):
    Image.effect_mandelbrot((60, 50), (-2, -1.5, 1, 1.5), 40).convert("RGB").save(tmp_path / "a.png")
    image = Image.open(tmp_path / "a.png")
    model.train()
    model.blocks[1].eval()  # a part with a mode of its own
    found = model.predict(tmp_path / "a.png", top=3)
    assert model.training
    assert not model.blocks[1].training, "every part's mode is given back"
    with torch.inference_mode():
        expected = model.eval()(model.preprocessing.build()(image)[None]).softmax(1)[0]
    assert [p.class_index for p in found] == expected.topk(3).indices.tolist()
    assert [p.probability for p in found] == pytest.approx(expected.topk(3).values.tolist())
    assert [p.name for p in found] == [str(p.class_index) for p in found], "no names are known"
    assert found == model.predict(image, 3) == model.predict(str(tmp_path / "a.png"), 3)
    assert len(model.predict(image, top=100)) == 5


def test_what_cannot_be_predicted(model, tmp_path):
    with pytest.raises(ImageError, match=r"absent\.jpg"):
        model.predict(tmp_path / "absent.jpg")
    with pytest.raises(ValueError, match="top must be at least 1"):
        model.predict(Image.new("RGB", (8, 8)), top=0)
    with pytest.raises(ImageError, match="one image"):
        model.predict(torch.zeros(1, 3, 40, 40, dtype=torch.uint8))
    with pytest.raises(ProxylessError, match=r"1 channel\(s\) and photos have 3"):
        create_model("proxyless_w025_r112", in_chans=1).predict(Image.new("L", (8, 8)))
    model.preprocessing = None
    with pytest.raises(ProxylessError, match=r"set model\.preprocessing"):
        model.predict(Image.new("RGB", (8, 8)))
    with pytest.raises(ProxylessError, match="no classifier"):
        create_model("proxyless_w025_r112", num_classes=0).predict(Image.new("RGB", (8, 8)))


def test_real_photo(shared_data, repo):
    path = shared_data / "weights" / "proxyless-w0.25-r112_imagenet.pth"
    model = create_model("proxyless_w025_r112", weights=path)
    best = model.predict(repo / "examples" / "photos" / "cat.jpg")[0]
    assert (best.name, best.class_index, best.wnid) == ("Egyptian cat", 285, "n02124075")
    assert best.probability == pytest.approx(0.747, abs=0.01)
    assert model.preprocessing.mean != IMAGENET_MEAN
    assert get_weights("proxyless_w025_r112").categories[285] == best.name
    # Another head has no names, and the photo's classes are numbers.
    assert create_model("proxyless_w025_r112", weights=path, num_classes=3).predict(
        repo / "examples" / "photos" / "cat.jpg"
    )[0].name in {"0", "1", "2"}


def test_two_hundred_photos_through_hub(shared_data, repo):
    """The tiny model with its real weights, as torch.hub gives it: 115 right, 153 among the first five."""
    path = shared_data / "weights" / "proxyless-w0.25-r112_imagenet.pth"
    model = torch.hub.load(str(repo), "proxyless_w025_r112", source="local", weights=str(path)).eval()
    first = five = 0
    photos = sorted((shared_data / "imagenet_sample").glob("*.jpg"))
    for photo in photos:
        found = [p.class_index for p in model.predict(photo)]
        label = int(photo.name[:4])
        first += found[0] == label
        five += label in found
    assert (len(photos), first, five) == (200, 115, 153)
