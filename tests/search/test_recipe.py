"""The recipe of a search: values, rules, presets, its TOML form and changes from a command line."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from proxylessnas.errors import DataError
from proxylessnas.search.presets import ABOUT
from proxylessnas.search.presets import PRESETS as TABLES
from proxylessnas.search.recipe import PLAIN, SearchRecipe, read_search_recipe
from proxylessnas.train import Recipe
from proxylessnas.train.presets import PRESETS as TRAIN_TABLES
from proxylessnas.utils.checks import Range
from proxylessnas.utils.config import options, settable

KINDS, WEIGHT_KINDS = options(SearchRecipe), options(Recipe)
PRESETS = {name: SearchRecipe.preset(name) for name in TABLES}
TRAIN_PRESETS = {name: Recipe.preset(name) for name in TRAIN_TABLES}
changed, parse_set = SearchRecipe.changed, SearchRecipe.parse_set


def test_the_defaults_are_the_published_ones() -> None:
    r = SearchRecipe()
    assert (r.warmup_epochs, r.epochs, r.search_rate, r.weights.learning_rate) == (40, 120, 0.025, 0.05)
    assert (r.arch_mode, r.arch_every, r.arch_rate, r.arch_betas) == ("full_v2", 5, 1e-3, (0.0, 0.999))
    assert (r.regulariser, r.cost_strength, r.scale, r.frozen_epochs) == ("mul_log", 0.3, 0.2, 1)
    assert (r.reinforce_samples, r.reinforce_updates, r.reinforce_exponent) == (10, 300, 0.1)
    assert (r.weights.batch_size, r.weights.momentum, r.weights.weight_decay) == (256, 0.9, 4e-5)
    assert (r.weights.no_decay, r.weights.label_smoothing) == ("none", 0.1)


def test_the_imagenet_preset_is_the_published_search() -> None:
    r = read_search_recipe("imagenet")
    w = r.weights
    assert round(r.arch_fraction * 1_281_167) == 50_000
    assert (w.jitter_brightness, w.jitter_contrast, w.jitter_saturation, w.jitter_hue) == (
        32 / 255,
        0,
        0.5,
        0,
    )
    assert (w.crop_scale_min, w.image_size, w.resize, w.dropout, w.batch_size) == (0.08, 224, 256, None, 256)
    assert not r.adapt
    assert not r.fair_warmup
    assert r.least_share == 0
    assert (r.reinforce_reward, r.reinforce_baseline, r.reinforce_baseline_first) == ("published", 0.01, True)
    assert (r.held_out_batch_size, r.replace(algorithm="reinforce").held_out_batch_size) == (256, 1000)
    assert [line.partition(":")[0] for line in r.differences(SearchRecipe())] == [
        "least_share", "arch_fraction", "adapt", "reinforce_batch_size", "reinforce_baseline",
        "reinforce_baseline_first", "weights.image_size", "weights.resize", "weights.mean", "weights.std",
        "weights.crop_scale_min", "weights.jitter_brightness", "weights.jitter_saturation",
    ]  # fmt: skip


def test_the_cifar_preset_has_the_papers_rates() -> None:
    r = read_search_recipe("CIFAR")
    assert (r.arch_rate, r.warmup_epochs + r.epochs, r.arch_fraction) == (6e-3, 200, 0.1)
    assert (r.weights.batch_size, r.weights.learning_rate, r.weights.weight_decay) == (64, 0.1, 1e-4)
    assert (r.weights.cutout, r.weights.crop_padding, r.weights.label_smoothing) == (16, 4, 0)


@pytest.mark.parametrize("name", ["imagenet", "cifar"])
def test_a_plus_adds_ours_and_nothing_else(name: str) -> None:
    published, plus = PRESETS[name], read_search_recipe(f"{name}+")
    assert sorted(line.partition(":")[0] for line in plus.differences(published)) == [
        "adapt", "fair_warmup", "least_share", "reinforce_baseline", "reinforce_baseline_first",
        "reinforce_reward",
    ]  # fmt: skip
    for line in plus.differences(published):
        value = line.partition(":")[0]
        assert getattr(plus, value) == getattr(PRESETS["small"], value) == getattr(PRESETS["tiny"], value)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_survive_toml_json_and_a_single_epoch(name: str, tmp_path: Path) -> None:
    recipe = PRESETS[name]
    assert name in ABOUT
    assert SearchRecipe.from_toml(recipe.to_toml()) == recipe
    assert SearchRecipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    (tmp_path / "own.toml").write_text(f'base = "{name}"\n')
    assert read_search_recipe(tmp_path / "own.toml") == recipe == read_search_recipe(name.upper())
    short = recipe.with_epochs(0, 1)
    assert (short.warmup_epochs, short.epochs, short.frozen_epochs, short.weights.epochs) == (0, 1, 0, 1)


def test_every_value_survives_toml() -> None:
    changes: dict[str, Any] = {
        "algorithm": "evolution", "warmup_epochs": 3, "epochs": 7, "search_rate": 0.0123456789,
        "arch_fraction": 1 / 3, "arch_mode": "two", "arch_every": 2, "arch_batch_size": 48, "arch_rate": 3e-7,
        "arch_betas": (0.5, 0.99), "arch_init": 0.0, "aligned_start": True, "frozen_epochs": 2,
        "regulariser": "add_linear", "strength": 0.2, "scale": 1.5, "adapt": False, "least_share": 0.5,
        "min_depth": 1,
        "reinforce_samples": 4, "reinforce_updates": 9, "reinforce_baseline": 0.5, "reinforce_exponent": 0.06,
        "reinforce_batch_size": 50, "reinforce_baseline_first": True, "reinforce_reward": "absolute",
        "reinforce_beta": 0.08, "fair_warmup": True,
        "evaluations": 30, "population": 10, "mutation": 0.25, "recalibrate_batches": 0, "stuck_epochs": 0,
        "final_candidates": 5, "final_evolution": 3, "front": (1.25, 2.0),
        "target_ms": 1.25, "target_macs_m": 300.0, "target_params_m": 4.5,
        "weights": {"seed": 7, "batch_size": 12, "mixup_alpha": 0.2, "optimizer": "adamw", "amp": "bf16"},
    }  # fmt: skip
    assert set(changes) == set(KINDS), "a new value needs a line here"
    recipe = SearchRecipe().replace(**changes)
    default = SearchRecipe()
    assert [name for name in KINDS if getattr(recipe, name) == getattr(default, name)] == []
    assert SearchRecipe.from_toml(recipe.to_toml()) == recipe
    assert SearchRecipe.from_dict(recipe.to_dict()) == recipe
    assert recipe.seed == 7
    assert recipe.targets == {"latency": 1.25, "macs": 300.0, "params": 4.5}
    lines = recipe.differences(default)
    assert "target_ms: 1.25, was None" in lines
    assert "weights.seed: 7, was 0" in lines
    # stuck_epochs changes nothing in a search, and what is final is done when it is over
    assert len(lines) == len(changes) - 1 - 3 + 5
    assert recipe.differences(recipe) == []


def test_every_value_has_a_rule_and_a_line_in_the_docstring() -> None:
    for name, known in KINDS.items():
        rule = {bool: type(None), Recipe: type(None), int: Range, float: Range, str: tuple}[known.type]
        assert isinstance(known.allowed, rule), name
        assert known.help
        assert known.group
        assert f"    {name}: " in (SearchRecipe.__doc__ or "")
    assert set(PLAIN) <= set(WEIGHT_KINDS)


def test_all_problems_at_once() -> None:
    text = """
base = "tny"
epochs = 0
arch_rat = 3
target_ms = -1
[other]
a = 1
[weights]
learning_rate = "fast"
cutot = 3
"""
    with pytest.raises(DataError) as e:
        SearchRecipe.from_toml(text)
    message = str(e.value)
    assert "7 problems" in message
    for part in (
        "'tny': did you mean tiny", "epochs must be a whole number", "'arch_rat': did you mean arch_rate",
        "target_ms must be a number above 0", "[other] is a table", "learning_rate must be a number",
        "'cutot': did you mean cutout",
    ):  # fmt: skip
        assert part in message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"algorithm": "darts"}, '"gradient", "reinforce", "random" or "evolution"'),
        ({"arch_mode": "one"}, "arch_mode must be"),
        ({"adapt": 1}, "adapt must be true or false"),
        ({"epochs": True}, "epochs must be a whole number"),
        ({"epochs": 2.0}, "epochs must be a whole number"),
        ({"arch_betas": [0.5]}, "arch_betas must be 2 numbers"),
        ({"arch_betas": [0.5, 1.0]}, "arch_betas must be 2 numbers"),
        ({"target_ms": float("nan")}, "target_ms must be a number"),
        ({"target_ms": float("inf")}, "target_ms must be a number"),
        ({"arch_fraction": 0}, "arch_fraction must be a number above 0 and at most 0.9"),
        ({"strength": 10**400}, "strength must be a number"),
        ({"frozen_epochs": 120}, "frozen_epochs 120 must be below epochs, which is 120"),
        ({"algorithm": "evolution", "population": 300}, "population 300 must be at most evaluations"),
        ({"regulariser": "none", "strength": 0.1}, "strength belongs to a regulariser"),
        ({"weights": 3}, "weights must be a table of values, not int"),
        ({"weights": {"epochs": 3}}, "weights.epochs is 3, but the phases of the search have 160"),
        ({"weights": {"ema_decay": 0.9}}, "weights.ema_decay is 0.9, but the weight steps of a search"),
        ({"ema_decay": 0.9}, "weights.ema_decay is 0.9, but"),
        ({"weights": {"warmup_epochs": 2}}, "the warm-up of a search is its own warmup_epochs"),
        ({"weights": {"val_fraction": 0.2}}, "arch_fraction is the share that a search holds out"),
        ({"weights": {"batch_size": 4}, "batch_size": 8}, "batch_size is set both in weights and outside"),
        ({"lr": 1}, "'lr': did you mean learning_rate"),
        ({"target": 5}, "'target': did you mean target_ms"),
    ],
)
def test_wrong_values(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as e:
        SearchRecipe().replace(**changes)
    assert message in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("warmup_lr=0.1", "there is no 'warmup_lr': did you mean learning_rate?"),
        ("weights.lr=0.1", "there is no 'weights.lr': did you mean weights.learning_rate?"),
        ("weights.cutot=3", "there is no 'weights.cutot': did you mean weights.cutout?"),
        ("weights.learning-rat=3", "there is no 'weights.learning_rat': did you mean weights.learning_rate?"),
        ("weights.arch_rate=1", "there is no 'weights.arch_rate': did you mean arch_rate?"),
        ("weight.lr=1", "there is no 'weight.lr': did you mean learning_rate?"),
        ("weights.nonsense=1", "there is no 'weights.nonsense'"),
        ("min_lr=0", "there is no 'min_lr': both phases of a search follow a cosine to 0"),
        ("ema=0.9", "there is no 'ema': the weight steps of a search know no such thing"),
        ("weights.ema=0.9", "there is no 'weights.ema': the weight steps of a search know no such thing"),
        ("weights.warmup=3", "'weights.warmup': the warm-up of a search is its own warmup_epochs"),
        ("warmup=3", "there is no 'warmup': did you mean warmup_epochs?"),
    ],
)
def test_a_wrong_name_is_told_the_one_that_a_search_has(word: str, message: str) -> None:
    """Not one that a search refuses: then it says why."""
    with pytest.raises(DataError) as e:
        changed(SearchRecipe(), [word])
    assert str(e.value).endswith(message)


def test_frozen_epochs_do_not_matter_without_arch_steps() -> None:
    assert SearchRecipe(algorithm="random", epochs=1, frozen_epochs=1).epochs == 1


def test_wrong_values_in_the_constructor() -> None:
    with pytest.raises(DataError, match="3 problems"):
        SearchRecipe(algorithm="x", epochs=0, weights={})  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"weights\.ema_decay"):
        SearchRecipe(weights=TRAIN_PRESETS["scratch"])


def test_the_epochs_of_the_weights_follow() -> None:
    recipe = SearchRecipe(weights=Recipe(epochs=5, start_size=16, grow_epochs=2), warmup_epochs=3, epochs=7)
    assert (recipe.weights.epochs, recipe.weights.grow_epochs) == (10, 4)
    longer = recipe.with_epochs(None, 17)
    assert (longer.warmup_epochs, longer.weights.epochs, longer.weights.grow_epochs) == (3, 20, 8)
    assert SearchRecipe.from_toml(longer.to_toml()) == longer


def test_rates_follow_the_batch_size() -> None:
    recipe = PRESETS["small"].with_batch_size(32)
    assert (recipe.weights.batch_size, recipe.weights.learning_rate, recipe.search_rate) == (
        32,
        0.025,
        0.0125,
    )
    with pytest.raises(DataError, match="batch_size must be"):
        recipe.with_batch_size(0)


@pytest.mark.parametrize("name", sorted(TRAIN_PRESETS))
def test_any_training_recipe_gives_the_weights(name: str) -> None:
    recipe = SearchRecipe.from_toml(f'base = "tiny"\n[weights]\nbase = "{name}"\nbatch_size = 24\n')
    published = TRAIN_PRESETS[name]
    assert recipe.weights.batch_size == 24
    assert recipe.weights.epochs == 16
    assert recipe.weights.ema_decay == 0.0
    assert recipe.weights.optimizer == published.optimizer
    assert recipe.replace(weights=published).weights.cutout == published.cutout


def test_none_is_no_value() -> None:
    recipe = SearchRecipe(target_ms=3.0, strength=0.2)
    text = 'target_ms = "none"\nstrength = "None"\n[weights]\nimage_size = "none"\n'
    changed_recipe = SearchRecipe.from_toml(text, base=recipe)
    assert (changed_recipe.target_ms, changed_recipe.strength) == (None, None)
    assert changed_recipe.targets == {}


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no\.toml: cannot be read as a search recipe"):
        read_search_recipe(str(tmp_path / "no.toml"))
    (tmp_path / "bad.toml").write_text("epochs = ")
    with pytest.raises(DataError, match=r"bad\.toml: not valid TOML"):
        read_search_recipe(tmp_path / "bad.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xff")
    with pytest.raises(DataError, match="cannot be read"):
        read_search_recipe(tmp_path / "bytes.toml")
    with pytest.raises(DataError, match="did you mean imagenet"):
        read_search_recipe("imagnet")
    with pytest.raises(DataError, match="must be a table"):
        SearchRecipe.from_dict([])  # type: ignore[arg-type]


def test_changes_as_a_command_line_has_them() -> None:
    tiny = PRESETS["small"]
    recipe = changed(
        tiny,
        [
            "arch-rate=0.02",
            "batch_size=16",
            "weights.seed=3",
            "strength=none",
            "arch_betas=0.5,0.9",
            "adapt=false",
        ],
        {"epochs": 1, "target_ms": 2.0},
    )
    assert (recipe.arch_rate, recipe.weights.batch_size, recipe.seed) == (0.02, 16, 3)
    assert (recipe.strength, recipe.arch_betas, recipe.adapt) == (None, (0.5, 0.9), False)
    assert (recipe.epochs, recipe.frozen_epochs, recipe.target_ms) == (1, 0, 2.0)
    assert changed(tiny) == tiny
    assert changed(tiny, ["seed=1"], {"seed": 2}).seed == 2
    assert changed(tiny, ["weights.seed=1"], {"seed": 2}).seed == 2
    with pytest.raises(DataError) as e:
        changed(tiny, ["epochs=x", "nonsense", "learning_rat=3", "weights=3"], {"target_ms": -1})
    assert "5 problems" in str(e.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("arch_rate=1e-2", ("arch_rate", 0.01)),
        ("algorithm='random'", ("algorithm", "random")),
        ("weights.recalibrate_batches=0", ("weights.recalibrate_batches", 0)),
        ("recalibrate_batches=3", ("recalibrate_batches", 3)),
        ("mean=0.5,0.5,0.5", ("mean", (0.5, 0.5, 0.5))),
        ("target_ms = none", ("target_ms", None)),
    ],
)
def test_a_setting(text: str, expected: tuple[str, Any]) -> None:
    assert parse_set(text) == expected


def test_names_are_those_of_the_search_and_of_its_weights() -> None:
    names = settable(SearchRecipe)
    assert {name for name in names if "." not in name} == set(KINDS) | set(WEIGHT_KINDS)
    assert {name for name in names if "." in name} == {f"weights.{name}" for name in WEIGHT_KINDS}
    assert (names["recalibrate_batches"].default, names["weights.recalibrate_batches"].default) == (20, 0)


def test_a_recipe_is_frozen_and_hashable() -> None:
    assert hash(SearchRecipe()) == hash(SearchRecipe())
    with pytest.raises(dataclasses.FrozenInstanceError):
        SearchRecipe().epochs = 3  # type: ignore[misc]
