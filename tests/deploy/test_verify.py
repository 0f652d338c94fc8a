"""The proof: what a file gets wrong is found, wherever it is."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from deploy_tools import small
from torch import Tensor

from proxylessnas import DataError, ExportError, ImageError
from proxylessnas.deploy import verify as parity
from proxylessnas.deploy import verify as proof_images
from proxylessnas.deploy.bundle import ModelBundle, open_bundle
from proxylessnas.deploy.formats.base import ExportOptions


@pytest.fixture(scope="module")
def bundle() -> ModelBundle:
    return open_bundle(small())


def compared(
    bundle: ModelBundle, program: Callable[[Tensor], Tensor], **options: int
) -> tuple[parity.ParityRow, ...]:
    images = proof_images.proof_images(bundle)
    with torch.inference_mode():
        return parity.compare(bundle, program, ExportOptions(**options), images)


def test_the_model_itself_passes(bundle: ModelBundle) -> None:
    rows = compared(bundle, bundle.model)
    assert [(row.inputs, row.batch, row.n) for row in rows] == [
        ("images", 1, 4), ("random numbers", 1, 2), ("images", 2, 4), ("random numbers", 2, 2),
        ("images", 7, 14), ("random numbers", 7, 7),
    ]  # fmt: skip
    assert all(row.difference == 0 and row.agreement == 1 and row.largest > 0 for row in rows)
    parity.check(rows, 1e-9, "net")


def test_a_fixed_batch_is_compared_at_it_alone(bundle: ModelBundle) -> None:
    assert {row.batch for row in compared(bundle, bundle.model, batch_size=16)} == {16}


@pytest.mark.parametrize(
    ("wrong", "where"),
    [
        (lambda y: y + 0.01, r"images at batch 1"),
        (lambda y: y + 0.01 * (len(y) == 2), r"images at batch 2"),
        (lambda y: y * torch.nan if len(y) == 7 else y, r"images at batch 7 .* off by nan"),
        (
            lambda y: torch.cat([y[:-1], y[-1:] + 1]) if len(y) > 1 else y,
            r"images at batch 2 .* off by 1, ",
        ),
    ],
)
def test_any_difference_is_found(bundle: ModelBundle, wrong: Callable[[Tensor], Tensor], where: str) -> None:
    rows = compared(bundle, lambda x: wrong(bundle.model(x)))
    with pytest.raises(
        ExportError, match=rf"file does not compute what the model does: on {where}"
    ) as caught:
        parity.check(rows, 1e-4, "file")
    assert "\n" not in str(caught.value)


def test_the_limit_grows_with_the_outputs() -> None:
    row = parity.ParityRow("images", 1, 4, 1.5e-3, 20.0, 1.0)
    parity.check([row], 1e-4, "file")
    with pytest.raises(ExportError, match=r"more than 0\.0002"):
        parity.check([parity.ParityRow("images", 1, 4, 1.5e-3, 2.0, 1.0)], 1e-4, "file")
    with pytest.raises(ExportError, match=r"more than 0\.0001"):
        parity.check([parity.ParityRow("images", 1, 4, 1.5e-3, 0.1, 1.0)], 1e-4, "file")


def test_other_shapes_and_damaged_models(bundle: ModelBundle) -> None:
    with pytest.raises(ExportError, match=r"outputs of \[1, 4\], the model of \[1, 5\]"):
        compared(bundle, lambda x: bundle.model(x)[:, :4])
    broken = open_bundle(bundle.model)
    broken.model.classifier.linear.bias.data[0] = torch.inf
    with pytest.raises(ExportError, match="own outputs are not finite"):
        compared(broken, bundle.model)


def test_agreement_is_counted(bundle: ModelBundle) -> None:
    rows = compared(bundle, lambda x: bundle.model(x).roll(1, dims=1))
    assert all(row.agreement == 0 for row in rows)


# Images


def test_images_of_a_folder_and_of_a_list(bundle: ModelBundle, repo: Path, tmp_path: Path) -> None:
    photos = repo / "examples" / "photos"
    (tmp_path / "below").mkdir()
    shutil.copy(photos / "cat.jpg", tmp_path / "below")
    found = proof_images.proof_images(bundle, tmp_path)
    assert found.source == f"images of {tmp_path}"
    assert [image.shape[0] for image in found.pixels] == [3]
    assert found.inputs(3).shape == (1, 3, 32, 32)
    assert found.inputs(1).shape == (1, 1, 32, 32)
    listed = proof_images.proof_images(bundle, [photos / "cat.jpg", photos / "coffee.jpg"])
    assert len(listed.pixels) == 2
    assert torch.equal(listed.pixels[0], found.pixels[0])


def test_without_photos_there_are_digits(
    bundle: ModelBundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As in an installed package."""
    monkeypatch.setattr(proof_images, "_EXAMPLES", tmp_path / "none")
    found = proof_images.proof_images(bundle)
    assert found.source == "handwritten digits of this package"
    assert found.inputs(3).shape == (14, 3, 32, 32)


def test_images_that_are_not_there(bundle: ModelBundle, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no images in it"):
        proof_images.proof_images(bundle, tmp_path)
    with pytest.raises(DataError, match=r"list of images .* is empty"):
        proof_images.proof_images(bundle, [])
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    with pytest.raises(ImageError, match=r"broken\.jpg"):
        proof_images.proof_images(bundle, tmp_path)
