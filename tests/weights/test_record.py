"""Records of published weights: what belongs to them, how they are found, compared and sent around."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from pathlib import Path

import pytest

from proxylessnas.errors import UnknownModelError
from proxylessnas.weights.file_spec import bytes_problem, file_problem, short_digest
from proxylessnas.weights.registry import find_by_digest, get_weights, read_manifest

TINY = "proxyless_w025_r112"


@pytest.mark.parametrize(
    ("name", "resize", "crop", "mean", "std"),
    [
        (TINY, 128, 112, (0.5,) * 3, (0.5,) * 3),
        ("proxyless_w03_r176", 201, 176, (0.5,) * 3, (0.5,) * 3),
        ("proxyless_cpu", 256, 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        (
            "proxyless_cifar", 32, 32,
            tuple(v / 255 for v in (125.3, 123.0, 113.9)), tuple(v / 255 for v in (63.0, 62.1, 66.7)),
        ),
    ],
)  # fmt: skip
def test_preprocessing(name: str, resize: int, crop: int, mean: tuple[float], std: tuple[float]) -> None:
    weights = get_weights(name)
    preprocessing = weights.preprocessing
    assert (preprocessing.resize, preprocessing.input_size) == (resize, crop)
    assert preprocessing.mean == pytest.approx(mean)
    assert preprocessing.std == pytest.approx(std)


def test_transforms_can_be_changed_but_not_mistyped() -> None:
    import torch

    image = torch.zeros(3, 300, 200, dtype=torch.uint8)
    weights = get_weights(TINY)
    assert torch.equal(weights.transforms()(image), torch.full((3, 112, 112), -1.0))
    assert weights.transforms(input_size=96)(image).shape == (3, 96, 96)
    with pytest.raises(TypeError, match="input_sise"):
        weights.transforms(input_sise=96)


def test_meta_holds_the_class_names() -> None:
    meta = get_weights(TINY).meta
    assert len(meta["categories"]) == len(meta["wnids"]) == 1000
    assert meta["categories"][0] == "tench"
    assert meta["num_params"] == 569_600
    cifar = get_weights("proxyless_cifar").meta
    assert len(cifar["categories"]) == 10
    assert "wnids" not in cifar


def test_names_are_forgiving_and_unknown_ones_are_not() -> None:
    for name in ("proxyless-mobile14", "proxyless_mobile_14", "Proxyless-Mobile-14"):
        assert get_weights(name) is get_weights("proxyless_mobile_14")
    with pytest.raises(UnknownModelError, match="proxyless_mobile"):
        get_weights("proxyless_mobil")
    for nonsense in ("", "no such model", 3, None):
        with pytest.raises(UnknownModelError):
            get_weights(nonsense)  # type: ignore[arg-type]


def test_records_cannot_be_changed_but_can_travel() -> None:
    weights = get_weights(TINY)
    with pytest.raises(dataclasses.FrozenInstanceError):
        weights.size = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        weights.metrics["top1"] = 99.0  # type: ignore[index]
    read_manifest().clear()
    assert get_weights(TINY) is weights
    for other in (pickle.loads(pickle.dumps(weights)), copy.deepcopy(weights), dataclasses.replace(weights)):
        assert other == weights
        assert hash(other) == hash(weights)


@pytest.mark.parametrize("name", [TINY, "proxyless_w03_r176"])
def test_digests_are_those_of_the_real_files(name: str, shared_data: Path) -> None:
    weights = get_weights(name)
    file = shared_data / "weights" / weights.filename
    assert file_problem(weights, file) is None
    assert file_problem(dataclasses.replace(weights, sha256=None), file) is None  # the git blob id
    assert find_by_digest(file) is weights


def test_find_by_digest_of_other_files(tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_bytes(b"x")
    assert find_by_digest(tmp_path / "x.pth") is None
    assert find_by_digest(tmp_path / "none.pth") is None
    assert find_by_digest(tmp_path) is None


def test_digest_problems_say_expected_and_actual() -> None:
    weights = dataclasses.replace(get_weights(TINY), size=3)
    assert "2 bytes instead of 3" in str(bytes_problem(weights, b"ab"))
    assert "ba7816bf" in str(bytes_problem(weights, b"abc"))
    assert str(weights.sha256) in str(bytes_problem(weights, b"abc"))
    # What `printf abc | git hash-object --stdin` prints.
    blob = dataclasses.replace(weights, sha256=None, git_blob="f2ba8f84ab5c1bce84a7b441cb1959cfc7093b7f")
    assert bytes_problem(blob, b"abc") is None


def test_cache_file_names_are_all_different() -> None:
    names = {f"{weights.name}-{short_digest(weights)}" for weights in read_manifest().values()}
    assert len(names) == len(read_manifest())
    assert all(len(short_digest(weights)) == 8 for weights in read_manifest().values())


def test_a_deep_copy_is_nobody_elses() -> None:
    record = get_weights("proxyless_cifar10_demo")
    before = copy.deepcopy(dict(record.training))
    other = copy.deepcopy(record)
    assert other == record
    other.training["teachers"].append("X")
    assert dict(record.training) == before
