"""Recipes: what they accept, and the presets against the published numbers."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest

from proxylessnas.errors import DataError
from proxylessnas.train.presets import ABOUT
from proxylessnas.train.presets import PRESETS as TABLES
from proxylessnas.train.recipe import Recipe
from proxylessnas.utils.checks import Range
from proxylessnas.utils.config import options

preset = Recipe.preset
PRESETS = {name: preset(name) for name in TABLES}

# ---- presets


@pytest.mark.parametrize(
    ("name", "dropout"),
    [("imagenet-gpu", 0.3), ("imagenet-cpu", 0.2), ("imagenet-mobile", 0.1), ("imagenet-mobile-14", 0.3)],
)
def test_published_imagenet_recipe(name: str, dropout: float) -> None:
    # Every value that is not listed here is off, or has no part in it.
    assert preset(name) == Recipe(
        epochs=300, batch_size=256, accumulate=1, seed=0,
        image_size=224, resize=256, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
        interpolation="bilinear", crop="resized", crop_scale_min=0.08, flip=True,
        jitter_brightness=0.4, jitter_contrast=0.4, jitter_saturation=0.4, jitter_hue=0.1,
        rand_augment=0, random_erasing=0.0, cutout=0, mixup_alpha=0.0, cutmix_alpha=0.0, label_smoothing=0.1,
        optimizer="sgd", learning_rate=0.05, momentum=0.9, weight_decay=4e-5, no_decay="bn",
        schedule="cosine", warmup_epochs=0.0, final_rate=0.0, layer_decay=1.0, head_rate=1.0,
        freeze_epochs=0, clip_norm=0.0, dropout=dropout, drop_path=0.0, ema_decay=0.0,
        recalibrate_batches=0, zero_init_residual=False, amp="off", keep="last",
    )  # fmt: skip


def test_published_cifar_recipe() -> None:
    recipe = preset("cifar10")
    assert [v * 255 for v in recipe.mean or ()] == pytest.approx([125.3, 123.0, 113.9])
    assert [v * 255 for v in recipe.std or ()] == pytest.approx([63.0, 62.1, 66.7])
    assert recipe.replace(mean=None, std=None) == Recipe(
        epochs=300, batch_size=64, accumulate=1, seed=0, image_size=32, resize=32,
        crop="padded", crop_padding=4, flip=True, cutout=16,
        jitter_brightness=0.0, jitter_contrast=0.0, jitter_saturation=0.0, jitter_hue=0.0,
        rand_augment=0, random_erasing=0.0, mixup_alpha=0.0, cutmix_alpha=0.0, label_smoothing=0.0,
        optimizer="sgd", learning_rate=0.1, momentum=0.9, weight_decay=1e-4, no_decay="none",
        schedule="cosine", warmup_epochs=0.0, final_rate=0.0, layer_decay=1.0, head_rate=1.0,
        freeze_epochs=0, clip_norm=0.0, dropout=None, drop_path=0.0, ema_decay=0.0,
        recalibrate_batches=0, zero_init_residual=False, amp="off", keep="last",
    )  # fmt: skip


def test_presets_are_listed_and_found() -> None:
    assert PRESETS.keys() == ABOUT.keys()
    assert {"scratch", "finetune", "small-images"} <= PRESETS.keys()
    assert preset("ImageNet_Mobile14") == PRESETS["imagenet-mobile-14"]
    for recipe in PRESETS.values():  # any of them can be tried briefly
        assert recipe.with_epochs(1).epochs == 1
    with pytest.raises(DataError, match=r"'finetun': did you mean finetune\? \(known: scratch, .*\.toml"):
        preset("finetun")
    with pytest.raises(DataError, match="no recipe is called"):
        preset(3)  # type: ignore[arg-type]


# ---- values


def test_every_value_has_a_rule() -> None:
    for name, known in options(Recipe).items():
        rule = {bool: type(None), int: Range, float: Range, str: tuple}[known.type]
        assert isinstance(known.allowed, rule), name
        assert known.help
        assert known.group
        assert f"    {name}: " in (Recipe.__doc__ or "")
    assert {known.count for known in options(Recipe).values()} == {0, 2, 3}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("epochs", 0, "epochs must be a whole number from 1 to 1000000, not 0"),
        ("epochs", 1.0, "whole number"),
        ("epochs", True, "whole number"),
        ("batch_size", "32", "whole number"),
        ("seed", -1, "seed must be"),
        ("learning_rate", 0, "learning_rate must be a number above 0 and at most 1000, not 0"),
        ("learning_rate", math.nan, "learning_rate"),
        ("learning_rate", 10**400, "learning_rate"),
        ("clip_norm", math.inf, "clip_norm"),
        ("momentum", 1.0, "momentum must be a number at least 0 and below 1, not 1.0"),
        ("betas", (0.9, 1.0), "betas must be 2 numbers, each at least 0 and below 1"),
        ("betas", (0.9,), "betas must be 2 numbers"),
        ("betas", 0.9, "betas must be 2 numbers"),
        ("mean", (0.5, 0.5, 1.5), "mean must be 3 numbers, each from 0 to 1"),
        ("std", (0.5, 0.5, 0), "std must be 3 numbers, each above 0"),
        ("std", "abc", "std must be 3 numbers"),
        ("final_rate", 1.1, "final_rate"),
        ("layer_decay", 0.0, "layer_decay"),
        ("jitter_hue", 0.6, "jitter_hue must be a number from 0 to 0.5"),
        ("flip", 1, "flip must be true or false, not 1"),
        ("optimizer", "adam", 'optimizer must be "sgd", "adamw" or "muon", not \'adam\''),
        ("crop", None, 'crop must be "resized", "padded" or "none", not None'),
        ("schedule", ["cosine"], "schedule"),
        ("epochs", None, "epochs"),
        ("dropout", 1.0, "dropout"),
        ("image_size", 0, "image_size"),
    ],
)
def test_wrong_values(name: str, value: Any, message: str) -> None:
    with pytest.raises(DataError) as error:
        Recipe(**{name: value})
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batch_size": 10, "accumulate": 3}, "batch_size 10 has no 3 equal parts"),
        ({"batch_size": 2, "accumulate": 4}, "batch_size 2"),
        ({"epochs": 5, "warmup_epochs": 5}, "warmup_epochs 5 must be below epochs, which is 5"),
        ({"epochs": 1, "freeze_epochs": 1}, "freeze_epochs 1 must be below epochs, which is 1"),
        ({"crop": "padded", "crop_padding": 0}, 'use crop "none"'),
        ({"image_size": 224, "resize": 223}, "resize 223 is below image_size 224"),
        ({"image_size": 8, "cutout": 8}, "cutout 8 must be below image_size, which is 8"),
        ({"image_size": 8, "crop": "padded", "crop_padding": 8}, "crop_padding 8 must be below image_size"),
    ],
)
def test_values_that_do_not_fit_together(values: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as error:
        Recipe(**values)
    assert message in str(error.value)


def test_bounds_belong_to_the_range() -> None:
    Recipe(epochs=1, batch_size=1, seed=2**32 - 1, val_fraction=0, crop_scale_min=1, final_rate=1)
    Recipe(label_smoothing=0, momentum=0, weight_decay=0, layer_decay=1, image_size=32, resize=32, cutout=31)
    Recipe(val_fraction=0.9)


def test_numbers_take_the_type_of_their_field() -> None:
    recipe = Recipe(learning_rate=1, mean=[0, 1, 0.5], dropout=0)  # type: ignore[arg-type]
    assert repr(recipe.learning_rate) == "1.0"
    assert recipe.mean == (0.0, 1.0, 0.5)
    assert hash(recipe) == hash(Recipe(learning_rate=1.0, mean=(0.0, 1.0, 0.5), dropout=0.0))


def test_all_problems_at_once() -> None:
    with pytest.raises(DataError) as error:
        Recipe.from_dict({"epochs": 0, "lr": 3, "amp": "x", "warmup_epochs": 500}, "the file")
    assert str(error.value).splitlines() == [
        "the file: 3 problems",
        "  there is no 'lr': did you mean learning_rate?",
        "  epochs must be a whole number from 1 to 1000000, not 0",
        '  amp must be "off", "bf16" or "fp16", not \'x\'',
    ]
    with pytest.raises(DataError, match="2 problems"):
        Recipe(warmup_epochs=100, batch_size=5, accumulate=2)


def test_dict_and_back() -> None:
    for recipe in PRESETS.values():
        plain = json.loads(json.dumps(recipe.to_dict()))
        assert plain.keys() == options(Recipe).keys()
        assert Recipe.from_dict(plain) == recipe
    assert Recipe.from_dict({"epochs": 7}, base=preset("cifar10")) == preset("cifar10").replace(epochs=7)
    with pytest.raises(DataError, match="checkpoint: must be a table of values, not list"):
        Recipe.from_dict([], "checkpoint")  # type: ignore[arg-type]


def test_replace() -> None:
    assert Recipe().replace(epochs=3).epochs == 3
    with pytest.raises(DataError, match="there is no 'momentun': did you mean momentum"):
        Recipe().replace(momentun=0.9)
    with pytest.raises(dataclasses.FrozenInstanceError):
        Recipe().epochs = 3  # type: ignore[misc]


def test_fewer_epochs_shorten_warmup_and_freezing_only_where_they_must() -> None:
    recipe = Recipe(epochs=100, warmup_epochs=5, freeze_epochs=3)
    assert recipe.with_epochs(10) == recipe.replace(epochs=10)
    assert recipe.with_epochs(4) == Recipe(epochs=4, warmup_epochs=2.0, freeze_epochs=2)
    assert recipe.with_epochs(1) == Recipe(epochs=1, warmup_epochs=0.5, freeze_epochs=0)
    with pytest.raises(DataError, match="epochs must be"):
        recipe.with_epochs(0)


def test_differences_are_named() -> None:
    new = Recipe(learning_rate=0.05, mean=(0.5, 0.5, 0.5))
    assert new.differences(Recipe(learning_rate=0.1)) == [
        "mean: [0.5, 0.5, 0.5], was None", "learning_rate: 0.05, was 0.1"
    ]  # fmt: skip
    assert new.differences(new) == []


def test_images_grow() -> None:
    recipe = Recipe(epochs=10, start_size=16, grow_epochs=4)
    assert [recipe.side_at(epoch, 32) for epoch in range(7)] == [16, 20, 24, 28, 32, 32, 32]
    assert Recipe().side_at(0, 32) == 32
    assert recipe.with_epochs(20).grow_epochs == 8
    assert recipe.with_epochs(2).start_size is None  # too short to grow
    for wrong in ({"start_size": 16}, {"grow_epochs": 3}, {"start_size": 16, "grow_epochs": 100}):
        with pytest.raises(DataError, match="grow_epochs"):
            Recipe(**wrong)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="start_size 32 must be below image_size, which is 32"):
        Recipe(start_size=32, grow_epochs=2, image_size=32)
