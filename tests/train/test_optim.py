"""Parameter groups, the optimisers against their formulas, and the learning rate over time."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from proxylessnas import Arch, create_model
from proxylessnas.arch.blocks import Stage
from proxylessnas.models.base import ImageClassifier
from proxylessnas.train.optim import (
    Muon,
    make_optimizer,
    orthogonalized,
    parameter_groups,
    rate_factor,
    sections,
    set_rates,
    set_train_mode,
)
from proxylessnas.train.recipe import Recipe

# The second block of the second stage is a Zero block, which holds nothing and counts for nothing.
ARCH = Arch("small", stem=8, first=8, last=32, stages=(Stage(8, 2, "k3e3"), Stage(16, 2, "k5e3 - k3e3")))


def small_model(**options: object) -> ImageClassifier:
    return create_model(ARCH, num_classes=5, **options)  # type: ignore[arg-type]


def named(model: nn.Module, groups: list[dict]) -> dict[str, dict]:
    """Return each parameter's group by the parameter's name; each must be in one group."""
    names = {id(p): name for name, p in model.named_parameters()}
    found = [(names[id(p)], group) for group in groups for p in group["params"]]
    assert len(found) == len(dict(found))
    return dict(found)


@pytest.mark.parametrize("name", ["proxyless_mobile", "proxyless_cifar"])
@pytest.mark.parametrize("layer_decay", [1.0, 0.8])
def test_every_parameter_is_in_one_group(name: str, layer_decay: float) -> None:
    model = create_model(name, num_classes=3)
    groups = parameter_groups(model, Recipe(layer_decay=layer_decay))
    assert named(model, groups).keys() == dict(model.named_parameters()).keys()
    assert all(group["params"] for group in groups)


@pytest.mark.parametrize(
    ("no_decay", "spared"),
    [
        ("none", lambda name: False),
        ("bn", lambda name: ".bn." in name),
        ("bn+bias", lambda name: ".bn." in name or name.endswith(".bias")),
    ],
)
def test_weight_decay(no_decay: str, spared: object) -> None:
    model = small_model()
    recipe = Recipe(no_decay=no_decay, weight_decay=1e-4)
    for name, group in named(model, parameter_groups(model, recipe)).items():
        assert group["weight_decay"] == (0.0 if spared(name) else 1e-4), name  # type: ignore[operator]
        assert group["name"].endswith("no decay") is spared(name)  # type: ignore[operator]


def test_branch_norms_of_the_tree_model_do_not_decay() -> None:
    model = create_model("proxyless_cifar")
    norms = {
        f"{name}.{p}"
        for name, module in model.named_modules()
        if isinstance(module, nn.BatchNorm2d)
        for p in ("weight", "bias")
    }
    groups = named(model, parameter_groups(model, Recipe(no_decay="bn")))
    assert {name for name, group in groups.items() if not group["weight_decay"]} == norms
    assert any("branch_bns" in name for name in norms)


def test_layer_decay_counts_blocks_from_the_classifier() -> None:
    model = small_model()
    recipe = Recipe(learning_rate=0.1, layer_decay=0.5, head_rate=3.0)
    factors = {name: group["factor"] for name, group in named(model, parameter_groups(model, recipe)).items()}
    expected = {
        "classifier.linear.weight": 3.0,
        "feature_mix_layer.conv.weight": 0.5,
        "blocks.4.mobile_inverted_conv.point_linear.conv.weight": 0.25,
        "blocks.2.mobile_inverted_conv.point_linear.bn.bias": 0.125,  # blocks.3 is the Zero block
        "blocks.1.mobile_inverted_conv.depth_conv.conv.weight": 0.5**4,
        "blocks.0.mobile_inverted_conv.depth_conv.conv.weight": 0.5**5,
        "first_conv.conv.weight": 0.5**6,
    }
    assert {name: factors[name] for name in expected} == expected
    for group in parameter_groups(model, recipe):
        assert group["lr"] == group["base"] == pytest.approx(0.1 * group["factor"])


def test_frozen_parameters_are_left_out() -> None:
    model = small_model()
    model.first_conv.requires_grad_(False)  # type: ignore[union-attr]
    groups = named(model, parameter_groups(model, Recipe()))
    assert groups.keys() == {n for n, p in model.named_parameters() if not n.startswith("first_conv")}
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to train"):
        parameter_groups(model, Recipe())


def test_model_without_classifier_and_loose_parameters() -> None:
    model = create_model(ARCH, num_classes=0)
    model.extra = nn.Parameter(torch.zeros(3))  # type: ignore[assignment]
    assert [name for name, _ in sections(model)][-2:] == ["feature_mix_layer", "classifier"]
    groups = named(model, parameter_groups(model, Recipe(layer_decay=0.5)))
    assert groups["extra"]["factor"] == groups["first_conv.conv.weight"]["factor"] == 0.5**6
    assert groups["feature_mix_layer.conv.weight"]["factor"] == 0.5
    assert not list(model.classifier.parameters())


def _gradients(model: nn.Module, seed: int) -> None:
    torch.manual_seed(seed)
    model.train()
    model.zero_grad()
    model(torch.randn(4, 3, 32, 32)).square().sum().backward()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_sgd_is_nesterov_with_l2(layout: torch.memory_format) -> None:
    model = small_model().to(memory_format=layout)
    recipe = Recipe(learning_rate=0.1, momentum=0.9, weight_decay=1e-3, no_decay="bn", layer_decay=0.7)
    groups = parameter_groups(model, recipe)
    decay = {name: (g["weight_decay"], g["factor"]) for name, g in named(model, groups).items()}
    optimizer = make_optimizer(groups, recipe)
    weights = {n: p.detach().double() for n, p in model.named_parameters()}
    momenta = {n: torch.zeros_like(p) for n, p in weights.items()}
    for step, scale in enumerate((1.0, 0.5, 0.25)):
        _gradients(model, step)
        for n, p in model.named_parameters():
            assert p.grad is not None
            g = p.grad.double() + decay[n][0] * weights[n]
            momenta[n] = 0.9 * momenta[n] + g
            weights[n] = weights[n] - 0.1 * scale * decay[n][1] * (g + 0.9 * momenta[n])
        set_rates(optimizer, scale)
        optimizer.step()
    for n, p in model.named_parameters():
        torch.testing.assert_close(p.detach().double(), weights[n], rtol=1e-4, atol=1e-5)


def test_adamw_decouples_the_decay() -> None:
    model = small_model()
    recipe = Recipe(optimizer="adamw", learning_rate=1e-3, betas=(0.8, 0.95), weight_decay=0.1, no_decay="bn")
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    groups = parameter_groups(model, recipe)
    decays = {name: g["weight_decay"] for name, g in named(model, groups).items()}
    optimizer = make_optimizer(groups, recipe)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.95)
    _gradients(model, 0)
    optimizer.step()
    for n, p in model.named_parameters():
        g = p.grad
        assert g is not None
        # The first step of Adam: both means equal the gradient and its square.
        expected = before[n] * (1 - 1e-3 * decays[n]) - 1e-3 * g / (g.abs() + 1e-8)
        torch.testing.assert_close(p.detach(), expected, rtol=1e-4, atol=1e-6)


def test_without_momentum() -> None:
    model = nn.Linear(2, 1, bias=False)
    before = model.weight.detach().clone()
    recipe = Recipe(momentum=0.0, weight_decay=0.0, learning_rate=0.5)
    optimizer = make_optimizer([{"params": [model.weight], "base": 0.5}], recipe)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    torch.testing.assert_close(model.weight.detach(), before - 0.5)


@pytest.mark.parametrize("shape", [(24, 24), (16, 96), (96, 16), (1, 7)])
def test_orthogonalized(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    matrix = u @ torch.diag(torch.linspace(0.2, 1.0, len(s))) @ v  # no direction that is nearly absent
    # Five iterations, as its authors take; with the three taken here, faint directions are not full yet.
    for iterations, low in ((5, 0.6), (3, 0.3)):
        found = torch.linalg.svdvals(orthogonalized(matrix, iterations))
        assert found.min() > low
        assert found.max() < 1.25
    torch.testing.assert_close(orthogonalized(3 * matrix), orthogonalized(matrix), rtol=1e-3, atol=1e-4)
    # The singular vectors stay: what the step turns is the sizes only.
    inner = u.T @ orthogonalized(matrix) @ v.T
    torch.testing.assert_close(inner, torch.diag(inner.diagonal()), rtol=0, atol=1e-4)
    assert not orthogonalized(torch.zeros(shape)).any()


def test_muon_steps_matrices_and_leaves_the_rest_to_sgd() -> None:
    model, plain = small_model(), small_model()
    plain.load_state_dict(model.state_dict())
    recipe = Recipe(learning_rate=0.1, weight_decay=1e-3, muon_rate=0.02, muon_decay=0.5, layer_decay=0.9)
    ours = make_optimizer(
        parameter_groups(model, recipe.replace(optimizer="muon")), recipe.replace(optimizer="muon")
    )
    theirs = make_optimizer(parameter_groups(plain, recipe), recipe)
    assert isinstance(ours, Muon)
    groups = named(model, ours.param_groups)
    matrices = {name for name, group in groups.items() if group.get("matrix")}
    expected = {
        f"{name}.weight" for name, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.groups == 1
    }
    assert matrices == expected
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for i in range(2):  # the second with momentum; gradients are the same in both models
        _gradients(plain, i)
        for (_, p), (_, q) in zip(model.named_parameters(), plain.named_parameters(), strict=True):
            p.grad = q.grad
        theirs.step()
        ours.step()
        if i == 0:
            first = {n: p.detach().clone() for n, p in model.named_parameters()}
    for (n, p), (_, q) in zip(model.named_parameters(), plain.named_parameters(), strict=True):
        if n not in matrices:
            torch.testing.assert_close(p, q)
    for n in matrices:
        group, rows = groups[n], len(before[n])
        assert group["weight_decay"] == 0.5
        assert group["base"] == pytest.approx(0.02 * group["factor"])
        step = (first[n] - before[n] * (1 - group["lr"] * 0.5)).reshape(rows, -1)
        size = torch.linalg.svdvals(step) / (group["lr"] * max(1.0, rows / step.shape[1]) ** 0.5)
        assert 0.9 < size.max() < 1.25, n  # the strongest direction moves by the rate, whatever the gradient


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
def test_state_goes_on_in_a_new_optimizer(optimizer: str) -> None:
    recipe = Recipe(optimizer=optimizer, learning_rate=0.01, layer_decay=0.8)
    one = small_model()
    first = make_optimizer(parameter_groups(one, recipe), recipe)
    _gradients(one, 0)
    first.step()
    two = copy.deepcopy(one)
    second = make_optimizer(parameter_groups(two, recipe), recipe)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for model, used in ((one, first), (two, second)):
        _gradients(model, 1)
        set_rates(used, 0.5)
        used.step()
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_rate_of_the_published_recipe() -> None:
    # learning_rate * 0.5 * (1 + cos(pi * step / steps)), lowered at every step
    recipe, steps = Recipe.preset("imagenet-mobile"), 5004
    total = 300 * steps
    for step in (0, 1, steps, 123_456, total // 2, total - 1):
        expected = 0.5 * (1 + math.cos(math.pi * step / total))
        assert rate_factor(step, recipe, steps) == pytest.approx(expected, abs=1e-12)


def test_warmup_rises_straight_to_the_full_rate() -> None:
    recipe = Recipe(epochs=10, warmup_epochs=2.5, schedule="constant")
    rates = [rate_factor(step, recipe, 4) for step in range(40)]
    assert rates[:11] == pytest.approx([0.01 + 0.099 * i for i in range(11)])
    assert rates[10:] == [1.0] * 30


def test_schedules_after_the_warmup() -> None:
    recipe = Recipe(epochs=6, warmup_epochs=1, final_rate=0.1)
    assert rate_factor(10, recipe, 10) == 1.0
    assert rate_factor(35, recipe, 10) == pytest.approx(0.55)  # half-way
    assert rate_factor(60, recipe, 10) == rate_factor(1000, recipe, 10) == pytest.approx(0.1)
    linear = recipe.replace(schedule="linear")
    assert [rate_factor(s, linear, 10) for s in (10, 20, 60)] == pytest.approx([1.0, 0.82, 0.1])


@given(
    epochs=st.integers(1, 50),
    steps=st.integers(1, 50),
    warmup=st.floats(0, 0.99),
    schedule=st.sampled_from(["cosine", "linear", "constant"]),
    final=st.floats(0, 1),
)
def test_rates_rise_then_fall_within_bounds(
    epochs: int, steps: int, warmup: float, schedule: str, final: float
) -> None:
    recipe = Recipe(epochs=epochs, warmup_epochs=warmup * epochs, schedule=schedule, final_rate=final)
    rates = [rate_factor(step, recipe, steps) for step in range(epochs * steps)]
    top = round(recipe.warmup_epochs * steps)
    assert all(0.01 <= rate <= 1 for rate in rates[:top])
    assert all(final <= rate <= 1 for rate in rates[top:])
    assert rates[:top] == sorted(rates[:top])
    assert all(a >= b - 1e-12 for a, b in zip(rates[top:], rates[top + 1 :], strict=False))


def test_a_frozen_body_keeps_its_statistics_while_dropout_is_on() -> None:
    model = small_model(drop_rate=0.5, drop_path_rate=0.5)
    x = torch.randn(8, 3, 32, 32)
    before = {name: b.clone() for name, b in model.named_buffers()}
    set_train_mode(model, frozen_body=True)
    features = model.forward_features(x)
    assert torch.equal(features, model.forward_features(x))
    assert not torch.equal(model.forward_head(features), model.forward_head(features))
    assert all(torch.equal(b, before[name]) for name, b in model.named_buffers())
    set_train_mode(model)
    model(x)
    assert all(m.training for m in model.modules())
    assert not torch.equal(model.first_conv.bn.running_mean, before["first_conv.bn.running_mean"])  # type: ignore[union-attr,operator,index]
