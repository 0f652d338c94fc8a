"""The expected latency of a model drawn from probabilities."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from latency_table_tools import SPACE, every_model, little, uniform

from proxylessnas.errors import LatencyError
from proxylessnas.latency import OpKey, Predictor


@pytest.mark.parametrize("seed", range(3))
def test_expected_is_the_mean_over_all_models(seed: int) -> None:
    """By enumeration, value and gradient in the logits."""
    table = little(seed, offset_ms=0.3).with_correction(1.1, -0.2)
    torch.manual_seed(seed)
    mask = torch.tensor(SPACE.mask)
    logits = torch.randn(mask.shape, dtype=torch.float64, requires_grad=True)
    probs = logits.masked_fill(~mask, -math.inf).softmax(1)
    mean: Any = 0
    for model in every_model(SPACE):
        mean = mean + probs[range(4), model].prod() * table.predict(SPACE.arch(model))
    expected = table.expected(probs)
    assert expected.item() == pytest.approx(mean.item(), rel=1e-12)
    (by_hand,) = torch.autograd.grad(mean, logits, retain_graph=True)
    (gradient,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(gradient, by_hand, rtol=1e-9, atol=1e-12)
    assert gradient.abs().max() > 0.01


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_expected_keeps_the_dtype(dtype: torch.dtype) -> None:
    table, probs = little(), uniform(SPACE).to(dtype).requires_grad_()
    mean = table.expected(probs)
    assert mean.dtype == dtype
    assert mean.shape == ()
    assert mean.item() == pytest.approx(table.expected(uniform(SPACE)).item(), rel=0.01)
    mean.backward()
    assert probs.grad is not None
    assert probs.grad.dtype == dtype
    torch.testing.assert_close(probs.grad.double(), table.costs()[0], rtol=0.01, atol=0.01)


def test_one_hot_probs_give_the_model_itself() -> None:
    table = little()
    for model in every_model(SPACE)[::5]:
        probs = torch.nn.functional.one_hot(torch.tensor(model), 3).double()
        assert float(table.expected(probs)) == pytest.approx(table.predict(SPACE.arch(model)))


def test_expected_works_after_inference_mode_and_under_another_default_device() -> None:
    table, probs = little(), uniform(SPACE)
    with torch.inference_mode():
        table.expected(probs.clone())
    probs.requires_grad_()
    table.expected(probs).backward()
    assert probs.grad is not None
    with torch.device("meta"):
        assert math.isfinite(little().expected(probs).item())
        assert math.isfinite(little().range_ms()[1])
        assert Predictor.fit(little()).predict(OpKey("k3e4", 16, 16, 8, 1, True)) > 0


@pytest.mark.gpu
def test_expected_on_a_gpu() -> None:
    table, probs = little(), uniform(SPACE).float().cuda().requires_grad_()
    mean = table.expected(probs)
    assert mean.device == probs.device
    mean.backward()
    assert mean.item() == pytest.approx(table.expected(uniform(SPACE)).item(), rel=1e-5)


def _spoiled(row: int, column: int, value: float) -> torch.Tensor:
    probs = uniform(SPACE)
    probs[row, column] = value
    return probs


@pytest.mark.parametrize(
    ("probs", "message"),
    [
        (torch.ones(4, 2), r"floating tensor \[4, 3\], not torch.float32 \[4, 2\]"),
        (torch.ones(3), r"not torch.float32 \[3\]"),
        (torch.ones(4, 3, dtype=torch.long), "not torch.int64"),
        ([[0.5]], r"not \[\[0.5\]\]"),
        (torch.full((4, 3), 0.5), "row 0 is no distribution"),
        (_spoiled(2, 0, math.nan), "row 2 is no distribution"),
        (_spoiled(2, 0, math.inf), "row 2 is no distribution"),
        (torch.tensor([[0.5, 0.5, 0.0], [1.5, -0.5, 0.0], [1, 0, 0], [1, 0, 0]]), "row 1 is no distr"),
        (torch.full((4, 3), 1 / 3), "row 0 gives 0.333 to '-', which that block does not have"),
    ],
)
def test_expected_refuses_what_are_no_probabilities(probs: Any, message: str) -> None:
    with pytest.raises(LatencyError, match=message):
        little().expected(probs)
