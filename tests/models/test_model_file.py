"""What ``save_weights`` writes is what the model is, also after its layers were replaced or wrapped."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn.utils import parametrizations, prune

from proxylessnas import Preprocessing, WeightsMismatchError, create_model, load_weights, save_weights
from proxylessnas.models.base import ImageClassifier, unwrapped
from proxylessnas.models.proxylessnas import ProxylessNAS
from tests.models.test_models import SMALL, SMALL_TREE

NAMES = tuple("abcde")


@pytest.fixture
def model() -> ProxylessNAS:
    torch.manual_seed(7)
    made = create_model(SMALL).eval()
    assert isinstance(made, ProxylessNAS)
    made.categories, made.wnids = NAMES, tuple(f"n{i:08d}" for i in range(5))
    made.preprocessing = Preprocessing(32, 36, (0.5,) * 3, (0.5,) * 3)
    return made


def new_layer(model: ImageClassifier, classes: int) -> None:
    model.classifier.linear = nn.Linear(model.num_features, classes)


@pytest.mark.parametrize("classes", [3, 5], ids=["fewer classes", "as many"])
def test_a_new_last_layer_has_no_old_names(
    classes: int, model: ProxylessNAS, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    new_layer(model, classes)
    assert (model.num_classes, model.categories, model.wnids) == (classes, (), ())
    assert {p.name for p in model.predict(Image.new("RGB", (40, 40)))} == {str(i) for i in range(classes)}
    path = save_weights(model, tmp_path / "net.safetensors")
    (record,) = caplog.records
    assert "the last layer was replaced since the class names were set: they are left out" in record.message
    again = create_model(path).eval()
    assert (again.num_classes, again.categories, again.wnids) == (classes, (), ())
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(again(x), model(x))


def test_a_new_last_layer_gets_names_of_its_own(model: ProxylessNAS, tmp_path: Path) -> None:
    new_layer(model, 3)
    model.num_classes = 3  # needed once, and harmless now
    path = save_weights(model, tmp_path / "net.safetensors", categories=["x", "y", "z"])
    assert create_model(path).categories == ("x", "y", "z")
    model.categories = ("u", "v", "w")
    assert create_model(save_weights(model, path)).categories == ("u", "v", "w")
    model.categories = ("u", "v")
    assert {p.name for p in model.predict(Image.new("RGB", (40, 40)))} == {"0", "1", "2"}
    with pytest.raises(ValueError, match="2 class names for 3 classes"):
        save_weights(model, path)
    model.classifier = nn.Identity()
    assert (model.num_classes, model.categories) == (0, ())


def test_names_stay_with_a_layer_that_is_only_moved(model: ProxylessNAS) -> None:
    copied = copy.deepcopy(model).double()
    assert copied.categories == NAMES
    new_layer(copied, 5)
    assert (copied.categories, model.categories) == ((), NAMES)
    load_weights(model, model.state_dict())
    model.classifier.linear.requires_grad_(False)
    assert model.categories == NAMES


def test_a_stem_for_other_channels(model: ProxylessNAS, tmp_path: Path) -> None:
    model.first_conv.conv = nn.Conv2d(1, SMALL.stem, 3, SMALL.stem_stride, 1, bias=False)
    assert model.in_chans == 1
    again = create_model(save_weights(model, tmp_path / "net.safetensors")).eval()
    x = torch.randn(2, 1, 32, 32)
    assert again.in_chans == 1
    assert torch.equal(again(x), model(x))


def _sequential(model: ProxylessNAS) -> None:
    model.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(model.num_features, 3))


def _wider_stem(model: ProxylessNAS) -> None:
    model.first_conv.conv = nn.Conv2d(3, SMALL.stem, 5, SMALL.stem_stride, 2, bias=False)


CHANGES: dict[str, tuple[Callable[[ProxylessNAS], object], str]] = {
    "pruned": (lambda m: prune.l1_unstructured(m.classifier.linear, "weight", 0.5), r"prune\.remove\("),
    "weight norm": (lambda m: parametrizations.weight_norm(m.classifier.linear), "remove_parametrizations"),
    "a sequential classifier": (_sequential, r"model\.reset_classifier\(N\)"),
    "another stem": (_wider_stem, r"first_conv\.conv\.weight \[8, 3, 5, 5\], not \[8, 3, 3, 3\]"),
    "a layer more": (lambda m: m.add_module("extra", nn.Linear(1, 1)), r"2 unexpected \(extra\.weight"),
    "a block less": (lambda m: m.blocks.__delitem__(-1), r"missing \(blocks\."),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_could_not_be_read_back_is_refused(name: str, model: ProxylessNAS, tmp_path: Path) -> None:
    change, message = CHANGES[name]
    change(model)
    with pytest.raises(WeightsMismatchError, match=message) as caught:
        save_weights(model, tmp_path / "net.safetensors")
    assert "net.safetensors: not written" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_after_pruning_is_made_final_it_is_saved(model: ProxylessNAS, tmp_path: Path) -> None:
    prune.l1_unstructured(model.classifier.linear, "weight", 0.5)
    prune.remove(model.classifier.linear, "weight")
    again = create_model(save_weights(model, tmp_path / "net.safetensors"))
    assert again.categories == NAMES
    assert int((again.classifier.linear.weight == 0).sum()) == 5 * model.num_features // 2


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "DataParallel": nn.DataParallel,
    "compiled": torch.compile,
    "both": lambda m: torch.compile(nn.DataParallel(m)),
    "averaged": torch.optim.swa_utils.AveragedModel,
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_wrapped_models(name: str, model: ProxylessNAS, tmp_path: Path) -> None:
    wrapped = WRAPPERS[name](model)
    again = create_model(save_weights(wrapped, tmp_path / "net.safetensors"))  # type: ignore[arg-type]
    assert again.categories == NAMES
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))
    state = create_model(SMALL).state_dict()
    load_weights(wrapped, state)  # type: ignore[arg-type]
    inner = unwrapped(wrapped)
    assert isinstance(inner, ImageClassifier)
    assert all(torch.equal(value, state[key]) for key, value in inner.state_dict().items())


def test_a_compiled_part_of_a_model_is_saved_under_plain_names(model: ProxylessNAS, tmp_path: Path) -> None:
    model.feature_mix_layer = torch.compile(model.feature_mix_layer)
    assert create_model(save_weights(model, tmp_path / "net.safetensors")).num_classes == 5


def test_saving_draws_no_random_numbers(tmp_path: Path) -> None:
    for arch in (SMALL, SMALL_TREE):
        model = create_model(arch)
        before = torch.get_rng_state()
        save_weights(model, tmp_path / "net.safetensors")
        assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("part", ["stem", "classifier"])
def test_a_file_that_would_open_as_another_model_is_not_written(part: str, tmp_path: Path) -> None:
    model = create_model(SMALL)
    if part == "stem":
        conv = model.first_conv.conv
        model.first_conv.conv = nn.Conv2d(6, conv.out_channels, 3, conv.stride, 1, groups=2, bias=False)
    else:
        linear = model.classifier.linear
        linear.weight, linear.bias = nn.Parameter(linear.weight[:3]), nn.Parameter(linear.bias[:3])
    with pytest.raises(WeightsMismatchError, match="not written"):
        save_weights(model, tmp_path / "m.safetensors")
    assert not (tmp_path / "m.safetensors").exists()
