"""Files that take bytes: the graph prepares images as the package does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from deploy_tools import small
from torch import Tensor

from proxylessnas import ExportError, deploy
from proxylessnas.data.images import load_image, pixels_of
from proxylessnas.data.transforms import Preprocessing
from proxylessnas.deploy.formats.onnx import add_pixels

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

#: Share of a photo's values that may be off, the same for noise on small images; by how many grey values.
FEW, MORE, GREY = 0.005, 0.08, 1.01


def prepare(preprocessing: Preprocessing, images: Tensor) -> Tensor:
    """Run the graph of a model that does nothing."""
    side = preprocessing.input_size
    shape = ["batch", 3, side, side]
    values = [onnx.helper.make_tensor_value_info(name, 1, shape) for name in ("images", "logits")]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["images"], ["logits"])], "net", [values[0]], [values[1]]
    )
    opsets = [onnx.helper.make_opsetid("", 18)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)
    add_pixels(model, preprocessing, "images")
    onnx.checker.check_model(model, full_check=True)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def differences(preprocessing: Preprocessing, images: Tensor) -> tuple[float, float]:
    """Return the share of values that differ, and the largest difference in grey values."""
    found, expected = prepare(preprocessing, images), preprocessing.build()(images)
    assert found.shape == expected.shape
    grey = (found - expected).abs() * 255 * torch.tensor(preprocessing.std).view(3, 1, 1)
    return float((grey > 0.01).double().mean()), float(grey.max())


@pytest.mark.parametrize("photo", ["cat.jpg", "coffee.jpg", "cifar10/horse.jpg"])
@pytest.mark.parametrize(
    "preprocessing",
    [
        Preprocessing(224, 256),
        Preprocessing(112, 128, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        Preprocessing(32, 33, interpolation="bicubic"),
    ],
    ids=["224", "112", "bicubic"],
)
def test_photos(photo: str, preprocessing: Preprocessing, repo: Path) -> None:
    image = pixels_of(load_image(repo / "examples" / "photos" / photo))
    share, most = differences(preprocessing, image[None])
    assert share < FEW
    assert most < GREY


@pytest.mark.parametrize(
    ("height", "width"),
    [
        (32, 32),
        (20, 20),
        (20, 31),
        (33, 47),
        (64, 90),
        (91, 64),
        (36, 36),
        (36, 39),
        (200, 7),
        (7, 200),
        (1, 50),
    ],
)
def test_sides_of_any_parity_and_shape(height: int, width: int) -> None:
    """A crop that is off by a pixel would differ everywhere."""
    images = torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8)
    share, most = differences(Preprocessing(32, 36), images)
    assert share < MORE
    assert most < GREY


def test_without_antialias() -> None:
    images = torch.randint(0, 256, (1, 3, 60, 80), dtype=torch.uint8)
    for interpolation in ("bilinear", "bicubic"):
        share, most = differences(Preprocessing(32, 36, interpolation=interpolation, antialias=False), images)
        assert share < MORE
        assert most < GREY


def test_a_file_takes_images_of_any_size(tmp_path: Path) -> None:
    model = small().eval()
    report = deploy.export(
        model, tmp_path / "net.onnx", deploy.ExportSettings(uint8_input=True, threads=1, measure=False)
    )
    assert report.tolerance == 0.02
    assert report.agreement is not None
    shape = onnx.load(report.path).graph.input[0].type.tensor_type.shape
    assert [d.dim_param or d.dim_value for d in shape.dim] == ["batch", 3, "height", "width"]
    session = ort.InferenceSession(str(report.path), providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].type == "tensor(uint8)"
    assert model.preprocessing is not None
    for size in ((1, 3, 50, 41), (3, 3, 36, 36)):
        images = torch.randint(0, 256, size, dtype=torch.uint8)
        found = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
        expected = model(model.preprocessing.build()(images)).detach()
        assert float((found - expected).abs().max()) < 0.02 * max(1.0, float(expected.abs().max()))


def test_models_that_cannot_take_bytes(tmp_path: Path) -> None:
    model = small()
    model.preprocessing = None
    options: dict[str, Any] = {"uint8_input": True, "measure": False}
    with pytest.raises(ExportError, match=r"the model's is not known: in Python set model\.preprocessing"):
        deploy.export(model, tmp_path / "net.onnx", deploy.ExportSettings(**options))
    grey = small(in_chans=1)
    grey.preprocessing = Preprocessing(32, 36)
    with pytest.raises(ExportError, match="takes RGB images; the model takes 1 channels"):
        deploy.export(grey, tmp_path / "net.onnx", deploy.ExportSettings(**options))
