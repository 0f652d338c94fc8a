"""Where a training starts: a new classifier, or the one of the weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from train_tools import BUSY, TINY, differences_of, few_digits, tensors

import proxylessnas
from proxylessnas.errors import CheckpointError, DataError
from proxylessnas.report.html_train import train_again
from proxylessnas.report.train_story import read_train_story
from proxylessnas.train import Settings, finetune
from proxylessnas.train.start import Start, start_net

RECIPE = BUSY.replace(epochs=1, mixup_alpha=0)


def saved(folder: Path, **changes: object) -> Path:
    """Write a net for the digits with random weights."""
    net = proxylessnas.create_model(TINY, num_classes=10)
    net.categories = tuple(few_digits().categories)
    for name, value in changes.items():
        setattr(net, name, value)
    path = folder / "net.safetensors"
    proxylessnas.save_weights(net, path)
    return path


def test_the_classifier_is_new_or_that_of_the_weights(tmp_path: Path) -> None:
    path, data = saved(tmp_path), few_digits()
    given = tensors(path)
    torch.manual_seed(1)
    new = dict(start_net(path, data, RECIPE, Start(True)).state_dict())
    kept = dict(start_net(path, data, RECIPE, Start(True, None, True)).state_dict())
    assert differences_of(given, kept) == 0
    assert [name for name in given if not torch.equal(given[name], new[name])] == ["classifier.linear.weight"]


def test_a_run_that_hardly_moves_ends_with_the_classifier_it_began_with(tmp_path: Path) -> None:
    path = saved(tmp_path)
    still = RECIPE.replace(learning_rate=1e-9, weight_decay=0.0, ema_decay=0.0)
    out = Settings(tmp_path / "run", console=False)
    result = finetune(path, few_digits(), still, out=out, keep_classifier=True)
    assert result.model is not None
    begun, ended = tensors(path), tensors(result.model)
    torch.testing.assert_close(
        ended["classifier.linear.weight"], begun["classifier.linear.weight"], rtol=0, atol=1e-6
    )
    story = read_train_story(out.out)
    assert story.begin["kept_classifier"] is True
    assert "--keep-classifier" in str(train_again(story, out.out, "REPORT"))


def test_going_on_with_another_classifier_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path)
    out = Settings(tmp_path / "run", console=False)
    finetune(path, few_digits(), RECIPE, out=out, keep_classifier=True)
    with pytest.raises(CheckpointError, match="began with other weights"):
        finetune(path, few_digits(), RECIPE, out=out)


@pytest.mark.parametrize(
    ("categories", "said"),
    [
        (tuple("0123456798"), "knows class 8 as '9', but .* has '8' there"),
        (tuple("abcdefghij"), "knows class 0 as 'a', but .* has '0' there"),
    ],
)
def test_a_classifier_of_other_classes_is_not_kept(
    tmp_path: Path, categories: tuple[str, ...], said: str
) -> None:
    path = saved(tmp_path, categories=categories)
    out = Settings(tmp_path / "run", console=False)
    with pytest.raises(DataError, match=said + ".*no --keep-classifier"):
        finetune(path, few_digits(), RECIPE, out=out, keep_classifier=True)
    assert not out.out.exists()


def test_a_classifier_with_more_classes_is_not_kept(tmp_path: Path) -> None:
    net = proxylessnas.create_model(TINY, num_classes=1000)
    proxylessnas.save_weights(net, tmp_path / "net.safetensors")
    out = Settings(tmp_path / "run", console=False)
    with pytest.raises(DataError, match=r"has 1,000 classes, but .* has 10"):
        finetune(tmp_path / "net.safetensors", few_digits(), RECIPE, out=out, keep_classifier=True)
