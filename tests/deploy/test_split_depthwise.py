"""Large depthwise filters as sums of small ones."""

from __future__ import annotations

import copy

import pytest
import torch
from deploy_tools import small
from torch import nn

from proxylessnas.deploy.formats.split_depthwise import MOST_WEIGHTS, SplitDepthwise, is_wide, split_depthwise


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("side", [5, 12, 13])
@pytest.mark.parametrize(("kernel", "bias"), [(7, True), (9, False), (11, True)])
def test_the_sum_computes_the_same(kernel: int, bias: bool, side: int, stride: int) -> None:
    conv = nn.Conv2d(6, 6, kernel, stride, kernel // 2, groups=6, bias=bias)
    assert is_wide(conv)
    split = SplitDepthwise(conv)
    x = torch.randn(2, 6, side, side)
    assert torch.allclose(split(x), conv(x), atol=1e-5)
    taps = [part.kernel_size[0] * part.kernel_size[1] for part in split.parts]
    assert max(taps) <= MOST_WEIGHTS
    assert sum(taps) == kernel * kernel


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(6, 6, 5, 1, 2, groups=6),
        nn.Conv2d(6, 6, 7, 1, 3),
        nn.Conv2d(6, 12, 7, 1, 3, groups=6),
        nn.Conv2d(6, 6, 7, 1, 0, groups=6),
        nn.Conv2d(6, 6, 7, 1, 6, 2, groups=6),
        nn.Conv2d(6, 6, 7, 1, 3, groups=6, padding_mode="reflect"),
        nn.Conv2d(6, 6, 13, 1, 6, groups=6),
        nn.Linear(3, 3),
    ],
)
def test_others_are_left_alone(conv: nn.Module) -> None:
    assert not is_wide(conv)


def test_a_whole_model() -> None:
    model = small().eval()
    before, x = copy.deepcopy(model.state_dict()), torch.randn(3, 3, 32, 32)
    twin = split_depthwise(model)
    wide = sum(map(is_wide, model.modules()))
    assert wide == sum(isinstance(module, SplitDepthwise) for module in twin.modules()) > 0
    assert not any(map(is_wide, twin.modules()))
    with torch.inference_mode():
        expected = model(x)
        assert torch.allclose(twin(x), expected, atol=1e-4 * float(expected.abs().max()))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    kept = split_depthwise(model, lambda name: False)
    assert sum(map(is_wide, kept.modules())) == wide
