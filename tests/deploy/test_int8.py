"""INT8: how ranges are chosen, what is done to a model beforehand, and what is refused."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from deploy_tools import PLAIN, TREE
from deploy_tools import small as training_model
from torch import Tensor, nn

from proxylessnas.data.named import DIGITS, load_digits
from proxylessnas.data.transforms import Preprocessing
from proxylessnas.deploy.quantization import Scheme, scheme_of
from proxylessnas.deploy.quantization.fake_quant import observe, rounded_weight, simulated
from proxylessnas.deploy.quantization.ptq import compensated, corrected, second_moments
from proxylessnas.deploy.quantization.qat import quantisation_aware
from proxylessnas.deploy.quantization.quantize import divergence
from proxylessnas.errors import ExportError
from proxylessnas.models.base import ImageClassifier
from proxylessnas.runtimes.onnx_int8 import STEPS, Observed, scale_and_zero


def small(*args: object, **options: object) -> ImageClassifier:
    """Return a model in evaluation mode."""
    return training_model(*args, **options).eval()  # type: ignore[arg-type]


def _batches(count: int = 2) -> list[Tensor]:
    draw = torch.Generator().manual_seed(1)
    return [torch.randn(8, 3, 32, 32, generator=draw) for _ in range(count)]


@torch.inference_mode()
def _run(model: nn.Module, batches: list[Tensor]) -> Tensor:
    return torch.cat([model(x) for x in batches])


# ---- ranges


def _seen(values: Tensor) -> Observed:
    seen = Observed()
    for part in values.split(1000):
        seen.see(part)
    for part in values.split(1000):
        seen.count(part)
    return seen


def _error(values: Tensor, bounds: tuple[float, float]) -> float:
    scale, zero = scale_and_zero(*bounds)
    rounded = torch.fake_quantize_per_tensor_affine(values, scale, zero, 0, STEPS)
    return float((rounded - values).square().mean())


def test_mse_finds_less_error_than_the_extremes() -> None:
    values = torch.randn(50_000).mul(0.5).exp() - 0.5
    seen = _seen(values)
    assert seen.range("minmax") == (float(values.min()), float(values.max()))
    errors = {rule: _error(values, seen.range(rule)) for rule in ("minmax", "mse")}
    assert errors["mse"] < errors["minmax"]


@pytest.mark.parametrize("rule", ["minmax", "mse"])
@pytest.mark.parametrize("values", [torch.rand(5000) * 6, -torch.rand(5000), torch.zeros(500)])
def test_zero_is_always_exact(rule: str, values: Tensor) -> None:
    low, high = _seen(values).range(rule)
    assert low <= 0 <= high
    scale, zero = scale_and_zero(low, high)
    assert 0 <= zero <= STEPS
    assert scale > 0
    assert float(torch.fake_quantize_per_tensor_affine(torch.zeros(1), scale, zero, 0, STEPS)) == 0


# ---- schemes


@pytest.mark.parametrize(
    "name",
    [
        "minmax",
        "mse+correct",
        "mse+compensate+correct+floatfirst+floatwide+7bit",
    ],
)
def test_a_scheme_is_its_name(name: str) -> None:
    assert scheme_of(name).name == name


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("best", "no INT8 rule is called 'best'; there are minmax, mse"),
        ("mse+corect", "no part of an INT8 scheme is called 'corect'; there are compensate, correct"),
    ],
)
def test_a_scheme_that_is_none(name: str, problem: str) -> None:
    with pytest.raises(ExportError, match=problem):
        scheme_of(name)


# ---- simulation


@pytest.mark.parametrize("scheme", ["minmax", "mse", "minmax+floatfirst"])
def test_simulation_rounds_and_leaves_no_trace(scheme: str) -> None:
    model, batches = small(), _batches()
    before, exact = copy.deepcopy(model.state_dict()), _run(model, batches)
    ranges = observe(model, batches, scheme_of(scheme))
    with simulated(model, ranges, scheme_of(scheme)):
        rough = _run(model, batches)
    assert not torch.equal(rough, exact)
    assert float((rough - exact).norm() / exact.norm()) < 0.2
    assert torch.equal(_run(model, batches), exact)
    assert model.state_dict().keys() == before.keys()
    assert {type(m) for m in model.modules()} == {type(m) for m in small().modules()}
    assert not any("weight_steps" in vars(m) for m in model.modules())
    with pytest.raises(KeyboardInterrupt), simulated(model, ranges, scheme_of(scheme)):
        raise KeyboardInterrupt
    assert torch.equal(_run(model, batches), exact)


def test_what_stays_in_float32_is_not_rounded() -> None:
    model, batches = small(), _batches()

    def off(scheme: str) -> float:
        ranges = observe(model, batches, scheme_of(scheme))
        with simulated(model, ranges, scheme_of(scheme)):
            return float((_run(model, batches) - _run(small(), batches)).norm())

    assert "input" in observe(model, batches, Scheme())
    places = observe(model, batches, Scheme(float_first=True))
    assert "input" not in places
    assert "first_conv" not in places
    assert "blocks.0.mobile_inverted_conv.point_linear" in places
    assert off("minmax+floatfirst") < off("minmax")
    assert off("minmax+7bit") > off("minmax")


def test_gradients_pass_the_rounding() -> None:
    model, batches = small(), _batches(1)
    with simulated(model, observe(model, batches, Scheme()), Scheme()):
        model(batches[0]).square().mean().backward()
    first = model.get_parameter("first_conv.conv.weight")
    assert first.grad is not None
    assert float(first.grad.abs().sum()) > 0


# ---- compensation and correction


def _uneven(model: ImageClassifier) -> ImageClassifier:
    """Make channels unlike each other, as training does."""
    torch.manual_seed(2)
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d) and "point" not in name:
            with torch.no_grad():
                scale = torch.rand_like(module.weight) + 0.05
                module.weight.mul_(scale)
                module.bias.mul_(scale)
    return model


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(24, 16, 1, bias=False),
        nn.Conv2d(12, 12, 5, 2, 2, groups=12, bias=False),
        nn.Conv2d(3, 8, 3, 2, 1, bias=False),
        nn.Linear(24, 10),
    ],
)
@torch.no_grad()
def test_compensated_weights_change_the_output_least(layer: nn.Conv2d | nn.Linear) -> None:
    mix = torch.randn(5, 24)  # inputs that go together can make good for each other
    if isinstance(layer, nn.Conv2d):
        x = torch.nn.functional.interpolate(torch.randn(8, 5, 6, 6), scale_factor=2, mode="bilinear")
        x = torch.einsum("nchw,cd->ndhw", x, mix)[:, : layer.in_channels].relu()
    else:
        x = (torch.randn(200, 5) @ mix)[:, : layer.in_features].relu()
    exact, weight = layer(x), layer.weight.clone()

    def off(rounded: Tensor) -> float:
        layer.weight.copy_(rounded)
        return float((layer(x) - exact).norm())

    made = compensated(weight, second_moments(layer, [x]), 7)  # of four bits: more to make good
    assert off(made) < 0.8 * off(rounded_weight(weight, 7))
    # Whoever rounds it again, by its largest weight, gets the same numbers.
    assert torch.allclose(rounded_weight(made, 7), made, atol=1e-6)
    assert torch.allclose(made.flatten(1).abs().amax(1), weight.flatten(1).abs().amax(1))


def test_correction_brings_the_8_bit_model_nearer() -> None:
    model, batches = _uneven(small()), _batches(4)
    fresh = [torch.randn(8, 3, 32, 32) for _ in range(4)]
    exact, before = _run(model, fresh), copy.deepcopy(model.state_dict())

    def off(name: str) -> float:
        scheme = scheme_of(name)
        made = corrected(model, batches, scheme) if scheme.correct or scheme.compensate else model
        with simulated(made, observe(made, batches, scheme), scheme):
            return divergence(exact, _run(made, fresh))

    plain = off("minmax+7bit")
    assert off("minmax+correct+7bit") < plain
    assert off("minmax+compensate+correct+7bit") < plain
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_model_of_another_kind_is_left_as_it_is() -> None:
    model = small(TREE)
    twin = corrected(model, [], Scheme(correct=True))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_divergence_is_that_of_kullback_and_leibler() -> None:
    p, q = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.9, 0.1]])
    expected = 0.5 * torch.log(torch.tensor(0.5 / 0.9)) + 0.5 * torch.log(torch.tensor(0.5 / 0.1))
    assert divergence(p.log(), q.log()) == pytest.approx(float(expected), rel=1e-5)
    assert divergence(p.log(), torch.tensor([[float("nan"), 0.0]])) == float("inf")


def _digits_model(inputs: Tensor, labels: Tensor) -> ImageClassifier:
    """Return a model that was trained on digits for a moment."""
    model = small(PLAIN, num_classes=10).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(2):
        for x, y in zip(inputs.split(64), labels.split(64), strict=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    model.preprocessing = Preprocessing(32, 32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    model.categories = DIGITS
    return model.eval()


@pytest.mark.slow
def test_training_with_rounding_gains_what_rounding_lost(tmp_path: Path) -> None:
    pixels, labels = load_digits()
    transform = Preprocessing(32, 32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)).build()
    inputs = transform(pixels[:1024, None].expand(-1, 3, -1, -1))
    model = _digits_model(inputs, labels[:1024].long())
    before = copy.deepcopy(model.state_dict())
    batches, scheme = [inputs[:64]], Scheme(weight_bits=7)
    ranges = {place: (low / 4, high / 4) for place, (low, high) in observe(model, batches, scheme).items()}

    def loss(model: ImageClassifier) -> float:
        with simulated(model, ranges, scheme):
            return float(nn.functional.cross_entropy(_run(model, [inputs]), labels[:1024].long()))

    # Scales that cut off most of what they should cover do harm that training can undo.
    twin = quantisation_aware(model, "digits", batches, scheme, ranges=ranges, out=tmp_path / "run")
    assert loss(twin) < loss(model)
    assert (tmp_path / "run" / "log.jsonl").exists()
    assert twin.preprocessing == model.preprocessing
    assert not twin.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    statistics = [name for name in before if "running" in name]
    assert all(torch.equal(twin.state_dict()[name], before[name]) for name in statistics)
    assert {type(m) for m in twin.modules()} == {type(m) for m in model.modules()}
    with pytest.raises(ExportError, match="qat_epochs must be a whole number of at least 1, not 0"):
        quantisation_aware(model, "digits", batches, scheme, epochs=0)
