"""A toy problem whose best operation is known: both algorithms find it.

Whether neighbouring pixels of noise are alike is the class. No single pixel tells it, nor do pixels further
apart: the block has to look at neighbours.
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
from proxylessnas.search.arch_step import MODES, ArchStep
from proxylessnas.search.objective import Objective
from proxylessnas.search.paths import PathParameters
from proxylessnas.search.reinforce import ReinforceStep
from proxylessnas.search.supernet import SuperNet, seeded
from proxylessnas.space import SearchSpace, SpaceStage

SEEDS = range(10)


class Pairs(nn.Module):
    """Looks at pairs of pixels in a row, ``reach`` apart; 0 looks at single ones."""

    def __init__(self, channels: int, reach: int) -> None:
        super().__init__()
        self.reach = reach
        self.conv = nn.Conv2d(channels, channels, (1, 2 if reach else 1), dilation=(1, max(reach, 1)))
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        if self.reach:
            x = F.pad(x, (0, self.reach, 0, 0), mode="circular")
        return F.relu(self.bn(self.conv(x)))


def build(reach: int):  # type: ignore[no-untyped-def]
    return lambda inputs, outputs, stride: Pairs(inputs, reach)


POINT, NEAR, FAR = range(3)
for token, reach in (("toy_point", 0), ("toy_near", 1), ("toy_far", 3)):
    register_op(token, build(reach))

TOY = SearchSpace(
    "toy", stem=4, first=0, last=16, stages=(SpaceStage(4, 1, 1),),
    candidates=("toy_point", "toy_near", "toy_far"), resolution=8, num_classes=2, in_channels=4,
    stem_stride=1,
)  # fmt: skip


def pictures(g: torch.Generator, n: int = 32) -> tuple[Tensor, Tensor]:
    """Return noise [n, 4, 8, 8] whose neighbours are alike or opposite, and which."""
    t = torch.randint(0, 2, (n,), generator=g)
    noise = torch.randn(n, 4, 8, 8, generator=g)
    return noise + (t * 2.0 - 1.0).view(-1, 1, 1, 1) * noise.roll(1, 3), t


@functools.cache
def _warm(seed: int) -> tuple[SuperNet, Tensor]:
    net, g = seeded(TOY, seed).train(), torch.Generator().manual_seed(seed)
    net.first_conv = nn.Identity()
    paths, rng = sgd_paths(net), random.Random(seed)
    for _ in range(50):
        net.random_path(rng)
        train(net, paths, g)
    return net, g.get_state()


def warm(seed: int) -> tuple[SuperNet, PathParameters, torch.Generator]:
    """Return a net whose weights were trained on even paths; its stem passes pictures on as they are."""
    net, state = _warm(seed)
    g = torch.Generator()
    g.set_state(state)
    net = copy.deepcopy(net)
    return net, sgd_paths(net), g


def train(net: SuperNet, paths: PathParameters, g: torch.Generator) -> float:
    with paths.selected():
        x, t = pictures(g)
        loss = F.cross_entropy(net(x), t)
        loss.backward()
        paths.optimizer.step()
    return float(loss.detach())


def adam(net: SuperNet) -> torch.optim.Optimizer:
    return torch.optim.Adam([net.alphas.logits], 0.05, betas=(0.0, 0.999))


@pytest.mark.parametrize("mode", MODES)
def test_gradient_finds_the_best_operation(mode: str) -> None:
    found = []
    for seed in SEEDS:
        net, paths, g = warm(seed)
        costs = torch.zeros(net.alphas.mask.shape, dtype=torch.float64)
        step = ArchStep(net, adam(net), paths, costs, 0.0, mode=mode, generator=g)
        for _ in range(40):
            net.set_path(net.alphas.sample(g))
            train(net, paths, g)
            step(*pictures(g), Objective("none"))
        found.append(net.alphas.most_probable())
    assert found.count([NEAR]) >= 9, found


def test_reinforce_finds_the_best_operation() -> None:
    found = []
    for seed in SEEDS:
        net, paths, g = warm(seed)
        step = ReinforceStep(net, adam(net), None, None, samples=6, generator=g)
        for _ in range(40):
            net.set_path(net.alphas.sample(g))
            train(net, paths, g)
            step(*pictures(g))
        found.append(net.alphas.most_probable())
    assert found.count([NEAR]) >= 9, found


@pytest.mark.parametrize("kind", ["add_linear", "mul_log"])
def test_a_strong_pull_leads_to_the_cheapest_net(kind: str) -> None:
    costs = torch.tensor([[3.0, 2.0, 1.0, 0.0]], dtype=torch.float64)
    for seed in range(3):
        net, paths, g = warm(seed)
        step = ArchStep(net, adam(net), paths, costs, 1.0, generator=g)
        expected = [step(*pictures(g), Objective(kind, 3.0, strength=10.0)).expected for _ in range(60)]
        assert expected[0] == pytest.approx(2.5, abs=0.01)
        assert expected[-1] < 1.5
        assert net.alphas.most_probable() == [3]
