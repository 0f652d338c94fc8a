"""The moving average of the weights: its formula, the exact way back, its state."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from proxylessnas.errors import CheckpointError
from proxylessnas.train.ema import WeightAverage


def small_model() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 3))
    return layers.to(memory_format=torch.channels_last)


def train_step(model: nn.Module, seed: int) -> None:
    torch.manual_seed(seed)
    model.train()
    model.zero_grad()
    model(torch.randn(4, 3, 8, 8)).square().mean().backward()
    with torch.no_grad():
        for param in model.parameters():
            assert param.grad is not None
            param -= 0.1 * param.grad


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: t.clone() for name, t in model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_average_has_the_decay_and_its_warmup() -> None:
    model = small_model()
    average = WeightAverage(model, 0.5)
    expected = {name: t.double() for name, t in state(model).items()}
    for step in range(12):  # (1 + n) / (10 + n) passes 0.5 at n = 8
        train_step(model, step)
        average.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        for name, t in model.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * t.double()
    for name, t in average.state_dict().items():
        if t.is_floating_point():
            torch.testing.assert_close(t.double(), expected[name], rtol=1e-5, atol=1e-6)
    assert "1.running_var" in average.state_dict()
    assert average.state_dict()["1.num_batches_tracked"] == 12  # copied, not averaged


def test_what_does_not_change_stays_bitwise() -> None:
    model = small_model()
    average = WeightAverage(model, 0.999)
    for step in range(50):
        average.update(step)
    assert same(average.state_dict(), state(model))


@pytest.mark.parametrize("fails", [False, True])
def test_applied_and_back_bit_for_bit(fails: bool) -> None:
    model = small_model()
    average = WeightAverage(model, 0.9)
    train_step(model, 0)
    average.update(0)
    train_step(model, 1)
    with torch.no_grad():
        model[0].weight[0, 0, 0, 0] = float("nan")  # type: ignore[index,operator]
    before, averages = state(model), {name: t.clone() for name, t in average.state_dict().items()}
    identity = [id(t) for t in model.parameters()]
    try:
        with average.applied(model):
            assert same(state(model), averages)
            model(torch.randn(4, 3, 8, 8))  # in training mode: changes BatchNorm statistics
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert fails
    for name, t in model.state_dict().items():
        assert t.numpy().tobytes() == before[name].numpy().tobytes(), name
    assert same(average.state_dict(), averages)
    assert [id(t) for t in model.parameters()] == identity


def test_averages_can_be_had_in_another_model_of_the_same_kind() -> None:
    model, other = small_model(), small_model()
    average = WeightAverage(model, 0.9)
    train_step(model, 0)
    average.update(0)
    untouched = state(other)
    with average.applied(other):
        assert same(state(other), average.state_dict())
    assert same(state(other), untouched)
    average.copy_to(other)
    assert same(state(other), average.state_dict())
    trained = state(model)
    train_step(other, 1)
    assert same(state(model), trained)


def test_a_run_continued_from_its_state_gives_the_same_bits(tmp_path: Path) -> None:
    model = small_model()
    average = WeightAverage(model, 0.9)
    for step in range(3):
        train_step(model, step)
        average.update(step)
    torch.save({"model": model.state_dict(), "average": average.state_dict()}, tmp_path / "state.pt")

    loaded = torch.load(tmp_path / "state.pt", weights_only=True)
    model2 = small_model()
    average2 = WeightAverage(model2, 0.9)
    model2.load_state_dict(loaded["model"])
    average2.load_state_dict(loaded["average"])
    for m, a in ((model, average), (model2, average2)):
        for step in range(3, 6):
            train_step(m, step)
            a.update(step)
    assert same(average.state_dict(), average2.state_dict())
    assert not same(average.state_dict(), state(model))


def test_loading_does_not_tie_the_average_to_the_state() -> None:
    model = small_model()
    average = WeightAverage(model, 0.9)
    given = {name: torch.zeros_like(t) for name, t in average.state_dict().items()}
    average.load_state_dict(given)
    average.update(0)
    assert all(not t.any() for t in given.values())


def test_state_of_another_model_is_refused() -> None:
    average = WeightAverage(small_model(), 0.9)
    good = average.state_dict()
    fewer = {name: t for name, t in good.items() if name != "3.bias"}
    with pytest.raises(CheckpointError, match="another model; 1 tensors do not fit"):
        average.load_state_dict(fewer)
    with pytest.raises(CheckpointError, match=r"0\.weight"):
        average.load_state_dict({**good, "0.weight": torch.zeros(8, 3, 1, 1)})
    model = nn.Sequential(nn.Linear(2, 2))
    before = state(model)
    with pytest.raises(CheckpointError), average.applied(model):
        pass
    assert same(state(model), before)


def test_small_changes_of_half_precision_weights_are_not_lost() -> None:
    model = nn.Linear(4, 4, bias=False).to(torch.bfloat16)
    average = WeightAverage(model, 0.999)
    with torch.no_grad():
        model.weight.fill_(1.0)
    average.load_state_dict({"weight": torch.full((4, 4), 0.9)})
    for step in range(10_000, 10_100):
        average.update(step)
    expected = 1.0 - 0.1 * 0.999**100
    torch.testing.assert_close(average.state_dict()["weight"], torch.full((4, 4), expected))
    before = copy.deepcopy(model.state_dict())
    with average.applied(model):
        assert model.weight.dtype == torch.bfloat16
        assert not torch.equal(model.weight, before["weight"])
    assert torch.equal(model.weight, before["weight"])


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_decay_out_of_range(decay: float) -> None:
    with pytest.raises(ValueError, match="decay must be"):
        WeightAverage(small_model(), decay)
