"""Checkpoints as other training loops write them: prefixes, averages and objects beside the weights."""

from __future__ import annotations

import argparse
import collections
import logging
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from proxylessnas import WeightsCorruptError, WeightsMismatchError, create_model, load_weights
from proxylessnas.models.base import ImageClassifier
from proxylessnas.utils.tensor_files import safe_load
from tests.models.test_models import SMALL


@pytest.fixture
def model() -> ImageClassifier:
    torch.manual_seed(5)
    return create_model(SMALL)


def same(model: ImageClassifier, state: Mapping[str, Tensor]) -> bool:
    own = model.state_dict()
    return own.keys() == state.keys() and all(torch.equal(own[key], state[key]) for key in own)


def renamed(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


@pytest.mark.parametrize(
    ("prefix", "said"),
    [
        ("_orig_mod.module.", ""),
        ("module.module.", ""),
        ("module._orig_mod.module.", ""),
        ("model.", "model."),
        ("net.", "net."),
        ("module.model._orig_mod.", "model."),
        ("task.backbone.", "task.backbone."),
    ],
)
def test_prefixes(
    prefix: str, said: str, model: ImageClassifier, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Those of known wrappers come off without a word; another one that all names have is said."""
    file = tmp_path / "net.pth"
    torch.save({"state_dict": renamed(model.state_dict(), prefix), "epoch": 1}, file)
    caplog.set_level(logging.WARNING, "proxylessnas")
    fresh = create_model(SMALL)
    report = load_weights(fresh, file)
    assert same(fresh, model.state_dict())
    assert report.prefix == said
    assert [r.getMessage() for r in caplog.records] == (
        [f"{file}: the prefix {said!r} of all names was taken off"] if said else []
    )
    assert same(create_model(SMALL, weights=file), model.state_dict())


def test_a_compiled_part_of_a_model(model: ImageClassifier) -> None:
    state = {key.replace("blocks.", "blocks._orig_mod."): value for key, value in model.state_dict().items()}
    fresh = create_model(SMALL)
    load_weights(fresh, state)
    assert same(fresh, model.state_dict())


def test_a_prefix_does_not_hide_the_number_of_classes(tmp_path: Path) -> None:
    state = create_model(SMALL, num_classes=7).state_dict()
    torch.save(renamed(state, "model."), tmp_path / "net.pth")
    assert same(create_model(SMALL, weights=tmp_path / "net.pth"), state)
    body = create_model(SMALL, weights=tmp_path / "net.pth", num_classes=0)
    assert torch.equal(body.state_dict()["first_conv.conv.weight"], state["first_conv.conv.weight"])


def test_names_that_no_prefix_explains_are_shown(model: ImageClassifier, tmp_path: Path) -> None:
    torch.save({f"features.{i}": torch.zeros(1) for i in range(3)}, tmp_path / "net.pth")
    with pytest.raises(
        WeightsMismatchError, match=r"they hold 'features\.0', it has 'first_conv\.conv\.weight'$"
    ):
        load_weights(model, tmp_path / "net.pth")
    state = renamed(model.state_dict(), "model.")
    with pytest.raises(WeightsMismatchError, match=r"they hold 'model\.first_conv\.conv\.weight', it has"):
        load_weights(model, {**state, "criterion.weight": torch.zeros(1)})


def test_averaged_models(model: ImageClassifier) -> None:
    fresh = create_model(SMALL)
    load_weights(fresh, AveragedModel(model).state_dict())
    assert same(fresh, model.state_dict())


@pytest.mark.parametrize(("own", "average"), [("model", "model_ema"), ("state_dict", "state_dict_ema")])
def test_averages_beside_the_weights_are_left_aside(
    own: str, average: str, model: ImageClassifier, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file, ema = tmp_path / "net.pth", AveragedModel(create_model(SMALL)).state_dict()
    torch.save({average: ema, own: model.state_dict(), "epoch": 3}, file)
    assert same(create_model(SMALL, weights=file), model.state_dict())
    (record,) = caplog.records
    assert f"the weights under {own!r} are used; averaged ones under {average!r}" in record.getMessage()
    caplog.clear()
    torch.save({average: ema, "epoch": 3}, file)
    only = {key.removeprefix("module."): value for key, value in ema.items() if key != "n_averaged"}
    assert same(create_model(SMALL, weights=file), only)
    assert not caplog.records


THINGS: dict[str, Any] = {
    "score": numpy.float64(91.5),
    "steps": numpy.int32(7),
    "scores": numpy.arange(3.0),
    "args": argparse.Namespace(lr=0.1, out=Path("runs"), best=numpy.float32(1)),
    "folder": Path("runs"),
}


@pytest.mark.parametrize("name", THINGS)
@pytest.mark.parametrize("old", [False, True])
def test_harmless_objects_beside_the_weights_are_ignored(
    name: str, old: bool, model: ImageClassifier, tmp_path: Path
) -> None:
    state = {"state_dict": model.state_dict(), name: THINGS[name]}
    torch.save(state, tmp_path / "net.pth", _use_new_zipfile_serialization=not old)
    assert same(create_model(SMALL, weights=tmp_path / "net.pth"), model.state_dict())
    with pytest.raises(pickle.UnpicklingError):  # torch itself refuses them as before
        torch.load(tmp_path / "net.pth", weights_only=True)


def test_ignored_objects_are_never_made(
    model: ImageClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"state_dict": model.state_dict(), "args": argparse.Namespace(lr=1)}, tmp_path / "net.pth")

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a class named in a file was used")

    monkeypatch.setattr(argparse.Namespace, "__init__", refuse)
    monkeypatch.setattr(argparse.Namespace, "__setstate__", refuse, raising=False)
    assert safe_load(tmp_path / "net.pth")[0].keys() == model.state_dict().keys()


@pytest.mark.parametrize(
    "thing", [nn.Linear(2, 2), collections.deque([1]), {"weight": numpy.float64(1)}, {"weight": 1.5}]
)
def test_the_error_about_objects_says_how_to_save(thing: Any, tmp_path: Path) -> None:
    torch.save(thing, tmp_path / "net.pth")
    with pytest.raises(
        WeightsCorruptError, match=r"save.* model\.state_dict\(\)|save\(model\.state_dict\(\)"
    ):
        safe_load(tmp_path / "net.pth")
