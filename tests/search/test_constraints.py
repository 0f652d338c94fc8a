"""What models cost: the sums over blocks are the models' own figures."""

from __future__ import annotations

import random

import pytest
import torch
from search_tools import COLUMNS, SPACE, ZERO_COLUMN, same, small_model, state_of

from proxylessnas import DataError, profile
from proxylessnas.arch.space import SearchSpace
from proxylessnas.arch.spaces import read_space
from proxylessnas.latency.table import LatencyTable
from proxylessnas.search.constraints import Constraint, Costs, check_reachable, latency_costs, size_costs
from proxylessnas.search.objective import expected_cost
from proxylessnas.search.supernet import SuperNet

GREY = read_space("small").replace(in_channels=1, resolution=28)


@pytest.mark.parametrize("space", [SPACE, read_space("tiny"), GREY], ids=lambda s: s.name)
def test_sizes_are_those_of_the_children(space: SearchSpace) -> None:
    model = SuperNet(space)
    found = size_costs(model)
    rng = random.Random(0)
    shape = (space.in_channels, space.resolution, space.resolution)
    models = [list(space.random_choices(rng)) for _ in range(6)]
    for choices in [*models, found["macs"].cheapest(), found["params"].most_expensive()]:
        child = profile(model.child(choices), shape)
        assert found["macs"].of(choices) == pytest.approx(child.macs / 1e6, rel=1e-12)
        assert found["params"].of(choices) == pytest.approx(child.params / 1e6, rel=1e-12)


def test_the_published_space_has_its_published_bounds() -> None:
    space = read_space("imagenet")
    found = size_costs(SuperNet(space, device="meta"))
    for column, params, macs in ((0, 3.192, 257.4), (1, 4.685, 472.6), (5, 5.103, 606.6)):
        assert found["params"].of([column] * 21) == pytest.approx(params, abs=5e-4)
        assert found["macs"].of([column] * 21) == pytest.approx(macs, abs=0.05)
    assert found["params"].range() == pytest.approx((2.155, 5.103), abs=5e-4)
    assert found["macs"].range() == pytest.approx((102.5, 606.6), abs=0.05)
    shallow = [6 if row[6] else 0 for row in space.mask]
    assert found["macs"].cheapest() == found["params"].cheapest() == shallow
    assert all(not costs.table[:, 6].any() for costs in found.values())


def test_counting_leaves_the_model_as_it_was() -> None:
    model = small_model()
    model.set_path([3, 4, 2, 1])
    before, alpha = state_of(model), model.alphas.logits.detach().clone()
    size_costs(model)
    assert model.path == [3, 4, 2, 1]
    assert model.training
    assert same(before, model.state_dict())
    assert torch.equal(model.alphas.logits, alpha)


def test_latencies_are_those_of_the_table() -> None:
    space, table = read_space("imagenet"), LatencyTable.load("pixel1")
    costs = latency_costs(table, space)
    assert costs.table.dtype == torch.float64
    rng = random.Random(0)
    for _ in range(10):
        choices = space.random_choices(rng)
        assert costs.of(choices) == pytest.approx(table.predict(space.arch(choices)), rel=1e-9)
    assert not costs.table[:, 6].any()
    # Published figures of the original table.
    assert costs.range() == pytest.approx((29.61, 191.03), abs=0.01)
    assert costs.of([0] * 21) == pytest.approx(76.05, abs=0.01)
    even = costs.mask / costs.mask.sum(1, keepdim=True)
    assert float(expected_cost(even, costs.table, costs.fixed)) == pytest.approx(113.99, abs=0.01)


def some_costs() -> Costs:
    mask = torch.tensor([list(row) for row in SPACE.mask])
    table = torch.arange(mask.numel(), dtype=torch.float64).view(mask.shape) / 10
    table[:, ZERO_COLUMN] = 0
    return Costs("latency", "ms", table.masked_fill(~mask, 0), 2.0, mask)


def test_cheapest_and_most_expensive_are_models_of_the_space() -> None:
    costs = some_costs()
    # A column that is not there costs 0, but does not count.
    assert costs.cheapest() == [0, ZERO_COLUMN, 0, ZERO_COLUMN]
    assert costs.most_expensive() == [3, 3, 3, 3]
    assert costs.range() == (costs.of([0, 4, 0, 4]), costs.of([3, 3, 3, 3]))
    assert costs.range() == pytest.approx((3.0, 6.2))
    assert costs.table.shape[1] == COLUMNS


def test_a_sum_is_exact_to_the_last_digit() -> None:
    mask = torch.ones(1000, 1, dtype=torch.bool)
    costs = Costs("latency", "ms", torch.full((1000, 1), 0.1, dtype=torch.float64), 0.0, mask)
    assert costs.of([0] * 1000) == 100.0


def test_figures_as_text() -> None:
    costs = some_costs()
    shown = {0.01234: "0.0123 ms", 5.0: "5 ms", 9.994: "9.99 ms", 12.345: "12.3 ms"}
    assert [costs.show(value) for value in shown] == list(shown.values())


def test_targets_that_no_model_meets_are_refused_with_the_range() -> None:
    costs = some_costs()
    low, high = costs.range()
    check_reachable([Constraint(costs, low), Constraint(costs, high)])
    for limit in (0.99 * low, 1e-9):
        with pytest.raises(DataError, match=r"no model .* latency .*: they go from 3 ms to 6.2 ms"):
            check_reachable([Constraint(costs, high), Constraint(costs, limit)])
    with pytest.raises(DataError, match=r"every model .* latency 6.3 ms: they go from 3 ms to 6.2 ms"):
        check_reachable([Constraint(costs, 6.3)])


@pytest.mark.parametrize("limit", [0.0, -1.0, float("nan"), float("inf")])
def test_targets_that_are_no_numbers_are_refused(limit: float) -> None:
    with pytest.raises(DataError, match="a target must be a number above 0"):
        check_reachable([Constraint(some_costs(), limit)])
