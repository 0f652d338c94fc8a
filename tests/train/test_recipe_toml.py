"""Recipes as TOML files and as settings on a command line."""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxylessnas.errors import DataError, MissingExtraError
from proxylessnas.train.presets import PRESETS
from proxylessnas.train.recipe import Recipe, read_recipe
from proxylessnas.utils.checks import Option
from proxylessnas.utils.config import options

KINDS = options(Recipe)
preset, parse_set, changed = Recipe.preset, Recipe.parse_set, Recipe.changed

_NUMBER = {
    int: lambda r: st.integers(math.ceil(r.low), int(min(r.high, 2**40))),
    float: lambda r: st.floats(
        r.low, min(r.high, 1e30), exclude_min=r.open_low, exclude_max=r.open_high, allow_nan=False
    ),
}


def _values(known: Option) -> st.SearchStrategy[Any]:
    values: st.SearchStrategy[Any]
    if known.type is bool:
        values = st.booleans()
    elif isinstance(known.allowed, tuple):
        values = st.sampled_from(known.allowed)
    elif known.count:
        values = st.tuples(*[_NUMBER[float](known.allowed)] * known.count)
    else:
        values = _NUMBER[known.type](known.allowed)
    return st.none() | values if known.optional else values


RECIPES = st.fixed_dictionaries(
    # what has to fit the rest is kept out of its way
    {name: _values(known) for name, known in KINDS.items() if name not in ("batch_size", "accumulate")}
    | {"epochs": st.integers(1000, 10**6), "image_size": st.none(), "crop_padding": st.integers(1, 4096)}
    | {"warmup_epochs": st.floats(0, 999), "freeze_epochs": st.integers(0, 999)}
    | {"start_size": st.integers(1, 64), "grow_epochs": st.integers(1, 999)}
).map(lambda values: Recipe(**values))


@given(RECIPES)
def test_toml_and_back(recipe: Recipe) -> None:
    text = recipe.to_toml()
    assert Recipe.from_toml(text) == recipe
    assert repr(Recipe.from_toml(text)) == repr(recipe)  # 0.0 and -0.0, 1 and 1.0 are equal, but not the same


def test_toml_holds_every_value_once_in_groups() -> None:
    recipe = Recipe(image_size=64, resize=64, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2), dropout=0.1)
    recipe = recipe.replace(start_size=32, grow_epochs=2)
    lines = recipe.to_toml().splitlines()
    names = [line.split(" = ")[0] for line in lines if line and not line.startswith("#")]
    assert sorted(names) == sorted(KINDS)
    assert 'optimizer = "sgd"  # sgd | adamw | muon' in lines
    assert "weight_decay = 4e-05" in lines
    assert "image_size" not in Recipe().to_toml().replace("image_size;", "")
    for preset_recipe in map(preset, PRESETS):
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
        "there is no 'epoch': did you mean epochs",
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


def test_a_file_for_one_epoch_shortens_what_its_base_freezes() -> None:
    recipe = Recipe.from_toml('base = "finetune"\nepochs = 1\n')
    assert (recipe.epochs, recipe.freeze_epochs, recipe.warmup_epochs) == (1, 0, 0.5)
    with pytest.raises(DataError, match="freeze_epochs 1 must be below epochs"):
        Recipe.from_toml('base = "finetune"\nepochs = 1\nfreeze_epochs = 1\n')
    assert Recipe.from_toml('base = "scratch"\nepochs = 4\n').warmup_epochs == 3  # as it always was


@pytest.mark.parametrize("text", ["{}=1", "x={{{}=1}}", "[{}]", '{}."b"=1'])
def test_a_key_of_many_parts_takes_no_time(text: str) -> None:
    begin = time.process_time()
    with pytest.raises(DataError, match="a key of more than 20 parts"):
        Recipe.from_toml(text.format(".".join("a" * 100_000)) + "\n")
    assert time.process_time() - begin < 2


def test_dots_elsewhere_are_no_keys() -> None:
    dots = "." * 50
    assert Recipe.from_toml(f"# {dots}\nepochs = 3 # {dots}\n").epochs == 3
