"""A toy problem whose best model is known: both algorithms find it.

An image has three channels of noise. In each, pixels some way apart are alike or opposite, and which of the
two it is in each channel makes up the class (of eight). Every block listens to one channel, and compares
pixels one, two or three apart. So the best operation is another one in every block, what a block makes of its
channel is worth something whatever the others do, and none can stand in for another.

It has to be like this for the answer to be known: where the blocks of a stack can each do the same work, many
models are best, and which of them a search ends at is chance; where a wrong block hides the signal from all
others, most sampled paths say nothing at all.
"""

from __future__ import annotations

import copy
import functools
import random

import pytest
import torch
from search_tools import sgd_paths
from torch import Tensor, nn
from torch.nn import functional as F

from proxylessnas import register_op
from proxylessnas.arch.space import SearchSpace, SpaceStage
from proxylessnas.search.arch_optimizers import MODES, ArchStep, ReinforceStep
from proxylessnas.search.constraints import Costs
from proxylessnas.search.objective import Baseline, Objective
from proxylessnas.search.path_optimizer import PathParameters
from proxylessnas.search.supernet import SuperNet, seeded

SEEDS = range(10)
CHANNELS, FEATURES = 3, 4
BEST = [2, 0, 1]  # column of each block: pixels three, one and two apart


class Compare(nn.Module):
    """Passes on what it gets, and adds what pairs of pixels ``reach`` apart say in one channel."""

    def __init__(self, inputs: int, reach: int) -> None:
        super().__init__()
        self.reach, self.channel = reach, (inputs - CHANNELS) // FEATURES
        self.conv = nn.Conv2d(1, FEATURES, (1, 2), dilation=(1, reach))
        self.bn = nn.BatchNorm2d(FEATURES)

    def forward(self, x: Tensor) -> Tensor:
        y = x[:, self.channel : self.channel + 1]
        y = self.conv(F.pad(y, (0, self.reach, 0, 0), mode="circular"))
        return torch.cat([x, F.relu(self.bn(y))], 1)


def build(reach: int):  # type: ignore[no-untyped-def]
    return lambda inputs, outputs, stride: Compare(inputs, reach)


OPS = ("toy_one", "toy_two", "toy_three")
for reach, token in enumerate(OPS, 1):
    register_op(token, build(reach))

TOY = SearchSpace(
    "toy", stem=CHANNELS, first=0, last=16,
    stages=tuple(SpaceStage(CHANNELS + FEATURES * n, 1, 1) for n in (1, 2, 3)),
    candidates=OPS, resolution=8, num_classes=8, in_channels=CHANNELS, stem_stride=1,
)  # fmt: skip


def images(g: torch.Generator, n: int = 64) -> tuple[Tensor, Tensor]:
    """Return noise [n, 3, 8, 8] whose pixels are alike or opposite, and the class."""
    bits = torch.randint(0, 2, (n, CHANNELS), generator=g)
    noise = torch.randn(n, CHANNELS, 8, 8, generator=g)
    far = torch.stack([noise[:, c].roll(column + 1, 2) for c, column in enumerate(BEST)], 1)
    return noise + (bits * 2.0 - 1.0)[:, :, None, None] * far, bits @ torch.tensor([1, 2, 4])


@functools.cache
def _warm(seed: int) -> tuple[SuperNet, Tensor]:
    model, g = seeded(TOY, seed).train(), torch.Generator().manual_seed(seed)
    model.first_conv = nn.Identity()
    paths, rng = sgd_paths(model), random.Random(seed)
    for _ in range(100):
        model.random_path(rng)
        train(model, paths, g)
    return model, g.get_state()


def warm(seed: int) -> tuple[SuperNet, PathParameters, torch.Generator]:
    """Return a model whose weights were trained on even paths; its stem passes images on as they are."""
    model, state = _warm(seed)
    g = torch.Generator()
    g.set_state(state)
    model = copy.deepcopy(model)
    return model, sgd_paths(model), g


def train(model: SuperNet, paths: PathParameters, g: torch.Generator) -> float:
    with paths.selected():
        x, t = images(g)
        loss = F.cross_entropy(model(x), t)
        loss.backward()
        paths.optimizer.step()
    return float(loss.detach())


def adam(model: SuperNet) -> torch.optim.Optimizer:
    return torch.optim.Adam([model.alphas.logits], 0.06, betas=(0.0, 0.999))


@pytest.mark.parametrize("mode", MODES)
def test_gradient_finds_the_best_model(mode: str) -> None:
    found = []
    for seed in SEEDS:
        model, paths, g = warm(seed)
        step = ArchStep(paths, adam(model), None, mode=mode, generator=g)
        for _ in range(45):
            model.set_path(model.alphas.sample(g))
            train(model, paths, g)
            step(*images(g), Objective("none"))
        found.append(model.alphas.most_probable())
    assert found.count(BEST) >= 9, found


@pytest.mark.parametrize("decay", [None, 0.9])
def test_reinforce_finds_the_best_model(decay: float | None) -> None:
    found = []
    for seed in SEEDS:
        model, paths, g = warm(seed)
        step = ReinforceStep(model, adam(model), None, samples=8, baseline=Baseline(decay), generator=g)
        for _ in range(45):
            model.set_path(model.alphas.sample(g))
            train(model, paths, g)
            result = step(*images(g))
            assert result.reward == result.accuracy  # nothing else is asked for
        found.append(model.alphas.most_probable())
    assert found.count(BEST) >= 9, found


@pytest.mark.parametrize("kind", ["add_linear", "mul_log"])
def test_a_strong_weight_of_the_cost_leads_to_the_cheapest_model(kind: str) -> None:
    table = torch.tensor([[3.0, 2.0, 1.0, 0.0]] * 3, dtype=torch.float64)
    for seed in range(3):
        model, paths, g = warm(seed)
        costs = Costs("latency", "ms", table, 1.0, model.alphas.mask)
        step = ArchStep(paths, adam(model), costs, generator=g)
        expected = [step(*images(g), Objective(kind, 6.0, strength=10.0)).expected for _ in range(60)]
        assert expected[0] == pytest.approx(7.0, abs=0.01)
        assert expected[-1] < 5.0
        assert model.alphas.most_probable() == [2, 2, 2]
