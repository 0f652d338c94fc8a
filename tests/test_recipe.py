"""Recipes: what they accept, their TOML form, the presets against the published numbers."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxylessnas.errors import DataError, MissingExtraError
from proxylessnas.train.presets import ABOUT, PRESETS, preset
from proxylessnas.train.recipe import KINDS, Recipe, changed, differences, read_recipe
from proxylessnas.train.recipe_rules import CHOICES, RANGES
from proxylessnas.train.recipe_toml import parse_set, to_toml

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
    assert preset("ImageNet_Mobile14") is PRESETS["imagenet-mobile-14"]
    for recipe in PRESETS.values():  # any of them can be tried briefly
        assert recipe.with_epochs(1).epochs == 1
    with pytest.raises(DataError, match=r"'finetun': did you mean finetune\? \(known: scratch, .*\.toml"):
        preset("finetun")
    with pytest.raises(DataError, match="no recipe is called"):
        preset(3)  # type: ignore[arg-type]


# ---- values


def test_every_value_has_a_rule() -> None:
    booleans = {name for name, kind in KINDS.items() if kind == "bool"}
    assert booleans | RANGES.keys() | CHOICES.keys() == KINDS.keys()
    assert {kind.removesuffix(" | None").partition("[")[0] for kind in KINDS.values()} == {
        "bool", "int", "float", "str", "tuple"
    }  # fmt: skip


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
        ("optimizer", "adam", 'optimizer must be "sgd" or "adamw", not \'adam\''),
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
        ({"image_size": 8, "cutout": 9}, "cutout 9 is larger"),
        ({"image_size": 8, "crop": "padded", "crop_padding": 8}, "crop_padding 8 must be below image_size"),
    ],
)
def test_values_that_do_not_fit_together(values: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as error:
        Recipe(**values)
    assert message in str(error.value)


def test_bounds_belong_to_the_range() -> None:
    Recipe(epochs=1, batch_size=1, seed=2**32 - 1, val_fraction=0, crop_scale_min=1, final_rate=1)
    Recipe(label_smoothing=0, momentum=0, weight_decay=0, layer_decay=1, image_size=32, resize=32, cutout=32)


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
        assert plain.keys() == KINDS.keys()
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
    assert differences(new, Recipe(learning_rate=0.1)) == [
        "mean: [0.5, 0.5, 0.5], was None", "learning_rate: 0.05, was 0.1"
    ]  # fmt: skip
    assert differences(new, new) == []


# ---- TOML

_NUMBER = {
    "int": lambda r: st.integers(math.ceil(r.low), int(min(r.high, 2**40))),
    "float": lambda r: st.floats(
        r.low, min(r.high, 1e30), exclude_min=r.open_low, exclude_max=r.open_high, allow_nan=False
    ),
}


def _values(name: str, kind: str) -> st.SearchStrategy[Any]:
    plain = kind.removesuffix(" | None")
    values: st.SearchStrategy[Any]
    if plain == "bool":
        values = st.booleans()
    elif plain == "str":
        values = st.sampled_from(CHOICES[name])
    elif plain.startswith("tuple"):
        values = st.tuples(*[_NUMBER["float"](RANGES[name])] * (plain.count(",") + 1))
    else:
        values = _NUMBER[plain](RANGES[name])
    return st.none() | values if plain != kind else values


RECIPES = st.fixed_dictionaries(
    # what has to fit the rest is kept out of its way
    {name: _values(name, kind) for name, kind in KINDS.items() if name not in ("batch_size", "accumulate")}
    | {"epochs": st.integers(1000, 10**6), "image_size": st.none(), "crop_padding": st.integers(1, 4096)}
    | {"warmup_epochs": st.floats(0, 999), "freeze_epochs": st.integers(0, 999)}
).map(lambda values: Recipe(**values))


@given(RECIPES)
def test_toml_and_back(recipe: Recipe) -> None:
    text = to_toml(recipe)
    assert Recipe.from_toml(text) == recipe
    assert repr(Recipe.from_toml(text)) == repr(recipe)  # 0.0 and -0.0, 1 and 1.0 are equal, but not the same


def test_toml_holds_every_value_once_in_groups() -> None:
    recipe = Recipe(image_size=64, resize=64, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2), dropout=0.1)
    lines = recipe.to_toml().splitlines()
    names = [line.split(" = ")[0] for line in lines if line and not line.startswith("#")]
    assert sorted(names) == sorted(KINDS)
    assert 'optimizer = "sgd"  # sgd | adamw' in lines
    assert "weight_decay = 4e-05" in lines
    assert "image_size" not in Recipe().to_toml().replace("image_size;", "")
    for preset_recipe in PRESETS.values():
        assert Recipe.from_toml(preset_recipe.to_toml()) == preset_recipe


def test_toml_with_a_base(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        'base = "cifar10"\nepochs = 30\nimage_size = "none"\nmean = [0, 0.5, 1]\n', encoding="utf-8"
    )
    expected = preset("cifar10").replace(epochs=30, image_size=None, mean=(0.0, 0.5, 1.0))
    assert Recipe.from_toml(path) == expected
    assert Recipe.from_toml(str(path), base=preset("finetune")) == expected  # the file's own base counts
    assert read_recipe(path) == read_recipe(str(path)) == expected
    path.write_text("epochs = 30\n", encoding="utf-8")
    assert Recipe.from_toml(path) == Recipe(epochs=30)
    assert Recipe.from_toml(path, base=preset("finetune")) == preset("finetune").replace(epochs=30)
    assert read_recipe("imagenet_cpu") == preset("imagenet-cpu")


def test_toml_with_mistakes_lists_them_all(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(
        'base = "imagenet"\nepoch = 3\nseed = 1.5\n[optimizer]\nlearning_rate = 4\n', encoding="utf-8"
    )
    with pytest.raises(DataError) as error:
        read_recipe(path)
    lines = str(error.value).splitlines()
    assert lines[0] == f"{path}: 4 problems"
    for expected in (
        "base: no recipe is called 'imagenet'",
        "there is no 'epoch': did you mean epochs?",
        "seed must be a whole number",
        "[optimizer] is a table, but a recipe has none: write learning_rate = ...",
    ):
        assert any(expected in line for line in lines), expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs 3\n", "recipe: not valid TOML"),
        ("epochs = 3\nepochs = 4\n", "not valid TOML"),
        ("epochs = 0", "recipe: epochs must be"),
        ("base = 3", "base: no recipe is called 3"),
        ("warmup_epochs = 200.0", "recipe: warmup_epochs 200 must be below epochs, which is 100"),
        ('epochs = "none"', "epochs must be a whole number"),
        ("learning_rate = 2024-01-01", "learning_rate must be a number"),
    ],
)
def test_bad_toml(text: str, message: str) -> None:
    with pytest.raises(DataError) as error:
        Recipe.from_toml(text)
    assert message in str(error.value)


def test_toml_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.toml: cannot be read as a recipe \(No such file"):
        read_recipe(tmp_path / "none.toml")
    (tmp_path / "latin.toml").write_bytes(b"# \xe4\n")
    with pytest.raises(DataError, match=r"latin\.toml: cannot be read"):
        read_recipe(str(tmp_path / "latin.toml"))


def test_missing_toml_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "tomllib" if sys.version_info >= (3, 11) else "tomli"
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match="pip install"):
        Recipe.from_toml("epochs = 3")


# ---- the command line


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("epochs=3", ("epochs", 3)),
        (" learning-rate = 5e-2 ", ("learning_rate", 0.05)),
        ("weight_decay=0", ("weight_decay", 0.0)),
        ("optimizer=adamw", ("optimizer", "adamw")),
        ('schedule="linear"', ("schedule", "linear")),
        ("flip=False", ("flip", False)),
        ("mean=0.5,0.5,0.5", ("mean", (0.5, 0.5, 0.5))),
        ("betas=[0.8, 0.99]", ("betas", (0.8, 0.99))),
        ("image_size=none", ("image_size", None)),
        ("crop=none", ("crop", "none")),
    ],
)
def test_set_on_the_command_line(text: str, expected: tuple[str, Any]) -> None:
    assert parse_set(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs", "write name=value"),
        ("=3", "write name=value"),
        ("lr=3", "lr=3: there is no 'lr': did you mean learning_rate?"),
        ("xyzzy=3", "there is no 'xyzzy'"),
        ("epochs=1.5", "epochs must be a whole number"),
        ("epochs=", "epochs must be a whole number"),
        ("flip=1", "flip must be true or false"),
        ("mean=0.5", "mean must be 3 numbers"),
        ("mean=a,b,c", "mean must be 3 numbers"),
        ("epochs=none", "epochs must be"),
        ("learning_rate=nan", "learning_rate must be"),
    ],
)
def test_wrong_set_on_the_command_line(text: str, message: str) -> None:
    with pytest.raises(DataError) as error:
        parse_set(text)
    assert message in str(error.value)


def test_changes_of_a_command_line() -> None:
    base = preset("finetune")
    assert changed(base) == base
    assert changed(base, ["flip=false", "epochs=9"], {"epochs": 8}) == base.replace(flip=False, epochs=8)
    assert changed(base, ["epochs=1"]) == base.with_epochs(1)
    assert changed(base, ["warmup_epochs=0.2", "epochs=1"]).warmup_epochs == 0.2
    with pytest.raises(DataError) as error:
        changed(base, ["lr=3", "flip=maybe", "epochs=1", "freeze_epochs=1"], {"batch_size": 0})
    assert [line.split()[0] for line in str(error.value).splitlines()] == [
        "recipe:",
        "lr=3:",
        "flip",
        "batch_size",
    ]
    with pytest.raises(DataError, match="freeze_epochs 1 must be below epochs"):
        changed(base, ["epochs=1", "freeze_epochs=1"])  # what was asked for is not bent
