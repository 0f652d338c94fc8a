"""Where a training starts: a new classifier, or the one of the weights."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from train_tools import BUSY, TINY, differences_of, few_digits, noise_folder, run_command, tensors

import proxylessnas
from proxylessnas import cli
from proxylessnas.data.open import VALIDATION_FILE, not_held_out_before, validation_names
from proxylessnas.errors import CheckpointError, DataError
from proxylessnas.report.runs import read_train_run
from proxylessnas.report.train_page import train_page
from proxylessnas.train import Data, Settings, finetune, open_data, train
from proxylessnas.train.distillation import teacher_notes
from proxylessnas.train.setup import Start, kept_before, started
from proxylessnas.train.step import WeightStep

RECIPE = BUSY.replace(epochs=1, mixup_alpha=0)


def saved(folder: Path, **changes: object) -> Path:
    """Write a model for the digits with random weights."""
    model = proxylessnas.create_model(TINY, num_classes=10)
    model.categories = tuple(few_digits().categories)
    for name, value in changes.items():
        setattr(model, name, value)
    path = folder / "net.safetensors"
    proxylessnas.save_weights(model, path)
    return path


def test_the_classifier_is_new_or_that_of_the_weights(tmp_path: Path) -> None:
    path, data = saved(tmp_path), few_digits()
    given = tensors(path)
    torch.manual_seed(1)
    new = dict(started(path, data, RECIPE, Start(None, True))[0].state_dict())
    kept = dict(started(path, data, RECIPE, Start(None, True, None, True))[0].state_dict())
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
    run = read_train_run(out.out)
    assert run.begin["kept_classifier"] is True
    assert "--keep-classifier" in train_page({"run": run}, out.out, [], "REPORT").commands


def test_going_on_with_another_classifier_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path)
    out = Settings(tmp_path / "run", console=False)
    finetune(path, few_digits(), RECIPE, out=out, keep_classifier=True)
    with pytest.raises(CheckpointError, match="began with other weights"):
        finetune(path, few_digits(), RECIPE, out=out, keep_classifier=False)


def test_a_classifier_of_the_same_classes_is_kept(tmp_path: Path) -> None:
    """In the same order, that is; and the preset's frozen epoch, for a new one, is left out."""
    path, data = saved(tmp_path), few_digits()
    auto = Start(str(path), True, None, None)
    model, start = started(path, data, RECIPE, auto)
    assert start.keep_classifier is True
    assert differences_of(tensors(path), dict(model.state_dict())) == 0
    (said,) = start.begun_with(model, data)
    assert "is kept: its classes are those of digits (--new-classifier" in said
    for known in (tuple("1023456789"), ()):
        model, start = started(saved(tmp_path, categories=known), data, RECIPE, auto)
        assert start.keep_classifier is False
        assert start.begun_with(model, data) == ["the classifier is new, for the 10 classes of digits"]


@pytest.mark.parametrize("keep", [True, False, None])
def test_a_run_that_is_continued_keeps_what_it_began_with(tmp_path: Path, keep: bool | None) -> None:
    """Whatever is the default where classes are the same: runs from before it was go on too."""
    path, out = saved(tmp_path), Settings(tmp_path / "run", console=False)
    assert kept_before(out.out) is None
    first = finetune(path, few_digits(), RECIPE, out=out, keep_classifier=keep)
    kept = keep is not False
    assert kept_before(out.out) is kept
    again = finetune(path, few_digits(), RECIPE, out=out)
    assert first.model is not None
    assert again.steps == first.steps
    run = read_train_run(out.out)
    assert ("--keep-classifier" if kept else "--new-classifier") in train_page(
        {"run": run}, out.out, [], "REPORT"
    ).commands
    if not kept:  # a log that says nothing of it
        log = out.out / "log.jsonl"
        log.write_text(log.read_text(encoding="utf-8").replace('"kept_classifier"', '"x"'), encoding="utf-8")
        assert kept_before(out.out) is False


def test_the_presets_frozen_epoch_goes_with_a_new_classifier(tmp_path: Path) -> None:
    path = saved(tmp_path)
    for name, more, frozen in (("kept", [], 0), ("new", ["--new-classifier"], 1)):
        words = [
            "finetune",
            str(path),
            "digits",
            "--limit",
            "10",
            "--epochs",
            "2",
            "--workers",
            "0",
            "--quiet",
        ]
        words += ["--set", "image_size=8", "--device", "cpu", *more, "--out", str(tmp_path / name)]
        done = run_command(*words)
        assert done.returncode == 0, done.stderr
        assert done.stderr.startswith("note: 10 classes, training + validation images: 0 10 + 10, 1 10 + 10")
        recipe = (tmp_path / name / "recipe.toml").read_text(encoding="utf-8")
        assert f"freeze_epochs = {frozen}" in recipe


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
    model = proxylessnas.create_model(TINY, num_classes=1000)
    proxylessnas.save_weights(model, tmp_path / "net.safetensors")
    out = Settings(tmp_path / "run", console=False)
    with pytest.raises(DataError, match=r"has 1,000 classes, but .* has 10"):
        finetune(tmp_path / "net.safetensors", few_digits(), RECIPE, out=out, keep_classifier=True)


def test_images_that_were_not_held_out_before_are_pointed_at(tmp_path: Path) -> None:
    """More images, or another seed, hold out others: the model may know them."""
    out = Settings(tmp_path / "first", console=False)
    result = finetune(saved(tmp_path), few_digits(), RECIPE, out=out)
    assert result.model is not None

    def notes(data: Data, source: Path) -> list[str]:
        start = Start(str(source), pretrained=True, keep_classifier=True)
        return start.notes(started(source, data, RECIPE, start)[0], data)

    assert notes(few_digits(), result.model) == []
    (note,) = notes(open_data("digits", limit=10, seed=1), result.model)
    assert "images held out here were not held out for" in note
    assert "--val" in note
    (note,) = notes(few_digits(), saved(tmp_path))
    assert "is not known" in note


def test_held_out_images_that_a_teacher_may_know_are_pointed_at(tmp_path: Path) -> None:
    out = Settings(tmp_path / "first", console=False)
    result = finetune(saved(tmp_path), few_digits(), RECIPE, out=out)
    assert result.model is not None
    others = open_data("digits", limit=10, seed=1)
    assert teacher_notes(result.model, few_digits(), RECIPE) == []
    (note,) = teacher_notes([saved(tmp_path), result.model], others, RECIPE)
    assert f"were not held out for the teacher {result.model}" in note
    assert teacher_notes(proxylessnas.create_model(TINY, num_classes=10), others, RECIPE) == []
    train(TINY, others, RECIPE, out=Settings(tmp_path / "second", console=False), teacher=result.model)
    assert note in (tmp_path / "second" / "log.jsonl").read_text(encoding="utf-8")
    several = (path for path in (saved(tmp_path), result.model))
    out = Settings(tmp_path / "third", console=False)
    train(TINY, others, RECIPE, out=out, teacher=several)  # type: ignore[arg-type]
    assert note in (tmp_path / "third" / "log.jsonl").read_text(encoding="utf-8")


def test_which_images_an_earlier_run_held_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However the folder is written; beside the file of the weights, and never beside the name of a model."""
    noise_folder(tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    data, again = (open_data(folder, val_fraction=0.25) for folder in ("photos", tmp_path / "photos"))
    names = validation_names(data)
    assert names
    assert names != validation_names(again)
    (tmp_path / VALIDATION_FILE).write_text("\n".join(names), encoding="utf-8")
    weights = saved(tmp_path)
    assert not_held_out_before(weights, again) == 0
    assert not_held_out_before("proxyless_cifar10_demo", again) is None
    other = open_data("photos", val_fraction=0.25, seed=3)
    new = set(validation_names(other)) - set(names)
    assert not_held_out_before("net.safetensors", other) == len(new) > 0
    start = Start("proxyless_cifar10_demo", weights=weights, keep_classifier=True)
    model = proxylessnas.create_model(TINY, num_classes=len(data.categories))
    model.categories = data.categories
    assert start.notes(model, again) == []
    (note,) = start.notes(model, other)
    assert f"were not held out for {weights}" in note


def test_what_a_recipe_says_of_teachers_counts_for_nothing_without_one() -> None:
    recipe = RECIPE.replace(teacher_mirrored=True, teacher_share=0.5)
    (note,) = teacher_notes(None, few_digits(), recipe)
    assert "teacher_share = 0.5, teacher_mirrored = True" in note
    assert teacher_notes(None, few_digits(), RECIPE) == []
    assert teacher_notes("net.safetensors", few_digits(), recipe) == []


def test_a_model_without_names_is_taken_at_its_word(tmp_path: Path) -> None:
    data = few_digits()
    start = Start(None, keep_classifier=True)
    recipe = RECIPE.replace(drop_path=0)
    model, _ = started(proxylessnas.create_model(TINY, num_classes=10), data, recipe, start)
    (note,) = start.notes(model, data)
    assert "does not name its classes" in note
    model.categories = tuple("abcdefghij")
    with pytest.raises(DataError, match="knows class 0 as 'a'"):
        started(model, data, recipe, start)


def test_the_command_goes_on_bitwise_and_freezes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path)
    words = ["finetune", str(path), "digits", "--limit", "10", "--epochs", "2", "--device", "cpu", "--quiet"]
    words += ["--threads", "1", "--workers", "0", "--set", "image_size=8", "--keep-classifier"]
    shown = run_command(*words, "--show-recipe").stdout
    assert "freeze_epochs = 0" in shown
    assert "freeze_epochs = 1" in run_command(*words, "--show-recipe", "--freeze-epochs", "1").stdout
    assert "freeze_epochs = 1" in run_command(*words[:-1], "--show-recipe").stdout
    whole = run_command(*words, "--out", str(tmp_path / "whole"))
    assert whole.returncode == 0, whole.stderr

    steps, original = 0, WeightStep.__call__

    def counted(self: WeightStep, *given: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *given)

    monkeypatch.setattr(WeightStep, "__call__", counted)
    cut = [*words, "--out", str(tmp_path / "cut")]
    threads = torch.get_num_threads()
    try:
        assert cli.main(cut) == 128 + signal.SIGTERM
    finally:
        torch.set_num_threads(threads)
    without = ["--new-classifier" if word == "--keep-classifier" else word for word in words]
    refused = run_command(*without, "--freeze-epochs", "0", "--out", str(tmp_path / "cut"))
    assert refused.returncode == 1
    assert "--keep-classifier counts" in refused.stderr
    again = run_command(*cut)
    assert again.returncode == 0, again.stderr
    a, b = (tensors(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert differences_of(a, b) == 0
    run = read_train_run(tmp_path / "cut")
    assert f"finetune {path} digits" in train_page({"run": run}, tmp_path / "cut", [], "REPORT").commands
